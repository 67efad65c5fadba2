/**
 * @file What a training is asked for and what it says of each step; and what of it is refused, or warned of, before
 * anything runs on the device.
 */
import { InputError } from "../errors.ts";
import { expectLossScale, type LossScaleOptions } from "./lossscale.ts";
import { mixedSlices } from "./mixout.ts";
import type { LogPosterior, Stretch, Terms } from "./objective.ts";
import type { Optimizer } from "./optimizers.ts";
import { expectGroups } from "./prior.ts";
import { checkRDrop } from "./rdrop.ts";
import type { ScheduleOptions } from "./schedule.ts";
import type { PlanOptions } from "./source.ts";

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
  /**
   * R-Drop's α (rdrop.ts): every batch goes through twice under two dropout masks, and predictions that differ cost. Default
   * 0, which is one pass. A regulariser: it is in `gradNorm` and priorShare's likelihood part, not in `logJoint`.
   */
  rDrop?: number | undefined;
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
  /**
   * The step's tokens over the seconds from the report before it (after a settled step: from when the loop went on, so that
   * an evaluation or a checkpoint there does not count) to this one.
   */
  tokensPerSecond: number;
  /** Dispatches recorded for this step. */
  dispatches: number;
  /** With R-Drop: the batch's mean ½(KL(p₁‖p₂) + KL(p₂‖p₁)), nats, without α. `nll` is the mean of both passes then. */
  rDrop?: number;
  /** With dtype f16: the scale after this step, and whether the step was skipped, its gradient having overflowed. */
  lossScale?: number;
  skipped?: boolean;
}

/** Throws InputError for an option that is out of range or contradicts the optimiser; the plan's and schedule's check themselves. */
export function checkFit<B>(
  { model }: LogPosterior<B>,
  { optimizer, clip, rDrop = 0, mixout = 0, lossScale }: FitOptions,
): void {
  checkRDrop(rDrop, model);
  if (mixout !== 0) mixedSlices(model.theta, mixout);
  expectLossScale(lossScale);
  if (optimizer.noisy && rDrop > 0) {
    throw new InputError(`r-drop: not with ${optimizer.name} (what it regularises is no posterior). Leave it out.`);
  }
  if (optimizer.noisy && clip !== undefined) {
    throw new InputError(
      `clip: not with ${optimizer.name} (a shortened gradient is that of another posterior). Leave it out, or take a smaller step.`,
    );
  }
  if (clip !== undefined && !(clip > 0 && Number.isFinite(clip))) {
    throw new InputError(`clip: ${clip} (expected a number above 0). Leave it out for no clipping.`);
  }
  expectGroups("lr", model.theta, optimizer.groups);
}

/** Says where two things pull at the weights that are seldom meant together. */
export function warnOfTwoPriors<B>(
  { prior }: LogPosterior<B>,
  { optimizer, mixout = 0, warn = (line) => console.warn(`warning: ${line}`) }: FitOptions,
  stretches: readonly Stretch[],
): void {
  if (optimizer.decay > 0 && prior.active) {
    warn(
      `AdamW's decay of ${optimizer.decay} and a prior both pull at the weights, and the decay is not a prior: its strength depends on the gradient's noise. Use adam with the prior alone.`,
    );
  }
  if (mixout > 0 && stretches.some(({ inEncoder, precision }) => inEncoder && precision > 0)) {
    warn(
      `mixout of ${mixout} and the encoder's prior both pull at the weights: mixout is a prior of its own. Use it with precision 0, or the prior alone.`,
    );
  }
}
