/** @file The evidence and the precision it chooses, against closed forms (checks 8 and 9). */
import { determinant, inverse, Matrix, solve } from "ml-matrix";
import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { fullCurvature } from "../../src/posterior/curvature.ts";
import {
  type EvidenceGroup,
  effectiveParameters,
  evidence,
  evidenceGradient,
  logEvidence,
  maximiseEvidence,
  nextPrecision,
} from "../../src/posterior/evidence.ts";
import { ggn } from "../../src/posterior/ggn.ts";
import { type LaplaceOptions, laplace } from "../../src/posterior/laplace.ts";
import { Trainer } from "../../src/train/fit.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { sgd } from "../../src/train/optimizers.ts";
import { type GaussianPriorSpec, gaussianPrior } from "../../src/train/prior.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";
import { classes, logistic, type Rows, regression, rowSource, twoLayers } from "../train/toys.ts";
import { full } from "../train/training.ts";

// ---- linear regression: y ~ N(Xθ, σ²I), θ ~ N(μ, I/τ), in float64

const [n, d, sigma2] = [7, 3, 0.4];
const X = new Matrix(Array.from({ length: n }, (_, i) => [...randn(40 + i, d)]));
const y = Matrix.columnVector([...randn(50, n, 1.5)]);
const MU = [0.7, -1.1, 0.3];

/** Evidence and its parts by the library's functions, at the MAP of θᵢ ~ N(μᵢ, 1/(τtᵢ)). */
function byLaplace(tau: number, t?: Float64Array) {
  const H = X.transpose().mmul(X).div(sigma2);
  const symmetric = Matrix.add(H, H.transpose()).div(2);
  const gaussian = fullCurvature(symmetric).gaussian(tau, 1, "encoder", t);
  const T = Matrix.diag([...(t ?? new Float64Array(d).fill(1))]);
  const right = X.transpose()
    .mmul(y)
    .div(sigma2)
    .add(T.mmul(Matrix.columnVector(MU)).mul(tau));
  const theta = solve(Matrix.add(symmetric, Matrix.mul(T, tau)), right);
  const error = Matrix.sub(y, X.mmul(theta)).norm() ** 2;
  const nll = (0.5 * error) / sigma2 + 0.5 * n * Math.log(2 * Math.PI * sigma2);
  const delta = Matrix.sub(theta, Matrix.columnVector(MU));
  const squaredDistance = delta.transpose().mmul(T).mmul(delta).get(0, 0);
  const group: EvidenceGroup = {
    group: "encoder",
    precision: tau,
    size: d,
    squaredDistance,
    traceInverse: gaussian.traceInverse(t),
    ...(t ? { logShape: t.reduce((sum, value) => sum + Math.log(value), 0) } : {}),
  };
  return { group, nll, logDet: gaussian.logDet, logEvidence: logEvidence(nll, gaussian.logDet, [group]) };
}

/** log N(y; Xμ, σ²I + X diag(1/τt) Xᵀ) */
function exactly(tau: number, t = new Float64Array(d).fill(1)): number {
  const prior = Matrix.diag(Array.from(t, (value) => 1 / (tau * value)));
  const C = Matrix.add(X.mmul(prior).mmul(X.transpose()), Matrix.eye(n, n, sigma2));
  const r = Matrix.sub(y, X.mmul(Matrix.columnVector(MU)));
  const square = r.transpose().mmul(inverse(C)).mmul(r).get(0, 0);
  return -0.5 * (square + Math.log(determinant(C)) + n * Math.log(2 * Math.PI));
}

