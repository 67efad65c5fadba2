/**
 * @file Training with a scaled loss. Most of it needs no matrix unit: where no unit takes a product, a training in f16 is
 * one in f32 whose loss is scaled, and it must have the same bits. What f16 itself changes is tested where there is one.
 */
import { describe, expect, test } from "vitest";
import { Engine, ops } from "../../src/autograd/index.ts";
import { DivergedError } from "../../src/errors.ts";
import { parseState, serializeState, type TrainState } from "../../src/train/checkpoint.ts";
import { type FitOptions, type StepReport, Trainer } from "../../src/train/fit.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { adam, sgd } from "../../src/train/optimizers.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { classes, rowSource, twoLayers } from "./toys.ts";

const gpu = gpuForTests();
const DATA = classes(64, 6, 3);

interface Part {
  dtype?: "f32" | "f16";
  from?: TrainState;
  /** Stop after this many steps. */
  stop?: number;
  /** The NLL is divided by this and multiplied again: the gradient between the two is as many times larger. */
  steep?: number;
  /** The NLL is multiplied by this. */
  gain?: number;
  more?: Partial<FitOptions>;
  data?: typeof DATA;
}

/** A part of a run of 6 steps with dropout, a prior, clipping and two micro-batches. None of its sizes suits a matrix unit. */
async function part({ dtype = "f16", from, stop, steep, gain = 1, more, data = DATA }: Part) {
  const toy = twoLayers(new Engine(gpu(), { dtype }), { d: 6, h: 10, K: 3, p: 0.3 });
  const model: typeof toy = {
    ...toy,
    loss(rows, keys) {
      const { nlls, count } = toy.loss(rows, keys);
      if (steep === undefined) return { nlls, count };
      return { nlls: ops.scale(ops.scale(ops.scale(nlls, 1 / steep), steep), gain), count };
    },
  };
  const prior = gaussianPrior(model, { encoder: { precision: 10 }, head: { precision: 1 } });
  const reports: StepReport[] = [];
  let trainer: Trainer<typeof DATA> | undefined;
  try {
    trainer = new Trainer(logPosterior(model, prior, { N: 64 }), rowSource(data), {
      optimizer: adam({ lr: 1e-3, headLr: 0.02 }),
      epochs: 2,
      batch: 12,
      accumulate: 2,
      clip: 0.5,
      seed: 9,
      settle: (step) => step === stop,
      ...more,
    });
    if (from) await trainer.restore(from);
    for await (const report of trainer.run()) {
      reports.push(report);
      if (report.step === stop) break;
    }
    return { reports, state: await trainer.state() };
  } finally {
    trainer?.dispose();
    prior.dispose();
    toy.dispose();
  }
}

/** What of a report does not depend on the clock or on how it was computed. */
const terms = ({ tokensPerSecond: _, dispatches: __, lossScale: ___, skipped: ____, ...rest }: StepReport) => rest;

