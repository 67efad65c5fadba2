import { describe, expect, test } from "vitest";
import { empty, fromHost, type NdArray, readArray, readIndices } from "../../src/kernels/array.ts";
import { erf } from "../../src/kernels/erf.ts";
import {
  type LangevinOptions,
  langevinReference,
  langevinUpdate,
  normal,
  normalWord,
} from "../../src/kernels/langevin.ts";
import { createStatus, STATUS, vectorTerms } from "../../src/kernels/terms.ts";
import { Stream } from "../../src/random.ts";
import { expectClose, gpuForTests, randn } from "./harness.ts";

const gpu = gpuForTests();
const KEY = [0x12345678, 0x9abcdef0] as const;

/** z of a random word in float64: P(|Z| > |z|) = (⌊word/2⌋ + ½)/2³¹, by bisection on erf; the lowest bit is the sign. */
function quantile(word: number): number {
  const v = ((word >>> 1) + 0.5) / 2 ** 31;
  let [low, high] = [0, 8];
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (1 - erf(middle / Math.SQRT2) > v) low = middle;
    else high = middle;
  }
  return (word & 1 ? -1 : 1) * low;
}

describe("normals", () => {
  test("the map from words follows the quantile function, tails and middle included", async () => {
    const stream = new Stream(1, "words");
    const edges = [0, 1, 2, 3, 4, 7, 100, 5001, 2 ** 31, 2 ** 32 - 2, 2 ** 32 - 1, 2 ** 30, 41_000_001, 29_000_000];
    const words = Uint32Array.from({ length: 4096 }, (_, i) => edges[i] ?? Math.floor(stream.uniform() * 2 ** 32));
    const g = gpu();
    const { read } = g.scope(() => {
      const mapped = empty(g, [words.length]);
      g.dispatch({
        op: "langevin.quantiles",
        shader: "langevin",
        entry: "quantiles",
        bindings: [fromHost(g, words), mapped],
        params: [words.length, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        grid: [words.length / 256, 1, 1],
      });
      return { read: readArray(g, mapped) };
    });
    const found = await read;
    const expected = Array.from(words, quantile);
    const within = (limit: (z: number) => boolean) => (_: number, i: number) => limit(Math.abs(expected[i] ?? 0));
    const body = within((z) => z < 5.4);
    const tail = within((z) => z >= 5.4);
    // Single precision: log is within 2⁻²¹ of the truth between ½ and 2, where w is near 0, and so is z.
    expectClose(found.filter(body), expected.filter(body), { rtol: 3e-6, atol: 2e-6 });
    // The polynomial was fitted for the x that single precision tells from 1.
    expect(expected.filter(tail).length).toBeGreaterThan(4);
    expectClose(found.filter(tail), expected.filter(tail), { rtol: 0, atol: 3e-3 });
  });

  test("have the moments of a standard normal, and the keys and elements that the host says", async () => {
    const g = gpu();
    const n = 200_003;
    const { reads } = g.scope(() => ({
      reads: Promise.all(
        [normal(g, [n], KEY), normal(g, [n], KEY, 3), normal(g, [n], [1, 2])].map((y) => readArray(g, y)),
      ),
    }));
    const [z, scaled, other] = await reads;
    const moment = (k: number) => z!.reduce((sum, x) => sum + x ** k, 0) / n;
    // Five standard errors: those of z, z², z³, z⁴ are √(1, 2, 15, 96)/√n.
    for (const [k, mean, variance] of [
      [1, 0, 1],
      [2, 1, 2],
      [3, 0, 15],
      [4, 3, 96],
    ] as const) {
      expect(Math.abs(moment(k) - mean)).toBeLessThan(5 * Math.sqrt(variance / n));
    }
    expectClose(z!.slice(1000, 1100), Array.from({ length: 100 }, (_, i) => quantile(normalWord(KEY, 1000 + i))), { rtol: 3e-6, atol: 2e-6 }); // biome-ignore format: one comparison
    expectClose(
      scaled!,
      z!.map((x) => 3 * x),
      { rtol: 1e-6, atol: 0 },
    );
    expect(other).not.toEqual(z);
  });
});

const N = 1024 + 128;
/** A slice of 600 (padded to 640), one of 2 (padded to 64), one of 448 without padding. */
const STRETCH = { offset: 0, length: N, priorScale: 0.7 };
const REAL = [
  { offset: 0, length: 600 },
  { offset: 640, length: 2 },
  { offset: 704, length: 448 },
];
const padded = (seed: number) =>
  randn(seed, N).map((x, i) => (REAL.some((r) => i >= r.offset && i < r.offset + r.length) ? x : 0));

/** Steps on the device and in float64, with a new gradient and key each. */
async function both(options: Omit<LangevinOptions, "key" | "step" | "last" | "real">, velocity: boolean, steps = 3) {
  const g = gpu();
  const [theta, mu] = [padded(1), padded(2)];
  const grads = Array.from({ length: steps }, (_, s) => padded(10 + s));
  const key = (s: number) => [s + 5, 77] as const;
  const { reads } = g.scope(() => {
    const on = { theta: fromHost(g, theta), mu: fromHost(g, mu) };
    const u = velocity ? fromHost(g, new Float32Array(N)) : undefined;
    const status = createStatus(g);
    for (const [s, grad] of grads.entries()) {
      const vectors = { ...on, grad: fromHost(g, grad), velocity: u };
      langevinUpdate(g, vectors, STRETCH, status, { ...options, key: key(s), step: s + 1, last: true, real: REAL });
    }
    const arrays: NdArray[] = [on.theta, ...(u ? [u] : [])];
    return { reads: Promise.all([Promise.all(arrays.map((a) => readArray(g, a))), readIndices(g, status)]) };
  });
  const [[found, speed], status] = await reads;
  const state = { theta: Float64Array.from(theta), velocity: velocity ? new Float64Array(N) : undefined };
  for (const [s, grad] of grads.entries()) {
    const z = (i: number) => quantile(normalWord(key(s), i));
    const all = { ...options, key: key(s), step: 1, last: true, real: REAL };
    langevinReference(state, grad, mu, STRETCH, all, z);
  }
  return { found: found!, speed, state, status };
}

describe("steps follow float64", () => {
  for (const [name, options, velocity] of [
    ["SGLD", { lr: 0.05, temperature: 0.3 }, false],
    ["SGLD in windows", { lr: 0.05, temperature: 0.3, window: 256 }, false],
    ["SGLD at temperature 0: gradient descent", { lr: 0.05, temperature: 0 }, false],
    ["SGHMC", { lr: 0.05, temperature: 0.3, friction: 0.1 }, true],
    ["SGHMC with a resampled velocity", { lr: 0.05, temperature: 0.3, friction: 0.1, resample: true }, true],
    [
      "SGHMC at temperature 0, whose velocity goes on",
      { lr: 0.05, temperature: 0, friction: 0.1, resample: true },
      true,
    ],
    ["SGHMC with friction 1, which is SGLD", { lr: 0.05, temperature: 0.3, friction: 1 }, true],
  ] as const) {
    test(name, async () => {
      const { found, speed, state, status } = await both(options, velocity);
      expectClose(found, state.theta, { rtol: 2e-6, atol: 3e-6 });
      if (velocity) expectClose(speed ?? [], state.velocity ?? [], { rtol: 2e-6, atol: 3e-6 });
      expect(status[STATUS.step]).toBe(3);
      const padding = found.filter((_, i) => !REAL.some((r) => i >= r.offset && i < r.offset + r.length));
      expect(padding.every((x) => x === 0)).toBe(true);
    });
  }
});

test("after a gradient that was not finite nothing moves", async () => {
  const g = gpu();
  const theta = padded(1);
  const { reads } = g.scope(() => {
    const on = { theta: fromHost(g, theta), mu: fromHost(g, theta), velocity: fromHost(g, new Float32Array(N)) };
    const status = createStatus(g);
    const bad = padded(3);
    bad[5] = Number.NaN;
    vectorTerms(g, { ...on, grad: fromHost(g, bad) }, [STRETCH], status);
    const options = { lr: 0.1, temperature: 1, friction: 0.5, key: KEY, step: 1, last: true, real: REAL };
    langevinUpdate(g, { ...on, grad: fromHost(g, padded(4)) }, STRETCH, status, options);
    langevinUpdate(g, { theta: on.theta, mu: on.mu, grad: fromHost(g, padded(4)) }, STRETCH, status, options);
    return { reads: Promise.all([readArray(g, on.theta), readArray(g, on.velocity), readIndices(g, status)]) };
  });
  const [after, velocity, status] = await reads;
  expect(after).toEqual(theta);
  expect(velocity.every((x) => x === 0)).toBe(true);
  expect(status[STATUS.step]).toBe(0);
});

test("a step of 0, a negative temperature, no friction, numbers outside the stretch", () => {
  const g = gpu();
  g.scope(() => {
    const v = fromHost(g, new Float32Array(64));
    const on = { theta: v, mu: fromHost(g, new Float32Array(64)), grad: fromHost(g, new Float32Array(64)) };
    const stretch = { offset: 0, length: 64, priorScale: 0 };
    const call = (more: Partial<LangevinOptions>) => () =>
      langevinUpdate(g, on, stretch, createStatus(g), { lr: 1, temperature: 1, key: KEY, step: 1, last: true, real: [stretch], ...more }); // biome-ignore format: one call
    expect(call({ lr: 0 })).toThrow("langevinUpdate: a step of 0");
    expect(call({ temperature: -1 })).toThrow("temperature -1");
    expect(call({ friction: 0 })).toThrow("friction 0");
    expect(call({ real: [{ offset: 0, length: 65 }] })).toThrow("numbers 0 + 65 are not in the stretch");
    expect(call({})).not.toThrow();
  });
});
