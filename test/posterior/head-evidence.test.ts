/** @file The head's precision by its evidence (check 9): against the evidence by other code, the gradient, and other τ. */
import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { type Example, packBatch } from "../../src/data/batches.ts";
import { BertForSequenceClassification, type HeadSpec } from "../../src/model/bert.ts";
import { readSlices, trainedSlices, writeSlices } from "../../src/posterior/draws.ts";
import { evidence } from "../../src/posterior/evidence.ts";
import { ggn } from "../../src/posterior/ggn.ts";
import { learnHeadPrecision } from "../../src/posterior/head-evidence.ts";
import { laplace } from "../../src/posterior/laplace.ts";
import { Stream } from "../../src/random.ts";
import { accumulateGradient, logPosterior } from "../../src/train/objective.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";
import { tinyCheckpoint } from "../model/tiny.ts";

const gpu = gpuForTests();
const N = 40;
const FROZEN = { precision: Number.POSITIVE_INFINITY };

/** A frozen encoder, a head of K classes, and texts whose labels a head at `strength` gave; 0: none knows them. */
async function start(K: number, { strength = 3, head = "linear" as HeadSpec } = {}) {
  const model = await BertForSequenceClassification.load(new Engine(gpu()), tinyCheckpoint(), { labels: K, head, seed: 3 }); // biome-ignore format: one call
  const stream = new Stream(5, "texts");
  const texts = Array.from({ length: N }, () => {
    const ids = Uint32Array.from({ length: 3 + stream.integer(6) }, () => stream.integer(40));
    return { ids, typeIds: new Uint32Array(ids.length) };
  });
  const { engine } = model;
  const x = await engine.step(() => engine.noGrad(() => ({ read: model.features(packBatch(texts)).read() }))).read;
  const width = x.length / N;
  const teacher = randn(8, K * width, strength);
  const data = texts.map((text, n): Example => {
    const scores = Array.from({ length: K }, (_, k) => {
      let sum = -Math.log(-Math.log(stream.uniform())); // Gumbel's noise: a draw of the softmax
      for (let i = 0; i < width; i++) sum += teacher[k * width + i]! * x[n * width + i]!;
      return sum;
    });
    return { ...text, label: scores.indexOf(Math.max(...scores)) };
  });
  const prior = gaussianPrior(model, { encoder: FROZEN, head: { mean: 0, precision: 7 } });
  const target = logPosterior(model, prior, { N });
  const batches = [packBatch(data.slice(0, 23)), packBatch(data.slice(23))];
  const end = () => {
    prior.dispose();
    model.dispose();
  };
  return { model, prior, target, data, batches, end };
}

type Start = Awaited<ReturnType<typeof start>>;

/** log P(X) with θ as it is, by ggn.ts, laplace.ts and evidence.ts. */
async function evidenceOf({ model, prior, target, batches }: Start, precision: number) {
  const state = laplace(await ggn(model, batches, { structure: "full" }), prior, { precisions: { head: precision } });
  return evidence(target, state, batches, { rest: "fixed" });
}

