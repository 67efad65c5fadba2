/** @file Draws of priors: their covariances against dense float64, their quantiles, and what cannot be drawn. */
import { inverse, Matrix } from "ml-matrix";
import { describe, expect, test } from "vitest";
import { Engine, Layout, type Slice, Theta } from "../../src/autograd/index.ts";
import { Stream } from "../../src/random.ts";
import { gaussianPrior, type Prior } from "../../src/train/prior.ts";
import { gamma, priorNoise } from "../../src/train/prior-noise.ts";
import { diagonalPrior, laplacePrior, lowRankPrior, studentTPrior } from "../../src/train/shaped-priors.ts";
import { gpuForTests } from "../kernels/harness.ts";

const gpu = gpuForTests();
const LAYOUT = new Layout([
  { key: "w", parameters: [{ name: "w", shape: [3] }], groups: ["encoder", "layer.0"] },
  { key: "c", parameters: [{ name: "c", shape: [2] }], groups: ["encoder", "layer.1"] },
  { key: "v", parameters: [{ name: "v", shape: [1] }], groups: ["head"] },
]);
const SPEC = { encoder: { precision: 2 }, "layer.1": { precision: 0.5 }, head: { precision: 3 } };
const A = [2, 2, 2, 0.5, 0.5];
const D = [4, 3, 9, 7, 2];
const U = [
  [5, -3, 2, 0, 1],
  [0, 4, 1, -2, 3],
];
const map = (values: readonly number[], k = 1) =>
  new Map([
    ["w", Array.from({ length: k }, (_, j) => values.slice(5 * j, 5 * j + 3)).flat()],
    ["c", Array.from({ length: k }, (_, j) => values.slice(5 * j + 3, 5 * j + 5)).flat()],
  ]);

/** n draws of all six elements. */
async function draws(make: (theta: Theta) => Prior, n: number, of = (slices: readonly Slice[]) => slices) {
  const theta = new Theta(new Engine(gpu()), LAYOUT);
  const prior = make(theta);
  const slices = of(LAYOUT.slices);
  const found: Float32Array[] = [];
  for (let i = 0; i < n; i++) found.push(await priorNoise(prior, theta, slices, ({ key }) => new Stream(4, "draw", i, LAYOUT.index(key)))); // biome-ignore format: one line
  prior.dispose();
  theta.dispose();
  return found;
}

describe("a Gaussian's draws have its covariance", () => {
  const n = 1500;
  const covariance = (form: "precision" | "covariance", kept: readonly number[]) => {
    const S = new Matrix(D.map((d, i) => D.map((_, j) => (i === j ? (form === "precision" ? d : 1 / d) : 0) + (form === "precision" ? 1 : 0.01) * U.reduce((sum, u) => sum + u[i]! * u[j]!, 0)))); // biome-ignore format: a formula
    const P = form === "precision" ? S : inverse(S);
    return inverse(new Matrix(kept.map((i) => kept.map((j) => Math.sqrt(A[i]! * A[j]!) * P.get(i, j)))));
  };
  function check(found: Float32Array[], expected: Matrix) {
    for (let i = 0; i < expected.rows; i++)
      for (let j = 0; j <= i; j++) {
        const mean = found.reduce((sum, x) => sum + x[i]! * x[j]!, 0) / n;
        const error = Math.sqrt((expected.get(i, i) * expected.get(j, j) + expected.get(i, j) ** 2) / n);
        expect(Math.abs(mean - expected.get(i, j)), `${i}, ${j}`).toBeLessThan(4.5 * error);
      }
  }

  for (const form of ["precision", "covariance"] as const) {
    test(`low rank, by its ${form}; a part of it is conditional on the rest`, async () => {
      const numbers = form === "precision" ? { diagonal: map(D), factors: map(U.flat(), 2) } : { diagonal: map(D.map((d) => 1 / d)), factors: map(U.flat().map((x) => x / 10), 2) }; // biome-ignore format: one line
      const make = (theta: Theta) => lowRankPrior(theta, SPEC, { form, rank: 2, ...numbers });
      check(await draws(make, n), covariance(form, [0, 1, 2, 3, 4]));
      check(await draws(make, n, (slices) => slices.slice(0, 1)), covariance(form, [0, 1, 2]));
    });
  }

  test("diagonal, with the head's isotropic one", async () => {
    const found = await draws((theta) => diagonalPrior(theta, SPEC, map(D)), n);
    check(found, Matrix.diag([...D.map((d, i) => 1 / (d * A[i]!)), 1 / 3]));
  });
});

test("Laplace has variance 1/τ and mean |Δ| = 1/√(2τ); Student-t its quartiles", async () => {
  const n = 2000;
  const [laplace, student] = [await draws((theta) => laplacePrior(theta, SPEC), n), await draws((theta) => studentTPrior(theta, SPEC, { nu: 3 }), n)]; // biome-ignore format: one line
  for (const [i, tau] of [...A, 3].entries()) {
    const size = laplace.reduce((sum, x) => sum + Math.abs(x[i]!), 0) / n;
    expect(Math.abs(size * Math.sqrt(2 * tau) - 1)).toBeLessThan(4.5 / Math.sqrt(n));
    const square = laplace.reduce((sum, x) => sum + x[i]! ** 2, 0) / n;
    // The fourth moment of a Laplace is 6/τ².
    expect(Math.abs(square * tau - 1)).toBeLessThan(4.5 * Math.sqrt(5 / n));
    // P(|t₃| < 0.7649) = ½.
    const inside = student.filter((x) => Math.abs(x[i]!) * Math.sqrt(tau) < 0.764892).length / n;
    expect(Math.abs(inside - 0.5)).toBeLessThan(4.5 * Math.sqrt(0.25 / n));
    // P(|t₃| < 3.18245) = .95: heavier than a normal's.
    const tail = student.filter((x) => Math.abs(x[i]!) * Math.sqrt(tau) > 3.18245).length / n;
    expect(Math.abs(tail - 0.05)).toBeLessThan(4.5 * Math.sqrt(0.0475 / n));
  }
});

test("Γ has its mean and variance, below and above 1", () => {
  for (const shape of [0.5, 0.9, 3.5]) {
    const stream = new Stream(1, "gamma");
    const values = Array.from({ length: 20_000 }, () => gamma(stream, shape));
    const mean = values.reduce((a, b) => a + b) / values.length;
    const variance = values.reduce((a, x) => a + (x - shape) ** 2, 0) / values.length;
    expect(Math.abs(mean - shape)).toBeLessThan(4.5 * Math.sqrt(shape / values.length));
    expect(Math.abs(variance / shape - 1)).toBeLessThan(4.5 * Math.sqrt((2 + 6 / shape) / values.length));
  }
});

test("a draw does not depend on what else is drawn, where nothing couples; a τ of 0 has none", async () => {
  const make = (theta: Theta) => diagonalPrior(theta, SPEC, map(D));
  const [[all], [head]] = [await draws(make, 1), await draws(make, 1, (slices) => slices.slice(2))];
  expect(head?.[0]).toBe(all?.[5]);
  const isotropic = await draws((theta) => gaussianPrior(theta, SPEC), 1);
  expect(isotropic[0]?.[5]).toBe(all?.[5]);
  const theta = new Theta(new Engine(gpu()), LAYOUT);
  const prior = diagonalPrior(theta, SPEC, map([1, 0, 1, 1, 1]));
  await expect(priorNoise(prior, theta, LAYOUT.slices, () => new Stream(1, "x"))).rejects.toThrow(/w has elements of precision 0/); // biome-ignore format: one line
  prior.dispose();
  theta.dispose();
});
