/** @file Rank-one members: each is the θ it stands for, they are trained together, and the shared model is left alone. */
import { describe, expect, test } from "vitest";
import { Engine, ops } from "../../src/autograd/index.ts";
import { packBatch } from "../../src/data/batches.ts";
import { NdArray, readArray } from "../../src/kernels/index.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { exportTensors } from "../../src/model/load.ts";
import {
  MEMBERS_GROUP,
  memberPrecision,
  type RankOne,
  rankOneLayers,
  spreadMembers,
} from "../../src/model/rank-one.ts";
import { readSlices, thetaMembers, writeSlices } from "../../src/posterior/draws.ts";
import { pointEstimate } from "../../src/posterior/members.ts";
import { predictAll } from "../../src/posterior/posterior.ts";
import { rankOneDraws, rankOneMembers } from "../../src/posterior/rank-one.ts";
import { adam, gaussianPrior, logPosterior, fit as train } from "../../src/train/index.ts";
import { exampleSource } from "../../src/train/source.ts";
import { expectClose, gpuForTests, randn } from "../kernels/harness.ts";
import { tinyCheckpoint } from "./tiny.ts";

const gpu = gpuForTests();
const EXAMPLES = [[3, 1, 4], [1, 5], [9, 2, 6, 5], [3], [5, 8, 9, 7, 9]].map((ids, i) => ({
  ids,
  typeIds: ids.map(() => 0),
  label: i % 3,
}));
const BATCH = packBatch(EXAMPLES);
const S = 3;

async function bert(
  rankOne: RankOne | undefined,
  more: { readout?: string; head?: "mlp:5"; recompute?: boolean } = {},
) {
  const model = await BertForSequenceClassification.load(new Engine(gpu()), tinyCheckpoint(), { labels: 3, rankOne, ...more }); // biome-ignore format: one call
  // A new head starts so near 0 that nothing would be seen of its members.
  for (const name of model.report.missing) model.theta.set(name, randn(3, model.theta.layout.parameter(name).size));
  if (rankOne) spreadMembers(model.theta, { precision: 10, seed: 2 });
  return model;
}

