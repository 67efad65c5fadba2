/**
 * @file The prior: what pretraining left behind, as a Gaussian around μ. A group g of θ has precision τ_g:
 *   log p(θ) = −½ Σ_g τ_g ‖θ_g − μ_g‖²  (+ a constant that only evidence needs),  ∇ log p(θ) = −τ_g (θ_g − μ_g).
 * τ = 0 is a flat prior (maximum likelihood), τ = ∞ freezes the group. Precisions attach to groups; the most particular
 * group that is named wins, so `{ encoder: …, "layer.0": … }` treats one layer apart.
 */
import { type Slice, type Theta, tensorNames, valueFor } from "../autograd/index.ts";
import { inert, nearest } from "../data/text.ts";
import { InputError } from "../errors.ts";
import { NdArray } from "../kernels/index.ts";
import type { PriorDensity } from "./density.ts";

/**
 * What training asks of a prior: an isotropic Gaussian for each slice, of which the kernels know no more than μ and one τ
 * a stretch, or, for the slices that `density` covers, what that adds to the gradient.
 */
export interface Prior {
  /** Prior mean, a vector of θ's layout. */
  readonly mu: NdArray;
  /** τ of a slice: 0 … ∞. Where `density` covers it, what density.ts says of a. */
  precision(slice: Slice): number;
  /** Absent: isotropic Gaussians everywhere. */
  readonly density?: PriorDensity | undefined;
  /** True when some group has 0 < τ < ∞: the prior has a say in the gradient. */
  readonly active: boolean;
  /** Σ_g ½ d_g log(τ_g / 2π) over the groups with 0 < τ < ∞, nats: the constant that `logPrior` leaves out. */
  readonly logConstant: number;
  /** τ by group, as asked for: for reports, and for resuming. */
  readonly precisions: Readonly<Record<string, number>>;
  dispose(): void;
}

/** The largest precision but ∞: far above any use, and far enough below the end of float32. */
export const LARGEST_PRECISION = 1e30;

export interface GroupPrior {
  /**
   * Default: "pretrained" for what came with a checkpoint, 0 for new parameters. Precision 0 has no mean; a new parameter's
   * start is then what `distance` would be measured from.
   */
  mean?: "pretrained" | 0;
  /** 0 … LARGEST_PRECISION, or Infinity. */
  precision: number;
}

export type GaussianPriorSpec = Readonly<Record<string, GroupPrior>>;

/** θ, and which of its parameters are new. A model is one. */
export interface PriorSubject {
  readonly theta: Theta;
  readonly newParameters?: ReadonlySet<string>;
}

/**
 * A Gaussian prior around θ as it is now; make it after loading and before training. Groups at Infinity are frozen in
 * `theta` from here on. Throws InputError: an unknown group, a precision that is negative or NaN, a group without one,
 * everything frozen, a new group frozen or held to its random start.
 */
export function gaussianPrior(subject: PriorSubject | Theta, spec: GaussianPriorSpec): Prior {
  const { theta, newParameters = new Set<string>() } = "theta" in subject ? subject : { theta: subject };
  checkGroups(theta, spec);
  const { layout, engine } = theta;
  const of = new Map<Slice, GroupPrior>();
  for (const slice of layout.slices) {
    const found = valueFor(slice, spec);
    if (!found) {
      const group = slice.groups.at(-1) ?? slice.key;
      throw new InputError(
        `prior: group ${slice.groups[0] ?? group} has no precision (parameter ${tensorNames(slice)}; given: ${list(Object.keys(spec))}). Give it one; 0 is a flat prior.`,
      );
    }
    checkMean(slice, found, newParameters);
    of.set(slice, found);
  }
  const precision = (slice: Slice) => of.get(slice)?.precision ?? 0;
  if (layout.slices.every((slice) => precision(slice) === Number.POSITIVE_INFINITY)) {
    throw new InputError(
      "prior: every group has precision inf, so nothing is left to train. Give one of them a finite precision.",
    );
  }
  theta.freeze((slice) => precision(slice) === Number.POSITIVE_INFINITY);

  const mu = theta.vector();
  engine.gpu.copy(theta.values, mu);
  for (const slice of layout.slices) {
    const group = of.get(slice);
    for (const p of slice.parameters) {
      // Under a flat prior a new parameter has no mean; its start is then what distance is measured from.
      const fallback = newParameters.has(p.name) && group?.precision !== 0 ? 0 : "pretrained";
      if ((group?.mean ?? fallback) === 0) engine.gpu.clear(new NdArray(mu.buffer, p.offset * 4, [p.size]));
    }
  }
  const finite = layout.slices.filter((slice) => precision(slice) > 0 && precision(slice) < Number.POSITIVE_INFINITY);
  return {
    mu,
    precision,
    active: finite.length > 0,
    logConstant: finite.reduce((sum, slice) => sum + 0.5 * slice.size * Math.log(precision(slice) / (2 * Math.PI)), 0),
    precisions: Object.fromEntries(Object.entries(spec).map(([group, { precision: tau }]) => [group, tau])),
    dispose: () => theta.release(mu),
  };
}

