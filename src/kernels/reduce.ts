/**
 * @file Sums over whole arrays, by a tree that depends on the length alone: same input, same bits, every run. Results
 * stay on the device as arrays of one element; nothing is read back here. Long arrays are walked in windows.
 */
import { f32, type Gpu } from "../gpu/index.ts";
import { empty, fromHost, type NdArray } from "./array.ts";
import { partialSums, slice, windows } from "./windows.ts";

export interface ReduceOptions {
  /** Bytes of a window, for tests; what the adapter binds without it. */
  window?: number;
}

/** alpha · Σ x, [1]. */
export function sum(gpu: Gpu, x: NdArray, alpha = 1, options: ReduceOptions = {}): NdArray {
  return reduce(gpu, "sum", [x], false, alpha, options);
}

/** Σ a·b, [1]. */
export function dot(gpu: Gpu, a: NdArray, b: NdArray, options: ReduceOptions = {}): NdArray {
  if (a.size !== b.size) throw new RangeError(`dot: a has shape [${a.shape}], b [${b.shape}]`);
  return reduce(gpu, "dot", [a, b], false, 1, options);
}

/** Σ x², [1]. */
export function sumOfSquares(gpu: Gpu, x: NdArray, options: ReduceOptions = {}): NdArray {
  return reduce(gpu, "sumOfSquares", [x], true, 1, options);
}

function reduce(
  gpu: Gpu,
  op: string,
  inputs: NdArray[],
  square: boolean,
  alpha: number,
  { window }: ReduceOptions,
): NdArray {
  const size = inputs[0]?.size ?? 0;
  if (size === 0) return fromHost(gpu, [0]);
  const flat = inputs.map((a) => a.reshape([size]));
  const step = { op, shader: "reduce" };
  const parts = partialSums(gpu, op, 1, windows(gpu, 0, size, window), {
    partials(piece, first, sums, grid) {
      gpu.dispatch({
        ...step,
        entry: inputs.length === 2 ? "dot_" : "sum",
        ...(inputs.length === 1 ? { constants: { SQUARE: square ? 1 : 0 } } : {}),
        bindings: [...flat.map((a) => slice(a, piece)), sums],
        params: [piece.length, first, 0],
        grid,
      });
    },
    fold(count, sums, fewer, grid) {
      gpu.dispatch({ ...step, entry: "fold", bindings: [sums, fewer], params: [count, 0, 0], grid });
    },
  });
  const result = empty(gpu, [1], "f32", op);
  const params = [parts.size, 0, f32(alpha)];
  gpu.dispatch({ ...step, entry: "finish", bindings: [parts, result], params, grid: [1, 1, 1] });
  gpu.release(parts.buffer);
  return result;
}

export function sumReference(x: ArrayLike<number>, alpha = 1): number {
  let total = 0;
  for (let i = 0; i < x.length; i++) total += x[i] ?? 0;
  return alpha * total;
}

export function dotReference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += (a[i] ?? 0) * (b[i] ?? 0);
  return total;
}

export function sumOfSquaresReference(x: ArrayLike<number>): number {
  return dotReference(x, x);
}
