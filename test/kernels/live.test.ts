/** @file Passes over θ that leave out what is at rest: bit for bit those that visit everything. */
import { describe, expect, test } from "vitest";
import { fromHost, readArray, readIndices } from "../../src/kernels/array.ts";
import { BLOCK, blockWindows, type Live, LiveChunks } from "../../src/kernels/live.ts";
import { createStatus, type Stretch, vectorTerms } from "../../src/kernels/terms.ts";
import { adamUpdate, sgdUpdate } from "../../src/kernels/update.ts";
import { Stream } from "../../src/random.ts";
import { gpuForTests, randn } from "./harness.ts";

const gpu = gpuForTests();
const CHUNK = 256;

/** Vectors of which about half the chunks are at rest; the ends of the vector and of its stretches are off the blocks. */
function vectors(n: number, density: number) {
  const stream = new Stream(7, "chunks");
  const chunks = new LiveChunks(n);
  const host = { theta: randn(1, n), mu: randn(2, n), grad: randn(3, n), m: randn(4, n), v: randn(5, n).map(Math.abs) };
  for (let from = 0; from < n; from += CHUNK) {
    const to = Math.min(from + CHUNK, n);
    if (stream.uniform() < density) chunks.add(from, to);
    else {
      host.mu.set(host.theta.subarray(from, to), from);
      for (const vector of [host.grad, host.m, host.v]) vector.fill(0, from, to);
    }
  }
  return { host, chunks };
}

const N = 5 * BLOCK + 3 * CHUNK + 64;
const STRETCHES: Stretch[] = [
  { offset: 64, length: 2 * BLOCK + 320, priorScale: 0.3 },
  { offset: 2 * BLOCK + 512, length: N - 2 * BLOCK - 512, priorScale: 0 },
];

for (const density of [0, 0.02, 0.5, 1]) {
  for (const window of [undefined, 2 * 4 * BLOCK]) {
    test(`${100 * density} % live${window ? ", in windows of two blocks" : ""}: the same bits as everything`, async () => {
      const g = gpu();
      const { host, chunks } = vectors(N, density);
      const step = (given: Live | undefined) => {
        const on = Object.fromEntries(Object.entries(host).map(([name, data]) => [name, fromHost(g, data)]));
        const { theta, mu, grad, m, v } = on as Record<keyof typeof host, ReturnType<typeof fromHost>>;
        const status = createStatus(g);
        const live = given;
        const rows = vectorTerms(g, { theta, mu, grad }, STRETCHES, status, { clip: 5, live, window });
        for (const [r, stretch] of STRETCHES.entries()) {
          const last = r === STRETCHES.length - 1;
          adamUpdate(g, { theta, mu, grad, m, v }, stretch, status, { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, step: 3, last, decay: 0.1, live, window }); // biome-ignore format: one call
          sgdUpdate(g, { theta, mu, grad, momentum: m }, stretch, status, { lr: 1e-3, momentum: 0.9, step: 3, last, decay: 0.1, live, window }); // biome-ignore format: one call
          sgdUpdate(g, { theta, mu, grad }, stretch, status, { lr: 1e-3, momentum: 0, step: 4, last, decay: 0, live, window }); // biome-ignore format: one call
        }
        return Promise.all([...[rows, theta, m, v].map((array) => readArray(g, array)), readIndices(g, status)]);
      };
      const { sparse, dense } = g.scope(() => ({ sparse: step(chunks.upload(g)), dense: step(undefined) }));
      expect(await sparse).toEqual(await dense);
      expect((await dense)[4]?.[2]).toBe(4);
    });
  }
}

test("what is promised to be at rest is not looked at", async () => {
  const g = gpu();
  const chunks = new LiveChunks(BLOCK);
  chunks.add(CHUNK, 2 * CHUNK);
  const { read } = g.scope(() => {
    const theta = fromHost(g, randn(1, BLOCK));
    const grad = fromHost(g, new Float32Array(BLOCK).fill(2));
    const stretch = { offset: 0, length: BLOCK, priorScale: 1 };
    const rows = vectorTerms(g, { theta, grad, mu: theta }, [stretch], createStatus(g), { live: chunks.upload(g) });
    return { read: readArray(g, rows) };
  });
  expect(await read).toEqual(Float32Array.of(4 * CHUNK, 0, 0, 0));
});

describe("LiveChunks", () => {
  test("takes in every chunk that a range touches, once", () => {
    const g = gpu();
    g.scope(() => {
      const chunks = new LiveChunks(3 * BLOCK);
      expect(chunks.upload(g).share).toBe(0);
      chunks.add(CHUNK - 1, CHUNK + 1);
      chunks.add(CHUNK - 1, CHUNK + 1);
      expect(chunks.upload(g).share).toBe(2 / 96);
      chunks.add(0, 3 * BLOCK);
      expect(chunks.upload(g).share).toBe(1);
    });
  });
});

test("windows begin where blocks do and cover a stretch once", () => {
  for (const [offset, length] of [
    [0, 64],
    [BLOCK - 64, 128],
    [3 * BLOCK + 64, 5 * BLOCK],
  ] as const) {
    const found = blockWindows(gpu(), offset, length, 2 * 4 * BLOCK + 100);
    expect(found.every((window) => window.offset % BLOCK === 0 && window.length <= 2 * BLOCK)).toBe(true);
    const covered = found.flatMap((w) => [w.offset + w.begin, w.offset + w.length]);
    expect([covered[0], covered.at(-1)]).toEqual([offset, offset + length]);
    for (let i = 1; i + 1 < covered.length; i += 2) expect(covered[i]).toBe(covered[i + 1]);
  }
  expect(() => blockWindows(gpu(), 0, 64, 4 * BLOCK - 1)).toThrow("below one block");
});
