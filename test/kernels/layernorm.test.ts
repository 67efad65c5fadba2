import { describe, expect, test } from "vitest";
import { fromHost, NdArray } from "../../src/kernels/array.ts";
import {
  addLayerNorm as addLayerNormAs,
  layerNorm as layerNormAs,
  layerNormBackward as layerNormBackwardAs,
  layerNormBackwardReference,
  layerNormReference,
} from "../../src/kernels/layernorm.ts";
import { expectClose, gpuForTests, numericGradient, randn, run } from "./harness.ts";

const gpu = gpuForTests();

/** 9 vectors, so that of a subgroup one lane has a column more; where rows are narrower than a subgroup, "plain" does it. */
const NINE = 36;

const SHAPES = [
  [1, 1],
  [1, 7],
  [3, 64],
  [65, 48],
  [257, 12],
  [131, 5],
  [5, 1000],
  // As numbers, not vectors; and wider than what workgroup memory holds of the forward, and of the backward.
  [2, 1021],
  [2, 2729], // three arrays of it would fit, were each not rounded up to 16 bytes
  [2, 4096],
  [2, 4099],
] as const;

describe.each(["workgroup", "subgroup", "plain"] as const)("as the %s family,", (family) => {
  const layerNorm = (...[g, x, gamma, beta, eps]: Parameters<typeof layerNormAs>) =>
    layerNormAs(g, x, gamma, beta, eps, family);
  const addLayerNorm = (...[g, x, residual, gamma, beta, eps]: Parameters<typeof addLayerNormAs>) =>
    addLayerNormAs(g, x, residual, gamma, beta, eps, family);
  const layerNormBackward = (...[g, dy, x, gamma, stats, into]: Parameters<typeof layerNormBackwardAs>) =>
    layerNormBackwardAs(g, dy, x, gamma, stats, into, family);

  describe("layerNorm", () => {
    for (const [n, c] of SHAPES) {
      test(`[${n}, ${c}] agrees with float64, forward and backward`, async () => {
        const g = gpu();
        const x = randn(1, n * c, 2);
        const gamma = randn(2, c);
        const beta = randn(3, c);
        const dy = randn(4, n * c);
        const [y, dx, dgamma, dbeta] = await run(g, () => {
          const [X, G] = [fromHost(g, x, [n, c]), fromHost(g, gamma)];
          const { y, stats } = layerNorm(g, X, G, fromHost(g, beta), 1e-5);
          const d = layerNormBackward(g, fromHost(g, dy, [n, c]), X, G, stats);
          return [y, d.dx, d.dgamma, d.dbeta];
        });
        expectClose(y ?? [], layerNormReference(x, gamma, beta, 1e-5), { rtol: 1e-5, atol: 1e-5 });
        const expected = layerNormBackwardReference(dy, x, gamma, 1e-5);
        // With C = 1 every gradient is a difference of equal numbers, times rstd = 316.
        expectClose(dx ?? [], expected.dx, { rtol: 1e-5, atol: c === 1 ? 1e-4 : 1e-5 });
        // A sum of n terms of size 1 is off by about √n of f32's 6e-8.
        expectClose(dgamma ?? [], expected.dgamma, { rtol: 1e-5, atol: 1e-6 * Math.sqrt(n) + 2e-6 });
        expectClose(dbeta ?? [], expected.dbeta, { rtol: 1e-5, atol: 1e-6 * Math.sqrt(n) });
      });
    }

    test("a row of more than 2²⁰ numbers is taken to its end", async () => {
      const g = gpu();
      const c = 2 ** 20 + 1;
      const x = new Float32Array(c);
      x[c - 1] = 1000;
      const ones = new Float32Array(c).fill(1);
      const [y, dx] = await run(g, () => {
        const [X, G] = [fromHost(g, x, [1, c]), fromHost(g, ones)];
        const { y, stats } = layerNorm(g, X, G, fromHost(g, new Float32Array(c)), 1e-5);
        return [y, layerNormBackward(g, X, X, G, stats).dx];
      });
      expectClose(y ?? [], layerNormReference(x, ones, new Float32Array(c), 1e-5), { rtol: 1e-4, atol: 1e-5 });
      expectClose(dx ?? [], layerNormBackwardReference(x, x, ones, 1e-5).dx, { rtol: 1e-4, atol: 1e-3 });
    });

    test.each([8, NINE])("many rows of %i: the column sums take more than one stage's block", async (c) => {
      const g = gpu();
      const n = 2500;
      const x = randn(1, n * c);
      const gamma = randn(2, c);
      const dy = randn(4, n * c);
      const body = () => {
        const [X, G] = [fromHost(g, x, [n, c]), fromHost(g, gamma)];
        const { stats } = layerNorm(g, X, G, G, 1e-12);
        const d = layerNormBackward(g, fromHost(g, dy, [n, c]), X, G, stats);
        return [d.dgamma, d.dbeta];
      };
      const first = await run(g, body);
      const expected = layerNormBackwardReference(dy, x, gamma, 1e-12);
      expectClose(first[0] ?? [], expected.dgamma, { rtol: 1e-5, atol: 5e-5 });
      expectClose(first[1] ?? [], expected.dbeta, { rtol: 1e-5, atol: 5e-5 });
      expect(await run(g, body), "the same bits again").toEqual(first);
    });

    test("the reference's gradients are the numeric ones", () => {
      const [n, c] = [3, 7];
      const x = randn(1, n * c);
      const gamma = randn(2, c);
      const beta = randn(3, c);
      const dy = randn(4, n * c);
      const { dx, dgamma, dbeta } = layerNormBackwardReference(dy, x, gamma, 0.1);
      const tolerance = { rtol: 1e-6, atol: 1e-8 };
      expectClose(
        dx,
        numericGradient((at) => layerNormReference(at, gamma, beta, 0.1), x, dy),
        tolerance,
      );
      expectClose(
        dgamma,
        numericGradient((at) => layerNormReference(x, at, beta, 0.1), gamma, dy),
        tolerance,
      );
      expectClose(
        dbeta,
        numericGradient((at) => layerNormReference(x, gamma, at, 0.1), beta, dy),
        tolerance,
      );
    });

    test("a mean a thousand times the deviation costs the input's rounding, no more", async () => {
      const g = gpu();
      for (const c of [384, 383]) {
        const x = randn(5, 3 * c).map((v) => 1000 + v);
        const [ones, zeros] = [new Float32Array(c).fill(1), new Float32Array(c)];
        const [y] = await run(g, () => [
          layerNorm(g, fromHost(g, x, [3, c]), fromHost(g, ones), fromHost(g, zeros), 1e-12).y,
        ]);
        // The mean is known to a few ulps of 1000, 6e-5 each; a one-pass variance would be wrong by tenths.
        expectClose(y ?? [], layerNormReference(x, ones, zeros, 1e-12), { rtol: 4e-4, atol: 4e-4 });
      }
    });

    test("a constant row gives beta; a NaN or an infinity spoils its own row only", async () => {
      const g = gpu();
      for (const c of [NINE, 7]) {
        const x = randn(6, 4 * c).map((v, i) => (i < c ? 3 : v));
        x[2 * c + 1] = Number.NaN;
        x[3 * c + 2] = Number.POSITIVE_INFINITY;
        const [gamma, beta] = [randn(7, c), randn(8, c)];
        const [y] = await run(g, () => [
          layerNorm(g, fromHost(g, x, [4, c]), fromHost(g, gamma), fromHost(g, beta), 1e-5).y,
        ]);
        expectClose((y ?? new Float32Array()).subarray(0, c), beta, { rtol: 1e-6, atol: 1e-6 });
        const bad = Array.from({ length: 4 }, (_, row) => y?.subarray(row * c, row * c + c).every(Number.isNaN));
        expect(bad).toEqual([false, false, true, true]);
        expect(y?.subarray(c, 2 * c).some(Number.isNaN)).toBe(false);
      }
    });

    // Its square is beyond f32, and threads without a column have a mean of 0.
    test.each([7, NINE])("a constant row of %i times 1e20 has no NaN", async (c) => {
      const g = gpu();
      const [gamma, beta] = [randn(7, c), randn(8, c)];
      const [y] = await run(g, () => [
        layerNorm(g, fromHost(g, new Float32Array(c).fill(1e20), [1, c]), fromHost(g, gamma), fromHost(g, beta), 1e-5)
          .y,
      ]);
      expect(y?.some(Number.isNaN)).toBe(false);
    });

    test("gradients of gamma and beta are written or added where they belong, and nothing beside", async () => {
      const g = gpu();
      for (const c of [6, NINE]) {
        const n = 40;
        const x = randn(1, n * c);
        const gamma = randn(2, c);
        const dy = randn(3, n * c);
        const [vector] = await run(g, () => {
          const theta = fromHost(g, new Float32Array(192).fill(5));
          const slot = (i: number) => new NdArray(theta.buffer, 256 * i, [c]);
          const [X, G] = [fromHost(g, x, [n, c]), fromHost(g, gamma)];
          const { stats } = layerNorm(g, X, G, G, 1e-5);
          layerNormBackward(g, fromHost(g, dy, [n, c]), X, G, stats, {
            gamma: { array: slot(0), accumulate: true },
            beta: { array: slot(1), accumulate: false },
          });
          return [theta];
        });
        const { dgamma, dbeta } = layerNormBackwardReference(dy, x, gamma, 1e-5);
        const expected = new Float64Array(192).fill(5);
        expected.set(dgamma.map((v) => v + 5));
        expected.set(dbeta, 64);
        expectClose(vector ?? [], expected, { rtol: 1e-5, atol: 1e-5 });
      }
    });

    test("what lies beyond the last row of a larger buffer has no influence", async () => {
      const g = gpu();
      for (const c of [NINE, 5]) {
        const n = 70;
        const beyond = (seed: number) => {
          const data = new Float32Array(300 * c).fill(Number.NaN);
          data.set(randn(seed, n * c));
          return data;
        };
        const [x, dy, gamma] = [beyond(1), beyond(2), randn(3, c)];
        const [y, dx, dgamma, dbeta] = await run(g, () => {
          const top = (data: Float32Array) => new NdArray(fromHost(g, data).buffer, 0, [n, c]);
          const [X, G] = [top(x), fromHost(g, gamma)];
          const { y, stats } = layerNorm(g, X, G, G, 1e-5);
          const d = layerNormBackward(g, top(dy), X, G, stats);
          return [y, d.dx, d.dgamma, d.dbeta];
        });
        const head = (data: Float32Array) => data.subarray(0, n * c);
        expectClose(y ?? [], layerNormReference(head(x), gamma, gamma, 1e-5), { rtol: 1e-5, atol: 1e-5 });
        const expected = layerNormBackwardReference(head(dy), head(x), gamma, 1e-5);
        expectClose(dx ?? [], expected.dx, { rtol: 1e-5, atol: 1e-4 });
        expectClose(dgamma ?? [], expected.dgamma, { rtol: 1e-5, atol: 2e-5 });
        expectClose(dbeta ?? [], expected.dbeta, { rtol: 1e-5, atol: 2e-5 });
      }
    });

    test("wrong shapes are named", () => {
      const g = gpu();
      g.scope(() => {
        const x = fromHost(g, [1, 2, 3, 4, 5, 6], [2, 3]);
        const [three, two] = [fromHost(g, [1, 2, 3]), fromHost(g, [1, 2])];
        expect(() => layerNorm(g, x, three, two, 1e-5)).toThrow("layerNorm: beta has shape [2], expected [C=3]");
        expect(() => layerNorm(g, three, three, three, 1e-5)).toThrow("layerNorm: x has shape [3], expected [N C]");
      });
    });
  });

  describe("addLayerNorm", () => {
    for (const [n, c] of [
      [1, 1],
      [33, 7],
      [70, NINE],
      [65, 384],
    ] as const) {
      test(`[${n}, ${c}] is the sum, then layerNorm`, async () => {
        const g = gpu();
        const [x, r] = [randn(1, n * c), randn(2, n * c)];
        const [gamma, beta] = [randn(3, c), randn(4, c)];
        const [y, sum, stats, plainStats] = await run(g, () => {
          const [G, B] = [fromHost(g, gamma), fromHost(g, beta)];
          const result = addLayerNorm(g, fromHost(g, x, [n, c]), fromHost(g, r, [n, c]), G, B, 1e-12);
          return [result.y, result.sum, result.stats, layerNorm(g, result.sum, G, B, 1e-12).stats];
        });
        const expected = x.map((v, i) => v + (r[i] ?? 0));
        expect(sum).toEqual(expected);
        if (c > 1) expectClose(y ?? [], layerNormReference(expected, gamma, beta, 1e-12), { rtol: 1e-5, atol: 1e-5 });
        expect(stats).toEqual(plainStats);
      });
    }
  });
});
