/**
 * @file Whole training steps of a MiniLM-shaped BERT (6 layers × 384, 22.7 M parameters, seeded weights): forward,
 * backward, the terms of the log-posterior and Adam, by MLE and by MAP, at 1,024 tokens and at SST-2's 213. The prior's
 * cost is the difference between the two, which therefore run in turn.
 */
import { Engine } from "../src/autograd/index.ts";
import type { Example } from "../src/data/batches.ts";
import type { Gpu } from "../src/gpu/index.ts";
import { BertForSequenceClassification } from "../src/model/bert.ts";
import { Stream } from "../src/random.ts";
import { adam, fit, gaussianPrior, logPosterior } from "../src/train/index.ts";
import type { BenchCase } from "./case.ts";

const MINILM = {
  model_type: "bert",
  vocab_size: 30_522,
  hidden_size: 384,
  num_hidden_layers: 6,
  num_attention_heads: 12,
  intermediate_size: 1536,
  max_position_embeddings: 512,
  type_vocab_size: 2,
  hidden_act: "gelu",
  layer_norm_eps: 1e-12,
  hidden_dropout_prob: 0,
  attention_probs_dropout_prob: 0,
};

/** Sequence lengths: 16 of 64 tokens, or 16 as SST-2 has them (mean 13). */
const LENGTHS: Record<string, number[]> = {
  "1024": Array(16).fill(64),
  "213": [3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 20, 23, 25, 29],
};

/** One case per objective and batch. Each run is one step that is read back, as training reads it. */
export async function stepCases(gpu: Gpu): Promise<BenchCase[]> {
  const engine = new Engine(gpu);
  const source = {
    name: "bench",
    config: MINILM,
    shapes: new Map<string, number[]>(),
    read: async () => new Float32Array(),
  };
  const cases: BenchCase[] = [];
  for (const [tokens, lengths] of Object.entries(LENGTHS)) {
    const stream = new Stream(1, "bench");
    const examples: Example[] = lengths.map((length, i) => ({
      ids: Uint32Array.from({ length }, () => stream.integer(MINILM.vocab_size)),
      typeIds: new Uint32Array(length),
      label: i % 2,
    }));
    for (const [objective, precision] of [
      ["MLE", 0],
      ["MAP", 300],
    ] as const) {
      cases.push({
        name: `step.${objective}`,
        turn: tokens,
        shape: { tokens: Number(tokens), sequences: lengths.length },
        // 6 multiply-adds' worth of flops per weight and token (forward 2, backward 4), without attention's T².
        flops: 6 * 6 * (4 * 384 * 384 + 2 * 384 * 1536) * Number(tokens),
        ...trainer(engine, source, examples, precision),
      });
    }
  }
  return cases;
}

/** A training that takes one step at every `run`; the model is made at the first one and freed by `dispose`. */
function trainer(
  engine: Engine,
  source: Parameters<typeof BertForSequenceClassification.load>[1],
  examples: Example[],
  precision: number,
): Pick<BenchCase, "run" | "dispose"> {
  let steps: ReturnType<typeof fit> | undefined;
  let free = () => {};
  return {
    async run() {
      if (!steps) {
        const model = await BertForSequenceClassification.load(engine, source, {
          labels: 2,
          readout: "mean",
          scratch: true,
        });
        const prior = gaussianPrior(model, {
          encoder: { precision },
          head: { mean: 0, precision: precision > 0 ? 1 : 0 },
        });
        const target = logPosterior(model, prior, { N: examples.length });
        // A batch is an epoch here, and the last step of an epoch is read before the next: every run is one whole step.
        steps = fit(target, examples, {
          optimizer: adam({ lr: 1e-5 }),
          epochs: 10_000,
          batch: examples.length,
          warmup: 0,
          schedule: "constant",
        });
        free = () => {
          prior.dispose();
          model.dispose();
        };
      }
      await steps.next();
    },
    async dispose() {
      await steps?.return();
      free();
    },
  };
}
