/**
 * @file The loop. One step is one scope and one submit: forward, backward, the terms of the log-posterior, the update.
 * Nothing comes back but one small report, and that a step late, so that the device never waits for the host. A report
 * is believed only if the counter in it says that this step's update happened; a loss or gradient that is not finite
 * changes nothing (the update kernel sees to it) and stops the run with the operation named.
 */
import type { Example, PackedBatch } from "../data/batches.ts";
import { DeviceError, InputError } from "../errors.ts";
import { f32, type Gpu } from "../gpu/index.ts";
import { createStatus, empty, type Live, NdArray, readIndices, STATUS, vectorTerms } from "../kernels/index.ts";
import { streamKey } from "../random.ts";
import { captureState, fingerprint, restoreState, type StateParts, type TrainState } from "./checkpoint.ts";
import { divergedError, firstBadOperation } from "./diverged.ts";
import { type FrozenFeatures, frozenFeatures } from "./frozen.ts";
import { LiveParameters } from "./live.ts";
import { type LossScaleOptions, LossScaling } from "./lossscale.ts";
import { Mixing } from "./mixout.ts";
import {
  accumulateGradient,
  combineTerms,
  type Likelihood,
  type LogPosterior,
  type Stretch,
  stretchesOf,
  type Terms,
} from "./objective.ts";
import type { Optimizer, UpdateContext } from "./optimizers.ts";
import { expectGroups } from "./prior.ts";
import { type ScheduleOptions, schedule } from "./schedule.ts";
import { exampleSource, Plan, type PlanOptions, type Source } from "./source.ts";

export interface FitOptions extends PlanOptions, ScheduleOptions {
  optimizer: Optimizer;
  /** Largest ‖∇J‖ that a step follows unshortened; default: no clipping. */
  clip?: number | undefined;
  /** False: the model runs without dropout. Default true: what its config says. */
  dropout?: boolean | undefined;
  /**
   * Probability with which each weight of the encoder is swapped for its prior mean in a step's forward and backward (Lee,
   * Cho and Kang 2020); default 0. The reported NLL is that of the mixed weights.
   */
  mixout?: number | undefined;
  /** How the loss is scaled where the engine's dtype is f16. */
  lossScale?: LossScaleOptions | undefined;
  /** Aborted: the step under way is finished and reported, then the loop ends. */
  signal?: AbortSignal | undefined;
  /**
   * Steps whose report comes before the next step is started, so that θ is still that step's: for an evaluation or a
   * checkpoint inside the loop. The last step of every epoch always is one.
   */
  settle?: ((step: number) => boolean) | undefined;
  /** Receives warnings; default `console.warn`. */
  warn?: ((line: string) => void) | undefined;
}