describe("linear regression, μ ≠ 0 (checks 8 and 9)", () => {
  test.each([1e-3, 0.5, 2, 1e4])("log P(X) is exact: τ = %d", (tau) => {
    expect(Math.abs(byLaplace(tau).logEvidence / exactly(tau) - 1)).toBeLessThan(1e-10);
  });

  test.each([0.05, 0.5, 5])("d log P(X) / dτ: τ = %d", (tau) => {
    const h = 1e-4 * tau;
    const slope = (exactly(tau + h) - exactly(tau - h)) / (2 * h);
    expect(Math.abs(evidenceGradient(byLaplace(tau).group) / slope - 1)).toBeLessThan(1e-6);
  });

  test("a precision for every parameter, τ·tᵢ: evidence and its derivative in τ", () => {
    const t = Float64Array.of(0.2, 3, 1.1);
    const [tau, h] = [0.8, 1e-4];
    expect(Math.abs(byLaplace(tau, t).logEvidence / exactly(tau, t) - 1)).toBeLessThan(1e-10);
    const slope = (exactly(tau + h, t) - exactly(tau - h, t)) / (2 * h);
    expect(Math.abs(evidenceGradient(byLaplace(tau, t).group) / slope - 1)).toBeLessThan(1e-6);
  });

  test("MacKay's fixed point is the maximum", async () => {
    const at = async ({ encoder = 0 }: Readonly<Record<string, number>>) => {
      const { group, nll, logEvidence } = byLaplace(encoder);
      return { groups: [group], nll, logEvidence };
    };
    const found = await maximiseEvidence(at, { encoder: 1 }, { rounds: 200, tolerance: 1e-9 });
    const tau = found.precisions.encoder as number;
    expect(found.converged).toBe(true);
    expect(Math.abs(evidenceGradient(byLaplace(tau).group) * tau)).toBeLessThan(1e-7);
    expect(exactly(tau)).toBeGreaterThan(Math.max(exactly(0.9 * tau), exactly(1.1 * tau)));
    expect(found.evidence.logEvidence).toBeCloseTo(exactly(tau), 9);
    const { group } = byLaplace(tau);
    expect(effectiveParameters(group)).toBeGreaterThan(0);
    expect(effectiveParameters(group)).toBeLessThan(d);
    // Stopped early, it says so; where θ̂ = μ, τ runs away and the search ends.
    expect(await maximiseEvidence(at, { encoder: 1 }, { rounds: 2 })).toMatchObject({ rounds: 2, converged: false });
    expect(nextPrecision({ ...group, squaredDistance: 0 })).toBe(Number.POSITIVE_INFINITY);
    const still = async () => ({ groups: [{ ...group, squaredDistance: 0 }], nll: 0, logEvidence: 0 });
    expect(await maximiseEvidence(still, { encoder: 1 })).toMatchObject({ precisions: { encoder: 1 }, rounds: 1 });
  });
});

// ---- on the device

const gpu = gpuForTests();

/** 1-D logistic regression at its MAP. */
async function logisticAt(rows: Rows, mean: number, tau: number, options?: LaplaceOptions) {
  const model = logistic(new Engine(gpu()), 1, Float32Array.of(mean));
  const prior = gaussianPrior(model.theta, { encoder: { precision: tau } });
  const target = logPosterior(model, prior, { N: rows.y.length });
  try {
    const trainer = new Trainer(target, rowSource(rows), { optimizer: sgd({ lr: 1 }), ...full(rows.y.length, 150) });
    for await (const _ of trainer.run()) {
      // to the end
    }
    trainer.dispose();
    const H = await ggn(model, [rows], { structure: "full" });
    return await evidence(target, laplace(H, prior, options), [rows]);
  } finally {
    prior.dispose();
    model.dispose();
  }
}

/** log ∫ p(X|θ) p(θ) dθ on a grid. */
function byQuadrature({ x, y }: Rows, mean: number, tau: number): number {
  let sum = 0;
  const step = 1e-3;
  for (let theta = -15; theta <= 15; theta += step) {
    let log = 0.5 * Math.log(tau / (2 * Math.PI)) - 0.5 * tau * (theta - mean) ** 2;
    for (const [i, label] of y.entries()) log -= Math.log1p(Math.exp((label === 1 ? -1 : 1) * theta * x[i]!));
    sum += step * Math.exp(log);
  }
  return Math.log(sum);
}

