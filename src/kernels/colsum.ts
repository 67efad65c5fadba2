/**
 * @file Sums over rows, column by column: the gradient of a bias. Always in the same order (blocks of rows whose size
 * depends only on N, then the blocks), so a run gives the same bits each time.
 */
import { type Gpu, grid, type Tile } from "../gpu/index.ts";
import { empty, expectShape, type Into, type NdArray, target } from "./array.ts";

/** Rows that one thread adds in the first stage: at least 32, and so many that at most 64 blocks are left. */
export function rowBlock(rows: number): number {
  return Math.max(32, Math.ceil(rows / 64));
}

/** Vectors in a row from which on a CPU needs no rows shared out: 8 workgroups. */
const MANY_COLUMNS = 256;

/** y[c] = Σₙ x[n, c]: x [N, C] → [C]; written into `into`, or added there. */
export function columnSum(gpu: Gpu, x: NdArray, into?: Into): NdArray {
  expectShape("columnSum", "x", x, "N C");
  const [rows, c] = x.shape as [number, number];
  const goal = target(gpu, "columnSum", [c], into);
  const block = rowBlock(rows);
  const blocks = Math.ceil(rows / block);
  if (blocks <= 1) return finishColumns(gpu, "columnSum", x, goal);
  const { width, tile } = layout(c);
  if (gpu.adapter.kind === "software" && width >= MANY_COLUMNS) {
    gpu.dispatch({
      op: "columnSum",
      shader: "colsum",
      entry: "whole",
      tile,
      bindings: [x, goal.array],
      params: [rows, width, block, goal.accumulate ? 1 : 0],
      grid: grid(Math.ceil(width / 32)),
    });
    return goal.array;
  }
  const sums = empty(gpu, [blocks, c], "f32", "columnSum");
  gpu.dispatch({
    op: "columnSum.partial",
    shader: "colsum",
    entry: "partial",
    tile,
    bindings: [x, sums],
    params: [rows, width, block, 0],
    grid: grid(Math.ceil((blocks * width) / 64)),
  });
  finishColumns(gpu, "columnSum", sums, goal);
  gpu.release(sums.buffer);
  return goal.array;
}

/** The last stage: the sum over few rows, sums [blocks, C] → [C]. */
export function finishColumns(gpu: Gpu, op: string, sums: NdArray, into: Into): NdArray {
  const [blocks, c] = sums.shape as [number, number];
  const { width, tile } = layout(c);
  gpu.dispatch({
    op,
    shader: "colsum",
    entry: "finish",
    tile,
    bindings: [sums, into.array],
    params: [blocks, width, 0, into.accumulate ? 1 : 0],
    grid: grid(Math.ceil(width / 64)),
  });
  return into.array;
}

/** vec4 where the rows divide into them, else single numbers. */
function layout(c: number): { width: number; tile: Tile } {
  return c % 4 === 0 ? { width: c / 4, tile: { V: "vec4f" } } : { width: c, tile: { V: "f32" } };
}

/** The definition, in float64. */
export function columnSumReference(x: ArrayLike<number>, c: number): Float64Array {
  const y = new Float64Array(c);
  for (let i = 0; i < x.length; i++) y[i % c] = (y[i % c] as number) + (x[i] as number);
  return y;
}
