/**
 * @file Matrix products for bench/gpu: every family that can run, by layout and shape, and the table's choice. Each is
 * compared with float64 at random elements before it counts: a wrong kernel has no speed.
 */
import type { Gpu } from "../../src/gpu/index.ts";
import { fromHost, type NdArray, readArray } from "../../src/kernels/array.ts";
import { type Layout, type MatmulSizes, matmul } from "../../src/kernels/matmul.ts";
import { ableFamilies, type Family, HALF_FAMILIES, type HalfFamily } from "../../src/kernels/matmul-families.ts";
import { halfBound } from "../../src/kernels/matmul-half.ts";
import { Stream } from "../../src/random.ts";
import type { BenchCase } from "../case.ts";
import { tiled } from "../tiled.ts";
import type { Plan } from "./plan.ts";

/** Elements compared. */
const SAMPLES = 256;

export interface Product extends BenchCase {
  layout: Layout;
  /**
   * Largest error in units of (K + 2)·2⁻²⁴·Σ|a||b|, the bound of a sum of K products in float32 in any order; of a family
   * that rounds to f16, in units of `halfBound`.
   */
  worstError(): Promise<number>;
}

/** `chosen`: only what the table chooses. Those that round to f16 come last, at the two shapes that say most. */
export function productCases(gpu: Gpu, { products }: Plan, chosen = false): Product[] {
  const single = products.flatMap(({ sizes, layouts }) =>
    layouts.flatMap((layout) => {
      const families: (Family | undefined)[] = chosen ? [] : ableFamilies(gpu.adapter, layout, sizes);
      return [undefined, ...families].map((family) => product(gpu, layout, sizes, family));
    }),
  );
  const half = (Object.keys(HALF_FAMILIES) as HalfFamily[]).flatMap((family) =>
    products
      .slice(0, chosen ? 0 : 2)
      .flatMap(({ sizes, layouts }) =>
        layouts
          .filter((layout) => HALF_FAMILIES[family](gpu.adapter, layout, sizes))
          .map((layout) => product(gpu, layout, sizes, family)),
      ),
  );
  return [...single, ...half];
}

function product(gpu: Gpu, layout: Layout, sizes: MatmulSizes, family: Family | HalfFamily | undefined): Product {
  const { M, N, K } = sizes;
  const half = family !== undefined && Object.hasOwn(HALF_FAMILIES, family);
  const shapes = [layout === "TN" ? [K, M] : [M, K], layout === "NT" ? [N, K] : [K, N]] as const;
  let held: { numbers: Float32Array[]; arrays: [NdArray, NdArray] } | undefined;
  const operands = () => {
    if (held) return held;
    const numbers = shapes.map(([rows = 0, columns = 0], i) => uniform(rows * columns, i));
    const arrays = shapes.map((shape, i) => fromHost(gpu, numbers[i] as Float32Array, shape));
    held = { numbers, arrays: arrays as [NdArray, NdArray] };
    return held;
  };
  const multiply = () => matmul(gpu, ...operands().arrays, layout, family ? { family } : {});
  return {
    name: family ? `matmul.${family}` : "matmul",
    layout,
    dtype: half ? "f16" : "f32",
    shape: { ...sizes },
    flops: 2 * M * N * K,
    run: () => gpu.scope(() => void multiply()),
    dispose: () => {
      for (const { buffer } of held?.arrays ?? []) gpu.release(buffer);
      held = undefined;
    },
    async worstError() {
      const [a, b] = operands().numbers as [Float32Array, Float32Array];
      const c = await gpu.scope(() => ({ read: readArray(gpu, multiply()) })).read;
      const stream = new Stream(3, "products");
      let worst = 0;
      for (let sample = 0; sample < SAMPLES; sample++) {
        // The last row and column first: edges are where tiles go wrong.
        const i = sample === 0 ? M - 1 : stream.integer(M);
        const j = sample === 0 ? N - 1 : stream.integer(N);
        // The row of A and the column of B that meet here.
        const row = Float32Array.from({ length: K }, (_, k) => a[layout === "TN" ? k * M + i : i * K + k] as number);
        const column = Float32Array.from({ length: K }, (_, k) => b[layout === "NT" ? j * K + k : k * N + j] as number);
        const one = { M: 1, N: 1, K };
        const { exact, bound } = half ? halfBound(row, column, one, "NN") : singleBound(row, column);
        const error = Math.abs((c[i * N + j] as number) - (exact[0] as number)) / (bound[0] as number);
        if (!(error <= worst)) worst = Number.isNaN(error) ? Number.POSITIVE_INFINITY : error;
      }
      return worst;
    },
  };
}

function singleBound(row: Float32Array, column: Float32Array): { exact: [number]; bound: [number] } {
  let exact = 0;
  let size = 0;
  for (const [k, x] of row.entries()) {
    exact += x * (column[k] as number);
    size += Math.abs(x * (column[k] as number));
  }
  return { exact: [exact], bound: [(row.length + 2) * 2 ** -24 * size] };
}

/** Numbers in [−1, 1). */
function uniform(n: number, seed: number): Float32Array {
  const stream = new Stream(seed, "products");
  return tiled(n, () => 2 * stream.uniform() - 1);
}
