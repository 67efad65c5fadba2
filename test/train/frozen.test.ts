/** @file A frozen encoder's vectors, computed once, are those that every step would compute again. */
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { loadTokenizer, readTable } from "../../src/data/load.ts";
import { BertForSequenceClassification, type HeadSpec } from "../../src/model/bert.ts";
import { Trainer } from "../../src/train/fit.ts";
import { frozenFeatures } from "../../src/train/frozen.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { adam } from "../../src/train/optimizers.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { exampleSource } from "../../src/train/source.ts";
import { gpuForTests } from "../kernels/harness.ts";

const gpu = gpuForTests();
const folder = fileURLToPath(new URL("../../examples/default", import.meta.url));
const tokenizer = loadTokenizer(`${folder}/model`);
const { texts, labels = [] } = readTable(`${folder}/train.tsv`, { needLabels: true });
// 37: the features are computed in two chunks, and the last batch is short.
const EXAMPLES = texts
  .slice(0, 37)
  .map((text, i) => ({ ...tokenizer.encode(text), label: Number(labels[i] === "pleased") }));

async function train(readout: string, head: HeadSpec, precision: number, long: boolean) {
  const model = await BertForSequenceClassification.load(new Engine(gpu()), `${folder}/model`, {
    labels: 2,
    readout,
    head,
  });
  const prior = gaussianPrior(model, { encoder: { precision }, head: { precision: 1 } });
  const trainer = new Trainer(logPosterior(model, prior, { N: 37 }), long ? exampleSource(EXAMPLES) : EXAMPLES, {
    optimizer: adam({ lr: 1e-3, headLr: 1e-2 }),
    epochs: 2,
    batch: 16,
    seed: 3,
  });
  const cached = frozenFeatures(model, EXAMPLES) !== undefined;
  const reports = [];
  for await (const report of trainer.run()) reports.push(report);
  const names = model.theta.layout.names.filter((name) => /classifier|head/.test(name));
  const weights = await Promise.all(names.map((name) => model.theta.get(name)));
  trainer.dispose();
  prior.dispose();
  model.dispose();
  return { weights, reports, cached };
}

test.each([
  ["pooler", "linear"],
  ["mean", "mlp:6"],
  ["last2-concat-max", "linear"],
] as const)("%s, %s: the same bits as the long way, with dropout in the head", async (readout, head) => {
  const short = await train(readout, head, Number.POSITIVE_INFINITY, false);
  const long = await train(readout, head, Number.POSITIVE_INFINITY, true);
  expect(short.weights).toEqual(long.weights);
  expect(short.reports.map((r) => r.nll)).toEqual(long.reports.map((r) => r.nll));
  // The first step computes the vectors; every other has the head alone.
  expect(short.reports[1]?.dispatches).toBeLessThanOrEqual((long.reports[1]?.dispatches ?? 0) - 10);
  expect(short.reports.map((r) => r.tokensPerSecond > 0)).not.toContain(false);
});

test("an encoder that learns is asked anew in every step", async () => {
  const { cached } = await train("pooler", "linear", 300, false);
  expect(cached).toBe(false);
});
