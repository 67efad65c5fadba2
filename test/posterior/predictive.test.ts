import { describe, expect, it } from "vitest";
import { combine } from "../../src/posterior/predictive.ts";
import { Stream } from "../../src/random.ts";
import { logSoftmaxRows } from "../../src/train/metrics.ts";

function members(S: number, n: number, K: number, spread = 1): Float64Array[] {
  return Array.from({ length: S }, (_, s) => {
    const stream = new Stream(11, "test members", s);
    return logSoftmaxRows(
      Float64Array.from({ length: n * K }, () => spread * stream.normal()),
      K,
    ).logp;
  });
}

describe("posterior predictive (checks 11 and 12)", () => {
  it("averages probabilities, not logits", () => {
    const sure = logSoftmaxRows([0, 10], 2).logp;
    const even = logSoftmaxRows([0, 0], 2).logp;
    const { logMean } = combine([sure, even], 1, 2);
    expect(Math.exp(logMean[1]!)).toBeCloseTo((1 / (1 + Math.exp(-10)) + 0.5) / 2, 12);
    // Averaged logits (0, 5) would say .9933.
    expect(Math.exp(logMean[1]!)).toBeLessThan(0.76);
  });

  it("is a distribution, and the mean of the members' probabilities", () => {
    const [S, n, K] = [5, 7, 3];
    const all = members(S, n, K, 3);
    const { logMean } = combine(all, n, K);
    for (let i = 0; i < n * K; i++) {
      const mean = all.reduce((sum, m) => sum + Math.exp(m[i]!), 0) / S;
      expect(Math.exp(logMean[i]!)).toBeCloseTo(mean, 12);
    }
  });

  it("splits the entropy: H[p̄] = E H + MI to 1e-6, MI ≥ 0 (check 12)", () => {
    const [n, K] = [50, 4];
    const { logMean, epistemic, aleatoric, total } = combine(members(8, n, K, 2), n, K);
    for (let row = 0; row < n; row++) {
      let entropy = 0;
      for (let k = 0; k < K; k++) entropy -= Math.exp(logMean[row * K + k]!) * logMean[row * K + k]!;
      expect(Math.abs(entropy - total[row]!)).toBeLessThan(1e-9);
      expect(Math.abs(entropy - (aleatoric[row]! + epistemic[row]!))).toBeLessThan(1e-9);
      expect(epistemic[row]).toBeGreaterThan(1e-3);
      expect(aleatoric[row]).toBeGreaterThan(0);
    }
  });

  it("has no epistemic part for identical members, and S = 1 is the member itself", () => {
    const one = members(1, 20, 5)[0]!;
    const single = combine([one], 20, 5);
    expect(single.logMean).toEqual(one);
    expect([...single.epistemic]).toEqual(Array(20).fill(0));
    const three = combine([one, one, one], 20, 5);
    expect(three.logMean).toEqual(one);
    expect([...three.epistemic]).toEqual(Array(20).fill(0));
    expect(Math.max(...three.aleatoric.map((a, i) => Math.abs(a - single.aleatoric[i]!)))).toBeLessThan(1e-14);
  });

  it("stays in the log domain: −1000 nats, and certainty", () => {
    const a = Float64Array.of(-1000, -1e-300);
    const b = Float64Array.of(-1001, -1e-300);
    const { logMean } = combine([a, b], 1, 2);
    expect(logMean[0]).toBeCloseTo(-1000 + Math.log((1 + Math.exp(-1)) / 2), 12);
    const certain = combine(
      [Float64Array.of(0, Number.NEGATIVE_INFINITY), Float64Array.of(Number.NEGATIVE_INFINITY, 0)],
      1,
      2,
    );
    expect(certain.epistemic[0]).toBeCloseTo(Math.log(2), 12);
    expect(certain.aleatoric[0]).toBe(0);
  });

  it("lets a NaN through", () => {
    expect(combine([Float64Array.of(Number.NaN, -1), Float64Array.of(-1, -1)], 1, 2).logMean[0]).toBeNaN();
  });

  it("has a Monte-Carlo error that falls as S^−½ (check 11)", () => {
    // Logit difference z ~ N(0, 1): E σ(z) = ½. The spread of the mean over 200 repetitions, at S and 16 S.
    const spread = (S: number) => {
      let square = 0;
      for (let r = 0; r < 200; r++) {
        const stream = new Stream(5, "monte carlo", S, r);
        const all = Array.from({ length: S }, () => logSoftmaxRows([0, stream.normal()], 2).logp);
        square += (Math.exp(combine(all, 1, 2).logMean[1]!) - 0.5) ** 2;
      }
      return Math.sqrt(square / 200);
    };
    const ratio = spread(4) / spread(64);
    expect(ratio).toBeGreaterThan(3.4);
    expect(ratio).toBeLessThan(4.6);
  });

  it("refuses sizes that disagree", () => {
    expect(() => combine([], 1, 2)).toThrow(RangeError);
    expect(() => combine([new Float64Array(4), new Float64Array(3)], 2, 2)).toThrow(/member 1 has 3/);
  });
});
