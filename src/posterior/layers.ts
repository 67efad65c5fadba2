/**
 * @file The linear layers of a model, as they run: which slices of θ they are, and what goes into the last of them. The
 * engine is watched while the model does what it does anyway, so a model of any form has its layers found.
 */
import type { Engine, LinearWatch, Slice, Tensor, Theta } from "../autograd/index.ts";
import { fromHost, type NdArray, readArray } from "../kernels/index.ts";
import type { LayerShape } from "./curvature.ts";

/** A model whose logits are a function of θ. Where vectors and head can be asked apart, work on the head stays there. */
export interface LogitModel<B> {
  readonly engine: Engine;
  readonly theta: Theta;
  /** [n, K]. Called inside `engine.step`. */
  logits(batch: B): Tensor;
  features?(batch: B): Tensor;
  classify?(features: Tensor): Tensor;
}

export interface LinearLayer {
  weight: Slice;
  /** If it learns. */
  bias: Slice | undefined;
  shape: LayerShape;
}

/** Runs `body` with the engine's linear layers watched. */
export function watching<T>(engine: Engine, watch: LinearWatch, body: () => T): T {
  const before = engine.linearWatch;
  engine.linearWatch = watch;
  try {
    return body();
  } finally {
    engine.linearWatch = before;
  }
}

/** A layer's slices of θ, in θ's order. */
export const slicesOf = ({ weight, bias }: LinearLayer): Slice[] => (bias ? [weight, bias] : [weight]);

/** Freezes all but these slices, so that a backward works for them alone; gives the way back. */
export function holdOthers(theta: Theta, slices: readonly Slice[]): () => void {
  const frozen = new Set(theta.layout.slices.filter((slice) => theta.isFrozen(slice)));
  theta.freeze((slice) => !slices.includes(slice));
  return () => theta.freeze((slice) => frozen.has(slice));
}

/** Whether an array is this slice of θ itself. */
export function isSlice(theta: Theta, slice: Slice, array: NdArray): boolean {
  return array.buffer === theta.values.buffer && array.byteOffset === 4 * slice.offset;
}

/** Every linear layer of θ that a model uses, in order of use, each once; and K. */
export interface UsedLayers {
  layers: readonly LinearLayer[];
  K: number;
}

/** By one forward of the batch. */
export function layersOf<B>(model: LogitModel<B>, batch: B): UsedLayers {
  const { engine, theta } = model;
  const found = new Map<Slice, LinearLayer>();
  const K = engine.step(() =>
    engine.noGrad(() => {
      const forward = ({ weight, bias }: { weight: NdArray; bias: NdArray | undefined }) => {
        const layer = layerOf(theta, weight, bias);
        if (layer && !found.has(layer.weight)) found.set(layer.weight, layer);
      };
      return watching(engine, { forward }, () => model.logits(batch)).shape[1] ?? 0;
    }),
  );
  return { layers: [...found.values()], K };
}

function layerOf(theta: Theta, weight: NdArray, bias: NdArray | undefined): LinearLayer | undefined {
  const sliceOf = (array: NdArray) => theta.layout.slices.find((slice) => isSlice(theta, slice, array));
  const slice = sliceOf(weight);
  if (!slice) return undefined;
  const [outputs = 0, inputs = 0] = slice.shape;
  const found = bias && sliceOf(bias);
  const own = found && !theta.isFrozen(found) ? found : undefined;
  return { weight: slice, bias: own, shape: { inputs, outputs, bias: own !== undefined } };
}

/** The layer that gives the logits, for one batch of n examples. */
export interface LastLayer extends LinearLayer {
  n: number;
  K: number;
  /** [n, in] */
  input: Float32Array;
  /** [n, K] */
  logits: Float32Array;
  /** ∂ logit_k / ∂ output, K arrays [n, out]; undefined: the outputs are the logits. */
  jacobian: Float32Array[] | undefined;
}

/** Input and logits of the model's last linear layer. The encoder runs without a tape where the model can be split. */
export async function readLastLayer<B>(model: LogitModel<B>, batch: B): Promise<LastLayer> {
  const { engine, theta } = model;
  const { gpu } = engine;
  const { reads, layer, n, K } = engine.step(() => {
    const features = model.classify && engine.noGrad(() => model.features?.(batch));
    const forward = () => (features && model.classify ? model.classify(features) : model.logits(batch));
    let last: Parameters<NonNullable<LinearWatch["forward"]>>[0] | undefined;
    let input: Promise<Float32Array> | undefined;
    const watch: LinearWatch = {
      forward(found) {
        last = found;
        // Read now: after the call the array may be somebody else's.
        input = readArray(gpu, found.input);
      },
    };
    const logits = watching(engine, watch, forward);
    const layer = last && layerOf(theta, last.weight, last.bias);
    if (!last || !input || !layer) throw new Error("laplace: the model has no linear layer");
    const [n = 0, K = 0] = logits.shape;
    if (last.input.shape[0] !== n) throw new Error(`laplace: the last layer has ${last.input.shape[0]} rows, not ${n}`);
    const reads = [input, logits.read()];
    if (last.output.buffer !== logits.array.buffer) {
      for (let k = 0; k < K; k++) {
        const seed = Float32Array.from({ length: n * K }, (_, i) => (i % K === k ? 1 : 0));
        const backward: LinearWatch["backward"] = ({ weight, gradient }) => {
          if (isSlice(theta, layer.weight, weight)) reads.push(readArray(gpu, gradient));
        };
        const at = k === 0 ? logits : forward();
        theta.zeroGradient();
        watching(engine, { backward }, () => engine.backward(at, fromHost(gpu, seed, [n, K])));
      }
    }
    return { reads: Promise.all(reads), layer, n, K };
  });
  const [input, logits, ...jacobian] = await reads;
  return {
    ...layer,
    n,
    K,
    input: input as Float32Array,
    logits: logits as Float32Array,
    jacobian: jacobian.length > 0 ? jacobian : undefined,
  };
}
