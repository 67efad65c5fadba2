/** @file Pretraining as a likelihood: what its terms are, that N counts them, and which streams its data come from. */
import { describe, expect, test } from "vitest";
import { Engine, ops } from "../../src/autograd/index.ts";
import { maskTokens, nspPairs, packBatch } from "../../src/data/batches.ts";
import { BertTokenizer } from "../../src/data/tokenizer.ts";
import { readArray } from "../../src/kernels/index.ts";
import { BertForPreTraining } from "../../src/model/pretraining.ts";
import { Stream } from "../../src/random.ts";
import { gaussianPrior, logPosterior, pretrainingSource, sgd, Trainer } from "../../src/train/index.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { tinyCheckpoint } from "../model/tiny.ts";

const gpu = gpuForTests();
const words = "a b c d e f g h".split(" ");
const tokenizer = BertTokenizer.from({
  vocab: { name: "vocab.txt", text: ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ...words].join("\n") },
});
const V = 5 + words.length;
/** Five documents of three sentences: ten pairs, or fifteen sentences. */
const documents = Array.from({ length: 5 }, (_, d) =>
  Array.from({ length: 3 }, (_, s) => Array.from({ length: 4 + s }, (_, t) => words[(3 * d + s + t) % 8]).join(" ")),
);
const place = { epoch: 0, step: 1, micro: 0 };
const load = (nextSentence: boolean) =>
  BertForPreTraining.load(new Engine(gpu()), tinyCheckpoint({ vocabulary: V }), { nextSentence });

describe("a batch's terms", () => {
  test.each([true, false])("with next sentence %s: one a sequence, and their mean is the batch's loss", async (nsp) => {
    const model = await load(nsp);
    const { engine, theta } = model;
    const batch = pretrainingSource(documents, tokenizer, { maxLength: 16, nextSentence: nsp }).batch([0, 1, 2], place);
    const parts = (gradientOf: "terms" | "means") =>
      engine.step(() => {
        theta.zeroGradient();
        const loss = model.loss(batch);
        const whole = loss.nsp ? ops.add(loss.mlm, ops.mean(loss.nsp)) : loss.mlm;
        const reads = { nlls: loss.nlls.read(), mlm: loss.mlm.item(), nsp: loss.nsp?.read(), count: loss.count };
        engine.backward(gradientOf === "terms" ? ops.sum(loss.nlls, 1 / loss.count) : whole);
        return { ...reads, gradient: readArray(engine.gpu, theta.gradient()) };
      });
    const found = parts("terms");
    expect(found.count).toBe(3);
    const [nlls, mlm, own] = await Promise.all([found.nlls, found.mlm, found.nsp]);
    expect(nlls.length).toBe(3);
    for (const [b, nll] of nlls.entries()) expect(nll).toBeCloseTo(mlm + (own?.[b] ?? 0), 5);
    expect(own === undefined).toBe(!nsp);
    const [a, b] = await Promise.all([found.gradient, parts("means").gradient]);
    expect(Math.max(...b.map(Math.abs))).toBeGreaterThan(0.01);
    expect(Math.max(...a.map((g, i) => Math.abs(g - (b[i] ?? 0))))).toBeLessThan(1e-6);
    model.dispose();
  });

  test.each([
    [true, 10],
    [false, 15],
  ])("with next sentence %s N is the source's length, also when the last batch is short", async (nextSentence, N) => {
    const model = await load(nextSentence);
    const source = pretrainingSource(documents, tokenizer, { maxLength: 16, nextSentence });
    expect(source.length).toBe(N);
    const prior = gaussianPrior(model, { encoder: { precision: 5 }, head: { precision: 1 } });
    // A learning rate so small that θ stays where it is; the head's prior has its share all the same.
    const options = { optimizer: sgd({ lr: 1e-6 }), epochs: 1, batch: 4, schedule: "constant" as const, warmup: 0 };
    const reports = [];
    const trainer = new Trainer(logPosterior(model, prior, { N }), source, options);
    for await (const report of trainer.run()) reports.push(report);
    expect(reports.length).toBe(Math.ceil(N / 4));
    for (const { nll, logPrior, logJoint, gradNorm } of reports) {
      // About log V for the masked token and log 2 for the pair: one term's NLL, not the batch's.
      expect(nll).toBeGreaterThan(1);
      expect(nll).toBeLessThan(8);
      expect(logJoint).toBeCloseTo(-N * nll + logPrior, 6);
      expect(gradNorm).toBeGreaterThan(0);
    }
    trainer.dispose();
    prior.dispose();
    model.dispose();
  });
});

describe("the source", () => {
  test("draws pairs and masks from streams named by seed and place: what was pretrained can be made again", () => {
    const source = pretrainingSource(documents, tokenizer, { maxLength: 16, seed: 7 });
    const rows = [4, 0, 9];
    for (const epoch of [0, 1]) {
      const at = { epoch, step: 3 + epoch, micro: 1 };
      const batch = source.batch(rows, at);
      const pairs = nspPairs(documents, new Stream(7, "nsp", epoch));
      const chosen = rows.map((row) => pairs[row] ?? { first: "", second: "", label: 0 });
      const packed = packBatch(chosen.map((p) => tokenizer.encode(p.first, p.second, { maxLength: 16 })));
      const stream = new Stream(7, "mask", at.step, at.micro);
      const masked = maskTokens(packed, { stream, vocabSize: V, maskId: 4, specialIds: [2, 3, 0] });
      expect(batch.ids).toEqual(masked.ids);
      expect(batch.maskedRows).toEqual(masked.positions);
      expect(batch.maskedTargets).toEqual(masked.targets);
      expect(batch.nextSentence).toEqual(Uint32Array.from(chosen, ({ label }) => label));
    }
  });

  test("replaces masked tokens from the model's vocabulary where that is larger than the tokenizer's", () => {
    const highest = (vocabSize?: number) => {
      const source = pretrainingSource(documents, tokenizer, {
        maxLength: 16,
        ...(vocabSize === undefined ? {} : { vocabSize }),
      });
      const batches = Array.from({ length: 40 }, (_, i) => source.batch([0, 1, 2, 3, 4, 5], { ...place, step: i + 1 }));
      return Math.max(...batches.map(({ ids }) => Math.max(...ids)));
    };
    expect(highest()).toBeLessThan(V);
    expect(highest(1000)).toBeGreaterThanOrEqual(V);
  });
});
