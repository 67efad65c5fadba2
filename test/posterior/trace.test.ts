/** @file A trace: its two forms, what it says of chains of unequal length, and logits of fixed sentences against θ's own. */
import { expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { packBatch } from "../../src/data/batches.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { diagnose } from "../../src/posterior/diagnostics.ts";
import { sgld } from "../../src/posterior/samplers.ts";
import {
  diagnoseTrace,
  sentenceLogits,
  traceChains,
  traceCsv,
  traceJson,
  traceRows,
} from "../../src/posterior/trace.ts";
import { trajectory } from "../../src/posterior/trajectory.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";
import { tinyCheckpoint } from "../model/tiny.ts";

const gpu = gpuForTests();
const z = randn(3, 18);
/** Two chains, of five draws and of four. */
const DRAWS = Array.from({ length: 9 }, (_, i) => ({
  chain: i < 5 ? 0 : 1,
  draw: i % 5,
  functionals: { nll: z[i]!, "logit.0.1": z[9 + i]! },
}));

test("is a line for each draw and variable, as CSV and as JSON", () => {
  const csv = traceCsv(DRAWS).trimEnd().split("\n");
  expect([csv[0], csv[1], csv.length]).toEqual(["chain,draw,variable,value", `0,0,nll,${z[0]}`, 1 + 18]);
  const rows = JSON.parse(traceJson(DRAWS));
  expect(rows).toEqual(traceRows(DRAWS));
  expect(rows[11]).toEqual({ chain: 1, draw: 0, variable: "logit.0.1", value: z[14] });
  expect(JSON.parse(traceJson([]))).toEqual([]);
});

test("is diagnosed variable by variable, over as many draws as the shortest chain has, from four", () => {
  const chains = traceChains(traceRows(DRAWS)).get("logit.0.1")!;
  expect(chains.map(({ length }) => length)).toEqual([5, 4]);
  const found = diagnoseTrace(traceRows(DRAWS));
  expect(Object.keys(found)).toEqual(["nll", "logit.0.1"]);
  expect(found["logit.0.1"]).toEqual(diagnose(chains.map((chain) => chain.slice(0, 4))));
  expect(found["logit.0.1"]?.rhat).toBeGreaterThan(0);
  expect(diagnoseTrace(traceRows(DRAWS.slice(0, -1)))).toEqual({});
});

test("logits of fixed sentences are those of each draw, with and without a kept encoder", async () => {
  const checkpoint = tinyCheckpoint({ layers: 1, hidden: 16 });
  const bert = await BertForSequenceClassification.load(new Engine(gpu()), checkpoint, { labels: 3 });
  const prior = gaussianPrior(bert, { encoder: { precision: Number.POSITIVE_INFINITY }, head: { precision: 1 } });
  const examples = [0, 1, 2, 3, 4].map((i) => ({ ids: [2, 5 + i, 3], typeIds: [0, 0, 0], label: i % 3 }));
  const batch = packBatch(examples.slice(0, 2));
  const [kept, whole] = [sentenceLogits(bert, batch, { headOnly: true }), sentenceLogits(bert, batch)];
  const few = sentenceLogits(bert, batch, { headOnly: true, classes: 2 });
  const options = {
    sampler: (seed: number) => sgld({ lr: 0.1, N: 5, seed }),
    ...{ draws: 2, thin: 2, batch: 5 },
    functionals: async () => {
      const [own, again] = [await kept.read(), await whole.read()];
      expect(own).toEqual(again);
      expect(await few.read()).toEqual(
        Object.fromEntries(Object.entries(own).filter(([name]) => !name.endsWith(".2"))),
      );
      return own;
    },
  };
  const seen: number[] = [];
  for await (const { values, functionals } of trajectory(logPosterior(bert, prior, { N: 5 }), examples, options)) {
    const names = ["logit.0.0", "logit.0.1", "logit.0.2", "logit.1.0", "logit.1.1", "logit.1.2"];
    expect(Object.keys(functionals)).toEqual(["nll", "logPrior", "logJoint", "distance.head", ...names]);
    const { read } = bert.engine.step(() => bert.engine.noGrad(() => ({ read: bert.features(batch).read() })));
    const x = await read;
    // W [3, 16], then b [3], by hand in float64.
    for (const [i, name] of names.entries()) {
      const [row, k] = [Math.floor(i / 3), i % 3];
      let logit = values[3 * 16 + k]!;
      for (let c = 0; c < 16; c++) logit += values[16 * k + c]! * x[16 * row + c]!;
      expect(Math.abs(functionals[name]! - logit)).toBeLessThan(1e-5);
    }
    seen.push(functionals["logit.0.0"]!);
  }
  expect(new Set(seen).size).toBe(2);
  for (const logits of [kept, whole, few]) logits.dispose();
  prior.dispose();
  bert.dispose();
});
