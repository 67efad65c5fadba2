/**
 * @file Priors by element, of low rank, Laplace's and Student's: densities, gradients, MAP and reports against float64. Long,
 * since every family goes through one model and one table of checks.
 */
import { inverse, Matrix } from "ml-matrix";
import { describe, expect, test } from "vitest";
import { Engine, Layout, ops, type Slice, Theta } from "../../src/autograd/index.ts";
import { InputError } from "../../src/errors.ts";
import { allLive, readArray } from "../../src/kernels/index.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { Stream } from "../../src/random.ts";
import { type FitOptions, type StepReport, Trainer } from "../../src/train/fit.ts";
import { addGram, type LowRankForm, logDeterminant, lowRankLogDensity } from "../../src/train/lowrank.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { adam, type Optimizer, sgd } from "../../src/train/optimizers.ts";
import {
  expectGaussian,
  expectIsotropic,
  type GaussianPriorSpec,
  gaussianPrior,
  type Prior,
} from "../../src/train/prior.ts";
import {
  diagonalPrior,
  type LowRankNumbers,
  laplacePrior,
  logGamma,
  lowRankPrior,
  studentTPrior,
} from "../../src/train/shaped-priors.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";
import { tinyCheckpoint } from "../model/tiny.ts";
import { type Rows, regression, rowSource, solve, type Toy } from "./toys.ts";
import { full } from "./training.ts";

const gpu = gpuForTests();

// y = x·(w, v) + noise of variance ¼: w, of group encoder and in two slices, has four elements, v, the head, has two.
const D = 6;
const SIGMA2 = 0.25;
const LINE = regression(100, [0.5, -1, 2, 0.3, -0.7, 1.1], 0.5);
const MU = [0.3, -0.6, 1.5, 0, 0, 0];

function line(engine: Engine, start: readonly number[] = MU): Toy {
  const theta = new Theta(
    engine,
    new Layout([
      { key: "w", parameters: [{ name: "a", shape: [1, 1] }, { name: "b", shape: [1, 2] }].map((p) => ({ ...p, shape: [p.shape[1] as number, 1] })), groups: ["encoder", "layer.0"] }, // biome-ignore format: a table
      { key: "c", parameters: [{ name: "c", shape: [1, 1] }], groups: ["encoder", "layer.1"] },
      { key: "v", parameters: [{ name: "v", shape: [2, 1] }], groups: ["head"] },
    ]),
  );
  theta.set("a", Float32Array.from(start.slice(0, 1)));
  theta.set("b", Float32Array.from(start.slice(1, 3)));
  theta.set("c", Float32Array.from(start.slice(3, 4)));
  theta.set("v", Float32Array.from(start.slice(4)));
  return {
    engine,
    theta,
    loss({ x, y }) {
      const n = y.length;
      const columns = (from: number, width: number) =>
        engine.tensor(
          Float32Array.from(
            { length: n * width },
            (_, i) => x[Math.floor(i / width) * D + from + (i % width)] as number,
          ),
          [n, width],
        );
      const part = (key: string, from: number, width: number) =>
        ops.linear(columns(from, width), ops.reshape(theta.tensor(key), [1, width]));
      const mean = ops.add(ops.add(part("w", 0, 3), part("c", 3, 1)), part("v", 4, 2)); // [n, 1]
      const error = ops.subtract(mean, engine.tensor(y, [n, 1]));
      return { nlls: ops.reshape(ops.scale(ops.multiply(error, error), 0.5 / SIGMA2), [n]), count: n };
    },
    dispose: () => theta.dispose(),
  };
}

const NAMES = ["a", "b", "c", "v"] as const;
const numbersOf = async ({ theta }: Toy, vector = theta.values) =>
  (await Promise.all(NAMES.map((name) => theta.get(name, vector)))).flatMap((part) => [...part]);

const TAU = [40, 0, 900, 7];
const asMap = (values: readonly number[], k = 1) => {
  const column = (j: number, from: number, size: number) => values.slice(j * 4 + from, j * 4 + from + size);
  const of = (from: number, size: number) => Array.from({ length: k }, (_, j) => column(j, from, size)).flat();
  return new Map([["a", of(0, 1)], ["b", of(1, 2)], ["c", of(3, 1)]]); // biome-ignore format: a table
};
const DIAGONAL = [40, 3, 90, 7];
const COLUMNS = [
  [5, -3, 2, 0],
  [0, 4, 1, -2],
];
const lowRank = (form: LowRankForm): LowRankNumbers =>
  form === "precision"
    ? { form, diagonal: asMap(DIAGONAL), rank: 2, factors: asMap(COLUMNS.flat(), 2) }
    : {
        form,
        diagonal: asMap(DIAGONAL.map((d) => 1 / d)),
        rank: 2,
        factors: asMap(COLUMNS.flat().map((x) => x / 20), 2),
      }; // biome-ignore format: a table

