/**
 * @file Priors other than the isotropic Gaussian, around the same means and with the same groups (prior.ts): precisions by
 * element and of low rank, such as a Fisher information of the source task gives (fisher.ts); and two that forgive a few
 * large changes, Laplace's and Student's. Groups at 0 are flat and at Infinity frozen, as ever.
 */
import { Matrix } from "ml-matrix";
import type { Parameter, Slice, Theta } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import type { NdArray } from "../kernels/index.ts";
import { diagonalDensity, laplaceDensity, lowRankDensity, type PriorDensity, studentTDensity } from "./density.ts";
import { addGram, addIdentity, inverseFactor, type LowRankForm, logDeterminant } from "./lowrank.ts";
import { type GaussianPriorSpec, gaussianPrior, type Prior, type PriorSubject } from "./prior.ts";

/** Numbers of parameters by name: a Map, or what reads them from a file one at a time. */
export interface ParameterNumbers {
  has(name: string): boolean;
  get(name: string): ArrayLike<number> | undefined;
}

/**
 * N(μ, diag(aτ)⁻¹): `tau` has τᵢ ≥ 0 for every element of the parameters it names; `spec` says of their groups the
 * strength a, a factor on τ, and of all others the precision, as for `gaussianPrior`. Throws InputError: as that does; a τ
 * that is negative or not finite, or an aτ beyond f32; a slice of which only some parameters have one.
 */
export function diagonalPrior(subject: PriorSubject | Theta, spec: GaussianPriorSpec, tau: ParameterNumbers): Prior {
  return vectorPrior(subject, spec, { tau, rank: 0 });
}

export interface LowRankNumbers {
  /** What diagonal + UUᵀ is: a precision, or a covariance. */
  form: LowRankForm;
  /** Above 0, by element. */
  diagonal: ParameterNumbers;
  /** k */
  rank: number;
  /** U of a parameter, [k, size]: its columns one after the other. */
  factors: ParameterNumbers;
}

/**
 * A Gaussian whose precision or covariance is diagonal plus rank k; strengths as for `diagonalPrior`, A^½ on both sides of
 * the precision. Rank 0 is diagonal. A covariance is turned into the precision D⁻¹ − WWᵀ (lowrank.ts). Throws InputError
 * as `diagonalPrior`, and for a diagonal that is not above 0.
 */
export function lowRankPrior(
  subject: PriorSubject | Theta,
  spec: GaussianPriorSpec,
  { form, diagonal, rank, factors }: LowRankNumbers,
): Prior {
  if (!Number.isSafeInteger(rank) || rank < 0) throw new InputError(`prior: rank ${rank} (expected a whole number from 0).`); // biome-ignore format: one sentence
  return vectorPrior(subject, spec, { tau: diagonal, rank, factors, form });
}

/** Laplace's density, −√(2τ) Σ|Δ| and variance 1/τ, for every group that is neither flat nor frozen. */
export function laplacePrior(subject: PriorSubject | Theta, spec: GaussianPriorSpec): Prior {
  const base = gaussianPrior(subject, spec);
  const logConstant = constantOf(subject, base, (tau) => 0.5 * Math.log(tau / 2));
  return shaped(base, laplaceDensity(thetaOf(subject), coveredBy(base), base.precision), logConstant);
}

/** Student's t with ν degrees of freedom and scale τ^−½, −½(ν + 1) Σ log(1 + τΔ²/ν). Throws InputError unless ν > 0. */
export function studentTPrior(
  subject: PriorSubject | Theta,
  spec: GaussianPriorSpec,
  { nu = 4 }: { nu?: number } = {},
): Prior {
  if (!(nu > 0 && Number.isFinite(nu))) throw new InputError(`prior: ν is ${nu} (expected a number above 0).`);
  const base = gaussianPrior(subject, spec);
  const constant = logGamma((nu + 1) / 2) - logGamma(nu / 2);
  const logConstant = constantOf(subject, base, (tau) => constant + 0.5 * Math.log(tau / (nu * Math.PI)));
  return shaped(base, studentTDensity(thetaOf(subject), coveredBy(base), nu, base.precision), logConstant);
}

