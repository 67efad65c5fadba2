/**
 * @file Laplace's approximation: p(θ|X) ≈ N(θ̂, T·Λ⁻¹) around the MAP θ̂, with
 *   Λ = τI + H / T_likelihood,
 * τ the prior's precision, group by group, and H the curvature of the summed NLL (ggn.ts): all on the scale of log p(θ, X),
 * with N terms, not on that of their mean. The two temperatures are different things: `temperature` T belongs to the
 * whole posterior, p(θ|X)^{1/T}, and multiplies the covariance; `likelihoodTemperature` belongs to the likelihood alone.
 * (MacKay, "A practical Bayesian framework for backpropagation networks", 1992; Daxberger et al., "Laplace redux", 2021.)
 *
 *   const H = await ggn(model, batches, { structure: "full" });   one pass over the data
 *   const state = laplace(H, prior);                              τ and T: no further pass
 *   const posterior = probit(model, state);                       or linearised, or monteCarlo
 */
import { type Slice, type Theta, valueFor } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import { Stream } from "../random.ts";
import { expectIsotropic, type Prior } from "../train/prior.ts";
import { type BlockGaussian, noShapes } from "./curvature.ts";
import { type Draws, readSlices, type ThetaClassifier, thetaMembers } from "./draws.ts";
import { type Block, FULL_GROUPS, type Ggn, type GgnOptions } from "./ggn.ts";
import { planGroups } from "./ggn-groups.ts";
import { expectLayer } from "./ggn-last.ts";
import { expectJacobian } from "./jacobian.ts";
import { type LogitModel, layersOf, slicesOf } from "./layers.ts";
import type { Posterior } from "./posterior.ts";
import { featureCosine, volumeWarning } from "./volume.ts";

export interface LaplaceOptions {
  /** T: of the whole posterior; the covariance is T·Λ⁻¹. Default 1. */
  temperature?: number | undefined;
  /** Of the likelihood alone: Λ = τI + H/T. Default 1. */
  likelihoodTemperature?: number | undefined;
  /**
   * τ by group in place of the prior's: what is believable as a prior for sampling, or what the evidence chose, need not
   * be what was best for MAP. θ̂ stays that of the prior it was trained with.
   */
  precisions?: Readonly<Record<string, number>> | undefined;
  /**
   * For a prior with a precision for every parameter, τᵢ = τ·tᵢ: t of each block, in the block's order; undefined for a
   * block that has one τ. `priorShapes` reads them.
   */
  shapes?: readonly (Float64Array | undefined)[] | undefined;
}

/** The state: a Gaussian over every block, independent of the others'. */
export interface Laplace {
  readonly ggn: Ggn;
  readonly temperature: number;
  readonly likelihoodTemperature: number;
  /** τ of each block. */
  readonly precisions: readonly number[];
  /** t of each block, where its parameters have precisions τ·tᵢ. */
  readonly shapes: readonly (Float64Array | undefined)[];
  /** N(0, Λ⁻¹) of each block: `temperature` is not in it. */
  readonly gaussians: readonly BlockGaussian[];
}

/**
 * The Gaussian for a prior's precisions. Throws InputError: a temperature that is not above 0, the likelihood's also where
 * its inverse overflows; a block whose slices have different precisions or an infinite one, or a prior that is no
 * isotropic Gaussian; an H that is not symmetric or not finite, a Λ that overflows or is not positive definite (which group,
 * its smallest eigenvalue).
 */
export function laplace(ggn: Ggn, prior: Pick<Prior, "precision" | "density">, options: LaplaceOptions = {}): Laplace {
  const { temperature = 1, likelihoodTemperature = 1, precisions = {}, shapes = [] } = options;
  for (const [name, value] of Object.entries({ temperature, likelihoodTemperature })) {
    if (!(value > 0 && Number.isFinite(value))) {
      throw new InputError(`laplace: ${name} is ${value} (expected a number above 0). 1 is Bayes' rule.`);
    }
  }
  if (!Number.isFinite(1 / likelihoodTemperature)) {
    throw new InputError(
      `laplace: likelihoodTemperature is ${likelihoodTemperature} (expected a number whose inverse is one). 1 is Bayes' rule.`,
    );
  }
  const taus = ggn.blocks.map((block, b) =>
    precisionOf(block, shapes[b] ? { ...prior, density: undefined } : prior, precisions),
  );
  return {
    ggn,
    temperature,
    likelihoodTemperature,
    precisions: taus,
    shapes: ggn.blocks.map((_, b) => shapes[b]),
    gaussians: ggn.blocks.map((block, b) =>
      block.curvature.gaussian(taus[b] as number, 1 / likelihoodTemperature, groupOf(block), shapes[b]),
    ),
  };
}

