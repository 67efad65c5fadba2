/**
 * @file The one interface of everything that stands for p(θ|X): S small models and their logits. What they say together
 * is taken here, and nowhere else: probabilities are averaged in the log domain, and the entropy of the average is split
 * into what the members disagree about and what each of them leaves open (predictive.ts).
 */
import { type Example, type PackedBatch, packBatches } from "../data/batches.ts";
import { EVALUATION_BATCH, labelsOf } from "../train/evaluate.ts";
import { logSoftmaxRows, type Metrics, metricsOf } from "../train/metrics.ts";
import { combine, type Predictive } from "./predictive.ts";

/** A way to predict. */
export interface Posterior {
  /** S: how many models are averaged. */
  readonly members: number;
  /**
   * Logits of every member for the sequences of all batches: S arrays [n·K]. A batch's place in the list names its random
   * streams, so the same list gives the same members. `progress` hears the share that is done, 0 … 1.
   */
  logits(batches: readonly PackedBatch[], progress?: (share: number) => void): Promise<Float32Array[]>;
}

export interface Prediction extends Predictive {
  n: number;
  K: number;
  /** S */
  members: number;
  /** [n·K]: of one member its logits; of several log p̄, whose softmax is p̄. */
  logits: Float64Array;
}

export interface PredictOptions {
  /** Sequences at once. */
  batch?: number;
  /** Hears how many examples' worth of work is done: of several members, one after the other, no whole number. */
  onProgress?: (done: number) => void;
}

/** What the members say together of every example. RangeError: none. */
export async function predictAll(
  posterior: Posterior,
  examples: readonly Example[],
  { batch = EVALUATION_BATCH, onProgress }: PredictOptions = {},
): Promise<Prediction> {
  if (examples.length === 0) throw new RangeError("predictAll: no examples");
  return predict(posterior, packBatches(examples, batch), (share) => onProgress?.(share * examples.length));
}

/** As `predictAll`, for batches that are packed already. */
export async function predict(
  posterior: Posterior,
  batches: readonly PackedBatch[],
  progress?: (share: number) => void,
): Promise<Prediction> {
  const n = batches.reduce((sum, batch) => sum + batch.sequences, 0);
  return predictionOf(await posterior.logits(batches, progress), n);
}

/** Metrics of the averaged predictions. The examples have labels. */
export function metricsOfPrediction({ logMean, K }: Prediction, examples: readonly Example[]): Metrics {
  return metricsOf({ logp: logMean, K }, labelsOf(examples));
}

/** Members' logits, S arrays [n·K], put together. */
export function predictionOf(members: readonly ArrayLike<number>[], n: number): Prediction {
  const K = (members[0]?.length ?? 0) / n;
  const logp = members.map((logits) => logSoftmaxRows(logits, K).logp);
  const combined = combine(logp, n, K);
  const logits = members.length === 1 ? Float64Array.from(members[0] ?? []) : combined.logMean;
  return { n, K, members: members.length, logits, ...combined };
}
