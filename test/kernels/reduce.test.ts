import { describe, expect, test } from "vitest";
import { fromHost, NdArray } from "../../src/kernels/array.ts";
import { dot, dotReference, sum, sumOfSquares, sumOfSquaresReference, sumReference } from "../../src/kernels/reduce.ts";
import { expectClose, gpuForTests, randn, run } from "./harness.ts";

const gpu = gpuForTests();

// 8,192 is what a workgroup adds, 524,288 what is finished without folding first (+ 1 and a remainder beyond vec4).
for (const n of [1, 2, 3, 4, 63, 257, 8192, 8193, 100_003, 524_289, 600_001]) {
  test(`${n} numbers: sum, dot, sum of squares`, async () => {
    const g = gpu();
    const a = randn(1, n);
    const b = randn(2, n);
    const [s, d, q] = await run(g, () => {
      const [x, y] = [fromHost(g, a), fromHost(g, b)];
      return [sum(g, x, -0.5), dot(g, x, y), sumOfSquares(g, x)];
    });
    // Sums of random signs cancel: their error is judged against the sum of magnitudes, √n of the terms' size.
    const noise = 3e-7 * Math.sqrt(n) + 1e-7;
    expectClose(s ?? [], [sumReference(a, -0.5)], { rtol: 3e-7, atol: noise });
    expectClose(d ?? [], [dotReference(a, b)], { rtol: 3e-7, atol: noise });
    expectClose(q ?? [], [sumOfSquaresReference(a)], { rtol: 1e-6, atol: 0 });
  });
}

// One whole window; three, of which the last has one element; very many; and several that are folded.
for (const [n, window] of [
  [4096, 4 * 4096],
  [8193, 4 * 4096 + 100],
  [100_003, 256],
  [600_001, 4 * 200_000],
] as const) {
  test(`${n} numbers in windows of ${window} bytes`, async () => {
    const g = gpu();
    const a = randn(4, n);
    const b = randn(5, n);
    const dispatches = g.counters.dispatches;
    const [s, d, q] = await run(g, () => {
      const [x, y] = [fromHost(g, a), fromHost(g, b)];
      return [sum(g, x, 2, { window }), dot(g, x, y, { window }), sumOfSquares(g, x, { window })];
    });
    const pieces = Math.ceil(n / (Math.floor(window / 256) * 64));
    expect(g.counters.dispatches - dispatches).toBeGreaterThanOrEqual(3 * (pieces + 1));
    const noise = 3e-7 * Math.sqrt(n) + 1e-7;
    expectClose(s ?? [], [sumReference(a, 2)], { rtol: 3e-7, atol: 2 * noise });
    expectClose(d ?? [], [dotReference(a, b)], { rtol: 3e-7, atol: noise });
    expectClose(q ?? [], [sumOfSquaresReference(a)], { rtol: 1e-6, atol: 0 });
  });
}

describe("a long sum", () => {
  // One running f32 sum of 2²⁴ + … stops growing at 16,777,216; here it misses by far more than 1e-6.
  test("of a million equal numbers is right to 1e-6, where a running f32 sum is not", async () => {
    const g = gpu();
    const x = new Float32Array(1_000_000).fill(0.1);
    const expected = sumReference(x);
    let running = 0;
    for (const value of x) running = Math.fround(running + value);
    expect(Math.abs(running / expected - 1)).toBeGreaterThan(1e-4);
    const [s] = await run(g, () => [sum(g, fromHost(g, x))]);
    expect(Math.abs((s?.[0] ?? 0) / expected - 1)).toBeLessThan(1e-6);
  });

  test("has the same bits every time", async () => {
    const g = gpu();
    const x = randn(3, 300_001);
    const [a, b] = await run(g, () => [sum(g, fromHost(g, x)), sum(g, fromHost(g, x))]);
    expect(a).toEqual(b);
  });
});

test("what lies beyond the end does not count, in a slice too", async () => {
  const g = gpu();
  const [a, b, c] = await run(g, () => {
    const x = fromHost(
      g,
      Float32Array.from({ length: 200 }, (_, i) => (i >= 64 && i < 69 ? 1 : Number.NaN)),
    );
    const part = new NdArray(x.buffer, 256, [5]);
    return [sum(g, part), dot(g, part, part), sumOfSquares(g, part)];
  });
  expect([a?.[0], b?.[0], c?.[0]]).toEqual([5, 5, 5]);
});

test("NaN and infinity come through; nothing adds up to 0", async () => {
  const g = gpu();
  const values = (at: number, value: number) => {
    const x = new Float32Array(10_000).fill(1);
    x[at] = value;
    return x;
  };
  const outputs = await run(g, () => [
    sum(g, fromHost(g, values(9_999, Number.NaN))),
    sumOfSquares(g, fromHost(g, values(77, Number.NEGATIVE_INFINITY))),
    dot(g, fromHost(g, values(0, Number.NaN)), fromHost(g, values(1, 1))),
    sum(g, fromHost(g, [], [0])),
  ]);
  expect(outputs.map((o) => o[0])).toEqual([Number.NaN, Number.POSITIVE_INFINITY, Number.NaN, 0]);
});

test("dot of different lengths is refused", () => {
  const g = gpu();
  g.scope(() => {
    expect(() => dot(g, fromHost(g, [1, 2]), fromHost(g, [1]))).toThrow("dot: a has shape [2], b [1]");
  });
});
