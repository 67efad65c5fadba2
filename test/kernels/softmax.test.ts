import { describe, expect, test } from "vitest";
import { fromHost } from "../../src/kernels/array.ts";
import {
  logSoftmax,
  logSoftmaxBackward,
  logSoftmaxReference,
  softmax,
  softmaxBackward,
  softmaxReference,
} from "../../src/kernels/softmax.ts";
import { expectClose, gpuForTests, numericGradient, randn, run } from "./harness.ts";

const gpu = gpuForTests();
const INF = Number.POSITIVE_INFINITY;

// One, two, odd, prime; one row above a workgroup; one element below and above where rows get a second thread; many parts.
const SIZES = [
  [1, 1],
  [1, 2],
  [7, 3],
  [65, 2],
  [3, 13],
  [5, 64],
  [2, 511],
  [3, 513],
  [2, 1024],
  [3, 30522],
] as const;

/**
 * Rows of whole subgroups of 4 and of 8: one and several vec4s a lane, as many as a CPU's registers hold, more, and more than
 * workgroup memory holds; one row, and more than workgroups of several.
 */
const WHOLE = [
  [1, 32],
  [5, 64],
  [131, 96],
  [67, 256],
  [3, 384],
  [66, 1024],
  [2, 8224],
] as const;

for (const [name, forward, backward, reference] of [
  ["softmax", softmax, softmaxBackward, softmaxReference],
  ["logSoftmax", logSoftmax, logSoftmaxBackward, logSoftmaxReference],
] as const) {
  describe.each(["resident", "passes"] as const)(`${name} of whole subgroups, %s`, (family) => {
    test.each(WHOLE)("[%i, %i] value and gradient agree with float64", async (n, c) => {
      const g = gpu();
      const x = randn(1, n * c, 3);
      const dy = randn(3, n * c);
      const [y, dx] = await run(g, () => {
        const forwards = forward(g, fromHost(g, x, [n, c]), family);
        return [forwards, backward(g, forwards, fromHost(g, dy, [n, c]), family)];
      });
      const expected = reference(x, c);
      expectClose(y ?? [], expected, { rtol: 5e-6, atol: name === "softmax" ? 1e-9 : 2.5e-7 });
      const sums = new Float64Array(n);
      for (const [i, slope] of dy.entries()) {
        const row = Math.floor(i / c);
        sums[row] = (sums[row] ?? 0) + slope * (name === "softmax" ? (expected[i] ?? 0) : 1);
      }
      const slopes = Float64Array.from(x, (_, i) => {
        const [value, slope, sum] = [expected[i] ?? 0, dy[i] ?? 0, sums[Math.floor(i / c)] ?? 0];
        return name === "softmax" ? value * (slope - sum) : slope - Math.exp(value) * sum;
      });
      expectClose(dx ?? [], slopes, { rtol: 2e-5, atol: 5e-6 });
    });

    test("a maximum that comes late in a row is found, however far up", async () => {
      const g = gpu();
      const [c, jumps] = [1024, [1, 15, 17, 60, 120, 1e30]];
      const x = randn(7, jumps.length * c);
      for (const [row, jump] of jumps.entries()) {
        for (let i = c / 2; i < c; i += 5) x[row * c + i] = (x[row * c + i] ?? 0) + jump;
      }
      const [y] = await run(g, () => [forward(g, fromHost(g, x, [jumps.length, c]), family)]);
      expectClose(y ?? [], reference(x, c), { rtol: 5e-6, atol: name === "softmax" ? 1e-9 : 2.5e-7 });
    });

    test.each([64, 1024])("infinities and NaN go where float64 sends them, and stay in their rows of %i", async (c) => {
      const g = gpu();
      const n = 7;
      const x = randn(6, n * c);
      x[2 * c - 1] = Number.NaN;
      x[3 * c] = INF;
      x.fill(-INF, 5 * c, 6 * c);
      x.fill(-INF, 6 * c, 6 * c + c / 2);
      x[0] = 1e38;
      x[1] = -1e38;
      const [y] = await run(g, () => [forward(g, fromHost(g, x, [n, c]), family)]);
      expectClose(y ?? [], reference(x, c), { rtol: 1e-5 });
      expect([1, 3, 5].map((row) => y?.subarray(row * c, (row + 1) * c).every(Number.isNaN))).toEqual([
        true,
        true,
        true,
      ]);
    });
  });

  describe(name, () => {
    test.each(SIZES)("[%i, %i] agrees with float64", async (n, c) => {
      const g = gpu();
      const x = randn(1, n * c, 3);
      const [y] = await run(g, () => [forward(g, fromHost(g, x, [n, c]))]);
      // log l is rounded at 1 where l is close to it, hence the absolute part for the logarithm
      expectClose(y ?? [], reference(x, c), { rtol: 5e-6, atol: name === "softmax" ? 1e-9 : 2.5e-7 });
    });

    test.each(SIZES.filter(([, c]) => c < 1024))("[%i, %i] gradient is the numeric one", async (n, c) => {
      const g = gpu();
      const x = randn(2, n * c);
      const dy = randn(3, n * c);
      const [dx] = await run(g, () => {
        const y = forward(g, fromHost(g, x, [n, c]));
        return [backward(g, y, fromHost(g, dy, [n, c]))];
      });
      expectClose(
        dx ?? [],
        numericGradient((at) => reference(at, c), x, dy),
        { rtol: 2e-5, atol: 5e-6 },
      );
    });

    test("a vocabulary's gradient agrees with the formula in float64", async () => {
      const g = gpu();
      const [n, c] = [3, 30522];
      const x = randn(4, n * c, 2);
      const dy = randn(5, n * c);
      const [dx] = await run(g, () => [backward(g, forward(g, fromHost(g, x, [n, c])), fromHost(g, dy, [n, c]))]);
      const p = softmaxReference(x, c);
      const sums = Float64Array.from({ length: n }, (_, row) => {
        let sum = 0;
        for (let j = row * c; j < (row + 1) * c; j++) sum += (dy[j] ?? 0) * (name === "softmax" ? (p[j] ?? 0) : 1);
        return sum;
      });
      const expected = Float64Array.from(x, (_, i) => {
        const sum = sums[Math.floor(i / c)] ?? 0;
        return name === "softmax" ? (p[i] ?? 0) * ((dy[i] ?? 0) - sum) : (dy[i] ?? 0) - (p[i] ?? 0) * sum;
      });
      // |Σ dy| ≈ √c ≈ 200, times a probability of at most a few per cent
      expectClose(dx ?? [], expected, { rtol: 2e-5, atol: name === "softmax" ? 1e-8 : 1e-6 });
    });

    test("large logits and −∞ do not overflow", async () => {
      const g = gpu();
      const x = Float32Array.from([1e4, -1e4, 9999, 1e4, -INF, 0, -INF, 1, 1e38, -1e38, 1e38, -INF]);
      const [y] = await run(g, () => [forward(g, fromHost(g, x, [3, 4]))]);
      expectClose(y ?? [], reference(x, 4), { rtol: 1e-6 });
    });

    test("NaN and +∞ stay in their rows and are seen there", async () => {
      const g = gpu();
      const c = 515;
      const x = randn(6, 5 * c);
      x[c + 514] = Number.NaN;
      x[3 * c] = INF;
      const [y] = await run(g, () => [forward(g, fromHost(g, x, [5, c]))]);
      expectClose(y ?? [], reference(x, c), { rtol: 1e-5 });
      expect(Number.isNaN(y?.[c])).toBe(true);
    });

    test("a row of −∞ has no distribution", async () => {
      const g = gpu();
      const [y] = await run(g, () => [forward(g, fromHost(g, [-INF, -INF, -INF, 1, 2, 3], [2, 3]))]);
      expect([...(y ?? [])].map(Number.isNaN)).toEqual([true, true, true, false, false, false]);
    });
  });
}

