/**
 * @file `--method swag`: from the run's mode training goes on at its own rate, and S draws of the Gaussian that the path
 * makes are kept; with `--modes M` from M modes, each with its share of the draws (multi-SWAG).
 */
import { InterruptedError } from "../errors.ts";
import {
  readSlices,
  type SwagOptions,
  shareOf,
  swag,
  swagSteps,
  swagVectors,
  trainedSlices,
  writeSlices,
} from "../posterior/index.ts";
import { streamKey } from "../random.ts";
import { expectVectorRoom, vectorText } from "../train/index.ts";
import { anotherMode } from "./another-mode.ts";
import { fitOptions } from "./classifier.ts";
import { deviceMemory } from "./device.ts";
import type { SwagFlags } from "./method-options.ts";
import type { PhaseContext, PhasePlan } from "./phase.ts";
import { PosteriorWriter } from "./posterior-folder.ts";
import { phaseDiverged } from "./training.ts";

const RESUME = "Run the same command with --resume to draw anew.";

/**
 * Says what device memory the path will take, before anything is trained. Throws InputError where the device is known not to
 * have it, and for a path that is too long.
 */
export function checkSwagRoom(context: PhasePlan, flags: SwagFlags): void {
  const { model, out } = context;
  const path = pathOptions(context, flags);
  swagSteps(path);
  expectVectorRoom(model.theta, swagVectors(path), path.maxBytes);
  out.note(vectorText(model.theta, swagVectors(path)));
}

/** The path is of the objective that the run had. */
function pathOptions({ model, data, options, out }: PhasePlan, flags: SwagFlags): SwagOptions {
  const { batch, accumulate } = options;
  const { points, rank } = flags;
  const every = flags.every ?? Math.ceil(data.length / (batch * accumulate));
  const { optimizer, clip, dropout, mixout, rDrop } = fitOptions(options);
  const maxBytes = deviceMemory(model.engine.gpu, out.io);
  return { optimizer, points, every, rank, batch, accumulate, clip, dropout, mixout, rDrop, maxBytes };
}

/** Draws, written to the run's posterior. θ is afterwards the run's own. */
export async function swagPhase(context: PhaseContext, flags: SwagFlags): Promise<void> {
  const { model, target, data, options, out, found } = context;
  const { members, seed } = options;
  const { points, rank, temperature, modes } = flags;
  const path = pathOptions(context, flags);
  const { theta } = model;
  const slices = trainedSlices(theta);
  const writer = new PosteriorWriter(options.out, slices);
  const own = await readSlices(theta, slices);
  // One path may stay for the next temperature; several hold too much and are walked anew.
  const kept = modes === 1 ? found : undefined;
  const walk = (name: string, seed: number) => {
    const bar = out.progress(name, points);
    return swag(target, data, {
      ...path,
      seed,
      signal: out.io.signal,
      progress: (share) => bar.update(points * share),
      warn: () => {}, // said when the run began
    })
      .catch((error) => {
        throw phaseDiverged(error, name, path);
      })
      .finally(() => out.end());
  };
  try {
    for (let mode = 0; mode < modes; mode++) {
      const name = modes === 1 ? "SWAG" : `SWAG ${mode + 1} of ${modes}`;
      if (mode > 0) {
        const what = `training mode ${mode + 1} of ${modes}`;
        writeSlices(theta, slices, await anotherMode(context, { seed: seed + mode, what, ifInterrupted: RESUME }));
      }
      const gaussian = kept?.swag ?? (await walk(name, seed + mode));
      if (kept) kept.swag = gaussian;
      try {
        if (out.io.signal.aborted)
          throw new InterruptedError(`interrupted (${name}, ${gaussian.points} of ${points} points). ${RESUME}`);
        const share = shareOf(members, modes, mode);
        const draws = gaussian.draws(share, { seed: streamKey(seed, "swag", mode)[0], temperature });
        for (let s = 0; s < share; s++) writer.add(await draws.read(s), mode);
      } finally {
        if (gaussian !== kept?.swag) gaussian.dispose();
      }
    }
  } finally {
    writeSlices(theta, slices, own);
  }
  const how = { points, every: path.every, rank, temperature, modes, draws: members, seed };
  await writer.finish("swag", how, theta);
}
