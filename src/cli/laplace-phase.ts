/**
 * @file `--method laplace`: the Gaussian around the run's mode whose precision is the prior's plus the data's curvature
 * (posterior/laplace.ts), of the last layer or of chosen groups. `mc` writes S draws of θ as members; `linearised` and
 * `probit` need the covariance itself, and the Gaussian is written.
 */
import { packBatch, packBatches } from "../data/batches.ts";
import { count } from "../data/tables.ts";
import { InputError, InterruptedError } from "../errors.ts";
import { expectLaplace, type Ggn, ggn, type Laplace, laplace, laplaceDraws, priorShapes } from "../posterior/index.ts";
import { CurvatureRoomError } from "../posterior/room.ts";
import { bytesText } from "../train/index.ts";
import { writeGaussian } from "./gaussian-folder.ts";
import type { LaplaceFlags } from "./method-options.ts";
import { weightsHash } from "./model-folder.ts";
import type { PhaseContext } from "./phase.ts";
import { PosteriorWriter } from "./posterior-folder.ts";
import { lookAtDraws } from "./volume.ts";

/** Sequences that the curvature is taken over at once. */
const BATCH = 32;

/** Backward passes of random signs that a diagonal is the mean of, at least: its relative error is √(2/SIGNS), 9 %. */
const SIGNS = 256;

/** Throws InputError for what the phase would refuse, before anything is trained; says what it will take. */
export function checkLaplace(
  { model, target, data, out }: Pick<PhaseContext, "model" | "target" | "data" | "out">,
  flags: LaplaceFlags,
): void {
  const { structure, groups, maxBytes } = flags;
  const linearised = flags.predictive !== "mc";
  const one = packBatch(data.slice(0, 1));
  const { parameters, bytes, jacobianBytes, left } = namingTheLimit(() =>
    expectLaplace(model, target.prior, one, { structure, groups, maxBytes, linearised }),
  );
  const jacobian = jacobianBytes > 0 ? `, and ${bytesText(jacobianBytes)} for the Jacobian of a text` : "";
  const of = groups?.join(", ") ?? "the last layer";
  out.note(`laplace: ${structure} over ${parameters.toLocaleString("en")} parameters of ${of}: ${bytesText(bytes)}${jacobian}`); // biome-ignore format: one sentence
  if (left.length > 0)
    out.note(`laplace: ${count(left.length, "tensor")} of ${of}, of no linear layer, stay at the mode`);
}

/** A refusal for want of memory says which flag sets the limit. */
function namingTheLimit<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof CurvatureRoomError)) throw error;
    throw new InputError(`${error.message} --laplace-memory MB sets it.`, { cause: error });
  }
}

/** One pass over the training table, then draws or the Gaussian, written to the run's posterior. Gives the Gaussian. */
export async function laplacePhase(context: PhaseContext, flags: LaplaceFlags): Promise<Laplace> {
  const { model, target, data, options, out, found } = context;
  const { structure, groups, predictive, temperature, likelihoodTemperature } = flags;
  const { members, seed } = options;
  const curvature = found?.curvature ?? (await curvatureOf(context, flags));
  if (found) found.curvature = curvature;
  const shapes = await priorShapes(curvature, target.prior, model.theta);
  const state = laplace(curvature, target.prior, { temperature, likelihoodTemperature, shapes });
  if (predictive !== "mc") {
    const weights = await weightsHash(model.theta);
    writeGaussian(options.out, state, { predictive, draws: members, seed, weights });
    return state;
  }
  const draws = laplaceDraws(state, { S: members, seed });
  if (groups) await lookAtDraws({ model, data, out }, "--predictive mc", draws, groups);
  const writer = new PosteriorWriter(options.out, draws.slices);
  for (let s = 0; s < members; s++) writer.add(await draws.read(s));
  const precisions = [...new Set(state.precisions)];
  const made = { structure, groups: groups ?? null, predictive, temperature, likelihoodTemperature };
  await writer.finish("laplace", { ...made, precisions, n: curvature.n, draws: members, seed }, model.theta);
  return state;
}

function curvatureOf(
  { model, data, options, out }: PhaseContext,
  { structure, groups, maxBytes }: LaplaceFlags,
): Promise<Ggn> {
  const { seed } = options;
  // Signs are of a batch: of the same work, small ones with signs of their own err less, and the last few with several.
  const random = groups !== undefined && structure === "diagonal";
  const batches = packBatches(data, random ? Math.min(BATCH, Math.max(1, Math.floor(data.length / SIGNS))) : BATCH);
  const bar = out.progress("curvature", batches.length);
  return ggn(model, batches, {
    structure,
    groups,
    maxBytes,
    draws: random ? Math.ceil(SIGNS / batches.length) : undefined,
    seed,
    progress: (done) => {
      bar.update(done);
      if (out.io.signal.aborted)
        throw new InterruptedError(`interrupted (curvature). Run the same command with --resume to go on.`);
    },
  }).finally(() => out.end());
}
