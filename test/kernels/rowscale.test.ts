import { describe, expect, test } from "vitest";
import { fromHost } from "../../src/kernels/array.ts";
import { rowScale, rowScaleBackward, rowScaleReference } from "../../src/kernels/rowscale.ts";
import { expectClose, gpuForTests, numericGradient, randn, run } from "./harness.ts";

const gpu = gpuForTests();

/** Segments, rows of each, channels; 33 and 2,100 rows are more than one block of the two-stage sum. */
const SIZES = [
  [1, 1, 1],
  [3, 5, 7],
  [2, 1, 8],
  [4, 33, 20],
  [5, 13, 65],
  [2, 2100, 12],
] as const;

for (const [S, n, c] of SIZES) {
  const [x, v, dy] = [randn(1, S * n * c), randn(2, S * c), randn(3, S * n * c)];
  describe(`${S} segments of ${n} rows, ${c} channels`, () => {
    test("forward and both gradients", async () => {
      const g = gpu();
      const [y, dx, dv, added] = await run(g, () => {
        const [X, V, DY] = [fromHost(g, x, [S * n, c]), fromHost(g, v, [S, c]), fromHost(g, dy, [S * n, c])];
        const into = { array: fromHost(g, v, [S, c]), accumulate: true };
        return [
          rowScale(g, X, V),
          rowScale(g, DY, V),
          rowScaleBackward(g, DY, X, S),
          rowScaleBackward(g, DY, X, S, into),
        ];
      });
      expectClose(y ?? [], rowScaleReference(x, v, S), { rtol: 1e-6, atol: 0 });
      const expectedV = new Float64Array(S * c);
      for (let i = 0; i < x.length; i++) {
        const at = Math.floor(i / (n * c)) * c + (i % c);
        expectedV[at] = (expectedV[at] ?? 0) + (dy[i] ?? 0) * (x[i] ?? 0);
      }
      // A sum of n products of standard normals is of size √n; each addition rounds at 6e-8 of it.
      const tolerance = { rtol: 1e-5, atol: 1e-6 * Math.sqrt(n) * 4 };
      expectClose(dv ?? [], expectedV, tolerance);
      expectClose(
        added ?? [],
        expectedV.map((value, i) => value + (v[i] ?? 0)),
        tolerance,
      );
      if (x.length > 200) return;
      expectClose(
        dx ?? [],
        numericGradient((at) => rowScaleReference(at, v, S), x, dy),
        { rtol: 1e-5, atol: 1e-6 },
      );
      expectClose(
        dv ?? [],
        numericGradient((at) => rowScaleReference(x, at, S), v, dy),
        { rtol: 1e-5, atol: 1e-6 },
      );
    });
  });
}

test("the same bits each time", async () => {
  const g = gpu();
  const [x, dy] = [randn(1, 3 * 700 * 5), randn(2, 3 * 700 * 5)];
  const once = () => run(g, () => [rowScaleBackward(g, fromHost(g, dy, [2100, 5]), fromHost(g, x, [2100, 5]), 3)]);
  expect(await once()).toEqual(await once());
});

test("NaN and infinities stay in their segment", async () => {
  const g = gpu();
  const [y, dv] = await run(g, () => {
    const x = fromHost(g, [1, Number.NaN, 3, Number.POSITIVE_INFINITY], [4, 1]);
    const v = fromHost(g, [2, 3], [2, 1]);
    return [rowScale(g, x, v), rowScaleBackward(g, fromHost(g, [1, 0, 1, 1], [4, 1]), x, 2)];
  });
  expect([...(y ?? [])]).toEqual([2, Number.NaN, 9, Number.POSITIVE_INFINITY]);
  expect([...(dv ?? [])]).toEqual([Number.NaN, Number.POSITIVE_INFINITY]);
});

test("shapes that do not fit are refused", () => {
  const g = gpu();
  g.scope(() => {
    const x = fromHost(g, randn(1, 10), [5, 2]);
    expect(() => rowScale(g, x, fromHost(g, randn(1, 4), [2, 2]))).toThrow(
      "rowScale: 5 rows of x are not 2 segments of equal length",
    );
    expect(() => rowScale(g, x, fromHost(g, randn(1, 3), [1, 3]))).toThrow(
      "rowScale: v has shape [1 3], expected [S=1 C=2]",
    );
    expect(() => rowScaleBackward(g, fromHost(g, randn(1, 10), [2, 5]), x, 1)).toThrow(
      "rowScale.backward: x has shape",
    );
  });
});
