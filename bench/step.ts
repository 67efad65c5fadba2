/**
 * @file Whole steps of a MiniLM-shaped BERT (6 layers × 384, 22.7 M parameters, seeded weights), at 1,024 tokens and at
 * SST-2's 213, and of two layers of BERT-base's: inference; forward and backward; training (both, the terms of the
 * log-posterior and Adam) by MLE and by MAP. The prior's cost is the difference between the last two, which therefore run
 * in turn. Then a step on a frozen encoder beside one of its head alone, which it should not exceed by much.
 */
import { Engine, Layout, ops, Theta } from "../src/autograd/index.ts";
import { type Example, packBatch } from "../src/data/batches.ts";
import type { Gpu } from "../src/gpu/index.ts";
import { fromHost, sizeOf } from "../src/kernels/array.ts";
import { checkHalf } from "../src/kernels/matmul-half.ts";
import { BertForSequenceClassification, encoderSlices } from "../src/model/bert.ts";
import { parseBertConfig } from "../src/model/config.ts";
import type { Checkpoint } from "../src/model/load.ts";
import { Stream } from "../src/random.ts";
import { adam, fit, gaussianPrior, logPosterior, Trainer } from "../src/train/index.ts";
import type { BenchCase } from "./case.ts";
import { tiled } from "./tiled.ts";

