/**
 * @file How large a sampler's steps may be and how many it needs, from two numbers: the largest curvature λ of the mean NLL,
 * which bounds the step, and the smallest precision τ of the prior, which says how long a chain takes. Where the data say
 * nothing θ is pulled by the prior alone, by hτ/N of its distance a step: after N/(hτ) steps it has forgotten its start to
 * 1/e, and what has the prior's variance to gain has 1 − e^(−2) of it. A head has hundreds of such directions and a few of
 * large λ; a chain that is not long beside N/(hτ) gives draws that are too near to each other, however small its R̂ may be.
 */
import type { PackedBatch } from "../data/batches.ts";
import type { ThetaClassifier } from "./draws.ts";

export interface Pace {
  /** h, on the mean loss. */
  lr: number;
  /** Terms of the likelihood. */
  N: number;
  /** SGHMC's α; SGLD has none. */
  friction?: number | undefined;
}

/**
 * Steps after which a chain has forgotten its start to 1/e in a direction of precision τ that has no data: N/(hτ), and
 * αN/(hτ) with a velocity, in which a push is felt for 1/α steps; that forgets itself in 2/α.
 */
export function relaxation({ lr, N, friction }: Pace, precision: number): number {
  const steps = ((friction ?? 1) * N) / (lr * precision);
  return friction === undefined ? steps : Math.max(steps, 2 / friction);
}

/** The share of its variance that such a direction has after `steps` of a chain that began at the mode. */
export function varianceAfter(steps: number, forgets: number): number {
  return 1 - Math.exp((-2 * steps) / forgets);
}

/** The mean of a cycle's factor ½(1 + cos πu) over the part that samples, u from `exploration` to 1. */
export function meanFactor(exploration: number): number {
  return 0.5 * (1 - Math.sin(Math.PI * exploration) / (Math.PI * (1 - exploration)));
}

/**
 * The step that suits the largest curvature of J, λ: `curvature` of the mean NLL and τ/N of the prior's stiffest `precision`.
 * There the variance, 1/(1 − hλ/2(2 − α)) of what it should be (SGLD: α = 1), is a third too large, and in a direction of a
 * tenth of λ by a fortieth. `seen`: the share of the data in a batch. A batch's noise heats a direction by hλ/2·(1/seen − 1)
 * of its variance, and with a velocity, where a step puts in α times the noise, by 1/α of that; the step keeps it to a half. At a
 * `temperature` T the variance is T times as large and that noise is not.
 */
export function stepFor(
  { friction }: { friction?: number | undefined },
  {
    curvature,
    precision,
    N,
    seen = 1,
    temperature = 1,
  }: { curvature: number; precision: number; N: number; seen?: number; temperature?: number },
): number {
  const stiffest = curvature + precision / N;
  const alpha = friction ?? 1;
  const cool = seen < 1 ? (temperature * alpha * seen) / (1 - seen) : Number.POSITIVE_INFINITY;
  return Math.min((2 - alpha) / 2, cool) / stiffest;
}

/**
 * No curvature of a linear head's mean NLL is above this: of one text it is (diag p − ppᵀ) ⊗ xxᵀ with x = (features, 1), of
 * whose factors the first is at most ½ and the second ‖x‖². The mean over a batch's texts.
 */
export async function headCurvature(model: ThetaClassifier, batch: PackedBatch): Promise<number> {
  const { engine } = model;
  const features = await engine.evaluate(() => model.features(batch));
  const squares = features.reduce((sum, x) => sum + x * x, 0);
  return 0.5 * (squares / batch.sequences + 1);
}