describe.each<[string, RankOne, Parameters<typeof bert>[1]]>([
  ["the head", { members: S }, {}],
  ["a head with a hidden layer", { members: S, layers: "head" }, { head: "mlp:5", readout: "mean" }],
  ["every linear layer", { members: S, layers: "all" }, {}],
])("members of %s", (_, rankOne, more) => {
  test("in one pass answer as each does alone, by the W ⊙ r sᵀ it stands for", async () => {
    const model = await bert(rankOne, more);
    const together = await rankOneMembers(model).logits([BATCH, packBatch(EXAMPLES.slice(2))]);
    const draws = await rankOneDraws(model);
    const alone = await thetaMembers(model, draws).logits([BATCH, packBatch(EXAMPLES.slice(2))]);
    expect([together.length, draws.size]).toEqual([S, S]);
    for (let m = 0; m < S; m++) {
      // Products of the same numbers, rounded before or after the sum.
      expectClose(together[m] ?? [], alone[m] ?? [], { rtol: 1e-4, atol: 2e-5 });
      const others = together[(m + 1) % S] ?? [];
      expect(Math.max(...(together[m] ?? []).map((z, i) => Math.abs(z - (others[i] ?? 0))))).toBeGreaterThan(1e-2);
    }
    const { members, epistemic } = await predictAll(rankOneMembers(model), EXAMPLES, { batch: 2 });
    expect(members).toBe(S);
    expect(Math.min(...epistemic)).toBeGreaterThan(0);
    model.dispose();
  });

  test("are trained on the mean of their NLLs, one likelihood term a sentence", async () => {
    const model = await bert(rankOne, more);
    const together = await rankOneMembers(model).logits([BATCH]);
    const expected = EXAMPLES.map(({ label }, b) => {
      const nlls = together.map((logits) => {
        const row = [...logits.subarray(3 * b, 3 * b + 3)];
        return Math.log(row.reduce((sum, z) => sum + Math.exp(z), 0)) - (row[label] ?? 0);
      });
      return nlls.reduce((a, b) => a + b) / S;
    });
    const { read, count } = model.engine.step(() => {
      const { nlls, count } = model.loss(BATCH);
      return { read: nlls.read(), count };
    });
    expect(count).toBe(5);
    expectClose(await read, expected, { rtol: 1e-5, atol: 1e-5 });
    model.dispose();
  });

  test("have the gradient that differences have, their vectors and the shared weights", async () => {
    const model = await bert(rankOne, more);
    const { theta, engine } = model;
    const upstream = randn(5, 5);
    const value = async () => {
      const { read } = engine.step(() => engine.noGrad(() => ({ read: model.loss(BATCH).nlls.read() })));
      return (await read).reduce((sum, nll, b) => sum + nll * (upstream[b] ?? 0), 0);
    };
    theta.zeroGradient();
    const { gradient } = engine.step(() => {
      const weights = Float32Array.from(upstream);
      engine.backward(ops.sum(model.loss({ ...BATCH, weights }).nlls));
      return { gradient: readArray(gpu(), new NdArray(theta.gradient().buffer, 0, [theta.layout.length])) };
    });
    const g = await gradient;
    const layers = rankOneLayers(theta.layout);
    for (const slice of layers.flatMap(({ weight, bias, r, s }) => [weight, bias, r, s])) {
      const own = await readSlices(theta, [slice]);
      const direction = randn(6 + slice.offset, slice.size);
      const norm = Math.sqrt(direction.reduce((sum, d) => sum + d * d, 0));
      const h = 0.02 / norm;
      const moved = async (k: number) => {
        writeSlices(
          theta,
          [slice],
          own.map((v, i) => v + k * h * (direction[i] ?? 0)),
        );
        return value();
      };
      const [a, b, c, d] = [await moved(1), await moved(-1), await moved(2), await moved(-2)];
      writeSlices(theta, [slice], own);
      // Fourth order; float32 results of about 5 leave 1e-6 over h = .02 along the unit direction.
      const numeric = (8 * (a - b) - (c - d)) / (12 * 0.02);
      const analytic = direction.reduce((sum, v, i) => sum + (v / norm) * (g[slice.offset + i] ?? 0), 0);
      expect(Math.abs(numeric - analytic), slice.key).toBeLessThan(5e-4 + 5e-3 * Math.abs(analytic));
    }
    model.dispose();
  });
});

describe("the shared model", () => {
  test("answers by itself, as if it had no members, and is all that a checkpoint holds", async () => {
    const [plain, shared] = [await bert(undefined), await bert({ members: S, layers: "all" })];
    const own = await predictAll(pointEstimate(shared), EXAMPLES);
    expect(own.logits).toEqual((await predictAll(pointEstimate(plain), EXAMPLES)).logits);
    const names = [];
    for await (const { name } of exportTensors(shared.theta)) names.push(name);
    expect(names).toEqual(plain.theta.layout.names);
    expect(shared.report).toEqual(plain.report);
    plain.dispose();
    shared.dispose();
  });

  test("a layer run again in the backward changes nothing", async () => {
    const gradients = [];
    for (const recompute of [false, true]) {
      const model = await bert({ members: S, layers: "all" }, { recompute });
      model.theta.zeroGradient();
      const { read } = model.engine.step(() => {
        model.engine.backward(ops.sum(model.loss(BATCH).nlls));
        return { read: readArray(gpu(), model.theta.gradient()) };
      });
      gradients.push(await read);
      model.dispose();
    }
    expect(gradients[1]).toEqual(gradients[0]);
  });
});

