/**
 * @file Are this adapter's products in f16 what they should be? Asked once, before anything is trained with them: a driver
 * that sums in f16, saturates instead of overflowing or mixes up a layout would train without a word. And the bound that
 * such a product keeps, which the tests use too.
 */
import { DeviceError } from "../errors.ts";
import type { Gpu } from "../gpu/index.ts";
import { fromHost, type NdArray, readArray } from "./array.ts";
import { type Layout, type MatmulSizes, matmul } from "./matmul.ts";
import { halfCandidates } from "./matmul-choice.ts";
import { HALF_FAMILIES, type HalfFamily } from "./matmul-families.ts";

export interface HalfReport {
  /** The largest error, in units of `halfBound`. */
  worst: number;
  /** What becomes of factors below 2⁻¹⁴, f16's least normal number: a GPU may do either. */
  subnormals: "kept" | "flushed to 0";
}

const LAYOUTS: readonly Layout[] = ["NN", "NT", "TN"];
/** Whole vectors in every layout, and no multiple of a fragment or a tile. */
const SIZES: MatmulSizes = { M: 68, N: 76, K: 84 };

/**
 * A·B in float64, and what a product with factors in f16 and sums in f32 may be off by, both [M, N] (arguments as of `matmul`).
 * A factor x is rounded by δ(x) ≤ 2⁻¹¹|x| + 2⁻¹⁴ (the second where what is below f16's normal numbers counts as 0). Products
 * of two halfs have 22 bits and are exact. Each of K additions is off by 2⁻²³ of the sum at most, twice f32's own, as
 * matrix units may cut off instead of rounding. With a' = |a| + δ(a):  Σ (a'b' − |ab|) + (K + 2)·2⁻²³·Σ a'b'.
 */
export function halfBound(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  { M, N, K }: MatmulSizes,
  layout: Layout,
): { exact: Float64Array; bound: Float64Array } {
  const exact = new Float64Array(M * N);
  const bound = new Float64Array(M * N);
  const wide = (x: number) => Math.abs(x) * (1 + 2 ** -11) + 2 ** -14;
  for (let i = 0; i < M; i++) {
    for (let j = 0; j < N; j++) {
      let [sum, size, largest] = [0, 0, 0];
      for (let k = 0; k < K; k++) {
        const x = a[layout === "TN" ? k * M + i : i * K + k] as number;
        const y = b[layout === "NT" ? j * K + k : k * N + j] as number;
        sum += x * y;
        size += Math.abs(x * y);
        largest += wide(x) * wide(y);
      }
      exact[i * N + j] = sum;
      bound[i * N + j] = largest - size + (K + 2) * 2 ** -23 * largest;
    }
  }
  return { exact, bound };
}

/** Throws DeviceError where the adapter has no unit for f16, or where what it gives is not what training in f16 counts on. */
export async function checkHalf(gpu: Gpu): Promise<HalfReport> {
  const { name, driver } = gpu.adapter;
  const fail = (what: string): never => {
    throw new DeviceError(`dtype f16: ${name} (${driver}) ${what}. Leave dtype out: f32 runs everywhere.`, "checkHalf");
  };
  const able = halfCandidates(gpu.adapter).filter((family) => HALF_FAMILIES[family](gpu.adapter, "NN", SIZES));
  if (able.length === 0) fail("has no matrix unit that multiplies f16 and sums in f32 (see `priorwork doctor`)");
  let worst = 0;
  for (const family of able) {
    for (const layout of LAYOUTS) {
      worst = Math.max(worst, await worstError(gpu, family, layout));
      const off = `${worst.toPrecision(2)} times the bound`;
      if (!(worst <= 1)) fail(`multiplies f16 wrongly: ${family}'s ${layout} is off by ${off}`);
    }
  }
  const { sums, large, small } = await extremes(gpu, able[0] as HalfFamily);
  // 2048 + 1 has no place in f16, and 4·65,504 is beyond it.
  if (sums[0] !== 2051 || sums[1] !== 4 * 65504) fail("does not sum in f32 what it multiplies in f16");
  if (large[0] !== 65504) fail(`turns 65,504, f16's largest number, into ${large[0]}`);
  // Loss scaling hears of an overflow by what is not finite.
  if (Number.isFinite(large[1])) fail(`turns 100,000, beyond f16, into ${large[1]} without a sign of it`);
  if (small !== 0 && small !== 2 ** -20) fail(`turns 2⁻²⁰ into ${small}`);
  return { worst, subnormals: small === 0 ? "flushed to 0" : "kept" };
}

async function worstError(gpu: Gpu, family: HalfFamily, layout: Layout): Promise<number> {
  const { M, N, K } = SIZES;
  // Reproducible, of both signs, without a pattern that a mixed-up index would not disturb.
  const numbers = (n: number, seed: number) =>
    Float32Array.from({ length: n }, (_, i) => Math.sin(seed * (i + 1) ** 2));
  const [a, b] = [numbers(M * K, 0.7), numbers(K * N, 0.3)];
  const c = await product(gpu, family, layout, SIZES, a, b);
  const { exact, bound } = halfBound(a, b, SIZES, layout);
  let worst = 0;
  for (const [i, x] of exact.entries()) {
    const error = Math.abs((c[i] as number) - x) / (bound[i] as number);
    if (!(error <= worst)) worst = Number.isNaN(error) ? Number.POSITIVE_INFINITY : error;
  }
  return worst;
}

/** Sums that only f32 holds, numbers at and beyond f16's ends. */
async function extremes(gpu: Gpu, family: HalfFamily) {
  const sizes = { M: 8, N: 8, K: 8 };
  // Row 0 … 4 by a column of ones.
  const rows = [[2048, 1, 1, 1], [65504, 65504, 65504, 65504], [65504], [1e5], [2 ** -20]];
  const a = new Float32Array(64);
  for (const [i, row] of rows.entries()) a.set(row, 8 * i);
  const c = await product(gpu, family, "NN", sizes, a, new Float32Array(64).fill(1));
  const at = (row: number) => c[8 * row] as number;
  return { sums: [at(0), at(1)], large: [at(2), at(3)], small: at(4) } as const;
}

async function product(
  gpu: Gpu,
  family: HalfFamily,
  layout: Layout,
  { M, N, K }: MatmulSizes,
  a: Float32Array,
  b: Float32Array,
): Promise<Float32Array> {
  const { read } = gpu.scope(() => {
    const array = (data: Float32Array, shape: number[]): NdArray => fromHost(gpu, data, shape);
    const x = array(a, layout === "TN" ? [K, M] : [M, K]);
    const y = array(b, layout === "NT" ? [N, K] : [K, N]);
    return { read: readArray(gpu, matmul(gpu, x, y, layout, { family })) };
  });
  return read;
}
