/**
 * @file Softmax and log-softmax over the last axis of [N, C], C from 1 to whole vocabularies. Two families: "resident"
 * keeps a row in the registers of one subgroup; "passes" takes any row, and leaves a row's maximum and sum from several
 * threads where rows are long (`rowStatistics`, shared with cross-entropy).
 */
import { type Gpu, grid } from "../gpu/index.ts";
import { empty, expectShape, type NdArray } from "./array.ts";
import { spread } from "./spread.ts";

/** How rows are gone through. A wish of tests and benches: where "resident" cannot run, "passes" does. */
export type SoftmaxFamily = "resident" | "passes";

/** y[n, c] = exp(x[n, c]) / Σ_j exp(x[n, j]). x may hold −∞; a row with NaN or +∞, or of −∞ only, gives NaN. */
export function softmax(gpu: Gpu, x: NdArray, family?: SoftmaxFamily): NdArray {
  return normalized(gpu, x, "softmax", 0, family);
}

/** y[n, c] = x[n, c] − log Σ_j exp(x[n, j]). */
export function logSoftmax(gpu: Gpu, x: NdArray, family?: SoftmaxFamily): NdArray {
  return normalized(gpu, x, "logSoftmax", 1, family);
}

/** dx from the forward's output y and the gradient dy of it, all [N, C]. */
export function softmaxBackward(gpu: Gpu, y: NdArray, dy: NdArray, family?: SoftmaxFamily): NdArray {
  return vjp(gpu, y, dy, "softmax", 0, family);
}

/** As `softmaxBackward`, with y from `logSoftmax`. */
export function logSoftmaxBackward(gpu: Gpu, y: NdArray, dy: NdArray, family?: SoftmaxFamily): NdArray {
  return vjp(gpu, y, dy, "logSoftmax", 1, family);
}

/** vec4s of a row that a lane may hold: 12 take a second to compile for a CPU, once a driver's cache, and 24 would take three. */
const MOST_HELD = 12;

/** vec4s a lane holds where rows of c are whole subgroups' and few enough; 0 where "passes" has to do it. */
function held(gpu: Gpu, c: number, family: SoftmaxFamily = familyOf(gpu)): number {
  const k = c / 4 / gpu.adapter.subgroupSize;
  return family === "resident" && Number.isInteger(k) && k <= MOST_HELD ? k : 0;
}

function resident(
  gpu: Gpu,
  op: string,
  entry: "forward" | "backward",
  bindings: [NdArray, ...NdArray[]],
  logarithm: 0 | 1,
  K: number,
): void {
  const [rows] = bindings[0].shape as [number, number];
  // Several rows to a workgroup where one costs a thread's start, as long as there are workgroups for many cores.
  const per = gpu.adapter.kind === "hardware" ? 1 : Math.max(1, Math.min(8, Math.ceil(rows / 64)));
  gpu.dispatch({
    op,
    shader: "softmax_rows",
    entry,
    constants: { logarithm },
    tile: { K, LANES: gpu.adapter.subgroupSize },
    bindings,
    params: [rows, per],
    grid: grid(Math.ceil(rows / per)),
  });
}

/** Measured on lavapipe (bench/NOTES.md): 1.7 times as fast at [1024, 384], 1.4 at [6144, 64]. */
function familyOf(gpu: Gpu): SoftmaxFamily {
  return gpu.adapter.kind === "bundled" ? "passes" : "resident";
}

/**
 * Of each row of x [N, C] the pair (m, Σ exp(x − m)), m = max x: [N, parts, 2], to be joined by the reader,
 * who releases the array.
 */
export function rowStatistics(gpu: Gpu, x: NdArray, op: string): { partial: NdArray; parts: number } {
  const [rows, c] = x.shape as [number, number];
  const parts = partsOf(c);
  const partial = empty(gpu, [rows, parts, 2], "f32", op);
  gpu.dispatch({
    op: `${op}.statistics`,
    shader: "softmax",
    entry: "statistics",
    constants: { aligned: aligned(c) },
    bindings: [x, partial],
    params: [rows, c, parts, rows * c, 1],
    grid: grid(Math.ceil((rows * parts) / 64)),
  });
  return { partial, parts };
}

