import { describe, expect, test } from "vitest";
import { fromHost, type NdArray, readArray, readIndices } from "../../src/kernels/array.ts";
import {
  createStatus,
  STATUS,
  type Stretch,
  type TermOptions,
  vectorTerms,
  vectorTermsReference,
} from "../../src/kernels/terms.ts";
import { expectClose, gpuForTests, randn } from "./harness.ts";

const gpu = gpuForTests();

interface Host {
  theta: Float32Array;
  grad: Float32Array;
  mu: Float32Array;
}

function vectors(n: number): Host {
  const mu = randn(1, n, 0.05);
  const step = randn(2, n, 0.01);
  return { theta: mu.map((value, i) => value + (step[i] ?? 0)), grad: randn(3, n, 0.1), mu };
}

/** Terms and status words, as the host sees them. */
async function terms(host: Host, stretches: Stretch[], options: TermOptions = {}) {
  const g = gpu();
  const reads = g.scope(() => {
    const on = { theta: fromHost(g, host.theta), grad: fromHost(g, host.grad), mu: fromHost(g, host.mu) };
    const status = createStatus(g);
    const rows: NdArray = vectorTerms(g, on, stretches, status, options);
    return { rows: readArray(g, rows), status: readIndices(g, status) };
  });
  const status = await reads.status;
  const floats = new Float32Array(status.buffer);
  return {
    rows: await reads.rows,
    bad: status[STATUS.bad],
    factor: floats[STATUS.clipFactor] ?? Number.NaN,
    square: floats[STATUS.squaredNorm] ?? Number.NaN,
    step: status[STATUS.step],
  };
}

// A workgroup adds 8,192; 524,288 are finished without folding.
const STRETCHES: [string, number, Stretch[]][] = [
  ["one, all of 64", 64, [{ offset: 0, length: 64, priorScale: 2 }]],
  ["one inside", 320, [{ offset: 128, length: 64, priorScale: 0.5 }]],
  [
    "three with holes between",
    30_016,
    [
      { offset: 64, length: 8192, priorScale: 100 },
      { offset: 8320, length: 8256, priorScale: 0 },
      { offset: 20_032, length: 9984, priorScale: 0.01 },
    ],
  ],
  [
    "one that folds",
    700_032,
    [
      { offset: 0, length: 640_064, priorScale: 3.9 },
      { offset: 640_064, length: 59_968, priorScale: 1 / 256 },
    ],
  ],
];

for (const [name, n, stretches] of STRETCHES) {
  for (const window of [undefined, 8192 * 4]) {
    test(`stretches: ${name}${window ? ", in windows of 32 KiB" : ""}`, async () => {
      const host = vectors(n);
      const expected = vectorTermsReference(host, stretches);
      const free = await terms(host, stretches, { window });
      expectClose(free.rows, expected.rows.flatMap((row) => [...row, 0]), { rtol: 2e-6, atol: 2e-6 * Math.sqrt(n) * 1e-3 }); // biome-ignore format: one thought
      expectClose([Math.sqrt(free.square)], [expected.norm], { rtol: 2e-6, atol: 0 });
      expect(free).toMatchObject({ bad: 0, factor: 1, step: 0 });
      const clip = 0.3 * expected.norm;
      const clipped = await terms(host, stretches, { clip, window });
      expectClose([clipped.factor], [vectorTermsReference(host, stretches, clip).factor], { rtol: 2e-6, atol: 0 });
      expect((await terms(host, stretches, { clip: 1.5 * expected.norm, window })).factor).toBe(1);
    });
  }
}

