/** @file The ways in which the experiment reads many θ off one training. */

import type { PackedBatch } from "../../src/data/batches.ts";
import { type Example, packBatch } from "../../src/data/batches.ts";
import type { BertForSequenceClassification } from "../../src/model/bert.ts";
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
} from "../../src/posterior/index.ts";
import { adam, type LogPosterior } from "../../src/train/index.ts";

export interface Trained {
  model: BertForSequenceClassification;
  target: LogPosterior<PackedBatch>;
  data: readonly Example[];
}

/** How many, and how far apart. */
export interface Draws {
  dropout: number;
  laplace: number;
  swag: number;
  sghmc: { chains: number; draws: number; burnIn: number; thin: number; lr: number };
}

export interface Recipe {
  lr: number;
  headLr: number;
  batch: number;
  seed: number;
}

type Reading = (trained: Trained, draws: Draws, recipe: Recipe) => Promise<{ posterior: Posterior; dispose(): void }>;

const alone = (posterior: Posterior) => ({ posterior, dispose() {} });

export const READINGS: Readonly<Record<string, Reading>> = {
  dropout: async ({ model }, { dropout: S }, { seed }) => alone(dropoutMembers(model, { S, seed })),

  laplace: async ({ model, target, data }, { laplace: S }, { seed }) => {
    const batches = Array.from({ length: Math.ceil(data.length / 64) }, (_, i) =>
      packBatch(data.slice(64 * i, 64 * (i + 1))),
    );
    const curvature = await ggn(model, batches, { structure: "full" });
    return alone(linearised(model, laplace(curvature, target.prior), { S, seed }));
  },

  sghmc: async ({ model, target, data }, { sghmc: { lr, ...path } }, { batch, seed }) => {
    const draws: TrajectoryDraw[] = [];
    const sampler = (own: number) => sghmc({ lr, N: data.length, seed: own });
    for await (const draw of trajectory(target, data, { ...path, sampler, batch, seed })) draws.push(draw);
    return alone(thetaMembers(model, drawsOf(sampledSlices(target, ["head"]), draws)));
  },

  swag: async ({ model, target, data }, { swag: S }, { lr, headLr, batch, seed }) => {
    const every = Math.ceil(data.length / batch);
    const found = await swag(target, data, { optimizer: adam({ lr, headLr }), points: 10, every, batch, seed, warn: () => {} }); // biome-ignore format: one call
    return { posterior: thetaMembers(model, found.draws(S, { seed })), dispose: () => found.dispose() };
  },
};
