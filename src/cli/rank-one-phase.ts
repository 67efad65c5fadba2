/**
 * @file `--method rank-one`: the members were trained with the run; each becomes a θ of its own, W ⊙ r sᵀ, so that what
 * predicts needs to know nothing of r and s. model.safetensors holds the weights that they share.
 */
import { rankOneDraws } from "../posterior/index.ts";
import type { RankOneFlags } from "./method-options.ts";
import type { PhaseContext } from "./phase.ts";
import { PosteriorWriter } from "./posterior-folder.ts";

/** Writes the members of the trained model. */
export async function rankOnePhase({ model, options }: PhaseContext, flags: RankOneFlags): Promise<void> {
  const draws = await rankOneDraws(model);
  const writer = new PosteriorWriter(options.out, draws.slices);
  for (let m = 0; m < draws.size; m++) writer.add(await draws.read(m));
  await writer.finish("rank-one", { ...flags, members: draws.size, seed: options.seed }, model.theta);
}