/** S⁻¹, symmetric to the last bit. */
function inverted(S: Matrix): Matrix {
  const P = inverse(S);
  return Matrix.mul(Matrix.add(P, P.transpose()), 0.5);
}

/** The encoder's precision matrix of a low-rank prior, in float64, by dense algebra. */
function dense(form: LowRankForm): number[][] {
  const scale = form === "precision" ? 1 : 1 / 400;
  const S = new Matrix(DIAGONAL.map((d, i) => DIAGONAL.map((_, j) => (i === j ? (form === "precision" ? d : 1 / d) : 0) + scale * COLUMNS.reduce((sum, u) => sum + u[i]! * u[j]!, 0)))); // biome-ignore format: a formula
  return (form === "precision" ? S : inverted(S)).to2DArray();
}

const SPEC: GaussianPriorSpec = { encoder: { precision: 2 }, "layer.1": { precision: 0.5 }, head: { precision: 3 } };
const STRENGTH = [2, 2, 2, 0.5];

interface Family {
  make(model: Toy, spec?: GaussianPriorSpec): Prior;
  /** −log p(Δ) without its constant, nats; Δ of all six elements. */
  energy(delta: readonly number[]): number;
}
const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
const head = (delta: readonly number[]) => 1.5 * (delta[4]! ** 2 + delta[5]! ** 2);
const structured = (form: LowRankForm): Family => ({
  make: (model, spec = SPEC) => lowRankPrior(model.theta, spec, lowRank(form)),
  energy: (delta) => {
    const P = dense(form);
    const scaled = STRENGTH.map((a, i) => Math.sqrt(a) * delta[i]!);
    return head(delta) + 0.5 * sum(P.map((row, i) => sum(row.map((p, j) => p * scaled[i]! * scaled[j]!))));
  },
});
const ALL = [2, 2, 2, 0.5, 3, 3];
const FAMILIES: Readonly<Record<string, Family>> = {
  diagonal: {
    make: (model, spec = SPEC) => diagonalPrior(model.theta, spec, asMap(TAU)),
    energy: (delta) => head(delta) + sum(TAU.map((t, i) => 0.5 * STRENGTH[i]! * t * delta[i]! ** 2)),
  },
  "low-rank precision": structured("precision"),
  "low-rank covariance": structured("covariance"),
  laplace: {
    make: (model, spec = SPEC) => laplacePrior(model.theta, spec),
    energy: (delta) => sum(ALL.map((t, i) => Math.sqrt(2 * t) * Math.abs(delta[i]!))),
  },
  "student-t": {
    make: (model, spec = SPEC) => studentTPrior(model.theta, spec, { nu: 3 }),
    energy: (delta) => sum(ALL.map((t, i) => 2 * Math.log1p((t * delta[i]! ** 2) / 3))),
  },
};

/** ∇ energy by central differences. */
function slope(energy: Family["energy"], delta: readonly number[]): number[] {
  return delta.map((x, i) => {
    const h = 1e-5 * Math.max(0.1, Math.abs(x));
    const at = (y: number) => energy(delta.map((d, j) => (j === i ? y : d)));
    return (at(x + h) - at(x - h)) / (2 * h);
  });
}

interface Run {
  reports: StepReport[];
  /** θ after each step; [0] is the start. */
  thetas: number[][];
}

/** Full-batch training under a family's prior. */
async function train(
  { make }: Pick<Family, "make">,
  options: Partial<FitOptions> & { optimizer: Optimizer; steps: number },
  data: Rows = LINE,
): Promise<Run> {
  // biome-ignore format: one line says it
  const { steps, ...rest } = options;
  const model = line(new Engine(gpu()));
  const prior = make(model);
  const trainer = new Trainer(logPosterior(model, prior, { N: data.y.length }), rowSource(data), {
    ...full(data.y.length, steps),
    settle: () => true,
    ...rest,
  });
  const [reports, thetas]: [StepReport[], number[][]] = [[], [await numbersOf(model)]];
  for await (const report of trainer.run()) {
    reports.push(report);
    if (steps < 10 || report.step === steps) thetas.push(await numbersOf(model));
  }
  trainer.dispose();
  prior.dispose();
  model.dispose();
  return { reports, thetas };
}