describe("logistic regression", () => {
  const rows = (count: number): Rows => {
    const { x } = regression(count, [0], 1, 8);
    return { x, y: Float32Array.from(x, (value, i) => (value + 0.9 * Math.sin(7 * i) > 0 ? 1 : 0)), d: 1 };
  };

  test("1-D: Laplace comes near quadrature, and nearer with more data", async () => {
    const errors: number[] = [];
    for (const count of [8, 200]) {
      const found = await logisticAt(rows(count), 0.5, 0.7);
      errors.push(Math.abs(found.logEvidence - byQuadrature(rows(count), 0.5, 0.7)));
      expect(found.groups.map(({ group, size }) => [group, size])).toEqual([["encoder", 1]]);
    }
    expect(errors[0]).toBeLessThan(0.1);
    expect(errors[1]).toBeLessThan(0.005);
  });

  test("a tempered posterior has no evidence", async () => {
    await expect(logisticAt(rows(8), 0, 1, { temperature: 0.5 })).rejects.toThrow(
      /temperature 0.5, likelihood 1 is not/,
    );
    await expect(logisticAt(rows(8), 0, 1, { likelihoodTemperature: 2 })).rejects.toThrow(/likelihood 2 is not/);
  });
});

describe("what counts", () => {
  const rows = classes(12, 2, 3);

  /** Evidence of a net with a random θ for θ̂: the formula does not know whether it is a maximum. */
  async function netEvidence(
    spec: GaussianPriorSpec,
    { groups, rest, N = 12 }: { groups?: string[]; rest?: "fixed"; N?: number } = {},
  ) {
    const model = twoLayers(new Engine(gpu()), { d: 2, h: 3, K: 3 });
    const prior = gaussianPrior(model, spec);
    try {
      const H = await ggn(model, [rows], { structure: groups ? "kronecker" : "full", groups });
      const found = await evidence(logPosterior(model, prior, { N }), laplace(H, prior), [rows], rest ? { rest } : {});
      const logDet = laplace(H, prior).gaussians.reduce((sum, { logDet }) => sum + logDet, 0);
      return { ...found, logDet, logConstant: prior.logConstant };
    } finally {
      prior.dispose();
      model.dispose();
    }
  }

  test("groups at ∞ drop out; the prior's own constant is what the formula has", async () => {
    const found = await netEvidence({ encoder: { precision: Number.POSITIVE_INFINITY }, head: { precision: 2 } });
    expect(found.groups.map(({ group, size }) => [group, size])).toEqual([["head", 12]]);
    const { squaredDistance } = found.groups[0]!;
    const byConstant =
      -found.nll - squaredDistance + found.logConstant + 6 * Math.log(2 * Math.PI) - 0.5 * found.logDet;
    expect(found.logEvidence).toBeCloseTo(byConstant, 9);
  });

  test("each group has its own terms", async () => {
    const found = await netEvidence(
      { encoder: { precision: 50 }, "layer.1": { precision: Number.POSITIVE_INFINITY }, head: { precision: 2 } },
      { groups: ["encoder", "head"] },
    );
    expect(found.groups.map(({ group, precision, size }) => [group, precision, size])).toEqual([
      ["encoder", 50, 6],
      ["head", 2, 12],
    ]);
    // The bias, of layer.1, is frozen: the block is the weight alone.
    const apart = { encoder: { precision: 50 }, "layer.1": { precision: 3 }, head: { precision: 2 } };
    await expect(netEvidence(apart, { groups: ["encoder"] })).rejects.toThrow(
      /weight and bias of w1 have different prior precisions .50, 3.\. Give them one/,
    );
    expect(found.groups[0]?.squaredDistance).toBe(0);
    expect(found.groups[1]?.squaredDistance).toBeGreaterThan(0);
  });

  test("a flat prior is refused, as is what learns outside the approximation; unless it counts as fixed", async () => {
    const flatHead = { encoder: { precision: Number.POSITIVE_INFINITY }, head: { precision: 0 } };
    await expect(netEvidence(flatHead)).rejects.toThrow(/not positive definite|head has precision 0/);
    const flatEncoder = { encoder: { precision: 0 }, head: { precision: 1 } };
    await expect(netEvidence(flatEncoder)).rejects.toThrow(
      /encoder has precision 0, and an improper prior has no evidence/,
    );
    const both = { encoder: { precision: 300 }, head: { precision: 1 } };
    await expect(netEvidence(both)).rejects.toThrow(/w1 of encoder learns \(precision 300\) and is not in the Laplace/);
    expect((await netEvidence(both, { rest: "fixed" })).groups.map(({ group }) => group)).toEqual(["head"]);
    await expect(netEvidence(both, { rest: "fixed", N: 13 })).rejects.toThrow(
      /hold 12 terms, the log-posterior says N = 13/,
    );
  });
});
