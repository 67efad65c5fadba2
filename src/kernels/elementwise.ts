/**
 * @file Operations element by element. A unary operation is one row of `UNARY` here (its code in the shader's table, f
 * and f' in float64) and one `case` of shaders/elementwise.wgsl, where value and derivative stand side by side.
 * Nothing is broadcast silently: two operands have one shape, and the two ways to repeat something are named.
 */
import { f32, type Gpu, grid, type View } from "../gpu/index.ts";
import { empty, expectShape, type NdArray } from "./array.ts";
import { erf } from "./erf.ts";
import { spread, spreadFew } from "./spread.ts";

export { erf };

export type UnaryOp =
  | "gelu"
  | "gelu_tanh"
  | "tanh"
  | "relu"
  | "silu"
  | "sigmoid"
  | "exp"
  | "log"
  | "negate"
  | "square"
  | "sqrt"
  | "abs";
export type BinaryOp = "add" | "subtract" | "multiply" | "divide";

export interface UnaryRow {
  /** `case` of the shader's switch. */
  readonly code: number;
  f(x: number): number;
  /** f'(x); NaN at NaN, and 0 at the kink of relu and abs. */
  df(x: number): number;
}

const density = (x: number) => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);
const distribution = (x: number) => (1 + erf(x / Math.SQRT2)) / 2;
const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
const slope = (x: number, below: number, above: number) => (x > 0 ? above : x < 0 ? below : x);
const K = Math.sqrt(2 / Math.PI);
const tanhOfGelu = (x: number) => Math.tanh(K * (x + 0.044715 * x ** 3));

/** The table: what the shader computes, in float64. */
export const UNARY: Readonly<Record<UnaryOp, UnaryRow>> = {
  gelu: { code: 0, f: (x) => x * distribution(x), df: (x) => distribution(x) + x * density(x) },
  gelu_tanh: {
    code: 1,
    f: (x) => 0.5 * x * (1 + tanhOfGelu(x)),
    df: (x) => {
      const t = tanhOfGelu(x);
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * K * (1 + 3 * 0.044715 * x * x);
    },
  },
  tanh: { code: 2, f: Math.tanh, df: (x) => 1 - Math.tanh(x) ** 2 },
  relu: { code: 3, f: (x) => Math.max(x, 0), df: (x) => slope(x, 0, 1) },
  silu: { code: 4, f: (x) => x / (1 + Math.exp(-x)), df: (x) => sigmoid(x) * (1 + x * (1 - sigmoid(x))) },
  sigmoid: { code: 5, f: sigmoid, df: (x) => sigmoid(x) * (1 - sigmoid(x)) },
  exp: { code: 6, f: Math.exp, df: Math.exp },
  log: { code: 7, f: Math.log, df: (x) => 1 / x },
  negate: { code: 8, f: (x) => -x, df: () => -1 },
  square: { code: 9, f: (x) => x * x, df: (x) => 2 * x },
  sqrt: { code: 10, f: Math.sqrt, df: (x) => 0.5 / Math.sqrt(x) },
  abs: { code: 11, f: Math.abs, df: (x) => slope(x, -1, 1) },
};

const BINARY: Readonly<Record<BinaryOp, number>> = { add: 0, subtract: 1, multiply: 2, divide: 3 };

/** f(x), any shape. */
export function unary(gpu: Gpu, op: UnaryOp, x: NdArray): NdArray {
  const y = empty(gpu, x.shape, "f32", op);
  launch(gpu, op, "unary", [x, y], x.size, { OP: UNARY[op].code });
  return y;
}

/** dx = f'(x)·dy. */
export function unaryBackward(gpu: Gpu, op: UnaryOp, x: NdArray, dy: NdArray): NdArray {
  sameShape(`${op}.backward`, "dy", dy, x);
  const dx = empty(gpu, x.shape, "f32", `${op}.backward`);
  launch(gpu, `${op}.backward`, "unary_backward", [x, dy, dx], x.size, { OP: UNARY[op].code });
  return dx;
}

/** a ∘ b for two arrays of one shape. */
export function binary(gpu: Gpu, op: BinaryOp, a: NdArray, b: NdArray): NdArray {
  sameShape(op, "b", b, a);
  const y = empty(gpu, a.shape, "f32", op);
  launch(gpu, op, "binary", [a, b, y], a.size, { OP: BINARY[op] });
  return y;
}

