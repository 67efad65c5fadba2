/** @file R-Drop (check 15): its divergence and gradient against float64, its steps replayed, 0 without dropout, refusals. */
import { describe, expect, test } from "vitest";
import { Engine, Layout, ops, Theta } from "../../src/autograd/index.ts";
import { InputError } from "../../src/errors.ts";
import { dropoutReference } from "../../src/kernels/dropout.ts";
import { fromHost } from "../../src/kernels/index.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { sgld } from "../../src/posterior/samplers.ts";
import { streamKey } from "../../src/random.ts";
import { type FitOptions, type StepReport, Trainer } from "../../src/train/fit.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { adam, sgd } from "../../src/train/optimizers.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { symmetricKl } from "../../src/train/rdrop.ts";
import { exampleSource } from "../../src/train/source.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";
import { tinyCheckpoint } from "../model/tiny.ts";
import { classes, linearRegression, type Rows, regression, rowSource, type Toy } from "./toys.ts";

const gpu = gpuForTests();

/** log softmax of one row, float64. */
function logSoftmax(z: readonly number[]): number[] {
  const top = Math.max(...z);
  const lse = top + Math.log(z.reduce((sum, x) => sum + Math.exp(x - top), 0));
  return z.map((x) => x - lse);
}

/** KL(p₁‖p₂) + KL(p₂‖p₁) of two rows of logits, and its gradients: ∂/∂z₁ = p₁ ⊙ (log p₁ − log p₂ − KL(p₁‖p₂)) + p₁ − p₂. */
function divergence(z1: readonly number[], z2: readonly number[]): { value: number; dz1: number[]; dz2: number[] } {
  const [l1, l2] = [logSoftmax(z1), logSoftmax(z2)];
  const kl = (a: number[], b: number[]) => a.reduce((sum, x, k) => sum + Math.exp(x) * (x - b[k]!), 0);
  const of = (a: number[], b: number[]) => {
    const own = kl(a, b);
    return a.map((x, k) => Math.exp(x) * (x - b[k]! - own) + Math.exp(x) - Math.exp(b[k]!));
  };
  return { value: kl(l1, l2) + kl(l2, l1), dz1: of(l1, l2), dz2: of(l2, l1) };
}

describe("the divergence", () => {
  test.each([
    [1, 2],
    [3, 7],
    [65, 3],
    [2, 257],
  ])("%i pairs of %i classes: value and gradient, with an upstream gradient of its own for each pair", async (B, K) => {
    const engine = new Engine(gpu());
    const z = randn(B + K, 2 * B * K, 1.5);
    const upstream = randn(9, B, 1);
    const { value, gradient } = engine.step(() => {
      const logits = engine.tensor(z, [2 * B, K], { grad: true });
      const parts = symmetricKl(logits);
      const each = Float32Array.from({ length: B * K }, (_, i) => upstream[Math.floor(i / K)]!);
      const value = parts.read(); // the backward frees it
      engine.backward(ops.sum(ops.multiply(parts, engine.tensor(each, [B, K]))));
      return { value, gradient: gpu().read(engine.gradientOf(logits)) };
    });
    const parts = await value;
    const found = new Float32Array(await gradient);
    expect(Math.min(...parts)).toBeGreaterThanOrEqual(0);
    const row = (r: number) => [...z.subarray(r * K, (r + 1) * K)];
    for (let b = 0; b < B; b++) {
      const exact = divergence(row(b), row(B + b));
      const sum = parts.subarray(b * K, (b + 1) * K).reduce((a, x) => a + x, 0);
      expect(Math.abs(sum / exact.value - 1)).toBeLessThan(1e-5);
      for (let k = 0; k < K; k++) {
        expect(Math.abs(found[b * K + k]! - upstream[b]! * exact.dz1[k]!)).toBeLessThan(1e-5);
        expect(Math.abs(found[(B + b) * K + k]! - upstream[b]! * exact.dz2[k]!)).toBeLessThan(1e-5);
      }
    }
  });

  test("is 0, and pulls at nothing, where both passes agree", async () => {
    const engine = new Engine(gpu());
    const half = randn(4, 15, 3);
    const { value, gradient } = engine.step(() => {
      const logits = engine.tensor(Float32Array.from([...half, ...half]), [6, 5], { grad: true });
      const parts = symmetricKl(logits);
      const value = parts.read();
      engine.backward(ops.sum(parts));
      return { value, gradient: gpu().read(engine.gradientOf(logits)) };
    });
    expect(new Set((await value).map(Math.abs))).toEqual(new Set([0]));
    expect(new Set(new Float32Array(await gradient).map(Math.abs))).toEqual(new Set([0]));
  });
});

