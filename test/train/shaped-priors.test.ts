/**
 * @file Priors by element, of low rank, Laplace's and Student's in training: reports, steps, MAP and fixed points against
 * float64 and closed forms; words at rest and resumption on a small BERT.
 */
import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { type StepReport, Trainer } from "../../src/train/fit.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { adam, type Optimizer, sgd } from "../../src/train/optimizers.ts";
import { type GaussianPriorSpec, gaussianPrior } from "../../src/train/prior.ts";
import { diagonalPrior, laplacePrior, lowRankPrior, studentTPrior } from "../../src/train/shaped-priors.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";
import { tinyCheckpoint } from "../model/tiny.ts";
import {
  asMap,
  D,
  dense,
  FAMILIES,
  LINE,
  likelihood,
  line,
  MU,
  numbersOf,
  place,
  SIGMA2,
  SPEC,
  STRENGTH,
  slope,
  sum,
  TAU,
  train,
} from "./families.ts";
import { type Rows, rowSource, solve, type Toy } from "./toys.ts";
import { full } from "./training.ts";

const gpu = gpuForTests();

for (const [name, family] of Object.entries(FAMILIES)) {
  describe(name, () => {
    test("a training's reports and steps are those of a replay in float64", async () => {
      const lr = 0.004;
      const { reports, thetas } = await train(gpu(), family, { optimizer: sgd({ lr }), steps: 4 });
      const means = [...MU.slice(0, 4), 0, 0];
      // The head starts at 0 here and is not new, so its mean is the start.
      for (const [k, report] of reports.entries()) {
        const theta = thetas[k]!;
        const delta = theta.map((t, i) => t - Math.fround(means[i]!));
        const { nll, g } = likelihood(theta);
        const r = slope(family.energy, delta).map((x) => x / 100);
        const norm = (v: readonly number[]) => Math.hypot(...v);
        const close = (found: number, wanted: number, tolerance: number) =>
          expect(Math.abs(found - wanted), `step ${k + 1}: ${found} for ${wanted}`).toBeLessThan(tolerance * Math.abs(wanted) + 1e-9); // biome-ignore format: one thought
        close(report.nll, nll, 1e-5);
        close(report.logPrior, -family.energy(delta), 2e-5);
        close(report.logJoint, -100 * nll - family.energy(delta), 1e-5);
        close(report.gradNorm, norm(g.map((x, i) => x + r[i]!)), 1e-5);
        close(report.distance, norm(delta.slice(0, 4)), 1e-5);
        close(report.priorShare, norm(r) / (norm(g) + norm(r)), 2e-5);
        const next = theta.map((t, i) => t - lr * (g[i]! + r[i]!));
        for (const [i, t] of next.entries()) close(thetas[k + 1]![i]!, t, 2e-6);
      }
      expect(reports[3]!.priorShare).toBeGreaterThan(1e-4);
    });
  });
}