function thetaOf(subject: PriorSubject | Theta): Theta {
  return "theta" in subject ? subject.theta : subject;
}

function hasSay(precision: number): boolean {
  return precision > 0 && precision < Number.POSITIVE_INFINITY;
}

function coveredBy(base: Prior): (slice: Slice) => boolean {
  return (slice) => hasSay(base.precision(slice));
}

function constantOf(subject: PriorSubject | Theta, base: Prior, one: (tau: number) => number): number {
  return thetaOf(subject).layout.slices.reduce((sum, slice) => {
    const tau = base.precision(slice);
    return hasSay(tau) ? sum + slice.size * one(tau) : sum;
  }, 0);
}

/** The base with another density; both are disposed of together. */
function shaped(base: Prior, density: PriorDensity, logConstant: number): Prior {
  return {
    ...base,
    density,
    logConstant,
    dispose() {
      density.dispose();
      base.dispose();
    },
  };
}

interface Vectors {
  tau: ParameterNumbers;
  rank: number;
  factors?: ParameterNumbers;
  form?: LowRankForm;
}

function vectorPrior(subject: PriorSubject | Theta, spec: GaussianPriorSpec, vectors: Vectors): Prior {
  const theta = thetaOf(subject);
  const { rank, form = "precision" } = vectors;
  const named = new Set(theta.layout.slices.filter((slice) => isNamed(slice, vectors.tau)));
  if (named.size === 0)
    throw new InputError("prior: no parameter of the model has a precision of its own. Is it another model's?");
  const base = gaussianPrior(subject, spec);
  const release = (made: readonly NdArray[]) => made.forEach((vector) => void theta.release(vector));
  const made: NdArray[] = [];
  const vector = () => {
    const one = theta.vector();
    made.push(one);
    return one;
  };
  try {
    const tau = vector();
    const columns = Array.from({ length: rank }, vector);
    const active = (slice: Slice) => named.has(slice) && hasSay(base.precision(slice));
    let logDet = 0;
    const G = Matrix.zeros(rank, rank);
    const parameters = [...named].flatMap((slice) => slice.parameters.map((p) => ({ p, slice })));
    // A covariance needs a pass of its own: every row of W depends on all of V.
    if (form === "covariance" && rank > 0)
      for (const { p } of parameters) addGram(G, columnsOf(p, vectors), diagonalOf(p, vectors));
    const inverse = form === "covariance" && rank > 0 ? inverseFactor(G) : undefined;
    const rest = Matrix.zeros(rank, rank);
    for (const { p, slice } of parameters) {
      const own = diagonalOf(p, vectors);
      const precision = form === "precision" ? own : own.map((v) => 1 / v);
      const u = precisionColumns(columnsOf(p, vectors), own, inverse);
      theta.set(p.name, f32Of(precision), tau);
      for (const [j, column] of u.entries()) theta.set(p.name, f32Of(column), columns[j] as NdArray);
      if (!active(slice)) continue;
      const a = base.precision(slice);
      expectRange(p, a, precision, u);
      for (const x of precision) if (x > 0) logDet += Math.log((a * x) / (2 * Math.PI));
      if (rank > 0) addGram(rest, u, precision);
    }
    const sign = form === "precision" ? 1 : -1;
    if (rank > 0) logDet += logDeterminant(addIdentity(rest, sign));
    const isotropic = theta.layout.slices.reduce((sum, slice) => {
      const a = base.precision(slice);
      return named.has(slice) || !hasSay(a) ? sum : sum + 0.5 * slice.size * Math.log(a / (2 * Math.PI));
    }, 0);
    const strength = (slice: Slice) => base.precision(slice);
    const density =
      rank === 0
        ? diagonalDensity(theta, active, tau, strength)
        : lowRankDensity(theta, active, { tau, columns, sign, strength });
    return shaped(base, density, isotropic + 0.5 * logDet);
  } catch (error) {
    release(made);
    base.dispose();
    throw error;
  }
}

