/**
 * @file What a method does once θ is at the mode: many θ around it, written to `posterior/` as they come, and then what
 * predicts. An interrupted phase is begun anew by `--resume`, from the trained θ (its draws are named by the seed), but
 * for an ensemble's, which keeps the members that are finished.
 */
import { join } from "node:path";
import { type PackedBatch, packBatch } from "../data/batches.ts";
import { writeFileAtomic } from "../data/files.ts";
import { DivergedError, InterruptedError } from "../errors.ts";
import {
  anchoredSlices,
  type Diagnosis,
  diagnose,
  expectLaplace,
  type Ggn,
  type Posterior,
  pointEstimate,
  type Swag,
  sampledSlices,
  sghmc,
  sgld,
  type TrajectoryDraw,
  thetaMembers,
  trajectory,
} from "../posterior/index.ts";
import { featuresFit } from "../train/frozen.ts";
import type { LogPosterior } from "../train/index.ts";
import type { ModeContext } from "./another-mode.ts";
import { ensemblePhase } from "./ensemble-phase.ts";
import { laplacePhase } from "./laplace-phase.ts";
import type { EvaluateJson } from "./measure.ts";
import { atTemperature, type SamplerOptions } from "./method-options.ts";
import type { FinetuneOptions } from "./options.ts";
import { PosteriorWriter, readPosterior, storedDraws } from "./posterior-folder.ts";
import { rankOnePhase } from "./rank-one-phase.ts";
import type { LoadedClassifier } from "./source.ts";
import { swagPhase } from "./swag-phase.ts";
import { lookAtDraws } from "./volume.ts";

export interface PhaseContext extends ModeContext {
  /** The run's own model, at its mode. */
  model: LoadedClassifier;
  target: LogPosterior<PackedBatch>;
  /** Where several temperatures are drawn: what does not depend on them, found by the first and kept. */
  found?: { curvature?: Ggn; swag?: Swag } | undefined;
}

/** Throws InputError for what the phase would refuse: before anything is trained or written. */
export function checkPhase({ model, target, data, options }: Omit<PhaseContext, "reload" | "measure" | "out">): void {
  const { sampler, ensemble, laplace } = options;
  if (sampler) sampledSlices(target, sampler.groups);
  if (ensemble?.anchored) anchoredSlices(target, ensemble.anchored);
  if (laplace) expectLaplace(model, target.prior, packBatch(data.slice(0, 1)), laplace);
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
}

