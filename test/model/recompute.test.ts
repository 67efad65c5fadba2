/**
 * @file BERT with its layers run again in the backward: the bits of every gradient, with dropout, with frozen parts, with
 * readouts that look at several layers; whole trainings, accumulated and resumed with and without; and the memory.
 */
import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { type Example, packBatch } from "../../src/data/batches.ts";
import { fromHost, readArray } from "../../src/kernels/index.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { BertForPreTraining } from "../../src/model/pretraining.ts";
import { streamKey } from "../../src/random.ts";
import { adam, gaussianPrior, logPosterior, Trainer, type TrainState } from "../../src/train/index.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";
import { tinyCheckpoint } from "./tiny.ts";

const gpu = gpuForTests();
const LAYERS = 3;
const checkpoint = tinyCheckpoint({ layers: LAYERS, hidden: 16, dropout: 0.2 });

const examples = (count: number): Example[] =>
  Array.from({ length: count }, (_, i) => ({
    ids: Uint32Array.from(randn(i, 1 + ((5 * i) % 13)), (x) => Math.floor(Math.abs(x) * 1000) % 40),
    typeIds: new Uint32Array(1 + ((5 * i) % 13)),
    label: i % 2,
  }));
const keys = (site: number) => streamKey(1, "dropout", 1, 0, 0, site);

/** Gradients of a readout's vectors under a random upstream gradient, θ's whole vector, and the most that was live. */
async function gradients(recompute: boolean, readout: string, frozen: readonly string[]) {
  const engine = new Engine(gpu());
  const model = await BertForSequenceClassification.load(engine, checkpoint, { labels: 2, readout, recompute });
  const spec = Object.fromEntries(["encoder", "head"].map((group) => [group, { precision: 1 }]));
  const prior = gaussianPrior(model, {
    ...spec,
    ...Object.fromEntries(frozen.map((group) => [group, { precision: Number.POSITIVE_INFINITY }])),
  });
  engine.gpu.resetPeak();
  const before = engine.gpu.stats.liveBytes;
  const { reads } = engine.step(() => {
    const y = model.features(packBatch(examples(9)), keys);
    engine.backward(y, fromHost(engine.gpu, randn(7, y.size), y.shape));
    return { reads: [y.read(), readArray(engine.gpu, model.theta.gradient())] };
  });
  const [features, gradient] = await Promise.all(reads);
  const peak = engine.gpu.stats.peakLiveBytes - before;
  prior.dispose();
  model.dispose();
  return { features, gradient, peak };
}

describe("a BERT that is run again", () => {
  test.each([
    ["mean", []],
    ["pooler", []],
    ["last3-sum", []],
    ["last3-concat-mean", []],
    ["last2-sum-max", ["embeddings"]],
    ["last3-sum", ["embeddings", "layer.0"]],
    ["cls", ["layer.1"]],
    ["last3-concat", ["layer.0", "layer.2"]],
  ])("%s with %j frozen: the same bits", async (readout, frozen) => {
    const [plain, again] = [await gradients(false, readout, frozen), await gradients(true, readout, frozen)];
    expect(again.features).toEqual(plain.features);
    expect(again.gradient).toEqual(plain.gradient);
    expect(plain.gradient?.some((g) => g !== 0)).toBe(true);
  });

  test("holds less", async () => {
    const [plain, again] = [await gradients(false, "mean", []), await gradients(true, "mean", [])];
    expect(again.peak).toBeLessThan(0.75 * plain.peak);
  });
});

interface Part {
  recompute: boolean;
  from?: TrainState;
  stop: number;
}

/** Part of a training of 8 steps of 2 × 3 sequences, with dropout. */
async function part({ recompute, from, stop }: Part) {
  const engine = new Engine(gpu());
  const model = await BertForSequenceClassification.load(engine, checkpoint, { labels: 2, recompute });
  const prior = gaussianPrior(model, { encoder: { precision: 30 }, head: { precision: 1 } });
  const trainer = new Trainer(logPosterior(model, prior, { N: 24 }), examples(24), {
    optimizer: adam({ lr: 1e-3 }),
    epochs: 2,
    batch: 3,
    accumulate: 2,
    settle: (step) => step === stop,
  });
  try {
    const notes = from ? await trainer.restore(from) : [];
    const nll: number[] = [];
    for await (const report of trainer.run()) {
      nll.push(report.nll);
      if (report.step === stop) break;
    }
    return { nll, notes, state: await trainer.state() };
  } finally {
    trainer.dispose();
    prior.dispose();
    model.dispose();
  }
}

describe("training", () => {
  test("takes the same steps, and goes on from either with the other", async () => {
    const plain = await part({ recompute: false, stop: 6 });
    const again = await part({ recompute: true, stop: 6 });
    expect(again.nll).toEqual(plain.nll);
    expect(again.state.theta).toEqual(plain.state.theta);
    for (const [first, then] of [
      [false, true],
      [true, false],
    ] as const) {
      const half = await part({ recompute: first, stop: 3 });
      const rest = await part({ recompute: then, from: half.state, stop: 6 });
      expect(rest.notes).toEqual([]);
      expect([...half.nll, ...rest.nll]).toEqual(plain.nll);
      expect(rest.state.theta).toEqual(plain.state.theta);
      expect(rest.state.vectors).toEqual(plain.state.vectors);
    }
  });
});

test("pretraining: the same bits", async () => {
  const run = async (recompute: boolean) => {
    const engine = new Engine(gpu());
    const model = await BertForPreTraining.load(engine, checkpoint, { recompute });
    const batch = {
      ...packBatch(examples(6)),
      maskedRows: Uint32Array.of(1, 3, 8, 20),
      maskedTargets: Uint32Array.of(5, 0, 39, 17),
      nextSentence: Uint32Array.of(0, 1, 1, 0, 1, 0),
    };
    const { reads } = engine.step(() => {
      const { nlls } = model.loss(batch, keys);
      engine.backward(nlls, fromHost(engine.gpu, randn(3, 6)));
      return { reads: [nlls.read(), readArray(engine.gpu, model.theta.gradient())] };
    });
    const read = await Promise.all(reads);
    model.dispose();
    return read;
  };
  expect(await run(true)).toEqual(await run(false));
});
