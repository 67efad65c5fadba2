/**
 * @file Rows times a vector, a vector for each of S segments of equal length: what turns one linear layer into the S of a
 * rank-one ensemble (Wen, Tran and Ba, "BatchEnsemble", 2020). W_m = W ⊙ r_m s_mᵀ is never made: W_m x = r_m ⊙ W(s_m ⊙ x).
 */
import { type Gpu, grid, type Tile } from "../gpu/index.ts";
import { empty, expectShape, type Into, type NdArray, target } from "./array.ts";
import { rowBlock } from "./colsum.ts";

/** y[m·n + i] = x[m·n + i] ⊙ v[m]: x [S·n, C], v [S, C] → [S·n, C]. The gradient of x is the same of dy. */
export function rowScale(gpu: Gpu, x: NdArray, v: NdArray): NdArray {
  const { S, n, c } = segments("rowScale", "x", x, v);
  const y = empty(gpu, [S * n, c], "f32", "rowScale");
  const { width, tile } = layout(c);
  gpu.dispatch({
    op: "rowScale",
    shader: "rowscale",
    entry: "scale",
    tile,
    bindings: [x, y, v],
    params: [S, n, width, 0, 0],
    grid: grid(Math.ceil((S * n * width) / 64)),
  });
  return y;
}

/** dv[m] = Σᵢ dy[m·n + i] ⊙ x[m·n + i]: dy, x [S·n, C] → [S, C]; written into `into`, or added there. */
export function rowScaleBackward(gpu: Gpu, dy: NdArray, x: NdArray, S: number, into?: Into): NdArray {
  const op = "rowScale.backward";
  const dims: Record<string, number> = {};
  expectShape(op, "dy", dy, "R C", dims);
  expectShape(op, "x", x, "R C", dims);
  const { R = 0, C: c = 0 } = dims;
  const goal = target(gpu, op, [S, c], into);
  const { width, tile } = layout(c);
  const n = R / S;
  const block = rowBlock(n);
  const blocks = Math.ceil(n / block);
  const sums = empty(gpu, [S * blocks, c], "f32", op);
  const threads = (count: number) => grid(Math.ceil((count * width) / 64));
  const common = { op, shader: "rowscale", tile };
  gpu.dispatch({
    ...common,
    entry: "partial",
    bindings: [x, sums, dy],
    params: [S, n, width, block, 0],
    grid: threads(S * blocks),
  });
  gpu.dispatch({
    ...common,
    entry: "finish",
    bindings: [sums, goal.array],
    params: [S, blocks, width, 0, goal.accumulate ? 1 : 0],
    grid: threads(S),
  });
  gpu.release(sums.buffer);
  return goal.array;
}

function segments(op: string, name: string, x: NdArray, v: NdArray): { S: number; n: number; c: number } {
  const dims: Record<string, number> = {};
  expectShape(op, name, x, "R C", dims);
  expectShape(op, "v", v, "S C", dims);
  const { R = 0, S = 0, C: c = 0 } = dims;
  if (S < 1 || R % S !== 0) throw new RangeError(`${op}: ${R} rows of ${name} are not ${S} segments of equal length`);
  return { S, n: R / S, c };
}

/** vec4 where the rows divide into them, else single numbers. */
function layout(c: number): { width: number; tile: Tile } {
  return c % 4 === 0 ? { width: c / 4, tile: { V: "vec4f" } } : { width: c, tile: { V: "f32" } };
}

/** The definition, in float64. */
export function rowScaleReference(x: ArrayLike<number>, v: ArrayLike<number>, S: number): Float64Array {
  const c = v.length / S;
  const each = x.length / S;
  return Float64Array.from(x, (value, i) => value * (v[Math.floor(i / each) * c + (i % c)] ?? 0));
}
