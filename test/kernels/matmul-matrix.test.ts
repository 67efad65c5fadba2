/**
 * @file Matrix units: the same tests as of the other families, with the tolerance of factors that are rounded to f16.
 * Adapters without them skip: Mesa's lavapipe has them from version 26 (.ci/mesa26), so that they need no GPU.
 */
import { describe, expect, test } from "vitest";
import { type Dispatch, formatCompilation, Gpu, withTile } from "../../src/gpu/index.ts";
import { empty, fromHost, NdArray } from "../../src/kernels/array.ts";
import {
  batchedMatmul,
  type Layout,
  type MatmulSizes,
  matmul,
  matmulWithPreactivation,
} from "../../src/kernels/matmul.ts";
import { chooseMatmul, halfProducts, preferredHalf } from "../../src/kernels/matmul-choice.ts";
import { HALF_FAMILIES, type HalfFamily, isFamily, type MatmulAdapter } from "../../src/kernels/matmul-families.ts";
import { checkHalf, halfBound } from "../../src/kernels/matmul-half.ts";
import { gpuForTests, randn, run } from "./harness.ts";

const gpu = gpuForTests();
const LAYOUTS: Layout[] = ["NN", "NT", "TN"];
const shapeA = (layout: Layout, { M, K }: MatmulSizes) => (layout === "TN" ? [K, M] : [M, K]);
const shapeB = (layout: Layout, { N, K }: MatmulSizes) => (layout === "NT" ? [N, K] : [K, N]);

/** Every size is a multiple of 4, which these kernels want, and few are of a fragment or a tile. */
const SIZES: [number, number, number][] = [
  [4, 4, 4],
  [8, 8, 8],
  [4, 384, 16],
  [64, 64, 64],
  [68, 132, 36],
  [20, 12, 100],
  [132, 68, 52],
  [136, 72, 28],
  [36, 260, 8],
  [4, 8, 1000],
];

const adapter: MatmulAdapter = {
  kind: "hardware",
  subgroupSize: 32,
  limits: { maxComputeInvocationsPerWorkgroup: 1024, maxComputeWorkgroupStorageSize: 49152 },
  matrixUnit: { M: 16, N: 16, K: 16 },
};
const { matrixUnit: _, ...without } = adapter;

