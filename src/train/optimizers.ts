/**
 * @file The optimisers as plain descriptions: what each keeps per parameter, and how it turns ∇J into a step of one
 * stretch of θ. They hold no state; the trainer owns the vectors, so that a checkpoint is those vectors and a step count.
 * The prior's gradient goes through them like the likelihood's.
 */
import { type Layout, type Slice, valueFor } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import type { Gpu } from "../gpu/index.ts";
import { adamUpdate, type Live, type NdArray, type Stretch, sgdUpdate } from "../kernels/index.ts";

export interface UpdateContext {
  readonly gpu: Gpu;
  readonly layout: Layout;
  readonly theta: NdArray;
  /** ∇ of the NLL term. */
  readonly grad: NdArray;
  readonly mu: NdArray;
  readonly status: NdArray;
  /** What of θ the step visits. */
  readonly live: Live;
  /** The optimiser's own vectors, by the names in `vectors`. */
  state(name: string): NdArray;
}

export interface Optimizer {
  readonly name: "adam" | "adamw" | "sgd" | "sgld" | "sghmc";
  /** Vectors of θ's layout that a step needs of the step before, zeros at first. */
  readonly vectors: readonly string[];
  /** The general learning rate, before the schedule. */
  readonly lr: number;
  /** Groups that have a learning rate of their own. */
  readonly groups: readonly string[];
  /** What a resumed run must agree on. */
  readonly facts: Readonly<Record<string, string | number>>;
  /** Decoupled decay, if it has one: not a prior. */
  readonly decay: number;
  /** Whether a weight without a gradient, at its prior mean, stays there: not under a decay towards zero. */
  readonly rests: boolean;
  /** True of samplers: what they follow is the posterior only with the whole gradient, so it must not be clipped. */
  readonly noisy?: boolean;
  /** A schedule of its own in place of the run's: the factor at a step counted from 1. */
  factor?(step: number): number;
  /** Learning rate of a slice before the schedule. */
  lrOf(slice: Slice): number;
  /** One step (counted from 1) of one stretch, at learning rate `lr`; `last`: the step's last stretch, which counts it. */
  update(context: UpdateContext, stretch: Stretch, lr: number, step: number, last: boolean): void;
}

export interface LearningRates {
  /** For everything that no entry of `lrs` covers. */
  lr: number;
  /** Short for `lrs: { head: … }`. */
  headLr?: number | undefined;
  /** By group; the most particular group wins. */
  lrs?: Readonly<Record<string, number>> | undefined;
}

export interface AdamSettings extends LearningRates {
  /** Default [.9, .999]. */
  betas?: readonly [number, number] | undefined;
  /** Default 1e-8, added outside the root. */
  eps?: number | undefined;
}

/** Adam with bias correction (Kingma and Ba 2015). Throws InputError for a setting that is out of range. */
export function adam(settings: AdamSettings): Optimizer {
  return adamFamily("adam", settings, 0, "zero");
}

export interface AdamWSettings extends AdamSettings {
  /** Decoupled decay w (PyTorch's `weight_decay`), default .01; on every parameter, biases and LayerNorms too. */
  decay?: number | undefined;
  /** What the decay pulls to: "zero" as in PyTorch's AdamW, or the prior "mean". */
  towards?: "zero" | "mean" | undefined;
}

/**
 * AdamW (Loshchilov and Hutter 2019): θ ← (1 − lr·w)·θ, then Adam's step. The decay passes by the moments, so it is no
 * prior: it stops where ∇NLLᵢ = −w(√v̂ᵢ + ε)θᵢ, a strength that the gradient's noise decides.
 */
export function adamW({ decay = 0.01, towards = "zero", ...settings }: AdamWSettings): Optimizer {
  if (!(decay >= 0 && decay < 1e6)) {
    throw new InputError(`weight decay: ${decay} (expected a number from 0). 0 is plain Adam.`);
  }
  return adamFamily("adamw", settings, decay, towards);
}

function adamFamily(
  name: "adam" | "adamw",
  { betas = [0.9, 0.999], eps = 1e-8, ...rates }: AdamSettings,
  decay: number,
  towards: "zero" | "mean",
): Optimizer {
  const [beta1, beta2] = betas;
  for (const beta of betas) {
    if (!(beta >= 0 && beta < 1)) throw new InputError(`betas: ${betas.join(", ")} (expected two numbers in [0, 1)).`);
  }
  if (!(Math.fround(eps) > 0)) throw new InputError(`eps: ${eps} (expected a number above 0). The default is 1e-8.`);
  return {
    name,
    vectors: ["m", "v"],
    decay,
    rests: decay === 0 || towards === "mean",
    lr: rates.lr,
    groups: Object.keys(byGroup(rates)),
    facts: { optimizer: name, ...rateFacts(rates), beta1, beta2, eps, decay, ...(decay > 0 ? { towards } : {}) },
    lrOf: rateOf(rates),
    update({ gpu, theta, grad, mu, status, live, state }, stretch, lr, step, last) {
      const vectors = { theta, grad, mu, m: state("m"), v: state("v") };
      adamUpdate(gpu, vectors, stretch, status, { lr, beta1, beta2, eps, step, last, decay, towards, live });
    },
  };
}

export interface SgdSettings extends LearningRates {
  /** Default 0; u ← momentum·u + ∇J, θ ← θ − lr·u (PyTorch's form). */
  momentum?: number | undefined;
}

/** Stochastic gradient descent. */
export function sgd({ momentum = 0, ...rates }: SgdSettings): Optimizer {
  if (!(momentum >= 0 && momentum < 1)) throw new InputError(`momentum: ${momentum} (expected a number in [0, 1)).`);
  return {
    name: "sgd",
    vectors: momentum > 0 ? ["momentum"] : [],
    decay: 0,
    rests: true,
    lr: rates.lr,
    groups: Object.keys(byGroup(rates)),
    facts: { optimizer: "sgd", ...rateFacts(rates), momentum },
    lrOf: rateOf(rates),
    update({ gpu, theta, grad, mu, status, live, state }, stretch, lr, step, last) {
      const vectors = { theta, grad, mu, ...(momentum > 0 ? { momentum: state("momentum") } : {}) };
      sgdUpdate(gpu, vectors, stretch, status, { lr, momentum, step, last, decay: 0, live });
    },
  };
}

function byGroup({ headLr, lrs }: LearningRates): Readonly<Record<string, number>> {
  return { ...(headLr === undefined ? {} : { head: headLr }), ...lrs };
}

/** The learning rate of a slice. Throws InputError for one that is not above 0. */
export function rateOf(rates: LearningRates): (slice: Slice) => number {
  const groups = byGroup(rates);
  for (const [name, lr] of [["lr", rates.lr] as const, ...Object.entries(groups)]) {
    if (!(lr > 0 && Number.isFinite(lr))) {
      const flag = name === "lr" ? "lr" : `lr of ${name}`;
      throw new InputError(
        `${flag}: ${lr} (expected a number above 0). To leave a group as it is, give its prior precision inf.`,
      );
    }
  }
  return (slice) => valueFor(slice, groups) ?? rates.lr;
}

/** Learning rates as facts of a run. */
export function rateFacts(rates: LearningRates): Record<string, number> {
  const groups = Object.entries(byGroup(rates)).map(([group, lr]) => [`lr of ${group}`, lr] as const);
  return { lr: rates.lr, ...Object.fromEntries(groups) };
}
