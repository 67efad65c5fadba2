import { describe, expect, test } from "vitest";
import type { Gpu } from "../../src/gpu/index.ts";
import { fromHost, type NdArray, readArray, readIndices } from "../../src/kernels/array.ts";
import { createStatus, STATUS, type Stretch, vectorTerms, vectorTermsReference } from "../../src/kernels/terms.ts";
import {
  type AdamOptions,
  type AdamVectors,
  adamReference,
  adamUpdate,
  sgdReference,
  sgdUpdate,
} from "../../src/kernels/update.ts";
import { expectClose, gpuForTests, randn } from "./harness.ts";

const gpu = gpuForTests();

const ADAM: AdamOptions = { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, step: 1, last: true, decay: 0 };

/** Length, stretches, and the elements in none stand for frozen groups. */
const LAYOUTS: [string, number, Stretch[]][] = [
  ["64 elements", 64, [{ offset: 0, length: 64, priorScale: 0.5 }]],
  [
    "two stretches around a frozen one",
    12_544,
    [
      { offset: 64, length: 8256, priorScale: 4 },
      { offset: 8448, length: 4096, priorScale: 0 },
    ],
  ],
];

const gradients = (n: number, step: number) => randn(100 + step, n, 10 ** -(step % 4));

/** θ, μ, m, v as float64 twins of what is on the device. */
function start(n: number) {
  const theta = randn(1, n, 0.1);
  return {
    theta,
    mu: randn(2, n, 0.1),
    twin: { theta: Float64Array.from(theta), m: new Float64Array(n), v: new Float64Array(n) },
  };
}

for (const [name, n, stretches] of LAYOUTS) {
  for (const [kind, decay, towards, clip, window] of [
    ["Adam", 0, undefined, undefined, undefined],
    ["AdamW to the mean, clipped, in windows of 32 KiB", 0.1, "mean", 0.7, 32_768],
    ["AdamW to zero", 0.1, "zero", undefined, undefined],
  ] as const) {
    test(`ten steps of ${kind} on ${name} follow float64`, async () => {
      const g = gpu();
      const { theta, mu, twin } = start(n);
      const on = g.scope(() => {
        const on = { theta: fromHost(g, theta), mu: fromHost(g, mu), m: fromHost(g, new Float32Array(n)), v: fromHost(g, new Float32Array(n)) }; // biome-ignore format: four alike
        const status = createStatus(g);
        for (let step = 1; step <= 10; step++) {
          const grad = fromHost(g, gradients(n, step));
          vectorTerms(g, { ...on, grad }, stretches, status, { clip, window });
          for (const stretch of stretches)
            adamUpdate(g, { ...on, grad }, stretch, status, { ...ADAM, step, decay, towards, window });
        }
        return { promise: read(g, { ...on, status }) };
      }).promise;
      for (let step = 1; step <= 10; step++) {
        const grad = gradients(n, step);
        const { factor } = vectorTermsReference({ theta: twin.theta, grad, mu }, stretches, clip);
        if (clip !== undefined && step === 1) expect(factor).toBeLessThan(1);
        for (const stretch of stretches)
          adamReference(twin, grad, mu, stretch, factor, { ...ADAM, step, decay, towards });
      }
      const found = await on;
      // θ moves by lr a step: its error is judged against that, not against θ.
      expectClose(found.theta, twin.theta, { rtol: 2e-7, atol: 2e-7 });
      expectClose(found.m, twin.m, { rtol: 1e-5, atol: 1e-7 });
      expectClose(found.v, twin.v, { rtol: 1e-5, atol: 1e-12 });
      expect(found.status[STATUS.step]).toBe(10);
      const outside = Array.from({ length: n }, (_, i) => i).filter((i) => !stretches.some((r) => i >= r.offset && i < r.offset + r.length)); // biome-ignore format: one thought
      expect(outside.map((i) => found.theta[i])).toEqual(outside.map((i) => theta[i]));
    });
  }
}

async function read(g: Gpu, on: { theta: NdArray; m: NdArray; v: NdArray; status: NdArray }) {
  const reads = [readArray(g, on.theta), readArray(g, on.m), readArray(g, on.v)] as const;
  const status = readIndices(g, on.status);
  const [theta, m, v] = await Promise.all(reads);
  return { theta, m, v, status: await status };
}

