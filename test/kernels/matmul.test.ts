import { describe, expect, test } from "vitest";
import { empty, fromHost, NdArray } from "../../src/kernels/array.ts";
import {
  type Activation,
  batchedMatmul,
  type Layout,
  type MatmulSizes,
  matmul,
  matmulReference,
  matmulWithPreactivation,
} from "../../src/kernels/matmul.ts";
import type { Family } from "../../src/kernels/matmul-families.ts";
import { expectClose, gpuForTests, randn, run } from "./harness.ts";

const gpu = gpuForTests();

const LAYOUTS: Layout[] = ["NN", "NT", "TN"];
const FAMILIES: Family[] = ["register", "subgroup", "strip32", "packed", "tile64"];
/** Other sizes of the same shaders: no epilogues. */
const OTHER_TILES: Family[] = ["strip16", "tile32", "tile128"];
const shapeA = (layout: Layout, { M, K }: MatmulSizes) => (layout === "TN" ? [K, M] : [M, K]);
const shapeB = (layout: Layout, { N, K }: MatmulSizes) => (layout === "NT" ? [N, K] : [K, N]);

/** Rounding of a sum of K products in any order: |error| ≤ (K + 2)·2⁻²⁴·Σ|a||b| to first order. */
function expectProduct(
  actual: ArrayLike<number>,
  a: Float32Array,
  b: Float32Array,
  sizes: MatmulSizes,
  layout: Layout,
): void {
  const exact = matmulReference(a, b, sizes, layout);
  const size = matmulReference(a.map(Math.abs), b.map(Math.abs), sizes, layout);
  expect(actual.length).toBe(exact.length);
  const unit = (sizes.K + 2) * 2 ** -24;
  let worst = 0;
  for (let i = 0; i < exact.length; i++) {
    const error = Math.abs((actual[i] as number) - (exact[i] as number)) / (unit * (size[i] as number));
    if (!(error <= worst)) worst = Number.isNaN(error) ? Number.POSITIVE_INFINITY : error;
  }
  expect(worst, `error in units of the bound, ${layout} ${JSON.stringify(sizes)}`).toBeLessThanOrEqual(1);
}

const SIZES: [number, number, number][] = [
  [1, 1, 1],
  [7, 5, 3],
  [17, 31, 13],
  [64, 64, 64],
  [65, 129, 33],
  [3, 2, 384],
  [2, 384, 16],
  [16, 384, 2],
  [130, 96, 70],
  [96, 132, 68],
  [33, 260, 8],
  [132, 196, 52], // beyond one tile of 128, K not a multiple of 16
  [35, 36, 7], // odd K where the subgroup family runs
  [18, 37, 10],
  [36, 40, 5], // TN: one, two or three k in the last round of four
  [36, 40, 6],
  [44, 40, 7],
  [33, 37, 12],
  [1, 1, 1000],
];

for (const family of [...FAMILIES, ...OTHER_TILES]) {
  for (const layout of LAYOUTS) {
    describe(`${layout}, ${family}`, () => {
      for (const [M, N, K] of SIZES) {
        test(`M ${M}, N ${N}, K ${K} agrees with float64`, async () => {
          const g = gpu();
          const sizes = { M, N, K };
          const a = randn(1, M * K);
          const b = randn(2, K * N);
          const [c] = await run(g, () => [
            matmul(g, fromHost(g, a, shapeA(layout, sizes)), fromHost(g, b, shapeB(layout, sizes)), layout, { family }),
          ]);
          expectProduct(c ?? [], a, b, sizes, layout);
        });
      }

      test("what lies beyond the arrays has no influence, NaN there included", async () => {
        const g = gpu();
        for (const [M, N, K] of [
          [5, 3, 7],
          [12, 20, 36],
          [33, 17, 5],
        ] as const) {
          const sizes = { M, N, K };
          const a = randn(3, M * K);
          const b = randn(4, K * N);
          // Fill buffers of the sizes that come next with NaN, give them back, and get them again from the pool.
          g.scope(() => {
            for (const n of [M * K, K * N, M * N, M * N]) {
              const dirty = empty(g, [n]);
              const all = new NdArray(dirty.buffer, 0, [dirty.buffer.bytes / 4]);
              g.write(all, new Float32Array(all.size).fill(Number.NaN));
            }
          });
          const [c] = await run(g, () => [
            matmul(g, fromHost(g, a, shapeA(layout, sizes)), fromHost(g, b, shapeB(layout, sizes)), layout, { family }),
          ]);
          expectProduct(c ?? [], a, b, sizes, layout);
        }
      });

      test("NaN and infinity reach their row or column and nothing else", async () => {
        const g = gpu();
        const sizes = { M: 20, N: 24, K: 16 };
        const a = randn(5, 320).map(Math.abs);
        const b = randn(6, 384).map(Math.abs);
        const aAt = layout === "TN" ? 3 * 20 + 7 : 7 * 16 + 3; // row 7, k 3
        const bAt = layout === "NT" ? 9 * 16 + 5 : 5 * 24 + 9; // k 5, column 9
        a[aAt] = Number.NaN;
        b[bAt] = Number.POSITIVE_INFINITY;
        const [c] = await run(g, () => [
          matmul(g, fromHost(g, a, shapeA(layout, sizes)), fromHost(g, b, shapeB(layout, sizes)), layout, { family }),
        ]);
        expectClose(c ?? [], matmulReference(a, b, sizes, layout), { rtol: 1e-5, atol: 0 });
      });

      test("batched", async () => {
        const g = gpu();
        for (const [G, M, N, K] of [
          [3, 17, 20, 12],
          [4, 32, 64, 8],
          [2, 5, 7, 3],
        ] as const) {
          const sizes = { M, N, K };
          const a = randn(7, G * M * K);
          const b = randn(8, G * K * N);
          const [c] = await run(g, () => [
            batchedMatmul(
              g,
              fromHost(g, a, [G, ...shapeA(layout, sizes)]),
              fromHost(g, b, [G, ...shapeB(layout, sizes)]),
              layout,
              { family },
            ),
          ]);
          for (let i = 0; i < G; i++) {
            const part = (x: Float32Array | undefined, n: number) =>
              (x ?? new Float32Array()).subarray(i * n, i * n + n);
            expectProduct(part(c, M * N), part(a, M * K), part(b, K * N), sizes, layout);
          }
        }
      });
    });
  }
}