describe("where matrix units can run", () => {
  const sizes = { M: 64, N: 64, K: 64 };
  const able = (of: MatmulAdapter, layout: Layout = "NN", of_ = sizes) =>
    (Object.keys(HALF_FAMILIES) as HalfFamily[]).filter((family) => HALF_FAMILIES[family](of, layout, of_));

  test("with a unit, a known subgroup size, whole vectors and room", () => {
    expect(able(adapter)).toEqual(["matrix32", "matrix64", "matrix128"]);
    expect(able(without)).toEqual([]);
    expect(able({ ...adapter, subgroupSize: 0 })).toEqual([]);
    expect(able(adapter, "NT", { M: 63, N: 63, K: 64 })).toHaveLength(3);
    expect(able(adapter, "NT", { M: 64, N: 64, K: 63 })).toEqual([]);
    expect(able(adapter, "TN", { M: 63, N: 64, K: 64 })).toEqual([]);
    const small = { ...adapter.limits, maxComputeWorkgroupStorageSize: 32768 };
    expect(able({ ...adapter, limits: small })).toEqual(["matrix32", "matrix64"]);
    expect(able({ ...adapter, subgroupSize: 8, matrixUnit: { M: 8, N: 8, K: 8 } })).toEqual(["matrix32", "matrix64"]);
  });

  test("a large tile only where it keeps a GPU busy; few columns stay in f32", () => {
    expect(preferredHalf(adapter, "NN", { G: 1, M: 4096, N: 4096, K: 64 })[0]).toBe("matrix128");
    expect(preferredHalf(adapter, "NN", { G: 1, M: 1024, N: 1536, K: 64 })).toEqual(["matrix64", "matrix32"]);
    expect(preferredHalf(adapter, "NN", { G: 1, M: 128, N: 384, K: 64 })).toEqual(["matrix32"]);
    const software: MatmulAdapter = { ...adapter, kind: "software" };
    expect(preferredHalf(software, "NN", { G: 1, M: 4096, N: 4096, K: 64 })).toEqual(["matrix32"]);
    expect(preferredHalf(adapter, "NN", { G: 1, M: 1024, N: 4, K: 64 })).toEqual([]);
  });

  // Fragments of other sizes than this adapter's make no pipeline here; the text is checked all the same.
  test.each([
    [32, 16, 16, 16],
    [32, 16, 8, 16],
    [32, 16, 8, 8],
    [16, 8, 16, 16],
  ])("subgroups of %i with fragments of %i × %i × %i: valid WGSL in every family", async (subgroupSize, M, N, K) => {
    const g = gpu();
    const families = able({ ...adapter, subgroupSize, matrixUnit: { M, N, K } });
    expect(families.length).toBeGreaterThan(1);
    if (!g.adapter.features.includes("chromium-experimental-subgroup-matrix")) return;
    for (const family of families) {
      const { tile } = HALF_FAMILIES[family]({ ...adapter, subgroupSize, matrixUnit: { M, N, K } }, "NN", sizes) ?? {};
      const code = withTile(g.source("matmul_matrix"), tile ?? {}, "matmul_matrix");
      const { messages } = await g.device.createShaderModule({ code }).getCompilationInfo();
      expect(formatCompilation(code, messages), family).toBe("");
    }
  });

  test("no file of choices may name one, and nothing takes one unasked", () => {
    expect(Object.keys(HALF_FAMILIES).filter(isFamily)).toEqual([]);
    expect(chooseMatmul(adapter, "NN", { M: 4096, N: 4096, K: 4096 }).shader).toBe("matmul_workgroup");
  });
});

