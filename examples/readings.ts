/** @file The ways in which the picture and the experiment read many θ off one training. */

import { type Example, type PackedBatch, packBatches } from "../src/data/batches.ts";
import type { BertForSequenceClassification } from "../src/model/bert.ts";
import {
  drawsOf,
  dropoutMembers,
  ggn,
  heldDraws,
  laplace,
  laplaceDraws,
  linearised,
  type Posterior,
  priorShapes,
  sampledSlices,
  sghmc,
  swag,
  type TrajectoryDraw,
  thetaMembers,
  trajectory,
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
  /** `batch`: default, the training's. */
  sghmc: { chains: number; draws: number; burnIn: number; thin: number; lr: number; batch?: number };
}

export interface Recipe {
  lr: number;
  headLr: number;
  batch: number;
  seed: number;
}

type Reading = (trained: Trained, draws: Draws, recipe: Recipe) => Promise<{ posterior: Posterior; dispose(): void }>;

const alone = (posterior: Posterior) => ({ posterior, dispose() {} });

export const READINGS = {
  dropout: async ({ model }, { dropout: S }, { seed }) => alone(dropoutMembers(model, { S, seed })),

  laplace: async ({ model, target, data }, { laplace: S }, { seed }) => {
    const curvature = await ggn(model, packBatches(data, 64), { structure: "full" });
    return alone(linearised(model, laplace(curvature, target.prior), { S, seed }));
  },

  sghmc: async ({ model, target, data }, { sghmc: { lr, ...path } }, { batch, seed }) => {
    const draws: TrajectoryDraw[] = [];
    const sampler = (own: number) => sghmc({ lr, N: data.length, seed: own });
    for await (const draw of trajectory(target, data, { sampler, batch, seed, ...path })) draws.push(draw);
    return alone(thetaMembers(model, drawsOf(sampledSlices(target, ["head"]), draws)));
  },

  swag: async ({ model, target, data }, { swag: { draws, points } }, { lr, headLr, batch, seed }) => {
    const every = Math.ceil(data.length / batch);
    const found = await swag(target, data, { optimizer: adam({ lr, headLr }), points, every, batch, seed, warn: () => {} }); // biome-ignore format: one call
    return { posterior: thetaMembers(model, found.draws(draws, { seed })), dispose: () => found.dispose() };
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
