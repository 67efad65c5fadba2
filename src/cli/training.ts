/**
 * @file A training run on disk: reports to metrics.jsonl and to the progress bar, evaluations on the way, checkpoints at
 * the ends of epochs and when interrupted, and going on from one. What is computed is the trainer's business (src/train);
 * nothing here changes a number.
 */

import { join } from "node:path";
import { isObject, type JsonObject, parseJson } from "../data/json.ts";
import { count } from "../data/tables.ts";
import { DivergedError, InputError, InterruptedError } from "../errors.ts";
import type { PoolStats } from "../gpu/index.ts";
import {
  type FitOptions,
  type LogPosterior,
  parseState,
  type StepReport,
  serializeState,
  Trainer,
} from "../train/index.ts";
import { fileOf, newestCheckpoint, removeOthers, writeCheckpoint } from "./checkpoints.ts";
import { figure } from "./format.ts";
import type { Output } from "./output.ts";
import type { StepProfile } from "./profile.ts";
import { MetricsLog } from "./run-folder.ts";

/** A checkpoint is due at an epoch's end after this long; in the middle of an epoch after ten times as long. */
const CHECKPOINT_MS = 30_000;

/** Metrics on dev after a step. */
export interface DevMetrics extends JsonObject {
  step: number;
  epoch: number;
  nll: number;
}

/** What a run knows besides θ and the optimiser: travels with each checkpoint. */
interface Journey {
  seconds: number;
  evaluations: DevMetrics[];
  /** An evaluation that is due and was not done: the run was interrupted before its end. */
  pending: { step: number; epoch: number } | null;
}

export interface TrainingOptions {
  folder: string;
  out: Output;
  fit: FitOptions;
  /** Metrics on dev, or undefined where there is none. */
  measure?: ((what: string) => Promise<JsonObject & { nll: number }>) | undefined;
  /** When to evaluate on dev. */
  evaluate: "every" | "last" | number;
  /** True: the θ with the lowest NLL on dev is kept beside the last. */
  keepBest: boolean;
  /** Times the kernels of the steps. */
  profile?: StepProfile | undefined;
}

export class Training<B> {
  readonly trainer: Trainer<B>;
  readonly #options: TrainingOptions;
  readonly #root: string;
  #journey: Journey = { seconds: 0, evaluations: [], pending: null };
  #kept: { step: string | undefined; best: string | undefined } = { step: undefined, best: undefined };
  #savedAt: number;
  #resumed = 0;

  constructor(target: LogPosterior<B>, data: ConstructorParameters<typeof Trainer<B>>[1], options: TrainingOptions) {
    this.#options = options;
    this.#root = join(options.folder, "checkpoints");
    this.#savedAt = options.out.io.now();
    this.trainer = new Trainer<B>(target, data, {
      ...options.fit,
      signal: options.out.io.signal,
      warn: (line) => options.out.warning(line),
      settle: (step) =>
        (typeof options.evaluate === "number" && step % options.evaluate === 0) ||
        options.profile?.settles(step) === true ||
        this.#overdue(10 * CHECKPOINT_MS),
    });
  }

  get evaluations(): readonly DevMetrics[] {
    return this.#journey.evaluations;
  }

  /** Seconds of training, those before a resume included. */
  get seconds(): number {
    return this.#journey.seconds;
  }

  /** The evaluation with the lowest NLL; the first of equals. */
  get best(): DevMetrics | undefined {
    return this.evaluations.reduce<DevMetrics | undefined>(
      (best, one) => (best === undefined || one.nll < best.nll ? one : best),
      undefined,
    );
  }

