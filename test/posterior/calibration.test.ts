/** @file Calibration against closed forms (check 19). The ECE's floor itself: test/train/metrics.test.ts. */
import { describe, expect, it } from "vitest";
import { bootstrapEces, eceFloor95, eceInterval, reliability, wilson } from "../../src/posterior/calibration.ts";
import { fitTemperature, temper, temperatureScaled } from "../../src/posterior/temperature.ts";
import { Stream } from "../../src/random.ts";
import { eceOf, logSoftmaxRows, metricsOf, type TopLabels, topLabels } from "../../src/train/metrics.ts";

/** Confidence ~ U(.5, 1), right with probability confidence − gap: the ECE of infinitely many is `gap`. */
function answers(n: number, gap: number, seed = 0): TopLabels {
  const stream = new Stream(3, "test answers", n, seed);
  const confidence = Float64Array.from({ length: n }, () => 0.5 + 0.5 * stream.uniform());
  return { confidence, correct: Uint8Array.from(confidence, (c) => (stream.uniform() < c - gap ? 1 : 0)) };
}

describe("reliability bins", () => {
  it("hold every example once, and their gaps make up the ECE", () => {
    const top = answers(301, 0.1);
    const bins = reliability(top);
    expect(bins).toHaveLength(15);
    expect(bins.reduce((sum, { count }) => sum + count, 0)).toBe(301);
    const gaps = bins.map(({ count, found }) => (found ? count * Math.abs(found.accuracy - found.confidence) : 0));
    expect(gaps.reduce((a, b) => a + b) / 301).toBeCloseTo(eceOf(top.confidence, top.correct), 12);
    for (const { from, to, found } of bins) {
      if (found === undefined) continue;
      expect(found.confidence > from && found.confidence <= to).toBe(true);
      expect(found.interval[0] < found.accuracy && found.accuracy <= found.interval[1]).toBe(true);
    }
  });

  it("are closed on the right, and say nothing where they are empty", () => {
    const bins = reliability({ confidence: Float64Array.of(0.5, 0.5, 0.75, 1), correct: Uint8Array.of(1, 0, 1, 1) }, 4);
    expect(bins.map(({ count }) => count)).toEqual([0, 2, 1, 1]);
    expect(bins[0]).toEqual({ from: 0, to: 0.25, count: 0, found: undefined });
    expect(bins[1]?.found).toMatchObject({ confidence: 0.5, accuracy: 0.5 });
  });
});

describe("Wilson's interval", () => {
  it("ends where the share of the data is 1.96 of the end's own standard errors away", () => {
    for (const [k, n] of [
      [1, 2],
      [7, 10],
      [1, 97],
      [863, 872],
    ] as const) {
      for (const p of wilson(k, n)) {
        expect(Math.abs(k / n - p) / Math.sqrt((p * (1 - p)) / n)).toBeCloseTo(1.959963984540054, 9);
      }
    }
  });

  it("has a width where all are right: n/(n + z²) to 1", () => {
    const z2 = 1.959963984540054 ** 2;
    for (const n of [1, 5, 400]) {
      const [low, high] = wilson(n, n);
      expect(low).toBeCloseTo(n / (n + z2), 12);
      expect(high).toBe(1);
      expect(wilson(0, n)[0]).toBe(0);
      expect(wilson(0, n)[1]).toBeCloseTo(1 - n / (n + z2), 12);
    }
    expect(() => wilson(0, 0)).toThrow(RangeError);
    expect(() => wilson(3, 2)).toThrow(RangeError);
  });
});

