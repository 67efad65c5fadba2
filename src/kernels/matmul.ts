/**
 * @file Matrix product in the three layouts that a linear layer needs (y = x Wᵀ: NT, dx = dy W: NN, dW = dyᵀ x: TN),
 * plain with a fused epilogue, or batched. Sizes are parameters, so a batch of another length compiles nothing.
 * Which shader and tile runs is matmul-choice.ts's matter; all give the same values up to the order of the sum over k.
 */
import type { Dispatch, Gpu } from "../gpu/index.ts";
import { empty, expectShape, type Into, type NdArray, target } from "./array.ts";
import { chooseMatmul, chosenFamilies } from "./matmul-choice.ts";
import type { Family, HalfFamily } from "./matmul-families.ts";

export type Layout = "NN" | "NT" | "TN";

/** Numbers are the shaders' `ACT`. */
const ACTIVATIONS = { gelu: 1, gelu_tanh: 2, relu: 3, silu: 4, tanh: 5 } as const;
export type Activation = keyof typeof ACTIVATIONS;

export interface MatmulOptions {
  /** [N], added to every row. */
  bias?: NdArray;
  /** Applied after the bias. */
  activation?: Activation;
  /** Also keep A·B + bias, for the activation's backward; only `matmulWithPreactivation` can return it. */
  preactivation?: boolean;
  /** [M, N], added last. */
  residual?: NdArray;
  /** Where the result goes, [M, N]; written or added to. A fresh array without it. */
  into?: Into;
  /** For tests and benches: this family instead of the chosen one; where it cannot run, the register tile does. */
  family?: Family | HalfFamily;
}

export interface MatmulSizes {
  M: number;
  N: number;
  K: number;
}

/** Products of one call: the z of a grid. */
const MAX_BATCH = 65535;

const SPECS = {
  NN: ["M K", "K N"],
  NT: ["M K", "N K"],
  TN: ["K M", "K N"],
} as const satisfies Record<Layout, readonly [string, string]>;

/**
 * C [M, N] = activation(A·B + bias) + residual.
 * A is [M, K] (NN, NT) or [K, M] (TN); B is [K, N] (NN, TN) or [N, K] (NT). M or N may be 0; throws RangeError where K
 * is, and on shapes that do not fit.
 */
export function matmul(gpu: Gpu, a: NdArray, b: NdArray, layout: Layout, options: MatmulOptions = {}): NdArray {
  if (options.preactivation) throw new RangeError("matmul: preactivation is what matmulWithPreactivation returns");
  return launch(gpu, "matmul", a, b, layout, options).y;
}

/** As `matmul`, with u = A·B + bias beside y = activation(u) + residual, both [M, N]. */
export function matmulWithPreactivation(
  gpu: Gpu,
  a: NdArray,
  b: NdArray,
  layout: Layout,
  options: MatmulOptions = {},
): { y: NdArray; u: NdArray } {
  const { y, u } = launch(gpu, "matmul", a, b, layout, { ...options, preactivation: true });
  return { y, u: u ?? y };
}

/** C [G, M, N], C_g = A_g·B_g: A is [G, M, K] (TN: [G, K, M]), B is [G, K, N] (NT: [G, N, K]). G is at most 65,535. */
export function batchedMatmul(
  gpu: Gpu,
  a: NdArray,
  b: NdArray,
  layout: Layout,
  options: { into?: Into; family?: Family | HalfFamily } = {},
): NdArray {
  return launch(gpu, "batchedMatmul", a, b, layout, options, true).y;
}

function launch(
  gpu: Gpu,
  op: string,
  a: NdArray,
  b: NdArray,
  layout: Layout,
  options: MatmulOptions,
  batched = false,
): { y: NdArray; u: NdArray | undefined } {
  const dims: Record<string, number> = {};
  const [aSpec, bSpec] = SPECS[layout];
  const lead = batched ? "G " : "";
  expectShape(op, `a (${layout})`, a, lead + aSpec, dims);
  expectShape(op, `b (${layout})`, b, lead + bSpec, dims);
  const { G = 1, M = 0, N = 0, K = 0 } = dims;
  // No terms: zeros would be right, but only a mistake asks for them.
  if (K < 1) throw new RangeError(`${op}: K is 0`);
  if (G > MAX_BATCH) throw new RangeError(`${op}: G is ${G}; at most ${MAX_BATCH}`);
  const { bias, activation, residual, preactivation = false } = options;
  if (bias) expectShape(op, "bias", bias, "N", dims);
  if (residual) expectShape(op, "residual", residual, "M N", dims);
  const out = target(gpu, op, batched ? [G, M, N] : [M, N], options.into);
  const y = out.array;
  const u = preactivation ? empty(gpu, [M, N], "f32", op) : undefined;
  if (y.size === 0) return { y, u };

  const sizes = { M, N, K, G };
  const families = options.family ? [options.family] : chosenFamilies(gpu, layout, sizes);
  const choice = chooseMatmul(gpu.adapter, layout, sizes, families);
  // What an epilogue does not use is bound all the same, as a view of A that is not read.
  const right = choice.packed ? pack(gpu, op, b, { G, K, N }) : b;
  const bindings: Dispatch["bindings"] = [a, right, y, bias ?? a, residual ?? a, ...(u ? [u] : [])];
  const grid = [Math.ceil(N / choice.columns), Math.ceil(M / choice.rows), G] as const;
  const [aRow, aK] = layout === "TN" ? [1, M] : [K, 1];
  const [bK, bCol] = layout === "NT" ? [1, K] : [N, 1];
  gpu.dispatch({
    op: `${op}.${layout}`,
    shader: choice.shader,
    entry: choice.entry + (u ? "_kept" : ""),
    tile: choice.tile,
    constants: {
      ...choice.constants,
      BIAS: Number(bias !== undefined),
      ACT: activation ? ACTIVATIONS[activation] : 0,
      RESIDUAL: Number(residual !== undefined),
      ACCUMULATE: Number(out.accumulate),
    },
    bindings,
    params: [M, N, K, aRow, aK, bK, bCol, M * K, K * N, M * N],
    grid,
    work: { flops: 2 * G * M * N * K },
  });
  if (right !== b) gpu.release(right.buffer);
  return { y, u };
}

/** B [G, K, N] as panels of 32 columns: [G, ceil(N / 32), K, 32]. */
function pack(gpu: Gpu, op: string, b: NdArray, { G, K, N }: { G: number; K: number; N: number }): NdArray {
  const panels = Math.ceil(N / 32);
  const packed = empty(gpu, [G, panels, K, 32], "f32", op);
  gpu.dispatch({
    op: `${op}.pack`,
    shader: "matmul_pack",
    entry: "pack",
    bindings: [b, packed],
    params: [K, N / 4],
    grid: [Math.ceil(K / 64), panels, G],
    work: { bytes: 4 * (b.size + packed.size) },
  });
  return packed;
}

/** The definition, in float64: no epilogue, no batch. */
export function matmulReference(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  { M, N, K }: MatmulSizes,
  layout: Layout,
): Float64Array {
  const c = new Float64Array(M * N);
  for (let i = 0; i < M; i++) {
    for (let j = 0; j < N; j++) {
      let sum = 0;
      for (let k = 0; k < K; k++) {
        const x = a[layout === "TN" ? k * M + i : i * K + k] as number;
        const y = b[layout === "NT" ? j * K + k : k * N + j] as number;
        sum += x * y;
      }
      c[i * N + j] = sum;
    }
  }
  return c;
}
