/**
 * @file The loop. One step is one scope and one submit: forward, backward, the terms of the log-posterior, the update.
 * Nothing comes back but one small report, and that a step late, so that the device never waits for the host. A report
 * is believed only if the counter in it says that this step's update happened; a loss or gradient that is not finite
 * changes nothing (the update kernel sees to it) and stops the run with the operation named.
 */
import type { Example, PackedBatch } from "../data/batches.ts";
import { DeviceError } from "../errors.ts";
import { f32 } from "../gpu/index.ts";
import { createStatus, type Live, type NdArray, readIndices, STATUS, vectorTerms } from "../kernels/index.ts";
import { captureState, restoreState, type StateParts, type TrainState } from "./checkpoint.ts";
import { divergedError, firstBadOperation } from "./diverged.ts";
import { RunFacts } from "./facts.ts";
import { checkFit, type FitOptions, type StepReport, warnOfTwoPriors } from "./fit-options.ts";
import { type FrozenLikelihood, frozenFeatures } from "./frozen.ts";
import { LiveParameters } from "./live.ts";
import { LossScaling } from "./lossscale.ts";
import { Mixing } from "./mixout.ts";
import { combineTerms, type LogPosterior, type Stretch, stretchesOf } from "./objective.ts";
import type { UpdateContext } from "./optimizers.ts";
import { PriorShares } from "./prior-share.ts";
import { schedule } from "./schedule.ts";
import { exampleSource, Plan, type Source } from "./source.ts";
import { StepGradient, withDensity } from "./step-gradient.ts";
import { StepWords, verdict } from "./step-words.ts";

export type { FitOptions, StepReport } from "./fit-options.ts";

/** A step on its way through the device. */
interface Pending {
  step: number;
  epoch: number;
  lr: number;
  count: number;
  tokens: number;
  average: number;
  dispatches: number;
  report: Promise<ArrayBuffer>;
}

type Data<B> = Source<B> | (PackedBatch extends B ? readonly Example[] : never);

export class Trainer<B = PackedBatch> {
  readonly target: LogPosterior<B>;
  readonly options: FitOptions;
  /** Steps in all. */
  readonly steps: number;
  /** What the optimiser works on: θ cut at every change of precision or learning rate. */
  readonly stretches: readonly Stretch[];
  /** The same as the kernels see them: a density's part is in the gradient already, so there the prior is flat. */
  readonly #kernelStretches: readonly Stretch[];
  /** Where only a head learns, steps are taken on the head alone, and its vectors are these. */
  readonly #features: FrozenLikelihood<B> | undefined;
  readonly #plan: Plan;
  readonly #factor: (step: number) => number;
  readonly #status: NdArray;
  /** There where steps compute in f16. */
  readonly #scaling: LossScaling | undefined;
  readonly #mixing: Mixing | undefined;
  readonly #gradient: StepGradient<B>;
  readonly #words: StepWords;
  readonly #facts: RunFacts<B>;
  readonly #vectors = new Map<string, NdArray>();
  /** Of the run that goes on. */
  #live: LiveParameters | undefined;
  /** Steps whose update has been submitted. */
  #step = 0;
  #inFlight = 0;
  #running = false;
  #diverged = false;
  #disposed = false;

