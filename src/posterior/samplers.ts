/**
 * @file Samplers as optimisers with noise: what a step of the trainer needs to wander over p(θ|X)^(1/T) instead of climbing
 * it. Minibatches, the prior's gradient, frozen groups, resuming and the watch over gradients that are not finite are the
 * trainer's, as for Adam. A step of size h on J = −(1/N) log p(X, θ) has noise √(2h·T/N): T = 1 is the posterior itself.
 */
import type { Layout } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import { langevinUpdate, type Stretch } from "../kernels/index.ts";
import { joinWindows, type Window } from "../kernels/windows.ts";
import { streamKey } from "../random.ts";
import { type LearningRates, type Optimizer, rateFacts, rateOf, type UpdateContext } from "../train/optimizers.ts";
import { shareOf } from "./draws.ts";

export interface LangevinSettings extends LearningRates {
  /** Likelihood terms in the data: the noise's scale, as it is the prior's. */
  N: number;
  /** T of the whole posterior, p(θ|X)^(1/T); default 1. 0 is gradient descent. */
  temperature?: number | undefined;
  /** Names the noise. */
  seed?: number | undefined;
  /** Cyclical step sizes: see `cyclical`. */
  cycle?: Cycle | undefined;
}

export interface Cycle {
  /** Steps of a cycle. */
  length: number;
  /** The share of it that explores, at large steps and without noise, before the rest samples; default .5: in the last fifth steps are a thirtieth. */
  exploration?: number | undefined;
}

/** Stochastic gradient Langevin dynamics (Welling and Teh 2011). Throws InputError for a setting out of range. */
export function sgld(settings: LangevinSettings): Optimizer {
  return langevin("sgld", settings, undefined);
}

export interface SghmcSettings extends LangevinSettings {
  /** α: the share of the velocity that a step loses, 0 < α ≤ 1; default .1. */
  friction?: number | undefined;
  /**
   * The velocity is drawn anew every so many steps (and takes half a kick: see langevin.wgsl); default: only at the start. A
   * step without noise (T = 0, or where a cycle explores) draws none: there the velocity goes on, as momentum.
   */
  resample?: number | undefined;
}

/** Stochastic gradient Hamiltonian Monte Carlo (Chen, Fox and Guestrin 2014), with momentum resampling. */
export function sghmc({ friction = 0.1, resample, ...settings }: SghmcSettings): Optimizer {
  if (!(friction > 0 && friction <= 1)) throw new InputError(`friction: ${friction} (expected a number in (0, 1]).`);
  if (resample !== undefined && !(Number.isSafeInteger(resample) && resample >= 1))
    throw new InputError(`resample: every ${resample} steps (expected a whole number from 1).`);
  return langevin("sghmc", settings, { friction, resample });
}

/**
 * Step sizes that fall from 1 to 0 along a cosine and start again (Zhang et al., "Cyclical stochastic gradient MCMC", 2020):
 * ½(1 + cos(π·k/length)) at step k of its cycle; large steps find another mode, small ones sample it.
 * Returns the learning-rate factor and whether the step adds noise; steps count from 1.
 */
export function cyclical({ length, exploration = 0.5 }: Cycle): {
  factor(step: number): number;
  samples(step: number): boolean;
} {
  if (!(Number.isSafeInteger(length) && length >= 2))
    throw new InputError(`cycle: ${length} steps (expected a whole number from 2).`);
  if (!(exploration >= 0 && exploration < 1))
    throw new InputError(`exploration: ${exploration} of a cycle (expected 0 to below 1).`);
  const place = (step: number) => ((step - 1) % length) / length;
  return {
    factor: (step) => 0.5 * (1 + Math.cos(Math.PI * place(step))),
    samples: (step) => place(step) >= exploration,
  };
}

/**
 * The cycle whose sampling part has room for one of `cycles` equal shares of a chain's `draws`, rounded up, one every
 * `thin` steps. The share that explores is `exploration` up to a whole step.
 */
export function cycleOf({
  draws,
  thin,
  cycles,
  exploration,
}: {
  draws: number;
  thin: number;
  cycles: number;
  exploration: number;
}): Required<Cycle> {
  const sampling = thin * Math.ceil(draws / cycles);
  const length = Math.max(2, sampling, Math.round(sampling / (1 - exploration)));
  return { length, exploration: (length - sampling) / length };
}

/**
 * Which steps of a chain, counted from 1, its `draws` come from, one every `thin` of them: the last ones of each of its
 * `cycles`, the first cycles giving a draw more where they do not come out even (5 draws of 4 are 2, 1, 1 and 1).
 */
export function cycleShares(
  { length }: Pick<Cycle, "length">,
  { draws, thin, cycles }: { draws: number; thin: number; cycles: number },
): (step: number) => boolean {
  return (step) => {
    const cycle = Math.floor((step - 1) / length);
    return (step - 1) % length >= length - thin * shareOf(draws, cycles, cycle);
  };
}

function langevin(
  name: "sgld" | "sghmc",
  { N, temperature = 1, seed = 0, cycle, ...rates }: LangevinSettings,
  dynamics: { friction: number; resample: number | undefined } | undefined,
): Optimizer {
  if (!(temperature >= 0 && Number.isFinite(temperature)))
    throw new InputError(`temperature: ${temperature} (expected a number from 0). 1 is the posterior itself.`);
  const cycles = cycle && cyclical(cycle);
  const real = new WeakMap<Stretch, Window[]>();
  return {
    name,
    vectors: dynamics ? ["velocity"] : [],
    decay: 0,
    // Every number takes noise, whether or not a batch has reached it.
    rests: false,
    noisy: true,
    lr: rates.lr,
    groups: Object.keys({ ...(rates.headLr === undefined ? {} : { head: 0 }), ...rates.lrs }),
    facts: {
      optimizer: name,
      ...rateFacts(rates),
      temperature,
      "noise seed": seed,
      ...(cycle ? { cycle: cycle.length, exploration: cycle.exploration ?? 0.5 } : {}),
      ...(dynamics ? { friction: dynamics.friction, resample: dynamics.resample ?? "at the start" } : {}),
    },
    lrOf: rateOf(rates),
    ...(cycles ? { factor: (step: number) => cycles.factor(step) } : {}),
    update({ gpu, layout, theta, grad, mu, status, state }: UpdateContext, stretch, lr, step, last) {
      const numbers = real.get(stretch) ?? realNumbers(layout, stretch);
      real.set(stretch, numbers);
      const vectors = { theta, grad, mu, ...(dynamics ? { velocity: state("velocity") } : {}) };
      const every = dynamics?.resample;
      langevinUpdate(gpu, vectors, stretch, status, {
        lr,
        temperature: cycles && !cycles.samples(step) ? 0 : temperature / N,
        friction: dynamics?.friction,
        resample: dynamics !== undefined && (every === undefined ? step === 1 : (step - 1) % every === 0),
        key: streamKey(seed, name, step),
        step,
        last,
        real: numbers,
      });
    },
  };
}

/** A stretch without the padding behind its slices: slices that have none are one piece with their neighbours. */
export function realNumbers(layout: Layout, { offset, length }: Pick<Stretch, "offset" | "length">): Window[] {
  const within = layout.slices.filter((slice) => slice.offset >= offset && slice.offset < offset + length);
  return joinWindows(within.map(({ offset, size }) => ({ offset, length: size })));
}
