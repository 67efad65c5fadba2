/**
 * @file Draws of θ along a sampler's path. A chain starts where θ stands (at the mode), forgets it over `burnIn` steps and
 * then gives a draw every `thin` steps. Only the groups named move: the others are held where they are and, being frozen,
 * cost nothing. What a Bayesian looks at is kept beside each draw: a few functionals rather than millions of traces.
 */
import { type Slice, tensorNames, valueFor } from "../autograd/index.ts";
import type { Example, PackedBatch } from "../data/batches.ts";
import { DivergedError, InputError } from "../errors.ts";
import { streamKey } from "../random.ts";
import { Trainer } from "../train/fit.ts";
import { type FrozenLikelihood, frozenFeatures } from "../train/frozen.ts";
import type { LogPosterior } from "../train/objective.ts";
import type { Optimizer } from "../train/optimizers.ts";
import { expectGroups } from "../train/prior.ts";
import { epochsOf, type Source, whole } from "../train/source.ts";
import { type Draws, heldDraws, readSlices, writeSlices } from "./draws.ts";

export interface TrajectoryOptions {
  /** The sampler of a chain, whose noise is named by `seed`. */
  sampler: (seed: number) => Optimizer;
  /** Groups that are sampled; default: the head. Where an isotropic prior's draws destroy features, sample no more. */
  groups?: readonly string[] | undefined;
  /** Draws kept of each chain, or of the chain with a number, counted from 0. */
  draws: number | ((chain: number) => number);
  /** Steps between draws, from 1; default 1. */
  thin?: number | undefined;
  /** Steps before the first draw's `thin`; default 0. */
  burnIn?: number | undefined;
  /** Default 1. */
  chains?: number | undefined;
  batch: number;
  seed?: number | undefined;
  signal?: AbortSignal | undefined;
  /**
   * True: only these steps of a chain's path give draws (a cycle's sampling part), each of them; `thin` and `burnIn` count
   * those.
   */
  samples?: ((step: number, chain: number) => boolean) | undefined;
  warn?: ((line: string) => void) | undefined;
  /** More to keep beside a draw. Asked at each draw, while θ is that draw; `sentenceLogits` makes one. */
  functionals?: (() => Promise<Readonly<Record<string, number>>>) | undefined;
  /** Called after every eligible step past burn-in, drawn or not: what a chain's mixing is judged by. */
  watch?: ((chain: number, watched: { nll: number; logPrior: number; logJoint: number }) => void) | undefined;
  /** Called after every step, with the share of all chains' steps that are taken. */
  progress?: ((share: number) => void) | undefined;
}

/** One draw and what is watched of it. */
export interface TrajectoryDraw {
  /** Counted from 0. */
  chain: number;
  /** Counted from 0 within its chain. */
  draw: number;
  /** Step of the chain, counted from 1. */
  step: number;
  /** The slices' numbers, as in `Draws`. */
  values: Float32Array;
  /**
   * nll: mean NLL of the step's batch, nats; logPrior, logJoint as in a training's report (of the groups that move), all
   * of the θ that the step started from; distance.GROUP: ‖θ − μ‖ of a group at the draw; what `functionals` says there.
   */
  functionals: Readonly<Record<string, number>>;
}

/**
 * Runs the chains one after the other and gives their draws as they come. θ and what is frozen are afterwards what they
 * were. Throws InputError for an option out of range; DivergedError, with its chain, where one left the finite numbers,
 * after the draws before it were given.
 */