for (const family of Object.keys(HALF_FAMILIES) as HalfFamily[]) {
  for (const layout of LAYOUTS) {
    describe(`${layout}, ${family}`, () => {
      const needs = (context: { skip(reason: string): void }, more = true) => {
        const { adapter } = gpu();
        if (!more || !HALF_FAMILIES[family](adapter, layout, { M: 64, N: 64, K: 64 }))
          context.skip(`this adapter (${adapter.driver}) cannot run ${family}${more ? "" : " in this test"}`);
      };

      const product = (a: Float32Array, b: Float32Array, sizes: MatmulSizes) => {
        const g = gpu();
        return run(g, () => [
          matmul(g, fromHost(g, a, shapeA(layout, sizes)), fromHost(g, b, shapeB(layout, sizes)), layout, { family }),
        ]);
      };

      for (const [M, N, K] of SIZES) {
        test(`M ${M}, N ${N}, K ${K} agrees with float64`, async (context) => {
          needs(context);
          const sizes = { M, N, K };
          const [a, b] = [randn(1, M * K), randn(2, K * N)];
          const [c] = await product(a, b, sizes);
          expectHalf(c, a, b, sizes, layout);
        });
      }

      // Whole numbers up to 8 and their sums are exact: an index that is wrong anywhere gives another number.
      test("whole numbers come out exact", async (context) => {
        needs(context);
        const sizes = { M: 68, N: 76, K: 84 };
        const whole = (seed: number, n: number) =>
          randn(seed, n, 3).map((x) => Math.max(-8, Math.min(8, Math.round(x))));
        const [a, b] = [whole(3, sizes.M * sizes.K), whole(4, sizes.K * sizes.N)];
        const [c] = await product(a, b, sizes);
        expect(c).toEqual(Float32Array.from(halfBound(a, b, sizes, layout).exact));
      });

      test("what lies beyond the arrays has no influence, NaN there included", async (context) => {
        needs(context);
        const g = gpu();
        for (const [M, N, K] of [
          [12, 20, 36],
          [36, 20, 4],
        ] as const) {
          const sizes = { M, N, K };
          const [a, b] = [randn(5, M * K), randn(6, K * N)];
          g.scope(() => {
            for (const n of [M * K, K * N, M * N, M * N]) {
              const dirty = empty(g, [n]);
              const all = new NdArray(dirty.buffer, 0, [dirty.buffer.bytes / 4]);
              g.write(all, new Float32Array(all.size).fill(Number.NaN));
            }
          });
          const [c] = await product(a, b, sizes);
          expectHalf(c, a, b, sizes, layout);
        }
      });

      test("NaN, infinity and what is too large reach their row or column and nothing else", async (context) => {
        needs(context);
        const sizes = { M: 20, N: 24, K: 16 };
        for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, 1e6]) {
          const [a, b] = [randn(7, 320).map(Math.abs), randn(8, 384).map(Math.abs)];
          a[layout === "TN" ? 3 * 20 + 7 : 7 * 16 + 3] = bad; // row 7, k 3
          const [c] = await product(a, b, sizes);
          const finite = Array.from(c ?? [], Number.isFinite);
          expect(finite).toEqual(Array.from({ length: 480 }, (_, i) => Math.floor(i / 24) !== 7));
        }
      });

      test("batched", async (context) => {
        needs(context);
        const g = gpu();
        const [G, M, N, K] = [3, 20, 72, 12];
        const sizes = { M, N, K };
        const [a, b] = [randn(9, G * M * K), randn(10, G * K * N)];
        const [c] = await run(g, () => {
          const x = fromHost(g, a, [G, ...shapeA(layout, sizes)]);
          return [batchedMatmul(g, x, fromHost(g, b, [G, ...shapeB(layout, sizes)]), layout, { family })];
        });
        for (let i = 0; i < G; i++) {
          const part = (x: Float32Array | undefined, n: number) => (x ?? new Float32Array()).subarray(i * n, i * n + n);
          expectHalf(part(c, M * N), part(a, M * K), part(b, K * N), sizes, layout);
        }
      });

      test("bias, activation, residual, what was there before, and the preactivation kept", async (context) => {
        // The large tiles' epilogue is the same text, which a CPU adapter compiles for many seconds.
        needs(context, gpu().adapter.kind === "hardware" || family === "matrix32");
        const g = gpu();
        const sizes = { M: 68, N: 36, K: 8 };
        const { M, N, K } = sizes;
        const [a, b, bias] = [randn(11, M * K), randn(12, K * N), randn(13, N)];
        const [residual, before] = [randn(14, M * N), randn(15, M * N)];
        const [y, u, plain] = await run(g, () => {
          const x = fromHost(g, a, shapeA(layout, sizes));
          const w = fromHost(g, b, shapeB(layout, sizes));
          const array = fromHost(g, before, [M, N]);
          const both = matmulWithPreactivation(g, x, w, layout, {
            bias: fromHost(g, bias),
            activation: "relu",
            residual: fromHost(g, residual, [M, N]),
            into: { array, accumulate: true },
            family,
          });
          return [both.y, both.u, matmul(g, x, w, layout, { family })];
        });
        expectHalf(plain, a, b, sizes, layout);
        // The epilogue is the other families': what it makes of the same sums is f32's own.
        const sums = Float32Array.from(plain ?? [], (x, i) => x + (bias[i % N] as number));
        expect(u).toEqual(sums);
        const expected = sums.map((x, i) => Math.max(x, 0) + (residual[i] as number) + (before[i] as number));
        for (const [i, x] of expected.entries()) expect(Math.abs((y?.[i] ?? Number.NaN) - x)).toBeLessThan(1e-6);
      });
    });
  }
}

