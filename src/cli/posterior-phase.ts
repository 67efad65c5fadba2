/**
 * @file What a method does once θ is at the mode: many θ around it, written to `posterior/` as they come, and then what
 * predicts. An interrupted phase is begun anew by `--resume`, from the trained θ (its draws are named by the seed), but
 * for an ensemble's, which keeps the members that are finished.
 */
import { DivergedError } from "../errors.ts";
import { anchoredSlices, type Laplace, type Posterior, pointEstimate } from "../posterior/index.ts";
import { ensemblePhase } from "./ensemble-phase.ts";
import { checkLaplace, laplacePhase } from "./laplace-phase.ts";
import type { EvaluateJson } from "./measure.ts";
import { atTemperature } from "./method-options.ts";
import type { FinetuneOptions } from "./options.ts";
import type { PhaseContext, PhasePlan } from "./phase.ts";
import { rankOnePhase } from "./rank-one-phase.ts";
import { checkSampling, samplingPhase } from "./sampling-phase.ts";
import { storedPosterior } from "./stored-posterior.ts";
import { checkSwagRoom, swagPhase } from "./swag-phase.ts";

/** Throws InputError for what the phase would refuse: before anything is trained or written. */
export function checkPhase(context: PhasePlan): void {
  const { target, options } = context;
  const { sampler, swag, ensemble, laplace } = options;
  if (sampler) checkSampling(context, sampler);
  if (swag) checkSwagRoom(context, swag);
  if (ensemble?.anchored) anchoredSlices(target, ensemble.anchored);
  if (laplace) checkLaplace(context, laplace);
}

/** Whether the method has a phase. */
export function hasPhase({ sampler, swag, ensemble, rankOne, laplace }: FinetuneOptions): boolean {
  return [sampler, swag, ensemble, rankOne, laplace].some((flags) => flags !== undefined);
}

/** What the run predicts with from now on. */
export interface Phase {
  posterior: Posterior;
  /** A chain that left the finite numbers: the posterior is of the draws before. */
  diverged: DivergedError | undefined;
  /** The Gaussian of `--method laplace`. */
  laplace: Laplace | undefined;
}

/** Runs the phase of a method that has one; undefined for the others. DivergedError: a sampler before its first draw. */
export async function posteriorPhase(context: PhaseContext): Promise<Phase | undefined> {
  const { options, model } = context;
  let diverged: DivergedError | undefined;
  let laplace: Laplace | undefined;
  if (options.sampler) diverged = await samplingPhase(context, options.sampler);
  else if (options.swag) await swagPhase(context, options.swag);
  else if (options.ensemble) await ensemblePhase(context, options.ensemble);
  else if (options.rankOne) await rankOnePhase(context, options.rankOne);
  else if (options.laplace) laplace = await laplacePhase(context, options.laplace);
  else return undefined;
  // As `predict` will find it.
  const posterior = (await storedPosterior(options.out, model, { unsaved: true })) ?? pointEstimate(model);
  return { posterior, diverged, laplace };
}

/** A temperature's metrics, or the step at which a chain left the finite numbers there. */
export type SweepRow = { temperature: number } & (EvaluateJson | { diverged: number });

/** What each temperature of `--temperature-sweep` measures; the run's own posterior is made after it. */
export async function temperatureSweep(
  context: PhaseContext,
  measureIt: (posterior: Posterior, what: string) => Promise<EvaluateJson>,
): Promise<SweepRow[] | undefined> {
  const { options, out } = context;
  if (!options.sweep) return undefined;
  const rows: SweepRow[] = [];
  for (const temperature of options.sweep) {
    const phase = await posteriorPhase({ ...context, options: atTemperature(options, temperature) }).catch(
      (error: unknown) => {
        if (error instanceof DivergedError) return { posterior: undefined, diverged: error };
        throw error;
      },
    );
    if (phase?.diverged) {
      out.warning(`at temperature ${temperature}: ${phase.diverged.message}`);
      rows.push({ temperature, diverged: phase.diverged.step });
    } else if (phase?.posterior) {
      rows.push({ temperature, ...(await measureIt(phase.posterior, `at temperature ${temperature}`)) });
    }
  }
  return rows;
}
