import { describe, expect, test } from "vitest";
import { fromHost, type NdArray } from "../../src/kernels/array.ts";
import { normal } from "../../src/kernels/langevin.ts";
import { LiveChunks } from "../../src/kernels/live.ts";
import { swagCollect, swagDraw, swagReference } from "../../src/kernels/swag.ts";
import { Stream } from "../../src/random.ts";
import { expectClose, gpuForTests, randn, run } from "./harness.ts";

const gpu = gpuForTests();
const KEY = [7, 9] as const;

/** Five points around 0.05 that are 1e-4 apart, as an optimiser's are around BERT's weights. */
const points = (n: number) =>
  Array.from({ length: 5 }, (_, k) => randn(20 + k, n, 1e-4).map((x) => Math.fround(0.05 + x)));

for (const [n, window] of [
  [64, undefined],
  [64 * 70, undefined],
  [20_032, 4 * 8192],
] as const) {
  test(`${n} numbers${window ? " in windows" : ""}: moments follow float64, small variances too`, async () => {
    const g = gpu();
    const path = points(n);
    const zeros = () => fromHost(g, new Float32Array(n));
    const [mean, m2, ...deviations] = await run(g, () => {
      const moments = { mean: zeros(), m2: zeros() };
      const deviations = path.map((point, k) => {
        const deviation = zeros();
        swagCollect(g, fromHost(g, point), moments, deviation, k + 1, { window });
        return deviation;
      });
      return [moments.mean, moments.m2, ...deviations];
    });
    const expected = swagReference(path, 5);
    expectClose(mean!, expected.mean, { rtol: 2e-7, atol: 0 });
    // θ is known to 2e-9, its deviations of 1e-4 to 4e-5 of themselves.
    expectClose(m2!, expected.m2, { rtol: 2e-3, atol: 1e-12 });
    for (const [k, d] of deviations.entries()) expectClose(d, expected.deviations[k]!, { rtol: 0, atol: 1e-8 });
  });
}

test("what has not moved since the first point need not be visited: the same bits, also in an old deviation", async () => {
  const g = gpu();
  const n = 20_032;
  // Moving: a chunk, the end of a block and the next one's start, and the last numbers.
  const moving = [[512, 700], [8100, 8300], [20_000, n]] as const; // biome-ignore format: three stretches
  const path = points(n).map((point, _, [first]) => {
    const still = Float32Array.from(first!);
    for (const [from, to] of moving) still.set(point.subarray(from, to), from);
    return still;
  });
  const chunks = new LiveChunks(n);
  for (const [from, to] of moving) chunks.add(from, to);
  const collect = (partly: boolean) =>
    run(g, () => {
      const zeros = () => fromHost(g, new Float32Array(n));
      const moments = { mean: zeros(), m2: zeros() };
      // Of two deviations the older one makes room.
      const kept = [zeros(), zeros()];
      for (const [k, point] of path.entries())
        swagCollect(g, fromHost(g, point), moments, kept[k % 2]!, k + 1, partly ? { live: chunks.upload(g), window: 4 * 8192 } : {}); // biome-ignore format: one call
      return [moments.mean, moments.m2, ...kept];
    });
  expect(await collect(true)).toEqual(await collect(false));
});

/** S draws of θ [n], one after the other. */
function draws(
  S: number,
  n: number,
  make: () => { mean: NdArray; m2: NdArray; points: number; deviations: NdArray[] },
  temperature?: number,
) {
  const g = gpu();
  return run(g, () => {
    const gaussian = make();
    const stream = new Stream(3, "weights");
    return Array.from({ length: S }, (_, s) => {
      const drawn = fromHost(g, new Float32Array(n));
      const weights = gaussian.deviations.map(() => stream.normal());
      swagDraw(g, gaussian, drawn, { key: [s, 1], weights, temperature });
      return drawn;
    });
  });
}

