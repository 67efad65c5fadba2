/**
 * @file What predictions are worth, in float64: accuracy, mean NLL, Brier score, and the expected calibration error
 * beside the value that a perfectly calibrated model of the same confidence would show (its floor). Without the floor an
 * ECE cannot be read: on 277 examples a perfect model shows .05.
 */
import { Stream } from "../random.ts";

/** log p of every class, row by row: `logp` has n·K numbers, nats. */
export interface LogProbabilities {
  logp: Float64Array;
  K: number;
}

export interface Metrics {
  /** Examples. */
  n: number;
  accuracy: number;
  /** Mean −log p of the true class, nats. */
  nll: number;
  /** Mean Σ_k (p_k − y_k)²: 0 … 2. */
  brier: number;
  ece: number;
  eceFloor: number;
}

export const ECE_BINS = 15;
/** Label sets drawn for the floor. */
export const ECE_DRAWS = 200;

/** log softmax of each row, by log-sum-exp: finite for every finite logit. */
export function logSoftmaxRows(logits: ArrayLike<number>, K: number): LogProbabilities {
  const logp = Float64Array.from(logits);
  for (let row = 0; row < logp.length; row += K) {
    let most = Number.NEGATIVE_INFINITY;
    for (let k = 0; k < K; k++) most = Math.max(most, logp[row + k]!);
    let total = 0;
    for (let k = 0; k < K; k++) total += Math.exp(logp[row + k]! - most);
    const lse = most + Math.log(total);
    for (let k = 0; k < K; k++) logp[row + k] = logp[row + k]! - lse;
  }
  return { logp, K };
}

/** What calibration is about: how sure the model is of its first choice, and whether that was right. */
export interface TopLabels {
  /** p of the most probable class, [n]. */
  confidence: Float64Array;
  /** 1 where that class is the label, else 0, [n]. */
  correct: Uint8Array;
}

/** RangeError: a label that is no class. Among equal probabilities the first class is the choice. */
export function topLabels({ logp, K }: LogProbabilities, labels: ArrayLike<number>): TopLabels {
  const confidence = new Float64Array(labels.length);
  const correct = new Uint8Array(labels.length);
  for (let i = 0; i < labels.length; i++) {
    const label = labels[i]!;
    if (!(label < K)) throw new RangeError(`metricsOf: label ${label} of example ${i} is not below ${K} classes`);
    let top = 0;
    for (let k = 1; k < K; k++) if (logp[i * K + k]! > logp[i * K + top]!) top = k;
    confidence[i] = Math.exp(logp[i * K + top]!);
    correct[i] = top === label ? 1 : 0;
  }
  return { confidence, correct };
}

/** All metrics. `labels` [n]; `seed` names the draws of the floor. RangeError: sizes that disagree, a label ≥ K, n = 0. */
export function metricsOf({ logp, K }: LogProbabilities, labels: ArrayLike<number>, { seed = 0 } = {}): Metrics {
  const n = labels.length;
  if (n === 0 || logp.length !== n * K) {
    throw new RangeError(`metricsOf: ${logp.length} log-probabilities for ${n} labels and ${K} classes`);
  }
  const { confidence, correct } = topLabels({ logp, K }, labels);
  let nll = 0;
  let brier = 0;
  for (let i = 0; i < n; i++) {
    const label = labels[i]!;
    for (let k = 0; k < K; k++) brier += (Math.exp(logp[i * K + k]!) - (k === label ? 1 : 0)) ** 2;
    nll -= logp[i * K + label]!;
  }
  return {
    n,
    accuracy: correct.reduce((right, c) => right + c, 0) / n,
    nll: nll / n,
    brier: brier / n,
    ece: eceOf(confidence, correct),
    eceFloor: eceFloor(confidence, { seed }),
  };
}

/** The bin of a confidence c: (0, 1/bins], (1/bins, 2/bins], …, closed on the right; 0 falls into the first. */
export function binOf(c: number, bins = ECE_BINS): number {
  return Math.min(bins - 1, Math.max(0, Math.ceil(c * bins) - 1));
}

/**
 * Expected calibration error (Naeini et al. 2015): equal bins (`binOf`) of the top label's confidence; the bins'
 * |accuracy − confidence| weighted by their share of the examples.
 */
export function eceOf(confidence: ArrayLike<number>, correct: ArrayLike<number>, bins = ECE_BINS): number {
  const gap = new Float64Array(bins);
  for (let i = 0; i < confidence.length; i++) {
    const c = confidence[i]!;
    gap[binOf(c, bins)]! += correct[i]! - c;
  }
  return gap.reduce((total, g) => total + Math.abs(g), 0) / confidence.length;
}

/** Mean ECE of label sets drawn from the model's own probabilities: what is left of it when nothing is wrong. */
export function eceFloor(confidence: ArrayLike<number>, { seed = 0, draws = ECE_DRAWS } = {}): number {
  let total = 0;
  for (const ece of eceDraws(confidence, seed, draws)) total += ece;
  return total / draws;
}

/** The ECE of each drawn label set; a drawn label is the top one with probability `confidence`. */
export function* eceDraws(confidence: ArrayLike<number>, seed: number, draws: number): Generator<number> {
  const correct = new Uint8Array(confidence.length);
  for (let draw = 0; draw < draws; draw++) {
    const stream = new Stream(seed, "ece floor", draw);
    for (let i = 0; i < correct.length; i++) correct[i] = stream.uniform() < confidence[i]! ? 1 : 0;
    yield eceOf(confidence, correct);
  }
}
