/**
 * @file What is measured of the matrix product: three layouts at a cube and at MiniLM's feed-forward layer, with the
 * family that the table chooses and with each family by name; the epilogue of a training step; small and batched ones.
 */
import type { Gpu } from "../src/gpu/index.ts";
import { fromHost, NdArray } from "../src/kernels/array.ts";
import {
  batchedMatmul,
  type Layout,
  type MatmulOptions,
  matmul,
  matmulWithPreactivation,
} from "../src/kernels/matmul.ts";
import { type Family, HALF_FAMILIES, type HalfFamily } from "../src/kernels/matmul-families.ts";
import type { BenchCase } from "./case.ts";

const LAYOUTS: readonly Layout[] = ["NN", "NT", "TN"];

interface Shape {
  M: number;
  N: number;
  K: number;
  /** Of a batch: how many. */
  G?: number;
}

const CUBE: Shape = { M: 512, N: 512, K: 512 };
const FEED_FORWARD: Shape = { M: 1024, N: 1536, K: 384 };

type Multiply = (gpu: Gpu, a: NdArray, b: NdArray, layout: Layout) => unknown;

/** A case whose operands are made at its first run and freed with it. */
function product(gpu: Gpu, name: string, layout: Layout, shape: Shape, multiply: Multiply): BenchCase {
  const { M, N, K, G } = shape;
  const lead = G ? [G] : [];
  let held: [NdArray, NdArray] | undefined;
  return {
    name,
    layout,
    shape: { ...shape },
    flops: 2 * M * N * K * (G ?? 1),
    run: () => {
      held ??= [
        operand(gpu, [...lead, ...(layout === "TN" ? [K, M] : [M, K])]),
        operand(gpu, [...lead, ...(layout === "NT" ? [N, K] : [K, N])]),
      ];
      const [a, b] = held;
      gpu.scope(() => void multiply(gpu, a, b, layout));
    },
    dispose: () => {
      for (const array of held ?? []) gpu.release(array.buffer);
      held = undefined;
    },
  };
}

/** Numbers within ±1 that are cheap to make and not all alike. */
function operand(gpu: Gpu, shape: number[]): NdArray {
  const n = shape.reduce((a, b) => a * b, 1);
  return fromHost(
    gpu,
    Float32Array.from({ length: n }, (_, i) => Math.sin(i * 0.7)),
    shape,
  );
}

const plain =
  (options: MatmulOptions = {}): Multiply =>
  (gpu, a, b, layout) =>
    matmul(gpu, a, b, layout, options);

/** With each family that rounds to f16 and can run; on a CPU adapter the large tiles compile for many seconds. */
function halves(gpu: Gpu, layout: Layout, shape: Shape): BenchCase[] {
  return (Object.keys(HALF_FAMILIES) as HalfFamily[])
    .filter((family) => gpu.adapter.kind === "hardware" || family === "matrix32" || layout === "NN")
    .filter((family) => HALF_FAMILIES[family](gpu.adapter, layout, shape))
    .map((family) => ({
      ...product(gpu, `matmul.${family}`, layout, shape, plain({ family })),
      dtype: "f16" as const,
    }));
}

export function cases(gpu: Gpu): BenchCase[] {
  const families: Family[] = ["packed", "strip32", "subgroup", "register"];
  return [
    ...[CUBE, FEED_FORWARD].flatMap((shape) => LAYOUTS.map((layout) => product(gpu, "matmul", layout, shape, plain()))),
    ...families.flatMap((family) =>
      LAYOUTS.map((layout) => product(gpu, `matmul.${family}`, layout, CUBE, plain({ family }))),
    ),
    // Factors in f16, where a matrix unit takes them.
    ...[CUBE, FEED_FORWARD].flatMap((shape) => LAYOUTS.flatMap((layout) => halves(gpu, layout, shape))),
    // The feed-forward layer's first half in training: bias, GELU, and what GELU's backward needs.
    product(gpu, "matmul+bias+gelu", "NT", FEED_FORWARD, (g, a, b, layout) =>
      matmulWithPreactivation(g, a, b, layout, {
        bias: new NdArray(b.buffer, 0, [FEED_FORWARD.N]), // any numbers do
        activation: "gelu",
      }),
    ),
    ...LAYOUTS.map((layout) => product(gpu, "matmul", layout, { M: 16, N: 384, K: 384 }, plain())),
    product(gpu, "matmul", "NT", { M: 16, N: 2, K: 384 }, plain()),
    ...LAYOUTS.map((layout) =>
      product(gpu, "matmul.batched", layout, { G: 96, M: 64, N: 64, K: 32 }, (g, a, b, l) => batchedMatmul(g, a, b, l)),
    ),
  ];
}
