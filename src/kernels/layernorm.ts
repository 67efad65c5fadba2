/**
 * @file Layer normalisation over the last axis (Ba, Kiros, Hinton, "Layer Normalization", 2016).
 * Shapes: x [N, C], gamma and beta [C] → y [N, C]. The row statistics are kept for the backward; mean and variance are
 * found in one pass that does not cancel (Welford), and dgamma, dbeta are summed in a fixed order.
 */
import { f32, type Gpu, grid, type Tile, type View } from "../gpu/index.ts";
import { empty, expectShape, type Into, type NdArray, target } from "./array.ts";
import { finishColumns, rowBlock } from "./colsum.ts";
import { CPU_WORKGROUPS } from "./spread.ts";

/**
 * "workgroup" has 32 threads of a workgroup side by side along a row, for GPUs; "subgroup" the lanes of one subgroup, and finds
 * dx, dgamma and dbeta in one pass where the others take two; "plain" gives a row to a thread. A wish of tests and benches:
 * what cannot run is run as the plain one.
 */
export type LayerNormFamily = "workgroup" | "subgroup" | "plain";

export interface LayerNormResult {
  y: NdArray;
  /** [N, 2]: mean and 1/√(variance + eps) of each row. */
  stats: NdArray;
}

/** Rows that a workgroup takes: plain, one a thread. */
const ROWS = { plain: 32, workgroup: 4 } as const;

/** y = gamma ⊙ (x − mean)·rstd + beta, row by row, with the biased variance. */
export function layerNorm(
  gpu: Gpu,
  x: NdArray,
  gamma: NdArray,
  beta: NdArray,
  eps: number,
  family = familyOf(gpu),
): LayerNormResult {
  expectRows("layerNorm", x, { gamma, beta });
  const y = empty(gpu, x.shape, "f32", "layerNorm");
  const stats = empty(gpu, [x.shape[0] as number, 2], "f32", "layerNorm");
  forward(gpu, "layerNorm.forward", "forward", x, [x, gamma, beta, y, stats], eps, family);
  return { y, stats };
}

/**
 * Layer normalisation of `sum` = x + residual in the same pass; `sum` is kept, as the x that `layerNormBackward` takes,
 * and the dx which that returns is the gradient of x and of residual.
 */
export function addLayerNorm(
  gpu: Gpu,
  x: NdArray,
  residual: NdArray,
  gamma: NdArray,
  beta: NdArray,
  eps: number,
  family = familyOf(gpu),
): LayerNormResult & { sum: NdArray } {
  const dims = expectRows("addLayerNorm", x, { gamma, beta });
  expectShape("addLayerNorm", "residual", residual, "N C", dims);
  const y = empty(gpu, x.shape, "f32", "addLayerNorm");
  const stats = empty(gpu, [x.shape[0] as number, 2], "f32", "addLayerNorm");
  const sum = empty(gpu, x.shape, "f32", "addLayerNorm");
  const bindings = [x, gamma, beta, y, stats, residual, sum];
  forward(gpu, "addLayerNorm.forward", "forward_residual", x, bindings, eps, family);
  return { y, stats, sum };
}

/**
 * dx [N, C], dgamma and dbeta [C] from dy [N, C]; x and stats as in the forward. `into` says where the parameters'
 * gradients go; without it they are fresh arrays.
 */
export function layerNormBackward(
  gpu: Gpu,
  dy: NdArray,
  x: NdArray,
  gamma: NdArray,
  stats: NdArray,
  into: { gamma?: Into | undefined; beta?: Into | undefined } = {},
  family = familyOf(gpu),
): { dx: NdArray; dgamma: NdArray; dbeta: NdArray } {
  const op = "layerNorm.backward";
  const dims = expectRows(op, x, { gamma });
  expectShape(op, "dy", dy, "N C", dims);
  expectShape(op, "stats", stats, "N 2", dims);
  const [rows, c] = x.shape as [number, number];
  const dx = empty(gpu, x.shape, "f32", op);
  const dgamma = target(gpu, op, [c], into.gamma);
  const dbeta = target(gpu, op, [c], into.beta);
  const { width, tile } = layout(c);
  if (family === "subgroup" && fits(gpu, c, 1)) {
    const size = gpu.adapter.subgroupSize;
    const per = Math.max(1, Math.ceil(rows / size / CPU_WORKGROUPS));
    const workgroups = Math.ceil(rows / size / per);
    const sums = [dgamma, dbeta].map((into) => ({ array: empty(gpu, [workgroups, c], "f32", op), into }));
    gpu.dispatch({
      op,
      shader: "layernorm_subgroup",
      entry: "backward",
      tile: { ...tile, SIZE: size, WIDTH: width },
      bindings: [dy, x, stats, gamma, dx, ...sums.map(({ array }) => array)],
      params: [rows, width, size, 0, per],
      grid: grid(workgroups),
    });
    for (const { array, into } of sums) {
      finishColumns(gpu, op, array, into);
      gpu.release(array.buffer);
    }
    return { dx, dgamma: dgamma.array, dbeta: dbeta.array };
  }
  launch(gpu, op, "backward", x, [dy, x, stats, gamma, dx], family);
  const block = rowBlock(rows);
  const blocks = Math.ceil(rows / block);
  const gammaSums = empty(gpu, [blocks, c], "f32", op);
  const betaSums = empty(gpu, [blocks, c], "f32", op);
  gpu.dispatch({
    op: `${op} (parameters)`,
    shader: family === "workgroup" ? "layernorm_workgroup" : "layernorm",
    entry: "parameters",
    tile,
    bindings: [dy, x, stats, gammaSums, betaSums],
    params: [rows, width, 0, block],
    grid: grid(Math.ceil((blocks * width) / 64)),
  });
  // Two dispatches, since the two targets may be slices of one vector: one of them, at its start, would be bound whole.
  finishColumns(gpu, `${op} (gamma)`, gammaSums, dgamma);
  finishColumns(gpu, `${op} (beta)`, betaSums, dbeta);
  gpu.release(gammaSums.buffer);
  gpu.release(betaSums.buffer);
  return { dx, dgamma: dgamma.array, dbeta: dbeta.array };
}