export const MINILM = {
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

/** Two of BERT-base's twelve layers, under a vocabulary that leaves the time to them. */
export const BERT_BASE_STACK = {
  ...MINILM,
  vocab_size: 1024,
  hidden_size: 768,
  num_hidden_layers: 2,
  intermediate_size: 3072,
};

/** The steps of that stack at 512 tokens. */
export const stackCases = (gpu: Gpu) => stepCases(gpu, BERT_BASE_STACK, [Array(8).fill(64)]);

/** Sequence lengths of each batch: 16 of 64 tokens, 16 as SST-2 has them (mean 13, 213 in all). */
export const LENGTHS: readonly (readonly number[])[] = [
  Array<number>(16).fill(64),
  [3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 20, 23, 25, 29],
];

/** One case per kind of step and batch. A run of training is one step that is read back, as training reads it. */
export async function stepCases(
  gpu: Gpu,
  config: Readonly<Record<string, string | number>> = MINILM,
  batches: readonly (readonly number[])[] = LENGTHS,
): Promise<BenchCase[]> {
  const engine = new Engine(gpu);
  const source = seededCheckpoint(config);
  const { num_hidden_layers: layers, hidden_size: c, intermediate_size: f, vocab_size: vocabulary } = config;
  // Flops per weight and token are 2 forward and 4 backward, without attention's T².
  const weights = Number(layers) * (4 * Number(c) ** 2 + 2 * Number(c) * Number(f));
  // A matrix unit that multiplies wrongly has no speed.
  const half = gpu.adapter.matrixUnit !== undefined && (await checkHalf(gpu).then(Boolean, () => false));
  const cases: BenchCase[] = [];
  for (const lengths of batches) {
    const stream = new Stream(1, "bench");
    const examples: Example[] = lengths.map((length, i) => ({
      ids: Uint32Array.from({ length }, () => stream.integer(Number(vocabulary))),
      typeIds: new Uint32Array(length),
      label: i % 2,
    }));
    const tokens = lengths.reduce((a, b) => a + b, 0);
    const shape = { tokens, sequences: lengths.length, layers: Number(layers), hidden: Number(c) };
    const turn = `step of ${tokens}`;
    for (const [name, gradients] of [
      ["step.inference", false],
      ["step.backward", true],
    ] as const) {
      const flops = (gradients ? 6 : 2) * weights * tokens;
      cases.push({ name, turn, shape, flops, ...evaluation(engine, source, examples, gradients) });
    }
    for (const [objective, precision] of [
      ["MLE", 0],
      ["MAP", 300],
    ] as const) {
      cases.push({
        name: `step.${objective}`,
        turn,
        shape,
        flops: 6 * weights * tokens,
        ...trainer(engine, source, examples, precision),
      });
    }
    // Nothing but the products differs, and the loss's scale; where no matrix unit takes a product, there is nothing to see.
    if (half) {
      cases.push({
        name: "step.MAP.f16",
        turn,
        shape,
        dtype: "f16",
        flops: 6 * weights * tokens,
        ...trainer(new Engine(gpu, { dtype: "f16" }), source, examples, 300),
      });
    }
    const frozen = `frozen step of ${tokens}`;
    cases.push({
      name: "step.frozen",
      turn: frozen,
      shape,
      ...trainer(engine, source, examples, Number.POSITIVE_INFINITY),
    });
    cases.push({ name: "step.headAlone", turn: frozen, shape, ...headAlone(engine, Number(c), examples) });
  }
  return cases;
}

export const OPTIONS = { labels: 2, readout: "mean" } as const;

/** Weights as at a random start, without the seconds that 22.7 million normal numbers would take for each case. */
export function seededCheckpoint(config: Readonly<Record<string, string | number>>): Checkpoint {
  const parameters = encoderSlices(parseBertConfig(config, "bench"), false).flatMap((slice) => slice.parameters);
  const shapes = new Map(parameters.map(({ name, shape }) => [name, shape]));
  const stream = new Stream(1, "bench weights");
  return {
    name: "bench",
    config,
    shapes,
    read: async (name) => {
      const size = sizeOf(shapes.get(name) ?? []);
      return tiled(size, () => (name.endsWith("LayerNorm.weight") ? 1 : 0.02 * stream.normal()));
    },
  };
}

/** The forward pass alone, or with the gradient of the mean NLL; nothing is read. */
function evaluation(
  engine: Engine,
  source: Checkpoint,
  examples: Example[],
  gradients: boolean,
): Pick<BenchCase, "run" | "dispose"> {
  let model: BertForSequenceClassification | undefined;
  const batch = packBatch(examples);
  const step = (bert: BertForSequenceClassification) =>
    engine.step(() => {
      if (!gradients) return void engine.noGrad(() => bert.logits(batch));
      bert.theta.zeroGradient();
      engine.backward(ops.mean(bert.loss(batch).nlls));
    });
  return {
    run() {
      if (model) return step(model);
      return BertForSequenceClassification.load(engine, source, OPTIONS).then((loaded) => {
        model = loaded;
        step(loaded);
      });
    },
    dispose() {
      model?.dispose();
      model = undefined;
    },
  };
}

/** What a frozen encoder's step is held against: the same head on vectors that were always there, nothing below it. */
function headAlone(engine: Engine, c: number, examples: Example[]): Pick<BenchCase, "run" | "dispose"> {
  const { gpu } = engine;
  const one = (name: string, shape: number[]) => ({ key: name, parameters: [{ name, shape }], groups: ["head"] });
  let steps: ReturnType<typeof fit> | undefined;
  let free = () => {};
  return {
    async run() {
      if (!steps) {
        const theta = new Theta(engine, new Layout([one("weight", [2, c]), one("bias", [2])]));
        const stream = new Stream(1, "bench features");
        const features = engine.tensor(
          Float32Array.from({ length: examples.length * c }, () => stream.normal()),
          [examples.length, c],
        );
        const labels = Uint32Array.from(examples, ({ label }) => label ?? 0);
        const model = {
          engine,
          theta,
          loss() {
            const logits = ops.linear(features, theta.tensor("weight"), { bias: theta.tensor("bias") });
            return { nlls: ops.crossEntropy(logits, fromHost(gpu, labels)), count: examples.length };
          },
        };
        const prior = gaussianPrior(theta, { head: { mean: 0, precision: 1 } });
        const n = examples.length;
        steps = fit(
          logPosterior(model, prior, { N: n }),
          { length: n, batch: () => ({}) },
          { optimizer: adam({ lr: 1e-5 }), epochs: 10_000, batch: n, warmup: 0, schedule: "constant" },
        );
        free = () => {
          prior.dispose();
          features.dispose();
          theta.dispose();
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

/**
 * A training that takes one step at every `run`, and does `after` with it; the model is made at the first one and freed by
 * `dispose`.
 */
export function trainer(
  engine: Engine,
  source: Checkpoint,
  examples: Example[],
  precision: number,
  optimizer = adam({ lr: 1e-5 }),
  after: (training: Trainer, theta: Theta) => void = () => {},
): Pick<BenchCase, "run" | "dispose"> {
  let steps: ReturnType<Trainer["run"]> | undefined;
  let finish = () => {};
  let free = () => {};
  return {
    async run() {
      if (!steps) {
        const model = await BertForSequenceClassification.load(engine, source, OPTIONS);
        const prior = gaussianPrior(model, {
          encoder: { precision },
          head: { mean: 0, precision: precision > 0 ? 1 : 0 },
        });
        const target = logPosterior(model, prior, { N: examples.length });
        // A batch is an epoch here, and the last step of an epoch is read before the next: every run is one whole step.
        const training = new Trainer(target, examples, {
          optimizer,
          epochs: 10_000,
          batch: examples.length,
          warmup: 0,
          schedule: "constant",
        });
        steps = training.run();
        finish = () => after(training, model.theta);
        free = () => {
          training.dispose();
          prior.dispose();
          model.dispose();
        };
      }
      await steps.next();
      finish();
    },
    async dispose() {
      await steps?.return();
      free();
    },
  };
}
