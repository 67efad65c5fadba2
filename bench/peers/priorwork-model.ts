/**
 * @file priorwork's encoder, inference and training step, by its own classes: `BertEncoder`, and `fit` with Adam under a
 * flat prior. The training step also takes the norms that `fit` reports and reads its loss back, as it does for users.
 */
import { type Engine, ops, type SliceSpec, type Tensor } from "../../src/autograd/index.ts";
import { packBatch } from "../../src/data/batches.ts";
import { fromHost, type NdArray } from "../../src/kernels/index.ts";
import { BertEncoder } from "../../src/model/bert.ts";
import { parseBertConfig } from "../../src/model/config.ts";
import { readoutNamed } from "../../src/model/readout.ts";
import { adam, fit, gaussianPrior, type Likelihood, logPosterior } from "../../src/train/index.ts";
import { EPS } from "./model.ts";
import type { Input, Prepared, Task, Work } from "./peer.ts";
import { kernel } from "./priorwork-kernel.ts";

type ModelWork = Extract<Work, { layers: number }>;

/** What the bench calls a weight, in the checkpoint's words. */
const NAMES: Record<string, string> = {
  "words.w": "bert.embeddings.word_embeddings.weight",
  "positions.w": "bert.embeddings.position_embeddings.weight",
  "types.w": "bert.embeddings.token_type_embeddings.weight",
  "norm.gamma": "bert.embeddings.LayerNorm.weight",
  "norm.beta": "bert.embeddings.LayerNorm.bias",
  "head.w": "head.weight",
  "head.b": "head.bias",
};
const MODULES: Record<string, string> = {
  query: "attention.self.query",
  key: "attention.self.key",
  value: "attention.self.value",
  out: "attention.output.dense",
  norm1: "attention.output.LayerNorm",
  up: "intermediate.dense",
  down: "output.dense",
  norm2: "output.LayerNorm",
};

function parameterName(name: string): string {
  const known = NAMES[name];
  if (known) return known;
  const [, layer = "0", module = "", part = ""] = /^(?:(\d+)\.)?(\w+)\.(\w+)$/.exec(name) ?? [];
  return `bert.encoder.layer.${layer}.${MODULES[module]}.${part === "w" || part === "gamma" ? "weight" : "bias"}`;
}

/** Linear weights are [in, out] in the bench and [out, in] in a checkpoint. */
function turned(name: string, data: ArrayLike<number>, shape: readonly number[], back = false): Float32Array {
  const values = Float32Array.from(data);
  if (!name.endsWith(".w") || /^(words|positions|types)\./.test(name)) return values;
  const [input, out] = shape as [number, number];
  const [rows, columns] = back ? [out, input] : [input, out];
  return Float32Array.from(
    { length: values.length },
    (_, i) => values[(i % rows) * columns + Math.floor(i / rows)] ?? 0,
  );
}

export function prepareModel(engine: Engine, task: Task, work: ModelWork, inputs: Record<string, Input>): Prepared {
  const tokens = (inputs.ids ?? inputs.x)?.shape[0] ?? 0; // none of a training run, which has them by batch
  const c = inputs["query.b"]?.shape[0] ?? inputs["0.query.b"]?.shape[0] ?? 0;
  const length = work.kind === "train" ? 512 : tokens / work.sequences;
  const config = {
    model_type: "bert",
    vocab_size: inputs["words.w"]?.shape[0] ?? 8,
    hidden_size: c,
    num_hidden_layers: work.layers,
    num_attention_heads: work.heads,
    intermediate_size: (inputs["up.b"] ?? inputs["0.up.b"])?.shape[0],
    max_position_embeddings: length,
    type_vocab_size: 2,
    layer_norm_eps: EPS,
    hidden_act: "gelu",
    hidden_dropout_prob: 0,
    attention_probs_dropout_prob: 0,
  };
  const head = (name: string, shape: number[]): SliceSpec => ({
    key: name,
    parameters: [{ name, shape }],
    groups: ["head"],
  });
  const heads = work.kind === "train" ? [head("head.weight", [2, c]), head("head.bias", [2])] : [];
  const encoder = new BertEncoder(engine, parseBertConfig(config, "bench"), heads, false);
  const weights = task.weights ?? [];
  for (const name of weights) {
    const { data, shape } = inputs[name] as Input;
    encoder.theta.set(parameterName(name), turned(name, data, shape));
  }
  if (work.kind === "train") return trainer(engine, encoder, inputs, work);
  const ids = Uint32Array.from(inputs.ids?.data ?? new Uint32Array(tokens));
  const examples = Array.from({ length: work.sequences }, (_, b) => ({
    ids: ids.subarray(b * length, (b + 1) * length),
    typeIds: new Uint32Array(length),
  }));
  const packed = packBatch(examples);
  const { gpu } = engine;
  const infer = (body: () => Tensor) => () => ({ y: engine.noGrad(() => engine.step(() => kept(engine, body()))) });
  if (work.kind === "inference") {
    const readout = readoutNamed("mean", work.layers);
    return withTheta(
      encoder,
      kernel(
        gpu,
        {},
        infer(() => encoder.read(readout, packed)),
      ),
    );
  }

  const x = inputs.x as Input;
  const held = { x: fromHost(gpu, x.data as Float32Array, x.shape) };
  if (!task.gradients) {
    const input = engine.tensor(x.data as Float32Array, x.shape);
    return withTheta(
      encoder,
      kernel(
        gpu,
        { x: input.array },
        infer(() => encoder.layer(0, input, encoder.upload(packed))),
      ),
    );
  }
  const dy = fromHost(gpu, inputs.dy?.data as Float32Array, x.shape);
  let gradient: NdArray | undefined;
  const backward = kernel(gpu, { ...held, dy }, () =>
    engine.step(() => {
      encoder.theta.zeroGradient();
      // A view of x that collects its gradient: the slot is the step's own.
      const leaf = engine.tensor(x.data as Float32Array, x.shape, { grad: true });
      const y = encoder.layer(0, leaf, encoder.upload(packed));
      kept(engine, y);
      engine.backward(y, dy);
      gradient = encoder.theta.gradient();
      const dx = engine.gradientOf(leaf);
      gpu.keep(dx.buffer);
      return { y: y.array, dx };
    }),
  );
  const read: Prepared["read"] = async (names) => {
    const found: Record<string, ArrayLike<number>> = await backward.read(names.filter((n) => n === "y" || n === "dx"));
    for (const name of names) {
      if (name in found || !gradient) continue;
      const plain = name.slice(1);
      const data = await encoder.theta.get(parameterName(plain), gradient);
      found[name] = turned(plain, data, inputs[plain]?.shape ?? [], true);
    }
    return found;
  };
  return withTheta(encoder, { ...backward, read });
}