describe("training", () => {
  const options = { optimizer: adam({ lr: 1e-3, lrs: { head: 1e-2, members: 1e-2 } }), epochs: 3, batch: 2, seed: 7 };
  const target = async (frozen: boolean, layers: "head" | "all" = "head") => {
    // The prior before the spread: its mean is 1.
    const model = await BertForSequenceClassification.load(new Engine(gpu()), tinyCheckpoint({ dropout: 0.1 }), { labels: 3, rankOne: { members: S, layers } }); // biome-ignore format: one call
    const prior = gaussianPrior(model, {
      encoder: { precision: frozen ? Number.POSITIVE_INFINITY : 10 },
      head: { precision: 1 },
      members: { precision: memberPrecision(100, S) },
    });
    spreadMembers(model.theta, { precision: 100 });
    return { model, target: logPosterior(model, prior, { N: EXAMPLES.length }) };
  };

  test.each(["head", "all"] as const)("moves every member and the shared weights (%s)", async (layers) => {
    const { model, target: posterior } = await target(false, layers);
    const { theta } = model;
    const learning = theta.layout.slices.filter(({ groups, table }) => groups[0] !== "encoder" || !table);
    const before = await readSlices(theta, learning);
    const nlls = [];
    for await (const { nll } of train(posterior, EXAMPLES, { ...options, epochs: 12, dropout: false })) nlls.push(nll);
    const mean = (values: number[]) => values.reduce((a, b) => a + b) / values.length;
    expect(mean(nlls.slice(-3))).toBeLessThan(mean(nlls.slice(0, 3)));
    let at = 0;
    const after = await readSlices(theta, learning);
    for (const { key, size, groups, shape } of learning) {
      const change = after.subarray(at, at + size).map((v, i) => v - (before[at + i] ?? 0));
      at += size;
      if (groups[0] !== MEMBERS_GROUP) continue;
      for (let m = 0; m < S; m++) {
        const own = change.subarray((m * size) / S, ((m + 1) * size) / S);
        expect(Math.max(...own.map(Math.abs)), `${key} [${shape}], member ${m}`).toBeGreaterThan(1e-4);
      }
    }
    model.dispose();
  });

  test("on vectors computed once is that on texts, where the encoder is frozen and the head alone has members", async () => {
    const reports = [];
    for (const data of [EXAMPLES, exampleSource(EXAMPLES)]) {
      const { model, target: posterior } = await target(true);
      const own = [];
      for await (const { nll, logPrior, dispatches } of train(posterior, data, options)) own.push({ nll, logPrior, dispatches }); // biome-ignore format: one loop
      reports.push(own);
      model.dispose();
    }
    const [fast = [], slow = []] = reports;
    expect(fast.at(-1)?.dispatches).toBeLessThan(slow.at(-1)?.dispatches ?? 0);
    fast.forEach(({ nll, logPrior }, i) => {
      expect(nll).toBeCloseTo(slow[i]?.nll ?? 0, 5);
      expect(logPrior).toBeCloseTo(slow[i]?.logPrior ?? 0, 5);
    });
  });
});

test("members start 1/√τ around 1, by seed; one member, a precision of 0 and a model without members are refused", async () => {
  const model = await bert({ members: 8, layers: "all" });
  const { theta } = model;
  const slices = theta.layout.slices.filter(({ groups }) => groups[0] === MEMBERS_GROUP);
  spreadMembers(theta, { precision: 25, seed: 1 });
  const values = await readSlices(theta, slices);
  const mean = values.reduce((a, b) => a + b) / values.length;
  const sd = Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length);
  // 3,000 numbers and more: the standard error is .2 / √3000.
  expect(Math.abs(mean - 1)).toBeLessThan(0.016);
  expect(Math.abs(sd - 0.2)).toBeLessThan(0.012);
  spreadMembers(theta, { precision: 25, seed: 1 });
  expect(await readSlices(theta, slices)).toEqual(values);
  spreadMembers(theta, { precision: 25, seed: 2 });
  expect(await readSlices(theta, slices)).not.toEqual(values);
  expect(() => spreadMembers(theta, { precision: 0 })).toThrow("member precision: 0 (expected a number above 0)");
  await expect(bert({ members: 1 })).rejects.toThrow("members: 1 (expected a whole number from 2)");
  model.dispose();
  const plain = await bert(undefined);
  expect(() => rankOneMembers(plain)).toThrow("the model was made without them");
  plain.dispose();
});