/** The gradients of a ∘ b: da = ∂y/∂a·dy, db = ∂y/∂b·dy. */
export function binaryBackward(
  gpu: Gpu,
  op: BinaryOp,
  a: NdArray,
  b: NdArray,
  dy: NdArray,
): { da: NdArray; db: NdArray } {
  sameShape(`${op}.backward`, "b", b, a);
  sameShape(`${op}.backward`, "dy", dy, a);
  const da = empty(gpu, a.shape, "f32", `${op}.backward`);
  const db = empty(gpu, a.shape, "f32", `${op}.backward`);
  launch(gpu, `${op}.backward`, "binary_backward", [a, b, dy, da, db], a.size, { OP: BINARY[op] });
  return { da, db };
}

/** alpha·x + shift. */
export function scale(gpu: Gpu, x: NdArray, alpha: number, shift = 0): NdArray {
  const y = empty(gpu, x.shape, "f32", "scale");
  launch(gpu, "scale", "scale", [x, y], x.size, {}, [f32(alpha), f32(shift)]);
  return y;
}

/** target += alpha·x, in place; the two are in different buffers. */
export function addInto(gpu: Gpu, target: NdArray, x: NdArray, alpha = 1): void {
  sameShape("addInto", "x", x, target);
  if (x.buffer === target.buffer) throw new RangeError("addInto: target and x share a buffer; copy x first");
  launch(gpu, "addInto", "add_into", [x, target], x.size, {}, [f32(alpha)]);
}

/** Every element becomes `value`. */
export function fill(gpu: Gpu, array: NdArray, value: number): void {
  if (Object.is(value, 0)) {
    gpu.clear(array); // the driver's own, several times faster than a kernel on a software adapter
    return;
  }
  launch(gpu, "fill", "fill", [array], array.size, {}, [0, 0, array.dtype === "u32" ? value : f32(value)]);
}

/** An array of `shape` whose every element is alpha·scalar, scalar [1] on the device: the backward of alpha·Σx. */
export function broadcastScalar(gpu: Gpu, scalar: NdArray, shape: readonly number[], alpha = 1): NdArray {
  if (scalar.size !== 1) throw new RangeError(`broadcastScalar: scalar has shape [${scalar.shape}], expected [1]`);
  const y = empty(gpu, shape, "f32", "broadcastScalar");
  launch(gpu, "broadcastScalar", "broadcast", [scalar, y], y.size, {}, [f32(alpha)]);
  return y;
}

/** x [N, C] + row [C] in every row. The gradient of the row is dy's `columnSum`. */
export function addRow(gpu: Gpu, x: NdArray, row: NdArray): NdArray {
  const dims: Record<string, number> = {};
  expectShape("addRow", "x", x, "N C", dims);
  expectShape("addRow", "row", row, "C", dims);
  const y = empty(gpu, x.shape, "f32", "addRow");
  const [n, c] = x.shape as [number, number];
  if (x.size === 0 || c % 4 !== 0) {
    launch(gpu, "addRow", "add_row", [x, y, row], x.size, {}, [0, 0, 0, c]);
    return y;
  }
  const { per } = spread(gpu, x.size);
  gpu.dispatch({
    op: "addRow",
    shader: "elementwise",
    entry: "add_row4",
    bindings: [x, y, row],
    params: [x.size, per, 0, 0, 0, c],
    grid: grid(Math.ceil(((c / 4) * Math.ceil(n / per)) / 64)),
  });
  return y;
}

function launch(
  gpu: Gpu,
  op: string,
  entry: string,
  bindings: View[],
  size: number,
  constants: Record<string, number>,
  more: number[] = [],
): void {
  if (size === 0) return;
  const share = spreadFew(gpu, size);
  const params = [size, share.per, 0, 0, 0, 0];
  for (const [i, word] of more.entries()) params[i + 2] = word;
  gpu.dispatch({
    op,
    shader: "elementwise",
    entry,
    constants,
    bindings,
    params,
    grid: share.grid,
    // In place: the target is read and written.
    ...(entry === "add_into" ? { work: { bytes: 3 * 4 * size } } : {}),
  });
}

function sameShape(op: string, name: string, array: NdArray, as: NdArray): void {
  if (array.shape.length === as.shape.length && array.shape.every((n, i) => n === as.shape[i])) return;
  throw new RangeError(`${op}: ${name} has shape [${array.shape.join(" ")}], expected [${as.shape.join(" ")}]`);
}
