/**
 * @file Densities of a prior that are no isotropic Gaussian: what they add to the gradient of J, and what they cost. The
 * isotropic one needs none of this, its gradient is inside the optimiser's kernel. A density covers some slices of θ; of
 * those the group's number a (`precision` of a stretch) is what each kind says here.
 *
 *   diagonal    −log p = ½ a Σ τᵢΔᵢ²                        a: strength, a factor on the vector τ
 *   low rank    −log p = ½ Δᵀ A^½ (diag τ ± UUᵀ) A^½ Δ       A: the groups' strengths on the diagonal
 *   Laplace     −log p = √(2a) Σ |Δᵢ|                       a: 1/variance, so that a means what it means of a Gaussian
 *   Student-t   −log p = ½(ν + 1) Σ log(1 + aΔᵢ²/ν)         a: 1/scale²; for ν > 2 the variance is ν/((ν − 2)a)
 * all without their constants.
 */
import { type Slice, type Theta, tensorNames } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import type { Gpu } from "../gpu/index.ts";
import { empty, type Live, lowRankCombine, lowRankProject, NdArray, priorGradient } from "../kernels/index.ts";
import type { Stream } from "../random.ts";
import { coupledNormals, gamma, readParts } from "./prior-noise.ts";

/** A stretch of θ as a density sees it. */
export interface DensityStretch {
  readonly offset: number;
  readonly length: number;
  /** a */
  readonly precision: number;
}

export interface DensityContext {
  readonly gpu: Gpu;
  readonly theta: NdArray;
  /** ∇ of the NLL term: it is left as it is. */
  readonly grad: NdArray;
  readonly mu: NdArray;
  readonly live: Live;
  readonly N: number;
}

export interface PriorDensity {
  /** As facts and reports name it. */
  readonly name: string;
  /** Whether it is a Gaussian. */
  readonly gaussian: boolean;
  /** Whether a slice has this density. */
  covers(slice: Slice): boolean;
  /** Vectors of θ's layout that decide it: a resumed run must agree on them. */
  readonly vectors: readonly NdArray[];
  /** Of these, the ones that pull at an element also where its Δ is 0, unless they are 0 there. */
  readonly couplings: readonly NdArray[];
  /** Of θ's layout: where `gradient` leaves ∇J. */
  readonly total: NdArray;
  /**
   * Writes total = g − ∇log p(θ)/N on the stretches, where they are live. Gives f32 [rows(R), 4]: of each stretch Σg²,
   * Σr², Σe, with r the prior's part and e what `energy` wants; then what else `energy` wants. Inside `engine.step`.
   */
  gradient(context: DensityContext, stretches: readonly DensityStretch[]): NdArray;
  /** Rows that `gradient` gives for R stretches. */
  rows(stretches: number): number;
  /** −log p(θ) without its constant, nats, from those rows. */
  energy(rows: ArrayLike<number>, stretches: readonly DensityStretch[], N: number): number;
  /** θ − μ of covered slices, drawn from the density given that the rest lies at its mean. `stream`: a slice's numbers. */
  noise(theta: Theta, slices: readonly Slice[], stream: (slice: Slice) => Stream): Promise<Float32Array[]>;
  dispose(): void;
}

/** ½ N Σ e over the rows of the stretches. */
function quadratic(rows: ArrayLike<number>, stretches: readonly DensityStretch[], N: number): number {
  return stretches.reduce((sum, _, r) => sum + 0.5 * N * (rows[4 * r + 2] ?? 0), 0);
}

type Covers = (slice: Slice) => boolean;

/** A slice's a. */
type Strength = (slice: Slice) => number;

