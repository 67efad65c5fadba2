/**
 * @file The objective, and the only place where its scale is decided:
 *   J(θ) = −(1/N) [log p(X|θ) + log p(θ)] = mean NLL + (1/2N) Σ_g τ_g ‖θ_g − μ_g‖²   (up to a constant)
 * One rule for N everywhere: a batch's NLL is a mean, the prior is divided by N. A batch's NLL term is its sum divided by
 * the *average* batch size, so that the mean over an epoch is the full-batch value also when the last batch is short.
 * The NLL's gradient comes from the tape; the prior's, (τ/N)(θ − μ), is added inside the optimiser's kernel.
 */
import { type Engine, ops, type Tensor, type Theta } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import type { NdArray, Stretch as VectorStretch } from "../kernels/index.ts";
import type { DropoutKeys } from "../model/bert.ts";
import type { PriorDensity } from "./density.ts";
import type { Prior } from "./prior.ts";

/** log p(X|θ), batch by batch: what training asks of a model. */
export interface Likelihood<B> {
  readonly engine: Engine;
  readonly theta: Theta;
  /** −log p of each likelihood term (a sentence, a pair, or a labelled token) in nats, [count]. Inside `engine.step`. */
  loss(batch: B, dropout?: DropoutKeys): { nlls: Tensor; count: number };
  /**
   * The batch and a copy of it in one pass, each under masks of its own: logits [2B, K], the copy's after the batch's, and
   * −log p of all of them, [2B]; `count` is that of the batch. What R-Drop asks (rdrop.ts); absent: it cannot be had.
   */
  twice?(batch: B, dropout?: DropoutKeys): { nlls: Tensor; logits: Tensor; count: number };
}

export interface LogPosterior<B> {
  readonly model: Likelihood<B>;
  readonly prior: Prior;
  /** Likelihood terms in the training data. */
  readonly N: number;
}

/**
 * log p(X|θ) + log p(θ) for a model and its prior. `N` is the number of likelihood terms in the data, and explicit: it
 * decides how strong the prior is. Throws InputError unless N is a whole number ≥ 1.
 */
export function logPosterior<B>(model: Likelihood<B>, prior: Prior, { N }: { N: number }): LogPosterior<B> {
  if (!Number.isSafeInteger(N) || N < 1) {
    throw new InputError(`N: ${N} is not a number of training examples (expected a whole number from 1).`);
  }
  return { model, prior, N };
}

/** One batch's contribution to J, scaled by the average batch size. */
export interface NllTerm {
  /** Σ NLL / average, [1]. */
  loss: Tensor;
  count: number;
  /** With R-Drop: Σ D / average, [1] (rdrop.ts). */
  divergence?: Tensor;
}

/**
 * Forward and backward of one batch: adds ∇(Σ NLL / average), times `seed` ([1]) where there is one, to θ's gradient vector.
 * Inside `engine.step`.
 */
export function accumulateGradient<B>(
  target: LogPosterior<B>,
  batch: B,
  average: number,
  dropout?: DropoutKeys,
  seed?: NdArray,
): NllTerm {
  const { nlls, count } = target.model.loss(batch, dropout);
  const loss = ops.sum(nlls, 1 / average);
  target.model.engine.backward(loss, seed);
  return { loss, count };
}

/** A stretch of θ with one precision and one learning rate: the unit of the optimiser's work. */
export interface Stretch extends VectorStretch {
  /** τ, or a of the density. */
  readonly precision: number;
  /** Absent: an isotropic Gaussian, or flat. */
  readonly density?: PriorDensity | undefined;
  readonly lr: number;
  /** Whether ‖θ − μ‖ of this stretch counts in `distance`. */
  readonly inEncoder: boolean;
}

