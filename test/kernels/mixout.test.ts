/** @file Mixout's weights and gradient against the definition, bit for bit where nothing is rounded. */
import { describe, expect, test } from "vitest";
import { fromHost } from "../../src/kernels/array.ts";
import { mixoutFactor, mixoutGradient, mixoutWeights } from "../../src/kernels/mixout.ts";
import { streamKey } from "../../src/random.ts";
import { expectClose, gpuForTests, randn, run } from "./harness.ts";

const gpu = gpuForTests();

async function mixed(n: number, stretches: readonly { offset: number; length: number }[], p: number, window?: number) {
  const g = gpu();
  const [theta, mu, grad] = [randn(1, n), randn(2, n), randn(3, n)];
  for (let i = 0; i < n; i += 7) theta[i] = mu[i] as number;
  const options = { p, key: streamKey(4, "mixout", n), window };
  const [weights, gradient] = await run(g, () => {
    const [t, m, d] = [fromHost(g, theta), fromHost(g, mu), fromHost(g, grad)];
    mixoutWeights(g, t, m, stretches, options);
    mixoutGradient(g, d, stretches, options);
    return [t, d];
  });
  return { theta, mu, grad, options, weights: weights as Float32Array, gradient: gradient as Float32Array };
}

describe("the definition", () => {
  for (const [n, stretches] of [
    [64, [{ offset: 0, length: 61 }]],
    [
      8320,
      [
        { offset: 64, length: 4100 },
        { offset: 4224, length: 4096 },
      ],
    ],
  ] as const) {
    // biome-ignore format: a table
    for (const p of [0, 0.1, 0.9]) {
      for (const window of [undefined, 1024]) {
        test(`${n} elements, p = ${p}${window ? ", in windows" : ""}`, async () => {
          const { theta, mu, grad, options, weights, gradient } = await mixed(n, stretches, p, window);
          // A vec4 is the least that a launch touches; what lies behind a stretch up to it is padding in θ.
          const covered = (i: number) => stretches.some(({ offset, length }) => i >= offset && i < offset + Math.ceil(length / 4) * 4); // biome-ignore format: one line
          const factor = (i: number) => (covered(i) ? mixoutFactor(i, options) : 1);
          const expected = [...theta].map((t, i) => (covered(i) ? mu[i]! + factor(i) * (t - mu[i]!) : t));
          expectClose(weights, expected, { rtol: 1e-6, atol: 1e-6 });
          expectClose(gradient, [...grad].map((x, i) => x * factor(i)), { rtol: 2e-7, atol: 0 }); // biome-ignore format: one line
          // θ = μ stays, and so does what is in no stretch.
          for (let i = 0; i < n; i++) if (i % 7 === 0 || !covered(i)) expect(weights[i]).toBe(theta[i]);
          const share = [...weights.keys()].filter((i) => covered(i) && factor(i) === 0).length / [...weights.keys()].filter(covered).length; // biome-ignore format: one line
          expect(Math.abs(share - p)).toBeLessThan(4.5 * Math.sqrt((p * (1 - p)) / n) + 1e-9);
        });
      }
    }
  }
});

test("refuses p = 1 and a stretch outside", () => {
  const g = gpu();
  g.scope(() => {
    const v = fromHost(g, new Float32Array(128));
    const options = { p: 0.5, key: [1, 2] } as const;
    expect(() => mixoutWeights(g, v, v, [{ offset: 0, length: 64 }], { ...options, p: 1 })).toThrow("p is 1");
    expect(() => mixoutGradient(g, v, [{ offset: 64, length: 128 }], options)).toThrow("stretch 64 + 128");
    expect(() => mixoutGradient(g, v, [{ offset: 4, length: 8 }], options)).toThrow("stretch 4 + 8");
  });
});
