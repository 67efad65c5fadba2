/**
 * @file The optimisers' steps over stretches of the parameter vector: Adam, AdamW and SGD, with the Gaussian prior's
 * gradient inside, so that it goes through the moments like the likelihood's. They obey `status` (terms.ts): the clip
 * factor scales ∇J, and after a gradient that was not finite nothing changes any more.
 */
import { f32, type Gpu, grid } from "../gpu/index.ts";
import type { NdArray } from "./array.ts";
import { allLive, BLOCK, blockWindows, type Live } from "./live.ts";
import { expectStretches, type Stretch, type TermVectors } from "./terms.ts";
import { slice } from "./windows.ts";

export interface AdamVectors extends TermVectors {
  /** First moment; zeros before step 1. */
  readonly m: NdArray;
  /** Second moment; zeros before step 1. */
  readonly v: NdArray;
}

export interface AdamOptions {
  lr: number;
  beta1: number;
  beta2: number;
  /** > 0, outside the root, as PyTorch's. */
  eps: number;
  /** Counted from 1, for the bias correction. */
  step: number;
  /** The step's last update: it writes `step` to status[2], so a step of which only a part ran does not count. */
  last: boolean;
  /**
   * AdamW's decoupled decay w: θ −= lr·w·(θ − center). 0 for Adam. It is not a prior: it stops where
   * ∇NLLᵢ = −w(√v̂ᵢ + ε)(θᵢ − centerᵢ), an effective precision that the gradient's noise decides.
   */
  decay: number;
  /** Where the decay pulls: the prior's "mean" (default), or "zero" as in PyTorch's AdamW. */
  towards?: "zero" | "mean" | undefined;
  /** What to visit; default: everything. Not less than that where the decay pulls at what lies at its prior mean. */
  live?: Live | undefined;
  /** Bytes bound at once, at least a block; tests lower it. */
  window?: number | undefined;
}

/**
 * θ ← θ − lr·w·(θ − center) − lr·m̂/(√v̂ + ε) on one stretch, with ĝ = clipFactor·(g + s·(θ − μ)) in the moments (Kingma and Ba,
 * "Adam", 2015; Loshchilov and Hutter, "Decoupled weight decay", 2019; rounding order as PyTorch's).
 */
export function adamUpdate(
  gpu: Gpu,
  vectors: AdamVectors,
  stretch: Stretch,
  status: NdArray,
  options: AdamOptions,
): void {
  const { lr, beta1, beta2, eps, step, last, decay, towards = "mean" } = options;
  const op = "adamUpdate";
  expectStretches(op, vectors, [stretch]);
  expectStep(op, step);
  if (!(Math.fround(eps) > 0)) throw new RangeError(`${op}: eps ${eps} is not > 0; a gradient of 0 would give 0/0`);
  const { theta, grad, mu, m, v } = vectors;
  // In float64: 1 − 0.999ᵗ has three digits less in float32.
  const rate = lr / (1 - beta1 ** step);
  const biasCorrection2 = 1 / Math.sqrt(1 - beta2 ** step);
  const { priorScale } = stretch;
  const center = towards === "mean" ? 1 : 0;
  const words = [priorScale, lr * decay, rate, beta2, 1 - beta1, 1 - beta2, biasCorrection2, eps, center].map(f32);
  launch(gpu, op, "adam", [grad, mu, theta, m, v], stretch, status, last ? step : 0, words, options);
}

export interface SgdVectors extends TermVectors {
  /** Zeros before step 1; absent where the momentum is 0. */
  readonly momentum?: NdArray | undefined;
}

export interface SgdOptions {
  lr: number;
  momentum: number;
  /** Counted from 1. */
  step: number;
  /** As in AdamOptions. */
  last: boolean;
  /** Decoupled decay towards μ, as in AdamOptions. */
  decay: number;
  live?: Live | undefined;
  window?: number | undefined;
}

