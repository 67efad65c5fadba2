/**
 * @file Randomised MAP: a member is the mode of a perturbed log-posterior, and the modes are draws of the posterior.
 *   −log p̃(θ) = Σᵢ wᵢ·NLLᵢ(θ) + ½ Σ_g τ_g ‖θ_g − a_g‖²,   a ~ N(μ, 1/τ),   wᵢ ~ Exp(1)
 * Both halves of p(X|θ)·p(θ) are perturbed, each by noise of its own covariance. For a linear model with Gaussian noise,
 * with targets y + ε, ε ~ N(0, σ²), in place of weights, the members' covariance is Λ⁻¹ exactly: θ̂ = Λ⁻¹(Xᵀ(y+ε)/σ² + τa)
 * has Λ⁻¹(XᵀX/σ² + τI)Λ⁻¹ = Λ⁻¹. Anchors alone give τΛ⁻², which the data make vanish: members that agree because nothing
 * was shaken. (Pearce, Leibfried and Brintrup 2020 for the anchors; Newton and Raftery 1994 for the weights.)
 *
 * The weights have mean 1 and are *not* rescaled to add up to N. The perturbation of the score at the mode is
 * Σ (wᵢ − 1)gᵢ, whose covariance is Σ gᵢgᵢᵀ, the likelihood's information (of the labels that were seen: where all are fitted
 * it vanishes, and the anchors alone remain); rescaled weights would take (Σg)(Σg)ᵀ/N off it,
 * and under a prior Σg is not 0 at the mode (it is the prior's pull). N, which scales the prior, stays as it is.
 */
import type { Slice } from "../autograd/index.ts";
import type { Example } from "../data/batches.ts";
import { Stream } from "../random.ts";
import type { LogPosterior } from "../train/objective.ts";
import { expectGaussian } from "../train/prior.ts";
import { priorNoise } from "../train/prior-noise.ts";
import { readSlices, writeSlices } from "./draws.ts";
import { sampledSlices } from "./trajectory.ts";

/** Which member of which ensemble: names its noise. */
export interface MemberName {
  seed: number;
  member: number;
}

/** The slices of groups whose centre can be drawn. InputError: see `sampledSlices`; no Gaussian prior. */
export function anchoredSlices<B>(target: LogPosterior<B>, groups: readonly string[]): Slice[] {
  const slices = sampledSlices(target, groups);
  expectGaussian("anchored", target.prior, slices);
  return slices;
}

/** a − μ of some slices, one after the other: a draw of the prior. The stream is (seed, "anchor", member, slice). */
export function anchorNoise<B>(
  { model, prior }: LogPosterior<B>,
  slices: readonly Slice[],
  { seed, member }: MemberName,
): Promise<Float32Array> {
  const { theta } = model;
  return priorNoise(prior, theta, slices, ({ key }) => new Stream(seed, "anchor", member, theta.layout.index(key)));
}

/**
 * Moves the prior's mean in `slices` (as `anchoredSlices` gives them) to a draw of the prior, and θ with it: the member
 * starts at its anchor. Where the data say little only the prior's pull would bring it there, and at τ/N that takes
 * N/(rate·τ) steps, more than a fine-tuning has: members that start alike would still be alike. Mind that an isotropic prior's draws at a
 * precision that is good for MAP destroy an encoder, towards whose ruins the member is then pulled: volume.ts measures it.
 */
export async function drawAnchor<B>(
  target: LogPosterior<B>,
  slices: readonly Slice[],
  name: MemberName,
): Promise<void> {
  const { model, prior } = target;
  const mean = await readSlices(model.theta, slices, prior.mu);
  const anchor = sum(mean, await anchorNoise(target, slices, name));
  for (const vector of [prior.mu, model.theta.values]) writeSlices(model.theta, slices, anchor, vector);
}

/** n weights of mean and variance 1; the stream is (seed, "weights", member). */
export function exponentialWeights(n: number, { seed, member }: MemberName): Float64Array {
  const stream = new Stream(seed, "weights", member);
  return Float64Array.from({ length: n }, () => -Math.log(1 - stream.uniform()));
}

/** The examples with exponential weights: the likelihood's noise where a label is a class. */
export function weighExamples(examples: readonly Example[], name: MemberName): Example[] {
  const weights = exponentialWeights(examples.length, name);
  return examples.map((example, i) => ({ ...example, weight: (weights[i] ?? 1) * (example.weight ?? 1) }));
}

/** y + ε with ε ~ N(0, σ²): the likelihood's noise where a target is a number. The stream is (seed, "targets", member). */
export function perturbedTargets(y: ArrayLike<number>, sigma2: number, { seed, member }: MemberName): Float64Array {
  const stream = new Stream(seed, "targets", member);
  const sigma = Math.sqrt(sigma2);
  return Float64Array.from(y, (value) => value + sigma * stream.normal());
}

function sum(a: Float32Array, b: Float32Array): Float32Array {
  return a.map((value, i) => value + (b[i] ?? 0));
}
