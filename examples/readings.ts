/** @file The ways in which the picture and the experiment read many θ off one training. */

import type { Slice } from "../src/autograd/index.ts";
import { type Example, type PackedBatch, packBatch, packBatches } from "../src/data/batches.ts";
import type { BertForSequenceClassification } from "../src/model/bert.ts";
import {
  diagnoseTrace,
  drawsOf,
  dropoutMembers,
  ggn,
  headCurvature,
  heldDraws,
  laplace,
  laplaceDraws,
  learnHeadPrecision,
  linearised,
  type Posterior,
  pointEstimate,
  priorShapes,
  readSlices,
  relaxation,
  sampledSlices,
  sghmc,
  stepFor,
  swag,
  type TrajectoryDraw,
  thetaMembers,
  traceRows,
  trajectory,
  writeSlices,
} from "../src/posterior/index.ts";
import { adam, diagonalPrior, type LogPosterior } from "../src/train/index.ts";

export interface Trained {
  model: BertForSequenceClassification;
  target: LogPosterior<PackedBatch>;
  data: readonly Example[];
}

/** How many, and how far apart. */
export interface Draws {
  dropout: number;
  laplace: number;
  swag: { draws: number; points: number };
  sghmc: { chains: number; draws: number };
}

export interface Recipe {
  lr: number;
  headLr: number;
  batch: number;
  seed: number;
}

export interface Read {
  posterior: Posterior;
  /** The one θ that it lies around, where that is not the training's. */
  point?: Posterior;
  /** What there is to say of it beside its predictions. */
  facts: Record<string, number>;
  dispose(): void;
}

type Reading = (trained: Trained, draws: Draws, recipe: Recipe) => Promise<Read>;

const alone = (posterior: Posterior, facts: Record<string, number> = {}) => ({ posterior, facts, dispose() {} });

export const READINGS = {
  dropout: async ({ model }, { dropout: S }, { seed }) => alone(dropoutMembers(model, { S, seed })),

  laplace: async ({ model, target, data }, { laplace: S }, { seed }) => {
    const curvature = await ggn(model, packBatches(data, 64), { structure: "full" });
    return alone(linearised(model, laplace(curvature, target.prior), { S, seed }));
  },

  // The head's τ by its evidence and the head at its maximum under it, on the encoder as it was trained. θ is there until
  // `dispose`; the one θ's own predictions are `point`.
  evidence: async ({ model, target, data }, { laplace: S }, { seed }) => {
    const { theta } = model;
    const head = sampledSlices(target, ["head"]);
    const own = await readSlices(theta, head);
    const { precision, evidence, converged } = await learnHeadPrecision({ model, prior: target.prior }, data);
    const curvature = await ggn(model, packBatches(data, 64), { structure: "full" });
    const state = laplace(curvature, target.prior, { precisions: { head: precision } });
    const facts = { headPrecision: precision, logEvidence: evidence.logEvidence, converged: Number(converged) };
    const dispose = () => writeSlices(theta, head, own);
    return { posterior: linearised(model, state, { S, seed }), point: pointEstimate(model), facts, dispose };
  },

  // The one θ whose head is at the maximum under the prior that it was trained with, where training ended before it: what a
  // sampler of the head samples around.
  maximum: async ({ model, target, data }) => {
    const head = sampledSlices(target, ["head"]);
    const own = await readSlices(model.theta, head);
    const start = target.prior.precision(head[0] as Slice);
    await learnHeadPrecision({ model, prior: target.prior }, data, { start, rounds: 1 });
    return { posterior: pointEstimate(model), facts: {}, dispose: () => writeSlices(model.theta, head, own) };
  },

  // Steps as large as the head's curvature allows, and as many as a direction without data needs to forget the mode.
  sghmc: async ({ model, target, data }, { sghmc: { chains, draws: S } }, { seed }) => {
    const slices = sampledSlices(target, ["head"]);
    const friction = 0.1;
    const [N, precision] = [data.length, target.prior.precision(slices[0] as Slice)];
    const curvature = await headCurvature(model, packBatch(data.slice(0, 64)));
    const lr = stepFor({ friction }, { curvature, precision, N });
    const forgets = Math.ceil(relaxation({ lr, N, friction }, precision));
    const path = { chains, draws: S, burnIn: 2 * forgets, thin: forgets, batch: N, seed };
    const sampler = (own: number) => sghmc({ lr, friction, N, seed: own });
    const draws: TrajectoryDraw[] = [];
    for await (const draw of trajectory(target, data, { sampler, ...path })) draws.push(draw);
    const { rhat = Number.NaN, ess = Number.NaN } = diagnoseTrace(traceRows(draws)).logPrior ?? {};
    return alone(thetaMembers(model, drawsOf(slices, draws)), { steps: path.burnIn + S * path.thin, rhat, ess });
  },

  swag: async ({ model, target, data }, { swag: { draws, points } }, { lr, headLr, batch, seed }) => {
    const every = Math.ceil(data.length / batch);
    const found = await swag(target, data, { optimizer: adam({ lr, headLr }), points, every, batch, seed, warn: () => {} }); // biome-ignore format: one call
    return { posterior: thetaMembers(model, found.draws(draws, { seed })), facts: {}, dispose: () => found.dispose() };
  },
} satisfies Record<string, Reading>;

/**
 * Laplace over all of θ, its encoder's prior precisions those of a Fisher information: Λ = τ + diag H. Draws of θ itself,
 * which a prior that knows what the vectors hang on can afford; the linearised predictive takes K backward passes of all
 * of θ for every sentence.
 */
export async function fisherLaplace(
  { model, target, data }: Trained,
  precisions: ReadonlyMap<string, Float32Array>,
  { S, seed }: { S: number; seed: number },
): Promise<Posterior> {
  const batches = packBatches(data, 16);
  const curvature = await ggn(model, batches, { structure: "diagonal", groups: ["encoder", "head"], draws: 8, seed, maxBytes: 2e9 }); // biome-ignore format: one call
  const prior = diagonalPrior(model, { encoder: { precision: 1 }, head: { precision: 1 } }, precisions);
  const shapes = await priorShapes(curvature, prior, model.theta);
  prior.dispose();
  const draws = laplaceDraws(laplace(curvature, target.prior, { shapes, precisions: { encoder: 1 } }), { S, seed });
  // Held: every prediction reads them, and 22 million normal numbers take seconds.
  const values: Float32Array[] = [];
  for (let s = 0; s < S; s++) values.push(await draws.read(s));
  return thetaMembers(model, heldDraws(draws.slices, values));
}