/** Measured on lavapipe and SwiftShader, whose lanes are 4; not on GPUs (bench/NOTES.md). */
function familyOf(gpu: Gpu): LayerNormFamily {
  const { kind } = gpu.adapter;
  return kind === "software" ? "subgroup" : kind === "bundled" ? "plain" : "workgroup";
}

/** vec4 where the rows divide into them, else single numbers. */
function layout(c: number): { width: number; tile: Tile } {
  return c % 4 === 0
    ? { width: c / 4, tile: { V: "vec4f", LANES: 4, SHARE: "1.0" } }
    : { width: c, tile: { V: "f32", LANES: 1, SHARE: "0.25" } };
}

/** Whether every lane of a subgroup has a column, and `rows` rows of c numbers fit workgroup memory. */
function fits(gpu: Gpu, c: number, rows: number): boolean {
  const { subgroupSize } = gpu.adapter;
  const bytes = 16 * Math.ceil(c / 4) * rows; // each array in it ends at a multiple of 16 bytes
  return (
    subgroupSize > 0 && layout(c).width >= subgroupSize && bytes <= gpu.device.limits.maxComputeWorkgroupStorageSize
  );
}

function forward(
  gpu: Gpu,
  op: string,
  entry: string,
  x: NdArray,
  bindings: View[],
  eps: number,
  family: LayerNormFamily,
): void {
  const [rows, c] = x.shape as [number, number];
  if (family !== "subgroup" || !fits(gpu, c, 3)) {
    launch(gpu, op, entry, x, bindings, family, eps);
    return;
  }
  const size = gpu.adapter.subgroupSize;
  const { width, tile } = layout(c);
  // A workgroup loads gamma and beta for its rows: for a few rows more of them are not worth that.
  const per = Math.max(8, Math.ceil(rows / CPU_WORKGROUPS));
  gpu.dispatch({
    op,
    shader: "layernorm_subgroup",
    entry,
    tile: { ...tile, SIZE: size, WIDTH: width },
    bindings,
    params: [rows, width, size, f32(eps), per],
    grid: grid(Math.ceil(rows / per)),
  });
}

function launch(
  gpu: Gpu,
  op: string,
  entry: string,
  x: NdArray,
  bindings: View[],
  family: LayerNormFamily,
  eps = 0,
): void {
  const [rows, c] = x.shape as [number, number];
  const { width, tile } = layout(c);
  const wide = family === "workgroup";
  gpu.dispatch({
    op,
    shader: wide ? "layernorm_workgroup" : "layernorm",
    entry,
    tile,
    bindings,
    params: [rows, width, f32(eps), 0],
    grid: grid(Math.ceil(rows / ROWS[wide ? "workgroup" : "plain"])),
  });
}

function expectRows(op: string, x: NdArray, vectors: Record<string, NdArray>): Record<string, number> {
  const dims: Record<string, number> = {};
  expectShape(op, "x", x, "N C", dims);
  for (const [name, vector] of Object.entries(vectors)) expectShape(op, name, vector, "C", dims);
  return dims;
}

/** The definition, in float64. */
export function layerNormReference(
  x: ArrayLike<number>,
  gamma: ArrayLike<number>,
  beta: ArrayLike<number>,
  eps: number,
): Float64Array {
  const c = gamma.length;
  const y = new Float64Array(x.length);
  for (let row = 0; row < x.length / c; row++) {
    const { xHat } = normalized(x, row, c, eps);
    for (let i = 0; i < c; i++) y[row * c + i] = (gamma[i] as number) * (xHat[i] as number) + (beta[i] as number);
  }
  return y;
}

/** The gradients, in float64. */
export function layerNormBackwardReference(
  dy: ArrayLike<number>,
  x: ArrayLike<number>,
  gamma: ArrayLike<number>,
  eps: number,
): { dx: Float64Array; dgamma: Float64Array; dbeta: Float64Array } {
  const c = gamma.length;
  const dx = new Float64Array(x.length);
  const dgamma = new Float64Array(c);
  const dbeta = new Float64Array(c);
  for (let row = 0; row < x.length / c; row++) {
    const { xHat, rstd } = normalized(x, row, c, eps);
    const g = xHat.map((_, i) => (gamma[i] as number) * (dy[row * c + i] as number));
    const meanG = g.reduce((a, b) => a + b, 0) / c;
    const meanGX = g.reduce((a, b, i) => a + b * (xHat[i] as number), 0) / c;
    for (let i = 0; i < c; i++) {
      dx[row * c + i] = rstd * ((g[i] as number) - meanG - (xHat[i] as number) * meanGX);
      dgamma[i] = (dgamma[i] as number) + (dy[row * c + i] as number) * (xHat[i] as number);
      dbeta[i] = (dbeta[i] as number) + (dy[row * c + i] as number);
    }
  }
  return { dx, dgamma, dbeta };
}

function normalized(x: ArrayLike<number>, row: number, c: number, eps: number): { xHat: number[]; rstd: number } {
  const values = Array.from({ length: c }, (_, i) => x[row * c + i] as number);
  const mean = values.reduce((a, b) => a + b, 0) / c;
  const variance = values.reduce((a, b) => a + (b - mean) ** 2, 0) / c;
  const rstd = 1 / Math.sqrt(variance + eps);
  return { xHat: values.map((v) => (v - mean) * rstd), rstd };
}
