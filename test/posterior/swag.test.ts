/** @file SWAG through the trainer, against the path that the trainer's own steps make in float64. */
import { describe, expect, test, vi } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { LiveChunks } from "../../src/kernels/live.ts";
import { swagReference } from "../../src/kernels/swag.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { readSlices } from "../../src/posterior/draws.ts";
import { Swag, type SwagOptions, swag } from "../../src/posterior/swag.ts";
import { streamKey } from "../../src/random.ts";
import { Trainer } from "../../src/train/fit.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { adam, sgd } from "../../src/train/optimizers.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { expectClose, gpuForTests } from "../kernels/harness.ts";
import { tinyCheckpoint } from "../model/tiny.ts";
import { classes, linearRegression, regression, rowSource, twoLayers } from "../train/toys.ts";

const gpu = gpuForTests();
const DATA = classes(32, 6, 3);
const OPTIONS: SwagOptions = {
  optimizer: adam({ lr: 1e-3 }),
  points: 5,
  every: 3,
  burnIn: 2,
  rank: 3,
  batch: 8,
  seed: 4,
};

function start(frozen = false) {
  const model = twoLayers(new Engine(gpu()), { d: 6, h: 10, K: 3, p: 0.2 });
  const prior = gaussianPrior(model, {
    encoder: { precision: frozen ? Number.POSITIVE_INFINITY : 10 },
    head: { precision: 1 },
  });
  const target = logPosterior(model, prior, { N: 32 });
  const end = () => {
    prior.dispose();
    model.dispose();
  };
  return { model, target, end };
}

describe("the path", () => {
  // What the run clips, accumulates, drops and mixes, its path does.
  const run = { accumulate: 2, clip: 0.05, dropout: false, mixout: 0.3 };
  test.each([{}, run])("is the trainer's own at a constant rate, with %o; θ is put back", async (objective) => {
    const { model, target, end } = start();
    const { theta } = model;
    const all = theta.layout.slices;
    const before = await readSlices(theta, all);
    const heard: number[] = [];
    const found = await swag(target, rowSource(DATA), { ...OPTIONS, ...objective, warn: () => {}, progress: (share) => heard.push(share) }); // biome-ignore format: one call
    expect(await readSlices(theta, all)).toEqual(before);
    expect(found.points).toBe(5);
    expect(heard).toEqual(Array.from({ length: 17 }, (_, i) => (i + 1) / 17));
    const mean = await found.mean();
    const still = await found.draws(1, { temperature: 0 }).read(0);
    expect(still).toEqual(mean);

    const trainer = new Trainer(target, rowSource(DATA), {
      optimizer: OPTIONS.optimizer,
      epochs: 9,
      batch: 8,
      ...objective,
      warn: () => {},
      seed: streamKey(4, "swag path")[0],
      schedule: "constant",
      warmup: 0,
      settle: () => true,
    });
    const points: Float32Array[] = [];
    for await (const { step } of trainer.run())
      if ([5, 8, 11, 14, 17].includes(step)) points.push(await readSlices(theta, all));
    expectClose(mean, swagReference(points, 3).mean, { rtol: 1e-6, atol: 1e-7 });
    trainer.dispose();
    found.dispose();
    end();
  });

  test("leaves frozen groups out of its draws", async () => {
    const { model, target, end } = start(true);
    const found = await swag(target, rowSource(DATA), OPTIONS);
    expect(found.slices.map(({ key }) => key)).toEqual(["w2", "b2"]);
    expect((await found.draws(2).read(1)).length).toBe(33);
    expect(model.theta.layout.slices.length).toBe(4);
    found.dispose();
    end();
  });
});

test("words that no batch has held are left out of every point but the first: the same Gaussian as over all of θ", async () => {
  const model = await BertForSequenceClassification.load(new Engine(gpu()), tinyCheckpoint({ vocabulary: 3000 }), { labels: 2 }); // biome-ignore format: one call
  const prior = gaussianPrior(model, { encoder: { precision: 20 }, head: { precision: 1 } });
  // New words in every batch, far apart.
  const examples = Array.from({ length: 24 }, (_, i) => ({
    ids: Uint32Array.from({ length: 5 }, (_, k) => 7 + 20 * (5 * i + k)),
    typeIds: new Uint32Array(5),
    label: i % 2,
  }));
  const gaussian = async (rests: boolean) => {
    const optimizer = { ...adam({ lr: 1e-2 }), rests };
    const found = await swag(logPosterior(model, prior, { N: 24 }), examples, { ...OPTIONS, optimizer, every: 1, batch: 4, rank: 2 }); // biome-ignore format: one call
    const numbers = [await found.mean(), await found.draws(1).read(0)];
    found.dispose();
    return numbers;
  };
  const visited = vi.spyOn(LiveChunks.prototype, "upload");
  expect(await gaussian(true)).toEqual(await gaussian(false));
  const shares = visited.mock.results.map(({ value }) => value.share as number);
  expect(Math.min(...shares)).toBeLessThan(0.5);
  prior.dispose();
  model.dispose();
});

