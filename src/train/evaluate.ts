/**
 * @file Logits of many examples, in batches, without gradients and without dropout; the next batch is recorded while the
 * one before is read.
 */
import type { Engine, Tensor } from "../autograd/index.ts";
import { type Example, type PackedBatch, packBatches } from "../data/batches.ts";
import type { DropoutKeys } from "../model/bert.ts";
import { logSoftmaxRows, type Metrics, metricsOf } from "./metrics.ts";

/** A model that gives every sequence K logits. */
export interface Classifier {
  readonly engine: Engine;
  /** [B, K]. Called inside `engine.step`. */
  logits(batch: PackedBatch, dropout?: DropoutKeys): Tensor;
}

/** Sequences at once where nothing else is asked for. */
export const EVALUATION_BATCH = 32;

/** Logits of all examples in order, [n·K]. No example: an empty array. */
export async function logitsOf(
  model: Classifier,
  examples: readonly Example[],
  { batch = EVALUATION_BATCH, onBatch }: { batch?: number; onBatch?: (done: number) => void } = {},
): Promise<Float32Array> {
  const done = (batches: number) => onBatch?.(Math.min(examples.length, batches * batch));
  return logitsOfBatches(model, packBatches(examples, batch), done);
}

/** As `logitsOf`, for batches that are packed already. `onBatch` hears how many have been read. */
export async function logitsOfBatches(
  model: Classifier,
  batches: readonly PackedBatch[],
  onBatch?: (done: number) => void,
): Promise<Float32Array> {
  const { engine } = model;
  const parts: Float32Array[] = [];
  let reading: Promise<Float32Array> | undefined;
  for (const packed of batches) {
    const next = engine.evaluate(() => model.logits(packed));
    next.catch(() => {}); // awaited below, a batch later
    if (reading) parts.push(await reading);
    onBatch?.(parts.length);
    reading = next;
  }
  if (reading) parts.push(await reading);
  onBatch?.(batches.length);
  return joined(parts);
}

/** Arrays one after the other. */
export function joined(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

export interface Evaluation {
  metrics: Metrics;
  /** [n·K] */
  logits: Float32Array;
  K: number;
}

/** Metrics of a model's own predictions, one member. The examples have labels. RangeError: none, or one without. */
export async function evaluate(
  model: Classifier,
  examples: readonly Example[],
  options: { batch?: number; onBatch?: (done: number) => void } = {},
): Promise<Evaluation> {
  const labels = labelsOf(examples);
  const logits = await logitsOf(model, examples, options);
  const K = logits.length / examples.length;
  return { metrics: metricsOf(logSoftmaxRows(logits, K), labels), logits, K };
}

/** The examples' labels. RangeError: none, or one without. */
export function labelsOf(examples: readonly Example[]): Uint32Array {
  if (examples.length === 0) throw new RangeError("evaluate: no examples");
  return Uint32Array.from(examples, ({ label }, i) => {
    if (label === undefined) throw new RangeError(`evaluate: example ${i} has no label`);
    return label;
  });
}
