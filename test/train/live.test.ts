/** @file A run that leaves out embedding rows no batch has held, against one that visits all of θ: the same bits. */
import { describe, expect, test } from "vitest";
import { Engine, Layout, ops, Theta } from "../../src/autograd/index.ts";
import type { Example } from "../../src/data/batches.ts";
import { readArray } from "../../src/kernels/index.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { type FitOptions, Trainer } from "../../src/train/fit.ts";
import { LiveParameters } from "../../src/train/live.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { adam, adamW, type Optimizer, sgd } from "../../src/train/optimizers.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";
import { tinyCheckpoint } from "../model/tiny.ts";

const gpu = gpuForTests();

const VOCABULARY = 3000;
/** 24 sentences over 112 words, new ones in every batch, some of them twice; no chunk of 256 numbers (16 words) holds two. */
const EXAMPLES: Example[] = Array.from({ length: 24 }, (_, i) => ({
  ids: Uint32Array.from({ length: 6 + (i % 3) }, (_, k) => 100 + 20 * ((5 * i + 7 * k) % 112)),
  typeIds: new Uint32Array(6 + (i % 3)),
  truncated: false,
  label: i % 2,
}));

async function run(optimizer: Optimizer, more: Partial<FitOptions> & { parts?: number; tau?: number } = {}) {
  const { parts = 1, tau = 20, ...options } = more;
  const model = await BertForSequenceClassification.load(
    new Engine(gpu()),
    tinyCheckpoint({ vocabulary: VOCABULARY, dropout: 0.1 }),
    { labels: 2 },
  );
  const prior = gaussianPrior(model, { encoder: { precision: tau }, head: { precision: 1 } });
  const reports = [];
  const make = () =>
    new Trainer(logPosterior(model, prior, { N: 24 }), EXAMPLES, { optimizer, epochs: 2, batch: 4, seed: 5, clip: 0.5, settle: () => true, ...options }); // biome-ignore format: one call
  let trainer = make();
  for (let part = 1; part <= parts; part++) {
    for await (const report of trainer.run()) {
      reports.push({ ...report, tokensPerSecond: 0 });
      if (part < parts && report.step === Math.floor((part * trainer.steps) / parts)) break;
    }
    if (part === parts) break;
    const state = await trainer.state();
    trainer.dispose();
    trainer = make();
    await trainer.restore(state);
  }
  const { theta, vectors } = await trainer.state();
  trainer.dispose();
  prior.dispose();
  model.dispose();
  return { reports, theta, vectors };
}

const everything = (optimizer: Optimizer): Optimizer => ({ ...optimizer, rests: false });

describe("the same reports, θ and moments as a run over all of θ", () => {
  test.each([
    ["adam", adam({ lr: 1e-3 }), {}],
    ["adam, flat prior", adam({ lr: 1e-3 }), { tau: 0 }],
    ["adam, three batches to a step", adam({ lr: 1e-3 }), { accumulate: 3 }],
    ["adam, resumed twice", adam({ lr: 1e-3 }), { parts: 3 }],
    ["sgd with momentum", sgd({ lr: 0.05, momentum: 0.9 }), { parts: 2 }],
    ["adamw towards the mean", adamW({ lr: 1e-3, towards: "mean" }), { tau: 0 }],
  ])("%s", async (_, optimizer, more) => {
    const found = await run(optimizer, more);
    const expected = await run(everything(optimizer), { ...more, parts: 1 });
    // Which dispatches clear rows depends on where a run was resumed.
    expect(found.reports.map((r) => ({ ...r, dispatches: 0 }))).toEqual(expected.reports.map((r) => ({ ...r, dispatches: 0 }))); // biome-ignore format: one comparison
    expect(found.theta).toEqual(expected.theta);
    expect(found.vectors).toEqual(expected.vectors);
  });

  test("adamw towards zero moves words that no batch has held, so it visits all", async () => {
    const { theta } = await run(adamW({ lr: 1e-2, decay: 0.5, towards: "zero" }), { tau: 0 });
    const start = await tinyCheckpoint({ vocabulary: VOCABULARY }).read("bert.embeddings.word_embeddings.weight");
    expect(theta[16 * 2999]).not.toBe(start[16 * 2999]);
  });
});