describe("draws", () => {
  test("are the same for the same seed, and differ among themselves", async () => {
    const { target, end } = start();
    const found = await swag(target, rowSource(DATA), OPTIONS);
    const read = async (seed: number, s: number) => found.draws(4, { seed }).read(s);
    expect(await read(1, 2)).toEqual(await read(1, 2));
    expect(await read(1, 2)).not.toEqual(await read(1, 3));
    expect(await read(1, 2)).not.toEqual(await read(2, 2));
    found.dispose();
    end();
  });

  test("asked for before another point is collected, are of all points once they are read", async () => {
    const { model, end } = start();
    const found = new Swag(model.theta, 3);
    const collect = (n: number) => {
      model.theta.set(
        "w1",
        Float32Array.from({ length: 60 }, (_, i) => Math.sin(n * (i + 1))),
      );
      found.collect();
    };
    for (const n of [1, 2, 3]) collect(n);
    const early = found.draws(2, { seed: 1 });
    for (const n of [4, 5]) collect(n);
    expect(await early.read(1)).toEqual(await found.draws(2, { seed: 1 }).read(1));
    found.dispose();
    end();
  });

  test("have the covariance of the path: SGD on a Gaussian mean, variance against its points", async () => {
    // θ is one number; the points are known from the draws' mean and spread at rank 0: N(θ̄, Σ(θ − θ̄)²/n).
    const data = regression(64, [1], 1);
    const model = linearRegression(new Engine(gpu()), 1, 1);
    const prior = gaussianPrior(model, { encoder: { mean: 0, precision: 1 } });
    const target = logPosterior(model, prior, { N: 64 });
    const points: number[] = [];
    const found = new Swag(model.theta, 0);
    const trainer = new Trainer(target, rowSource(data), { optimizer: sgd({ lr: 0.3 }), epochs: 5, batch: 4, schedule: "constant", warmup: 0, settle: () => true }); // biome-ignore format: one trainer
    for await (const { step } of trainer.run()) {
      if (step <= 20) continue;
      found.collect();
      points.push((await model.theta.get("w"))[0]!);
    }
    const mean = points.reduce((a, b) => a + b, 0) / points.length;
    const variance = points.reduce((a, x) => a + (x - mean) ** 2, 0) / points.length;
    const draws = found.draws(400, { seed: 1 });
    const drawn = await Promise.all(Array.from({ length: 400 }, async (_, s) => (await draws.read(s))[0]!));
    const average = drawn.reduce((a, b) => a + b, 0) / 400;
    const spread = drawn.reduce((a, x) => a + (x - mean) ** 2, 0) / 400;
    expect(Math.abs(average - mean)).toBeLessThan(4 * Math.sqrt(variance / 400));
    expect(Math.abs(spread / variance - 1)).toBeLessThan(4 * Math.sqrt(2 / 400));
    trainer.dispose();
    found.dispose();
    prior.dispose();
    model.dispose();
  });
});

test("one point, a rank below 0, no members and a negative temperature are refused; nothing is left behind", async () => {
  const { model, target, end } = start();
  await expect(swag(target, rowSource(DATA), { ...OPTIONS, points: 1 })).rejects.toThrow("points: 1");
  // Planned step by step, it had no end.
  await expect(swag(target, rowSource(DATA), { ...OPTIONS, points: 1e6, every: 1e6 })).rejects.toThrow(
    /^SWAG: 1000000 points, 1000000 steps apart, are \d+ steps \(at most 10000000\)/,
  );
  await expect(swag(target, rowSource(DATA), { ...OPTIONS, rank: -1 })).rejects.toThrow("rank: -1");
  const found = new Swag(model.theta, 2);
  found.collect();
  expect(() => found.draws(3)).toThrow("SWAG: 1 points");
  found.collect();
  expect(() => found.draws(0)).toThrow("members: 0");
  expect(() => found.draws(1, { temperature: -1 })).toThrow("temperature: -1");
  found.dispose();
  end();
});