test("the gradient of rows as long as a large vocabulary, which are longer than an array in WGSL may be", async () => {
  const g = gpu();
  const [n, c] = [2, 262_144];
  // y alike everywhere, 1/c: dx = (dy − Σ dy/c)/c.
  const y = new Float32Array(n * c).fill(1 / c);
  const dy = randn(5, n * c);
  const [dx] = await run(g, () => [softmaxBackward(g, fromHost(g, y, [n, c]), fromHost(g, dy, [n, c]))]);
  const wanted = Float64Array.from(dy, Number);
  for (let row = 0; row < n; row++) {
    const own = wanted.subarray(row * c, (row + 1) * c);
    const mean = own.reduce((a, b) => a + b, 0) / c;
    for (let i = 0; i < c; i++) own[i] = ((own[i] as number) - mean) / c;
  }
  expectClose(dx ?? [], wanted, { rtol: 1e-5, atol: 1e-5 / c });
});

test("shapes are checked by name", () => {
  const g = gpu();
  g.scope(() => {
    const y = fromHost(g, [1, 2, 3, 4], [2, 2]);
    expect(() => softmax(g, y.reshape([4]))).toThrow("softmax: x has shape [4], expected [N C]");
    expect(() => softmaxBackward(g, y, y.reshape([1, 4]))).toThrow(
      "softmaxBackward: dy has shape [1 4], expected [N=2 C=2]",
    );
  });
});