describe("Adam", () => {
  test("the first step is lr · sign of the gradient, the prior's pull included", async () => {
    const g = gpu();
    const grad = randn(5, 64, 1e-3);
    const mu = new Float32Array(64);
    const theta = randn(6, 64);
    const stretch = { offset: 0, length: 64, priorScale: 0.01 };
    const found = await g.scope(() => {
      const zeros = () => fromHost(g, new Float32Array(64));
      const on = { theta: fromHost(g, theta), mu: fromHost(g, mu), grad: fromHost(g, grad), m: zeros(), v: zeros() };
      const status = createStatus(g);
      adamUpdate(g, on, stretch, status, ADAM);
      return { promise: read(g, { ...on, status }) };
    }).promise;
    const expected = theta.map((value, i) => value - ADAM.lr * Math.sign((grad[i] ?? 0) + 0.01 * value));
    expectClose(found.theta, expected, { rtol: 2e-7, atol: 2e-7 });
    expect(new Set(expected.map((e, i) => Math.sign(e - (theta[i] ?? 0)))).size).toBe(2);
  });

  test("after a NaN nothing changes, bit for bit, nor in later steps with finite gradients", async () => {
    const g = gpu();
    const n = 8256;
    const { theta, mu } = start(n);
    const m = randn(7, n);
    const v = randn(8, n).map(Math.abs);
    const stretch = { offset: 0, length: n, priorScale: 1 };
    const found = await g.scope(() => {
      const on = { theta: fromHost(g, theta), mu: fromHost(g, mu), m: fromHost(g, m), v: fromHost(g, v) };
      const status = createStatus(g);
      for (let step = 1; step <= 3; step++) {
        const host = gradients(n, step);
        if (step === 1) host[8000] = Number.NaN;
        const grad = fromHost(g, host);
        vectorTerms(g, { ...on, grad }, [stretch], status);
        adamUpdate(g, { ...on, grad }, stretch, status, { ...ADAM, step });
      }
      return { promise: read(g, { ...on, status }) };
    }).promise;
    expect(found.theta).toEqual(theta);
    expect(found.m).toEqual(m);
    expect(found.v).toEqual(v);
    expect([found.status[STATUS.bad], found.status[STATUS.step]]).toEqual([1, 0]);
  });

  test("only the step's last update counts the step", async () => {
    const g = gpu();
    const at = (offset: number) => ({ offset, length: 64, priorScale: 0 });
    const counter = (updates: (on: AdamVectors, status: NdArray) => void) => {
      const zeros = () => fromHost(g, new Float32Array(128));
      const on = { theta: zeros(), mu: zeros(), grad: zeros(), m: zeros(), v: zeros() };
      const status = createStatus(g);
      updates(on, status);
      return readIndices(g, status);
    };
    const { found } = g.scope(() => {
      // The second stretch's update is missing, as when its dispatch fails.
      const half = counter((on, status) => {
        adamUpdate(g, on, at(0), status, { ...ADAM, last: false });
        sgdUpdate(g, on, at(0), status, { lr: 1, momentum: 0, step: 1, decay: 0.1, last: false });
      });
      const whole = counter((on, status) => {
        adamUpdate(g, on, at(0), status, { ...ADAM, last: false });
        adamUpdate(g, on, at(64), status, { ...ADAM, last: true });
      });
      return { found: Promise.all([half, whole]) };
    });
    expect((await found).map((status) => status[STATUS.step])).toEqual([0, 1]);
  });

  test("padding stays 0 under prior, decay and clipping", async () => {
    const g = gpu();
    const stretch = { offset: 0, length: 128, priorScale: 3 };
    const padded = (seed: number) => randn(seed, 128).map((value, i) => (i % 64 < 10 ? value : 0));
    const found = await g.scope(() => {
      const zeros = () => fromHost(g, new Float32Array(128));
      const on = { theta: fromHost(g, padded(1)), mu: fromHost(g, padded(2)), grad: fromHost(g, padded(3)), m: zeros(), v: zeros() }; // biome-ignore format: five alike
      const status = createStatus(g);
      vectorTerms(g, on, [stretch], status, { clip: 0.1 });
      adamUpdate(g, on, stretch, status, { ...ADAM, decay: 0.1 });
      return { promise: read(g, { ...on, status }) };
    }).promise;
    for (const array of [found.theta, found.m, found.v]) {
      expect([...array].filter((_, i) => i % 64 >= 10).every((value) => value === 0)).toBe(true);
      expect(array[0]).not.toBe(0);
    }
  });

  test("step 0, eps 0 and a window without room are refused", () => {
    const g = gpu();
    g.scope(() => {
      const z = () => fromHost(g, new Float32Array(64));
      const on = { theta: z(), grad: z(), mu: z(), m: z(), v: z() };
      const stretch = { offset: 0, length: 64, priorScale: 0 };
      const status = createStatus(g);
      expect(() => adamUpdate(g, on, stretch, status, { ...ADAM, step: 0 })).toThrow(
        "adamUpdate: step 0; steps are counted from 1",
      );
      expect(() => adamUpdate(g, on, stretch, status, { ...ADAM, eps: 0 })).toThrow("eps 0 is not > 0");
      expect(() => adamUpdate(g, on, stretch, status, { ...ADAM, window: 255 })).toThrow("below one block");
      expect(() => sgdUpdate(g, on, stretch, status, { lr: 1, momentum: 0.9, step: 1, last: true, decay: 0 })).toThrow(
        "needs a momentum vector",
      );
    });
  });
});