export interface StepReport extends Terms {
  /** Counted from 1. */
  step: number;
  /** Epochs completed with this step, e.g. 1.25. */
  epoch: number;
  /** Learning rate of this step, after the schedule (the general one; groups may have their own). */
  lr: number;
  tokensPerSecond: number;
  /** Dispatches recorded for this step. */
  dispatches: number;
  /** With dtype f16: the scale after this step, and whether the step was skipped, its gradient having overflowed. */
  lossScale?: number;
  skipped?: boolean;
}

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
  /** What steps are taken on: the target, or, where only a head learns, the head on its vectors. */
  readonly #objective: LogPosterior<B>;
  readonly #features: FrozenFeatures | undefined;
  readonly #source: Source<B>;
  readonly #plan: Plan;
  readonly #factor: (step: number) => number;
  readonly #status: NdArray;
  /** There where steps compute in f16. */
  readonly #scaling: LossScaling | undefined;
  readonly #mixing: Mixing | undefined;
  readonly #vectors = new Map<string, NdArray>();
  /** Steps whose update has been submitted. */
  #step = 0;
  #inFlight = 0;
  #diverged = false;
  #mean: string | undefined;
  #density: string | undefined;

  /** Throws InputError for an option out of range. Nothing runs on the device yet. */
  constructor(target: LogPosterior<B>, data: Data<B>, options: FitOptions) {
    const { optimizer, clip, warn = (line) => console.warn(`warning: ${line}`) } = options;
    const { model, prior, N } = target;
    this.target = target;
    this.options = options;
    this.#features = frozenFeatures(model, data);
    // What a batch is stays between the source and the likelihood.
    const features = this.#features as unknown as (Likelihood<B> & Source<B>) | undefined;
    this.#objective = features ? { ...target, model: features } : target;
    this.#source =
      features ?? (Array.isArray(data) ? (exampleSource(data) as Source<unknown> as Source<B>) : (data as Source<B>));
    this.#plan = new Plan(this.#source, options);
    this.steps = this.#plan.steps;
    const factor = schedule(options, this.steps);
    this.#factor = optimizer.factor ? (step) => optimizer.factor?.(step + 1) ?? 1 : factor;
    if (optimizer.noisy && clip !== undefined) {
      throw new InputError(
        `clip: not with ${optimizer.name} (a shortened gradient is that of another posterior). Leave it out, or take a smaller step.`,
      );
    }
    if (clip !== undefined && !(clip > 0 && Number.isFinite(clip))) {
      throw new InputError(`clip: ${clip} (expected a number above 0). Leave it out for no clipping.`);
    }
    expectGroups("lr", model.theta, optimizer.groups);
    this.stretches = stretchesOf(model.theta, prior, N, (slice) => optimizer.lrOf(slice));
    this.#kernelStretches = this.stretches.map((s) => (s.density ? { ...s, priorScale: 0 } : s));
    if (optimizer.decay > 0 && prior.active) {
      warn(
        `AdamW's decay of ${optimizer.decay} and a prior both pull at the weights, and the decay is not a prior: its strength depends on the gradient's noise. Use adam with the prior alone.`,
      );
    }
    const { mixout: p = 0, seed = 0 } = options;
    if (p !== 0) this.#mixing = new Mixing(model.theta, prior.mu, { p, seed });
    if (p > 0 && this.stretches.some(({ inEncoder, precision }) => inEncoder && precision > 0)) {
      warn(
        `mixout of ${p} and the encoder's prior both pull at the weights: mixout is a prior of its own. Use it with precision 0, or the prior alone.`,
      );
    }
    const { gpu } = model.engine;
    // A sampler stays in f32: what it follows is to be the posterior's gradient, and none of its steps may be left out.
    if (model.engine.dtype === "f16" && !optimizer.noisy) this.#scaling = new LossScaling(gpu, options.lossScale);
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
   * Trains from where it stands to the last step. Reports come a step late except at settled steps (see `settle`).
   * Throws DivergedError, with θ as it was before the bad step; DeviceError; InputError if a prior was asked for on some
   * stretch of θ and had no share there in any step.
   */
  async *run(): AsyncGenerator<StepReport, void, undefined> {
    if (this.#diverged) throw new Error("run: this training diverged; restore a state first");
    if (this.#inFlight > 0) throw new Error("run: this training runs already");
    const { signal, settle } = this.options;
    let reported = 0;
    // Each stretch apart: a new head starts away from its mean and would hide an encoder that never moves.
    const idle = new Set(this.stretches.filter(({ precision }) => precision > 0));
    const flight: Pending[] = [];
    const land = async (): Promise<StepReport> => {
      const { report, pulls } = await this.#land(flight[0] as Pending, clock);
      flight.shift();
      this.#inFlight--;
      reported++;
      for (const [r, stretch] of this.stretches.entries()) if (pulls[r] !== 0) idle.delete(stretch);
      return report;
    };
    const { theta } = this.target.model;
    const { mu, density } = this.target.prior;
    const moved = [...this.#vectors.values(), ...(density?.couplings ?? [])];
    const live = await LiveParameters.find(theta, mu, moved, { resting: this.options.optimizer.rests });
    const clock = { at: performance.now() };
    try {
      while (this.#step < this.steps && !signal?.aborted) {
        flight.push(this.#submit(this.#step + 1, live));
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
    }
    const [still] = idle;
    if (still !== undefined && reported > 1) {
      const first = this.target.model.theta.layout.slices.find(({ offset }) => offset === still.offset);
      throw new InputError(
        `prior: its share of the gradient was 0 in every step in ${first?.groups[0]} (from ${first?.key}) although a precision of ${still.precision} was asked for. ` +
          "θ never left the prior's mean there: raise its learning rate or train longer; or give it precision 0, as --method mle does.",
      );
    }
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

  /** Gives the optimiser's vectors back. The model and the prior are the caller's. */
  dispose(): void {
    const { theta, engine } = this.target.model;
    for (const vector of this.#vectors.values()) theta.release(vector);
    this.#vectors.clear();
    this.#features?.dispose();
    this.#scaling?.dispose();
    this.#mixing?.dispose();
    engine.gpu.release(this.#status.buffer);
  }

  /** Forward and backward of a step's micro-batches; each one's NLL term goes to `keep`. */
  #gradient(step: number, keep: (micro: number, loss: NdArray) => void): { count: number; tokens: number } {
    const { plan, index } = this.#plan.locate(step);
    const { model } = this.target;
    const { seed = 0, dropout = true } = this.options;
    let count = 0;
    let tokens = 0;
    model.theta.zeroGradient();
    for (const [micro, rows] of (plan.steps[index] ?? []).entries()) {
      const batch = this.#source.batch(rows, { epoch: plan.epoch, step, micro });
      // Replica 0: training runs one copy of the model; members of a posterior have the others.
      const keys = (site: number) => streamKey(seed, "dropout", step, micro, 0, site);
      const gradient = () => {
        const start = this.#scaling?.seed();
        return accumulateGradient(this.#objective, batch, plan.average, dropout ? keys : undefined, start);
      };
      const term = this.#scaling ? model.engine.inDtype(gradient) : gradient();
      const expected = this.#source.termCount?.(rows) ?? rows.length;
      if (term.count !== expected) {
        throw new Error(`the likelihood has ${term.count} terms where its source counts ${expected}`);
      }
      keep(micro, term.loss.array);
      count += term.count;
      tokens += (batch as { tokens?: number }).tokens ?? term.count;
    }
    return { count, tokens };
  }

  #submit(step: number, parameters: LiveParameters): Pending {
    const { plan, index } = this.#plan.locate(step);
    const { model, prior } = this.target;
    const { optimizer, clip, accumulate = 1 } = this.options;
    const { engine, theta } = model;
    const { gpu } = engine;
    const before = gpu.counters.dispatches;
    const factor = this.#factor(step - 1);
    const stretchCount = this.stretches.length;
    const slots = lossSlots(accumulate);
    const { report, count, tokens } = engine.step(() => {
      const losses = empty(gpu, [slots], "f32", "fit.losses");
      gpu.clear(losses);
      const gradient = () => this.#gradient(step, (micro, loss) => gpu.copy(loss, at(losses, micro, 1)));
      const batch = this.#mixing ? this.#mixing.around(step, gradient) : gradient();
      // The loss itself is judged first: a bad one must not move θ even where its gradient happens to be finite.
      const itself = { theta: losses, grad: losses, mu: losses };
      vectorTerms(gpu, itself, [{ offset: 0, length: slots, priorScale: 0 }], this.#status);
      const live = parameters.next();
      this.#scaling?.unscale(theta.gradient(), this.stretches, live);
      const { grad, rows } = this.#withDensity(theta.gradient(), live);
      const vectors = { theta: theta.values, grad, mu: prior.mu };
      const sums = vectorTerms(gpu, vectors, this.#kernelStretches, this.#status, { clip, live });
      const context = this.#context(grad, live);
      for (const [r, stretch] of this.#kernelStretches.entries()) {
        optimizer.update(context, stretch, stretch.lr * factor, step, r === stretchCount - 1);
      }
      this.#scaling?.settle(this.#status, losses, step);
      const common = slots + 4 * stretchCount + 16;
      const scale = this.#scaling?.words ?? 0;
      const report = empty(gpu, [common + scale + (rows?.size ?? 0)], "f32", "fit.report");
      gpu.copy(losses, at(report, 0, slots));
      gpu.copy(sums, at(report, slots, 4 * stretchCount));
      gpu.copy(this.#status, at(report, slots + 4 * stretchCount, 16));
      this.#scaling?.copy(at(report, common, scale));
      if (rows) gpu.copy(rows, at(report, common + scale, rows.size));
      return { ...batch, report: gpu.read(report) };
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

  /** The stretches that have a density. */
  get #dense(): readonly Stretch[] {
    return this.stretches.filter(({ density }) => density !== undefined);
  }

  /** The gradient that the kernels are to see: with a density's part in it, in a vector of its own, and its sums. */
  #withDensity(grad: NdArray, live: Live): { grad: NdArray; rows?: NdArray } {
    const { model, prior, N } = this.target;
    const { density, mu } = prior;
    const stretches = this.#dense;
    if (!density || stretches.length === 0) return { grad };
    const { gpu } = model.engine;
    const { total } = density;
    const rows = density.gradient({ gpu, theta: model.theta.values, grad, mu, live, N }, stretches);
    for (const { offset, length, density } of this.stretches)
      if (!density) gpu.copy(at(grad, offset, length), at(total, offset, length));
    return { grad: total, rows };
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

  /**
   * Waits for a step's report and believes it only if the step happened. With it, whether the prior pulled at each
   * stretch: not where it is 0.
   */
  async #land(pending: Pending, clock: { at: number }): Promise<{ report: StepReport; pulls: readonly number[] }> {
    const { step, epoch, lr, count, tokens, average, dispatches } = pending;
    const words = await pending.report;
    const stretchCount = this.stretches.length;
    const slots = lossSlots(this.options.accumulate ?? 1);
    const losses = new Float32Array(words, 0, slots);
    const sums = new Float32Array(words, 4 * slots, 4 * stretchCount);
    const status = new Uint32Array(words, 4 * (slots + 4 * stretchCount), 16);
    if (status[STATUS.bad] !== 0) await this.#diverge(step);
    if (status[STATUS.step] !== step) throw didNotHappen(step, status[STATUS.step]);
    const nllSum = average * losses.reduce((total, loss) => total + loss, 0);
    const now = performance.now();
    const seconds = Math.max(1e-6, (now - clock.at) / 1000);
    clock.at = now;
    const dense = this.#dense;
    const common = 4 * (slots + 4 * stretchCount + 16);
    const rows = new Float32Array(words, common + 4 * (this.#scaling?.words ?? 0));
    const terms = combineTerms(nllSum, count, sums, this.stretches, this.target.N, rows);
    return {
      report: {
        step,
        epoch,
        ...terms,
        lr,
        tokensPerSecond: tokens / seconds,
        dispatches,
        ...this.#scaling?.report(words, common, step),
      },
      pulls: this.stretches.map((s, r) => (s.density ? rows[4 * dense.indexOf(s) + 1] : sums[4 * r + 1]) ?? 0),
    };
  }

  /** Names the first bad operation of a step that changed nothing, and throws. */
  async #diverge(step: number): Promise<never> {
    this.#diverged = true;
    this.#step = step - 1;
    const { model } = this.target;
    model.engine.gpu.clear(model.theta.gradient());
    const gradient = () => this.#gradient(step, () => {});
    const mixing = this.#mixing;
    const operation = await firstBadOperation(model.engine, mixing ? () => mixing.around(step, gradient) : gradient);
    throw divergedError(step, this.rowsOf(step).flat(), operation);
  }

  async #parts(): Promise<StateParts> {
    const { target, options } = this;
    const {
      batch,
      accumulate = 1,
      seed = 0,
      order,
      shuffle = true,
      clip = "none",
      dropout = true,
      mixout = 0,
    } = options;
    const { gpu } = target.model.engine;
    const { density } = target.prior;
    this.#mean ??= await fingerprint(gpu, target.prior.mu);
    this.#density ??= density && [density.name, ...(await fingerprints(gpu, density.vectors))].join(", ");
    const facts: Record<string, string | number> = {
      N: target.N,
      examples: this.#source.length,
      epochs: options.epochs,
      batch: typeof batch === "number" ? batch : `${batch.tokens} tokens`,
      accumulate,
      seed,
      order: order ? "given" : shuffle ? "shuffled" : "as stored",
      schedule: options.schedule ?? "linear",
      warmup: options.warmup ?? 0.1,
      clip,
      dropout: dropout ? "on" : "off",
      ...options.optimizer.facts,
      ...this.#scaling?.facts,
      "prior mean": this.#mean,
    };
    if (mixout > 0) facts.mixout = mixout;
    if (this.#density !== undefined) facts["prior density"] = this.#density;
    for (const [group, tau] of Object.entries(target.prior.precisions)) facts[`prior precision of ${group}`] = `${tau}`;
    return { theta: target.model.theta, vectors: this.#vectors, facts };
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

async function fingerprints(gpu: Gpu, vectors: readonly NdArray[]): Promise<string[]> {
  const found = [];
  for (const vector of vectors) found.push(await fingerprint(gpu, vector));
  return found;
}

function didNotHappen(step: number, last: number | undefined): DeviceError {
  return new DeviceError(
    `step ${step}: the device says that its last update was step ${last}, so this one did not happen. Resume from the last checkpoint.`,
    "fit",
  );
}

/** Room for a loss of each micro-batch, in whole groups of 64 as `vectorTerms` wants them. */
function lossSlots(accumulate: number): number {
  return 64 * Math.ceil(accumulate / 64);
}

function at(array: NdArray, offset: number, size: number): NdArray {
  return new NdArray(array.buffer, array.byteOffset + 4 * offset, [size], array.dtype);
}