describe("draws", () => {
  const n = 128;
  const center = randn(1, n);
  const squares = randn(2, n).map((x) => 4 * x * x);
  const columns = [randn(3, n), randn(4, n), randn(5, n)];
  const make = (rank: number) => () => {
    const g = gpu();
    return { mean: fromHost(g, center), m2: fromHost(g, squares), points: 4, deviations: columns.slice(0, rank).map((c) => fromHost(g, c)) }; // biome-ignore format: one Gaussian
  };

  for (const [rank, temperature] of [
    [0, 1],
    [3, 1],
    [3, 0.25],
  ] as const) {
    test(`rank ${rank}, T = ${temperature}: mean and covariance of 400 draws`, async () => {
      const S = 400;
      const found = await draws(S, n, make(rank), temperature);
      const half = rank > 1 ? 0.5 : 1;
      const covariance = (i: number, j: number) => {
        const diagonal = i === j ? (half * squares[i]!) / 4 : 0;
        const low = columns.slice(0, rank).reduce((sum, c) => sum + c[i]! * c[j]!, 0);
        return temperature * (diagonal + (rank > 1 ? (0.5 * low) / (rank - 1) : 0));
      };
      const off = (s: number, i: number) => found[s]![i]! - center[i]!;
      // Σ over elements of (estimate − truth)² / its variance: 128 numbers that are χ² with one degree each, if right.
      let means = 0;
      let spreads = 0;
      let pairs = 0;
      for (let i = 0; i < n; i++) {
        const j = (i + 1) % n;
        const sum = (f: (s: number) => number) => Array.from({ length: S }, (_, s) => f(s)).reduce((a, b) => a + b, 0);
        const [vi, vj, vij] = [covariance(i, i), covariance(j, j), covariance(i, j)];
        means += (sum((s) => off(s, i)) / S) ** 2 / (vi / S);
        spreads += (sum((s) => off(s, i) ** 2) / S - vi) ** 2 / ((2 * vi * vi) / S);
        pairs += (sum((s) => off(s, i) * off(s, j)) / S - vij) ** 2 / ((vi * vj + vij * vij) / S);
      }
      // The low-rank parts of the elements move together, so the sums spread more than χ² of 128: bounds from its scale.
      for (const total of [means, spreads, pairs]) {
        expect(total / n).toBeGreaterThan(0.4);
        expect(total / n).toBeLessThan(2.2);
      }
    });
  }

  test("without a spread a draw is the mean; the normals are those of (key, element)", async () => {
    const g = gpu();
    const [still, one, z] = await run(g, () => {
      const zeros = () => fromHost(g, new Float32Array(n));
      const [still, one] = [zeros(), zeros()];
      const mean = fromHost(g, center);
      swagDraw(g, { mean, m2: zeros(), points: 3, deviations: [] }, still, { key: KEY, weights: [] });
      const ones = fromHost(g, new Float32Array(n).fill(3));
      swagDraw(g, { mean: zeros(), m2: ones, points: 3, deviations: [] }, one, { key: KEY, weights: [], window: 256 });
      return [still, one, normal(g, [n], KEY)];
    });
    expect(still).toEqual(center);
    expectClose(one!, z!, { rtol: 1e-6, atol: 1e-7 });
  });
});

test("vectors of two lengths, point 0 and missing weights are refused", () => {
  const g = gpu();
  g.scope(() => {
    const v = (n: number) => fromHost(g, new Float32Array(n));
    expect(() => swagCollect(g, v(64), { mean: v(64), m2: v(128) }, v(64), 1)).toThrow("vectors of 64 and 128");
    expect(() => swagCollect(g, v(64), { mean: v(64), m2: v(64) }, v(64), 0)).toThrow("point 0");
    const gaussian = { mean: v(64), m2: v(64), points: 2, deviations: [v(64)] };
    expect(() => swagDraw(g, gaussian, v(64), { key: KEY, weights: [] })).toThrow("0 normals for 1 deviations");
  });
});