test("a step is one submit, also where it uploads what new words ask for", async () => {
  const model = await BertForSequenceClassification.load(new Engine(gpu()), tinyCheckpoint({ vocabulary: VOCABULARY }), { labels: 2 }); // biome-ignore format: one call
  const prior = gaussianPrior(model, { encoder: { precision: 20 }, head: { precision: 1 } });
  const target = logPosterior(model, prior, { N: 24 });
  const trainer = new Trainer(target, EXAMPLES, { optimizer: adam({ lr: 1e-3 }), epochs: 2, batch: 4, settle: () => true }); // biome-ignore format: one call
  const submits: number[] = [];
  for await (const _ of trainer.run()) submits.push(gpu().counters.submits);
  // The first step makes its buffers; from then on.
  expect(submits.slice(2).map((count, i) => count - submits[i + 1]!)).toEqual(Array(10).fill(1));
  trainer.dispose();
  prior.dispose();
  model.dispose();
});

describe("what is live", () => {
  const TABLE = new Layout([
    { key: "table", parameters: [{ name: "table", shape: [512, 64] }], groups: ["encoder"], table: true },
    { key: "w", parameters: [{ name: "w", shape: [64] }], groups: ["head"] },
  ]);
  const chunksOf = 129; // (512·64 + 64)/256, rounded up

  /** θ = μ = 1 with changes made by `change`; the share of chunks that a step visits before any gradient. */
  async function share(change: (theta: Theta, mu: Float32Array, moment: Float32Array) => void, resting = true) {
    const engine = new Engine(gpu());
    const theta = new Theta(engine, TABLE);
    const [mu, moment] = [theta.vector(), theta.vector()];
    const [means, moments] = [new Float32Array(TABLE.length).fill(1), new Float32Array(TABLE.length)];
    theta.set("table", new Float32Array(512 * 64).fill(1));
    change(theta, means, moments);
    engine.gpu.write(mu, means);
    engine.gpu.write(moment, moments);
    const live = await LiveParameters.find(theta, mu, [moment], { resting });
    const found = engine.step(() => {
      theta.gradient();
      return live.next().share;
    });
    theta.dispose();
    return found * chunksOf;
  }

  test("at first, what is no table", async () => expect(await share(() => {})).toBe(1));
  test("a row off its prior mean", async () => expect(await share((_, mu) => mu.fill(2, 64, 128))).toBe(2));
  test("a row with a moment", async () => expect(await share((_, __, m) => m.fill(1e-30, 640, 641))).toBe(2));
  test("everything, where nothing rests", async () => expect(await share(() => {}, false)).toBe(chunksOf));
  test("nothing of a frozen table", async () => {
    expect(await share((theta) => theta.freeze((slice) => slice.table), false)).toBe(1);
  });
});

describe("the gradient of a table", () => {
  const LAYOUT = new Layout([
    { key: "table", parameters: [{ name: "table", shape: [9, 4] }], groups: ["encoder"], table: true },
  ]);

  test("holds no row of a step before, whatever wrote it; rows are known until something else writes", async () => {
    const engine = new Engine(gpu());
    const theta = new Theta(engine, LAYOUT);
    const slice = LAYOUT.slices[0]!;
    const rows = () => theta.gradientRows(slice) && [...(theta.gradientRows(slice) as Set<number>)].sort();
    const weights = randn(1, 12);
    const step = async (ids: readonly number[][], dense = false) => {
      const { read } = engine.step(() => {
        theta.zeroGradient();
        const table = theta.tensor("table");
        for (const some of ids) {
          const y = ops.embedding(table, Uint32Array.from(some));
          const up = engine.tensor(weights.slice(0, 4 * some.length), [some.length, 4]);
          engine.backward(ops.sum(ops.multiply(y, up)));
        }
        if (dense) engine.backward(ops.sum(ops.scale(table, 3)));
        return { read: readArray(engine.gpu, theta.gradient()) };
      });
      const expected = new Float32Array(64);
      for (const some of ids)
        some.forEach((id, n) => {
          for (let c = 0; c < 4; c++) expected[4 * id + c]! += weights[4 * n + c]!;
        });
      if (dense) for (let i = 0; i < 36; i++) expected[i]! += 3;
      const found = await read;
      found.forEach((x, i) => {
        expect(x, `element ${i}`).toBeCloseTo(expected[i]!, 5);
      });
      return rows();
    };
    expect(await step([[1, 5, 1]])).toEqual([1, 5]);
    expect(await step([[5, 2]])).toEqual([2, 5]);
    expect(await step([[0], [8, 0]])).toEqual([0, 8]);
    expect(await step([[3]], true)).toBeUndefined();
    expect(await step([[4]])).toEqual([4]);
    expect(await step([])).toEqual([]);
    expect(await step([[7]])).toEqual([7]);
    theta.dispose();
  });
});