describe("the fixed point on a quadratic", () => {
  // Mean NLL ½ h (θ − a)², prior ½ s (θ − μ)²: MAP is (h a + s μ)/(h + s). Every element is a problem of its own.
  const n = 64;
  const a = randn(20, n);
  const mu = randn(21, n);
  const h = randn(22, n).map((z) => 0.5 + 0.2 * z * z);
  const map = (s: number) => a.map((value, i) => ((h[i] ?? 0) * value + s * (mu[i] ?? 0)) / ((h[i] ?? 0) + s));

  /** θ after many steps; the gradient of the NLL is made on the host from the θ read back. */
  async function descend(update: (g: Gpu, theta: NdArray, center: NdArray, grad: NdArray, step: number) => void) {
    const g = gpu();
    const theta = fromHost(g, mu);
    const center = fromHost(g, mu);
    let at: Float32Array = mu;
    for (let step = 1; step <= 80; step++) {
      const grad = at.map((value, i) => (h[i] ?? 0) * (value - (a[i] ?? 0)));
      at = await g.scope(() => {
        update(g, theta, center, fromHost(g, grad), step);
        return { read: readArray(g, theta) };
      }).read;
    }
    for (const array of [theta, center]) g.release(array.buffer);
    return at;
  }

  test("of SGD is MAP for each τ/N, the MLE at 0", async () => {
    for (const s of [0, 0.8, 5]) {
      const status = createStatus(gpu());
      const stretch = { offset: 0, length: n, priorScale: s };
      const end = await descend((g, theta, center, grad, step) =>
        sgdUpdate(g, { theta, mu: center, grad }, stretch, status, {
          lr: 0.6 / (1 + s),
          momentum: 0,
          step,
          last: true,
          decay: 0,
        }),
      );
      gpu().release(status.buffer);
      expectClose(end, map(s), { rtol: 1e-5, atol: 1e-5 });
    }
  });

  test("of Adam is MAP with the prior inside, and not with the same strength as decoupled decay", async () => {
    const ends: Float32Array[] = [];
    for (const [priorScale, decay] of [
      [0.8, 0],
      [0, 0.8],
    ] as const) {
      const g = gpu();
      const stretch = { offset: 0, length: n, priorScale };
      const [status, m, v] = [createStatus(g), fromHost(g, new Float32Array(n)), fromHost(g, new Float32Array(n))];
      const end = await descend(
        (_, theta, center, grad, step) =>
        // Betas for a noiseless problem, a rate that dies out.
        adamUpdate(g, { theta, mu: center, grad, m, v }, stretch, status, { lr: 0.5 * 0.88 ** step, beta1: 0.5, beta2: 0.9, eps: 1e-8, step, last: true, decay }), // biome-ignore format: one call
      );
      ends.push(end);
      for (const array of [status, m, v]) g.release(array.buffer);
    }
    expectClose(ends[0] ?? [], map(0.8), { rtol: 1e-2, atol: 1e-2 });
    const miss = Math.max(...(ends[1] ?? []).map((value, i) => Math.abs(value - (map(0.8)[i] ?? 0))));
    expect(miss).toBeGreaterThan(0.1);
  });
});

test("ten steps of SGD with momentum and decay, and without, follow float64", async () => {
  const g = gpu();
  const [, n, stretches] = LAYOUTS[1] as (typeof LAYOUTS)[number];
  for (const momentum of [0, 0.9]) {
    const { theta, mu } = start(n);
    const twin = { theta: Float64Array.from(theta), momentum: new Float64Array(n) };
    const options = { lr: 0.01, momentum, step: 1, last: true, decay: 0.05, window: 32_768 };
    const found = await g.scope(() => {
      const on = {
        theta: fromHost(g, theta),
        mu: fromHost(g, mu),
        ...(momentum ? { momentum: fromHost(g, new Float32Array(n)) } : {}),
      };
      const status = createStatus(g);
      for (let step = 1; step <= 10; step++) {
        const grad = fromHost(g, gradients(n, step));
        vectorTerms(g, { theta: on.theta, mu: on.mu, grad }, stretches, status, { clip: 20 });
        for (const stretch of stretches) sgdUpdate(g, { ...on, grad }, stretch, status, { ...options, step });
      }
      return { theta: readArray(g, on.theta), status: readIndices(g, status) };
    });
    for (let step = 1; step <= 10; step++) {
      const grad = gradients(n, step);
      const { factor } = vectorTermsReference({ theta: twin.theta, grad, mu }, stretches, 20);
      for (const stretch of stretches) sgdReference(twin, grad, mu, stretch, factor, { ...options, step });
    }
    expectClose(await found.theta, twin.theta, { rtol: 1e-6, atol: 1e-6 });
    expect((await found.status)[STATUS.step]).toBe(10);
  }
});