/** Whether all of a slice's parameters have numbers. InputError: only some. */
function isNamed(slice: Slice, numbers: ParameterNumbers): boolean {
  const has = slice.parameters.map(({ name }) => numbers.has(name));
  const missing = slice.parameters[has.indexOf(false)];
  if (missing === undefined) return true;
  const present = slice.parameters[has.indexOf(true)];
  if (present === undefined) return false;
  throw new InputError(
    `prior: ${missing.name} has no precision, and ${present.name}, which is stored with it, has one. Give both one.`,
  );
}

/** The diagonal of a parameter, in float64. */
function diagonalOf(p: Parameter, { tau, rank, form }: Vectors): Float64Array {
  const values = numbersOf(p, tau, 1, "precision");
  const low = rank > 0 || form === "covariance";
  const bad = values.findIndex((x) => !(low ? x > 0 : x >= 0) || !Number.isFinite(Math.fround(x)));
  if (bad >= 0) {
    const what = form === "covariance" ? "variance" : "precision";
    throw new InputError(
      `prior: ${what} of ${p.name} is ${values[bad]} at position ${bad} (expected finite numbers ${low ? "above 0" : "from 0"}). The file is damaged or not a prior.`,
    );
  }
  return values;
}

/** InputError: aτ, or what a column adds to it, is beyond f32, in which a step works with it. */
function expectRange(p: Parameter, a: number, precision: Float64Array, columns: readonly Float64Array[]): void {
  const most = Math.max(
    precision.reduce((most, x) => Math.max(most, x), 0),
    ...columns.map((u) => u.reduce((most, x) => Math.max(most, x * x), 0)),
  );
  if (Number.isFinite(Math.fround(a * most))) return;
  throw new InputError(
    `prior: strength ${a} times the precision of ${p.name}, ${most.toPrecision(3)}, is beyond f32. Lower the strength of its group.`,
  );
}

function columnsOf(p: Parameter, { rank, factors }: Vectors): Float64Array[] {
  if (rank === 0 || !factors) return [];
  const values = numbersOf(p, factors, rank, "factors");
  const bad = values.findIndex((x) => !Number.isFinite(Math.fround(x)));
  if (bad >= 0) {
    throw new InputError(
      `prior: factors of ${p.name} have ${values[bad]} at position ${bad} (expected finite numbers). The file is damaged or not a prior.`,
    );
  }
  return Array.from({ length: rank }, (_, j) => values.subarray(j * p.size, (j + 1) * p.size));
}

function numbersOf(p: Parameter, numbers: ParameterNumbers, rank: number, what: string): Float64Array {
  const values = numbers.get(p.name);
  if (values?.length !== rank * p.size) {
    throw new InputError(
      `prior: ${what} of ${p.name}: ${values?.length ?? 0} numbers (expected ${rank * p.size}). It is a prior of another model.`,
    );
  }
  return Float64Array.from(values);
}

/** U itself, or of a covariance W: row i is L⁻¹ times row i of D⁻¹V. */
function precisionColumns(V: Float64Array[], variance: Float64Array, inverse: Matrix | undefined): Float64Array[] {
  if (!inverse) return V;
  return V.map((_, a) =>
    variance.map((v, i) => {
      let sum = 0;
      for (let b = 0; b <= a; b++) sum += inverse.get(a, b) * ((V[b] as Float64Array)[i] as number);
      return sum / v;
    }),
  );
}

function f32Of(values: Float64Array): Float32Array {
  return Float32Array.from(values);
}

/** log Γ(x), x > 0: Stirling's series above 10, where its next term is below 1e-14, and the recurrence below. */
export function logGamma(x: number): number {
  let shift = 0;
  let y = x;
  for (; y < 10; y++) shift += Math.log(y);
  const r = 1 / (y * y);
  const series = (1 / 12 - r * (1 / 360 - r * (1 / 1260 - r * (1 / 1680 - r * (1 / 1188 - (r * 691) / 360360))))) / y;
  return (y - 0.5) * Math.log(y) - y + 0.5 * Math.log(2 * Math.PI) + series - shift;
}
