/**
 * @file The families of shaped priors on one small model, for the test files that share them: how each is made, and its
 * −log p(Δ) in float64, written apart from the code. One row of FAMILIES takes a new family through its gradient check and
 * its replay. The device is handed in: the files of a process share this module, but each has its own hooks.
 */
import { inverse, Matrix } from "ml-matrix";
import { Engine, Layout, ops, Theta } from "../../src/autograd/index.ts";
import type { Gpu } from "../../src/gpu/index.ts";
import { type FitOptions, type StepReport, Trainer } from "../../src/train/fit.ts";
import type { LowRankForm } from "../../src/train/lowrank.ts";
import { logPosterior } from "../../src/train/objective.ts";
import type { Optimizer } from "../../src/train/optimizers.ts";
import type { GaussianPriorSpec, Prior } from "../../src/train/prior.ts";
import {
  diagonalPrior,
  type LowRankNumbers,
  laplacePrior,
  lowRankPrior,
  studentTPrior,
} from "../../src/train/shaped-priors.ts";
import { type Rows, regression, rowSource, type Toy } from "./toys.ts";
import { full } from "./training.ts";

// y = x·(w, v) + noise of variance ¼: w, of group encoder and in two slices, has four elements, v, the head, has two.
export const D = 6;
export const SIGMA2 = 0.25;
export const LINE = regression(100, [0.5, -1, 2, 0.3, -0.7, 1.1], 0.5);
export const MU = [0.3, -0.6, 1.5, 0, 0, 0];

/** Sets θ to six numbers: w, then v. */
export function place(theta: Theta, numbers: readonly number[]): void {
  for (const [name, from, to] of [["a", 0, 1], ["b", 1, 3], ["c", 3, 4], ["v", 4, 6]] as const) // biome-ignore format: a table
    theta.set(name, Float32Array.from(numbers.slice(from, to)));
}

export function line(engine: Engine, start: readonly number[] = MU): Toy {
  const theta = new Theta(
    engine,
    new Layout([
      { key: "w", parameters: [{ name: "a", shape: [1, 1] }, { name: "b", shape: [1, 2] }].map((p) => ({ ...p, shape: [p.shape[1] as number, 1] })), groups: ["encoder", "layer.0"] }, // biome-ignore format: a table
      { key: "c", parameters: [{ name: "c", shape: [1, 1] }], groups: ["encoder", "layer.1"] },
      { key: "v", parameters: [{ name: "v", shape: [2, 1] }], groups: ["head"] },
    ]),
  );
  place(theta, start);
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
export const numbersOf = async ({ theta }: Toy, vector = theta.values) =>
  (await Promise.all(NAMES.map((name) => theta.get(name, vector)))).flatMap((part) => [...part]);

export const TAU = [40, 0, 900, 7];
export const asMap = (values: readonly number[], k = 1) => {
  const column = (j: number, from: number, size: number) => values.slice(j * 4 + from, j * 4 + from + size);
  const of = (from: number, size: number) => Array.from({ length: k }, (_, j) => column(j, from, size)).flat();
  return new Map([["a", of(0, 1)], ["b", of(1, 2)], ["c", of(3, 1)]]); // biome-ignore format: a table
};
const DIAGONAL = [40, 3, 90, 7];
const COLUMNS = [
  [5, -3, 2, 0],
  [0, 4, 1, -2],
];
export const lowRank = (form: LowRankForm): LowRankNumbers =>
  form === "precision"
    ? { form, diagonal: asMap(DIAGONAL), rank: 2, factors: asMap(COLUMNS.flat(), 2) }
    : {
        form,
        diagonal: asMap(DIAGONAL.map((d) => 1 / d)),
        rank: 2,
        factors: asMap(COLUMNS.flat().map((x) => x / 20), 2),
      }; // biome-ignore format: a table

/** S⁻¹, symmetric to the last bit. */
export function inverted(S: Matrix): Matrix {
  const P = inverse(S);
  return Matrix.mul(Matrix.add(P, P.transpose()), 0.5);
}

/** The encoder's precision matrix of a low-rank prior, in float64, by dense algebra. */
export function dense(form: LowRankForm): number[][] {
  const scale = form === "precision" ? 1 : 1 / 400;
  const S = new Matrix(DIAGONAL.map((d, i) => DIAGONAL.map((_, j) => (i === j ? (form === "precision" ? d : 1 / d) : 0) + scale * COLUMNS.reduce((sum, u) => sum + u[i]! * u[j]!, 0)))); // biome-ignore format: a formula
  return (form === "precision" ? S : inverted(S)).to2DArray();
}

export const SPEC: GaussianPriorSpec = {
  encoder: { precision: 2 },
  "layer.1": { precision: 0.5 },
  head: { precision: 3 },
};
export const STRENGTH = [2, 2, 2, 0.5];

interface Family {
  make(model: Toy, spec?: GaussianPriorSpec): Prior;
  /** −log p(Δ) without its constant, nats; Δ of all six elements. */
  energy(delta: readonly number[]): number;
}
export const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
/** The head's part of the energy where its prior is the isotropic Gaussian. */
export const head = (delta: readonly number[]) => 1.5 * (delta[4]! ** 2 + delta[5]! ** 2);
const structured = (form: LowRankForm): Family => ({
  make: (model, spec = SPEC) => lowRankPrior(model.theta, spec, lowRank(form)),
  energy: (delta) => {
    const P = dense(form);
    const scaled = STRENGTH.map((a, i) => Math.sqrt(a) * delta[i]!);
    return head(delta) + 0.5 * sum(P.map((row, i) => sum(row.map((p, j) => p * scaled[i]! * scaled[j]!))));
  },
});
const ALL = [2, 2, 2, 0.5, 3, 3];
export const FAMILIES: Readonly<Record<string, Family>> = {
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
export function slope(energy: Family["energy"], delta: readonly number[]): number[] {
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
export async function train(
  gpu: Gpu,
  { make }: Pick<Family, "make">,
  options: Partial<FitOptions> & { optimizer: Optimizer; steps: number },
  data: Rows = LINE,
): Promise<Run> {
  const { steps, ...rest } = options;
  const model = line(new Engine(gpu));
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
export function likelihood(theta: readonly number[]): { nll: number; g: number[] } {
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
