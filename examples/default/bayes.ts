/**
 * @file What the exact posterior scores: the best that any model can do. On one labelled set its score is itself a
 * random number (the labels were drawn), so both are given: what it got on these labels, and what it gets on average.
 * A model may beat the first by luck; none beats the second in expectation.
 */
import { metricsOf } from "../../src/train/index.ts";

export interface Scores {
  readonly accuracy: number;
  /** Mean −log p(label), nats. */
  readonly nll: number;
  /** Mean Σ_k (p_k − y_k)². */
  readonly brier: number;
  /** Expected calibration error over 15 equal bins of the top label's confidence. */
  readonly ece: number;
}

export interface BayesOptimal extends Scores {
  /** The same, averaged over labels drawn from the posterior itself; `ece` is the floor that perfect calibration has. */
  readonly expected: Scores;
}

/** Scores of probabilities p [n][labels] against labels [n]. */
export function score(p: readonly (readonly number[])[], labels: readonly number[]): Scores {
  return metricsOf(logsOf(p), labels);
}

function logsOf(p: readonly (readonly number[])[]) {
  return { logp: Float64Array.from(p.flat(), Math.log), K: p[0]?.length ?? 0 };
}

/** The exact posterior's scores on these labels and in expectation (200 label sets drawn from it, for the ECE). */
export function bayesOptimal(rows: readonly { p: readonly number[]; label: number }[]): BayesOptimal {
  const p = rows.map((r) => r.p);
  const mean = (f: (row: readonly number[]) => number) => p.reduce((sum, row) => sum + f(row), 0) / p.length;
  const { accuracy, nll, brier, ece, eceFloor } = metricsOf(
    logsOf(p),
    rows.map((r) => r.label),
  );
  return {
    ...{ accuracy, nll, brier, ece },
    expected: {
      accuracy: mean((row) => Math.max(...row)),
      nll: mean((row) => -row.reduce((sum, q) => sum + (q > 0 ? q * Math.log(q) : 0), 0)),
      brier: mean((row) => row.reduce((sum, q) => sum + q * (1 - q), 0)),
      ece: eceFloor,
    },
  };
}
