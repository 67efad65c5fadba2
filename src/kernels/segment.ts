/**
 * @file Mean and maximum over the tokens of each packed sequence: x [N, C], starts u32 [B + 1] (sequence b has the rows
 * starts[b] … starts[b + 1] − 1; starts[B] = N) → [B, C]. These are the readouts over all tokens.
 */
import { type Gpu, grid } from "../gpu/index.ts";
import { empty, expectIndex, expectShape, type NdArray } from "./array.ts";

/** y[b] = mean of the rows of sequence b, [B, C]; 0 for a sequence without rows. */
export function segmentMean(gpu: Gpu, x: NdArray, starts: NdArray, b: number): NdArray {
  const c = channels("segmentMean", x, "N C", starts, b);
  const y = empty(gpu, [b, c], "f32", "segmentMean");
  launch(gpu, "segmentMean.forward", "mean", [starts, x, y], b, c);
  return y;
}

/** dx[n] = dy[b]/length(b) for the n of sequence b, [N, C]. */
export function segmentMeanBackward(gpu: Gpu, dy: NdArray, starts: NdArray, n: number): NdArray {
  const b = starts.size - 1;
  const c = channels("segmentMean.backward", dy, "B C", starts, b);
  const dx = empty(gpu, [n, c], "f32", "segmentMean.backward");
  launch(gpu, "segmentMean.backward", "meanBackward", [starts, dy, dx], b, c);
  return dx;
}

export interface SegmentMax {
  /** [B, C] */
  y: NdArray;
  /** u32 [B, C]: the row of x that was taken; 2³² − 1 for a sequence without rows. */
  argmax: NdArray;
}

/** Per channel the maximum over the rows of each sequence; the first of equal ones, and the first NaN before all. */
export function segmentMax(gpu: Gpu, x: NdArray, starts: NdArray, b: number): SegmentMax {
  const c = channels("segmentMax", x, "N C", starts, b);
  const y = empty(gpu, [b, c], "f32", "segmentMax");
  const argmax = empty(gpu, [b, c], "u32", "segmentMax");
  launch(gpu, "segmentMax.forward", "maximum", [starts, x, y, argmax], b, c);
  return { y, argmax };
}

/** dx [N, C]: dy where the maximum was taken, else 0. */
export function segmentMaxBackward(gpu: Gpu, dy: NdArray, argmax: NdArray, n: number): NdArray {
  const op = "segmentMax.backward";
  const dims: Record<string, number> = {};
  expectShape(op, "dy", dy, "B C", dims);
  expectShape(op, "argmax", argmax, "B C", dims);
  expectIndex(op, "argmax", argmax);
  const { B: b = 0, C: c = 0 } = dims;
  const dx = empty(gpu, [n, c], "f32", op);
  gpu.clear(dx);
  gpu.dispatch({
    op,
    shader: "segment",
    entry: "maximumBackward",
    bindings: [argmax, dy, dx],
    params: [b, c],
    grid: grid(Math.ceil((b * c) / 64)),
  });
  return dx;
}

function channels(op: string, x: NdArray, spec: string, starts: NdArray, b: number): number {
  const dims: Record<string, number> = spec === "B C" ? { B: b } : {};
  expectShape(op, spec === "B C" ? "dy" : "x", x, spec, dims);
  expectShape(op, "starts", starts, `${b + 1}`);
  expectIndex(op, "starts", starts);
  return dims.C ?? 0;
}

/** One thread a sequence and column; four channels a column where they divide. */
function launch(gpu: Gpu, op: string, entry: string, bindings: NdArray[], b: number, c: number): void {
  const vector = c % 4 === 0;
  const columns = vector ? c / 4 : c;
  const tile = vector ? { T: "vec4f", U: "vec4u", Q: "vec4<bool>" } : { T: "f32", U: "u32", Q: "bool" };
  const params = [b, columns];
  gpu.dispatch({ op, shader: "segment", entry, tile, bindings, params, grid: grid(Math.ceil((b * columns) / 64)) });
}

/** The definition, in float64. */
export function segmentMeanReference(x: ArrayLike<number>, starts: ArrayLike<number>, c: number): Float64Array {
  const b = starts.length - 1;
  const y = new Float64Array(b * c);
  for (let s = 0; s < b; s++) {
    const [begin, end] = [starts[s] ?? 0, starts[s + 1] ?? 0];
    for (let n = begin; n < end; n++) {
      for (let i = 0; i < c; i++) y[s * c + i] = (y[s * c + i] ?? 0) + (x[n * c + i] ?? 0) / (end - begin);
    }
  }
  return y;
}

/** The definition, in float64; a NaN is larger than all. */
export function segmentMaxReference(
  x: ArrayLike<number>,
  starts: ArrayLike<number>,
  c: number,
): { y: Float64Array; argmax: Uint32Array } {
  const b = starts.length - 1;
  const y = new Float64Array(b * c);
  const argmax = new Uint32Array(b * c).fill(0xffffffff);
  for (let s = 0; s < b; s++) {
    for (let i = 0; i < c; i++) {
      const rows = Array.from({ length: (starts[s + 1] ?? 0) - (starts[s] ?? 0) }, (_, k) => (starts[s] ?? 0) + k);
      const values = rows.map((n) => x[n * c + i] ?? 0);
      const nan = values.findIndex(Number.isNaN);
      const best = nan >= 0 ? nan : values.indexOf(Math.max(...values));
      if (best < 0) continue;
      y[s * c + i] = values[best] ?? 0;
      argmax[s * c + i] = rows[best] ?? 0;
    }
  }
  return { y, argmax };
}
