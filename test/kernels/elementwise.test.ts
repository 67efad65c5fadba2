import { describe, expect, test } from "vitest";
import { fromHost, NdArray } from "../../src/kernels/array.ts";
import {
  addInto,
  addRow,
  type BinaryOp,
  binary,
  binaryBackward,
  broadcastScalar,
  erf,
  fill,
  scale,
  UNARY,
  type UnaryOp,
  unary,
  unaryBackward,
} from "../../src/kernels/elementwise.ts";
import { expectClose, gpuForTests, numericGradient, randn, run } from "./harness.ts";

const gpu = gpuForTests();
const OPS = Object.keys(UNARY) as UnaryOp[];
/** The last gives each thread of a software adapter several vec4, and the last workgroup fewer. */
const SIZES = [1, 3, 4, 257, 1021, 1027, 4096, 20011];
const POSITIVE = new Set<UnaryOp>(["log", "sqrt"]);
/** Inputs of an operation: normal, wide enough for its tails, within its domain. */
function inputs(op: UnaryOp, n: number): Float32Array {
  return randn(n, n, 3).map((v) => (POSITIVE.has(op) ? Math.abs(v) + 0.01 : v));
}

describe("erf in float64", () => {
  // Abramowitz and Stegun, table 7.1, and limits.
  const values: [number, number][] = [
    [0, 0],
    [0.5, 0.5204998778130465],
    [1, 0.8427007929497149],
    [-1, -0.8427007929497149],
    [2, 0.9953222650189527],
    [3, 0.9999779095030014],
    [Number.POSITIVE_INFINITY, 1],
    [Number.NaN, Number.NaN],
  ];
  for (const [x, y] of values) {
    test(`erf(${x})`, () => expectClose([erf(x)], [y], { rtol: 5e-16, atol: 0 }));
  }
  test("series and continued fraction meet at 2", () => {
    // The slope there is 0.0207, so the two arguments' own difference is 4e-14.
    expect(Math.abs(erf(2) - erf(2 + 1e-12))).toBeLessThan(3e-14);
  });
});