describe("halfProducts", () => {
  test("takes matrix units inside and not after; the same bits every time; sizes it cannot take stay in f32", async (context) => {
    const g = gpu();
    if (!g.adapter.matrixUnit) context.skip(`this adapter (${g.adapter.driver}) has no matrix unit`);
    const shaders: string[] = [];
    const [a, b, odd] = [randn(16, 64 * 64), randn(17, 64 * 64), randn(18, 63 * 63)];
    g.afterDispatch = ({ shader }: Dispatch) => void shaders.push(shader);
    try {
      const [x, y] = await run(g, () => {
        const product = () => matmul(g, fromHost(g, a, [64, 64]), fromHost(g, b, [64, 64]), "NN");
        const both = halfProducts(g, () => [product(), halfProducts(g, product)]);
        halfProducts(g, () => matmul(g, fromHost(g, odd, [63, 63]), fromHost(g, odd, [63, 63]), "NN"));
        product();
        return both;
      });
      expect(x).toEqual(y);
    } finally {
      g.afterDispatch = undefined;
    }
    expect(shaders.map((shader) => shader === "matmul_matrix")).toEqual([true, true, false, false]);
  });
});

/** What the epilogue reads. */
const PART = "sc[e / (BN / 4u) * LC + e % (BN / 4u)]";
// A conversion there and back would be optimised away.
const HALF = (pair: string) => `unpack2x16float(pack2x16float(${pair}))`;

describe("the check at start-up", () => {
  test("passes here, and says what becomes of small numbers", async (context) => {
    if (!gpu().adapter.matrixUnit) context.skip(`this adapter (${gpu().adapter.driver}) has no matrix unit`);
    const { worst, subnormals } = await checkHalf(gpu());
    expect(worst).toBeGreaterThan(0.01);
    expect(worst).toBeLessThanOrEqual(1);
    expect(["kept", "flushed to 0"]).toContain(subnormals);
  });

  test("refuses an adapter without a unit", async () => {
    const { matrixUnit: _, ...adapter } = gpu().adapter;
    await expect(checkHalf(again({ adapter }))).rejects.toThrow(
      /^dtype f16: .* has no matrix unit .* f32 runs everywhere/,
    );
  });

  for (const [name, from, to, message] of [
    ["factors that are off by 1 %", "vec4h(fa[i])", "vec4h(fa[i] * 1.01)", "multiplies f16 wrongly"],
    ["rows taken for columns", "if (B_ALONG_K) { right", "if (!B_ALONG_K) { right", "multiplies f16 wrongly"],
    ["sums in f16", PART, `vec4f(${HALF(`${PART}.xy`)}, ${HALF(`${PART}.zw`)})`, "does not sum in f32"],
    ["saturation", "vec4h(fa[i])", "vec4h(min(fa[i], vec4f(65504.0)))", "turns 100,000, beyond f16, into 65504"],
  ] as const) {
    test(`refuses ${name}`, async (context) => {
      const g = gpu();
      if (!g.adapter.matrixUnit) context.skip(`this adapter (${g.adapter.driver}) has no matrix unit`);
      const text = g.source("matmul_matrix");
      const broken = text.replaceAll(from, to);
      expect(broken).not.toBe(text);
      await expect(checkHalf(again({ source: broken }))).rejects.toThrow(message);
    });
  }
});

/** The device once more, with another report of it or another shader. */
function again({ adapter = gpu().adapter, source = gpu().source("matmul_matrix") }): Gpu {
  const shaders = new Map([
    ["matmul_matrix", source],
    ["ticket", gpu().source("ticket")],
  ]);
  return new Gpu(gpu().instance, gpu().device, adapter, shaders);
}

function expectHalf(
  actual: ArrayLike<number> | undefined,
  a: Float32Array,
  b: Float32Array,
  sizes: MatmulSizes,
  layout: Layout,
): void {
  const { exact, bound } = halfBound(a, b, sizes, layout);
  expect(actual?.length).toBe(exact.length);
  let worst = 0;
  for (const [i, x] of exact.entries()) {
    const error = Math.abs((actual?.[i] ?? Number.NaN) - x) / (bound[i] as number);
    if (!(error <= worst)) worst = Number.isNaN(error) ? Number.POSITIVE_INFINITY : error;
  }
  expect(worst, `error in units of the bound, ${layout} ${JSON.stringify(sizes)}`).toBeLessThanOrEqual(1);
}
