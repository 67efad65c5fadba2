/**
 * @file Temperature scaling (Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", 2017): one
 * number T for all examples, p ∝ exp(z/T), chosen by the NLL of labelled rows. Choices stay as they were, confidence
 * moves. The rows that T is fitted on cannot say how good the result is: `temperatureScaled` takes both sets by name.
 */
import { type LogProbabilities, logSoftmaxRows, type Metrics, metricsOf } from "../train/metrics.ts";

/** Logits (or log p̄ of an average: a row may be shifted by any constant) and labels. */
export interface LabelledLogits {
  /** [n·K] */
  logits: ArrayLike<number>;
  K: number;
  /** [n] */
  labels: ArrayLike<number>;
}

export interface Temperature {
  T: number;
  /** Rows it was fitted on. */
  n: number;
  /** Mean NLL of those rows at T, nats: not a measure of anything but the fit. */
  nll: number;
  /**
   * The NLL falls towards T = 0 (every row right: there is nothing to learn T from) or T = ∞ (the logits are no better
   * than chance), so that T is the end of the range.
   */
  atBound: boolean;
}

/** The range of T: beyond it p is a step, or uniform, for any logits that mean something. */
export const TEMPERATURES = [0.01, 100] as const;

/**
 * The T of least mean NLL. In β = 1/T the NLL is convex: its slope is mean(E_p z − z_y), its curvature mean Var_p z ≥ 0.
 * So Newton's steps, halved into a bracket where they leave it, find the only minimum. RangeError: sizes, labels.
 */
export function fitTemperature({ logits, K, labels }: LabelledLogits): Temperature {
  const n = labels.length;
  if (n === 0 || logits.length !== n * K) {
    throw new RangeError(`fitTemperature: ${logits.length} logits for ${n} labels and ${K} classes`);
  }
  for (let i = 0; i < n; i++) {
    if (!(labels[i]! < K)) throw new RangeError(`fitTemperature: label ${labels[i]} of example ${i}, ${K} classes`);
  }
  const at = (beta: number) => slopeAt(logits, K, labels, beta);
  let [low, high] = [1 / TEMPERATURES[1], 1 / TEMPERATURES[0]];
  const ended = (beta: number) => ({ T: 1 / beta, n, nll: at(beta).nll, atBound: true });
  if (!(at(low).slope < 0)) return ended(low);
  if (!(at(high).slope > 0)) return ended(high);
  let beta = 1;
  for (let step = 0; step < 200 && high - low > 1e-13 * high; step++) {
    const { slope, curvature } = at(beta);
    if (slope === 0) break;
    if (slope < 0) low = beta;
    else high = beta;
    const newton = beta - slope / curvature;
    const next = newton > low && newton < high ? newton : (low + high) / 2;
    if (Math.abs(next - beta) <= 1e-13 * beta) break;
    beta = next;
  }
  return { T: 1 / beta, n, nll: at(beta).nll, atBound: false };
}

/** log p of every class at T: log softmax(z/T). RangeError: T is not above 0. */
export function temper(logits: ArrayLike<number>, K: number, T: number): LogProbabilities {
  if (!(T > 0)) throw new RangeError(`temper: T is ${T}`);
  return logSoftmaxRows(
    Float64Array.from(logits, (z) => z / T),
    K,
  );
}

export interface TemperatureScaled {
  temperature: Temperature;
  /** Of `reportOn` at T. */
  logp: LogProbabilities;
  metrics: Metrics;
}

/**
 * T from `fitOn`, metrics on `reportOn`. RangeError: the two are one array, or differ in K. That their rows differ (a
 * fifth of the training rows kept back, say) is the caller's to see to: numbers do not show where they came from.
 */
export function temperatureScaled(
  { fitOn, reportOn }: { fitOn: LabelledLogits; reportOn: LabelledLogits },
  { seed = 0 } = {},
): TemperatureScaled {
  if (fitOn.logits === reportOn.logits) throw new RangeError("temperatureScaled: fitted on what is reported");
  if (fitOn.K !== reportOn.K) throw new RangeError(`temperatureScaled: ${fitOn.K} classes and ${reportOn.K}`);
  const temperature = fitTemperature(fitOn);
  const logp = temper(reportOn.logits, reportOn.K, temperature.T);
  return { temperature, logp, metrics: metricsOf(logp, reportOn.labels, { seed }) };
}

/** Mean NLL of p ∝ exp(βz), its slope and curvature in β. */
function slopeAt(logits: ArrayLike<number>, K: number, labels: ArrayLike<number>, beta: number) {
  let [nll, slope, curvature] = [0, 0, 0];
  for (let i = 0; i < labels.length; i++) {
    const row = i * K;
    let most = Number.NEGATIVE_INFINITY;
    for (let k = 0; k < K; k++) most = Math.max(most, logits[row + k]!);
    // Logits below the largest: the sums lose nothing to a common shift.
    let [total, first, second] = [0, 0, 0];
    for (let k = 0; k < K; k++) {
      const d = logits[row + k]! - most;
      const e = Math.exp(beta * d);
      if (e === 0) continue; // 0 · −∞ = 0
      total += e;
      first += e * d;
      second += e * d * d;
    }
    const mean = first / total;
    const own = logits[row + labels[i]!]! - most;
    nll += Math.log(total) - beta * own;
    slope += mean - own;
    curvature += Math.max(0, second / total - mean * mean);
  }
  const n = labels.length;
  return { nll: nll / n, slope: slope / n, curvature: curvature / n };
}
