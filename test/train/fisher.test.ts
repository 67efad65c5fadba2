/** @file Fisher informations against closed forms in float64, each within its own standard error. */
import { EigenvalueDecomposition, Matrix } from "ml-matrix";
import { describe, expect, test } from "vitest";
import { Engine, Layout, ops, Theta } from "../../src/autograd/index.ts";
import { packBatch } from "../../src/data/batches.ts";
import { InputError } from "../../src/errors.ts";
import { fromHost } from "../../src/kernels/index.ts";
import { BertForPreTraining } from "../../src/model/pretraining.ts";
import { classifierScores, FisherCollector, featureScores, pretrainingScores, type Scores } from "../../src/train/fisher.ts"; // biome-ignore format: one line
import { lowRankPrior } from "../../src/train/shaped-priors.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";
import { tinyCheckpoint } from "../model/tiny.ts";

const gpu = gpuForTests();

// Softmax regression: W [K, d], logits Wx.
const [K, d, n] = [3, 4, 6];
const W = randn(1, K * d, 0.6);
const X = randn(2, n * d);

function softmax(engine: Engine) {
  const theta = new Theta(engine, new Layout([{ key: "W", parameters: [{ name: "W", shape: [K, d] }], groups: ["head"] }])); // biome-ignore format: one line
  theta.set("W", W);
  return {
    engine,
    theta,
    logits: (x: Float32Array) => ops.linear(engine.tensor(x, [x.length / d, d]), theta.tensor("W")),
    features: (x: Float32Array) => ops.linear(engine.tensor(x, [x.length / d, d]), theta.tensor("W"), { activation: "tanh" }), // biome-ignore format: one line
  };
}

/** Σ over rows of (diag p − ppᵀ) ⊗ xxᵀ: [Kd][Kd]. */
function exact(x: Float32Array): number[][] {
  const F = Array.from({ length: K * d }, () => new Array<number>(K * d).fill(0));
  for (let r = 0; r < x.length / d; r++) {
    const z = Array.from({ length: K }, (_, k) => Math.exp(Array.from({ length: d }, (_, j) => W[k * d + j]! * x[r * d + j]!).reduce((a, b) => a + b))); // biome-ignore format: a formula
    const p = z.map((e) => e / z.reduce((a, b) => a + b));
    for (let a = 0; a < K * d; a++)
      for (let b = 0; b < K * d; b++) {
        const [k, j, l, m] = [Math.floor(a / d), a % d, Math.floor(b / d), b % d];
        F[a]![b]! += ((k === l ? p[k]! : 0) - p[k]! * p[l]!) * x[r * d + j]! * x[r * d + m]!;
      }
  }
  return F;
}

async function collect<B>(scores: Scores<B>, batch: B, draws: number, rank = 0, seed = 1) {
  const collector = new FisherCollector(scores, { rank, seed });
  for (let i = 0; i < draws; i++) await collector.add(batch);
  return collector;
}

test("softmax regression: the diagonal of (diag p − ppᵀ) ⊗ xxᵀ, one backward a batch (check 6)", async () => {
  const model = softmax(new Engine(gpu()));
  const draws = 1500;
  const collector = await collect(classifierScores(model), X, draws);
  expect(collector.terms).toBe(draws * n);
  const { diagonal } = await collector.numbers({ N: n, damping: 0 });
  const found = diagonal.get("W") as Float32Array;
  const F = exact(X);
  // Of a sum of many scores the square has a variance of about 2F² (χ²₁ times F), and never more for bounded scores.
  const z = F.map((row, i) => (found[i]! / row[i]! - 1) / Math.sqrt(2 / draws));
  expect(Math.max(...z.map(Math.abs))).toBeLessThan(4.5);
  // An estimate with the data's labels, or with cross terms, would be off by far more than the mean of these.
  expect(Math.abs(z.reduce((a, b) => a + b) / z.length)).toBeLessThan(2.5);
  collector.dispose();
  model.theta.dispose();
});