/** Draws of P^−½z, divided by each slice's √a. */
async function gaussianNoise(
  theta: Theta,
  slices: readonly Slice[],
  stream: (slice: Slice) => Stream,
  strength: Strength,
  { tau, columns, sign }: { tau: NdArray; columns: readonly NdArray[]; sign: 1 | -1 },
): Promise<Float32Array[]> {
  const D = await readParts(theta, tau, slices);
  const flat = slices[D.findIndex((d) => d.some((x) => !(x > 0)))];
  if (flat) {
    throw new InputError(
      `prior: ${tensorNames(flat)} has elements of precision 0, of which there is no draw. Give the prior a damping above 0, or leave ${flat.groups.at(-1) ?? flat.key} out.`,
    );
  }
  const U: Float32Array[][] = [];
  for (const column of columns) U.push(await readParts(theta, column, slices));
  const z = slices.map((slice) => {
    const normals = stream(slice);
    return Float64Array.from({ length: slice.size }, () => normals.normal());
  });
  const drawn = coupledNormals(D, U, sign, z);
  return slices.map((slice, s) => Float32Array.from(drawn[s] ?? [], (x) => x / Math.sqrt(strength(slice))));
}

/** `one` of each element, divided by its slice's √a. */
function independentNoise(
  slices: readonly Slice[],
  stream: (slice: Slice) => Stream,
  strength: Strength,
  one: (stream: Stream) => number,
): Promise<Float32Array[]> {
  return Promise.resolve(
    slices.map((slice) => {
      const [numbers, scale] = [stream(slice), 1 / Math.sqrt(strength(slice))];
      return Float32Array.from({ length: slice.size }, () => scale * one(numbers));
    }),
  );
}

/** Elementwise τ. The density owns `tau` and releases it. */
export function diagonalDensity(theta: Theta, covers: Covers, tau: NdArray, strength: Strength): PriorDensity {
  const total = theta.vector();
  return {
    name: "diagonal",
    gaussian: true,
    covers,
    vectors: [tau],
    couplings: [],
    total,
    rows: (stretches) => stretches,
    gradient({ gpu, live, N, ...vectors }, stretches) {
      const scaled = stretches.map((s) => ({ ...s, scale: s.precision / N }));
      return priorGradient(gpu, "diagonal", { ...vectors, total, tau }, scaled, { live });
    },
    energy: quadratic,
    noise: (theta, slices, stream) => gaussianNoise(theta, slices, stream, strength, { tau, columns: [], sign: 1 }),
    dispose: () => [tau, total].forEach((vector) => void theta.release(vector)),
  };
}

/**
 * diag τ + sign·UUᵀ, U's columns k ≥ 1 vectors of θ's layout. Its c = UᵀA^½Δ is that of all of Δ, whatever trains now:
 * where a sampler holds a part of θ away from μ, what moves has the density that is conditional on it.
 */
export function lowRankDensity(
  theta: Theta,
  covers: Covers,
  {
    tau,
    columns,
    sign,
    strength,
  }: { tau: NdArray; columns: readonly NdArray[]; sign: 1 | -1; strength(slice: Slice): number },
): PriorDensity {
  const total = theta.vector();
  const all = theta.layout.slices
    .filter((slice) => covers(slice) && strength(slice) > 0 && strength(slice) < Number.POSITIVE_INFINITY)
    .map((slice) => ({ offset: slice.offset, length: slice.stride, weight: Math.sqrt(strength(slice)) }));
  const weighted = joinEqual(all);
  const fours = Math.ceil(columns.length / 4);
  return {
    name: `rank ${columns.length}`,
    gaussian: true,
    covers,
    vectors: [tau, ...columns],
    couplings: columns,
    total,
    rows: (stretches) => stretches + fours,
    gradient({ gpu, live, N, theta: values, mu, grad }, stretches) {
      const c = lowRankProject(gpu, columns, values, mu, weighted);
      const own = stretches.map((s) => ({ ...s, weight: (sign * Math.sqrt(s.precision)) / N }));
      lowRankCombine(gpu, columns, c, total, own, { live });
      const scaled = stretches.map((s) => ({ ...s, scale: s.precision / N }));
      const sums = priorGradient(gpu, "structured", { theta: values, mu, grad, total, tau }, scaled, { live });
      const rows = empty(gpu, [stretches.length + fours, 4], "f32", "lowRankDensity");
      gpu.copy(sums, new NdArray(rows.buffer, rows.byteOffset, sums.shape));
      gpu.copy(c, new NdArray(rows.buffer, rows.byteOffset + 16 * stretches.length, c.shape));
      return rows;
    },
    energy(rows, stretches, N) {
      let square = 0;
      for (let i = 4 * stretches.length; i < 4 * (stretches.length + fours); i++) square += (rows[i] ?? 0) ** 2;
      return quadratic(rows, stretches, N) + 0.5 * sign * square;
    },
    noise: (theta, slices, stream) => gaussianNoise(theta, slices, stream, strength, { tau, columns, sign }),
    dispose: () => [tau, total, ...columns].forEach((vector) => void theta.release(vector)),
  };
}