describe("the ECE's bootstrap interval", () => {
  it("has the spread of the sampling distribution", () => {
    // Fresh sets of 400 against resampled ones of a single set: the same standard deviation, to its own noise.
    const sd = (values: number[]) => {
      const mean = values.reduce((a, b) => a + b) / values.length;
      return Math.sqrt(values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / (values.length - 1));
    };
    const fresh = Array.from({ length: 300 }, (_, r) => {
      const { confidence, correct } = answers(400, 0.2, r + 1);
      return eceOf(confidence, correct);
    });
    // With every gap of one sign the ECE is mean(c) − accuracy: its variance is the mean of p(1 − p), p = c − .2, over n.
    const exact = Math.sqrt((0.55 - (0.55 ** 2 + 0.25 / 12)) / 400);
    expect(Math.abs(sd(fresh) / exact - 1)).toBeLessThan(0.15); // 300 sets: 4 % standard error
    const resampled = sd([...bootstrapEces(answers(400, 0.2), { draws: 300 })]);
    expect(Math.abs(resampled / exact - 1)).toBeLessThan(0.2);
  });

  it("holds the ECE of infinitely many in most sets, and 0 where percentiles cannot", () => {
    const inside = (gap: number, n: number) => {
      let [held, percentile] = [0, 0];
      for (let r = 0; r < 60; r++) {
        const top = answers(n, gap, r);
        const [low, high] = eceInterval(top, { seed: r, draws: 120 });
        held += low <= gap && gap <= high ? 1 : 0;
        percentile += bootstrapEces(top, { seed: r, draws: 120 }).sort()[3]! <= gap ? 1 : 0;
      }
      return { held: held / 60, percentile: percentile / 60 };
    };
    // .91 over 150 sets; 60 sets have a standard error of .04.
    expect(inside(0.2, 300).held).toBeGreaterThan(0.78);
    const calibrated = inside(0, 277);
    expect(calibrated.held).toBeGreaterThan(0.4);
    expect(calibrated.percentile).toBe(0);
  });

  it("of a calibrated model stays below the floor's 95th percentile in 95 of 100 sets, of a surer one seldom", () => {
    const below = (gap: number) => {
      let held = 0;
      for (let r = 0; r < 200; r++) {
        const { confidence, correct } = answers(277, gap, r);
        held += eceOf(confidence, correct) < eceFloor95(confidence, { seed: r }) ? 1 : 0;
      }
      return held / 200;
    };
    expect(Math.abs(below(0) - 0.95)).toBeLessThan(0.05); // three standard errors of 200 sets, and the draws' own
    expect(below(0.1)).toBeLessThan(0.2);
  });

  it("is the same for the same seed, stays within 0 … 1, and is a point where nothing varies", () => {
    const top = answers(50, 0.1);
    expect(eceInterval(top, { seed: 3 })).toEqual(eceInterval(top, { seed: 3 }));
    expect(eceInterval(top, { seed: 3 })).not.toEqual(eceInterval(top, { seed: 4 }));
    for (const n of [1, 2, 3]) {
      const [low, high] = eceInterval(answers(n, 0, n));
      expect(0 <= low && low <= high && high <= 1).toBe(true);
    }
    const sure = { confidence: new Float64Array(7).fill(0.9), correct: new Uint8Array(7).fill(1) };
    const [low, high] = eceInterval(sure);
    expect(low).toBeCloseTo(0.1, 12);
    expect(high).toBeCloseTo(0.1, 12);
    expect(() => eceInterval({ confidence: new Float64Array(0), correct: new Uint8Array(0) })).toThrow(RangeError);
  });
});

/** n rows of K normal logits of some scale, labels drawn from softmax(z/T). */
function logitsAt(n: number, K: number, T: number, scale = 3) {
  const stream = new Stream(9, "test logits", n, K);
  const logits = Float64Array.from({ length: n * K }, () => scale * stream.normal());
  const { logp } = temper(logits, K, T);
  const labels = Uint32Array.from({ length: n }, (_, i) => {
    let u = stream.uniform();
    let k = 0;
    for (; k < K - 1; k++) {
      u -= Math.exp(logp[i * K + k]!);
      if (u < 0) break;
    }
    return k;
  });
  return { logits, K, labels };
}