test("with the data's labels the square of a batch's gradient is no Fisher information: the check above would see it", async () => {
  const engine = new Engine(gpu());
  const model = softmax(engine);
  const labels = Uint32Array.from({ length: n }, (_, i) => i % K);
  const collector = await collect<Float32Array>(
    { engine, theta: model.theta, draw: (x) => ({ loss: ops.sum(ops.crossEntropy(model.logits(x), fromHost(engine.gpu, labels))), count: n }) }, // biome-ignore format: one object
    X,
    2,
  );
  const found = (await collector.numbers({ N: n, damping: 0 })).diagonal.get("W") as Float32Array;
  const z = exact(X).map((row, i) => (found[i]! / row[i]! - 1) / Math.sqrt(2 / 1500));
  expect(Math.max(...z.map(Math.abs))).toBeGreaterThan(20);
  collector.dispose();
  model.theta.dispose();
});

test("a batch is refused while the one before is under way, and counts nothing", async () => {
  const model = softmax(new Engine(gpu()));
  const [hasty, patient] = [0, 1].map(() => new FisherCollector(classifierScores(model), { seed: 1 }));
  const first = hasty!.add(X);
  await expect(hasty!.add(X)).rejects.toThrow("add: a batch is under way");
  await expect(hasty!.numbers({ N: n, damping: 0 })).rejects.toThrow("numbers: a batch is under way");
  await first;
  await patient!.add(X);
  const both = [hasty!, patient!];
  for (const collector of both) await collector.add(X);
  const [one, two] = await Promise.all(both.map((collector) => collector.numbers({ N: n, damping: 0 })));
  expect([one, hasty!.terms]).toEqual([two, 2 * n]);
  for (const collector of both) collector.dispose();
  model.theta.dispose();
});

test("with as many columns as parameters the whole matrix; with fewer its largest directions, and all of the diagonal", async () => {
  const model = softmax(new Engine(gpu()));
  const draws = 400;
  const scores = classifierScores(model);
  const whole = await collect(scores, X, draws, K * d);
  const diagonalOnly = await collect(scores, X, draws);
  const [full, plain] = [
    await whole.numbers({ N: n, damping: 0.5 }),
    await diagonalOnly.numbers({ N: n, damping: 0.5 }),
  ];
  const U = full.factors.get("W") as Float32Array;
  const outer = (U: Float32Array, k: number) =>
    Array.from({ length: K * d }, (_, a) => Array.from({ length: K * d }, (_, b) => Array.from({ length: k }, (_, j) => U[j * K * d + a]! * U[j * K * d + b]!).reduce((s, x) => s + x, 0))); // biome-ignore format: a formula
  const found = outer(U, K * d);
  const F = exact(X);
  for (let a = 0; a < K * d; a++)
    for (let b = 0; b < K * d; b++) {
      // A product of two scores: variance F_aa F_bb + F_ab² (of Gaussians) over the draws.
      const error = Math.sqrt((F[a]![a]! * F[b]![b]! + F[a]![b]! ** 2) / draws);
      expect(Math.abs(found[a]![b]! - F[a]![b]!), `${a}, ${b}`).toBeLessThan(4.5 * error);
    }
  for (const [i, x] of (plain.diagonal.get("W") as Float32Array).entries()) {
    const [own, low] = [(full.diagonal.get("W") as Float32Array)[i]!, found[i]![i]!];
    expect(Math.abs(own + low - x)).toBeLessThan(1e-5 * x);
    expect(own).toBeGreaterThanOrEqual(0.5);
    expect(own).toBeLessThan(0.5 + 1e-4 * x);
  }

  // Rank 2: the same draws, so the best rank-2 part of `found` is what a turn after each 4 batches comes close to.
  const few = await collect(scores, X, draws, 2);
  const two = await few.numbers({ N: n, damping: 0.5 });
  const low = outer(two.factors.get("W") as Float32Array, 2);
  const values = (S: number[][]) => [...new EigenvalueDecomposition(new Matrix(S), { assumeSymmetric: true }).realEigenvalues].sort((a, b) => b - a); // biome-ignore format: one line
  const [best, kept] = [values(found), values(low)];
  expect(kept[0]!).toBeLessThan(best[0]! * (1 + 1e-5));
  expect(kept[0]!).toBeGreaterThan(0.8 * best[0]!);
  expect(kept[1]!).toBeGreaterThan(0.5 * best[1]!);
  for (const [i, x] of (plain.diagonal.get("W") as Float32Array).entries())
    expect(Math.abs((two.diagonal.get("W") as Float32Array)[i]! + low[i]![i]! - x)).toBeLessThan(1e-5 * x);
  for (const one of [whole, diagonalOnly, few]) one.dispose();
  model.theta.dispose();
});