describe("unary", () => {
  for (const op of OPS) {
    test(`${op}: f and f' agree with float64 at every size`, async () => {
      const g = gpu();
      const { f, df } = UNARY[op];
      for (const n of SIZES) {
        const x = inputs(op, n);
        const dy = randn(n + 1, n);
        const [y, dx] = await run(g, () => [
          unary(g, op, fromHost(g, x)),
          unaryBackward(g, op, fromHost(g, x), fromHost(g, dy)),
        ]);
        // f32's 6e-8 enters twice (argument and result); exp near e⁹ magnifies its argument's error ninefold.
        expectClose(y ?? [], Float64Array.from(x, f), { rtol: 2e-6, atol: 5e-7 });
        expectClose(
          dx ?? [],
          Float64Array.from(x, (v, i) => df(v) * (dy[i] ?? 0)),
          // In the tails 1 ± t and 1 − t² keep an error of 6e-8 and 1.2e-7, which gelu_tanh multiplies by up to 20.
          { rtol: 3e-6, atol: 4e-6 },
        );
      }
    });

    test(`${op}: the table's derivative is the slope of its function`, () => {
      const x = inputs(op, 101).filter((v) => Math.abs(v) > 1e-3);
      const h = 1e-5;
      const numeric = Float64Array.from(x, (v) => (UNARY[op].f(v + h) - UNARY[op].f(v - h)) / (2 * h));
      expectClose(Float64Array.from(x, UNARY[op].df), numeric, { rtol: 1e-6, atol: 1e-8 });
    });

    test(`${op}: NaN, infinities, zeros and large numbers go where float64 sends them`, async () => {
      const g = gpu();
      const { f, df } = UNARY[op];
      const big = op === "square" || op.startsWith("exp") ? 40 : 1e20;
      const x = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 0, big, -big, 89, -89, 12, -12];
      const ones = x.map(() => 1);
      const [y, dx] = await run(g, () => [
        unary(g, op, fromHost(g, x)),
        unaryBackward(g, op, fromHost(g, x), fromHost(g, ones)),
      ]);
      const inF32 = (v: number) => Math.fround(v); // what overflows there is an infinity here
      expectClose(y ?? [], x.map(f).map(inF32), { rtol: 1e-5, atol: 1e-5 });
      expectClose(dx ?? [], x.map(df).map(inF32), { rtol: 1e-5, atol: 1e-5 });
    });
  }

  test("gelu's lower tail keeps its leading digits, value and slope", async () => {
    const g = gpu();
    // Φ to 16 digits (erfc): float64's 1 + erf, which the table's reference is made of, has three of them at −8.
    const tail = [
      [-3, 1.349898031630095e-3],
      [-4, 3.167124183311992e-5],
      [-5, 2.866515718791939e-7],
      [-6, 9.865876450376981e-10],
      [-8, 6.220960574271784e-16],
    ] as const;
    const x = tail.map(([at]) => at);
    const [y, dx] = await run(g, () => [
      unary(g, "gelu", fromHost(g, x)),
      unaryBackward(g, "gelu", fromHost(g, x), fromHost(g, [1, 1, 1, 1, 1])),
    ]);
    const density = (at: number) => Math.exp((-at * at) / 2) / Math.sqrt(2 * Math.PI);
    // The quotient behind it is off by up to 9e-5 there, and exp by the rounding of its argument.
    const digits = { rtol: 2e-4, atol: 0 };
    expectClose(y ?? [], tail.map(([at, phi]) => at * phi), digits); // biome-ignore format: one line as the next
    expectClose(dx ?? [], tail.map(([at, phi]) => phi + at * density(at)), digits); // biome-ignore format: as above
  });

  test("a NaN in dy comes through, alone", async () => {
    const g = gpu();
    for (const op of OPS) {
      const dy = [1, Number.NaN, 1];
      const [dx] = await run(g, () => [unaryBackward(g, op, fromHost(g, [0.5, 0.5, 0.5]), fromHost(g, dy))]);
      expect([...(dx ?? [])].map(Number.isNaN), op).toEqual([false, true, false]);
    }
  });
});

describe("binary", () => {
  const F: Record<BinaryOp, (a: number, b: number) => number> = {
    add: (a, b) => a + b,
    subtract: (a, b) => a - b,
    multiply: (a, b) => a * b,
    divide: (a, b) => a / b,
  };
  for (const op of Object.keys(F) as BinaryOp[]) {
    test(`${op}: value, and gradients against numeric ones`, async () => {
      const g = gpu();
      for (const n of [1, 3, 257, 1027, 20011]) {
        const a = randn(n, n);
        const b = randn(n + 1, n).map((v) => v + Math.sign(v));
        const dy = randn(n + 2, n);
        const [y, da, db] = await run(g, () => {
          const [A, B] = [fromHost(g, a), fromHost(g, b)];
          const d = binaryBackward(g, op, A, B, fromHost(g, dy));
          return [binary(g, op, A, B), d.da, d.db];
        });
        expectClose(
          y ?? [],
          Float64Array.from(a, (v, i) => F[op](v, b[i] ?? 0)),
          { rtol: 1e-6, atol: 1e-7 },
        );
        const numeric = (which: "a" | "b") =>
          numericGradient(
            (at) => at.map((v, i) => (which === "a" ? F[op](v, b[i] ?? 0) : F[op](a[i] ?? 0, v))),
            which === "a" ? a : b,
            dy,
          );
        if (n > 300) continue; // numeric gradients cost n²
        expectClose(da ?? [], numeric("a"), { rtol: 1e-5, atol: 1e-5 });
        expectClose(db ?? [], numeric("b"), { rtol: 1e-5, atol: 1e-5 });
      }
    });
  }

  test("∞ − ∞, 0·∞ and 0/0 are NaN, 1/0 is ∞", async () => {
    const g = gpu();
    const inf = Number.POSITIVE_INFINITY;
    const results = await run(g, () => [
      binary(g, "subtract", fromHost(g, [inf]), fromHost(g, [inf])),
      binary(g, "multiply", fromHost(g, [0]), fromHost(g, [inf])),
      binary(g, "divide", fromHost(g, [0, 1]), fromHost(g, [0, 0])),
    ]);
    expect(results.flatMap((r) => [...r])).toEqual([Number.NaN, Number.NaN, Number.NaN, inf]);
  });

  test("one array twice, as in x·x", async () => {
    const g = gpu();
    const [y] = await run(g, () => {
      const x = fromHost(g, [1, 2, 3]);
      return [binary(g, "multiply", x, x)];
    });
    expect([...(y ?? [])]).toEqual([1, 4, 9]);
  });

  test("different shapes are an error with both", async () => {
    const g = gpu();
    g.scope(() => {
      const [a, b] = [fromHost(g, [1, 2, 3, 4], [2, 2]), fromHost(g, [1, 2, 3, 4])];
      expect(() => binary(g, "add", a, b)).toThrow("add: b has shape [4], expected [2 2]");
      expect(() => unaryBackward(g, "gelu", a, b)).toThrow("gelu.backward: dy has shape [4], expected [2 2]");
      expect(() => addInto(g, a, a)).toThrow("share a buffer");
    });
  });
});

