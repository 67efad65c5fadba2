/**
 * @file `--method sgld` and `sghmc`: chains from the run's mode, their draws written as they come, and what is watched of
 * them: a trace of each draw's functionals, and the chains' diagnosis.
 */
import { join } from "node:path";
import type { Slice } from "../autograd/index.ts";
import { packBatch } from "../data/batches.ts";
import { writeFileAtomic } from "../data/files.ts";
import { DivergedError, InterruptedError } from "../errors.ts";
import {
  cycleOf,
  cycleShares,
  type Diagnosis,
  diagnoseChains,
  diagnoseTrace,
  MOST_STEPS,
  sampledSlices,
  sentenceLogits,
  sghmc,
  sgld,
  shareOf,
  traceCsv,
  traceJson,
  traceRows,
  trajectory,
  type Watched,
} from "../posterior/index.ts";
import { featuresFit } from "../train/frozen.ts";
import type { SamplerOptions } from "./method-options.ts";
import type { PhaseContext } from "./phase.ts";
import { PosteriorWriter, readPosterior, storedDraws } from "./posterior-folder.ts";
import { mostSteps, samplingSteps } from "./sampling-steps.ts";
import { refuse } from "./values.ts";
import { lookAtDraws } from "./volume.ts";

/** The cycle of the chains' step sizes, which has room for the draws of the longest; undefined where they stay. */
function cycleFor({ cycles, chains, exploration = 0 }: SamplerOptions, thin: number, members: number) {
  const draws = shareOf(members, chains, 0);
  return cycles === undefined ? undefined : cycleOf({ draws, thin, cycles, exploration });
}

/** Throws InputError for what the phase would refuse, before anything is trained. */
export function checkSampling(
  { target, options: { members } }: Pick<PhaseContext, "target" | "options">,
  sampler: SamplerOptions,
): void {
  const headOnly = isHead(sampledSlices(target, sampler.groups));
  const { chains, cycles = 1 } = sampler;
  const { burnIn, thin } = mostSteps(sampler, headOnly);
  const cycle = cycleFor(sampler, thin, members);
  const walked = thin * shareOf(members, chains, 0);
  const steps = cycle ? cycles * cycle.length : burnIn + walked;
  if (steps <= MOST_STEPS) return;
  const why = `a chain of ${steps} steps (expected at most ${MOST_STEPS})`;
  if (cycle && sampler.thin === undefined)
    refuse("--exploration", String(sampler.exploration), why, "Take a smaller one, or fewer --members.");
  if (!cycle && burnIn > walked) refuse("--burn-in", String(burnIn), why, "Take a smaller one.");
  const cure = cycle ? "--exploration" : "--burn-in";
  refuse("--thin", String(thin), why, `Take a smaller one, a smaller ${cure}, or fewer --members.`);
}

