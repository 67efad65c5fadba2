import { describe, expect, it } from "vitest";
import { Stream } from "../../src/random.ts";
import { eceDraws, eceOf, logSoftmaxRows, metricsOf } from "../../src/train/metrics.ts";

/** Confidence ~ U(.5, 1). Below, the ECE in 15 bins that labels drawn from such confidences themselves show. */
function confidences(n: number): Float64Array {
  const stream = new Stream(7, "test confidence", n);
  return Float64Array.from({ length: n }, () => 0.5 + 0.5 * stream.uniform());
}

describe("metrics", () => {
  it("agree with values worked out by hand", () => {
    const p = [0.7, 0.2, 0.1, 0.25, 0.5, 0.25, 0.3, 0.3, 0.4, 0.05, 0.05, 0.9];
    const m = metricsOf({ logp: Float64Array.from(p, Math.log), K: 3 }, Uint32Array.of(0, 2, 2, 2));
    expect(m.accuracy).toBe(0.75);
    expect(m.nll).toBeCloseTo(-(Math.log(0.7) + Math.log(0.25) + Math.log(0.4) + Math.log(0.9)) / 4, 12);
    const rows = [0.09 + 0.04 + 0.01, 0.0625 + 0.25 + 0.5625, 0.09 + 0.09 + 0.36, 0.0025 + 0.0025 + 0.01];
    expect(m.brier).toBeCloseTo(rows.reduce((a, b) => a + b) / 4, 12);
    // Confidences .7, .5, .4, .9 lie in different bins: the mean of |correct − confidence|.
    expect(m.ece).toBeCloseTo((0.3 + 0.5 + 0.6 + 0.1) / 4, 12);
  });

  it("closes bins on the right and lets gaps inside a bin cancel", () => {
    // 10/15 belongs to bin (9/15, 10/15]; .667 to the next: two bins. .61 shares the first's bin.
    expect(eceOf([10 / 15, 0.667], [1, 0])).toBeCloseTo((1 - 10 / 15 + 0.667) / 2, 12);
    expect(eceOf([10 / 15, 0.61], [1, 0])).toBeCloseTo(Math.abs(1 - 10 / 15 - 0.61) / 2, 12);
    expect(eceOf([1, 1e-300], [1, 0])).toBeCloseTo(0, 12);
  });

  it("has the floor of a perfectly calibrated model (check 19)", () => {
    for (const [n, mean, draws, tolerance] of [
      [277, 0.053, 400, 0.002],
      [1000, 0.028, 200, 0.001],
      [10_000, 0.009, 200, 0.0006],
      [100_000, 0.0026, 20, 0.0004],
    ] as const) {
      const eces = [...eceDraws(confidences(n), 1, draws)];
      expect(Math.abs(eces.reduce((a, b) => a + b) / draws - mean), `n ${n}`).toBeLessThan(tolerance);
      if (n === 277) expect(Math.abs(eces.sort((a, b) => a - b)[Math.floor(0.95 * draws)]! - 0.08)).toBeLessThan(0.004);
    }
  });

  it("draws the same floor for the same seed", () => {
    const logits = Float32Array.from({ length: 60 }, (_, i) => Math.sin(i));
    const labels = Uint32Array.from({ length: 30 }, (_, i) => i % 2);
    const of = (seed: number) => metricsOf(logSoftmaxRows(logits, 2), labels, { seed }).eceFloor;
    expect(of(3)).toBe(of(3));
    expect(of(3)).not.toBe(of(4));
  });

  it("keeps to the log domain where probabilities are 0 in any float", () => {
    const { logp } = logSoftmaxRows([2000, 0, -2000, 1e-3], 2);
    expect([...logp]).toEqual([0, -2000, -2000.001, 0]);
    expect(metricsOf({ logp, K: 2 }, Uint32Array.of(1, 0)).nll).toBeCloseTo(2000.0005, 9);
  });

  it("refuses sizes that disagree", () => {
    const logp = Float64Array.of(-1, -1);
    expect(() => metricsOf({ logp, K: 2 }, [0, 1])).toThrow(/2 log-probabilities for 2 labels/);
    expect(() => metricsOf({ logp, K: 2 }, [2])).toThrow(/label 2 of example 0/);
    expect(() => metricsOf({ logp: new Float64Array(0), K: 2 }, [])).toThrow(RangeError);
  });
});