describe("scale, fill, addInto, broadcastScalar, addRow", () => {
  test("scale is alpha·x + shift", async () => {
    const g = gpu();
    const x = randn(1, 1027);
    const [y] = await run(g, () => [scale(g, fromHost(g, x), -2.5, 0.75)]);
    expectClose(
      y ?? [],
      Float64Array.from(x, (v) => -2.5 * v + 0.75),
      { rtol: 1e-6, atol: 2e-7 },
    );
  });

  test("fill and addInto stay within a slice of a vector, padding included", async () => {
    const g = gpu();
    for (const n of [1, 3, 62, 64]) {
      const [filled, zeroed, added] = await run(g, () => {
        // Slices start at multiples of 256 bytes (64 elements); what is between belongs to nobody and must stay as it was.
        const vectors = [1, 2, 3].map(() => fromHost(g, new Float32Array(192).fill(7)));
        const [a, b, c] = vectors.map((v) => new NdArray(v.buffer, 256, [n])) as [NdArray, NdArray, NdArray];
        fill(g, a, -1.5);
        fill(g, b, 0);
        addInto(g, c, fromHost(g, new Float32Array(n).fill(2)), 0.5);
        return vectors;
      });
      const expected = (value: number) =>
        Float32Array.from({ length: 192 }, (_, i) => (i >= 64 && i < 64 + n ? value : 7));
      expect(filled).toEqual(expected(-1.5));
      expect(zeroed).toEqual(expected(0));
      expect(added).toEqual(expected(8));
    }
  });

  test("fill of a large array reaches its end", async () => {
    const g = gpu();
    const n = 300_001;
    const [y] = await run(g, () => {
      const x = fromHost(g, new Float32Array(n));
      fill(g, x, 3);
      return [x];
    });
    expect(y?.every((v) => v === 3)).toBe(true);
  });

  test("broadcastScalar repeats alpha times a number of the device's", async () => {
    const g = gpu();
    const [y] = await run(g, () => [broadcastScalar(g, fromHost(g, [3]), [7, 37], 0.5)]);
    expect(y).toEqual(new Float32Array(259).fill(1.5));
  });

  test("addRow adds the row to every row, for C of any kind", async () => {
    const g = gpu();
    for (const [n, c] of [
      [1, 1],
      [700, 1],
      [5, 2],
      [129, 3],
      [3, 384],
      [1, 4],
      [70_001, 4],
      [67, 1536],
      [37, 257],
      [2, 4099],
      [29, 691],
      [20011, 1],
    ] as const) {
      const x = randn(n, n * c);
      const row = randn(c, c);
      const [y] = await run(g, () => [addRow(g, fromHost(g, x, [n, c]), fromHost(g, row))]);
      expectClose(
        y ?? [],
        Float64Array.from(x, (v, i) => v + (row[i % c] ?? 0)),
        { rtol: 1e-6, atol: 1e-7 },
      );
    }
  });
});
