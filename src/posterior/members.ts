/**
 * @file Predictions from one θ or from many small models inside it. Dropout members: the batch is repeated S times, each
 * copy has its own mask, and all S go through the model as one packed batch: one forward, one submit (Gal and Ghahramani,
 * "Dropout as a Bayesian approximation", 2016). What comes back is averaged as probabilities, in the log domain.
 */
import { type Example, type PackedBatch, packBatch, repeatBatch } from "../data/batches.ts";
import { InputError } from "../errors.ts";
import { streamKey } from "../random.ts";
import { type Classifier, EVALUATION_BATCH, labelsOf } from "../train/evaluate.ts";
import { logSoftmaxRows, type Metrics, metricsOf } from "../train/metrics.ts";
import { combine, type Predictive } from "./predictive.ts";

export interface Prediction extends Predictive {
  n: number;
  K: number;
  /** S */
  members: number;
  /** [n·K]: of one member its logits; of several log p̄, whose softmax is p̄. */
  logits: Float64Array;
}

/** A way to predict: the one interface of everything that stands for p(θ|X). */
export interface Posterior {
  /** S: how many models are averaged. */
  readonly members: number;
  /** `index` numbers the batch within a data set: members' random streams are named by it. */
  predict(batch: PackedBatch, index?: number): Promise<Prediction>;
}

/** One θ, no dropout: what MLE and MAP predict with. */
export function pointEstimate(model: Classifier): Posterior {
  return {
    members: 1,
    async predict(batch) {
      const { engine } = model;
      const { read } = engine.step(() => engine.noGrad(() => ({ read: model.logits(batch).read() })));
      const logits = await read;
      return predictionOf([logits], batch.sequences);
    },
  };
}

export interface DropoutMembersOptions {
  /** S ≥ 1 */
  S: number;
  seed?: number;
  /**
   * Most tokens in one pass; default 8,192. Where S copies of a batch hold more, its members come in several passes
   * (and their masks are drawn anew for each: the same limit gives the same masks).
   */
  maxTokens?: number;
}

/** S dropout masks of one θ. Throws InputError unless S is a whole number ≥ 1. */
export function dropoutMembers(model: Classifier, { S, seed = 0, maxTokens = 8192 }: DropoutMembersOptions): Posterior {
  if (!Number.isSafeInteger(S) || S < 1) throw new InputError(`members: ${S} (expected a whole number from 1).`);
  return {
    members: S,
    async predict(batch, index = 0) {
      const { engine } = model;
      const most = Math.max(1, Math.floor(maxTokens / batch.tokens));
      const passes: Promise<Float32Array>[] = [];
      for (let first = 0; first < S; first += most) {
        const copies = Math.min(most, S - first);
        const packed = repeatBatch(batch, copies);
        // A mask is a function of key and element: the copies differ because their elements do.
        const keys = (site: number) => streamKey(seed, "members", index, first, site);
        const { read } = engine.step(() => engine.noGrad(() => ({ read: model.logits(packed, keys).read() })));
        read.catch(() => {}); // awaited below
        passes.push(read);
      }
      const all = await Promise.all(passes);
      // Copy c of a pass is its rows c·B … (c + 1)·B: the passes, one after the other, are the members.
      const flat = Float32Array.from(all.flatMap((pass) => [...pass]));
      const size = flat.length / S; // B·K
      const members = Array.from({ length: S }, (_, s) => flat.subarray(s * size, (s + 1) * size));
      return predictionOf(members, batch.sequences);
    },
  };
}

/** Predictions for all examples, batch by batch. RangeError: none. */
export async function predictAll(
  posterior: Posterior,
  examples: readonly Example[],
  { batch = EVALUATION_BATCH, onBatch }: { batch?: number; onBatch?: (done: number) => void } = {},
): Promise<Prediction> {
  if (examples.length === 0) throw new RangeError("predictAll: no examples");
  const parts: Prediction[] = [];
  for (let from = 0; from < examples.length; from += batch) {
    parts.push(await posterior.predict(packBatch(examples.slice(from, from + batch)), parts.length));
    onBatch?.(Math.min(examples.length, from + batch));
  }
  const join = (pick: (part: Prediction) => Float64Array) => {
    const all = new Float64Array(parts.reduce((sum, part) => sum + pick(part).length, 0));
    let at = 0;
    for (const part of parts) {
      all.set(pick(part), at);
      at += pick(part).length;
    }
    return all;
  };
  return {
    n: examples.length,
    K: (parts[0] as Prediction).K,
    members: posterior.members,
    logits: join((p) => p.logits),
    logMean: join((p) => p.logMean),
    epistemic: join((p) => p.epistemic),
    aleatoric: join((p) => p.aleatoric),
    total: join((p) => p.total),
  };
}

/** Metrics of the averaged predictions. The examples have labels. */
export function metricsOfPrediction({ logMean, K }: Prediction, examples: readonly Example[]): Metrics {
  return metricsOf({ logp: logMean, K }, labelsOf(examples));
}

function predictionOf(members: readonly ArrayLike<number>[], n: number): Prediction {
  const K = (members[0]?.length ?? 0) / n;
  const logp = members.map((logits) => logSoftmaxRows(logits, K).logp);
  const combined = combine(logp, n, K);
  const logits = members.length === 1 ? Float64Array.from(members[0] ?? []) : combined.logMean;
  return { n, K, members: members.length, logits, ...combined };
}
