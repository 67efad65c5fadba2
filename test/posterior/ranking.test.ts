/** @file Selective prediction and AUROC against closed forms (check 19). */
import { describe, expect, it } from "vitest";
import { combine } from "../../src/posterior/predictive.ts";
import { auroc, oodAuroc, selective } from "../../src/posterior/ranking.ts";
import { Stream } from "../../src/random.ts";
import { logSoftmaxRows } from "../../src/train/metrics.ts";

describe("selective prediction", () => {
  it("answers the surest first", () => {
    const { points, aurc } = selective({
      confidence: Float64Array.of(0.6, 0.9, 0.8, 0.7),
      correct: Uint8Array.of(0, 1, 0, 1),
    });
    expect(points.map(({ coverage, accuracy, threshold }) => [coverage, accuracy, threshold])).toEqual([
      [0.25, 1, 0.9],
      [0.5, 0.5, 0.8],
      [0.75, 2 / 3, 0.7],
      [1, 0.5, 0.6],
    ]);
    expect(aurc).toBeCloseTo((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4, 12);
    for (const { accuracy, interval } of points) expect(interval[0] <= accuracy && accuracy <= interval[1]).toBe(true);
  });

  it("of a perfect order has risk (k − r)/k beyond the r right ones; of the reverse order, 1 until the wrong are spent", () => {
    const [n, r] = [40, 30];
    const correct = Uint8Array.from({ length: n }, (_, i) => (i < r ? 1 : 0));
    const falling = Float64Array.from({ length: n }, (_, i) => 1 - i / n);
    let [best, worst] = [0, 0];
    for (let k = 1; k <= n; k++) {
      best += Math.max(0, k - r) / k / n;
      worst += Math.min(k, n - r) / k / n;
    }
    expect(selective({ confidence: falling, correct }).aurc).toBeCloseTo(best, 12);
    expect(selective({ confidence: falling.map((c) => 1 - c), correct }).aurc).toBeCloseTo(worst, 12);
  });

  it("of equal confidences is one point, and the error rate, in whatever order they stand", () => {
    const correct = Uint8Array.of(1, 1, 1, 0, 0, 1, 1);
    const { points, aurc } = selective({ confidence: new Float64Array(7).fill(0.8), correct });
    expect(points).toHaveLength(1);
    expect(points[0]).toMatchObject({ coverage: 1, accuracy: 5 / 7 });
    expect(aurc).toBeCloseTo(2 / 7, 12);
  });

  it("counts ties as the mean over their orders", () => {
    const confidence = Float64Array.of(0.9, 0.9, 0.9, 0.5, 0.5);
    const correct = Uint8Array.of(1, 0, 1, 0, 1);
    // Every order of the tied, by tiny shifts: 3! · 2! of them.
    let [sum, orders] = [0, 0];
    for (const first of [0, 1, 2, 3, 4, 5])
      for (const swap of [0, 1]) {
        const a = first % 3;
        const places = [a, (a + 1 + (first > 2 ? 1 : 0)) % 3, (a + 2 - (first > 2 ? 1 : 0)) % 3, 3 + swap, 4 - swap];
        const shifted = confidence.map((c, i) => c - 1e-6 * places[i]!);
        sum += selective({ confidence: shifted, correct }).aurc;
        orders++;
      }
    expect(orders).toBe(12);
    expect(selective({ confidence, correct }).aurc).toBeCloseTo(sum / orders, 12);
  });

  it("refuses what has no order", () => {
    expect(() => selective({ confidence: new Float64Array(0), correct: new Uint8Array(0) })).toThrow(RangeError);
    expect(() => selective({ confidence: Float64Array.of(Number.NaN), correct: Uint8Array.of(1) })).toThrow(/is NaN/);
  });
});

describe("AUROC", () => {
  it("is the share of pairs in order, ties ½", () => {
    const stream = new Stream(4, "test auroc");
    for (const [n1, n0] of [
      [1, 1],
      [7, 13],
      [40, 31],
    ] as const) {
      // Small whole numbers: many ties, within each side and across.
      const positive = Float64Array.from({ length: n1 }, () => 1 + stream.integer(6));
      const negative = Float64Array.from({ length: n0 }, () => stream.integer(6));
      let pairs = 0;
      for (const p of positive) for (const q of negative) pairs += p > q ? 1 : p === q ? 0.5 : 0;
      expect(auroc(positive, negative)).toBeCloseTo(pairs / (n1 * n0), 12);
      expect(auroc(negative, positive)).toBeCloseTo(1 - pairs / (n1 * n0), 12);
    }
  });

  it("of two normals d apart is Φ(d/√2)", () => {
    const stream = new Stream(4, "test normals");
    const draw = (mean: number) => Float64Array.from({ length: 4000 }, () => mean + stream.normal());
    // Φ(1/√2); the standard error at 4,000 each is .005.
    expect(Math.abs(auroc(draw(1), draw(0)) - 0.7602499)).toBeLessThan(0.015);
    // At the middle of [0, 1] and of [0, 2]: P(U₂ > U₁) = ¾.
    const ramp = (n: number, top: number) => Float64Array.from({ length: n }, (_, i) => ((i + 0.5) / n) * top);
    expect(auroc(ramp(500, 2), ramp(500, 1))).toBeCloseTo(0.75, 3);
  });

  it("is 1, 0 or ½ at the ends, for infinities too", () => {
    expect(auroc([3, 4], [1, 2])).toBe(1);
    expect(auroc([1, 2], [3, 4])).toBe(0);
    expect(auroc([5, 5], [5, 5, 5])).toBe(0.5);
    expect(auroc([Number.POSITIVE_INFINITY], [1e308])).toBe(1);
    expect(() => auroc([], [1])).toThrow(/0 positives/);
    expect(() => auroc([Number.NaN], [1])).toThrow(/is NaN/);
  });
});

describe("out-of-domain AUROC", () => {
  /** S members whose logits differ by `spread` around a margin. */
  function predictive(n: number, margin: number, spread: number, S = 8) {
    const members = Array.from({ length: S }, (_, s) => {
      const stream = new Stream(6, "test ood", s, margin, spread);
      return logSoftmaxRows(
        Float64Array.from({ length: 2 * n }, (_, i) => (i % 2 === 0 ? 0 : margin + spread * stream.normal())),
        2,
      ).logp;
    });
    return combine(members, n, 2);
  }

  it("tells disagreement (epistemic) from doubt that all members share (total alone)", () => {
    const own = predictive(60, 4, 0.1);
    const disputed = oodAuroc(own, predictive(50, 4, 6));
    expect(disputed.epistemic).toBe(1);
    const doubtful = oodAuroc(own, predictive(50, 0, 0));
    expect(doubtful.total).toBe(1);
    expect(doubtful.epistemic).toBe(0);
  });

  it("is ½ by the epistemic part of one member", () => {
    const { epistemic, total } = oodAuroc(predictive(20, 4, 1, 1), predictive(20, 1, 1, 1));
    expect(epistemic).toBe(0.5);
    expect(total).toBeGreaterThan(0.9);
  });
});
