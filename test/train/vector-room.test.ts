/** @file Vectors of θ's length: what is said of them is what the pool then holds, and what does not fit is refused with what would. */
import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { InputError } from "../../src/errors.ts";
import { swag, swagVectors } from "../../src/posterior/swag.ts";
import { FisherCollector, fisherVectors, type Scores } from "../../src/train/fisher.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { adam } from "../../src/train/optimizers.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { expectVectorRoom, vectorBytes, vectorText } from "../../src/train/vector-room.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { classes, type Rows, rowSource, twoLayers } from "../train/toys.ts";

const gpu = gpuForTests();
const DATA = classes(16, 64, 3);
/** 64 × 512 + 512 + 3 × 512 + 3 numbers: 140 kB, so that activations of 8 rows are small beside a vector. */
const net = () => twoLayers(new Engine(gpu()), { d: 64, h: 512, K: 3 });
const scores = (model: ReturnType<typeof net>): Scores<Rows> => ({
  ...model,
  draw: (rows) => {
    const { nlls, count } = model.loss(rows);
    return { loss: nlls, count };
  },
});

describe("Fisher collection", () => {
  test("takes what was said, and not a byte more", () => {
    for (const rank of [0, 1, 3]) {
      const model = net();
      const before = gpu().stats.liveBytes;
      const said = vectorBytes(model.theta, fisherVectors(rank));
      const collector = new FisherCollector(scores(model), { rank });
      model.theta.gradient();
      expect(gpu().stats.liveBytes - before).toBe(said);
      collector.dispose();
      model.dispose();
    }
  });

  test("is refused before anything is allocated, with the rank that fits", () => {
    const model = net();
    const before = gpu().stats.liveBytes;
    const [one] = [vectorBytes(model.theta, fisherVectors(0)) / 2];
    const make = (rank: number, vectors: number) => () =>
      new FisherCollector(scores(model), { rank, maxBytes: before + vectors * one });
    make(3, 8)().dispose();
    expect(make(3, 7.9)).toThrow(InputError);
    expect(make(3, 7.9)).toThrow(/^Fisher information: 8 vectors of θ's length, 1\.\d MB of device memory, beside 0\.\d+ MB in use \(at most 1\.\d MB in all\)\. A rank of 2 fits \(0\.\d+ MB\): ask for no more\.$/); // biome-ignore format: one sentence
    expect(make(200, 3)).toThrow(/A rank of 0 fits/);
    for (const maxBytes of [Number.NaN, -1])
      expect(() => new FisherCollector(scores(model), { rank: 1, maxBytes })).toThrow(
        `Fisher information: at most ${maxBytes} bytes (expected a number from 0).`,
      );
    expect(make(0, 1)).toThrow(/No rank fits: take a smaller model, or another adapter/);
    expect(gpu().stats.liveBytes).toBe(before);
    model.dispose();
  });
});

describe("SWAG", () => {
  const options = (rank: number, points = 6) => ({ optimizer: adam({ lr: 1e-3 }), points, every: 1, rank, batch: 8 });
  const begin = () => {
    const model = net();
    const prior = gaussianPrior(model, { encoder: { precision: 10 }, head: { precision: 1 } });
    const target = logPosterior(model, prior, { N: 16 });
    const end = () => {
      prior.dispose();
      model.dispose();
    };
    return { model, target, end };
  };

  test.each([0, 1, 4, 50])("of rank %i takes what was said of vectors, and a step's values", async (rank) => {
    const { model, target, end } = begin();
    gpu().resetPeak();
    const before = gpu().stats.liveBytes;
    const said = vectorBytes(model.theta, swagVectors(options(rank)));
    const found = await swag(target, rowSource(DATA), options(rank));
    await found.draws(1).read(0);
    const taken = gpu().stats.peakLiveBytes - before;
    const vector = said / swagVectors(options(rank)).vectors(rank);
    expect(taken).toBeGreaterThanOrEqual(said - vector);
    expect(taken).toBeLessThan(said + vector);
    found.dispose();
    end();
  });

  test("is refused before anything is allocated; more ranks than points cost no more", async () => {
    const { model, target, end } = begin();
    const before = gpu().stats.liveBytes;
    const limit = (rank: number) => before + vectorBytes(model.theta, swagVectors(options(rank)));
    await expect(swag(target, rowSource(DATA), { ...options(5), maxBytes: limit(4) })).rejects.toThrow(/^SWAG: 11 vectors .* A rank of 4 fits/); // biome-ignore format: one sentence
    expect(gpu().stats.liveBytes).toBe(before);
    expect(limit(6)).toBe(limit(1000));
    expect(() => expectVectorRoom(model.theta, swagVectors(options(1000)), undefined)).not.toThrow();
    expect(vectorText(model.theta, swagVectors(options(10)))).toMatch(/^SWAG: 12 vectors of θ's length, 1\.\d MB/);
    end();
  });
});