// Softmax regression on inputs with dropout: everything in one line of float64.
const [n, d, K, P] = [24, 5, 3, 0.4];
const DATA = classes(n, d, K);
const START = randn(21, K * d, 0.5);
const MU = randn(22, K * d, 0.5);

function softmaxRegression(engine: Engine): Toy {
  const theta = new Theta(engine, new Layout([{ key: "w", parameters: [{ name: "w", shape: [K, d] }], groups: ["encoder"] }])); // biome-ignore format: one line
  theta.set("w", MU);
  const logitsOf = (x: Float32Array, keys?: (site: number) => readonly [number, number]) => {
    const input = engine.tensor(x, [x.length / d, d]);
    return ops.linear(keys ? ops.dropout(input, P, keys(0)) : input, theta.tensor("w"));
  };
  const nllsOf = (logits: ReturnType<typeof logitsOf>, y: readonly number[]) =>
    ops.crossEntropy(logits, fromHost(engine.gpu, Uint32Array.from(y)));
  return {
    engine,
    theta,
    loss: ({ x, y }, keys) => ({ nlls: nllsOf(logitsOf(x, keys), [...y]), count: y.length }),
    twice({ x, y }, keys) {
      const logits = logitsOf(Float32Array.from([...x, ...x]), keys);
      return { nlls: nllsOf(logits, [...y, ...y]), logits, count: y.length };
    },
    dispose: () => theta.dispose(),
  };
}

const LR = 0.3;
const TAU = 6;

/** Steps of MAP around MU from START, stopped and resumed in so many parts. */
async function train(options: Partial<FitOptions>, parts = 1, precision = TAU, dtype: "f32" | "f16" = "f32") {
  const model = softmaxRegression(new Engine(gpu(), { dtype }));
  const prior = gaussianPrior(model.theta, { encoder: { precision } });
  model.theta.set("w", START);
  const make = (rDrop = options.rDrop) =>
    new Trainer(logPosterior(model, prior, { N: n }), rowSource(DATA), {
      ...{ optimizer: sgd({ lr: LR }), batch: 8, epochs: 2, seed: 5, schedule: "constant", warmup: 0 },
      ...options,
      rDrop,
      settle: () => true,
      warn: () => {},
    });
  const reports: StepReport[] = [];
  const thetas = [[...START]];
  let trainer: Trainer<Rows> | undefined;
  try {
    trainer = make();
    const rows = Array.from({ length: trainer.steps }, (_, i) => (trainer as Trainer<Rows>).rowsOf(i + 1));
    for (let part = 1; part <= parts; part++) {
      for await (const report of trainer.run()) {
        reports.push({ ...report, tokensPerSecond: 0, dispatches: 0 });
        thetas.push([...(await model.theta.get("w"))]);
        if (part < parts && report.step === 2) break;
      }
      if (part === parts) break;
      const state = await trainer.state();
      trainer.dispose();
      trainer = make(99);
      await expect(trainer.restore(state)).rejects.toThrow(/R-Drop differs/);
      trainer.dispose();
      trainer = make();
      await trainer.restore(state);
    }
    return { reports, thetas, rows };
  } finally {
    trainer?.dispose();
    prior.dispose();
    model.dispose();
  }
}

/** ½(NLL₁ + NLL₂) and D summed over rows, and the gradient of the first + α/2 of the second, all divided by 8. */
function exact(w: readonly number[], rows: readonly number[], key: readonly [number, number], alpha: number) {
  const x = [...rows, ...rows].flatMap((r) => [...DATA.x.subarray(r * d, (r + 1) * d)]);
  const masked = dropoutReference(x, P, key);
  const B = rows.length;
  const inputOf = (r: number) => masked.subarray(r * d, (r + 1) * d);
  const logitsOf = (r: number) => Array.from({ length: K }, (_, k) => inputOf(r).reduce((sum, v, j) => sum + v * w[k * d + j]!, 0)); // biome-ignore format: one line
  let [nll, D] = [0, 0];
  const g = new Array<number>(K * d).fill(0);
  for (let b = 0; b < B; b++) {
    const [z1, z2] = [logitsOf(b), logitsOf(B + b)];
    const both = divergence(z1, z2);
    D += both.value / 2 / 8;
    for (const [r, z, dz] of [
      [b, z1, both.dz1],
      [B + b, z2, both.dz2],
    ] as const) {
      // biome-ignore format: one line
      const y = DATA.y[rows[b]!]!;
      const l = logSoftmax(z);
      nll -= l[y]! / 2 / 8;
      for (let k = 0; k < K; k++) {
        const dLogit = (Math.exp(l[k]!) - Number(k === y)) / 2 + (alpha / 4) * dz[k]!;
        for (let j = 0; j < d; j++) g[k * d + j]! += (dLogit * inputOf(r)[j]!) / 8;
      }
    }
  }
  return { nll, D, g };
}

