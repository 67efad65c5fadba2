/**
 * @file SWAG: training goes on at a constant rate, and the points that it passes make a Gaussian (Maddox et al. 2019), mean
 * θ̄, diagonal and the last K deviations. The points are networks that work, of the encoder too. Their spread is the
 * gradient noise's: where that has the curvature's covariance, SGD at rate ε on batches of B has variance ε/2B in every
 * direction that the data reach, and 0 where they say nothing and the posterior has the prior's width (Mandt, Hoffman and
 * Blei 2017). Several such Gaussians, one to a mode, are multi-SWAG (Wilson, Izmailov 2020).
 */
import type { Slice, Theta } from "../autograd/index.ts";
import type { Example, PackedBatch } from "../data/batches.ts";
import { InputError } from "../errors.ts";
import { type Live, type NdArray, swagCollect, swagDraw } from "../kernels/index.ts";
import { Stream, streamKey } from "../random.ts";
import { type FitOptions, Trainer } from "../train/fit.ts";
import type { LogPosterior } from "../train/objective.ts";
import type { Optimizer } from "../train/optimizers.ts";
import { epochsOf, type Source, whole } from "../train/source.ts";
import { expectVectorRoom, type VectorPlan } from "../train/vector-room.ts";
import { type Draws, readSlices, trainedSlices, writeSlices } from "./draws.ts";
import { MOST_STEPS } from "./trajectory.ts";

/** The path is of the objective that the run had: what clips, accumulates, drops, mixes or regularises there does so here. */
export interface SwagOptions extends Pick<FitOptions, "accumulate" | "clip" | "dropout" | "mixout" | "rDrop"> {
  /** At its rate, without warm-up or decay. */
  optimizer: Optimizer;
  /** Points of the path, from 2. */
  points: number;
  /** Steps between points. */
  every: number;
  /** Steps before the first interval, so that a fresh optimiser settles; default `every`. */
  burnIn?: number | undefined;
  /** K, the deviations kept: each is a vector as long as θ. 0 or 1: diagonal only. Default 10. */
  rank?: number | undefined;
  batch: number;
  seed?: number | undefined;
  /** Most device memory in use, where it is known: more is refused before it is allocated, with the rank that fits. */
  maxBytes?: number | undefined;
  signal?: AbortSignal | undefined;
  /** Called after every step, with the share of the steps that are taken. */
  progress?: ((share: number) => void) | undefined;
  warn?: ((line: string) => void) | undefined;
}

/** Steps of the path. Throws InputError for a number of points or steps out of range. */
export function swagSteps({ points, every, burnIn = every }: Pick<SwagOptions, "points" | "every" | "burnIn">): number {
  whole("points", points, 2);
  whole("every", every, 1);
  whole("burn-in", burnIn, 0);
  const steps = burnIn + points * every;
  if (steps <= MOST_STEPS) return steps;
  throw new InputError(
    `SWAG: ${points} points, ${every} steps apart, are ${steps} steps (at most ${MOST_STEPS}). Take fewer, or nearer ones.`,
  );
}

/** What walking a path and drawing from it holds at most: the Gaussian and the optimiser's vectors. */
export function swagVectors({ optimizer, points, rank = 10, mixout = 0 }: SwagOptions): VectorPlan {
  const training = optimizer.vectors.length + (mixout > 0 ? 1 : 0);
  return { what: "SWAG", rank, vectors: (rank) => training + 3 + Math.max(1, Math.min(rank, points)) };
}

/** The Gaussian, on the device. It holds (3 + K) vectors of θ's length: dispose of it. */
export class Swag {
  /** What its draws cover: all that is not frozen. */
  readonly slices: readonly Slice[];
  readonly #theta: Theta;
  readonly #mean: NdArray;
  readonly #m2: NdArray;
  readonly #drawn: NdArray;
  readonly #rank: number;
  /** Made before the path begins: a device that has no room says so then, and no step waits for memory. */
  readonly #spare: NdArray[];
  readonly #deviations: NdArray[] = [];
  #points = 0;