describe("a scaled loss", () => {
  test.each([1, 4096, 2 ** 24])("scale %i: the same bits as without", async (scale) => {
    const plain = await part({ dtype: "f32" });
    const scaled = await part({ more: { lossScale: { start: scale } } });
    expect(scaled.reports.map(terms)).toEqual(plain.reports.map(terms));
    expect(scaled.state.theta).toEqual(plain.state.theta);
    expect(scaled.state.vectors).toEqual(plain.state.vectors);
    expect(plain.reports[0]).not.toHaveProperty("lossScale");
    expect(scaled.reports[0]).toMatchObject({ lossScale: scale, skipped: false });
  });

  test("a step that overflows is skipped, S halved until none does, and the run goes on", async () => {
    // The largest gradient on the way is S/21⅓ · 1e34: beyond f32 at 2²¹ and 2²⁰, within it at 2¹⁹.
    const { reports } = await part({ steep: 1e34, more: { lossScale: { start: 2 ** 21 } } });
    expect(reports.slice(0, 4).map(({ skipped, lossScale }) => [skipped, lossScale])).toEqual([
      [true, 2 ** 20],
      [true, 2 ** 19],
      [false, 2 ** 19],
      [false, 2 ** 19],
    ]);
    expect(reports.map(({ step }) => step)).toEqual(Array.from({ length: reports.length }, (_, i) => i + 1));
    for (const { skipped, nll, gradNorm, distance, priorShare } of reports) {
      expect([nll, distance].every(Number.isFinite)).toBe(true);
      expect(Number.isNaN(gradNorm) && Number.isNaN(priorShare)).toBe(skipped);
    }
    // Nothing moved before the third step, and then it did.
    expect(reports.slice(0, 4).map(({ distance }) => distance > 0)).toEqual([false, false, false, true]);
  });

  test("steps that are skipped do not count as steps in which the prior had no share", async () => {
    // Of three steps the third is the first that happens, at θ = μ: one step is too few to tell of an idle prior.
    const { reports } = await part({ steep: 1e34, more: { epochs: 1, lossScale: { start: 2 ** 21 } } });
    expect(reports.map(({ skipped }) => skipped)).toEqual([true, true, false]);
  });

  test("a skipped step changes θ and moments by nothing", async () => {
    const before = await part({ stop: 3 });
    const from = { ...before.state, lossScale: { scale: 2 ** 20, good: 0, skipped: 0, last: 0 } };
    const after = await part({ from, stop: 4, steep: 1e34 });
    expect(after.reports).toMatchObject([{ step: 4, skipped: true }]);
    expect(after.state.theta).toEqual(from.theta);
    expect(after.state.vectors).toEqual(from.vectors);
    expect(after.state.lossScale).toEqual({ scale: 2 ** 19, good: 0, skipped: 1, last: 4 });
  });

  test("has diverged where S is at its least", async () => {
    // 1e37 · 1000/21⅓ is beyond f32 without any scale.
    const run = part({ steep: 1e37, gain: 1000, more: { lossScale: { start: 4 } } });
    await expect(run).rejects.toThrow(/^step 3: the loss or its gradient is not finite \(first in scale/);
    await expect(run).rejects.toBeInstanceOf(DivergedError);
  });

  test("has diverged at once where the loss itself is not finite: no scale mends that", async () => {
    const data = { ...DATA, x: DATA.x.slice().fill(Number.NaN, 0, 6) };
    await expect(part({ data, more: { lossScale: { start: 2 ** 20 }, shuffle: false } })).rejects.toThrow(/^step 1: /);
  });

  test("S grows after good steps; resumed, it has the same bits", async () => {
    const more = { lossScale: { start: 4, interval: 2 } };
    const straight = await part({ more, stop: 5 });
    expect(straight.reports.map(({ lossScale }) => lossScale)).toEqual([4, 8, 8, 16, 16]);
    const first = await part({ more, stop: 3 });
    const saved = parseState(serializeState(first.state), "state");
    expect(saved.lossScale).toEqual({ scale: 8, good: 1, skipped: 0, last: 0 });
    const second = await part({ more, from: saved, stop: 5 });
    expect([...first.reports, ...second.reports].map(terms)).toEqual(straight.reports.map(terms));
    expect(second.state).toEqual(straight.state);
    const { lossScale: _, ...without } = saved;
    const forgetful = await part({ more, from: without, stop: 5 });
    expect(forgetful.state.lossScale).not.toEqual(straight.state.lossScale);
  });

  test("a run in f16 is not one in f32, nor one with another scale", async () => {
    const half = await part({ stop: 2 });
    const plain = await part({ dtype: "f32", stop: 2 });
    await expect(part({ from: plain.state })).rejects.toThrow(/dtype differs .the checkpoint has none, this run f16/);
    await expect(part({ dtype: "f32", from: half.state })).rejects.toThrow(/dtype differs/);
    await expect(part({ from: half.state, more: { lossScale: { start: 2 } } })).rejects.toThrow(/loss scale differs/);
  });

  test("options and states that are none are refused", async () => {
    await expect(part({ more: { lossScale: { start: 3 } } })).rejects.toThrow("loss scale: 3 (expected a power of two");
    await expect(part({ more: { lossScale: { interval: 0 } } })).rejects.toThrow("loss scale: an interval of 0");
    const state: TrainState = { step: 1, adapter: "a", facts: {}, theta: new Float32Array(1), vectors: {} };
    const saved = (lossScale: unknown) => () =>
      parseState(serializeState({ ...state, lossScale } as unknown as TrainState), "f");
    const good = { scale: 2, good: 0, skipped: 0, last: 0 };
    expect(saved(good)().lossScale).toEqual(good);
    for (const bad of [null, 4, {}, { ...good, scale: 3 }, { ...good, scale: "2" }, { ...good, skipped: -1 }]) {
      expect(saved(bad)).toThrow("a loss scale that no training has");
    }
  });

  test("a sampler stays in f32", async () => {
    const engine = new Engine(gpu(), { dtype: "f16" });
    const model = twoLayers(engine, { d: 6, h: 10, K: 3 });
    const prior = gaussianPrior(model, { encoder: { precision: 10 }, head: { precision: 1 } });
    const optimizer = { ...sgd({ lr: 1e-3 }), noisy: true };
    const trainer = new Trainer(logPosterior(model, prior, { N: 64 }), rowSource(DATA), {
      optimizer,
      epochs: 1,
      batch: 64,
    });
    for await (const report of trainer.run()) expect(report).not.toHaveProperty("lossScale");
    trainer.dispose();
    prior.dispose();
    model.dispose();
  });
});
