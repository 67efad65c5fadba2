/**
 * @file Cross-entropy of logits against class numbers: log-softmax and negative log-likelihood fused, so that neither
 * probabilities nor log-probabilities are stored. From two labels to a vocabulary.
 */
import { type Gpu, grid } from "../gpu/index.ts";
import { empty, expectIndex, expectShape, NAN_BITS, type NdArray } from "./array.ts";
import { rowStatistics } from "./softmax.ts";
import { spread } from "./spread.ts";

/** A target that counts for nothing: loss 0, gradient 0. */
export const IGNORE_TARGET = 0xffffffff;

export interface CrossEntropyResult {
  /** [B], −log p(target) in nats. */
  loss: NdArray;
  /** [B], log Σ_k exp(logits[b, k]); the backward needs it. */
  lse: NdArray;
}

/**
 * loss[b] = log Σ_k exp(logits[b, k]) − logits[b, targets[b]], logits [B, K] and targets u32 [B]. A target ≥ K other
 * than `IGNORE_TARGET` gives NaN.
 */
export function crossEntropy(gpu: Gpu, logits: NdArray, targets: NdArray): CrossEntropyResult {
  const dims: Record<string, number> = {};
  expectShape("crossEntropy", "logits", logits, "B K", dims);
  expectTargets("crossEntropy", targets, dims);
  const [rows, k] = logits.shape as [number, number];
  const loss = empty(gpu, [rows], "f32", "crossEntropy");
  const lse = empty(gpu, [rows], "f32", "crossEntropy");
  if (logits.size === 0) return { loss, lse };
  const { partial, parts } = rowStatistics(gpu, logits, "crossEntropy");
  gpu.dispatch({
    op: "crossEntropy.forward",
    shader: "crossentropy",
    entry: "forward",
    bindings: [logits, targets, partial, loss, lse],
    params: [rows, k, parts, logits.size, 1, NAN_BITS],
    grid: grid(Math.ceil(rows / 64)),
  });
  gpu.release(partial.buffer);
  return { loss, lse };
}

/**
 * dlogits [B, K] = (softmax(logits) − onehot(targets)) · dloss, with lse from the forward and dloss [B]. A target ≥ K
 * other than `IGNORE_TARGET` gives a row of NaN.
 */
export function crossEntropyBackward(
  gpu: Gpu,
  logits: NdArray,
  targets: NdArray,
  lse: NdArray,
  dloss: NdArray,
): NdArray {
  const dims: Record<string, number> = {};
  expectShape("crossEntropyBackward", "logits", logits, "B K", dims);
  expectTargets("crossEntropyBackward", targets, dims);
  expectShape("crossEntropyBackward", "lse", lse, "B", dims);
  expectShape("crossEntropyBackward", "dloss", dloss, "B", dims);
  const [rows, k] = logits.shape as [number, number];
  const dx = empty(gpu, logits.shape, "f32", "crossEntropyBackward");
  if (logits.size === 0) return dx;
  const { per, grid } = spread(gpu, logits.size);
  gpu.dispatch({
    op: "crossEntropy.backward",
    shader: "crossentropy",
    entry: "backward",
    constants: { aligned: k % 4 === 0 ? 1 : 0 },
    bindings: [logits, targets, lse, dloss, dx],
    params: [rows, k, 1, logits.size, per, NAN_BITS],
    grid,
  });
  return dx;
}

function expectTargets(op: string, targets: NdArray, dims: Record<string, number>): void {
  expectShape(op, "targets", targets, "B", dims);
  expectIndex(op, "targets", targets);
}

/** The definition, in float64: loss [B]. */
export function crossEntropyReference(logits: ArrayLike<number>, targets: ArrayLike<number>): Float64Array {
  const k = logits.length / targets.length;
  return Float64Array.from({ length: targets.length }, (_, b) => {
    const target = targets[b] as number;
    if (target === IGNORE_TARGET) return 0;
    let max = Number.NEGATIVE_INFINITY;
    for (let i = 0; i < k; i++) max = Math.max(max, logits[b * k + i] as number);
    let sum = 0;
    for (let i = 0; i < k; i++) sum += Math.exp((logits[b * k + i] as number) - max);
    return Math.log(sum) - ((logits[b * k + target] as number) - max);
  });
}