  constructor(theta: Theta, rank: number) {
    whole("rank", rank, 0);
    this.slices = trainedSlices(theta);
    this.#theta = theta;
    this.#rank = rank;
    [this.#mean, this.#m2, this.#drawn] = [theta.vector(), theta.vector(), theta.vector()];
    this.#spare = Array.from({ length: Math.max(1, rank) }, () => theta.vector());
  }

  get points(): number {
    return this.#points;
  }

  /** Takes in θ as it is now. `visited`: what may have moved since the first point, where that is known. */
  collect(visited: () => Live | undefined = () => undefined): void {
    // With none to spare the oldest deviation makes room for the newest.
    const deviation = this.#spare.pop() ?? (this.#deviations.shift() as NdArray);
    this.#points++;
    const { gpu } = this.#theta.engine;
    const moments = { mean: this.#mean, m2: this.#m2 };
    gpu.scope(() => swagCollect(gpu, this.#theta.values, moments, deviation, this.#points, { live: visited() }));
    this.#deviations.push(deviation);
  }

  /** θ̄ of the slices, as a draw has it. */
  mean(): Promise<Float32Array> {
    return readSlices(this.#theta, this.slices, this.#mean);
  }

  /**
   * S draws of N(θ̄, T·Σ), made as they are read, of all points that there are then; draw s is the same for the same seed.
   * InputError: fewer than two points.
   */
  draws(S: number, { seed = 0, temperature = 1 } = {}): Draws {
    whole("members", S, 1);
    if (this.#points < 2) throw new InputError(`SWAG: ${this.#points} points (expected two or more). Collect more.`);
    if (!(temperature >= 0 && Number.isFinite(temperature)))
      throw new InputError(`temperature: ${temperature} (expected a number from 0).`);
    const deviations = this.#rank > 1 ? this.#deviations : [];
    const moments = { mean: this.#mean, m2: this.#m2, deviations };
    return {
      size: S,
      slices: this.slices,
      read: (s) => {
        const stream = new Stream(seed, "swag weights", s);
        const weights = deviations.map(() => stream.normal());
        const key = streamKey(seed, "swag draw", s);
        // The moments are those of now, and so is their count.
        const gaussian = { ...moments, points: this.#points };
        swagDraw(this.#theta.engine.gpu, gaussian, this.#drawn, { key, weights, temperature });
        return readSlices(this.#theta, this.slices, this.#drawn);
      },
    };
  }

  dispose(): void {
    for (const vector of [this.#mean, this.#m2, this.#drawn, ...this.#spare.splice(0), ...this.#deviations.splice(0)])
      this.#theta.release(vector);
  }
}

/**
 * Trains on from where θ stands and collects; θ is afterwards what it was. Throws InputError for an option out of range, and
 * where the vectors would leave no room within `maxBytes`; DivergedError where the path leaves the finite numbers.
 */
export async function swag<B = PackedBatch>(
  target: LogPosterior<B>,
  data: Source<B> | (PackedBatch extends B ? readonly Example[] : never),
  options: SwagOptions,
): Promise<Swag> {
  const { optimizer, points, every, burnIn = every, rank = 10, batch, seed = 0, signal, progress, warn } = options;
  const steps = swagSteps(options);
  const { accumulate = 1, clip, dropout, mixout, rDrop } = options;
  const { theta } = target.model;
  whole("rank", rank, 0);
  expectVectorRoom(theta, swagVectors(options), options.maxBytes);
  const found = new Swag(theta, Math.min(rank, points));
  const start = await readSlices(theta, found.slices);
  // Ends the path as its epochs would, with what a run's end checks; leaving the loop would not.
  const stop = new AbortController();
  const due = (step: number) => step > burnIn && (step - burnIn) % every === 0;
  let trainer: Trainer<B> | undefined;
  try {
    trainer = new Trainer(target, data, {
      optimizer,
      epochs: epochsOf(steps, data.length, batch, accumulate),
      batch,
      accumulate,
      clip,
      dropout,
      mixout,
      rDrop,
      // Another order and other masks than those of the training before.
      seed: streamKey(seed, "swag path")[0],
      schedule: "constant",
      warmup: 0,
      settle: due,
      signal: AbortSignal.any([stop.signal, ...(signal ? [signal] : [])]),
      ...(warn ? { warn } : {}),
    });
    for await (const { step } of trainer.run()) {
      progress?.(step / steps);
      if (!due(step)) continue;
      found.collect(() => trainer?.visited());
      if (step === steps) stop.abort();
    }
    return found;
  } catch (error) {
    found.dispose();
    throw error;
  } finally {
    trainer?.dispose();
    writeSlices(theta, found.slices, start);
  }
}
