/**
 * @file The look at draws of more than the head that every command takes before it believes them: what draws from an
 * isotropic prior's volume may be networks whose features are gone (posterior/volume.ts).
 */
import { packBatch } from "../data/batches.ts";
import { type Draws, featureCosine, volumeWarning } from "../posterior/index.ts";
import type { PhaseContext } from "./phase.ts";

/** Sentences that say whether draws keep the features. */
const SENTENCES = 16;

/** What each flag's draws leave to do. */
const CURES = {
  "--sample": "Sample the head alone (--sample head), raise --prior-precision, or lower a --temperature above 1.",
  "--anchored": "Anchor the head alone (--anchored head), or raise --prior-precision.",
  "--predictive mc": "Take --predictive linearised, --laplace-groups head, or a higher --prior-precision.",
};

/** Warns, under the flag's name, where draws leave other features than θ as it is. */
export async function lookAtDraws(
  { model, data, out }: Pick<PhaseContext, "model" | "data" | "out">,
  flag: keyof typeof CURES,
  draws: Draws,
  groups: readonly string[],
): Promise<void> {
  const cosine = await featureCosine(model, draws, packBatch(data.slice(0, SENTENCES)));
  const warning = volumeWarning(cosine, groups, CURES[flag]);
  if (warning !== undefined) out.warning(`${flag}: ${warning}`);
}
