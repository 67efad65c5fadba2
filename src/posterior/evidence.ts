/**
 * @file The evidence log P(X): how well prior and model together explain the data, with θ integrated out by Laplace,
 *   log P(X) ≈ log p(X|θ̂) + log p(θ̂) + ½ d log 2π − ½ log |Λ|
 *            = −Σ NLL(θ̂) − ½ Σ_g τ_g ‖Δ_g‖² + ½ Σ_g d_g log τ_g − ½ log |Λ|,   Δ = θ̂ − μ, Λ = τI + H,
 * exact where the likelihood is Gaussian in θ. It never enters a gradient of θ; it compares priors and models. In
 * float64 throughout: on 22 million parameters the terms are of the order 10⁸, where float32 steps by 8.
 * (MacKay, "Bayesian interpolation", 1992; Immer et al., "Scalable marginal likelihood estimation", 2021.)
 *
 * A prior with τ = 0 has no evidence, being improper. Groups with τ = ∞ drop out: they are not random.
 */
import { type Slice, type Theta, tensorNames } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import type { LogPosterior } from "../train/objective.ts";
import type { Prior } from "../train/prior.ts";
import { readSlices } from "./draws.ts";
import { groupOf, type Laplace } from "./laplace.ts";

/** What the evidence knows of one group of parameters. */
export interface EvidenceGroup {
  /** As the prior names it. */
  group: string;
  /** τ; or the strength τ of precisions τ·tᵢ, of which then all that follows is in units of t. */
  precision: number;
  /** d */
  size: number;
  /** ‖θ̂ − μ‖², or Σ tᵢΔᵢ² */
  squaredDistance: number;
  /** tr Λ⁻¹ over the group, or Σ tᵢ(Λ⁻¹)ᵢᵢ */
  traceInverse: number;
  /** Σ log tᵢ; absent: 0. */
  logShape?: number;
}

/** −Σ NLL − ½ Σ τ‖Δ‖² + ½ Σ d log τ − ½ log |Λ|, in nats; `nll` is the sum over the data, with all its constants. */
export function logEvidence(nll: number, logDet: number, groups: readonly EvidenceGroup[]): number {
  const prior = groups.reduce(
    (sum, g) => sum + g.size * Math.log(g.precision) + (g.logShape ?? 0) - g.precision * g.squaredDistance,
    0,
  );
  return -nll + 0.5 * (prior - logDet);
}

/**
 * d log P(X) / dτ = ½ (d/τ − ‖Δ‖² − tr Λ⁻¹). Through θ̂ nothing comes, as log p(θ, X) is stationary there; but H moves
 * with θ̂ where the likelihood is not Gaussian, and that part is left out.
 */
export function evidenceGradient({ precision, size, squaredDistance, traceInverse }: EvidenceGroup): number {
  return 0.5 * (size / precision - squaredDistance - traceInverse);
}

/** γ = d − τ tr Λ⁻¹ ≥ 0: how many of a group's d parameters the data determine. */
export function effectiveParameters({ precision, size, traceInverse }: EvidenceGroup): number {
  return Math.max(0, size - precision * traceInverse); // where they determine none, rounding may leave less
}

/**
 * MacKay's next τ, γ / ‖Δ‖², whose fixed point has `evidenceGradient` 0. ∞ where θ̂ = μ: nothing in the data asks for a
 * distance. θ̂ is the old τ's: refit it before the next step (`maximiseEvidence`).
 */
export function nextPrecision(group: EvidenceGroup): number {
  return effectiveParameters(group) / group.squaredDistance;
}

export interface Evidence {
  /** log P(X), nats */
  logEvidence: number;
  /** Σ NLL at θ̂, nats */
  nll: number;
  groups: readonly EvidenceGroup[];
}

export interface EvidenceOptions {
  /**
   * What a parameter does that learns but is not in the Laplace approximation. Default "refuse". "fixed": it counts as
   * known, and what is returned is log P(X | the rest at θ̂): of a last layer, its own evidence.
   */
  rest?: "refuse" | "fixed";
}

/**
 * log P(X) of a model at θ̂, which has to be the maximum of its posterior: half of ∇ᵀΛ⁻¹∇ is what it is short by, to second
 * order, where it is not (`priorStrength` tells by its effective τ). The batches hold the training data, all N terms. Throws
 * InputError: a precision of 0 (no evidence), a temperature other than 1, a parameter that learns and is not in the
 * approximation, another number of terms.
 */
export async function evidence<B>(
  { model, prior, N }: LogPosterior<B>,
  state: Laplace,
  batches: readonly B[],
  { rest = "refuse" }: EvidenceOptions = {},
): Promise<Evidence> {
  const { ggn, gaussians, temperature, likelihoodTemperature } = state;
  if (temperature !== 1 || likelihoodTemperature !== 1) {
    throw new InputError(
      `evidence: a posterior at temperature ${temperature}, likelihood ${likelihoodTemperature} is not p(θ|X). Use 1 for both.`,
    );
  }
  if (rest === "refuse") refuseRest(model.theta, prior, new Set(ggn.blocks.flatMap(({ slices }) => slices)));
  const groups = await evidenceGroups({ model, prior }, state);
  const nll = await summedNll(model, batches, N);
  const logDet = gaussians.reduce((sum, gaussian) => sum + gaussian.logDet, 0);
  const all = groups.map(({ blocks: _, ...group }) => group);
  return { logEvidence: logEvidence(nll, logDet, all), nll, groups: all };
}

/**
 * What the approximation says of each group (and precision in it), with the blocks that it is made of. InputError: a
 * precision of 0.
 */
