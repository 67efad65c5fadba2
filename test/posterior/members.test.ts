import { describe, expect, test } from "vitest";
import { Engine, Layout, ops, type Tensor, Theta } from "../../src/autograd/index.ts";
import { type Example, type PackedBatch, packBatch } from "../../src/data/batches.ts";
import { fromHost } from "../../src/kernels/index.ts";
import { heldDraws, readSlices, thetaMembers } from "../../src/posterior/draws.ts";
import { dropoutMembers, pointEstimate } from "../../src/posterior/members.ts";
import { metricsOfPrediction, predict, predictAll } from "../../src/posterior/posterior.ts";
import { evaluate, logitsOf } from "../../src/train/evaluate.ts";
import { logSoftmaxRows } from "../../src/train/metrics.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";

const gpu = gpuForTests();
const [V, C, K] = [11, 8, 3];

/** Embedding → mean over the sequence → dropout → linear: the smallest model of packed batches. */
function bagOfWords(p: number) {
  const engine = new Engine(gpu());
  const theta = new Theta(
    engine,
    new Layout([
      { key: "e", parameters: [{ name: "e", shape: [V, C] }], groups: ["encoder"] },
      { key: "w", parameters: [{ name: "w", shape: [K, C] }], groups: ["head"] },
    ]),
  );
  theta.set("e", randn(1, V * C));
  theta.set("w", randn(2, K * C));
  let passes = 0;
  return {
    engine,
    passes: () => passes,
    dispose: () => theta.dispose(),
    theta,
    features(batch: PackedBatch) {
      passes++;
      const x = ops.embeddingSum([{ table: theta.tensor("e"), ids: batch.ids }]);
      return ops.segmentMean(x, fromHost(engine.gpu, batch.starts));
    },
    classify(features: Tensor, keys?: Keys) {
      return ops.linear(keys ? ops.dropout(features, p, keys(0)) : features, theta.tensor("w"));
    },
    logits(batch: PackedBatch, keys?: Keys) {
      return this.classify(this.features(batch), keys);
    },
  };
}

type Keys = (site: number) => readonly [number, number];

const EXAMPLES: Example[] = [[3, 1, 4], [1, 5], [9, 2, 6, 5], [3], [5, 8, 9, 7, 9]].map((ids, i) => ({
  ids,
  typeIds: ids.map(() => 0),
  label: i % K,
}));

describe("evaluation", () => {
  test("batches change nothing", async () => {
    const model = bagOfWords(0.5);
    const whole = await logitsOf(model, EXAMPLES, { batch: 5 });
    const done: number[] = [];
    const parts = await logitsOf(model, EXAMPLES, { batch: 2, onBatch: (n) => done.push(n) });
    expect(parts).toEqual(whole);
    expect(done.at(-1)).toBe(5);
    const { metrics } = await evaluate(model, EXAMPLES, { batch: 3 });
    const { logp } = logSoftmaxRows(whole, K);
    const nll = -EXAMPLES.reduce((sum, e, i) => sum + logp[i * K + (e.label ?? 0)]!, 0) / 5;
    expect(metrics.nll).toBeCloseTo(nll, 12);
    await expect(evaluate(model, [])).rejects.toThrow(/no examples/);
    await expect(evaluate(model, [{ ids: [1], typeIds: [0] }])).rejects.toThrow(/example 0 has no label/);
    model.dispose();
  });
});

describe("members (checks 11 and 12)", () => {
  const batch = packBatch(EXAMPLES);

  test("one θ without noise is the deterministic prediction; S members without dropout agree with it", async () => {
    const model = bagOfWords(0);
    const point = await predict(pointEstimate(model), [batch]);
    const logits = await logitsOf(model, EXAMPLES);
    expect(point.logits).toEqual(Float64Array.from(logits));
    expect([...point.epistemic]).toEqual(Array(5).fill(0));
    const many = await predict(dropoutMembers(model, { S: 4 }), [batch]);
    expect(many.logMean).toEqual(point.logMean);
    expect([...many.epistemic]).toEqual(Array(5).fill(0));
    model.dispose();
  });

  test("S masks are one forward pass and one submit, and each copy has its own", async () => {
    const model = bagOfWords(0.5);
    const { counters } = gpu();
    await gpu().settle();
    const before = { passes: model.passes(), submits: counters.submits };
    const { members, epistemic, aleatoric, total, logMean } = await predict(dropoutMembers(model, { S: 16, seed: 3 }), [
      batch,
    ]);
    expect(model.passes() - before.passes).toBe(1);
    expect(counters.submits - before.submits).toBe(1);
    expect(members).toBe(16);
    for (let i = 0; i < 5; i++) {
      expect(epistemic[i]).toBeGreaterThan(1e-3);
      const entropy = -[0, 1, 2].reduce((sum, k) => sum + Math.exp(logMean[i * K + k]!) * logMean[i * K + k]!, 0);
      expect(Math.abs(entropy - (epistemic[i]! + aleatoric[i]!))).toBeLessThan(1e-6);
      expect(Math.abs(entropy - total[i]!)).toBeLessThan(1e-6);
    }
    model.dispose();
  });

  test("are the same for the same seed and batch, and others otherwise", async () => {
    const model = bagOfWords(0.5);
    const means = async (seed: number) => {
      const { logMean } = await predict(dropoutMembers(model, { S: 3, seed }), [batch, batch]);
      return [logMean.slice(0, 5 * K), logMean.slice(5 * K)];
    };
    const a = await means(1);
    expect(await means(1)).toEqual(a);
    expect((await means(2))[0]).not.toEqual(a[0]);
    expect(a[1]).not.toEqual(a[0]);
    model.dispose();
  });

  test("come in several passes where they would not fit in one", async () => {
    const model = bagOfWords(0.5);
    const before = model.passes();
    // 15 tokens a copy: 3 copies in 45 tokens, so 3 + 3 + 1.
    const { members, epistemic } = await predict(dropoutMembers(model, { S: 7, maxTokens: 50 }), [batch]);
    expect(model.passes() - before).toBe(3);
    expect(members).toBe(7);
    expect(epistemic.every((e) => e > 0)).toBe(true);
    model.dispose();
  });

  test("converge to the expectation over masks, with an error that falls as S^−½", async () => {
    const model = bagOfWords(0.5);
    const one = packBatch(EXAMPLES.slice(0, 1));
    const probability = async (S: number, seed: number) =>
      Math.exp((await predict(dropoutMembers(model, { S, seed }), [one])).logMean[0]!);
    // 2,048 draws of 2⁸ masks stand for the expectation.
    const mean = await probability(2048, 99);
    const spread = async (S: number) => {
      let square = 0;
      for (let seed = 0; seed < 60; seed++) square += ((await probability(S, seed)) - mean) ** 2;
      return Math.sqrt(square / 60);
    };
    const ratio = (await spread(2)) / (await spread(32));
    expect(ratio).toBeGreaterThan(2.8);
    expect(ratio).toBeLessThan(5.6);
    model.dispose();
  });

  test("of all examples, batch by batch", async () => {
    const model = bagOfWords(0.5);
    const point = await predictAll(pointEstimate(model), EXAMPLES, { batch: 2 });
    expect(point.logits).toEqual(Float64Array.from(await logitsOf(model, EXAMPLES)));
    expect(metricsOfPrediction(point, EXAMPLES)).toEqual((await evaluate(model, EXAMPLES)).metrics);
    const many = await predictAll(dropoutMembers(model, { S: 3 }), EXAMPLES, { batch: 2 });
    expect([many.n, many.K, many.members, many.epistemic.length]).toEqual([5, 3, 3, 5]);
    expect(() => dropoutMembers(model, { S: 0 })).toThrow(/members: 0/);
    model.dispose();
  });
});

