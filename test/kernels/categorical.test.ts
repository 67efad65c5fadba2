/** @file Classes drawn from logits: the same draw as in float64, and the frequencies that softmax says. */
import { expect, test } from "vitest";
import { fromHost, readIndices } from "../../src/kernels/array.ts";
import { categorical, categoricalReference } from "../../src/kernels/categorical.ts";
import { streamKey } from "../../src/random.ts";
import { gpuForTests, randn } from "./harness.ts";

const gpu = gpuForTests();

function draw(logits: Float32Array, k: number, key: readonly [number, number]): Promise<Uint32Array> {
  const g = gpu();
  const shape = [logits.length / k, k];
  return g.scope(() => ({ read: readIndices(g, categorical(g, fromHost(g, logits, shape), key)) })).read;
}

for (const [rows, k] of [
  [1, 1],
  [3, 2],
  [5, 127],
  [70, 130],
  [4, 30_011],
] as const) {
  // biome-ignore format: a table
  test(`${rows} rows of ${k} classes: the draw of the reference`, async () => {
    const logits = randn(k, rows * k, 2);
    const key = streamKey(3, "draw", k);
    const found = await draw(logits, k, key);
    const scores = categoricalReference(logits, k, key);
    for (const [row, of] of scores.entries()) {
      // Where the two best lie within rounding, either may win.
      const best = Math.max(...of);
      expect(best - (of[found[row] as number] as number), `row ${row}`).toBeLessThan(1e-4);
    }
    expect(scores.filter((of, row) => of[found[row] as number] === Math.max(...of)).length).toBeGreaterThan(0.9 * rows);
  });
}

test("frequencies are softmax's (χ² over 60,000 draws)", async () => {
  const logits = [0, 1.5, -2, 0.3, -4, 1, -0.5];
  const k = logits.length;
  const rows = 60_000;
  const found = await draw(
    Float32Array.from({ length: rows * k }, (_, i) => logits[i % k] as number),
    k,
    [5, 6],
  );
  const total = logits.reduce((sum, x) => sum + Math.exp(x), 0);
  const chi2 = logits.reduce((sum, x, j) => {
    const expected = (rows * Math.exp(x)) / total;
    return sum + (found.filter((c) => c === j).length - expected) ** 2 / expected;
  }, 0);
  // χ² with 6 degrees: 22.5 is its 99.9 % point, 0.38 its 0.1 %.
  expect(chi2).toBeLessThan(22.5);
  expect(chi2).toBeGreaterThan(0.38);
});

test("another key draws otherwise; a class of −∞ is never drawn", async () => {
  const k = 3;
  const logits = Float32Array.from({ length: 300 }, (_, i) => (i % k === 1 ? Number.NEGATIVE_INFINITY : 0));
  const [one, two] = [await draw(logits, k, [1, 2]), await draw(logits, k, [1, 3])];
  expect(one).not.toEqual(two);
  expect(await draw(logits, k, [1, 2])).toEqual(one);
  expect(new Set(one)).toEqual(new Set([0, 2]));
});
