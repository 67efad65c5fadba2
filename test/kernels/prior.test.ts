/** @file The passes of priors that are no isotropic Gaussian, against their definitions in float64. */
import { describe, expect, test } from "vitest";
import { fromHost, type NdArray, readArray } from "../../src/kernels/array.ts";
import { LiveChunks } from "../../src/kernels/live.ts";
import {
  addSquares,
  lowRankCombine,
  lowRankProject,
  type PriorKind,
  type PriorStretch,
  priorGradient,
  priorReference,
} from "../../src/kernels/prior.ts";
import { expectClose, gpuForTests, randn, run } from "./harness.ts";

const gpu = gpuForTests();
const KINDS: readonly PriorKind[] = ["diagonal", "structured", "laplace", "student"];

/** μ, θ = μ + Δ with some Δ = 0, a gradient, what `total` holds before, τ ≥ 0. */
function vectors(n: number) {
  const mu = randn(1, n, 0.05);
  const step = randn(2, n, 0.3);
  const theta = mu.map((value, i) => (i % 5 === 0 ? value : value + (step[i] ?? 0)));
  return { theta, mu, grad: randn(3, n, 0.1), total: randn(4, n, 0.1), tau: randn(5, n, 2).map(Math.abs) };
}

// A workgroup adds 8,192; 524,288 are finished without folding.
const CASES: readonly [string, number, readonly PriorStretch[]][] = [
  ["all of 64", 64, [{ offset: 0, length: 64, scale: 2, shape: 0.7 }]],
  [
    "two with a hole, across blocks",
    20_032,
    [
      { offset: 64, length: 8256, scale: 0.5, shape: 3 },
      { offset: 10_048, length: 9984, scale: 3, shape: 1e-6 },
    ],
  ],
  ["one that folds", 640_064, [{ offset: 0, length: 640_064, scale: 0.1, shape: 20 }]],
];

for (const kind of KINDS) {
  describe(`priorGradient, ${kind}`, () => {
    for (const [name, n, stretches] of CASES) {
      for (const window of n > 100_000 ? [undefined] : [undefined, 8192 * 4]) {
        test(`${name}${window ? ", in windows of 32 KiB" : ""}`, async () => {
          const g = gpu();
          const host = vectors(n);
          const withTau = kind === "diagonal" || kind === "structured";
          const [total, rows] = await run(g, () => {
            const on = Object.fromEntries(Object.entries(host).map(([key, v]) => [key, fromHost(g, v)])) as {
              [key in keyof typeof host]: NdArray;
            };
            const { tau, ...rest } = on;
            return [on.total, priorGradient(g, kind, withTau ? on : rest, stretches, { window })];
          });
          const expected = [...host.total].map(Number);
          const sums = stretches.map((stretch) => {
            const row = [0, 0, 0, 0];
            for (let i = stretch.offset; i < stretch.offset + stretch.length; i++) {
              const delta = host.theta[i]! - host.mu[i]!;
              const { r, e } = priorReference(kind, delta, stretch, { tau: host.tau[i]!, rest: host.total[i]! });
              expected[i] = host.grad[i]! + r;
              row[0]! += host.grad[i]! ** 2;
              row[1]! += r * r;
              row[2]! += e;
            }
            return row;
          });
          expectClose(total as Float32Array, expected, { rtol: 2e-6, atol: 1e-6 });
          expectClose(rows as Float32Array, sums.flat(), { rtol: 4e-6, atol: 1e-6 });
        });
      }
    }

    test("its r is the derivative of its −log p", () => {
      // −log p/N: half of rΔ where it is quadratic, rΔ of a Laplace; of a Student-t s/(2b) · log(1 + bΔ²).
      const stretch = { scale: 0.7, shape: 2.5 };
      const energy = (delta: number) => {
        const { e } = priorReference(kind, delta, stretch, { tau: 1.7 });
        return { diagonal: e / 2, structured: e / 2, laplace: e, student: (0.7 / 5) * e }[kind];
      };
      for (const delta of [-2, -0.3, 0.01, 0.4, 3]) {
        const h = 1e-5;
        const slope = (energy(delta + h) - energy(delta - h)) / (2 * h);
        expect(Math.abs(slope / priorReference(kind, delta, stretch, { tau: 1.7 }).r - 1)).toBeLessThan(1e-6);
      }
      expect(priorReference(kind, 0, stretch, { tau: 1.7 }).r).toBe(0);
    });
  });
}