describe("temperature scaling", () => {
  it("is log odds over margin where all margins are one", () => {
    // Margin m, a share a right: the best p of the top class is a itself, so m/T = log(a/(1 − a)).
    for (const [m, right, wrong] of [
      [4, 70, 30],
      [0.1, 9, 1],
      [30, 3, 2],
    ] as const) {
      const n = right + wrong;
      const logits = Float64Array.from({ length: 2 * n }, (_, i) => (i % 2 === 0 ? 7 : 7 + m));
      const labels = Uint32Array.from({ length: n }, (_, i) => (i < right ? 1 : 0));
      const { T, nll, atBound } = fitTemperature({ logits, K: 2, labels });
      expect(T).toBeCloseTo(m / Math.log(right / wrong), 9);
      const a = right / n;
      expect(nll).toBeCloseTo(-a * Math.log(a) - (1 - a) * Math.log(1 - a), 12);
      expect(atBound).toBe(false);
    }
  });

  it("finds the T that labels were drawn at, for any number of classes", () => {
    for (const [K, T] of [
      [2, 0.5],
      [3, 1],
      [5, 4],
    ] as const) {
      const fitted = fitTemperature(logitsAt(4000, K, T));
      // Standard error of T at 4,000 rows: below 3 %.
      expect(Math.abs(fitted.T / T - 1), `K ${K}, T ${T}`).toBeLessThan(0.1);
    }
  });

  it("is where the NLL, by metricsOf, is least", () => {
    const data = logitsAt(200, 4, 2);
    const { T, nll } = fitTemperature(data);
    const at = (t: number) => metricsOf(temper(data.logits, data.K, t), data.labels).nll;
    expect(at(T)).toBeCloseTo(nll, 12);
    for (const factor of [0.5, 0.99, 1.01, 3]) expect(at(T * factor)).toBeGreaterThan(nll);
    // A stationary point: the numeric slope in log T is 0.
    expect(Math.abs(at(T * 1.0001) - at(T / 1.0001)) / 2e-4).toBeLessThan(1e-6);
  });

  it("takes log p̄ as it takes logits, shifts and certainty too", () => {
    const data = logitsAt(100, 3, 2);
    const { logp } = logSoftmaxRows(data.logits, 3);
    expect(fitTemperature({ ...data, logits: logp }).T).toBeCloseTo(fitTemperature(data).T, 9);
    const certain = Float64Array.of(0, Number.NEGATIVE_INFINITY, 0, -1, 0, -1);
    expect(fitTemperature({ logits: certain, K: 2, labels: [0, 0, 1] }).T).toBe(100);
    expect(fitTemperature({ logits: Float64Array.of(...certain, 0, -1), K: 2, labels: [0, 0, 1, 0] }).T).toBeCloseTo(
      1 / Math.log(2),
      9,
    );
  });

  it("says where the data name no T: all right, or no better than chance", () => {
    const logits = [0, 1, 0, 2];
    expect(fitTemperature({ logits, K: 2, labels: [1, 1] })).toMatchObject({ T: 0.01, atBound: true, n: 2 });
    expect(fitTemperature({ logits, K: 2, labels: [0, 0] })).toMatchObject({ T: 100, atBound: true });
    expect(fitTemperature({ logits: [0, 0], K: 2, labels: [1] }).atBound).toBe(true);
  });

  it("mends the calibration of rows it has not seen, and moves no choice", () => {
    const all = logitsAt(4000, 3, 3);
    const part = (from: number, to: number) => ({
      logits: all.logits.slice(3 * from, 3 * to),
      K: 3,
      labels: all.labels.slice(from, to),
    });
    const [fitOn, reportOn] = [part(0, 1000), part(1000, 4000)];
    const before = metricsOf(logSoftmaxRows(reportOn.logits, 3), reportOn.labels);
    const { temperature, logp, metrics } = temperatureScaled({ fitOn, reportOn });
    expect(temperature.n).toBe(1000);
    expect(metrics.accuracy).toBe(before.accuracy);
    expect(topLabels(logp, reportOn.labels).correct).toEqual(
      topLabels(logSoftmaxRows(reportOn.logits, 3), reportOn.labels).correct,
    );
    expect(before.ece).toBeGreaterThan(5 * before.eceFloor);
    expect(metrics.ece).toBeLessThan(2 * metrics.eceFloor);
    expect(metrics.nll).toBeLessThan(before.nll);
    expect(() => temperatureScaled({ fitOn, reportOn: fitOn })).toThrow(/fitted on what is reported/);
  });

  it("refuses sizes that disagree", () => {
    expect(() => fitTemperature({ logits: [1, 2, 3], K: 2, labels: [0] })).toThrow(/3 logits for 1 labels/);
    expect(() => fitTemperature({ logits: [1, 2], K: 2, labels: [2] })).toThrow(/label 2 of example 0/);
    expect(() => fitTemperature({ logits: [], K: 2, labels: [] })).toThrow(RangeError);
    expect(() => temper([1, 2], 2, 0)).toThrow(RangeError);
  });
});