/** u ← momentum·u + ĝ, θ ← θ − lr·w·(θ − μ) − lr·u on one stretch, with ĝ as in adamUpdate. */
export function sgdUpdate(gpu: Gpu, vectors: SgdVectors, stretch: Stretch, status: NdArray, options: SgdOptions): void {
  const { lr, momentum, step, last, decay } = options;
  const op = "sgdUpdate";
  expectStretches(op, vectors, [stretch]);
  expectStep(op, step);
  const { theta, grad, mu, momentum: u } = vectors;
  if (momentum !== 0 && !u) throw new RangeError(`${op}: momentum ${momentum} needs a momentum vector`);
  const words = [stretch.priorScale, lr * decay, lr, momentum, 0, 0, 0, 0, 1].map(f32);
  if (u) launch(gpu, op, "sgdMomentum", [grad, mu, theta, u], stretch, status, last ? step : 0, words, options);
  else launch(gpu, op, "sgd", [grad, mu, theta], stretch, status, last ? step : 0, words, options);
}

function expectStep(op: string, step: number): void {
  if (!Number.isInteger(step) || step < 1) throw new RangeError(`${op}: step ${step}; steps are counted from 1`);
}

function launch(
  gpu: Gpu,
  op: string,
  entry: string,
  vectors: NdArray[],
  stretch: Stretch,
  status: NdArray,
  written: number,
  words: number[],
  { live: given, window }: Pick<AdamOptions, "live" | "window">,
): void {
  const live = given ?? allLive(gpu, stretch.offset + stretch.length);
  const pieces = blockWindows(gpu, stretch.offset, stretch.length, window);
  pieces.forEach(({ offset, length, begin }, i) => {
    gpu.dispatch({
      op,
      shader: "update",
      entry,
      bindings: [status, live.words, ...vectors.map((vector) => slice(vector, { offset, length }))],
      params: [length, begin, offset / BLOCK, i === pieces.length - 1 ? written : 0, ...words],
      grid: grid(Math.ceil(length / BLOCK)),
      // The gradient and μ are read; θ and what the optimiser keeps are read and written.
      work: { bytes: 4 * (length - begin) * live.share * (2 + 2 * (vectors.length - 2)) },
    });
  });
  if (!given) gpu.release(live.words.buffer);
}

/** One Adam step in float64, in place; `clipFactor` as status[1]. The gradient is of J: prior included. */
export function adamReference(
  state: { theta: Float64Array; m: Float64Array; v: Float64Array },
  grad: ArrayLike<number>,
  mu: ArrayLike<number>,
  stretch: Stretch,
  clipFactor: number,
  { lr, beta1, beta2, eps, step, decay, towards = "mean" }: AdamOptions,
): void {
  const { theta, m, v } = state;
  for (let i = stretch.offset; i < stretch.offset + stretch.length; i++) {
    const delta = (theta[i] ?? 0) - (mu[i] ?? 0);
    const g = clipFactor * ((grad[i] ?? 0) + stretch.priorScale * delta);
    const first = beta1 * (m[i] ?? 0) + (1 - beta1) * g;
    const second = beta2 * (v[i] ?? 0) + (1 - beta2) * g * g;
    const firstHat = first / (1 - beta1 ** step);
    const secondHat = second / (1 - beta2 ** step);
    const off = towards === "mean" ? delta : (theta[i] ?? 0);
    theta[i] = (theta[i] ?? 0) - lr * decay * off - (lr * firstHat) / (Math.sqrt(secondHat) + eps);
    m[i] = first;
    v[i] = second;
  }
}

/** One SGD step in float64, in place. */
export function sgdReference(
  state: { theta: Float64Array; momentum: Float64Array },
  grad: ArrayLike<number>,
  mu: ArrayLike<number>,
  stretch: Stretch,
  clipFactor: number,
  { lr, momentum, decay }: SgdOptions,
): void {
  for (let i = stretch.offset; i < stretch.offset + stretch.length; i++) {
    const delta = (state.theta[i] ?? 0) - (mu[i] ?? 0);
    const g = clipFactor * ((grad[i] ?? 0) + stretch.priorScale * delta);
    const u = momentum * (state.momentum[i] ?? 0) + g;
    state.momentum[i] = u;
    state.theta[i] = (state.theta[i] ?? 0) - lr * decay * delta - lr * u;
  }
}
