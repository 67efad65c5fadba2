/**
 * @file What an uncertainty is good for, where only its order counts: to answer the surest texts and withhold the others
 * (selective prediction), and to tell texts of another domain from those of one's own (AUROC). Ties, which identical
 * members and saturated probabilities make common, are counted as if broken at random, in expectation.
 */
import type { TopLabels } from "../train/metrics.ts";
import { type Interval, wilson } from "./calibration.ts";
import type { Predictive } from "./predictive.ts";

/** One threshold: all texts at least that sure are answered. */
export interface SelectivePoint {
  /** Share of the texts that are answered, above 0. */
  coverage: number;
  /** Share of right answers among them, and its 95 % interval. */
  accuracy: number;
  interval: Interval;
  /** The confidence from which they are answered. */
  threshold: number;
}

export interface Selective {
  /** A point for each distinct confidence, from the surest on; the last answers all. */
  points: SelectivePoint[];
  /**
   * Area under risk (1 − accuracy) against coverage, (1/n) Σₖ errors(k)/k over k = 1 … n answers: 0 … 1, less is better,
   * and the error rate itself where confidence says nothing (Geifman, Uziel and El-Yaniv 2019).
   */
  aurc: number;
}

/** Accuracy against coverage. A threshold takes all of equally sure texts or none. RangeError: no examples, a NaN. */
export function selective({ confidence, correct }: TopLabels): Selective {
  const n = confidence.length;
  if (n === 0) throw new RangeError("selective: no examples");
  const order = sortedIndices(confidence, "selective").reverse();
  const points: SelectivePoint[] = [];
  let right = 0;
  let risk = 0;
  for (let from = 0; from < n; ) {
    const threshold = confidence[order[from]!]!;
    let [to, more] = [from, 0];
    for (; to < n && confidence[order[to]!]! === threshold; to++) more += correct[order[to]!]!;
    // Within a tie each further answer is right with the tie's own rate, in expectation over its orders.
    const rate = more / (to - from);
    for (let k = from + 1; k <= to; k++) risk += 1 - (right + rate * (k - from)) / k;
    right += more;
    points.push({ coverage: to / n, accuracy: right / to, interval: wilson(right, to), threshold });
    from = to;
  }
  return { points, aurc: Math.max(0, risk / n) };
}

/**
 * The probability that a value of `positive` is above one of `negative`, ties counting ½: the Mann–Whitney rank sum over
 * n₁·n₀, which is the area under the ROC curve. RangeError: one of them is empty, or has a NaN.
 */
export function auroc(positive: ArrayLike<number>, negative: ArrayLike<number>): number {
  const [n1, n0] = [positive.length, negative.length];
  if (n1 === 0 || n0 === 0) throw new RangeError(`auroc: ${n1} positives and ${n0} negatives`);
  const all = new Float64Array(n1 + n0);
  all.set(Float64Array.from(positive));
  all.set(Float64Array.from(negative), n1);
  const order = sortedIndices(all, "auroc");
  let rankSum = 0;
  for (let from = 0; from < all.length; ) {
    let [to, positives] = [from, 0];
    for (; to < all.length && all[order[to]!]! === all[order[from]!]!; to++) if (order[to]! < n1) positives++;
    // Ranks from + 1 … to are shared: each has their mean.
    rankSum += (positives * (from + 1 + to)) / 2;
    from = to;
  }
  return (rankSum - (n1 * (n1 + 1)) / 2) / (n1 * n0);
}

/**
 * How well uncertainty tells texts of another domain (positive) from one's own: by the epistemic part (what the members
 * disagree about) and by the whole entropy of p̄. One member has no epistemic part: all tie, and its AUROC is ½.
 */
export function oodAuroc(
  inDomain: Pick<Predictive, "epistemic" | "total">,
  outOfDomain: Pick<Predictive, "epistemic" | "total">,
): { epistemic: number; total: number } {
  return {
    epistemic: auroc(outOfDomain.epistemic, inDomain.epistemic),
    total: auroc(outOfDomain.total, inDomain.total),
  };
}

/** Indices in the order of rising values. */
function sortedIndices(values: ArrayLike<number>, who: string): Uint32Array {
  const order = new Uint32Array(values.length);
  for (let i = 0; i < values.length; i++) {
    if (Number.isNaN(values[i]!)) throw new RangeError(`${who}: value ${i} is NaN`);
    order[i] = i;
  }
  return order.sort((a, b) => values[a]! - values[b]!);
}
