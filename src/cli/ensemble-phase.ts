/**
 * @file `--method ensemble`: the run itself and S − 1 more trained as it was, each from another seed; with `--anchored` S
 * members whose objectives are perturbed (posterior/anchored.ts), beside the run's own θ, which stays the mode. A member
 * that is finished stays when the rest is interrupted.
 */

import { inert } from "../data/text.ts";
import {
  anchoredSlices,
  anchorNoise,
  drawAnchor,
  heldDraws,
  readSlices,
  trainedSlices,
  weighExamples,
} from "../posterior/index.ts";
import { logPosterior } from "../train/index.ts";
import { anotherMode, type ModeOptions } from "./another-mode.ts";
import type { EnsembleFlags } from "./method-options.ts";
import type { PhaseContext } from "./phase.ts";
import { PosteriorWriter } from "./posterior-folder.ts";
import { lookAtDraws } from "./volume.ts";

/** Trains the members that are not there yet and writes them. θ is the run's own all the while. */
export async function ensemblePhase(context: PhaseContext, { anchored }: EnsembleFlags): Promise<void> {
  const { model, options, out } = context;
  const { members, seed } = options;
  const slices = trainedSlices(model.theta);
  const writer = new PosteriorWriter(options.out, slices, { keep: "ensemble" });
  for (const path of writer.broken)
    out.note(`${inert(path)}: not what priorwork writes: no member that it names is kept`);
  if (writer.size > 0) out.note(`${writer.size} of ${members} members are there already`);
  if (anchored && writer.size < members) await lookAtAnchors(context, anchored);
  for (let s = writer.size; s < members; s++) {
    if (s === 0 && !anchored) {
      writer.add(await readSlices(model.theta, slices));
      continue;
    }
    const values = await anotherMode(context, {
      seed: seed + s,
      what: `member ${s + 1} of ${members}`,
      ifInterrupted: `${s} of ${members} members are kept. Run the same command with --resume to go on.`,
      ...(anchored ? { perturb: perturbation(anchored, seed, s) } : {}),
    });
    writer.add(values);
  }
  await writer.finish("ensemble", { members, seed, anchored: anchored ?? null }, model.theta);
}

function perturbation(groups: readonly string[], seed: number, member: number): NonNullable<ModeOptions["perturb"]> {
  return async (model, prior, data) => {
    const target = logPosterior(model, prior, { N: data.length });
    await drawAnchor(target, anchoredSlices(target, groups), { seed, member });
    return weighExamples(data, { seed, member });
  };
}

/** Warns where the first member's anchor, put on the run's θ, leaves other features than those it has. */
async function lookAtAnchors({ model, target, data, options, out }: PhaseContext, groups: string[]): Promise<void> {
  const slices = anchoredSlices(target, groups);
  const own = await readSlices(model.theta, slices);
  const noise = await anchorNoise(target, slices, { seed: options.seed, member: 0 });
  const draws = heldDraws(slices, [own.map((value, i) => value + (noise[i] ?? 0))]);
  await lookAtDraws({ model, data, out }, "--anchored", draws, groups);
}
