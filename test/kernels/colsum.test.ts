import { describe, expect, test } from "vitest";
import { fromHost, NdArray } from "../../src/kernels/array.ts";
import { columnSum, columnSumReference } from "../../src/kernels/colsum.ts";
import { expectClose, gpuForTests, randn, run } from "./harness.ts";

const gpu = gpuForTests();

describe("columnSum", () => {
  for (const [n, c] of [
    [1, 1],
    [1, 384],
    [31, 3],
    [33, 4],
    [257, 5],
    [1024, 48],
    [5000, 2],
    [4100, 4],
    [3, 4099],
    [33, 1028],
    [95, 4099],
    [96, 1024],
  ] as const) {
    test(`[${n}, ${c}] agrees with float64, and is the same bits again`, async () => {
      const g = gpu();
      const x = randn(1, n * c);
      const body = () => [columnSum(g, fromHost(g, x, [n, c]))];
      const [y] = await run(g, body);
      expectClose(y ?? [], columnSumReference(x, c), { rtol: 1e-6, atol: 1e-6 * Math.sqrt(n) });
      expect((await run(g, body))[0]).toEqual(y);
    });
  }

  test("writes or adds into a slice and leaves its surroundings alone", async () => {
    const g = gpu();
    for (const [n, c] of [
      [3, 5],
      [100, 5],
      [100, 8],
      [100, 1028],
    ] as const) {
      const x = randn(n, n * c);
      const vectors = await run(g, () =>
        [false, true].map((accumulate) => {
          const theta = fromHost(g, new Float32Array(128 + c).fill(7));
          columnSum(g, fromHost(g, x, [n, c]), { array: new NdArray(theta.buffer, 256, [c]), accumulate });
          return theta;
        }),
      );
      for (const [i, start] of [0, 7].entries()) {
        const expected = new Float64Array(128 + c).fill(7);
        expected.set(
          columnSumReference(x, c).map((v) => v + start),
          64,
        );
        expectClose(vectors[i] ?? [], expected, { rtol: 1e-5, atol: 1e-5 });
      }
    }
  });

  test("what lies beyond the last row of a larger buffer has no influence", async () => {
    const g = gpu();
    for (const c of [4, 5, 1028]) {
      const x = new Float32Array(300 * c).fill(Number.NaN);
      x.set(randn(c, 70 * c));
      const [y] = await run(g, () => [columnSum(g, new NdArray(fromHost(g, x).buffer, 0, [70, c]))]);
      expectClose(y ?? [], columnSumReference(x.subarray(0, 70 * c), c), { rtol: 1e-6, atol: 1e-5 });
    }
  });

  test("NaN and ∞ spoil their own column", async () => {
    const g = gpu();
    const x = new Float32Array(80 * 4).fill(1);
    x[41 * 4 + 1] = Number.NaN;
    x[7 * 4 + 2] = Number.NEGATIVE_INFINITY;
    const [y] = await run(g, () => [columnSum(g, fromHost(g, x, [80, 4]))]);
    expect([...(y ?? [])]).toEqual([80, Number.NaN, Number.NEGATIVE_INFINITY, 80]);
  });

  test("a target of another size is an error", () => {
    const g = gpu();
    g.scope(() => {
      const into = { array: fromHost(g, [1, 2]), accumulate: false };
      expect(() => columnSum(g, fromHost(g, [1, 2, 3], [1, 3]), into)).toThrow("columnSum: gradient has shape [3]");
    });
  });
});