  /** Goes on from the newest checkpoint that is whole; says which, and what was passed over. */
  async resume(): Promise<void> {
    const { out } = this.#options;
    const { taken, skipped } = newestCheckpoint(this.#root, "step");
    for (const { name, reason } of skipped) out.warning(`checkpoint ${name} was skipped: ${reason}`);
    if (taken === undefined) {
      out.note("no checkpoint to continue from: the run starts at step 0");
      return;
    }
    const name = `${taken.folder}/state.safetensors`;
    const state = parseState(fileOf(taken, "state.safetensors"), name);
    for (const note of await this.trainer.restore(state)) out.note(note);
    this.#journey = parseJourney(fileOf(taken, "journey.json"), `${taken.folder}/journey.json`);
    this.#resumed = state.step;
    this.#kept.step = taken.name;
    const { best } = this;
    if (best !== undefined && this.#options.keepBest) {
      this.#kept.best = newestCheckpoint(this.#root, "best", best.step).taken?.name;
      if (this.#kept.best === undefined) throw new InputError(bestIsGone(this.#root));
    }
    out.note(`continuing after step ${state.step} of ${this.trainer.steps} (${taken.folder})`);
  }

  /** Trains to the end. InterruptedError after Ctrl-C, with a checkpoint written; DivergedError likewise. */
  async run(onStep: (report: StepReport) => void = () => {}): Promise<void> {
    const { out, folder, profile } = this.#options;
    const { trainer } = this;
    const log = new MetricsLog(folder, trainer.step);
    const before = this.#journey.seconds;
    const start = out.io.now();
    const tick = () => {
      this.#journey.seconds = before + (out.io.now() - start) / 1000;
    };
    try {
      await this.#evaluatePending();
      let bar = out.progress("training", trainer.steps);
      let skipped = 0;
      for await (const report of profile?.over(trainer) ?? trainer.run()) {
        log.add({ ...lineOf(report), ...moreOf(report) });
        if (report.skipped) skipped++;
        if (out.io.env.DEBUG) out.note(stepSummary(report, trainer.target.model.engine.gpu.stats));
        onStep(report);
        bar.update(report.step, barText(report, trainer.target.prior.active));
        // Another step is on its way unless this one was settled.
        if (report.step !== trainer.step) continue;
        tick();
        const last = report.step === trainer.steps;
        if (this.#isDue(report)) this.#journey.pending = { step: report.step, epoch: report.epoch };
        if (out.io.signal.aborted) continue;
        // Before an evaluation, which may take longer than the training did.
        if (last || this.#overdue(Number.isInteger(report.epoch) ? CHECKPOINT_MS : 10 * CHECKPOINT_MS))
          await this.#save();
        if (this.#journey.pending === null) continue;
        await this.#evaluatePending();
        tick();
        if (!last) bar = out.progress("training", trainer.steps);
      }
      tick();
      if (skipped > 0)
        out.note(`${count(skipped, "step")} skipped: a gradient overflowed, and the loss's scale was halved`);
      if (out.io.signal.aborted) throw new InterruptedError("interrupted");
    } catch (error) {
      tick();
      if (error instanceof InterruptedError) throw await this.#interrupted();
      if (error instanceof DivergedError && trainer.step > this.#resumed) {
        await this.#save();
        out.note(`a checkpoint of step ${trainer.step}, the last good one, is in ${this.#root}`);
      }
      if (error instanceof DivergedError) throw withAdvice(error, this.#afterDivergence(error));
      throw error;
    } finally {
      out.end();
      log.close();
    }
  }

  /** Puts the θ that was best on dev into the model. */
  restoreBest(): DevMetrics {
    const { best } = this;
    const { theta, engine } = this.trainer.target.model;
    const { taken, skipped } = newestCheckpoint(this.#root, "best", best?.step);
    if (best === undefined || taken === undefined) {
      const why = skipped[0] === undefined ? "" : `: ${skipped[0].reason}`;
      throw new InputError(
        `--select best: the best checkpoint cannot be read${why}. Train again, or use --select last.`,
      );
    }
    const state = parseState(fileOf(taken, "theta.safetensors"), `${taken.folder}/theta.safetensors`);
    if (state.theta.length !== theta.layout.length) {
      throw new InputError(`${taken.folder}: θ of another model. Train again with --overwrite.`);
    }
    engine.gpu.write(theta.values, state.theta);
    return best;
  }

  dispose(): void {
    this.trainer.dispose();
  }

  #overdue(ms: number): boolean {
    return this.#options.out.io.now() - this.#savedAt > ms;
  }

  /** Is dev to be measured after this step? */
  #isDue({ step, epoch }: StepReport): boolean {
    const { measure, evaluate } = this.#options;
    if (measure === undefined) return false;
    if (step === this.trainer.steps) return true;
    return evaluate === "every" ? Number.isInteger(epoch) : evaluate !== "last" && step % evaluate === 0;
  }

  /** Measures on dev what is due; where that is the best so far, keeps it. */
  async #evaluatePending(): Promise<void> {
    const { out, keepBest, measure } = this.#options;
    const { pending, evaluations } = this.#journey;
    if (pending === null || measure === undefined) return;
    const before = this.best;
    const line: DevMetrics = { ...pending, ...(await measure(`step ${pending.step}: dev`)) };
    evaluations.push(line);
    this.#journey.pending = null;
    const figures = ["accuracy", "nll", "ece"].map((key) => `${key} ${figure(Number(line[key]))}`).join(", ");
    out.note(`epoch ${figure(pending.epoch)}: dev ${figures}`);
    if (keepBest && (before === undefined || line.nll < before.nll)) await this.#save(true);
  }

  /** The best first: a step's checkpoint never speaks of a best that is not there. Older ones go when both stand. */
  async #save(best = false): Promise<void> {
    const { trainer } = this;
    const state = await trainer.state();
    if (best) {
      const theta = serializeState({ ...state, vectors: {} });
      const files = [{ name: "theta.safetensors", content: theta }];
      this.#kept.best = writeCheckpoint(this.#root, "best", state.step, files);
    }
    this.#kept.step = writeCheckpoint(this.#root, "step", state.step, [
      { name: "state.safetensors", content: serializeState(state) },
      { name: "journey.json", content: `${JSON.stringify(this.#journey, null, 2)}\n` },
    ]);
    removeOthers(this.#root, "step", this.#kept.step);
    removeOthers(this.#root, "best", this.#kept.best);
    this.#savedAt = this.#options.out.io.now();
  }

  #afterDivergence({ step }: DivergedError): string {
    const rates = rateFlags(this.#options.fit);
    return `The weights are kept as they were after step ${step - 1}. Lower ${rates}, lengthen --warmup, or set --clip 1.`;
  }

  async #interrupted(): Promise<InterruptedError> {
    const { step, steps } = this.trainer;
    await this.#save();
    return new InterruptedError(
      `interrupted after step ${step} of ${steps}: a checkpoint is in ${this.#root}. Run the same command with --resume to go on.`,
    );
  }
}

/** The flags of the learning rates that an optimiser has. */
function rateFlags({ optimizer }: Pick<FitOptions, "optimizer">): string {
  return optimizer.groups.includes("head") ? "--lr and --head-lr" : "--lr";
}

/** The facts of a step that is not finite, and behind them what became of the weights and what to do. */
function withAdvice({ message, step, operation }: DivergedError, advice: string, before = ""): DivergedError {
  return new DivergedError(`${before}${message} ${advice}`, step, operation);
}

/** The same for a posterior phase, which trains `what` at the rates of `fit`. Any other error is given back as it is. */
export function phaseDiverged(error: unknown, what: string, fit: Pick<FitOptions, "optimizer">): unknown {
  if (!(error instanceof DivergedError)) return error;
  const advice = `The step is counted from the start of ${what}. The run's mode is unchanged. Start anew with a lower ${rateFlags(fit)}, or with --clip 1.`;
  return withAdvice(error, advice, `${what}: `);
}

function bestIsGone(root: string): string {
  return `${root}: the checkpoint that was best on dev is gone or damaged. Start anew with --overwrite, or use --select last.`;
}

function lineOf(report: StepReport): JsonObject {
  const { step, epoch, nll, logPrior, logJoint, priorShare, distance, lr, gradNorm, tokensPerSecond } = report;
  return { step, epoch, nll, logPrior, logJoint, priorShare, distance, lr, gradNorm, tokensPerSecond };
}

/** What a line says besides with R-Drop, and with dtype f16: where a step was skipped, gradNorm and priorShare are null. */
function moreOf({ rDrop, lossScale, skipped }: StepReport): JsonObject {
  return {
    ...(rDrop === undefined ? {} : { rDrop }),
    ...(lossScale === undefined ? {} : { lossScale, skipped: skipped === true }),
  };
}

function barText({ epoch, nll, priorShare }: StepReport, hasPrior: boolean): string {
  const share = hasPrior ? `  prior share ${priorShare.toFixed(3)}` : "";
  return `epoch ${epoch.toFixed(1)}  nll ${nll.toFixed(3)}${share}`;
}

function parseJourney(bytes: Uint8Array, name: string): Journey {
  const { seconds, evaluations, pending } = parseJson(new TextDecoder().decode(bytes), name);
  const placed = (x: unknown) => isObject(x) && Number.isSafeInteger(x.step) && Number.isFinite(x.epoch);
  const measured = (x: unknown) => placed(x) && isObject(x) && Number.isFinite(x.nll);
  const due = pending === null || pending === undefined || placed(pending);
  if (typeof seconds !== "number" || !Array.isArray(evaluations) || !evaluations.every(measured) || !due) {
    throw new InputError(`${name}: not what a checkpoint holds. Remove this checkpoint and resume.`);
  }
  return { seconds, evaluations: evaluations as DevMetrics[], pending: (pending ?? null) as Journey["pending"] };
}

/** DEBUG=1: what a step was made of, and what is alive on the device after it. */
function stepSummary(
  { step, dispatches, nll, gradNorm, tokensPerSecond }: StepReport,
  memory: Readonly<PoolStats>,
): string {
  const mb = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;
  return (
    `step ${step}: ${dispatches} dispatches, nll ${nll.toFixed(4)}, gradient ${gradNorm.toPrecision(3)}, ${tokensPerSecond.toFixed(0)} tokens/s; ` +
    `${memory.liveBuffers} live buffers of ${mb(memory.liveBytes)} (peak ${mb(memory.peakLiveBytes)}), ${mb(memory.idleBytes)} idle`
  );
}