test("features: JᵀJ/σ² for v ~ N(tanh(Wx), σ²I)", async () => {
  const model = softmax(new Engine(gpu()));
  const draws = 1500;
  const sigma = 0.5;
  const collector = await collect(featureScores(model, { sigma }), X, draws);
  const found = (await collector.numbers({ N: n, damping: 0 })).diagonal.get("W") as Float32Array;
  for (let k = 0; k < K; k++)
    for (let j = 0; j < d; j++) {
      let F = 0;
      for (let r = 0; r < n; r++) {
        const u = Math.tanh(Array.from({ length: d }, (_, m) => W[k * d + m]! * X[r * d + m]!).reduce((a, b) => a + b));
        F += (((1 - u * u) * X[r * d + j]!) / sigma) ** 2;
      }
      expect(Math.abs(found[k * d + j]! / F - 1), `${k}, ${j}`).toBeLessThan(4.5 * Math.sqrt(2 / draws));
    }
  collector.dispose();
  model.theta.dispose();
});

describe("of masked tokens and next sentences", () => {
  async function pretraining() {
    const model = await BertForPreTraining.load(new Engine(gpu()), tinyCheckpoint({ layers: 1, hidden: 8 }), { nextSentence: true }); // biome-ignore format: one line
    const texts = [[1, 7, 9, 2, 11, 2], [1, 8, 2, 12, 13, 14, 2]]; // biome-ignore format: a table
    const packed = packBatch(texts.map((ids) => ({ ids: Uint32Array.from(ids), typeIds: Uint32Array.from(ids, (_, i) => (i > 3 ? 1 : 0)), truncated: false }))); // biome-ignore format: one line
    const batch = { ...packed, maskedRows: Uint32Array.of(1, 8, 9), maskedTargets: Uint32Array.of(7, 2, 12), nextSentence: Uint32Array.of(0, 1) }; // biome-ignore format: one line
    return { model, batch };
  }

  test("the output biases: Σ p(1 − p) over masked tokens, and over pairs", async () => {
    const { model, batch } = await pretraining();
    const draws = 800;
    const collector = await collect(pretrainingScores(model), batch, draws);
    expect(collector.terms).toBe(2 * draws);
    const { diagonal } = await collector.numbers({ N: 2, damping: 0 });
    const { read } = model.engine.step(() => {
      const { predictions, relationship } = model.loss(batch);
      return { read: Promise.all([predictions.read(), relationship!.read()]) };
    });
    const [tokens, pairs] = await read;
    for (const [name, logits, k, rows] of [
      ["cls.predictions.bias", tokens, 40, 3],
      ["cls.seq_relationship.bias", pairs, 2, 2],
    ] as const) {
      // biome-ignore format: a table
      const F = new Array<number>(k).fill(0);
      for (let r = 0; r < rows; r++) {
        const z = Array.from(logits!.subarray(r * k, (r + 1) * k), Math.exp);
        const total = z.reduce((a, b) => a + b);
        for (const [j, e] of z.entries()) F[j]! += (e / total) * (1 - e / total);
      }
      const found = diagonal.get(name) as Float32Array;
      // A rare token's square is mostly 0 and sometimes 1: variance about F (and 3F² at most of a common one).
      for (const [j, f] of F.entries())
        expect(Math.abs(found[j]! - f), `${name} ${j}`).toBeLessThan(4.5 * Math.sqrt((f + 3 * f * f) / draws));
    }
    collector.dispose();
    model.dispose();
  });

  test("becomes a prior of the encoder: what the text did not inform keeps the damping, frozen heads have none", async () => {
    const { model, batch } = await pretraining();
    model.theta.freeze((slice) => slice.groups[0] === "head");
    const collector = await collect(pretrainingScores(model), batch, 30, 3);
    const numbers = await collector.numbers({ N: 500, damping: 25 }, (name) => name.startsWith("bert."));
    collector.dispose();
    model.theta.freeze(() => false);
    expect([...numbers.diagonal.keys()].every((name) => name.startsWith("bert."))).toBe(true);
    const positions = numbers.diagonal.get("bert.embeddings.position_embeddings.weight") as Float32Array;
    expect(positions.subarray(0, 8 * 6).every((x) => x >= 25)).toBe(true);
    expect(positions.subarray(0, 8 * 6).some((x) => x > 25)).toBe(true);
    // Positions from 7 on are in no text.
    expect(new Set(positions.subarray(8 * 7))).toEqual(new Set([25]));
    const prior = lowRankPrior(model, { encoder: { precision: 1 }, head: { precision: 1 } }, numbers);
    expect(prior.density?.name).toBe("rank 3");
    expect(Number.isFinite(prior.logConstant)).toBe(true);
    prior.dispose();
    model.dispose();
  });
});