describe("MAP of linear regression (check 3)", () => {
  const { x, y } = LINE;
  const XX = Array.from({ length: D }, (_, i) =>
    Array.from({ length: D }, (_, j) => sum([...y].map((_, r) => (x[r * D + i]! * x[r * D + j]!) / SIGMA2))),
  );
  const Xy = Array.from({ length: D }, (_, i) => sum([...y].map((t, r) => (x[r * D + i]! * t) / SIGMA2)));
  const precision = (name: string): number[][] => {
    const P =
      name === "diagonal"
        ? TAU.map((t, i) => TAU.map((_, j) => (i === j ? t : 0)))
        : dense(name === "low-rank precision" ? "precision" : "covariance");
    return MU.map((_, i) =>
      MU.map((_, j) => (i < 4 && j < 4 ? Math.sqrt(STRENGTH[i]! * STRENGTH[j]!) * P[i]![j]! : i === j ? 3 : 0)),
    );
  };
  for (const name of ["diagonal", "low-rank precision", "low-rank covariance"]) {
    test(`${name}: the normal equations`, async () => {
      const P = precision(name);
      const b = Xy.map((v, i) => v + sum(P[i]!.map((p, j) => p * MU[j]!)));
      const expected = solve(XX.map((row, i) => row.map((v, j) => v + P[i]![j]!)), b); // biome-ignore format: one equation
      const { thetas } = await train(gpu(), FAMILIES[name]!, {
        optimizer: sgd({ lr: 0.05, momentum: 0.8 }),
        steps: 250,
      });
      for (const [i, t] of expected.entries()) expect(Math.abs(thetas.at(-1)![i]! - t)).toBeLessThan(1e-5);
    });
  }

  test("rank 0 is the diagonal prior, bit for bit, and a strength is a factor on τ", async () => {
    const twice = TAU.map((t, i) => t * STRENGTH[i]!);
    const one: GaussianPriorSpec = { encoder: { precision: 1 }, head: { precision: 3 } };
    const optimizer = sgd({ lr: 0.004 });
    const none = { form: "precision", rank: 0, factors: new Map() } as const;
    const expected = await train(gpu(), FAMILIES.diagonal!, { optimizer, steps: 4 });
    // Powers of two: no rounding.
    const scaled = await train(
      gpu(),
      { make: ({ theta }) => diagonalPrior(theta, one, asMap(twice)) },
      { optimizer, steps: 4 },
    );
    const flat = await train(gpu(), { make: ({ theta }) => lowRankPrior(theta, SPEC, { ...none, diagonal: asMap(TAU) }) }, { optimizer, steps: 4 }); // biome-ignore format: one line
    expect(scaled.thetas).toEqual(expected.thetas);
    expect(flat.thetas).toEqual(expected.thetas);
  });

  test("equal τ for all is the isotropic Gaussian", async () => {
    const optimizer = sgd({ lr: 0.05, momentum: 0.8 });
    const spec: GaussianPriorSpec = { encoder: { precision: 2 }, head: { precision: 3 } };
    const [own, isotropic] = [
      await train(
        gpu(),
        { make: ({ theta }) => diagonalPrior(theta, spec, asMap([5, 5, 5, 5])) },
        { optimizer, steps: 5 },
      ),
      await train(gpu(), { make: ({ theta }) => gaussianPrior(theta, { ...spec, encoder: { precision: 10 } }) }, { optimizer, steps: 5 }), // biome-ignore format: one line
    ];
    for (const [k, theta] of own.thetas.entries())
      for (const [i, t] of theta.entries()) expect(Math.abs(t - isotropic.thetas[k]![i]!)).toBeLessThan(1e-6);
    for (const [k, r] of own.reports.entries()) {
      expect(r.logPrior).toBeCloseTo(isotropic.reports[k]!.logPrior, 5);
      expect(r.priorShare).toBeCloseTo(isotropic.reports[k]!.priorShare, 6);
    }
  });
});