describe("steps with it", () => {
  test("climb half of the paper's loss and the prior: a replay in float64", async () => {
    const alpha = 3;
    const { reports, thetas, rows } = await train({ rDrop: alpha });
    expect(reports).toHaveLength(6);
    for (const [i, report] of reports.entries()) {
      const w = thetas[i]!;
      const found = exact(w, rows[i]!.flat(), streamKey(5, "dropout", i + 1, 0, 0, 0), alpha);
      expect(Math.abs(report.nll / found.nll - 1)).toBeLessThan(1e-5);
      expect(Math.abs((report.rDrop as number) / found.D - 1)).toBeLessThan(1e-4);
      // The prior stands beside it as ever; the regulariser is in no log density.
      const delta = w.map((x, k) => x - MU[k]!);
      const logPrior = -0.5 * TAU * delta.reduce((sum, x) => sum + x * x, 0);
      expect(Math.abs(report.logPrior / logPrior - 1)).toBeLessThan(1e-5);
      expect(report.logJoint).toBeCloseTo(-n * report.nll + report.logPrior, 10);
      const g = found.g.map((x, k) => x + (TAU / n) * delta[k]!);
      expect(Math.abs(report.gradNorm / Math.hypot(...g) - 1)).toBeLessThan(1e-5);
      for (let k = 0; k < K * d; k++) expect(Math.abs(thetas[i + 1]![k]! - (w[k]! - LR * g[k]!))).toBeLessThan(2e-6);
    }
  });

  test("without dropout the divergence is 0 and the run is the plain one; α = 0 is, bit for bit", async () => {
    const plain = await train({});
    expect(plain.reports[0]).not.toHaveProperty("rDrop");
    expect(await train({ rDrop: 0 })).toEqual(plain);
    const [off, still] = [await train({ dropout: false }), await train({ dropout: false, rDrop: 50 })];
    expect(still.reports.map(({ rDrop }) => rDrop)).toEqual([0, 0, 0, 0, 0, 0]);
    still.thetas.at(-1)!.forEach((x, k) => {
      expect(Math.abs(x - off.thetas.at(-1)![k]!)).toBeLessThan(2e-6);
    });
  });

  test("begin their backward with the loss's scale in f16, which changes no bit", async () => {
    // None of the sizes suits a matrix unit.
    const [plain, scaled] = [await train({ rDrop: 3 }), await train({ rDrop: 3 }, 1, TAU, "f16")];
    expect(scaled.reports[0]).toMatchObject({ lossScale: 4096, skipped: false });
    expect(scaled.reports.map(({ lossScale: _, skipped: __, ...rest }) => rest)).toEqual(plain.reports);
    expect(scaled.thetas).toEqual(plain.thetas);
  });

  test("draw the predictions of two passes together", async () => {
    const mean = ({ reports }: Awaited<ReturnType<typeof train>>) =>
      reports.slice(-30).reduce((sum, { rDrop }) => sum + (rDrop as number), 0) / 30;
    const options = { epochs: 40, batch: 24 };
    expect(mean(await train({ ...options, rDrop: 20 }, 1, 0))).toBeLessThan(0.5 * mean(await train({ ...options, rDrop: 1e-6 }, 1, 0))); // biome-ignore format: one line
  });

  test("are the same after a resume, with accumulation and mixout too; another α is another run", async () => {
    const options = { rDrop: 2, mixout: 0.3, batch: 5, accumulate: 2 };
    const straight = await train(options);
    expect(await train(options, 2)).toEqual(straight);
    expect(straight.thetas).not.toEqual((await train({ ...options, mixout: 0 })).thetas);
  });
});