describe.each([2, 3])("%d classes", (K) => {
  test("θ̂ is the maximum under τ, τ the fixed point, and the evidence that of the whole head", async () => {
    const begun = await start(K);
    const { model, target, data, batches } = begun;
    const heard: number[] = [];
    const found = await learnHeadPrecision(begun, data, { progress: (done) => heard.push(done) });
    expect([found.converged, heard]).toEqual([true, [1, 2]]);
    const tau = found.precision;
    const slices = trainedSlices(model.theta);
    const theta = await readSlices(model.theta, slices);
    // ∇ Σ NLL by autograd.
    const summed = logPosterior(model, target.prior, { N });
    model.theta.zeroGradient();
    for (const batch of batches) model.engine.step(() => void accumulateGradient(summed, batch, 1));
    const gradient = await readSlices(model.theta, slices, model.theta.gradient());
    for (const [i, g] of gradient.entries()) expect(Math.abs(g + tau * theta[i]!)).toBeLessThan(2e-4);

    const whole = await evidenceOf(begun, tau);
    expect(Math.abs(found.evidence.logEvidence - whole.logEvidence)).toBeLessThan(1e-4);
    const [own, other] = [found.evidence.groups[0]!, whole.groups[0]!];
    expect(own.size).toBe(other.size);
    expect(Math.abs(own.traceInverse / other.traceInverse - 1)).toBeLessThan(1e-5);
    expect(Math.abs(own.squaredDistance / other.squaredDistance - 1)).toBeLessThan(1e-5);
    const next = (other.size - tau * other.traceInverse) / other.squaredDistance;
    expect(Math.abs(next / tau - 1)).toBeLessThan(2e-3);
    begun.end();
  });

  test("the start does not matter; of one round the evidence is that of the start", async () => {
    const begun = await start(K);
    const found = await learnHeadPrecision(begun, begun.data);
    const again = await learnHeadPrecision(begun, begun.data, { start: 500 });
    expect(Math.abs(again.precision / found.precision - 1)).toBeLessThan(2e-3);
    const other = await learnHeadPrecision(begun, begun.data, { start: 12, rounds: 1 });
    expect(other).toMatchObject({ precision: 12, rounds: 1, converged: false });
    expect(Math.abs(other.evidence.logEvidence - (await evidenceOf(begun, 12)).logEvidence)).toBeLessThan(1e-4);
    begun.end();
  });
});

test("MacKay's τ leaves out how H falls as logits grow: where few labels are in doubt, half of it has more evidence", async () => {
  const begun = await start(3, { strength: 6 });
  const { precision, evidence } = await learnHeadPrecision(begun, begun.data);
  const half = await learnHeadPrecision(begun, begun.data, { start: precision / 2, rounds: 1 });
  expect(half.evidence.logEvidence).toBeGreaterThan(evidence.logEvidence);
  begun.end();
});

test("a prior whose mean is not 0: what all classes share stays at the mean", async () => {
  const begun = await start(3);
  const { model, prior, data } = begun;
  const slices = trainedSlices(model.theta);
  const mean = randn(
    9,
    slices.reduce((sum, { size }) => sum + size, 0),
    0.5,
  );
  writeSlices(model.theta, slices, mean, prior.mu);
  const found = await learnHeadPrecision(begun, data);
  const theta = await readSlices(model.theta, slices);
  const width = (theta.length - 3) / 3;
  for (let i = 0; i < width; i++) {
    const level = (v: Float32Array) => v[i]! + v[width + i]! + v[2 * width + i]!;
    expect(Math.abs(level(theta) - level(mean))).toBeLessThan(1e-5);
  }
  const whole = await evidenceOf(begun, found.precision);
  expect(Math.abs(found.evidence.logEvidence - whole.logEvidence)).toBeLessThan(1e-4);
  begun.end();
});

test("the less the vectors say of the labels, the nearer to the mean the head is held", async () => {
  const precisions = [];
  for (const strength of [0, 1, 4]) {
    const begun = await start(2, { strength });
    precisions.push((await learnHeadPrecision(begun, begun.data)).precision);
    begun.end();
  }
  expect(precisions).toEqual([...precisions].sort((a, b) => b - a));
});

test("of a head of two layers it is the last one's, on what the first makes", async () => {
  const begun = await start(2, { head: "mlp:4" });
  const found = await learnHeadPrecision(begun, begun.data);
  begun.model.theta.freeze(({ key }) => !key.startsWith("priorwork.head.output"));
  const whole = await evidenceOf(begun, found.precision);
  expect(found.evidence.groups[0]!.size).toBe(10);
  expect(Math.abs(found.evidence.logEvidence - whole.logEvidence)).toBeLessThan(1e-4);
  begun.end();
});

test("refused: a text without a label, a frozen head, one too large, no data", async () => {
  const begun = await start(2);
  const { model, data } = begun;
  const { label: _, ...bare } = data[0]!;
  await expect(learnHeadPrecision(begun, [bare])).rejects.toThrow("head precision: example 1 has no label");
  await expect(learnHeadPrecision(begun, [])).rejects.toThrow("no data to learn it from");
  await expect(learnHeadPrecision(begun, data, { maxBytes: 1000 })).rejects.toThrow("laplace: full over");
  model.theta.freeze(() => true);
  await expect(learnHeadPrecision(begun, data)).rejects.toThrow("is frozen");
  begun.end();
});