/** What a density without vectors of its own says of itself; the rest is the same for all of them. */
type Elementwise = Pick<PriorDensity, "name" | "energy" | "noise"> & {
  kind: "laplace" | "student";
  /** The kernel's factors of a stretch. */
  factors(stretch: DensityStretch, N: number): { scale: number; shape?: number };
};

function elementwiseDensity(theta: Theta, covers: Covers, { kind, factors, ...own }: Elementwise): PriorDensity {
  const total = theta.vector();
  return {
    ...own,
    gaussian: false,
    covers,
    vectors: [],
    couplings: [],
    total,
    rows: (stretches) => stretches,
    gradient({ gpu, live, N, ...vectors }, stretches) {
      const scaled = stretches.map((s) => ({ ...s, ...factors(s, N) }));
      return priorGradient(gpu, kind, { ...vectors, total }, scaled, { live });
    },
    dispose: () => theta.release(total),
  };
}

/** λ = √(2a), the same for all of a stretch. At Δ = 0 the subgradient is 0. */
export function laplaceDensity(theta: Theta, covers: Covers, strength: Strength): PriorDensity {
  return elementwiseDensity(theta, covers, {
    name: "laplace",
    kind: "laplace",
    factors: ({ precision }, N) => ({ scale: Math.sqrt(2 * precision) / N }),
    // e = rΔ = λ|Δ|/N.
    energy: (rows, stretches, N) => 2 * quadratic(rows, stretches, N),
    noise: (_, slices, stream) =>
      independentNoise(slices, stream, strength, (numbers) => {
        const side = numbers.uniform() < 0.5 ? -1 : 1;
        return (side * -Math.log(1 - numbers.uniform())) / Math.SQRT2;
      }),
  });
}

/** ν degrees of freedom. */
export function studentTDensity(theta: Theta, covers: Covers, nu: number, strength: Strength): PriorDensity {
  return elementwiseDensity(theta, covers, {
    name: `student-t with ν = ${nu}`,
    kind: "student",
    factors: ({ precision }, N) => ({ shape: precision / nu, scale: ((nu + 1) * precision) / nu / N }),
    energy: (rows, stretches) => stretches.reduce((sum, _, r) => sum + 0.5 * (nu + 1) * (rows[4 * r + 2] ?? 0), 0),
    noise: (_, slices, stream) =>
      independentNoise(slices, stream, strength, (numbers) => {
        const z = numbers.normal();
        return z / Math.sqrt((2 * gamma(numbers, nu / 2)) / nu);
      }),
  });
}

function joinEqual<S extends { offset: number; length: number; weight: number }>(pieces: readonly S[]): S[] {
  const joined: S[] = [];
  for (const piece of pieces) {
    const last = joined.at(-1);
    if (last && last.offset + last.length === piece.offset && last.weight === piece.weight)
      joined[joined.length - 1] = { ...last, length: last.length + piece.length };
    else joined.push(piece);
  }
  return joined;
}