export async function evidenceGroups<B>(
  { model, prior }: Pick<LogPosterior<B>, "model" | "prior">,
  { ggn, gaussians, precisions, shapes }: Laplace,
): Promise<(EvidenceGroup & { logShape: number; blocks: readonly number[] })[]> {
  const groups = new Map<string, EvidenceGroup & { logShape: number; blocks: number[] }>();
  for (const [b, { slices, curvature }] of ggn.blocks.entries()) {
    const precision = precisions[b] as number;
    const group = namedBy(prior, slices[0] as Slice);
    if (precision === 0) throw improper(group);
    const theta = ggn.center[b] as Float32Array;
    const t = shapes[b];
    if (t?.some((value) => !(value > 0))) throw improper(group);
    const mu = await readSlices(model.theta, slices, prior.mu);
    const known = groups.get(`${group} ${precision}`);
    const found = known ?? { group, precision, size: 0, squaredDistance: 0, traceInverse: 0, logShape: 0, blocks: [] };
    found.blocks.push(b);
    found.size += curvature.size;
    found.squaredDistance += theta.reduce((sum, x, i) => sum + (t?.[i] ?? 1) * (x - (mu[i] as number)) ** 2, 0);
    found.traceInverse += gaussians[b]?.traceInverse(t) ?? 0;
    found.logShape += t?.reduce((sum, value) => sum + Math.log(value), 0) ?? 0;
    groups.set(`${group} ${precision}`, found);
  }
  return [...groups.values()];
}

/** Σ NLL over the batches, without dropout. */
async function summedNll<B>(model: LogPosterior<B>["model"], batches: readonly B[], N: number): Promise<number> {
  const { engine } = model;
  let sum = 0;
  let terms = 0;
  for (const batch of batches) {
    for (const nll of await engine.evaluate(() => model.loss(batch).nlls)) {
      sum += nll;
      terms++;
    }
  }
  if (terms !== N) throw new InputError(`evidence: the data hold ${terms} terms, the log-posterior says N = ${N}.`);
  return sum;
}

/** The group by which the prior's precisions name a slice. */
export function namedBy(prior: Pick<Prior, "precisions">, slice: Slice): string {
  return (
    [...slice.groups].reverse().find((group) => Object.hasOwn(prior.precisions, group)) ?? groupOf({ slices: [slice] })
  );
}

function refuseRest(theta: Theta, prior: Prior, covered: ReadonlySet<Slice>): void {
  for (const slice of theta.layout.slices) {
    if (theta.isFrozen(slice) || covered.has(slice)) continue;
    const [group, precision] = [namedBy(prior, slice), prior.precision(slice)];
    if (precision === 0) throw improper(group);
    throw new InputError(
      `evidence: ${tensorNames(slice)} of ${group} learns (precision ${precision}) and is not in the Laplace approximation. ` +
        `Freeze ${group} (precision inf), take it into the approximation, or count it as fixed.`,
    );
  }
}

function improper(group: string): InputError {
  return new InputError(
    `evidence: ${group} has precision 0, and an improper prior has no evidence. Give ${group} a precision above 0, or inf.`,
  );
}

export interface MaximiseOptions {
  /** Default 30. */
  rounds?: number;
  /** Stops when no τ changes by more than this share; default 1e-4. */
  tolerance?: number;
}

/**
 * MacKay's fixed point τ = γ / ‖Δ‖², group by group. `at` refits θ̂ under the precisions it is given and returns their
 * evidence. Where two rounds show how log(γ / ‖Δ‖²) − log τ falls with log τ, the next τ is where it would be 0 (the secant
 * rule), in the direction that MacKay's own step has. A τ that runs to 0 or ∞ ends the search, with the evidence before it.
 */
export async function maximiseEvidence(
  at: (precisions: Readonly<Record<string, number>>) => Promise<Evidence>,
  start: Readonly<Record<string, number>>,
  { rounds = 30, tolerance = 1e-4 }: MaximiseOptions = {},
): Promise<{ precisions: Readonly<Record<string, number>>; evidence: Evidence; rounds: number; converged: boolean }> {
  let precisions = start;
  /** Of the round before: log τ of each group, and how far MacKay's step went. */
  let before: Readonly<Record<string, { at: number; step: number }>> = {};
  for (let round = 1; ; round++) {
    const found = await at(precisions);
    const next = { ...precisions, ...Object.fromEntries(found.groups.map((g) => [g.group, nextPrecision(g)])) };
    const steps = Object.fromEntries(
      found.groups.map(({ group, precision }) => [
        group,
        { at: Math.log(precision), step: Math.log((next[group] ?? precision) / precision) },
      ]),
    );
    const moved = found.groups.map(({ group, precision }) => Math.abs((next[group] ?? precision) / precision - 1));
    const converged = Math.max(0, ...moved) <= tolerance;
    const stuck = Object.values(next).some((tau) => tau === 0) || found.groups.some((g) => next[g.group] === Infinity);
    if (converged || stuck || round === rounds) return { precisions, evidence: found, rounds: round, converged };
    precisions = {
      ...next,
      ...Object.fromEntries(
        Object.entries(steps).map(([group, now]) => [group, Math.exp(now.at + secantStep(before[group], now))]),
      ),
    };
    before = steps;
  }
}

/** Most that log τ moves at once by the secant rule, in MacKay's steps: his are too short, but a far larger one is not believed. */
const FARTHEST = 20;

/** How far log τ goes. */
function secantStep(
  before: { at: number; step: number } | undefined,
  { at, step }: { at: number; step: number },
): number {
  if (before === undefined) return step;
  const stretch = (at - before.at) / (before.step - step);
  return stretch > 0 ? step * Math.min(stretch, FARTHEST) : step;
}