describe("a BERT", () => {
  const EXAMPLES = Array.from({ length: 11 }, (_, i) => {
    const ids = Array.from({ length: 2 + (i % 4) }, (_, t) => 1 + ((7 * i + 3 * t) % 38));
    return { ids, typeIds: ids.map(() => 0), label: i % 2 };
  });
  const load = (more = {}) =>
    BertForSequenceClassification.load(new Engine(gpu()), tinyCheckpoint({ dropout: 0.2 }), { labels: 2, ...more });
  const trained = async (encoder: number, long: boolean, rDrop: number) => {
    const model = await load();
    const prior = gaussianPrior(model, { encoder: { precision: encoder }, head: { precision: 1 } });
    const options = { optimizer: adam({ lr: 1e-3, headLr: 1e-2 }), epochs: 2, batch: 4, seed: 3, rDrop };
    const data = long ? exampleSource(EXAMPLES) : EXAMPLES;
    const trainer = new Trainer(logPosterior(model, prior, { N: EXAMPLES.length }), data, options);
    const reports = [];
    for await (const report of trainer.run()) reports.push(report);
    const weight = await model.theta.get("classifier.weight");
    trainer.dispose();
    prior.dispose();
    model.dispose();
    return { weight, reports };
  };

  test("runs both passes as one batch, each half under masks of its own, and equal without them", async () => {
    const model = await load();
    const batch = exampleSource(EXAMPLES).batch([0, 1, 2, 3, 4], { epoch: 0, step: 1, micro: 0 });
    const keys = (site: number) => streamKey(1, "test", site);
    const { dropped, plain, one } = model.engine.step(() =>
      model.engine.noGrad(() => ({
        dropped: model.twice(batch, keys).logits.read(),
        plain: model.twice(batch).logits.read(),
        one: model.logits(batch).read(),
      })),
    );
    const [a, b] = [await dropped, await plain];
    expect(a.length).toBe(20);
    expect(a.subarray(0, 10)).not.toEqual(a.subarray(10));
    expect(b.subarray(0, 10)).toEqual(b.subarray(10));
    expect(b.subarray(0, 10)).toEqual(await one);
    model.dispose();
  });

  test("a head on kept vectors has the same bits as the long way", async () => {
    const [short, long] = [
      await trained(Number.POSITIVE_INFINITY, false, 4),
      await trained(Number.POSITIVE_INFINITY, true, 4),
    ];
    expect(short.weight).toEqual(long.weight);
    expect(short.reports.map(({ rDrop }) => rDrop)).toEqual(long.reports.map(({ rDrop }) => rDrop));
    expect(Math.min(...short.reports.map(({ rDrop }) => rDrop as number))).toBeGreaterThan(0);
    expect(short.reports[1]!.dispatches).toBeLessThan(long.reports[1]!.dispatches);
  });

  test("refuses what cannot be", async () => {
    const model = await load({ rankOne: { members: 2, layers: "head" } });
    const prior = gaussianPrior(model, {
      encoder: { precision: 1 },
      head: { precision: 1 },
      members: { precision: 1 },
    });
    const target = logPosterior(model, prior, { N: EXAMPLES.length });
    const options = { optimizer: adam({ lr: 1e-3 }), epochs: 1, batch: 4 };
    const run = async (rDrop: number) => {
      const trainer = new Trainer(target, EXAMPLES, { ...options, rDrop });
      try {
        for await (const _ of trainer.run());
      } finally {
        trainer.dispose();
      }
    };
    await expect(run(1)).rejects.toThrow(/r-drop: not with rank-one members/);
    for (const rDrop of [-1, Number.NaN, Number.POSITIVE_INFINITY]) {
      await expect(run(rDrop)).rejects.toThrow(/r-drop: (-1|NaN|Infinity) \(expected a number from 0\)/);
      await expect(run(rDrop)).rejects.toThrow(InputError);
    }
    expect(() => new Trainer(target, EXAMPLES, { ...options, rDrop: 1, optimizer: sgld({ lr: 0.1, N: 11 }) })).toThrow(/r-drop: not with sgld/); // biome-ignore format: one line
    const line = linearRegression(new Engine(gpu()), 2, 1);
    const flat = gaussianPrior(line.theta, { encoder: { precision: 1 } });
    const data = rowSource(regression(8, [1, 1], 1));
    expect(() => new Trainer(logPosterior(line, flat, { N: 8 }), data, { ...options, rDrop: 1 })).toThrow(/r-drop: this model cannot run a batch twice/); // biome-ignore format: one line
    for (const { dispose } of [prior, flat]) dispose();
    model.dispose();
    line.dispose();
  });
});