/** What a Laplace approximation takes. */
export interface LaplaceCost {
  /** Parameters with a curvature. */
  parameters: number;
  /** Of the curvature, on the host. */
  bytes: number;
  /** Of the Jacobians that the linearised predictives of groups keep on the device; 0 of the last layer. */
  jacobianBytes: number;
  /** Slices of the groups that stay at θ̂. */
  left: readonly Slice[];
}

/**
 * Throws InputError for what `ggn`, `laplace` under a proper prior and, where it is `linearised`, the predictive would
 * refuse, before a pass over the data: from one forward of `batch`. What it would take otherwise.
 */
export function expectLaplace<B>(
  model: LogitModel<B>,
  prior: Pick<Prior, "precision" | "density">,
  batch: B,
  options: Pick<GgnOptions, "structure" | "groups" | "maxBytes"> & { linearised?: boolean | undefined },
): LaplaceCost {
  const { structure, groups, linearised = false } = options;
  const used = layersOf(model, batch);
  const { layers, K } = used;
  const last = layers.at(-1);
  if (!last) throw new Error("laplace: the model has no linear layer");
  if (!groups) {
    const bytes = expectLayer(model, last, options);
    const slices = slicesOf(last);
    expectProper(slices, prior, structure);
    return { parameters: slices.reduce((sum, { size }) => sum + size, 0), bytes, jacobianBytes: 0, left: [] };
  }
  if (structure === "full") throw new InputError(FULL_GROUPS);
  const { covered, linears, left, parameters, bytes } = planGroups(model, batch, { ...options, groups }, used);
  const blocks = structure === "diagonal" ? covered.map((slice) => [slice]) : linears.map(slicesOf);
  for (const slices of blocks) expectProper(slices, prior, structure);
  const sized = blocks.map((slices) => ({ slices, size: slices.reduce((sum, { size }) => sum + size, 0) }));
  const jacobianBytes = linearised ? expectJacobian(model.engine.gpu, sized, K) : 0;
  return { parameters, bytes, jacobianBytes, left };
}

/** Throws InputError where a block's prior is no Gaussian that Laplace can take, or is flat. */
function expectProper(
  slices: readonly Slice[],
  prior: Pick<Prior, "precision" | "density">,
  structure: GgnOptions["structure"],
): void {
  const diagonal = prior.density?.name === "diagonal" && slices.every((slice) => prior.density?.covers(slice));
  if (diagonal && structure === "kronecker") throw noShapes(groupOf({ slices }));
  if (precisionOf({ slices }, diagonal ? { ...prior, density: undefined } : prior, {}) > 0) return;
  throw new InputError(
    `laplace: ${groupOf({ slices })} has a flat prior, and the likelihood alone leaves directions free, along which the smallest eigenvalue of the posterior precision is 0. Give it a precision above 0.`,
  );
}

/**
 * t of every block under a prior with a precision for every parameter (`diagonalPrior`), for `laplace`: undefined where it
 * has one for all of them. Throws InputError for a prior that is no Gaussian, or whose precision is no diagonal.
 */
export async function priorShapes(
  { blocks }: Ggn,
  prior: Pick<Prior, "density">,
  theta: Theta,
): Promise<(Float64Array | undefined)[]> {
  const { density } = prior;
  const shapes: (Float64Array | undefined)[] = [];
  for (const { slices } of blocks) {
    const [t] = density?.name === "diagonal" && slices.every((slice) => density.covers(slice)) ? density.vectors : [];
    if (!t) expectIsotropic("laplace", prior, slices);
    shapes.push(t && Float64Array.from(await readSlices(theta, slices, t)));
  }
  return shapes;
}

/** What a block is called: the general group that its slices are of. */
export function groupOf({ slices: [slice] }: Pick<Block, "slices">): string {
  return slice?.groups.at(-1) ?? slice?.key ?? "";
}

