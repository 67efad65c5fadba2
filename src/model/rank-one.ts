/**
 * @file Rank-one members (Wen, Tran and Ba, "BatchEnsemble", 2020): S models that share every weight matrix but for two
 * vectors each,
 *   W_m = W ⊙ r_m s_mᵀ,  b_m = r_m ⊙ b   so that   W_m x + b_m = r_m ⊙ (W(s_m ⊙ x) + b).
 * The batch goes through once, S copies packed one after the other (where the head alone has members, the encoder takes one
 * copy for all); each product with W serves all members, and only the scaling of rows by s_m and r_m tells them apart. r and s are parameters of a group of their own, `members`, with mean 1.
 *
 * What the group's precision means. The S members are S points of one posterior, whose shared part is counted once:
 *   J = (1/S) Σ_m [mean NLL_m + (τ/2N)(‖r_m − 1‖² + ‖s_m − 1‖²)] + the prior of the rest.
 * So each member weighs its likelihood against a prior of precision τ on its own vectors, and the objective, which sums
 * the group, has τ/S there: `memberPrecision`. (A bound on the evidence, with a mixture of S points for a posterior:
 * Dusenberry et al., "Efficient and scalable Bayesian neural nets with rank-1 factors", 2020.)
 */
import type { Layout, Slice, SliceSpec, Theta } from "../autograd/index.ts";
import { type PackedBatch, repeatBatch } from "../data/batches.ts";
import { InputError } from "../errors.ts";
import { Stream } from "../random.ts";

export interface RankOne {
  /** S */
  members: number;
  /** Linear layers that have vectors: the head's (default), or those of encoder and pooler too. */
  layers?: "head" | "all";
}

/** The group of r and s. */
export const MEMBERS_GROUP = "members";

/** τ of a member's vectors where nothing else is said: they start 10 % around 1. */
export const DEFAULT_MEMBER_PRECISION = 100;

/** Slices of r [S, out] and s [S, in] for the linear layers among `specs`. InputError: S is no whole number from 2. */
export function rankOneSlices(specs: readonly SliceSpec[], { members: S, layers = "head" }: RankOne): SliceSpec[] {
  if (!Number.isSafeInteger(S) || S < 2) throw new InputError(`members: ${S} (expected a whole number from 2).`);
  const linear = specs.filter(
    ({ key, parameters, groups, table }) =>
      key.endsWith(".weight") &&
      !table &&
      parameters.every(({ shape }) => shape.length === 2) &&
      (layers === "all" || groups[0] === "head"),
  );
  return linear.flatMap(({ key, parameters }) => {
    const prefix = key.slice(0, -".weight".length);
    const out = parameters.reduce((sum, { shape }) => sum + (shape[0] ?? 0), 0);
    const vectors = (which: "r" | "s", width: number): SliceSpec => {
      const name = memberKey(prefix, which);
      return { key: name, parameters: [{ name, shape: [S, width] }], groups: [MEMBERS_GROUP] };
    };
    return [vectors("r", out), vectors("s", parameters[0]?.shape[1] ?? 0)];
  });
}

/** What r or s of a linear layer is called. */
export function memberKey(prefix: string, which: "r" | "s"): string {
  return `${prefix}.members.${which}`;
}

/** A linear layer that has members. */
export interface RankOneLayer {
  weight: Slice;
  bias: Slice;
  r: Slice;
  s: Slice;
}

/** Those of a model, in θ's order. */
export function rankOneLayers(layout: Layout): RankOneLayer[] {
  const at = (key: string) => layout.slices[layout.index(key)] as Slice;
  return layout.slices
    .filter(({ key }) => key.endsWith(".members.r"))
    .map((r) => {
      const prefix = r.key.slice(0, -".members.r".length);
      return { weight: at(`${prefix}.weight`), bias: at(`${prefix}.bias`), r, s: at(memberKey(prefix, "s")) };
    });
}

/** A batch S times over, copy m for member m. */
export function memberBatch(batch: PackedBatch, S: number): PackedBatch {
  return { ...repeatBatch(batch, S), members: S };
}

/** The group's precision in an objective of S members, each of whose vectors has precision τ. */
export function memberPrecision(tau: number, S: number): number {
  return tau / S;
}

/** r = s = 1: every member is the shared model. */
export function levelMembers(theta: Theta): void {
  for (const { parameters, groups } of theta.layout.slices) {
    if (groups[0] !== MEMBERS_GROUP) continue;
    for (const { name, size } of parameters) theta.set(name, new Float32Array(size).fill(1));
  }
}

/**
 * Draws every r and s from N(1, 1/τ), the stream (seed, "members", slice): members that start alike would stay alike.
 * After the prior is made, whose mean is what θ is then (1). InputError unless τ > 0 and finite.
 */
export function spreadMembers(theta: Theta, { precision = DEFAULT_MEMBER_PRECISION, seed = 0 } = {}): void {
  if (!(precision > 0 && Number.isFinite(precision)))
    throw new InputError(
      `member precision: ${precision} (expected a number above 0). It is how far members may differ.`,
    );
  const sigma = 1 / Math.sqrt(precision);
  for (const [i, { parameters, groups }] of theta.layout.slices.entries()) {
    if (groups[0] !== MEMBERS_GROUP) continue;
    const stream = new Stream(seed, "members", i);
    for (const { name, size } of parameters) {
      theta.set(
        name,
        Float32Array.from({ length: size }, () => 1 + sigma * stream.normal()),
      );
    }
  }
}