  /**
   * Takes what it holds on the device, the optimiser's vectors above all: dispose of it. Throws InputError for an option out
   * of range, before it takes anything.
   */
  constructor(target: LogPosterior<B>, data: Data<B>, options: FitOptions) {
    const { optimizer, mixout = 0, seed = 0 } = options;
    const { model, prior, N } = target;
    this.target = target;
    this.options = options;
    const features = frozenFeatures<B>(model, data);
    this.#features = features;
    const objective = features ? { ...target, model: features } : target;
    const source =
      features ?? (Array.isArray(data) ? (exampleSource(data) as Source<unknown> as Source<B>) : (data as Source<B>));
    this.#plan = new Plan(source, options);
    this.steps = this.#plan.steps;
    const factor = schedule(options, this.steps);
    this.#factor = optimizer.factor ? (step) => optimizer.factor?.(step + 1) ?? 1 : factor;
    checkFit(target, options);
    this.stretches = stretchesOf(model.theta, prior, N, (slice) => optimizer.lrOf(slice));
    this.#kernelStretches = this.stretches.map((s) => (s.density ? { ...s, priorScale: 0 } : s));
    warnOfTwoPriors(target, options, this.stretches);
    // From here on nothing is refused: what is taken is given back by `dispose`.
    const { gpu } = model.engine;
    if (mixout !== 0) this.#mixing = new Mixing(model.theta, prior.mu, { p: mixout, seed });
    // A sampler stays in f32: what it follows is to be the posterior's gradient, and none of its steps may be left out.
    if (model.engine.dtype === "f16" && !optimizer.noisy) this.#scaling = new LossScaling(gpu, options.lossScale);
    const around = { scaling: this.#scaling, mixing: this.#mixing };
    this.#gradient = new StepGradient(objective, source, this.#plan, options, around);
    this.#words = new StepWords(gpu, options, this.stretches.length, this.#scaling);
    this.#facts = new RunFacts(target, options, source.length, this.#scaling?.facts);
    this.#status = createStatus(gpu);
    gpu.keep(this.#status.buffer);
    for (const name of optimizer.vectors) this.#vectors.set(name, model.theta.vector());
  }

  /** Steps taken so far. */
  get step(): number {
    return this.#step;
  }

  /** What a step is made of: micro-batches, and for each the rows of its examples. */
  rowsOf(step: number): number[][] {
    const { plan, index } = this.#plan.locate(step);
    return plan.steps[index] ?? [];
  }

  /**
   * Trains from where it stands to the last step. Reports come a step late except at settled steps (see `settle`). One run
   * at a time: a second begins when the first has ended or was left.
   * Throws DivergedError, with θ as it was before the bad step; DeviceError; InputError if a prior was asked for on some
   * stretch of θ and had no share there in any step.
   */
  async *run(): AsyncGenerator<StepReport, void, undefined> {
    if (this.#diverged) throw new Error("run: this training diverged; restore a state first");
    if (this.#running) throw new Error("run: this training runs already");
    this.#running = true;
    const { signal, settle } = this.options;
    const shares = new PriorShares(this.stretches);
    const flight: Pending[] = [];
    const land = async (): Promise<StepReport> => {
      const report = await this.#land(flight[0] as Pending, clock, shares);
      flight.shift();
      this.#inFlight--;
      return report;
    };
    const { theta } = this.target.model;
    const { mu, density } = this.target.prior;
    const moved = [...this.#vectors.values(), ...(density?.couplings ?? [])];
    const clock = { at: 0 };
    try {
      this.#live = await LiveParameters.find(theta, mu, moved, { resting: this.options.optimizer.rests });
      while (this.#step < this.steps && !signal?.aborted) {
        // At the start and after a settled step, when the time that the caller took is not the step's.
        if (flight.length === 0) clock.at = performance.now();
        flight.push(this.#submit(this.#step + 1, this.#live));
        this.#step++;
        this.#inFlight++;
        if (flight.length > 1) yield await land();
        if (this.#plan.locate(this.#step).last || settle?.(this.#step)) yield await land();
      }
      while (flight.length > 0) yield await land();
    } finally {
      // Left early: what is in flight still lands, so that the state is that of a whole step.
      await Promise.allSettled(flight.map(({ report }) => report));
      this.#inFlight = 0;
      this.#running = false;
    }
    shares.expectSome(theta);
  }

  /** What of θ the steps of this `run` have visited; the rest is where it was when it began. Inside a scope. */
  visited(): Live | undefined {
    return this.#live?.soFar();
  }

  /** Everything that a bit-exact continuation needs. Not while a step is in flight: see `settle`. */
  async state(): Promise<TrainState> {
    if (this.#inFlight > 0) throw new Error(`state: step ${this.#step} is in flight; ask for it at a settled step`);
    const state = await captureState(await this.#parts(), this.#step);
    if (this.#scaling) state.lossScale = await this.#scaling.state();
    const status = await readIndices(this.target.model.engine.gpu, this.#status);
    if (status[STATUS.step] !== this.#step) throw didNotHappen(this.#step, status[STATUS.step]);
    return state;
  }

  /**
   * Continues from a state. Throws InputError if it is of another run, naming what differs. Returns notes for the user:
   * what keeps the continuation from being the uninterrupted run bit for bit.
   */
  async restore(state: TrainState): Promise<string[]> {
    if (this.#inFlight > 0) throw new Error("restore: a step is in flight");
    const notes = restoreState(await this.#parts(), state, this.steps);
    const words = new Uint32Array(16);
    words[STATUS.clipFactor] = f32(1);
    words[STATUS.step] = state.step;
    this.target.model.engine.gpu.write(this.#status, words);
    if (state.lossScale) this.#scaling?.restore(state.lossScale);
    this.#step = state.step;
    this.#diverged = false;
    return notes;
  }

  /** Gives the optimiser's vectors back, once. The model and the prior are the caller's. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    const { theta, engine } = this.target.model;
    for (const vector of this.#vectors.values()) theta.release(vector);
    this.#vectors.clear();
    this.#features?.dispose();
    this.#scaling?.dispose();
    this.#mixing?.dispose();
    this.#words.dispose();
    engine.gpu.release(this.#status.buffer);
  }

  #submit(step: number, parameters: LiveParameters): Pending {
    const { plan, index } = this.#plan.locate(step);
    const { model, prior } = this.target;
    const { optimizer, clip } = this.options;
    const { engine, theta } = model;
    const { gpu } = engine;
    const before = gpu.counters.dispatches;
    const factor = this.#factor(step - 1);
    const last = this.stretches.length - 1;
    const words = this.#words;
    const { report, count, tokens } = engine.step(() => {
      const losses = words.losses();
      const size = this.#gradient.run(step, (micro, term) => words.keep(losses, micro, term));
      // The loss itself is judged first: a bad one must not move θ even where its gradient happens to be finite.
      words.judge(losses, this.#status);
      const live = parameters.next();
      this.#scaling?.unscale(theta.gradient(), this.stretches, live);
      const { grad, rows } = withDensity(this.target, this.stretches, theta.gradient(), live);
      const vectors = { theta: theta.values, grad, mu: prior.mu };
      const sums = vectorTerms(gpu, vectors, this.#kernelStretches, this.#status, { clip, live });
      const context = this.#context(grad, live);
      for (const [r, stretch] of this.#kernelStretches.entries()) {
        optimizer.update(context, stretch, stretch.lr * factor, step, r === last);
      }
      this.#scaling?.settle(this.#status, losses, step);
      return { ...size, report: words.send({ losses, sums, status: this.#status, rows }) };
    });
    report.catch(() => {}); // awaited a step later
    return {
      step,
      epoch: plan.epoch + (index + 1) / plan.steps.length,
      lr: optimizer.lr * factor,
      count,
      tokens,
      average: plan.average,
      dispatches: gpu.counters.dispatches - before,
      report,
    };
  }

  #context(grad: NdArray, live: Live): UpdateContext {
    const { model, prior } = this.target;
    return {
      gpu: model.engine.gpu,
      layout: model.theta.layout,
      theta: model.theta.values,
      grad,
      mu: prior.mu,
      status: this.#status,
      live,
      state: (name) => {
        const vector = this.#vectors.get(name);
        if (!vector) throw new Error(`the optimiser has no vector ${name}`);
        return vector;
      },
    };
  }

  /** Waits for a step's report and believes it only if the step happened; what the prior did in it goes to `shares`. */
  async #land(pending: Pending, clock: { at: number }, shares: PriorShares): Promise<StepReport> {
    const { step, epoch, lr, count, tokens, average, dispatches } = pending;
    const { losses, divergences, sums, status, rows, scale } = this.#words.parts(await pending.report, step);
    const found = verdict(status);
    if (found.bad) await this.#diverge(step);
    if (found.step !== step) throw didNotHappen(step, found.step);
    if (!scale?.skipped) shares.add(sums, rows);
    const summed = (terms: Float32Array) => average * terms.reduce((total, term) => total + term, 0);
    const now = performance.now();
    const seconds = Math.max(1e-6, (now - clock.at) / 1000);
    clock.at = now;
    const terms = combineTerms(summed(losses), count, sums, this.stretches, this.target.N, rows);
    const rDrop = divergences.length > 0 ? { rDrop: summed(divergences) / count } : {};
    return { step, epoch, ...terms, lr, tokensPerSecond: tokens / seconds, dispatches, ...rDrop, ...scale };
  }

  /** Names the first bad operation of a step that changed nothing, and throws. */
  async #diverge(step: number): Promise<never> {
    this.#diverged = true;
    this.#step = step - 1;
    const { model } = this.target;
    model.engine.gpu.clear(model.theta.gradient());
    const operation = await firstBadOperation(model.engine, () => void this.#gradient.run(step, () => {}));
    throw divergedError(step, this.rowsOf(step).flat(), operation);
  }

  async #parts(): Promise<StateParts> {
    return { theta: this.target.model.theta, vectors: this.#vectors, facts: await this.#facts.read() };
  }
}

/** Trains, a report a step: `new Trainer(…).run()`, with what it holds given back at the end. */
export async function* fit<B = PackedBatch>(
  target: LogPosterior<B>,
  data: Data<B>,
  options: FitOptions,
): AsyncGenerator<StepReport, void, undefined> {
  const trainer = new Trainer(target, data, options);
  try {
    yield* trainer.run();
  } finally {
    trainer.dispose();
  }
}

function didNotHappen(step: number, last: number | undefined): DeviceError {
  return new DeviceError(
    `step ${step}: the device says that its last update was step ${last}, so this one did not happen. Resume from the last checkpoint.`,
    "fit",
  );
}