/** Float64 activations, written apart from the shader. */
const reference: Record<Activation, (x: number) => number> = {
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  relu: (x) => Math.max(x, 0),
  silu: (x) => x / (1 + Math.exp(-x)),
  tanh: Math.tanh,
};

/** 2/√π·∫₀ˣ exp(−t²) dt: the power series, which float64 carries to |x| = 3 (1e-13), beyond it the continued fraction of erfc. */
function erf(x: number): number {
  const z = Math.abs(x);
  if (z > 3) {
    let f = 0;
    for (let k = 100; k > 0; k--) f = k / 2 / (z + f);
    return Math.sign(x) * (1 - Math.exp(-z * z) / Math.sqrt(Math.PI) / (z + f));
  }
  let term = x;
  let sum = x;
  for (let n = 1; n < 100; n++) {
    term *= (-x * x) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}

for (const family of FAMILIES) {
  describe(`epilogue, ${family}`, () => {
    for (const [M, N, K] of [
      [19, 36, 8],
      [6, 5, 4],
    ] as const) {
      const sizes = { M, N, K };
      const a = randn(10, M * K);
      const b = randn(11, K * N);
      const bias = randn(12, N);
      const residual = randn(13, M * N);
      const before = randn(14, M * N);
      const product = (layout: Layout) => matmulReference(a, b, sizes, layout);
      const inputs = (layout: Layout) =>
        [fromHost(gpu(), a, shapeA(layout, sizes)), fromHost(gpu(), b, shapeB(layout, sizes))] as const;

      for (const layout of LAYOUTS) {
        test(`${layout} ${M}×${N}: bias; residual; accumulate`, async () => {
          const g = gpu();
          const [plain, added, summed] = await run(g, () => {
            const [x, y] = inputs(layout);
            const array = fromHost(g, before, [M, N]);
            matmul(g, x, y, layout, { into: { array, accumulate: true }, family });
            return [
              matmul(g, x, y, layout, { bias: fromHost(g, bias), family }),
              matmul(g, x, y, layout, { residual: fromHost(g, residual, [M, N]), family }),
              array,
            ];
          });
          const c = product(layout);
          const close = { rtol: 1e-5, atol: 1e-5 };
          expectClose(
            plain ?? [],
            c.map((v, i) => v + (bias[i % N] as number)),
            close,
          );
          expectClose(
            added ?? [],
            c.map((v, i) => v + (residual[i] as number)),
            close,
          );
          expectClose(
            summed ?? [],
            c.map((v, i) => v + (before[i] as number)),
            close,
          );
        });

        test(`${layout} ${M}×${N}: everything together, the preactivation kept`, async () => {
          const g = gpu();
          const [y, u] = await run(g, () => {
            const array = fromHost(g, before, [M, N]);
            const both = matmulWithPreactivation(g, ...inputs(layout), layout, {
              bias: fromHost(g, bias),
              activation: "gelu",
              residual: fromHost(g, residual, [M, N]),
              into: { array, accumulate: true },
              family,
            });
            return [both.y, both.u];
          });
          const expected = product(layout).map((v, i) => v + (bias[i % N] as number));
          expectClose(u ?? [], expected, { rtol: 1e-5, atol: 1e-5 });
          expectClose(
            y ?? [],
            expected.map((v, i) => reference.gelu(v) + (residual[i] as number) + (before[i] as number)),
            { rtol: 1e-5, atol: 1e-5 },
          );
        });
      }
    }

    // A 1 × 1 identity passes numbers through untouched, so the activation alone is measured.
    const dense = Float32Array.from({ length: 4001 }, (_, i) => (i - 2000) / 160); // −12.5 … 12.5
    for (const name of Object.keys(reference) as Activation[]) {
      test(`${name} is accurate to float32`, async () => {
        const g = gpu();
        const [y] = await run(g, () => [
          matmul(g, fromHost(g, dense, [dense.length, 1]), fromHost(g, [1], [1, 1]), "NN", {
            activation: name,
            family,
          }),
        ]);
        // erf and tanh within 2e-7; the GELUs multiply that by x/2.
        const expected = Float64Array.from(dense, reference[name]);
        expectClose(y ?? [], expected, { rtol: 4e-7, atol: name === "tanh" ? 2e-7 : 6e-7 });
      });

      test(`${name} lets NaN through and has its limits at ±∞`, async () => {
        const g = gpu();
        const x = [Number.NaN, Number.POSITIVE_INFINITY, 1e30, -1e30];
        const [y] = await run(g, () => [
          matmul(g, fromHost(g, x, [4, 1]), fromHost(g, [1], [1, 1]), "NN", { activation: name, family }),
        ]);
        expect(y?.[0]).toBeNaN();
        expect(y?.[1]).toBe(name === "tanh" ? 1 : Number.POSITIVE_INFINITY);
        expect(y?.[2]).toBe(name === "tanh" ? 1 : Math.fround(1e30));
        expect(Math.abs(y?.[3] ?? Number.NaN)).toBe(name === "tanh" ? 1 : 0);
      });
    }
  });
}

describe("views", () => {
  test("inputs and the target may be slices; what lies around the target stays", async () => {
    const g = gpu();
    const sizes = { M: 9, N: 7, K: 6 };
    const a = randn(20, 54);
    const b = randn(21, 42);
    const around = randn(22, 64 + 64 + 64);
    for (const family of FAMILIES) {
      for (const layout of LAYOUTS) {
        const [all] = await run(g, () => {
          const inputs = fromHost(g, [...a, ...new Array(10).fill(Number.NaN), ...b, Number.NaN, Number.NaN]);
          const whole = fromHost(g, around);
          const array = new NdArray(whole.buffer, 256, [9, 7]);
          const x = new NdArray(inputs.buffer, 0, shapeA(layout, sizes));
          const y = new NdArray(inputs.buffer, 256, shapeB(layout, sizes));
          matmul(g, x, y, layout, { into: { array, accumulate: false }, family });
          return [whole];
        });
        const c = all?.subarray(64, 64 + 63) ?? [];
        expectProduct(c, a, b, sizes, layout);
        expect([...(all?.subarray(0, 64) ?? [])]).toEqual([...around.subarray(0, 64)]);
        expect([...(all?.subarray(127) ?? [])]).toEqual([...around.subarray(127)]);
      }
    }
  });

  test("the same bits every time", async () => {
    const g = gpu();
    const [x, y] = await run(g, () => {
      const a = fromHost(g, randn(23, 70 * 68), [70, 68]);
      const b = fromHost(g, randn(24, 68 * 68), [68, 68]);
      return [matmul(g, a, b, "NN"), matmul(g, a, b, "NN")];
    });
    expect(x).toEqual(y);
  });
});

describe("no rows or no columns", () => {
  test.each([
    [0, 3],
    [3, 0],
    [0, 0],
  ])("M %i, N %i: an empty product, as of any other operation", async (M, N) => {
    const g = gpu();
    const [y, u, batch] = await run(g, () => {
      const [a, b] = [empty(g, [M, 4]), empty(g, [4, N])];
      const kept = matmulWithPreactivation(g, a, b, "NN", { bias: empty(g, [N]), activation: "gelu" });
      return [kept.y, kept.u, batchedMatmul(g, empty(g, [0, 2, 4]), empty(g, [0, 4, 2]), "NN")];
    });
    expect([y?.length, u?.length, batch?.length]).toEqual([0, 0, 0]);
  });
});

describe("wrong shapes", () => {
  test("are named", async () => {
    const g = gpu();
    g.scope(() => {
      const a = empty(g, [3, 4]);
      expect(() => matmul(g, a, empty(g, [5, 2]), "NN")).toThrow("matmul: b (NN) has shape [5 2], expected [K=4 N]");
      expect(() => matmul(g, a, empty(g, [4, 2]), "NN", { bias: empty(g, [3]) })).toThrow(
        "matmul: bias has shape [3], expected [N=2]",
      );
      expect(() => matmul(g, a, empty(g, [4, 2]), "NN", { residual: empty(g, [3, 3]) })).toThrow("residual");
      expect(() => matmul(g, a, empty(g, [4, 2]), "NN", { into: { array: a, accumulate: false } })).toThrow("[3,2]");
      expect(() => batchedMatmul(g, a, a, "NN")).toThrow("batchedMatmul: a (NN)");
      expect(() => matmul(g, empty(g, [3, 0]), empty(g, [0, 2]), "NN")).toThrow("matmul: K is 0");
      const many = empty(g, [65536, 1, 1]);
      expect(() => batchedMatmul(g, many, many, "NN")).toThrow("batchedMatmul: G is 65536; at most 65535");
      expect(() => matmul(g, a, empty(g, [4, 2]), "NN", { preactivation: true })).toThrow("matmulWithPreactivation");
    });
  });
});
