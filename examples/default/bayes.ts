/**
 * @file What the exact posterior scores: the best that any model can do. On one labelled set its score is itself a
 * random number (the labels were drawn), so both are given: what it got on these labels, and what it gets on average.
 * A model may beat the first by luck; none beats the second in expectation.
 */
import { Stream } from "../../src/random.ts";

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

const BINS = 15;
const DRAWS = 200;

/** Scores of probabilities p [n][labels] against labels [n]. */
export function score(p: readonly (readonly number[])[], labels: readonly number[]): Scores {
  const bins = Array.from({ length: BINS }, () => ({ correct: 0, confidence: 0 }));
  let accuracy = 0;
  let nll = 0;
  let brier = 0;
  p.forEach((row, i) => {
    const confidence = Math.max(...row);
    const correct = row.indexOf(confidence) === labels[i] ? 1 : 0;
    accuracy += correct;
    nll -= Math.log(row[labels[i] ?? -1] ?? Number.NaN);
    row.forEach((q, k) => {
      brier += (q - (k === labels[i] ? 1 : 0)) ** 2;
    });
    const bin = bins[Math.min(BINS - 1, Math.floor(confidence * BINS))];
    if (bin) {
      bin.correct += correct;
      bin.confidence += confidence;
    }
  });
  const gap = bins.reduce((sum, b) => sum + Math.abs(b.correct - b.confidence), 0);
  return { accuracy: accuracy / p.length, nll: nll / p.length, brier: brier / p.length, ece: gap / p.length };
}

/** The exact posterior's scores on these labels and in expectation (200 label sets drawn from it, for the ECE). */
export function bayesOptimal(rows: readonly { p: readonly number[]; label: number }[]): BayesOptimal {
  const p = rows.map((r) => r.p);
  const mean = (f: (row: readonly number[]) => number) => p.reduce((sum, row) => sum + f(row), 0) / p.length;
  const stream = new Stream(0, "bayes-optimal.labels");
  let ece = 0;
  for (let draw = 0; draw < DRAWS; draw++) {
    const labels = p.map((row) => {
      let left = stream.uniform();
      return row.findIndex((q, k) => {
        left -= q;
        return left < 0 || k === row.length - 1;
      });
    });
    ece += score(p, labels).ece / DRAWS;
  }
  return {
    ...score(
      p,
      rows.map((r) => r.label),
    ),
    expected: {
      accuracy: mean((row) => Math.max(...row)),
      nll: mean((row) => -row.reduce((sum, q) => sum + (q > 0 ? q * Math.log(q) : 0), 0)),
      brier: mean((row) => row.reduce((sum, q) => sum + q * (1 - q), 0)),
      ece,
    },
  };
}