/** Mean NLL and its gradient at θ. */
function likelihood(theta: readonly number[]): { nll: number; g: number[] } {
  const { x, y } = LINE;
  const g = new Array(D).fill(0) as number[];
  let nll = 0;
  for (let i = 0; i < y.length; i++) {
    const error = sum(theta.map((t, j) => t * x[i * D + j]!)) - y[i]!;
    nll += error ** 2 / (2 * SIGMA2) / y.length;
    for (let j = 0; j < D; j++) g[j]! += (error * x[i * D + j]!) / SIGMA2 / y.length;
  }
  return { nll, g };
}

for (const [name, family] of Object.entries(FAMILIES)) {
  describe(name, () => {
    test("its gradient is that of its log-density, by finite differences", async () => {
      const engine = new Engine(gpu());
      const delta = [0.7, -0.2, 0.05, 1.3, -0.4, 0.9];
      const model = line(engine);
      const prior = family.make(model);
      for (const [
        at,
        part,
      ] of [["a", 0, 1], ["b", 1, 3], ["c", 3, 4], ["v", 4, 6]].map(([n, from, to]) => [n, MU.map((m, i) => (i < 4 ? m : 0) + delta[i]!).slice(from as number, to as number)] as const)) // biome-ignore format: a table
        model.theta.set(at as string, Float32Array.from(part));
      const density = prior.density!;
      const stretches = model.theta.layout.slices
        .filter((slice) => density.covers(slice))
        .map((slice) => ({ offset: slice.offset, length: slice.stride, precision: prior.precision(slice) }));
      const N = 4;
      const zero = model.theta.vector();
      const read = engine.step(() => {
        const { gpu } = engine;
        const live = allLive(gpu, model.theta.layout.length);
        const rows = density.gradient({ gpu, theta: model.theta.values, grad: zero, mu: prior.mu, live, N }, stretches);
        return { rows: readArray(gpu, rows) };
      });
      const rows = await read.rows;
      const found = await numbersOf(model, density.total);
      // The head's isotropic Gaussian is not the density's; Δ is what float32 made of it.
      const [theta, mu] = [await numbersOf(model), await numbersOf(model, prior.mu)];
      const rounded = theta.map((t, i) => t - mu[i]!);
      const expected = slope(family.energy, rounded).map((x, i) => (i < 4 || stretches.length === 3 ? x / N : 0));
      const largest = Math.max(...expected.map(Math.abs));
      for (const [i, x] of expected.entries())
        expect(Math.abs(found[i]! - x), `element ${i}`).toBeLessThan(1e-6 * largest);
      const covered = family.energy(rounded) - (stretches.length === 3 ? 0 : head(rounded));
      expect(Math.abs(density.energy(rows, stretches, N) / covered - 1)).toBeLessThan(1e-6);
      prior.dispose();
      model.dispose();
    });

    test("a training's reports and steps are those of a replay in float64", async () => {
      const lr = 0.004;
      const { reports, thetas } = await train(family, { optimizer: sgd({ lr }), steps: 4 });
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
      const { thetas } = await train(FAMILIES[name]!, { optimizer: sgd({ lr: 0.05, momentum: 0.8 }), steps: 250 });
      for (const [i, t] of expected.entries()) expect(Math.abs(thetas.at(-1)![i]! - t)).toBeLessThan(1e-5);
    });
  }

  test("rank 0 is the diagonal prior, bit for bit, and a strength is a factor on τ", async () => {
    const twice = TAU.map((t, i) => t * STRENGTH[i]!);
    const one: GaussianPriorSpec = { encoder: { precision: 1 }, head: { precision: 3 } };
    const optimizer = sgd({ lr: 0.004 });
    const none = { form: "precision", rank: 0, factors: new Map() } as const;
    const expected = await train(FAMILIES.diagonal!, { optimizer, steps: 4 });
    // Powers of two: no rounding.
    const scaled = await train(
      { make: ({ theta }) => diagonalPrior(theta, one, asMap(twice)) },
      { optimizer, steps: 4 },
    );
    const flat = await train({ make: ({ theta }) => lowRankPrior(theta, SPEC, { ...none, diagonal: asMap(TAU) }) }, { optimizer, steps: 4 }); // biome-ignore format: one line
    expect(scaled.thetas).toEqual(expected.thetas);
    expect(flat.thetas).toEqual(expected.thetas);
  });

  test("equal τ for all is the isotropic Gaussian", async () => {
    const optimizer = sgd({ lr: 0.05, momentum: 0.8 });
    const spec: GaussianPriorSpec = { encoder: { precision: 2 }, head: { precision: 3 } };
    const [own, isotropic] = [
      await train({ make: ({ theta }) => diagonalPrior(theta, spec, asMap([5, 5, 5, 5])) }, { optimizer, steps: 5 }),
      await train({ make: ({ theta }) => gaussianPrior(theta, { ...spec, encoder: { precision: 10 } }) }, { optimizer, steps: 5 }), // biome-ignore format: one line
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
    const { thetas } = await train({ make }, { optimizer: sgd({ lr, momentum: 0.9 }), steps: 1200 }, DATA);
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
    const { thetas } = await train({ make }, { optimizer: sgd({ lr: 0.1, momentum: 0.8 }), steps: 500 }, DATA);
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

describe("log-densities in float64", () => {
  for (const form of ["precision", "covariance"] as const) {
    test(`Woodbury's ${form} against the dense normal, d ≤ 50`, () => {
      for (const [d, k] of [
        [1, 1],
        [7, 3],
        [20, 20],
        [50, 8],
        [50, 0],
      ] as const) {
        // biome-ignore format: a table
        const stream = new Stream(d, "woodbury", k);
        const diagonal = Array.from({ length: d }, () => 0.1 + 3 * stream.uniform());
        const columns = Array.from({ length: k }, () => Array.from({ length: d }, () => stream.normal()));
        const delta = Array.from({ length: d }, () => stream.normal());
        const S = new Matrix(diagonal.map((x, i) => diagonal.map((_, j) => (i === j ? x : 0) + sum(columns.map((u) => u[i]! * u[j]!))))); // biome-ignore format: a formula
        const P = form === "precision" ? S : inverted(S);
        const square = sum(delta.map((x, i) => sum(delta.map((y, j) => x * y * P.get(i, j)))));
        const expected = 0.5 * (logDeterminant(P) - square - d * Math.log(2 * Math.PI));
        expect(Math.abs(lowRankLogDensity(delta, diagonal, columns, form) / expected - 1)).toBeLessThan(1e-8);
      }
    });
  }

  test("a determinant is what elimination gives", () => {
    const G = Matrix.zeros(2, 2);
    addGram(G, [[1, 2], [3, -1]], [2, 4]); // biome-ignore format: a matrix
    expect(G.to2DArray()).toEqual([[1.5, 1], [1, 4.75]]); // biome-ignore format: a matrix
    expect(logDeterminant(G)).toBeCloseTo(Math.log(1.5 * 4.75 - 1), 12);
    expect(() => logDeterminant(new Matrix([[1, 2], [2, 1]]))).toThrow("not positive definite"); // biome-ignore format: a matrix
  });

  test("log Γ", () => {
    expect(logGamma(0.5)).toBeCloseTo(0.5 * Math.log(Math.PI), 13);
    expect(logGamma(1)).toBeCloseTo(0, 13);
    expect(logGamma(7)).toBeCloseTo(Math.log(720), 12);
    expect(Math.abs(logGamma(1001) / 5912.128178488163 - 1)).toBeLessThan(1e-14);
  });

  test("constants: the densities integrate to 1", () => {
    const model = line(new Engine(gpu()));
    const one: GaussianPriorSpec = { encoder: { precision: 0 }, "layer.1": { precision: 5 }, head: { precision: 0 } };
    for (const [prior, energy] of [
      [laplacePrior(model.theta, one), (x: number) => Math.sqrt(10) * Math.abs(x)],
      [studentTPrior(model.theta, one, { nu: 2.5 }), (x: number) => 1.75 * Math.log1p(2 * x * x)],
    ] as const) {
      // x = t/(1 − t²) maps (−1, 1) to the line; the midpoint rule.
      let integral = 0;
      const n = 400_000;
      for (let i = 0; i < n; i++) {
        const t = -1 + (2 * i + 1) / n;
        const jacobian = (1 + t * t) / (1 - t * t) ** 2;
        integral += Math.exp(prior.logConstant - energy(t / (1 - t * t))) * jacobian * (2 / n);
      }
      expect(Math.abs(integral - 1)).toBeLessThan(1e-6);
      prior.dispose();
    }
    model.dispose();
  });

  test("constants of the Gaussians are those of the dense normal, strengths and the head's included", () => {
    const model = line(new Engine(gpu()));
    const head = 2 * 0.5 * Math.log(3 / (2 * Math.PI));
    for (const form of ["precision", "covariance"] as const) {
      const prior = FAMILIES[`low-rank ${form}`]!.make(model);
      const P = new Matrix(dense(form).map((row, i) => row.map((p, j) => p * Math.sqrt(STRENGTH[i]! * STRENGTH[j]!))));
      expect(prior.logConstant).toBeCloseTo(head + 0.5 * (logDeterminant(P) - 4 * Math.log(2 * Math.PI)), 10);
      prior.dispose();
    }
    // A τᵢ of 0 is flat and has no constant; a frozen group drops out.
    const frozen = { ...SPEC, "layer.1": { precision: Number.POSITIVE_INFINITY } };
    const prior = FAMILIES.diagonal!.make(model, frozen);
    expect(prior.logConstant).toBeCloseTo(head + 0.5 * (Math.log(80 / (2 * Math.PI)) + Math.log(1800 / (2 * Math.PI))), 10); // biome-ignore format: one thought
    prior.dispose();
    model.dispose();
  });
});

test("low rank: what trains follows the density that is conditional on what is held away from μ", async () => {
  const engine = new Engine(gpu());
  const model = line(engine);
  const prior = FAMILIES["low-rank covariance"]!.make(model);
  const start = [0.9, -1.1, 1.9, 0.4, 0.2, -0.3];
  for (const [name, from, to] of [["a", 0, 1], ["b", 1, 3], ["c", 3, 4], ["v", 4, 6]] as const) // biome-ignore format: a table
    model.theta.set(name, Float32Array.from(start.slice(from, to)));
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

describe("refusals, in one sentence", () => {
  const bad = (values: readonly number[]) => asMap(values);
  test.each([
    [
      "a negative precision",
      (t: Theta) => diagonalPrior(t, SPEC, bad([1, 2, -3, 4])),
      /precision of b is -3 at position 1/,
    ],
    [
      "a precision that is no number",
      (t: Theta) => diagonalPrior(t, SPEC, bad([1, Number.NaN, 3, 4])),
      /precision of b is NaN at position 0/,
    ],
    ["one beyond float32", (t: Theta) => diagonalPrior(t, SPEC, bad([1e39, 1, 3, 4])), /precision of a is 1e\+39/],
    ["half a slice", (t: Theta) => diagonalPrior(t, SPEC, new Map([["a", [1]]])), /b has no precision, and a/],
    [
      "another size",
      (t: Theta) => diagonalPrior(t, SPEC, new Map([["c", [1, 2]]])),
      /precision of c: 2 numbers \(expected 1\)/,
    ],
    [
      "another model's",
      (t: Theta) => diagonalPrior(t, SPEC, new Map([["z", [1]]])),
      /no parameter of the model has a precision/,
    ],
    [
      "a low-rank diagonal of 0",
      (t: Theta) => lowRankPrior(t, SPEC, { ...lowRank("precision"), diagonal: bad([1, 0, 1, 1]) }),
      /precision of b is 0 at position 0 \(expected finite numbers above 0\)/,
    ],
    [
      "factors that are not finite",
      (t: Theta) =>
        lowRankPrior(t, SPEC, {
          ...lowRank("precision"),
          factors: asMap([1, 2, 3, 4, 5, 6, 7, Number.POSITIVE_INFINITY], 2),
        }),
      /factors of c have Infinity/,
    ],
    [
      "factors of another rank",
      (t: Theta) => lowRankPrior(t, SPEC, { ...lowRank("precision"), rank: 3 }),
      /factors of a: 2 numbers \(expected 3\)/,
    ],
    ["ν = 0", (t: Theta) => studentTPrior(t, SPEC, { nu: 0 }), /ν is 0/],
    [
      "a group without a strength",
      (t: Theta) => laplacePrior(t, { encoder: { precision: 1 } }),
      /head has no precision/,
    ],
  ] as const)("%s", (_, make, message) => {
    // biome-ignore format: a table
    const model = line(new Engine(gpu()));
    expect(() => make(model.theta)).toThrow(message);
    expect(() => make(model.theta)).toThrow(InputError);
    model.dispose();
  });

  test("what takes isotropic Gaussians alone says so", () => {
    const model = line(new Engine(gpu()));
    const [w, c, v] = model.theta.layout.slices as [Slice, Slice, Slice];
    const prior = FAMILIES.diagonal!.make(model);
    expect(() => expectIsotropic("laplace", prior, [v])).not.toThrow();
    expect(() => expectGaussian("anchored", prior, [v, c])).not.toThrow();
    const heavy = laplacePrior(model.theta, SPEC);
    expect(() => expectGaussian("anchored", heavy, [v, c])).toThrow("anchored: the prior of head is laplace (expected a Gaussian)"); // biome-ignore format: one line
    heavy.dispose();
    expect(() => expectIsotropic("laplace", prior, [v, c])).toThrow("laplace: the prior of layer.1 is diagonal");
    prior.dispose();
    const gaussian = gaussianPrior(model.theta, SPEC);
    expect(() => expectIsotropic("laplace", gaussian, [w, c, v])).not.toThrow();
    gaussian.dispose();
    model.dispose();
  });
});
