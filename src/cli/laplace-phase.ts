/**
 * @file `--method laplace`: the Gaussian around the run's mode whose precision is the prior's plus the data's curvature
 * (posterior/laplace.ts), of the last layer, and S draws of it. A linear layer's logits are linear in its weights, so the
 * average over draws is the linearised predictive up to its Monte-Carlo error; `probit` and `linearised` are the library's.
 */
import { packBatches } from "../data/batches.ts";
import { InterruptedError } from "../errors.ts";
import { type Ggn, ggn, type Laplace, laplace, laplaceDraws, priorShapes } from "../posterior/index.ts";
import type { LaplaceFlags } from "./method-options.ts";
import { PosteriorWriter } from "./posterior-folder.ts";
import type { PhaseContext } from "./posterior-phase.ts";

/** Sequences that the curvature is taken over at once. */
const BATCH = 32;

/** One pass over the training table, then draws, written to the run's posterior. Gives the Gaussian. */
export async function laplacePhase(context: PhaseContext, flags: LaplaceFlags): Promise<Laplace> {
  const { model, target, options, found } = context;
  const { structure, temperature, likelihoodTemperature } = flags;
  const { members, seed } = options;
  const curvature = found?.curvature ?? (await curvatureOf(context, flags));
  if (found) found.curvature = curvature;
  const shapes = await priorShapes(curvature, target.prior, model.theta);
  const state = laplace(curvature, target.prior, { temperature, likelihoodTemperature, shapes });
  const draws = laplaceDraws(state, { S: members, seed });
  const writer = new PosteriorWriter(options.out, draws.slices);
  for (let s = 0; s < members; s++) writer.add(await draws.read(s));
  const precisions = [...state.precisions];
  writer.finish("laplace", { structure, temperature, likelihoodTemperature, precisions, n: curvature.n, draws: members, seed }); // biome-ignore format: one record
  return state;
}

function curvatureOf({ model, data, options, out }: PhaseContext, { structure }: LaplaceFlags): Promise<Ggn> {
  const { seed } = options;
  const batches = packBatches(data, BATCH);
  const bar = out.progress("curvature", batches.length);
  return ggn(model, batches, {
    structure,
    seed,
    progress: (done) => {
      bar.update(done);
      if (out.io.signal.aborted)
        throw new InterruptedError(`interrupted (curvature). Run the same command with --resume to go on.`);
    },
  }).finally(() => out.end());
}