/** Throws InputError where some of the slices have another prior than an isotropic Gaussian; `what` cannot take it. */
export function expectIsotropic(what: string, { density }: Pick<Prior, "density">, slices: readonly Slice[]): void {
  const other = slices.find((slice) => density?.covers(slice));
  if (other === undefined) return;
  throw new InputError(
    `${what}: the prior of ${other.groups.at(-1) ?? other.key} is ${density?.name} (expected an isotropic Gaussian, one precision for all of ${tensorNames(other)}). Leave that group out, or train with another prior.`,
  );
}

/** As `expectIsotropic`, but precisions by element or of low rank will do. */
export function expectGaussian(what: string, { density }: Pick<Prior, "density">, slices: readonly Slice[]): void {
  const other = density?.gaussian ? undefined : slices.find((slice) => density?.covers(slice));
  if (other === undefined) return;
  throw new InputError(
    `${what}: the prior of ${other.groups.at(-1) ?? other.key} is ${density?.name} (expected a Gaussian). Leave that group out, or train with another prior.`,
  );
}

/** Throws InputError, with the nearest name, unless every group is one of θ's. */
export function expectGroups(what: string, theta: Theta, names: readonly string[]): void {
  const { groups } = theta.layout;
  const unknown = names.find((name) => !groups.includes(name));
  if (unknown === undefined) return;
  const near = nearest(unknown, groups);
  throw new InputError(
    `${what}: no group is named ${inert(unknown)} (the groups are ${list(groups)}). ${near ? `Did you mean ${near}?` : "Name one of them."}`,
  );
}

function checkGroups(theta: Theta, spec: GaussianPriorSpec): void {
  expectGroups("prior", theta, Object.keys(spec));
  for (const [group, { precision, mean }] of Object.entries(spec)) {
    if (!(precision >= 0)) {
      throw new InputError(
        `prior: precision of ${group} is ${precision} (expected 0 to inf). 0 is a flat prior, inf freezes.`,
      );
    }
    if (precision !== Number.POSITIVE_INFINITY && precision > LARGEST_PRECISION) {
      throw new InputError(
        `prior: precision of ${group} is ${precision} (expected at most ${LARGEST_PRECISION}, or inf). Write inf to freeze.`,
      );
    }
    if (mean !== undefined && mean !== 0 && mean !== "pretrained") {
      throw new InputError(`prior: mean of ${group} is ${String(mean)} (expected "pretrained" or 0).`);
    }
  }
}

function checkMean(slice: Slice, { mean, precision }: GroupPrior, newParameters: ReadonlySet<string>): void {
  const fresh = slice.parameters.find((p) => newParameters.has(p.name));
  const group = slice.groups[0] ?? slice.key;
  if (fresh && precision === Number.POSITIVE_INFINITY) {
    throw new InputError(
      `prior: ${group} is new and cannot be frozen (parameter ${fresh.name} starts at random). Give ${group} a finite precision.`,
    );
  }
  if (fresh && precision > 0 && mean === "pretrained") {
    throw new InputError(
      `prior: ${group} is new, so it has no pretrained mean (parameter ${fresh.name} starts at random). Use mean 0.`,
    );
  }
  if (!fresh && precision === Number.POSITIVE_INFINITY && mean === 0) {
    throw new InputError(
      `prior: ${group} cannot be frozen at mean 0 (parameter ${tensorNames(slice)} is pretrained). Freeze it at its pretrained mean.`,
    );
  }
}

function list(names: readonly string[]): string {
  return names.length > 12 ? `${names.slice(0, 12).join(", ")}, …` : names.join(", ");
}