/** Chains of the sampler, their draws and their trace, written to the run's posterior. What ended them early, if anything did; thrown where it left none. */
export async function samplingPhase(
  context: PhaseContext,
  sampler: SamplerOptions,
): Promise<DivergedError | undefined> {
  const { model, target, data, options, out } = context;
  const { method, members, seed } = options;
  const { groups, temperature, likelihoodTemperature, chains, friction, resample, cycles = 1 } = sampler;
  const drawsOfChain = (chain: number) => shareOf(members, chains, chain);
  const slices = sampledSlices(target, groups);
  // A step of the head alone on vectors that are kept costs so little that it may see all of the data: the noise of small
  // batches heats the chain.
  const headOnly = isHead(slices);
  const kept = headOnly && featuresFit(model, data.length);
  const batch = kept ? Math.min(data.length, MOST_AT_ONCE) : options.batch;
  const steps = await samplingSteps(context, sampler, { kept, batch, slices });
  const { lr, burnIn, thin } = steps;
  const cycle = cycleFor(sampler, thin, members);
  const writer = new PosteriorWriter(options.out, slices);
  // p(X|θ)^(1/T)·p(θ) is the posterior of N/T terms with the same mean: the prior weighs T times as much beside each.
  const tempered = { ...target, N: target.N / likelihoodTemperature };
  const settings = { lr, N: tempered.N, temperature, cycle };
  const sentences = sentenceLogits(model, packBatch(data.slice(0, SENTENCES)), {
    headOnly,
    classes: Math.floor(LOGITS / SENTENCES),
  });
  const bar = out.progress("sampling", members);
  const trace: Watched[] = [];
  const path = new Path(chains, thin * drawsOfChain(0), batch >= data.length);
  let diverged: DivergedError | undefined;
  try {
    for await (const draw of trajectory(tempered, data, {
      sampler: (seed) =>
        method === "sghmc" ? sghmc({ ...settings, friction, resample, seed }) : sgld({ ...settings, seed }),
      groups,
      draws: drawsOfChain,
      thin,
      burnIn,
      samples: cycle && ((step, chain) => cycleShares(cycle, { draws: drawsOfChain(chain), thin, cycles })(step)),
      chains,
      batch,
      seed,
      signal: out.io.signal,
      warn: (line) => out.warning(line),
      watch: (chain, watched) => path.add(chain, watched),
      functionals: () => sentences.read(),
      // The steps before a chain's first draw take their time too.
      progress: (share) => bar.update(members * share),
    })) {
      const { values, ...watched } = draw;
      writer.add(values, watched.chain);
      trace.push(watched);
    }
    if (out.io.signal.aborted) {
      throw new InterruptedError(
        `interrupted (sampling, ${trace.length} of ${members} draws). Run the same command with --resume to sample anew.`,
      );
    }
  } catch (error) {
    if (!(error instanceof DivergedError)) throw error;
    const at = `sampling: step ${error.step} of chain ${error.chain ?? 0} (counted from 0) is not finite`;
    const kept =
      trace.length > 0
        ? `The ${trace.length} draws before it are kept in posterior/. `
        : "The run's mode is unchanged. ";
    diverged = new DivergedError(`${at} (first in ${error.operation}). ${kept}Take a smaller --sample-lr.`, error.step, error.operation); // biome-ignore format: one sentence
    if (trace.length === 0) throw diverged;
  } finally {
    out.end();
    sentences.dispose();
  }
  for (const [file, text] of [
    ["trace.csv", traceCsv(trace)],
    ["trace.json", traceJson(trace)],
  ] as const) {
    writeFileAtomic(join(options.out, "posterior", file), text);
  }
  const ofPath = path.diagnose();
  // A batch's NLL is noise that hides whether the chain moves.
  const ofDraws = diagnoseTrace(traceRows(trace).filter(({ variable }) => /^(distance|logit)\./.test(variable)));
  const diagnostics = { ...ofPath, ...ofDraws };
  const judged = trace.length >= LEAST_DRAWS * chains ? diagnostics : ofPath;
  const apart = Object.entries(judged).flatMap(([variable, { rhat = 0, ess }]) =>
    rhat > LARGEST_RHAT ? [{ variable, rhat, ess }] : [],
  );
  const [worst] = apart.sort((a, b) => b.rhat - a.rhat);
  if (worst) {
    const cure =
      cycle === undefined
        ? "raise --sample-lr, --burn-in or --thin"
        : "raise --sample-lr or --thin, or take fewer --cycles or a smaller --exploration";
    out.warning(
      `the chains disagree about ${worst.variable} (R-hat ${worst.rhat.toFixed(2)}, worth ${worst.ess.toFixed(0)} independent draws): ${cure}`,
    );
  }
  const made = { draws: trace.length, seed, diagnostics, ...(diverged ? { divergedAt: diverged.step } : {}) };
  await writer.finish(
    method,
    { ...sampler, ...steps, ...(cycle ? { cycle: cycle.length } : {}), batch, ...made },
    model.theta,
  );
  const record = headOnly ? undefined : readPosterior(options.out);
  if (record) {
    const draws = storedDraws(options.out, record, model.theta, Math.min(4, record.members.length));
    await lookAtDraws({ model, data, out }, "--sample", draws, groups);
  }
  return diverged;
}

const isHead = (slices: readonly Slice[]) => slices.every((slice) => slice.groups[0] === "head");

/** Examples to a step of the head alone. */
const MOST_AT_ONCE = 1024;

/** Above this the draws of several chains are not of one distribution. */
const LARGEST_RHAT = 1.1;

/** Draws of a chain from which R-hat may warn: of ten functionals of fewer, one is above by chance too often. */
const LEAST_DRAWS = 50;

/** Sentences of the training table, its first, whose logits are watched. */
const SENTENCES = 4;

/** Logits that are watched. Of hundreds the least mixed would look bad by chance, and a trace of them is read by nobody. */
const LOGITS = 32;

/** Steps of a chain that are kept for its diagnosis. */
const LOOKED_AT = 1000;

/**
 * What every step after burn-in shows of its chain. A handful of kept draws could not tell chains that have mixed from
 * others: of two times eight independent draws a third have an R-hat above 1.1.
 */
class Path {
  /** By functional, chain by chain. */
  readonly #chains = new Map<string, number[][]>();
  readonly #stride: number;
  readonly #whole: boolean;
  readonly #seen: number[];

  /** `steps`: of a chain, about; `whole`: a step sees all of the data, so that its NLL is the data's and not a batch's. */
  constructor(chains: number, steps: number, whole: boolean) {
    this.#seen = new Array(chains).fill(0);
    this.#stride = Math.max(1, Math.floor(steps / LOOKED_AT));
    this.#whole = whole;
  }

  add(chain: number, { nll, logPrior, logJoint }: { nll: number; logPrior: number; logJoint: number }): void {
    const seen = this.#seen[chain] ?? 0;
    this.#seen[chain] = seen + 1;
    if (seen % this.#stride !== 0) return;
    // A batch's NLL is noise that hides whether the chain moves.
    for (const [name, value] of Object.entries(this.#whole ? { nll, logPrior, logJoint } : { logPrior })) {
      const chains = this.#chains.get(name) ?? this.#seen.map(() => []);
      this.#chains.set(name, chains);
      chains[chain]?.push(value);
    }
  }

  /** By functional; none where a chain has fewer than four steps. */
  diagnose(): Record<string, Diagnosis> {
    return diagnoseChains(this.#chains);
  }
}
