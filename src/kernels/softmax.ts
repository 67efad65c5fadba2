/**
 * @file Softmax and log-softmax over the last axis of [N, C], C from 1 to whole vocabularies. Two families: "resident"
 * gives a row to one subgroup, which reads and writes it in one dispatch; "passes" takes any row, and leaves a row's
 * maximum and sum from several threads where rows are long (`rowStatistics`, shared with cross-entropy).
 */
import { type Gpu, grid } from "../gpu/index.ts";
import { empty, expectShape, type NdArray } from "./array.ts";
import { CPU_WORKGROUPS, spread } from "./spread.ts";

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

/** vec4s of a row that a lane of a GPU may have in registers. */
const MOST_HELD = 12;

/**
 * The same on a CPU, where more are no faster than loops (backward: two arrays and three accesses a vec4), and 12 take over
 * a second to compile for a fifth of one.
 */
const FEW = { forward: 8, backward: 4 };

/** How "resident" goes through rows of c: entry and vec4s a lane; undefined where "passes" has to do it. */
function residentForm(
  gpu: Gpu,
  c: number,
  entry: "forward" | "backward",
  family: SoftmaxFamily = familyOf(gpu),
): { entry: string; K: number } | undefined {
  const { kind, subgroupSize } = gpu.adapter;
  const K = c / 4 / subgroupSize;
  if (family !== "resident" || !Number.isInteger(K)) return undefined;
  if (kind === "hardware") return K <= MOST_HELD ? { entry, K } : undefined;
  if (K <= FEW[entry]) return { entry, K };
  const kept = entry === "forward" ? 4 * c : 0;
  return kept <= gpu.device.limits.maxComputeWorkgroupStorageSize ? { entry: `${entry}_long`, K } : undefined;
}

function resident(
  gpu: Gpu,
  op: string,
  { entry, K }: { entry: string; K: number },
  bindings: [NdArray, ...NdArray[]],
  logarithm: 0 | 1,
): void {
  const [rows] = bindings[0].shape as [number, number];
  const per = gpu.adapter.kind === "hardware" ? 1 : Math.ceil(rows / CPU_WORKGROUPS);
  gpu.dispatch({
    op,
    shader: "softmax_rows",
    entry,
    constants: { logarithm },
    // "backward_long" holds no row: a K of its own would only be a limit, and a pipeline a width.
    tile: { K: entry === "backward_long" ? 1 : K, LANES: gpu.adapter.subgroupSize },
    bindings,
    params: [rows, per, K],
    grid: grid(Math.ceil(rows / per)),
  });
}

/** Measured on lavapipe (bench/NOTES.md): 1.5 to 2 times as fast from [6144, 64] to [1024, 1024]. */
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
  const form = residentForm(gpu, c, "forward", family);
  if (form) {
    resident(gpu, op, form, [x, y], logarithm);
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
  const form = residentForm(gpu, c, "backward", family);
  if (form) {
    resident(gpu, `${op}.backward`, form, [y, dy, dx], logarithm);
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
