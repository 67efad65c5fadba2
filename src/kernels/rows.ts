/**
 * @file Rows picked out by an index ([CLS], masked positions) and put back, and columns laid side by side and cut apart
 * (readouts over several layers). Each is the other's gradient.
 */
import { type Gpu, grid, type View } from "../gpu/index.ts";
import { empty, expectIndex, expectShape, NAN_BITS, type NdArray } from "./array.ts";

/** Vectors a thread moves. */
const PER = 8;

/** y[m] = x[index[m]]: x [N, C], index u32 [M] → [M, C]. An index ≥ N gives a row of NaN. */
export function gatherRows(gpu: Gpu, x: NdArray, index: NdArray): NdArray {
  expectShape("gatherRows", "x", x, "N C");
  expectIndex("gatherRows", "index", index);
  const [n, c] = x.shape as [number, number];
  const y = empty(gpu, [index.size, c], "f32", "gatherRows");
  move(gpu, "gatherRows", "gather", [x, y, index], index.size, c, { bound: n });
  return y;
}

/** dx[index[m]] = dy[m], other rows 0: dy [M, C], index u32 [M] of distinct rows → [n, C]. The backward of `gatherRows`. */
export function scatterRows(gpu: Gpu, dy: NdArray, index: NdArray, n: number): NdArray {
  const dims: Record<string, number> = {};
  expectShape("scatterRows", "dy", dy, "M C", dims);
  expectIndex("scatterRows", "index", index);
  expectShape("scatterRows", "index", index, "M", dims);
  const [m, c] = dy.shape as [number, number];
  const dx = empty(gpu, [n, c], "f32", "scatterRows");
  gpu.clear(dx);
  move(gpu, "scatterRows", "scatter", [dy, dx, index], m, c, { bound: n });
  return dx;
}

/** Columns side by side: [N, C₁], [N, C₂], … → [N, ΣC]. */
export function concatColumns(gpu: Gpu, arrays: readonly NdArray[]): NdArray {
  const dims: Record<string, number> = {};
  for (const [i, array] of arrays.entries()) {
    expectShape("concatColumns", `arrays[${i}]`, array, "N C", dims);
    delete dims.C;
  }
  const widths = arrays.map((array) => array.shape[1] as number);
  const total = widths.reduce((a, b) => a + b, 0);
  const n = dims.N ?? 0;
  const y = empty(gpu, [n, total], "f32", "concatColumns");
  let to = 0;
  for (const [i, array] of arrays.entries()) {
    const width = widths[i] as number;
    move(gpu, "concatColumns", "columns", [array, y], n, width, { from: [width, 0], to: [total, to] });
    to += width;
  }
  return y;
}

/** Columns [from, from + width) of x [N, C] → [N, width]: one part of the backward of `concatColumns`. */
export function sliceColumns(gpu: Gpu, x: NdArray, from: number, width: number): NdArray {
  expectShape("sliceColumns", "x", x, "N C");
  const [n, c] = x.shape as [number, number];
  if (from < 0 || width < 1 || from + width > c) {
    throw new RangeError(`sliceColumns: columns ${from} … ${from + width - 1} of [${n} ${c}]`);
  }
  const y = empty(gpu, [n, width], "f32", "sliceColumns");
  move(gpu, "sliceColumns", "columns", [x, y], n, width, { from: [c, from], to: [width, 0] });
  return y;
}

interface Strip {
  /** Elements in a whole row, and elements before the strip. */
  from?: readonly [number, number];
  to?: readonly [number, number];
  /** Rows that the index may name. */
  bound?: number;
}

function move(gpu: Gpu, op: string, entry: string, bindings: View[], rows: number, width: number, strip: Strip): void {
  if (rows === 0 || width === 0) return;
  const { from = [width, 0], to = [width, 0], bound = 0 } = strip;
  const step = [width, ...from, ...to].every((n) => n % 4 === 0) ? 4 : 1;
  const vectors = width / step;
  const lanes = Math.ceil(vectors / PER);
  gpu.dispatch({
    op,
    shader: "rows",
    entry,
    tile: { V: step === 4 ? "vec4f" : "f32" },
    bindings,
    params: [rows, vectors, lanes, bound, from[0] / step, from[1] / step, to[0] / step, to[1] / step, NAN_BITS],
    grid: grid(Math.ceil((rows * lanes) / 64)),
    work: { bytes: 2 * 4 * rows * width },
  });
}