/** The terms of J at one step, before its update. */
export interface Terms {
  /** Mean NLL of the batch, nats. */
  nll: number;
  /** −½ Σ_g τ_g ‖θ_g − μ_g‖² over the groups with 0 < τ < ∞ (or what its density says), nats, without its constant. */
  logPrior: number;
  /** −N·nll + logPrior: log p(X|θ) + log p(θ), with this batch's NLL standing for the data's. */
  logJoint: number;
  /** ‖∇J‖ before clipping. */
  gradNorm: number;
  /** ‖θ − μ‖ over the encoder. */
  distance: number;
  /** ‖∇ prior term‖ / (‖∇ NLL term‖ + ‖∇ prior term‖): 0 where θ = μ. */
  priorShare: number;
}

/**
 * Puts the reported terms together in float64. `sums` holds, for each stretch, Σg², ΣΔ², Σg·Δ, 0, with g the gradient of
 * the NLL term and Δ = θ − μ (as `vectorTerms` leaves them); `nllSum` is Σ NLL over the batch's `count` terms. Of
 * stretches with a density g is the gradient of J already, and `rows` has what their density's `gradient` gave.
 */
export function combineTerms(
  nllSum: number,
  count: number,
  sums: ArrayLike<number>,
  stretches: readonly Stretch[],
  N: number,
  rows: ArrayLike<number> = [],
): Terms {
  let logPrior = 0;
  let likelihood2 = 0;
  let prior2 = 0;
  let gradient2 = 0;
  let distance2 = 0;
  const dense = stretches.filter(({ density }) => density !== undefined);
  for (const [r, stretch] of stretches.entries()) {
    const { precision, priorScale: s, inEncoder, density } = stretch;
    const [gg = 0, dd = 0, gd = 0] = [sums[4 * r], sums[4 * r + 1], sums[4 * r + 2]];
    if (inEncoder) distance2 += dd;
    if (density) {
      const row = 4 * dense.indexOf(stretch);
      likelihood2 += rows[row] ?? 0;
      prior2 += rows[row + 1] ?? 0;
      gradient2 += gg;
      continue;
    }
    logPrior -= 0.5 * precision * dd;
    likelihood2 += gg;
    prior2 += s * s * dd;
    gradient2 += gg + 2 * s * gd + s * s * dd;
  }
  logPrior -= dense[0]?.density?.energy(rows, dense, N) ?? 0;
  const nll = nllSum / count;
  const [likelihood, prior] = [Math.sqrt(likelihood2), Math.sqrt(prior2)];
  return {
    nll,
    logPrior: logPrior === 0 ? 0 : logPrior,
    logJoint: -N * nll + logPrior,
    // Near a mode the two gradients cancel, and rounding may leave a negative square.
    gradNorm: Math.sqrt(Math.max(0, gradient2)),
    distance: Math.sqrt(distance2),
    priorShare: prior === 0 ? 0 : prior / (likelihood + prior),
  };
}

/**
 * θ cut into stretches of equal precision and learning rate, in order; frozen slices are in none, so they cost nothing.
 * `lr(slice)` is the slice's learning rate before the schedule.
 */
export function stretchesOf(
  theta: Theta,
  prior: Prior,
  N: number,
  lr: (slice: Theta["layout"]["slices"][number]) => number,
): Stretch[] {
  const found: Stretch[] = [];
  for (const slice of theta.layout.slices) {
    if (theta.isFrozen(slice)) continue;
    const precision = prior.precision(slice);
    const rate = lr(slice);
    const inEncoder = slice.groups[0] === "encoder";
    const density = prior.density?.covers(slice) ? prior.density : undefined;
    const last = found.at(-1);
    const joins =
      last !== undefined &&
      last.offset + last.length === slice.offset &&
      last.precision === precision &&
      last.lr === rate &&
      last.inEncoder === inEncoder &&
      last.density === density;
    if (joins) found[found.length - 1] = { ...last, length: last.length + slice.stride };
    else {
      const { offset, stride: length } = slice;
      found.push({ offset, length, priorScale: precision / N, precision, lr: rate, inEncoder, density });
    }
  }
  return found;
}
