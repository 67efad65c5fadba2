import { describe, expect, test } from "vitest";
import { fromHost, NdArray } from "../../src/kernels/array.ts";
import { concatColumns, gatherRows, scatterRows, sliceColumns } from "../../src/kernels/rows.ts";
import { Stream } from "../../src/random.ts";
import { gpuForTests, randn, run } from "./harness.ts";

const gpu = gpuForTests();

function permutation(n: number, m: number): Uint32Array {
  return new Stream(n, "rows").shuffle(n).subarray(0, m);
}

describe("gatherRows and scatterRows", () => {
  for (const [n, m, c] of [
    [1, 1, 1],
    [5, 3, 3],
    [257, 100, 4],
    [64, 64, 37],
    [30, 7, 4099],
    [30, 7, 4100],
    [300, 257, 384],
  ] as const) {
    test(`${m} of [${n}, ${c}], and back into zeros`, async () => {
      const g = gpu();
      const x = randn(1, n * c);
      const index = permutation(n, m);
      const [y, dx] = await run(g, () => {
        const at = fromHost(g, index);
        const rows = gatherRows(g, fromHost(g, x, [n, c]), at);
        return [rows, scatterRows(g, rows, at, n)];
      });
      const picked = [...index].map((row) => x.subarray(row * c, row * c + c));
      expect(y).toEqual(Float32Array.from(picked.flatMap((row) => [...row])));
      const expected = new Float32Array(n * c);
      for (const row of index) expected.set(x.subarray(row * c, row * c + c), row * c);
      expect(dx).toEqual(expected);
    });
  }

  test("scatter is the transpose of gather: ⟨gather x, dy⟩ = ⟨x, scatter dy⟩", async () => {
    const g = gpu();
    const [x, dy] = [randn(1, 50 * 6), randn(2, 20 * 6)];
    const index = permutation(50, 20);
    const [y, dx] = await run(g, () => {
      const at = fromHost(g, index);
      return [gatherRows(g, fromHost(g, x, [50, 6]), at), scatterRows(g, fromHost(g, dy, [20, 6]), at, 50)];
    });
    const dot = (a: Float32Array = new Float32Array(), b: Float32Array = new Float32Array()) =>
      a.reduce((sum, v, i) => sum + v * (b[i] ?? Number.NaN), 0);
    expect(dot(y, dy)).toBeCloseTo(dot(x, dx), 10);
  });

  test("a row that does not exist is NaN when read, and nowhere when written", async () => {
    const g = gpu();
    const [y, dx, around] = await run(g, () => {
      const at = fromHost(g, Uint32Array.of(1, 9));
      const scattered = scatterRows(g, fromHost(g, [5, 6, 54321, 54321], [2, 2]), at, 2);
      // The buffer is larger than the array: row 9 would lie in it.
      const whole = new NdArray(scattered.buffer, 0, [64]);
      return [gatherRows(g, fromHost(g, [1, 2, 3, 4], [2, 2]), at), scattered, whole];
    });
    expect(around).not.toContain(54321);
    expect([...(y ?? [])]).toEqual([3, 4, Number.NaN, Number.NaN]);
    expect([...(dx ?? [])]).toEqual([0, 0, 5, 6]);
  });

  test("an index of floats and a wrong count are errors", () => {
    const g = gpu();
    g.scope(() => {
      const x = fromHost(g, [1, 2, 3, 4], [2, 2]);
      expect(() => gatherRows(g, x, fromHost(g, [0, 1]))).toThrow("gatherRows: index holds f32, expected u32");
      expect(() => scatterRows(g, x, fromHost(g, Uint32Array.of(1)), 2)).toThrow(
        "scatterRows: index has shape [1], expected [M=2]",
      );
    });
  });
});

describe("concatColumns and sliceColumns", () => {
  for (const widths of [[1], [4, 8], [3, 5, 1], [384, 384, 384, 384], [7, 4100]]) {
    test(`widths ${widths}`, async () => {
      const g = gpu();
      const n = 33;
      const parts = widths.map((w, i) => randn(i, n * w));
      const total = widths.reduce((a, b) => a + b, 0);
      const starts = widths.map((_, i) => widths.slice(0, i).reduce((a, b) => a + b, 0));
      const [y, ...back] = await run(g, () => {
        const all = concatColumns(
          g,
          parts.map((part, i) => fromHost(g, part, [n, widths[i] ?? 0])),
        );
        return [all, ...widths.map((w, i) => sliceColumns(g, all, starts[i] ?? 0, w))];
      });
      const expected = new Float32Array(n * total);
      for (let row = 0; row < n; row++) {
        for (const [i, w] of widths.entries()) {
          expected.set(parts[i]?.subarray(row * w, row * w + w) ?? [], row * total + (starts[i] ?? 0));
        }
      }
      expect(y).toEqual(expected);
      expect(back).toEqual(parts);
    });
  }

  test("columns that do not exist, and rows that do not match, are errors", () => {
    const g = gpu();
    g.scope(() => {
      const x = fromHost(g, [1, 2, 3, 4], [2, 2]);
      expect(() => sliceColumns(g, x, 1, 2)).toThrow("sliceColumns: columns 1 … 2 of [2 2]");
      expect(() => concatColumns(g, [x, fromHost(g, [1, 2], [1, 2])])).toThrow(
        "concatColumns: arrays[1] has shape [1 2], expected [N=2 C]",
      );
    });
  });
});
