/** @file The ways in which the picture and the experiment read many θ off one training. */

import { type Example, type PackedBatch, packBatches } from "../src/data/batches.ts";
import type { BertForSequenceClassification } from "../src/model/bert.ts";
import {
  drawsOf,
  dropoutMembers,
  ggn,
  laplace,
  linearised,
  type Posterior,
  sampledSlices,
  sghmc,
  swag,
  type TrajectoryDraw,
  thetaMembers,
  trajectory,
} from "../src/posterior/index.ts";
import { adam, type LogPosterior } from "../src/train/index.ts";

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