describe("fixed points of a mean's MAP: x̄ of 100 with variance ¼", () => {
  // Orthogonal design: x is one-hot, so each element has a mean of its own, of n = 16 or 17 data.
  const n = 96;
  const targets = [1.2, -0.61, 1.45, 0.9, -2, 0.02];
  const DATA: Rows = {
    d: D,
    x: Float32Array.from({ length: n * D }, (_, i) => (i % D === Math.floor(i / D) % D ? 1 : 0)),
    y: Float32Array.from({ length: n }, (_, i) => targets[i % D]!),
  };
  const weight = n / D / SIGMA2;

  test("Laplace: a soft threshold; what it holds at μ stays within a step's reach", async () => {
    const lr = 0.002;
    const spec: GaussianPriorSpec = { encoder: { precision: 50 }, head: { precision: 50 } };
    const make = ({ theta }: Toy) => laplacePrior(theta, spec);
    const { thetas } = await train(gpu(), { make }, { optimizer: sgd({ lr, momentum: 0.9 }), steps: 1200 }, DATA);
    const lambda = Math.sqrt(100);
    for (const [i, target] of targets.entries()) {
      const d = target - MU[i]!;
      const expected = MU[i]! + Math.sign(d) * Math.max(0, Math.abs(d) - lambda / weight);
      const held = expected === MU[i];
      expect(Math.abs(thetas.at(-1)![i]! - expected), `element ${i}`).toBeLessThan(held ? 10 * lr * (lambda / n) * 2 : 2e-5); // biome-ignore format: one thought
    }
    expect(targets.filter((t, i) => Math.abs(t - MU[i]!) < lambda / weight).length).toBe(3);
  });

  test("Student-t: the root of its score; far targets are let go where a Gaussian of equal curvature pulls", async () => {
    const spec: GaussianPriorSpec = { encoder: { precision: 200 }, head: { precision: 200 } };
    const make = ({ theta }: Toy) => studentTPrior(theta, spec, { nu: 1 });
    const { thetas } = await train(gpu(), { make }, { optimizer: sgd({ lr: 0.1, momentum: 0.8 }), steps: 500 }, DATA);
    for (const [i, target] of targets.entries()) {
      const score = (d: number) => weight * (d + MU[i]! - target) + (2 * 200 * d) / (1 + 200 * d * d);
      const d = thetas.at(-1)![i]! - MU[i]!;
      // A score of 2e-3 is 3e-5 in θ where the likelihood's curvature of 64 rules.
      expect(Math.abs(score(d)), `element ${i}`).toBeLessThan(2e-3);
    }
    const gaussian = (weight * (targets[3]! - MU[3]!)) / (weight + 400);
    expect(thetas.at(-1)![3]! - MU[3]!).toBeGreaterThan(3 * gaussian);
  });
});

test("low rank: what trains follows the density that is conditional on what is held away from μ", async () => {
  const engine = new Engine(gpu());
  const model = line(engine);
  const prior = FAMILIES["low-rank covariance"]!.make(model);
  const start = [0.9, -1.1, 1.9, 0.4, 0.2, -0.3];
  place(model.theta, start);
  // As a sampler of the other groups does.
  model.theta.freeze((slice) => slice.key === "w");
  const lr = 0.004;
  const trainer = new Trainer(logPosterior(model, prior, { N: 100 }), rowSource(LINE), { optimizer: sgd({ lr }), ...full(100, 4), settle: () => true }); // biome-ignore format: one line
  const [reports, thetas]: [StepReport[], number[][]] = [[], [await numbersOf(model)]];
  for await (const report of trainer.run()) {
    reports.push(report);
    thetas.push(await numbersOf(model));
  }
  const mu = await numbersOf(model, prior.mu);
  const delta = (k: number) => thetas[k]!.map((t, i) => t - mu[i]!);
  const { energy } = FAMILIES["low-rank covariance"]!;
  for (let k = 0; k < 4; k++) {
    const r = slope(energy, delta(k));
    const { g } = likelihood(thetas[k]!);
    for (let i = 0; i < D; i++) {
      const expected = i < 3 ? thetas[k]![i]! : thetas[k]![i]! - lr * (g[i]! + r[i]! / 100);
      expect(Math.abs(thetas[k + 1]![i]! - expected), `step ${k + 1}, element ${i}`).toBeLessThan(2e-6);
    }
    // What is held adds a constant: differences are those of the whole density.
    const change = -energy(delta(k)) + energy(delta(0));
    expect(Math.abs(reports[k]!.logPrior - reports[0]!.logPrior - change)).toBeLessThan(2e-5 * (1 + Math.abs(change)));
  }
  trainer.dispose();
  prior.dispose();
  model.dispose();
});

