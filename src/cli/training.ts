/**
 * @file A training run on disk: reports to metrics.jsonl and to the progress bar, evaluations on the way, checkpoints at
 * the ends of epochs and when interrupted, and going on from one. What is computed is the trainer's business (src/train);
 * nothing here changes a number.
 */
import { join } from "node:path";
import { isObject, type JsonObject, parseJson } from "../data/json.ts";
import { DivergedError, InputError, InterruptedError } from "../errors.ts";
import {
  type FitOptions,
  type LogPosterior,
  parseState,
  type StepReport,
  serializeState,
  Trainer,
} from "../train/index.ts";
import { fileOf, newestCheckpoint, readCheckpoint, removeOthers, writeCheckpoint } from "./checkpoints.ts";
import { figure } from "./format.ts";
import type { Output } from "./output.ts";
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
}

export class Training<B> {
  readonly trainer: Trainer<B>;
  readonly #options: TrainingOptions;
  readonly #root: string;
  #journey: Journey = { seconds: 0, evaluations: [] };
  #saved = -1;
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
        (typeof options.evaluate === "number" && step % options.evaluate === 0) || this.#overdue(10 * CHECKPOINT_MS),
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
    this.#saved = this.#resumed = state.step;
    out.note(`continuing after step ${state.step} of ${this.trainer.steps} (${taken.folder})`);
  }

  /** Trains to the end. InterruptedError after Ctrl-C, with a checkpoint written; DivergedError likewise. */
  async run(onStep: (report: StepReport) => void = () => {}): Promise<void> {
    const { out, folder, measure, evaluate } = this.#options;
    const { trainer } = this;
    const log = new MetricsLog(folder, trainer.step);
    const before = this.#journey.seconds;
    const start = out.io.now();
    const tick = () => {
      this.#journey.seconds = before + (out.io.now() - start) / 1000;
    };
    let bar = out.progress("training", trainer.steps);
    try {
      for await (const report of trainer.run()) {
        log.add(lineOf(report));
        onStep(report);
        bar.update(report.step, barText(report));
        // Another step is on its way unless this one was settled.
        if (report.step !== trainer.step || out.io.signal.aborted) continue;
        const epochEnds = Number.isInteger(report.epoch);
        const last = report.step === trainer.steps;
        const wanted = evaluate === "every" ? epochEnds : evaluate !== "last" && report.step % evaluate === 0;
        let improved = false;
        if (measure !== undefined && (wanted || last)) {
          improved = await this.#evaluate(report, measure);
          if (!last) bar = out.progress("training", trainer.steps);
        }
        tick();
        if (last || improved || this.#overdue(epochEnds ? CHECKPOINT_MS : 10 * CHECKPOINT_MS))
          await this.#save(improved);
      }
      tick();
      if (trainer.step < trainer.steps) throw await this.#interrupted();
    } catch (error) {
      tick();
      if (error instanceof DivergedError && trainer.step > this.#resumed) {
        await this.#save(false);
        out.note(`a checkpoint of step ${trainer.step}, the last good one, is in ${this.#root}`);
      }
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
    const read = best === undefined ? undefined : readCheckpoint(this.#root, "best", best.step);
    if (best === undefined || read === undefined || "reason" in read) {
      const why = read !== undefined && "reason" in read ? `: ${read.reason}` : "";
      throw new InputError(
        `--select best: the best checkpoint cannot be read${why}. Train again, or use --select last.`,
      );
    }
    const state = parseState(fileOf(read, "theta.safetensors"), `${read.folder}/theta.safetensors`);
    if (state.theta.length !== theta.layout.length) {
      throw new InputError(`${read.folder}: θ of another model. Train again with --overwrite.`);
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

  /** Measures on dev; true if that is the best so far. */
  async #evaluate(report: StepReport, measure: NonNullable<TrainingOptions["measure"]>): Promise<boolean> {
    const { out, keepBest } = this.#options;
    const before = this.best;
    const metrics = await measure(`step ${report.step}: dev`);
    const line: DevMetrics = { step: report.step, epoch: report.epoch, ...metrics };
    this.#journey.evaluations.push(line);
    const figures = ["accuracy", "nll", "ece"].map((key) => `${key} ${figure(Number(line[key]))}`).join(", ");
    out.note(`epoch ${figure(report.epoch)}: dev ${figures}`);
    return keepBest && (before === undefined || line.nll < before.nll);
  }

  /** The best first: a last checkpoint never speaks of a best that is not there. Older ones go when both stand. */
  async #save(improved: boolean): Promise<void> {
    const { trainer } = this;
    if (trainer.step === this.#saved && !improved) return;
    const state = await trainer.state();
    if (improved) {
      const theta = serializeState({ ...state, vectors: {} });
      writeCheckpoint(this.#root, "best", state.step, [{ name: "theta.safetensors", content: theta }]);
    }
    writeCheckpoint(this.#root, "step", state.step, [
      { name: "state.safetensors", content: serializeState(state) },
      { name: "journey.json", content: `${JSON.stringify(this.#journey, null, 2)}\n` },
    ]);
    removeOthers(this.#root, "step", state.step);
    removeOthers(this.#root, "best", this.#options.keepBest ? this.best?.step : undefined);
    this.#saved = state.step;
    this.#savedAt = this.#options.out.io.now();
  }

  async #interrupted(): Promise<InterruptedError> {
    const { step, steps } = this.trainer;
    await this.#save(false);
    return new InterruptedError(
      `interrupted after step ${step} of ${steps}: a checkpoint is in ${this.#root}. Run the same command with --resume to go on.`,
    );
  }
}

function lineOf(report: StepReport): JsonObject {
  const { step, epoch, nll, logPrior, logJoint, priorShare, distance, lr, gradNorm, tokensPerSecond } = report;
  return { step, epoch, nll, logPrior, logJoint, priorShare, distance, lr, gradNorm, tokensPerSecond };
}

function barText({ epoch, nll, priorShare }: StepReport): string {
  return `epoch ${epoch.toFixed(1)}  nll ${nll.toFixed(3)}  prior share ${priorShare.toFixed(3)}`;
}

function parseJourney(bytes: Uint8Array, name: string): Journey {
  const { seconds, evaluations } = parseJson(new TextDecoder().decode(bytes), name);
  if (typeof seconds !== "number" || !Array.isArray(evaluations) || !evaluations.every(isObject)) {
    throw new InputError(`${name}: not what a checkpoint holds. Remove this checkpoint and resume.`);
  }
  return { seconds, evaluations: evaluations as DevMetrics[] };
}