test("the same seed gives the same numbers, another one others; refusals", async () => {
  const model = softmax(new Engine(gpu()));
  const scores = classifierScores(model);
  const numbers = async (seed: number) => {
    const collector = await collect(scores, X, 5, 1, seed);
    const found = await collector.numbers({ N: 10, damping: 1 });
    collector.dispose();
    return [...(found.diagonal.get("W") as Float32Array), ...(found.factors.get("W") as Float32Array)];
  };
  expect(await numbers(3)).toEqual(await numbers(3));
  expect(await numbers(3)).not.toEqual(await numbers(4));
  const empty = new FisherCollector(scores);
  await expect(empty.numbers({ N: 1, damping: 0 })).rejects.toThrow(/no batch was seen/);
  await empty.add(X);
  await expect(empty.numbers({ N: 0, damping: 0 })).rejects.toThrow(/N is 0/);
  await expect(empty.numbers({ N: 1, damping: -1 })).rejects.toThrow(/damping is -1/);
  empty.dispose();
  expect(() => new FisherCollector(scores, { rank: 1.5 })).toThrow(InputError);
  expect(() => featureScores(model, { sigma: 0 })).toThrow(/sigma: 0/);
  model.theta.set("W", new Float32Array(K * d).fill(Number.NaN));
  const damaged = new FisherCollector(scores);
  await expect(damaged.add(X)).rejects.toThrow(/batch 1 is NaN/);
  damaged.dispose();
  model.theta.dispose();
});

test.each([0, 1])("a gradient that is no number is refused, not written (rank %i)", async (rank) => {
  const engine = new Engine(gpu());
  const theta = new Theta(
    engine,
    new Layout([{ key: "w", parameters: [{ name: "w", shape: [4] }], groups: ["head"] }]),
  );
  // The loss is 0; its gradient 10⁶⁰ − 10⁶⁰, which in f32 is ∞ − ∞.
  const draw = () => {
    const times = (x: number) => engine.tensor(new Float32Array(4).fill(x), [4]);
    const along = (x: number) => ops.multiply(ops.multiply(theta.tensor("w"), times(1e30)), times(x));
    return { loss: ops.sum(ops.add(along(1e30), along(-1e30))), count: 1 };
  };
  const collector = new FisherCollector({ engine, theta, draw }, { rank });
  await expect(
    (async () => {
      for (let i = 0; i < 2; i++) await collector.add(undefined);
      await collector.numbers({ N: 1, damping: 1 });
    })(),
  ).rejects.toThrow(/^fisher: the (score|information) of .* is not finite/);
  collector.dispose();
  theta.dispose();
});
