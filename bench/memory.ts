/**
 * @file What a training step takes of the device's memory: bytes predicted term by term (docs/memory.md) beside those
 * that the pool had, for MiniLM and for BERT-base, with every layer's values kept and with layers run again
 * (`--recompute`), whose cost in time is measured in turn with the usual step.
 */
import { Engine } from "../src/autograd/index.ts";
import type { Example } from "../src/data/batches.ts";
import type { Gpu } from "../src/gpu/index.ts";
import { BertForSequenceClassification } from "../src/model/bert.ts";
import { Stream } from "../src/random.ts";
import { adam, fit, gaussianPrior, logPosterior } from "../src/train/index.ts";
import type { BenchCase, MemoryFigures } from "./case.ts";
import { MINILM } from "./step.ts";

export const BERT_BASE = {
  ...MINILM,
  hidden_size: 768,
  num_hidden_layers: 12,
  intermediate_size: 3072,
};

export type Shape = Pick<
  typeof MINILM,
  "hidden_size" | "num_hidden_layers" | "num_attention_heads" | "intermediate_size"
>;

/**
 * The largest moment of a step by Adam: the backward of the last layer's feed-forward part, where nothing that the
 * layers below keep is freed yet. In bytes; `parameters` counts all of θ. Left out: what does not grow with C (token ids
 * and their order), a batch's readout and head, partial sums, and the rounding to size classes, up to 1/16.
 */
export function account(
  { hidden_size: c, num_hidden_layers: layers, num_attention_heads: h, intermediate_size: f }: Shape,
  { parameters, tokens, recompute = false }: { parameters: number; tokens: number; recompute?: boolean },
): Record<"vectors" | "embeddings" | "layersBelow" | "lastLayer" | "gradients", number> {
  const activations = (perToken: number) => 4 * tokens * perToken;
  // qkv 3C, context C, its log-sum-exp H, the sum C before the first LayerNorm and its result C, F before and F after the
  // GELU, the sum C before the second LayerNorm and its result C, mean and deviation of both
  const layer = 8 * c + 2 * f + h + 4;
  return {
    // θ, gradient, μ and Adam's two moments
    vectors: 5 * 4 * parameters,
    // the sum of the three lookups, its mean and deviation, and the first layer's input
    embeddings: activations(2 * c + 2),
    // of a layer that is run again only the result, which is the next one's input, is kept
    layersBelow: (layers - 1) * activations(recompute ? c : layer),
    // its second sum and its result are used up by now
    lastLayer: activations(layer - 2 * c - 2),
    // of GELU's output and of its input, F each; of the first LayerNorm's result, to which the product adds its part
    gradients: activations(2 * f + c),
  };
}

export function total(terms: Record<string, number>): number {
  return Object.values(terms).reduce((a, b) => a + b);
}

/** What a step may take at most: five vectors and 20·C numbers a token and layer; a tenth more is slack. */
export function allowance({ hidden_size: c, num_hidden_layers: layers }: Shape, parameters: number, tokens: number) {
  return 5 * 4 * parameters + 20 * 4 * c * tokens * layers;
}

const BATCHES = [
  { name: "MiniLM", config: MINILM, tokens: 213, rounds: 9 },
  { name: "MiniLM", config: MINILM, tokens: 1024, rounds: 9 },
  { name: "MiniLM", config: MINILM, tokens: 4096, rounds: 2 },
  { name: "BERT-base", config: BERT_BASE, tokens: 512, rounds: 2 },
] as const;

/** Two cases a batch: one training, of which the one takes the steps that keep, the other those that run again. */
export function memoryCases(gpu: Gpu): BenchCase[] {
  return BATCHES.flatMap(({ name, config, tokens, rounds }) => {
    const training = new Steps(new Engine(gpu), config, tokens);
    return [false, true].map((recompute) => ({
      name: `memory.${name}${recompute ? ".recompute" : ""}`,
      turn: `${name} ${tokens}`,
      shape: { tokens, hidden: config.hidden_size, layers: config.num_hidden_layers },
      rounds,
      run: async () => void (await training.step(recompute)),
      memory: () => training.memory(recompute),
      dispose: () => training.dispose(),
    }));
  });
}

/** A training on sequences of 64 tokens with BERT's dropout; a step a call. */
export class Steps {
  readonly #engine: Engine;
  readonly #config: typeof MINILM;
  readonly #examples: Example[];
  readonly #tokens: number;
  #model: BertForSequenceClassification | undefined;
  #steps: ReturnType<typeof fit> | undefined;
  #free = () => {};

  constructor(engine: Engine, config: typeof MINILM, tokens: number, dropout = 0.1) {
    this.#engine = engine;
    this.#config = { ...config, hidden_dropout_prob: dropout, attention_probs_dropout_prob: dropout };
    this.#tokens = tokens;
    const stream = new Stream(1, "memory bench");
    this.#examples = Array.from({ length: Math.ceil(tokens / 64) }, (_, i) => {
      const length = Math.min(64, tokens - 64 * i);
      const ids = Uint32Array.from({ length }, () => stream.integer(config.vocab_size));
      return { ids, typeIds: new Uint32Array(length), label: i % 2 };
    });
  }

  /** One step of MAP with Adam, read back. Its mean NLL. */
  async step(recompute: boolean): Promise<number> {
    const model = await this.#start();
    model.encoder.recompute = recompute;
    const { value } = (await this.#steps?.next()) ?? {};
    return value?.nll ?? Number.NaN;
  }

  /** Of one step: predicted, and the most that existed on the device, from nothing idle on. */
  async memory(recompute: boolean): Promise<MemoryFigures> {
    const { gpu } = this.#engine;
    const { parameterCount: parameters } = (await this.#start()).theta.layout;
    gpu.trim();
    gpu.resetPeak();
    await this.step(recompute);
    const terms = account(this.#config, { parameters, tokens: this.#tokens, recompute });
    return {
      predictedBytes: total(terms),
      peakBytes: gpu.stats.peakHeldBytes,
      allowedBytes: allowance(this.#config, parameters, this.#tokens),
    };
  }

  async dispose(): Promise<void> {
    await this.#steps?.return();
    this.#free();
    this.#free = () => {};
    this.#model = this.#steps = undefined;
  }

  async #start(): Promise<BertForSequenceClassification> {
    if (this.#model) return this.#model;
    const source = { name: "bench", config: this.#config, shapes: new Map(), read: async () => new Float32Array() };
    const options = { labels: 2, readout: "mean", scratch: true };
    const model = await BertForSequenceClassification.load(this.#engine, source, options);
    const prior = gaussianPrior(model, { encoder: { precision: 300 }, head: { precision: 1 } });
    this.#model = model;
    this.#free = () => {
      prior.dispose();
      model.dispose();
    };
    // A batch is an epoch here, and the last step of an epoch is read before the next.
    this.#steps = fit(logPosterior(model, prior, { N: this.#examples.length }), this.#examples, {
      optimizer: adam({ lr: 1e-5 }),
      epochs: 10_000,
      batch: this.#examples.length,
      warmup: 0,
      schedule: "constant",
    });
    return model;
  }
}