function precisionOf(
  block: Pick<Block, "slices">,
  prior: Pick<Prior, "precision" | "density">,
  own: Readonly<Record<string, number>>,
): number {
  expectIsotropic(
    "laplace",
    prior,
    block.slices.filter((slice) => valueFor(slice, own) === undefined),
  );
  const taus = new Set(block.slices.map((slice) => valueFor(slice, own) ?? prior.precision(slice)));
  const [tau = 0] = taus;
  if (taus.size > 1) {
    throw new InputError(
      `laplace: weight and bias of ${block.slices[0]?.key} have different prior precisions (${[...taus].join(", ")}). Give them one.`,
    );
  }
  if (!(tau >= 0 && tau < Number.POSITIVE_INFINITY)) {
    throw new InputError(`laplace: prior precision of ${groupOf(block)} is ${tau} (expected 0 or more, and finite).`);
  }
  return tau;
}

/**
 * S draws of θ in pairs, θ̂ ± √T Λ^{−½} z: of an even S what is odd in z averages out exactly, as in `linearised`. Made
 * when they are read; between the two of a pair its Λ^{−½} z is held, float64, and no other. Draw s is the same whenever it
 * is read, and whatever S is. Throws InputError unless S is a whole number ≥ 1.
 */
export function laplaceDraws({ ggn, gaussians, temperature }: Laplace, { S, seed = 0 }: DrawOptions): Draws {
  expectDraws(S);
  const { blocks, center } = ggn;
  const slices = blocks.flatMap((block) => block.slices);
  // A Gaussian's numbers are in the order of its block; `Draws` are in θ's order.
  const order = [...slices].sort((a, b) => a.offset - b.offset);
  /** Λ^{−½} z of every block. */
  const deltasOf = (pair: number) =>
    blocks.map((_, b) => {
      const stream = new Stream(seed, "laplace draw", pair, b);
      // Loops: `from` walks an iterator, which for all of an encoder takes a minute a draw.
      const z = new Float64Array(center[b]?.length ?? 0);
      for (let i = 0; i < z.length; i++) z[i] = stream.normal();
      return (gaussians[b] as BlockGaussian).draw(z);
    });
  // Of a pair whose first draw was read; the second takes it.
  let half: { pair: number; deltas: readonly Float64Array[] } | undefined;
  return {
    size: S,
    slices: order,
    read(s) {
      const pair = Math.floor(s / 2);
      const deltas = half?.pair === pair ? half.deltas : deltasOf(pair);
      half = s % 2 === 0 ? { pair, deltas } : undefined;
      const parts = new Map<(typeof slices)[number], Float32Array>();
      for (const [b, block] of blocks.entries()) {
        const mean = center[b] as Float32Array;
        const delta = deltas[b] as Float64Array;
        const scale = (s % 2 === 0 ? 1 : -1) * Math.sqrt(temperature);
        const value = new Float32Array(mean.length);
        for (let i = 0; i < value.length; i++) value[i] = mean[i]! + scale * delta[i]!;
        let at = 0;
        for (const slice of block.slices) {
          parts.set(slice, value.subarray(at, at + slice.size));
          at += slice.size;
        }
      }
      const all = new Float32Array(order.reduce((sum, { size }) => sum + size, 0));
      let at = 0;
      for (const slice of order) {
        all.set(parts.get(slice) as Float32Array, at);
        at += slice.size;
      }
      return all;
    },
  };
}

export interface DrawOptions {
  /** S ≥ 1 */
  S: number;
  seed?: number;
}

/** Throws InputError unless S is a whole number ≥ 1. */
export function expectDraws(S: number): void {
  if (!Number.isSafeInteger(S) || S < 1) throw new InputError(`members: ${S} (expected a whole number from 1).`);
}

export interface MonteCarloOptions extends DrawOptions {
  /** Receives a warning where draws do not keep the features (volume.ts); default `console.warn`. */
  warn?: (line: string) => void;
}

/**
 * The average over S draws of θ itself: the network, not its linearisation. For the head. Draws of encoder groups under
 * an isotropic prior are mostly destroyed networks, since their volume, not their distance from μ, is what is sampled
 * (the first batch's features are compared, and a warning says so): encoder groups take `linearised` (linearised.ts).
 */
export function monteCarlo(model: ThetaClassifier, state: Laplace, options: MonteCarloOptions): Posterior {
  const { warn = (line) => console.warn(`warning: ${line}`) } = options;
  const draws = laplaceDraws(state, options);
  const members = thetaMembers(model, draws);
  let checked = false;
  return {
    members: members.members,
    async logits(batches, progress) {
      const [first] = batches;
      if (!checked && first) {
        checked = true;
        const groups = [...new Set(draws.slices.flatMap(({ groups }) => groups.at(-1) ?? []))];
        const line = volumeWarning(await featureCosine(model, draws, first), groups);
        if (line) warn(line);
      }
      return members.logits(batches, progress);
    },
  };
}