function kept(engine: Engine, { array }: Tensor): NdArray {
  engine.gpu.keep(array.buffer);
  return array;
}

function withTheta(encoder: BertEncoder, prepared: Prepared): Prepared {
  return {
    ...prepared,
    dispose: async () => {
      await prepared.dispose();
      encoder.theta.dispose();
    },
  };
}

type Batch = ReturnType<typeof packBatch>;

/** The rows of x, [B·T, C], that are no padding: [N, C]. */
function packedRows({ data, shape }: Input, lengths: readonly number[]): Input {
  const [rows = 0, c = 0] = shape;
  const longest = rows / lengths.length;
  const parts = lengths.map((length, b) =>
    (data as Float32Array).subarray(b * longest * c, (b * longest + length) * c),
  );
  const packed = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    packed.set(part, at);
    at += part.length;
  }
  return { shape: [packed.length / c, c], data: packed };
}

/** The embeddings take no part, so a batch's ids have room for its number, by which its x is found. */
function trainer(
  engine: Engine,
  encoder: BertEncoder,
  inputs: Record<string, Input>,
  { batches, layers, lr }: ModelWork & { kind: "train" },
): Prepared {
  const { theta } = encoder;
  const xs = batches.map(({ lengths }, i) => {
    const { data, shape } = packedRows(inputs[`x@${i}`] as Input, lengths);
    return engine.tensor(data as Float32Array, shape);
  });
  const examples = batches.flatMap(({ lengths, labels }, i) =>
    lengths.map((length, b) => ({
      ids: new Uint32Array(length).fill(i),
      typeIds: new Uint32Array(length),
      label: labels[b] ?? 0,
    })),
  );
  const model: Likelihood<Batch> = {
    engine,
    theta,
    loss: (batch) => {
      const device = encoder.upload(batch);
      let y = xs[batch.ids[0] ?? 0] as Tensor;
      for (let i = 0; i < layers; i++) y = encoder.layer(i, y, device);
      const pooled = ops.segmentMean(y, device.starts);
      const logits = ops.linear(pooled, theta.tensor("head.weight"), { bias: theta.tensor("head.bias") });
      const targets = fromHost(engine.gpu, batch.labels ?? new Uint32Array());
      return { nlls: ops.crossEntropy(logits, targets), count: batch.sequences };
    },
  };
  const prior = gaussianPrior(theta, {
    encoder: { precision: 0 },
    embeddings: { precision: Number.POSITIVE_INFINITY },
    head: { mean: 0, precision: 0 },
  });
  // All batches are an epoch, and the last step of an epoch is read before the next: every run is so many whole steps.
  const steps = fit(logPosterior(model, prior, { N: examples.length }), examples, {
    optimizer: adam({ lr }),
    epochs: 10_000,
    batch: batches[0]?.lengths.length ?? 1,
    shuffle: false,
    warmup: 0,
    schedule: "constant",
  });
  let losses: number[] = [];
  return {
    run: async () => {
      losses = [];
      for (const _ of batches) losses.push((await steps.next()).value?.nll ?? Number.NaN);
    },
    read: async (names) => {
      const read: Record<string, ArrayLike<number>> = {};
      for (const name of names) {
        if (name.startsWith("y@")) read[name] = [losses[Number(name.slice(2))] ?? Number.NaN];
        else read[name] = turned(name, await theta.get(parameterName(name)), inputs[name]?.shape ?? [], true);
      }
      return read;
    },
    dispose: async () => {
      await steps.return();
      prior.dispose();
      theta.dispose();
      for (const x of xs) engine.gpu.release(x.array.buffer);
      engine.gpu.trim();
    },
  };
}