describe("members that are values of θ (check 11)", () => {
  const batches = [packBatch(EXAMPLES.slice(0, 3)), packBatch(EXAMPLES.slice(3))];

  for (const [what, keys] of [
    ["the head: one pass of the encoder", ["w"]],
    ["all of θ: a pass a member", ["e", "w"]],
  ] as const) {
    test(`are averaged as probabilities; ${what}`, async () => {
      const model = bagOfWords(0.5);
      const { theta } = model;
      const slices = keys.map((key) => theta.layout.slices[theta.layout.index(key)]!);
      const own = await readSlices(theta, slices);
      const values = [own, randn(8, own.length), randn(9, own.length)];
      const alone: number[][] = [];
      for (const value of values) {
        theta.set("w", value.slice(-K * C));
        if (keys.length === 2) theta.set("e", value.slice(0, V * C));
        alone.push([...logSoftmaxRows(await logitsOf(model, EXAMPLES), K).logp].map(Math.exp));
      }
      theta.set("w", own.slice(-K * C));
      if (keys.length === 2) theta.set("e", own.slice(0, V * C));
      const before = model.passes();
      const shares: number[] = [];
      const found = await predict(thetaMembers(model, heldDraws(slices, values)), batches, (share) =>
        shares.push(share),
      );
      expect(model.passes() - before).toBe(keys.length === 1 ? 2 : 6);
      found.logMean.forEach((logp, i) => {
        expect(Math.exp(logp)).toBeCloseTo((alone[0]![i]! + alone[1]![i]! + alone[2]![i]!) / 3, 6);
      });
      expect(shares.at(-1)).toBe(1);
      expect(await readSlices(theta, slices)).toEqual(own);
      model.dispose();
    });
  }

  test("of the head, hold the vectors of one batch at a time; progress goes up by a member of a batch", async () => {
    const model = bagOfWords(0);
    const { theta } = model;
    const slices = [theta.layout.slices[theta.layout.index("w")]!];
    const three = EXAMPLES.slice(0, 3).map((example) => packBatch([example]));
    const live: number[] = [];
    const shares: number[] = [];
    const draws = heldDraws(slices, [randn(8, K * C), randn(9, K * C)]);
    const found = await thetaMembers(model, draws).logits(three, (share) => {
      live.push(gpu().stats.liveBuffers);
      shares.push(share);
    });
    expect(new Set(live).size).toBe(1);
    expect(shares).toEqual([1, 2, 3, 4, 5, 6].map((done) => done / 6));
    for (const [s, logits] of found.entries()) {
      const one = await thetaMembers(model, heldDraws(slices, [await draws.read(s)])).logits(three);
      expect(one).toEqual([logits]);
    }
    model.dispose();
  });

  test("a draw of another size, and none, are refused; θ is put back after a failure", async () => {
    const model = bagOfWords(0);
    const { theta } = model;
    const slices = [theta.layout.slices[1]!];
    expect(() => heldDraws(slices, [new Float32Array(3)])).toThrow("draw 0 has 3 numbers, its slices have 24");
    expect(() => thetaMembers(model, heldDraws(slices, []))).toThrow(/members: 0/);
    const own = await readSlices(theta, slices);
    const broken = {
      size: 2,
      slices,
      read: (s: number) => (s === 0 ? randn(1, 24) : Promise.reject(new Error("gone"))),
    };
    await expect(predict(thetaMembers(model, broken), batches)).rejects.toThrow("gone");
    expect(await readSlices(theta, slices)).toEqual(own);
    model.dispose();
  });
});
