import { describe, expect, test } from "vitest";
import { Engine, Layout, ops, Theta } from "../../src/autograd/index.ts";
import { type Example, packBatch } from "../../src/data/batches.ts";
import { fromHost } from "../../src/kernels/index.ts";
import { dropoutMembers, metricsOfPrediction, pointEstimate, predictAll } from "../../src/posterior/members.ts";
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
    logits(batch: ReturnType<typeof packBatch>, keys?: (site: number) => readonly [number, number]) {
      passes++;
      const x = ops.embeddingSum([{ table: theta.tensor("e"), ids: batch.ids }]);
      const m = ops.segmentMean(x, fromHost(engine.gpu, batch.starts));
      return ops.linear(keys ? ops.dropout(m, p, keys(0)) : m, theta.tensor("w"));
    },
  };
}

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
    const point = await pointEstimate(model).predict(batch);
    const logits = await logitsOf(model, EXAMPLES);
    expect(point.logits).toEqual(Float64Array.from(logits));
    expect([...point.epistemic]).toEqual(Array(5).fill(0));
    const many = await dropoutMembers(model, { S: 4 }).predict(batch);
    expect(many.logMean).toEqual(point.logMean);
    expect([...many.epistemic]).toEqual(Array(5).fill(0));
    model.dispose();
  });

  test("S masks are one forward pass and one submit, and each copy has its own", async () => {
    const model = bagOfWords(0.5);
    const { counters } = gpu();
    await gpu().settle();
    const before = { passes: model.passes(), submits: counters.submits };
    const { members, epistemic, aleatoric, total, logMean } = await dropoutMembers(model, { S: 16, seed: 3 }).predict(
      batch,
    );
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
    const predict = (seed: number, index?: number) => dropoutMembers(model, { S: 3, seed }).predict(batch, index);
    const a = await predict(1);
    expect((await predict(1)).logMean).toEqual(a.logMean);
    expect((await predict(2)).logMean).not.toEqual(a.logMean);
    expect((await predict(1, 1)).logMean).not.toEqual(a.logMean);
    model.dispose();
  });

  test("come in several passes where they would not fit in one", async () => {
    const model = bagOfWords(0.5);
    const before = model.passes();
    // 15 tokens a copy: 3 copies in 45 tokens, so 3 + 3 + 1.
    const { members, epistemic } = await dropoutMembers(model, { S: 7, maxTokens: 50 }).predict(batch);
    expect(model.passes() - before).toBe(3);
    expect(members).toBe(7);
    expect(epistemic.every((e) => e > 0)).toBe(true);
    model.dispose();
  });

  test("converge to the expectation over masks, with an error that falls as S^−½", async () => {
    const model = bagOfWords(0.5);
    const one = packBatch(EXAMPLES.slice(0, 1));
    const probability = async (S: number, seed: number) =>
      Math.exp((await dropoutMembers(model, { S, seed }).predict(one)).logMean[0]!);
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
