/**
 * @file Log-densities of the shaped priors against float64: the device's gradients against finite differences, Woodbury's
 * forms and the constants against the dense normal and integrals. Nothing trains here; shaped-priors.test.ts does.
 */
import { Matrix } from "ml-matrix";
import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { allLive, readArray } from "../../src/kernels/index.ts";
import { Stream } from "../../src/random.ts";
import { addGram, logDeterminant, lowRankLogDensity } from "../../src/train/lowrank.ts";
import type { GaussianPriorSpec } from "../../src/train/prior.ts";
import { laplacePrior, logGamma, studentTPrior } from "../../src/train/shaped-priors.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { dense, FAMILIES, head, inverted, line, MU, numbersOf, place, SPEC, STRENGTH, slope, sum } from "./families.ts";

const gpu = gpuForTests();

for (const [name, family] of Object.entries(FAMILIES)) {
  describe(name, () => {
    test("its gradient is that of its log-density, by finite differences", async () => {
      const engine = new Engine(gpu());
      const delta = [0.7, -0.2, 0.05, 1.3, -0.4, 0.9];
      const model = line(engine);
      const prior = family.make(model);
      const start = MU.map((m, i) => (i < 4 ? m : 0) + delta[i]!);
      place(model.theta, start);
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
  });
}

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
