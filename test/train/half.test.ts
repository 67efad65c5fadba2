/**
 * @file Training in f16 on matrix units, against the same in f32: a BERT of two layers whose sizes are multiples of 4, so
 * that its linear layers run there forwards and backwards. Adapters without a unit skip (see matmul-matrix.test.ts).
 */
import { beforeEach, describe, expect, test } from "vitest";
import { type Dtype, Engine } from "../../src/autograd/index.ts";
import type { Example } from "../../src/data/batches.ts";
import type { Dispatch } from "../../src/gpu/index.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { parseState, serializeState, type TrainState } from "../../src/train/checkpoint.ts";
import { type FitOptions, type StepReport, Trainer } from "../../src/train/fit.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { adam } from "../../src/train/optimizers.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";
import { tinyCheckpoint } from "../model/tiny.ts";

const gpu = gpuForTests();
const checkpoint = tinyCheckpoint({ dropout: 0.1 });

/** Sentences of up to 13 word pieces; the label says whether the first is of the lower half. */
const examples: Example[] = Array.from({ length: 24 }, (_, i) => {
  const ids = Uint32Array.from(randn(i, 1 + ((5 * i) % 13)), (x) => Math.floor(Math.abs(x) * 1000) % 40);
  return { ids, typeIds: new Uint32Array(ids.length), label: Number((ids[0] ?? 0) < 20) };
});

interface Part {
  from?: TrainState;
  stop?: number;
  more?: Partial<FitOptions>;
}

async function part(dtype: Dtype, { from, stop, more }: Part = {}) {
  const engine = new Engine(gpu(), { dtype });
  const model = await BertForSequenceClassification.load(engine, checkpoint, { labels: 2, readout: "mean" });
  const prior = gaussianPrior(model, { encoder: { precision: 10 }, head: { precision: 1 } });
  const trainer = new Trainer(logPosterior(model, prior, { N: examples.length }), examples, {
    optimizer: adam({ lr: 1e-3, headLr: 1e-2 }),
    epochs: 4,
    batch: 8,
    seed: 3,
    settle: (step) => step === stop,
    ...more,
  });
  const reports: StepReport[] = [];
  const shaders: string[] = [];
  gpu().afterDispatch = ({ shader }: Dispatch) => void (shader.startsWith("matmul_") && shaders.push(shader));
  try {
    if (from) await trainer.restore(from);
    for await (const report of trainer.run()) {
      reports.push(report);
      if (report.step === stop) break;
    }
    return { reports, shaders, state: await trainer.state() };
  } finally {
    gpu().afterDispatch = undefined;
    trainer.dispose();
    prior.dispose();
    model.dispose();
  }
}

const numbers = ({ tokensPerSecond: _, dispatches: __, ...rest }: StepReport) => rest;

describe("training in f16", () => {
  beforeEach((context) => {
    if (!gpu().adapter.matrixUnit) context.skip(`this adapter (${gpu().adapter.driver}) has no matrix unit`);
  });

  test("follows f32", async () => {
    const [plain, half] = [await part("f32"), await part("f16")];
    const units = half.shaders.filter((shader) => shader === "matmul_matrix").length;
    // All but the head's, whose two columns stay in f32.
    expect(units / half.shaders.length).toBeGreaterThan(0.8);
    expect(plain.shaders).not.toContain("matmul_matrix");
    expect(half.reports.every(({ skipped }) => skipped === false)).toBe(true);
    // A factor is off by 2⁻¹¹ of itself at most, and the errors of a product's many terms have either sign: NLLs near 0.7 and
    // the gradient's norm stay within a few of that (measured on lavapipe: 4e-5 and 3e-4).
    for (const [i, { nll, gradNorm }] of plain.reports.entries()) {
      const other = half.reports[i];
      expect(Math.abs((other?.nll ?? Number.NaN) - nll)).toBeLessThan(2 ** -11);
      expect(Math.abs((other?.gradNorm ?? Number.NaN) / gradNorm - 1)).toBeLessThan(2 ** -9);
      expect(other?.nll).not.toBe(nll);
    }
  });

  test("overflows where S is too large, finds its S, and goes on", async () => {
    // Gradients of this model on the way are up to 1/100, and f16 ends at 65,504.
    const { reports, state } = await part("f16", { more: { lossScale: { start: 2 ** 24 } } });
    const skipped = reports.filter((report) => report.skipped).length;
    expect(skipped).toBeGreaterThan(0);
    expect(skipped).toBeLessThan(reports.length / 2);
    expect(state.lossScale).toMatchObject({ scale: 2 ** (24 - skipped), skipped });
    expect(reports.every(({ nll, distance }) => Number.isFinite(nll) && Number.isFinite(distance))).toBe(true);
    expect(state.theta.every(Number.isFinite)).toBe(true);
  });

  test("has the same bits again, and resumed", async () => {
    const straight = await part("f16", { stop: 5 });
    const first = await part("f16", { stop: 2 });
    const second = await part("f16", { from: parseState(serializeState(first.state), "state"), stop: 5 });
    expect([...first.reports, ...second.reports].map(numbers)).toEqual(straight.reports.map(numbers));
    expect(second.state).toEqual(straight.state);
  });
});