/** Runs the phase of a method that has one; undefined for the others. DivergedError: a sampler before its first draw. */
export async function posteriorPhase(context: PhaseContext): Promise<Phase | undefined> {
  const { options, model } = context;
  let diverged: DivergedError | undefined;
  if (options.sampler) diverged = await sampling(context, options.sampler);
  else if (options.swag) await swagPhase(context, options.swag);
  else if (options.ensemble) await ensemblePhase(context, options.ensemble);
  else if (options.rankOne) await rankOnePhase(context, options.rankOne);
  else if (options.laplace) await laplacePhase(context, options.laplace);
  else return undefined;
  const record = readPosterior(options.out);
  const posterior = record ? thetaMembers(model, storedDraws(options.out, record, model.theta)) : pointEstimate(model);
  return { posterior, diverged };
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

/** A draw without its numbers, which are on disk. */
type Watched = Omit<TrajectoryDraw, "values">;

/** Chains of SGLD or SGHMC, their draws and their trace. What ended them early, if anything did; thrown where it left none. */
async function sampling(
  { model, target, data, options, out }: PhaseContext,
  sampler: SamplerOptions,
): Promise<DivergedError | undefined> {
  const { method, members, seed } = options;
  const { groups, lr, temperature, likelihoodTemperature, burnIn, thin, chains, friction } = sampler;
  const slices = sampledSlices(target, groups);
  const writer = new PosteriorWriter(options.out, slices);
  // p(X|θ)^(1/T)·p(θ) is the posterior of N/T terms with the same mean: the prior weighs T times as much beside each.
  const tempered = { ...target, N: target.N / likelihoodTemperature };
  const settings = { lr, N: tempered.N, temperature };
  // A step of the head alone on vectors that are kept costs so little that it may see all of the data: the noise of small
  // batches heats the chain.
  const headOnly = slices.every((slice) => slice.groups[0] === "head");
  const batch = headOnly && featuresFit(model, data.length) ? Math.min(data.length, MOST_AT_ONCE) : options.batch;
  const bar = out.progress("sampling", members);
  const trace: Watched[] = [];
  const path = new Path(chains, thin * Math.ceil(members / chains), batch >= data.length);
  let diverged: DivergedError | undefined;
  try {
    for await (const draw of trajectory(tempered, data, {
      sampler: (seed) => (method === "sghmc" ? sghmc({ ...settings, friction, seed }) : sgld({ ...settings, seed })),
      groups,
      draws: Math.ceil(members / chains),
      thin,
      burnIn,
      chains,
      batch,
      seed,
      signal: out.io.signal,
      warn: (line) => out.warning(line),
      watch: (chain, watched) => path.add(chain, watched),
    })) {
      if (trace.length >= members) break;
      const { values, ...watched } = draw;
      writer.add(values, watched.chain);
      trace.push(watched);
      bar.update(trace.length);
    }
    if (out.io.signal.aborted) {
      throw new InterruptedError(
        `interrupted (sampling, ${trace.length} of ${members} draws). Run the same command with --resume to sample anew.`,
      );
    }
  } catch (error) {
    if (!(error instanceof DivergedError)) throw error;
    const at = `sampling: step ${error.step} of chain ${error.chain ?? 0} (counted from 0) is not finite`;
    const kept = trace.length > 0 ? `The ${trace.length} draws before it are kept in posterior/. ` : "";
    diverged = new DivergedError(`${at} (first in ${error.operation}). ${kept}Take a smaller --sample-lr.`, error.step, error.operation); // biome-ignore format: one sentence
    if (trace.length === 0) throw diverged;
  } finally {
    out.end();
  }
  writeFileAtomic(join(options.out, "posterior", "trace.csv"), traceCsv(trace));
  const diagnostics = path.diagnose();
  for (const [variable, { rhat, ess }] of Object.entries(diagnostics)) {
    if (rhat === undefined || !(rhat > LARGEST_RHAT)) continue;
    out.warning(
      `the chains disagree about ${variable} (R-hat ${rhat.toFixed(2)}, worth ${ess.toFixed(0)} independent draws): raise --burn-in or --thin`,
    );
    break; // one is enough to know
  }
  const made = { draws: trace.length, seed, diagnostics, ...(diverged ? { divergedAt: diverged.step } : {}) };
  writer.finish(method, { ...sampler, batch, ...made });
  const record = headOnly ? undefined : readPosterior(options.out);
  if (record) {
    const draws = storedDraws(options.out, record, model.theta, Math.min(4, record.members.length));
    await lookAtDraws({ model, data, out }, "--sample", draws, groups);
  }
  return diverged;
}

/** Examples to a step of the head alone. */
const MOST_AT_ONCE = 1024;

/** Above this the draws of several chains are not of one distribution. */
const LARGEST_RHAT = 1.1;

/** Steps of a chain that are kept for its diagnosis. */
const LOOKED_AT = 1000;

/**
 * What every step after burn-in shows of its chain. A handful of kept draws could not tell chains that have mixed from
 * others: of two times eight independent draws a third have an R-hat above 1.1.
 */
class Path {
  readonly #chains: Record<string, number[]>[];
  readonly #stride: number;
  readonly #whole: boolean;
  readonly #seen: number[];

  /** `steps`: of a chain, about; `whole`: a step sees all of the data, so that its NLL is the data's and not a batch's. */
  constructor(chains: number, steps: number, whole: boolean) {
    this.#chains = Array.from({ length: chains }, () => ({}));
    this.#seen = new Array(chains).fill(0);
    this.#stride = Math.max(1, Math.floor(steps / LOOKED_AT));
    this.#whole = whole;
  }

  add(chain: number, { nll, logPrior, logJoint }: { nll: number; logPrior: number; logJoint: number }): void {
    const seen = this.#seen[chain] ?? 0;
    this.#seen[chain] = seen + 1;
    if (seen % this.#stride !== 0) return;
    // A batch's NLL is noise that hides whether the chain moves.
    const series = this.#chains[chain] as Record<string, number[]>;
    for (const [name, value] of Object.entries(this.#whole ? { nll, logPrior, logJoint } : { logPrior })) {
      series[name] ??= [];
      series[name].push(value);
    }
  }

  /** By functional; none where a chain has fewer than four steps. */
  diagnose(): Record<string, Diagnosis> {
    const found: Record<string, Diagnosis> = {};
    for (const name of Object.keys(this.#chains[0] ?? {})) {
      const shortest = Math.min(...this.#chains.map((chain) => chain[name]?.length ?? 0));
      if (shortest < 4) continue;
      found[name] = diagnose(this.#chains.map((chain) => (chain[name] ?? []).slice(0, shortest)));
    }
    return found;
  }
}

/** `chain,draw,variable,value`: what is watched of each draw, in the form that other tools read. */
export function traceCsv(trace: readonly Watched[]): string {
  const lines = trace.flatMap(({ chain, draw, functionals }) =>
    Object.entries(functionals).map(([variable, value]) => `${chain},${draw},${variable},${value}`),
  );
  return `${["chain,draw,variable,value", ...lines].join("\n")}\n`;
}