/** Threads to a row: one for up to 511 elements, then one for each 256, at most 64. */
function partsOf(c: number): number {
  return Math.min(64, Math.max(1, Math.floor(c / 256)));
}

function aligned(c: number): number {
  return c % 4 === 0 ? 1 : 0;
}

function normalized(gpu: Gpu, x: NdArray, op: string, logarithm: 0 | 1, family?: SoftmaxFamily): NdArray {
  expectShape(op, "x", x, "N C");
  const [rows, c] = x.shape as [number, number];
  const y = empty(gpu, x.shape, "f32", op);
  if (x.size === 0) return y;
  const k = held(gpu, c, family);
  if (k > 0) {
    resident(gpu, op, "forward", [x, y], logarithm, k);
    return y;
  }
  const { partial, parts } = rowStatistics(gpu, x, op);
  let stats = partial;
  if (parts > 1) {
    stats = empty(gpu, [rows, 2], "f32", op);
    gpu.dispatch({
      op: `${op}.combine`,
      shader: "softmax",
      entry: "combineStatistics",
      bindings: [partial, stats],
      params: [rows, c, parts, x.size, 1],
      grid: grid(Math.ceil(rows / 64)),
    });
    gpu.release(partial.buffer);
  }
  const flat = spread(gpu, x.size);
  gpu.dispatch({
    op: `${op}.normalize`,
    shader: "softmax",
    entry: "normalize",
    constants: { logarithm, aligned: aligned(c) },
    bindings: [x, stats, y],
    params: [rows, c, parts, x.size, flat.per],
    grid: flat.grid,
  });
  gpu.release(stats.buffer);
  return y;
}

function vjp(gpu: Gpu, y: NdArray, dy: NdArray, op: string, logarithm: 0 | 1, family?: SoftmaxFamily): NdArray {
  const dims: Record<string, number> = {};
  expectShape(`${op}Backward`, "y", y, "N C", dims);
  expectShape(`${op}Backward`, "dy", dy, "N C", dims);
  const [rows, c] = y.shape as [number, number];
  const dx = empty(gpu, y.shape, "f32", `${op}Backward`);
  if (y.size === 0) return dx;
  const k = held(gpu, c, family);
  if (k > 0) {
    resident(gpu, `${op}.backward`, "backward", [y, dy, dx], logarithm, k);
    return dx;
  }
  const parts = partsOf(c);
  const flat = spread(gpu, y.size);
  const params = [rows, c, parts, y.size, flat.per];
  const constants = { logarithm, aligned: aligned(c) };
  const partial = empty(gpu, [rows, parts], "f32", `${op}Backward`);
  gpu.dispatch({
    op: `${op}.backward.sums`,
    shader: "softmax",
    entry: "sums",
    constants,
    bindings: [y, dy, partial],
    params,
    grid: grid(Math.ceil((rows * parts) / 64)),
  });
  let totals = partial;
  if (parts > 1) {
    totals = empty(gpu, [rows], "f32", `${op}Backward`);
    gpu.dispatch({
      op: `${op}.backward.combine`,
      shader: "softmax",
      entry: "combineSums",
      bindings: [partial, totals],
      params,
      grid: grid(Math.ceil(rows / 64)),
    });
    gpu.release(partial.buffer);
  }
  gpu.dispatch({
    op: `${op}.backward`,
    shader: "softmax",
    entry: "gradient",
    constants,
    bindings: [y, dy, totals, dx],
    params,
    grid: flat.grid,
  });
  gpu.release(totals.buffer);
  return dx;
}

/** The definition, in float64. */
export function softmaxReference(x: ArrayLike<number>, c: number): Float64Array {
  return logSoftmaxReference(x, c).map(Math.exp);
}

/** The definition, in float64. */
export function logSoftmaxReference(x: ArrayLike<number>, c: number): Float64Array {
  const y = new Float64Array(x.length);
  for (let first = 0; first < x.length; first += c) {
    let max = Number.NEGATIVE_INFINITY;
    for (let i = first; i < first + c; i++) max = Math.max(max, x[i] as number);
    let sum = 0;
    for (let i = first; i < first + c; i++) sum += Math.exp((x[i] as number) - max);
    for (let i = first; i < first + c; i++) y[i] = (x[i] as number) - max - Math.log(sum);
  }
  return y;
}