export async function* trajectory<B = PackedBatch>(
  target: LogPosterior<B>,
  data: Source<B> | (PackedBatch extends B ? readonly Example[] : never),
  options: TrajectoryOptions,
): AsyncGenerator<TrajectoryDraw, void, undefined> {
  const { sampler, groups = ["head"], draws, thin = 1, burnIn = 0, chains = 1, batch, seed = 0, samples } = options;
  whole("thin", thin, 1);
  whole("burn-in", burnIn, 0);
  whole("chains", chains, 1);
  const shares = Array.from({ length: chains }, (_, chain) => (typeof draws === "number" ? draws : draws(chain)));
  for (const share of shares) whole("draws", share, 1);
  const { model, prior } = target;
  const { theta } = model;
  const slices = sampledSlices(target, groups);
  const frozen = new Set(theta.layout.slices.filter((slice) => theta.isFrozen(slice)));
  const start = await readSlices(theta, slices);
  const mean = await readSlices(theta, slices, prior.mu);
  let features: FrozenLikelihood<B> | undefined;
  try {
    theta.freeze((slice) => !slices.includes(slice));
    // What is at rest is at rest in all chains: one pass of the encoder over the data serves them.
    features = frozenFeatures<B>(model, data);
    const objective = features ? { ...target, model: features } : target;
    const wantedBy = (chain: number) => (step: number) => samples?.(step, chain) ?? true;
    const lengths = shares.map((share, chain) => stepsFor(burnIn + thin * share, wantedBy(chain)));
    const all = lengths.reduce((sum, length) => sum + length, 0);
    let taken = 0;
    for (const [chain, share] of shares.entries()) {
      writeSlices(theta, slices, start);
      const [own = 0] = streamKey(seed, "chain", chain);
      const wanted = wantedBy(chain);
      const length = lengths[chain] as number;
      const due = new Set<number>();
      let after = 0;
      for (let step = 1, counted = 0; step <= length; step++) {
        if (!wanted(step)) continue;
        counted++;
        if (counted === burnIn) after = step;
        if (counted > burnIn && (counted - burnIn) % thin === 0) due.add(step);
      }
      const trainer = new Trainer<B>(objective, features ?? data, {
        optimizer: sampler(own),
        epochs: epochsOf(length, data.length, batch),
        batch,
        seed: own,
        schedule: "constant",
        warmup: 0,
        dropout: false,
        settle: (step) => due.has(step),
        signal: options.signal,
        ...(options.warn ? { warn: options.warn } : {}),
      });
      try {
        let draw = 0;
        for await (const { step, nll, logPrior, logJoint } of trainer.run()) {
          options.progress?.(++taken / all);
          if (step > after && wanted(step)) options.watch?.(chain, { nll, logPrior, logJoint });
          if (!due.has(step)) continue;
          const values = await readSlices(theta, slices);
          const more = await options.functionals?.();
          const functionals = { nll, logPrior, logJoint, ...distances(slices, values, mean), ...more };
          yield { chain, draw: draw++, step, values, functionals };
          // The last one's step is settled: nothing is in flight.
          if (draw === share) break;
        }
      } catch (error) {
        if (error instanceof DivergedError) error.chain = chain;
        throw error;
      } finally {
        trainer.dispose();
      }
      if (options.signal?.aborted) return;
    }
  } finally {
    features?.dispose();
    theta.freeze((slice) => frozen.has(slice));
    writeSlices(theta, slices, start);
  }
}

/** The slices of the groups, without those that the prior freezes. InputError: nothing is left, or the prior is flat there. */
export function sampledSlices<B>({ model, prior }: LogPosterior<B>, groups: readonly string[]): Slice[] {
  expectGroups("sampled groups", model.theta, groups);
  const named = Object.fromEntries(groups.map((group) => [group, true]));
  const slices = model.theta.layout.slices.filter(
    (slice) => valueFor(slice, named) === true && prior.precision(slice) !== Number.POSITIVE_INFINITY,
  );
  if (slices.length === 0)
    throw new InputError(
      `sampled groups: ${groups.join(", ")} are frozen, so there is nothing to sample. Name others.`,
    );
  const flat = slices.find((slice) => prior.precision(slice) === 0);
  if (flat) {
    throw new InputError(
      `sampled groups: ${flat.groups[0]} has a flat prior (${tensorNames(flat)}), whose posterior need not be one. Give it a precision above 0.`,
    );
  }
  return slices;
}

/** Draws of all chains as members. */
export function drawsOf(slices: readonly Slice[], draws: readonly TrajectoryDraw[]): Draws {
  return heldDraws(
    slices,
    draws.map(({ values }) => values),
  );
}

/** Steps of a chain, or of SWAG's path, at most: beyond any use, and what is planned step by step still has room. */
export const MOST_STEPS = 1e7;

function stepsFor(count: number, wanted: (step: number) => boolean): number {
  for (let step = 1, counted = 0; step <= MOST_STEPS; step++) {
    if (wanted(step) && ++counted === count) return step;
  }
  throw new InputError(
    `draws: the last one is not within ${MOST_STEPS} steps of its chain. Take fewer, a smaller thin or burn-in, or make the cycle's sampling part longer.`,
  );
}

/** ‖θ − μ‖ of each group that the slices belong to, the most particular only. */
function distances(slices: readonly Slice[], values: Float32Array, mean: Float32Array): Record<string, number> {
  const squares: Record<string, number> = {};
  let at = 0;
  for (const { size, groups } of slices) {
    const name = `distance.${groups.at(-1)}`;
    let sum = 0;
    for (let i = at; i < at + size; i++) sum += ((values[i] ?? 0) - (mean[i] ?? 0)) ** 2;
    squares[name] = (squares[name] ?? 0) + sum;
    at += size;
  }
  return Object.fromEntries(Object.entries(squares).map(([name, sum]) => [name, Math.sqrt(sum)]));
}