describe("in training", () => {
  const EXAMPLES = Array.from({ length: 12 }, (_, i) => ({
    ids: Uint32Array.from({ length: 6 }, (_, k) => 100 + 20 * ((5 * i + 7 * k) % 112)),
    typeIds: new Uint32Array(6),
    truncated: false,
    label: i % 2,
  }));
  const WORDS = "bert.embeddings.word_embeddings.weight";

  async function bert(kind: "diagonal" | "low rank", optimizer: Optimizer) {
    const engine = new Engine(gpu());
    const model = await BertForSequenceClassification.load(engine, tinyCheckpoint({ vocabulary: 3000 }), { labels: 2 });
    const encoder = model.theta.layout.slices.filter((slice) => slice.groups[0] === "encoder");
    const parameters = encoder.flatMap((slice) => slice.parameters);
    const tau = new Map(parameters.map((p, i) => [p.name, randn(i, p.size).map((z) => 50 * z * z + 1)]));
    // The factors reach two words: one that no batch holds (2,900), and one that all do not (103).
    const factors = new Map(
      parameters.map((p, i) => {
        const u = randn(1000 + i, 2 * p.size);
        if (p.name === WORDS) for (let j = 0; j < u.length; j++) if (![100, 2900].includes(Math.floor((j % p.size) / 16))) u[j] = 0; // biome-ignore format: one condition
        return [p.name, u];
      }),
    );
    const spec = { encoder: { precision: 2 }, head: { precision: 1 } };
    const prior =
      kind === "diagonal"
        ? diagonalPrior(model, spec, tau)
        : lowRankPrior(model, spec, { form: "precision", diagonal: tau, rank: 2, factors });
    const make = () => new Trainer(logPosterior(model, prior, { N: 12 }), EXAMPLES, { optimizer, epochs: 2, batch: 4, clip: 0.5, settle: () => true }); // biome-ignore format: one call
    return { model, prior, make };
  }

  for (const kind of ["diagonal", "low rank"] as const) {
    test(`${kind}: words at rest are left out, and change no bit; the coupling wakes those that it pulls at`, async () => {
      const found = [];
      for (const rests of [true, false]) {
        const { model, prior, make } = await bert(kind, { ...adam({ lr: 1e-3 }), rests });
        const start = await model.theta.get(WORDS);
        const trainer = make();
        const reports = [];
        for await (const report of trainer.run()) reports.push({ ...report, tokensPerSecond: 0, dispatches: 0 });
        const words = await model.theta.get(WORDS);
        found.push({ reports, theta: (await trainer.state()).theta });
        expect(words[16 * 2900] !== start[16 * 2900]).toBe(kind === "low rank");
        expect(words[16 * 2999]).toBe(start[16 * 2999]);
        trainer.dispose();
        prior.dispose();
        model.dispose();
      }
      expect(found[0]).toEqual(found[1]);
    });
  }

  test("a resumed run is the uninterrupted one, and another prior is refused", async () => {
    const { model, prior, make } = await bert("low rank", adam({ lr: 1e-3 }));
    const straight = make();
    const start = await straight.state();
    for await (const _ of straight.run());
    const expected = (await straight.state()).theta;
    const first = make();
    await first.restore(start);
    for await (const { step } of first.run()) if (step === 3) break;
    const middle = await first.state();
    const second = make();
    await second.restore(middle);
    for await (const _ of second.run());
    expect((await second.state()).theta).toEqual(expected);
    const isotropic = gaussianPrior(model, { encoder: { precision: 2 }, head: { precision: 1 } });
    // The mean is θ as it is now, so the first thing that differs may be either.
    const other = new Trainer(logPosterior(model, isotropic, { N: 12 }), EXAMPLES, { ...second.options });
    await expect(other.restore(middle)).rejects.toThrow(/prior (mean|density) differs/);
    for (const one of [straight, first, second, other]) one.dispose();
    isotropic.dispose();
    prior.dispose();
    model.dispose();
  });
});
