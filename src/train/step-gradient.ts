/**
 * @file The gradient of a step's likelihood term: forward and backward of its micro-batches, and what stands around them
 * (dropout's keys, mixed weights, the loss's scale). A function of θ and the step: run twice, it gives the same bits, which
 * is what finding a bad operation rests on (diverged.ts).
 */
import type { Live, NdArray } from "../kernels/index.ts";
import { streamKey } from "../random.ts";
import type { FitOptions } from "./fit-options.ts";
import type { LossScaling } from "./lossscale.ts";
import type { Mixing } from "./mixout.ts";
import { accumulateGradient, type LogPosterior, type NllTerm, type Stretch } from "./objective.ts";
import { accumulateRDrop } from "./rdrop.ts";
import type { Plan, Source } from "./source.ts";
import { at } from "./step-words.ts";

/** What a step's batches held. */
export interface StepSize {
  /** Likelihood terms. */
  count: number;
  tokens: number;
}

export class StepGradient<B> {
  readonly #objective: LogPosterior<B>;
  readonly #source: Source<B>;
  readonly #plan: Plan;
  readonly #seed: number;
  readonly #dropout: boolean;
  /** R-Drop's α. */
  readonly #alpha: number;
  readonly #scaling: LossScaling | undefined;
  readonly #mixing: Mixing | undefined;

  constructor(
    objective: LogPosterior<B>,
    source: Source<B>,
    plan: Plan,
    { seed = 0, dropout = true, rDrop = 0 }: FitOptions,
    around: { scaling: LossScaling | undefined; mixing: Mixing | undefined },
  ) {
    this.#objective = objective;
    this.#source = source;
    this.#plan = plan;
    this.#seed = seed;
    this.#dropout = dropout;
    this.#alpha = rDrop;
    this.#scaling = around.scaling;
    this.#mixing = around.mixing;
  }

  /** Leaves the step's gradient in θ's gradient vector; each micro-batch's term goes to `keep`. In `engine.step`. */
  run(step: number, keep: (micro: number, term: NllTerm) => void): StepSize {
    const batches = () => this.#batches(step, keep);
    return this.#mixing ? this.#mixing.around(step, batches) : batches();
  }

  #batches(step: number, keep: (micro: number, term: NllTerm) => void): StepSize {
    const { plan, index } = this.#plan.locate(step);
    const { engine, theta } = this.#objective.model;
    let count = 0;
    let tokens = 0;
    theta.zeroGradient();
    for (const [micro, rows] of (plan.steps[index] ?? []).entries()) {
      const batch = this.#source.batch(rows, { epoch: plan.epoch, step, micro });
      // Replica 0: training runs one copy of the model; members of a posterior have the others.
      const keys = (site: number) => streamKey(this.#seed, "dropout", step, micro, 0, site);
      const gradient = () => {
        const [seed, dropout] = [this.#scaling?.seed(), this.#dropout ? keys : undefined];
        const { average } = plan;
        return this.#alpha > 0
          ? accumulateRDrop(this.#objective, batch, { average, alpha: this.#alpha, dropout, seed })
          : accumulateGradient(this.#objective, batch, average, dropout, seed);
      };
      const term = this.#scaling ? engine.inDtype(gradient) : gradient();
      const expected = this.#source.termCount?.(rows) ?? rows.length;
      if (term.count !== expected) {
        throw new Error(`the likelihood has ${term.count} terms where its source counts ${expected}`);
      }
      keep(micro, term);
      count += term.count;
      tokens += (batch as { tokens?: number }).tokens ?? term.count;
    }
    return { count, tokens };
  }
}

/** The gradient that the kernels are to see: with a density's part in it, in a vector of its own, and its sums. */
export function withDensity<B>(
  { model, prior, N }: LogPosterior<B>,
  stretches: readonly Stretch[],
  grad: NdArray,
  live: Live,
): { grad: NdArray; rows?: NdArray } {
  const { density, mu } = prior;
  const dense = stretches.filter((stretch) => stretch.density !== undefined);
  if (!density || dense.length === 0) return { grad };
  const { gpu } = model.engine;
  const { total } = density;
  const rows = density.gradient({ gpu, theta: model.theta.values, grad, mu, live, N }, dense);
  for (const { offset, length, density } of stretches)
    if (!density) gpu.copy(at(grad, offset, length), at(total, offset, length));
  return { grad: total, rows };
}