describe("the verdict", () => {
  const stretch = { offset: 0, length: 8256, priorScale: 1 };
  for (const [name, value] of [
    ["NaN", Number.NaN],
    ["+∞", Number.POSITIVE_INFINITY],
    ["−∞", Number.NEGATIVE_INFINITY],
  ] as const) {
    for (const at of [0, 3, 4100, 8255]) {
      test(`${name} at ${at} is seen`, async () => {
        const host = vectors(8320);
        host.grad[at] = value;
        expect((await terms(host, [stretch])).bad).toBe(1);
      });
    }
  }

  test("it is sticky: a later finite gradient does not clear it", async () => {
    const g = gpu();
    const host = vectors(8320);
    const bad = host.grad.slice();
    bad[5000] = Number.NaN;
    const words = await g.scope(() => {
      const [theta, mu, status] = [fromHost(g, host.theta), fromHost(g, host.mu), createStatus(g)];
      vectorTerms(g, { theta, mu, grad: fromHost(g, bad) }, [stretch], status);
      vectorTerms(g, { theta, mu, grad: fromHost(g, host.grad) }, [stretch], status);
      return { read: readIndices(g, status) };
    }).read;
    expect(words[STATUS.bad]).toBe(1);
  });

  test("what is in no stretch is not looked at", async () => {
    const host = vectors(8320);
    host.grad[8300] = Number.NaN;
    expect((await terms(host, [stretch])).bad).toBe(0);
  });

  test("finite numbers, however large or small, pass one by one, and a norm that overflows does not", async () => {
    const host = vectors(8320);
    host.grad.fill(0);
    host.grad[9] = 1e-42;
    host.grad[10] = 1.8e19;
    expect((await terms(host, [stretch])).bad).toBe(0);
    host.grad[10] = -3e38;
    expect((await terms(host, [stretch])).bad).toBe(1);
  });

  test("a θ that is not finite is seen through the norm where there is a prior", async () => {
    const host = vectors(8320);
    host.theta[7] = Number.POSITIVE_INFINITY;
    expect((await terms(host, [stretch])).bad).toBe(1);
    expect((await terms(host, [{ ...stretch, priorScale: 0 }])).bad).toBe(0);
  });
});

test("at a mode, where g = −sΔ, the squared norm is 0 up to rounding and never negative", async () => {
  for (const scale of [7, 0.3, 11, 1.7]) {
    const host = vectors(8320);
    host.grad = host.theta.map((value, i) => -scale * Math.fround(value - (host.mu[i] ?? 0)));
    const found = await terms(host, [{ offset: 0, length: 8320, priorScale: scale }], { clip: 1 });
    expect(found).toMatchObject({ bad: 0, factor: 1 });
    expect(found.square).toBeGreaterThanOrEqual(0);
    expect(found.square).toBeLessThan(1e-4);
  }
});

test("each call begins a new norm", async () => {
  const g = gpu();
  const host = vectors(8320);
  const stretches = [
    { offset: 0, length: 4096, priorScale: 1 },
    { offset: 4096, length: 4160, priorScale: 0 },
  ];
  const reads = g.scope(() => {
    const on = { theta: fromHost(g, host.theta), grad: fromHost(g, host.grad), mu: fromHost(g, host.mu) };
    const status = createStatus(g);
    return [1, 2].map(() => {
      vectorTerms(g, on, stretches, status, { clip: 0.1 });
      return readIndices(g, status);
    });
  });
  const [first, second] = await Promise.all(reads);
  expect(second).toEqual(first);
  expect(first?.[STATUS.clipFactor]).toBeGreaterThan(0);
});

test("a stretch outside the vector, off the grid, with a negative or infinite precision; unequal vectors", () => {
  const g = gpu();
  g.scope(() => {
    const v = fromHost(g, new Float32Array(128));
    const status = createStatus(g);
    const all = { theta: v, grad: v, mu: v };
    const call = (stretch: Stretch, vectors = all) => vectorTerms(g, vectors, [stretch], status);
    expect(() => call({ offset: 64, length: 128, priorScale: 0 })).toThrow(
      "vectorTerms: stretch 64 + 128 is not within 128",
    );
    expect(() => call({ offset: 32, length: 64, priorScale: 0 })).toThrow("stretch 32 + 64");
    expect(() => call({ offset: 0, length: 64, priorScale: -1 })).toThrow("prior scale τ/N = -1");
    expect(() => call({ offset: 0, length: 64, priorScale: Number.POSITIVE_INFINITY })).toThrow(
      "a frozen group is in no stretch",
    );
    expect(() =>
      call({ offset: 0, length: 64, priorScale: 0 }, { ...all, mu: fromHost(g, new Float32Array(64)) }),
    ).toThrow("vectorTerms: mu has 64 elements");
    expect(() => vectorTerms(g, all, [], status, { clip: 0 })).toThrow("clip 0 is not > 0");
  });
});
