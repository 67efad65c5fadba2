/**
 * @file Where batches come from, and which of them make a step. The order of an epoch is a named random stream, so the
 * plan of any step can be made again: a resumed run needs to know nothing but its step.
 */
import {
  type BatchSize,
  batchesOfEpoch,
  type Example,
  epochOrder,
  type PackedBatch,
  packBatch,
} from "../data/batches.ts";
import { InputError } from "../errors.ts";

/** Which micro-batch this is, for what a source draws (masked tokens, sentence pairs). */
export interface BatchPlace {
  /** Counted from 0. */
  epoch: number;
  /** Counted from 1. */
  step: number;
  /** Counted from 0, within the step. */
  micro: number;
}

/** Training data: `length` examples, and how some of them become a batch. */
export interface Source<B> {
  readonly length: number;
  batch(rows: readonly number[], place: BatchPlace): B;
  /** Likelihood terms that a batch of these rows holds; default: one a row. */
  termCount?(rows: readonly number[]): number;
  /** Tokens of each example, for batches of a token budget. */
  readonly lengths?: ArrayLike<number>;
}

/** Examples in memory, packed as they are needed. */
export function exampleSource(examples: readonly Example[]): Source<PackedBatch> {
  return {
    length: examples.length,
    batch: (rows) => packBatch(rows.map((row) => examples[row] as Example)),
    lengths: examples.map((example) => example.ids.length),
  };
}

export interface PlanOptions {
  epochs: number;
  /** Sequences that go through the model at once, or a token budget. */
  batch: number | { tokens: number };
  /** Micro-batches to a step; default 1. */
  accumulate?: number | undefined;
  seed?: number | undefined;
  /** Default true. */
  shuffle?: boolean | undefined;
  /** The order of an epoch (counted from 0) instead of the seed's: numbers of examples, each once. */
  order?: ((epoch: number) => ArrayLike<number>) | undefined;
}

/** One epoch: its steps, each a list of micro-batches, each a list of rows. */
export interface EpochPlan {
  epoch: number;
  steps: number[][][];
  /**
   * Likelihood terms of the epoch ÷ its steps. A step's NLL term is its sum divided by this, so that the epoch's mean is
   * the full-batch value however short the last batch is.
   */
  average: number;
}

/** All steps of a run. */
export class Plan {
  /** Steps in all. */
  readonly steps: number;
  readonly #source: Source<unknown>;
  readonly #options: PlanOptions;
  /** `#ends[e]`: steps up to the end of epoch e. */
  readonly #ends: number[] = [];
  #current: EpochPlan | undefined;

  constructor(source: Source<unknown>, options: PlanOptions) {
    const { epochs, batch, accumulate = 1 } = options;
    whole("epochs", epochs, 0);
    whole("accumulate", accumulate, 1);
    whole("batch", typeof batch === "number" ? batch : batch.tokens, 1);
    whole("seed", options.seed ?? 0, 0);
    if (source.length === 0) throw new InputError("training data: no examples (expected one or more). Check the file.");
    this.#source = source;
    this.#options = options;
    let total = 0;
    for (let e = 0; e < epochs; e++) {
      // With a fixed number of sequences every epoch has the same steps; a token budget depends on the order.
      const fixed = typeof batch === "number" && stepsOfEpoch(source.length, batch, accumulate);
      total += fixed || this.epoch(e).steps.length;
      this.#ends.push(total);
    }
    this.steps = total;
  }

  /** The epoch (counted from 0) that step (counted from 1) belongs to, and its index in it. */
  locate(step: number): { plan: EpochPlan; index: number; last: boolean } {
    if (!(step >= 1 && step <= this.steps)) throw new RangeError(`step ${step} of ${this.steps}`);
    // The first epoch whose end is not before the step.
    let [epoch, after] = [0, this.#ends.length - 1];
    while (epoch < after) {
      const middle = (epoch + after) >> 1;
      if (step <= (this.#ends[middle] ?? 0)) after = middle;
      else epoch = middle + 1;
    }
    const plan = this.epoch(epoch);
    const index = step - 1 - (this.#ends[epoch - 1] ?? 0);
    return { plan, index, last: step === this.#ends[epoch] };
  }

  epoch(epoch: number): EpochPlan {
    if (this.#current?.epoch === epoch) return this.#current;
    const { batch, accumulate = 1, seed = 0, shuffle = true } = this.#options;
    const { length, lengths } = this.#source;
    const order = this.#options.order?.(epoch) ?? epochOrder(length, seed, epoch, shuffle);
    checkOrder(order, length, epoch);
    const size: BatchSize = typeof batch === "number" ? batch : { tokens: batch.tokens, lengths: lengths ?? [] };
    const micro = batchesOfEpoch(length, size, order);
    const steps: number[][][] = [];
    for (let i = 0; i < micro.length; i += accumulate) steps.push(micro.slice(i, i + accumulate));
    const terms = micro.reduce((sum, rows) => sum + (this.#source.termCount?.(rows) ?? rows.length), 0);
    this.#current = { epoch, steps, average: terms / steps.length };
    return this.#current;
  }
}

/** Steps of an epoch in batches of a fixed number of examples, `accumulate` of them to a step. */
function stepsOfEpoch(examples: number, batch: number, accumulate: number): number {
  return Math.ceil(Math.ceil(examples / batch) / accumulate);
}

/** Epochs, the last perhaps not to its end, that hold so many steps. */
export function epochsOf(steps: number, examples: number, batch: number, accumulate = 1): number {
  return Math.ceil(steps / Math.max(1, stepsOfEpoch(examples, batch, accumulate)));
}

function checkOrder(order: ArrayLike<number>, length: number, epoch: number): void {
  const seen = new Uint8Array(length);
  for (let i = 0; i < order.length; i++) seen[order[i] ?? length] = 1;
  if (order.length !== length || seen.includes(0)) {
    throw new RangeError(`order of epoch ${epoch}: ${order.length} numbers that are not 0 … ${length - 1}, each once`);
  }
}

export function whole(name: string, value: number, least: number): void {
  if (Number.isSafeInteger(value) && value >= least) return;
  throw new InputError(`${name}: ${value} (expected a whole number from ${least}).`);
}