test("what is not live is neither read nor written", async () => {
  const g = gpu();
  const n = 8192;
  const host = vectors(n);
  const chunks = new LiveChunks(n);
  chunks.add(512, 520);
  const [total, rows] = await run(g, () => {
    const on = { theta: fromHost(g, host.theta), mu: fromHost(g, host.mu), grad: fromHost(g, host.grad) };
    const all = { ...on, total: fromHost(g, host.total) };
    const stretches = [{ offset: 0, length: n, scale: 1 }];
    return [all.total, priorGradient(g, "laplace", all, stretches, { live: chunks.upload(g) })];
  });
  const seen = (i: number) => i >= 512 && i < 768;
  const expected = [...host.total].map((before, i) =>
    seen(i) ? host.grad[i]! + Math.sign(host.theta[i]! - host.mu[i]!) : before,
  );
  expectClose(total as Float32Array, expected, { rtol: 1e-6, atol: 1e-6 });
  const square = expected.reduce((sum, _, i) => sum + (seen(i) ? host.grad[i]! ** 2 : 0), 0);
  expect(Math.abs((rows as Float32Array)[0]! / square - 1)).toBeLessThan(1e-5);
});

describe("a part of rank k", () => {
  for (const [n, k] of [
    [64, 1],
    [8256, 3],
    [20_032, 6],
    [600_064, 4],
  ] as const) {
    for (const window of n > 100_000 ? [undefined] : [undefined, 8192 * 4]) {
      test(`${n} elements, rank ${k}${window ? ", in windows of 32 KiB" : ""}`, async () => {
        const g = gpu();
        const [x, y, before] = [randn(1, n), randn(2, n), randn(3, n)];
        const U = Array.from({ length: k }, (_, j) => randn(10 + j, n, 0.1));
        const middle = n > 64 ? 64 * Math.floor(n / 128) : 64;
        const stretches = [
          { offset: 0, length: middle, weight: 0.5 },
          ...(n > middle + 64 ? [{ offset: middle + 64, length: n - middle - 64, weight: 2 }] : []),
        ];
        const weightOf = (i: number) =>
          stretches.find(({ offset, length }) => i >= offset && i < offset + length)?.weight ?? 0;
        const [c, alone, written, added] = await run(g, () => {
          const columns = U.map((u) => fromHost(g, u));
          const [X, Y] = [fromHost(g, x), fromHost(g, y)];
          const c = lowRankProject(g, columns, X, Y, stretches, { window });
          const [out, more] = [fromHost(g, before), fromHost(g, before)];
          lowRankCombine(g, columns, c, out, stretches, { window });
          lowRankCombine(g, columns, c, more, stretches, { window, add: true });
          return [c, lowRankProject(g, columns, X, undefined, stretches, { window }), out, more];
        });
        const padded = 4 * Math.ceil(k / 4);
        const project = (v: (i: number) => number) =>
          Array.from({ length: padded }, (_, j) =>
            j < k ? x.reduce((sum, _, i) => sum + weightOf(i) * U[j]![i]! * v(i), 0) : 0,
          );
        const expected = project((i) => x[i]! - y[i]!);
        const spread = 1e-6 * Math.sqrt(n);
        expectClose(c as Float32Array, expected, { rtol: 1e-5, atol: spread });
        expectClose(alone as Float32Array, project((i) => x[i]!), { rtol: 1e-5, atol: spread }); // biome-ignore format: one thought
        const product = (i: number) => U.reduce((sum, u, j) => sum + weightOf(i) * u[i]! * (c as Float32Array)[j]!, 0);
        const size = Math.max(...expected.map(Math.abs));
        const bounds = { rtol: 1e-5, atol: 1e-6 * (1 + size) };
        expectClose(written as Float32Array, [...before].map((b, i) => (weightOf(i) ? product(i) : b)), bounds); // biome-ignore format: one thought
        expectClose(
          added as Float32Array,
          [...before].map((b, i) => b + product(i)),
          bounds,
        );
      });
    }
  }
});

test("squares are added, in windows too", async () => {
  const g = gpu();
  for (const window of [undefined, 1024]) {
    const [x, before] = [randn(1, 8320), randn(2, 8320)];
    const [out] = await run(g, () => {
      const out = fromHost(g, before);
      addSquares(g, fromHost(g, x), out, 0.25, window);
      return [out];
    });
    expectClose(out as Float32Array, [...before].map((b, i) => b + 0.25 * x[i]! ** 2), { rtol: 1e-6, atol: 1e-6 }); // biome-ignore format: one thought
  }
});

test("refuses vectors that do not fit, a stretch outside, a scale that is no number, a τ that is missing", async () => {
  const g = gpu();
  await g.scope(() => {
    const v = fromHost(g, new Float32Array(128));
    const all = { theta: v, mu: v, grad: v, total: v };
    const stretch = { offset: 0, length: 128, scale: 1 };
    expect(() => priorGradient(g, "diagonal", all, [stretch])).toThrow("diagonal without a vector τ");
    expect(() => priorGradient(g, "laplace", { ...all, tau: v }, [stretch])).toThrow("laplace with a vector τ");
    expect(() => priorGradient(g, "laplace", all, [{ ...stretch, length: 192 }])).toThrow("stretch 0 + 192");
    expect(() => priorGradient(g, "laplace", all, [{ ...stretch, scale: Number.NaN }])).toThrow("scale NaN");
    const short = fromHost(g, new Float32Array(64));
    expect(() => addSquares(g, v, short, 1)).toThrow("vectors of 128 and 64");
    return { done: readArray(g, v) };
  }).done;
});
