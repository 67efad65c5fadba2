import { describe, expect, test } from "vitest";
import type { Gpu } from "../../src/gpu/index.ts";
import { empty, fromHost, readIndices } from "../../src/kernels/array.ts";
import { dropout, dropoutReference, dropoutThreshold } from "../../src/kernels/dropout.ts";
import { streamKey, threefry2x32 } from "../../src/random.ts";
import { expectClose, gpuForTests, randn, run } from "./harness.ts";

const gpu = gpuForTests();

/** The shader's generator on rows of (key, counter). */
function generate(g: Gpu, rows: readonly (readonly number[])[]): Promise<Uint32Array> {
  return g.scope(() => {
    const words = empty(g, [rows.length, 2], "u32");
    g.dispatch({
      op: "dropout.generate",
      shader: "dropout",
      entry: "generate",
      bindings: [fromHost(g, rows.flat(), [rows.length, 4], "u32"), words],
      params: [rows.length, 1, 0, 0, 0, 0],
      grid: [Math.ceil(rows.length / 64), 1, 1],
    });
    return { words: readIndices(g, words) };
  }).words;
}

describe("threefry2x32", () => {
  // Random123's published answers.
  const known = [
    { input: [0, 0, 0, 0], output: [0x6b200159, 0x99ba4efe] },
    { input: [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff], output: [0x1cb996fc, 0xbb002be7] },
    { input: [0x13198a2e, 0x03707344, 0x243f6a88, 0x85a308d3], output: [0xc4923a9c, 0x483df7a0] },
  ];

  test("the known answers, on the device and on the host", async () => {
    const words = await generate(
      gpu(),
      known.map((k) => k.input),
    );
    expect([...words]).toEqual(known.flatMap((k) => k.output));
    for (const { input, output } of known) {
      const [k0 = 0, k1 = 0, c0 = 0, c1 = 0] = input;
      expect(threefry2x32(k0, k1, c0, c1)).toEqual(output);
    }
  });

  test("device and host agree on 257 arbitrary inputs", async () => {
    const rows = Array.from({ length: 257 }, (_, i) => [
      ...streamKey(i, "test key"),
      ...streamKey(i, "test counter"),
    ]) as [number, number, number, number][];
    expect([...(await generate(gpu(), rows))]).toEqual(rows.flatMap((r) => threefry2x32(...r)));
  });
});

describe("dropout", () => {
  for (const n of [1, 3, 4, 257, 1024, 1025, 4099, 20011]) {
    test(`${n} elements: the host's mask, bit for bit`, async () => {
      const g = gpu();
      const x = randn(n, n);
      const key = streamKey(7, "dropout", n);
      const [y] = await run(g, () => [dropout(g, fromHost(g, x), 0.1, key)]);
      expectClose(y ?? [], dropoutReference(x, 0.1, key), { rtol: 2e-7, atol: 0 });
    });
  }

  test("keeps about 1 − p, and another key keeps others", async () => {
    const g = gpu();
    const ones = new Float32Array(40000).fill(1);
    const masks = await run(g, () => [1, 2].map((seed) => dropout(g, fromHost(g, ones), 0.3, streamKey(seed, "mask"))));
    const kept = masks.map((m) => m.filter((v) => v > 0).length / m.length);
    // The standard deviation is √(0.3·0.7/40000) = 0.0023.
    for (const share of kept) expect(Math.abs(share - 0.7)).toBeLessThan(0.01);
    const both = ones.filter((_, i) => (masks[0]?.[i] ?? 0) > 0 && (masks[1]?.[i] ?? 0) > 0).length;
    expect(Math.abs(both / 40000 - 0.49)).toBeLessThan(0.01);
  });

  test("p = 0 changes nothing; a dropped NaN stays NaN", async () => {
    const g = gpu();
    const x = randn(1, 37);
    const bad = new Float32Array(64).fill(Number.NaN);
    const [same, nan] = await run(g, () => [
      dropout(g, fromHost(g, x), 0, [1, 2]),
      dropout(g, fromHost(g, bad), 0.5, [1, 2]),
    ]);
    expect(same).toEqual(x);
    expect(nan?.every(Number.isNaN)).toBe(true);
  });

  test("the scale is the inverse of the exact keep probability", () => {
    expect(dropoutThreshold(0.1)).toBe(58982);
    expect(dropoutReference([1, 1, 1, 1, 1, 1, 1, 1], 0.1, [0, 0]).find((v) => v > 0)).toBe(65536 / 58982);
  });

  test("p outside [0, 1) is an error that says so", () => {
    expect(() => dropoutThreshold(1)).toThrow("dropout: p is 1, expected 0 ≤ p < 1");
    expect(() => dropoutThreshold(Number.NaN)).toThrow(RangeError);
  });
});
