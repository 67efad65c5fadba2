/** @file How strong the prior was (check 21): KL to it against dense normals, and the τ that a θ̂ is the mode of. */
import { determinant, inverse, Matrix, solve } from "ml-matrix";
import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { diagonalCurvature, fullCurvature, kroneckerCurvature, placeOf } from "../../src/posterior/curvature.ts";
import { effectiveParameters } from "../../src/posterior/evidence.ts";
import { ggn } from "../../src/posterior/ggn.ts";
import { type LaplaceOptions, laplace } from "../../src/posterior/laplace.ts";
import { klToPrior, priorStrength } from "../../src/posterior/prior-strength.ts";
import { Trainer } from "../../src/train/fit.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { adamW, sgd } from "../../src/train/optimizers.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";
import { classes, type Rows, rowSource, twoLayers } from "../train/toys.ts";
import { full } from "../train/training.ts";

const gpu = gpuForTests();

/** KL(N(m₁, S₁) ‖ N(m₀, S₀)), dense. */
function kl(delta: readonly number[], S1: Matrix, S0: Matrix): number {
  const column = Matrix.columnVector([...delta]);
  const square = column.transpose().mmul(solve(S0, column)).get(0, 0);
  return 0.5 * (inverse(S0).mmul(S1).trace() - delta.length + square + Math.log(determinant(S0) / determinant(S1)));
}

/** RRᵀ, positive definite. */
function definite(n: number, seed: number): Matrix {
  const R = new Matrix(Array.from({ length: n }, (_, i) => [...randn(seed + i, n)]));
  return R.mmul(R.transpose()).add(Matrix.eye(n, n, 0.1));
}

describe("KL to the prior, against dense normals in float64", () => {
  const shape = { inputs: 2, outputs: 2, bias: true };
  const d = 6;
  const delta = [...randn(3, d)];
  const [A, G] = [definite(3, 20), definite(2, 30)];
  const H = definite(d, 10);
  const h = Float64Array.from(randn(40, d), (x) => x * x);
  const byKronecker = new Matrix(d, d);
  for (let o = 0; o < 2; o++)
    for (let i = 0; i < 3; i++)
      for (let p = 0; p < 2; p++)
        for (let j = 0; j < 3; j++)
          byKronecker.set(placeOf(shape, o, i), placeOf(shape, p, j), G.get(o, p) * A.get(i, j));
  const structures = {
    full: [fullCurvature(H, shape), H],
    diagonal: [diagonalCurvature(h, shape), Matrix.diag([...h])],
    kronecker: [kroneckerCurvature(A, G, shape), byKronecker],
  } as const;

  for (const [name, [curvature, dense]] of Object.entries(structures)) {
    test.each([
      [2, 1, 1],
      [0.3, 1, 5],
      [40, 0.5, 0.2],
    ])(`${name}: τ = %d, T = %d, the likelihood's %d`, (tau, temperature, likelihoodTemperature) => {
      const scale = 1 / likelihoodTemperature;
      const shapes = name === "kronecker" ? [undefined] : [undefined, Float64Array.of(0.2, 3, 1, 0.5, 7, 2)];
      for (const t of shapes) {
        const gaussian = curvature.gaussian(tau, scale, "head", t);
        const P0 = Matrix.diag(Array.from({ length: d }, (_, i) => tau * (t?.[i] ?? 1)));
        const S1 = inverse(Matrix.add(P0, Matrix.mul(dense, scale))).mul(temperature);
        const group = {
          group: "head",
          precision: tau,
          size: d,
          squaredDistance: delta.reduce((sum, x, i) => sum + (t?.[i] ?? 1) * x * x, 0),
          traceInverse: gaussian.traceInverse(t),
          logShape: t?.reduce((sum, x) => sum + Math.log(x), 0) ?? 0,
        };
        const exact = kl(delta, S1, inverse(P0));
        expect(Math.abs(klToPrior(group, gaussian.logDet, temperature) / exact - 1)).toBeLessThan(1e-10);
      }
    });
  }

  test("is 0 where the data say nothing and θ̂ = μ; a flat prior has none", () => {
    const nothing = fullCurvature(Matrix.zeros(4, 4)).gaussian(3, 1, "head");
    const group = { group: "head", precision: 3, size: 4, squaredDistance: 0, traceInverse: nothing.traceInverse() };
    expect(Math.abs(klToPrior(group, nothing.logDet))).toBeLessThan(1e-12);
    // Rounding leaves no less than 0 of either, whatever τ is.
    for (let i = 1; i < 400; i++) {
      const tau = i / 37;
      const { logDet, traceInverse } = fullCurvature(Matrix.zeros(5, 5)).gaussian(tau, 1, "head");
      const own = { ...group, precision: tau, size: 5, traceInverse: traceInverse() };
      expect(klToPrior(own, logDet)).toBeGreaterThanOrEqual(0);
      expect(effectiveParameters(own)).toBeGreaterThanOrEqual(0);
    }
    expect(() => klToPrior({ ...group, precision: 0 }, 1)).toThrow(RangeError);
  });
});

describe("of a network", () => {
  const rows = classes(48, 4, 3);
  /** Trains the head of a net whose encoder rests, and asks. */
  async function trained({
    steps = 600,
    tau = 4,
    decay = 0,
    N = 48,
    of = [rows],
    more = {},
  }: {
    steps?: number;
    tau?: number;
    decay?: number;
    N?: number;
    of?: Rows[];
    more?: LaplaceOptions;
  } = {}) {
    // biome-ignore format: one line
    const model = twoLayers(new Engine(gpu()), { d: 4, h: 5, K: 3 });
    const prior = gaussianPrior(model, { encoder: { precision: Number.POSITIVE_INFINITY }, head: { precision: tau } });
    const optimizer = decay > 0 ? adamW({ lr: 0.02, decay }) : sgd({ lr: 0.5 });
    const target = logPosterior(model, prior, { N: 48 });
    const trainer = new Trainer(target, rowSource(rows), { optimizer, ...full(48, steps), warn: () => {} });
    try {
      for await (const _ of trainer.run());
      const H = await ggn(model, [rows], { structure: "full" });
      const state = laplace(H, prior, more);
      const head = { w2: await model.theta.get("w2"), b2: await model.theta.get("b2") };
      const [found] = await priorStrength({ ...target, N }, state, of);
      expect(model.theta.layout.slices.map((slice) => model.theta.isFrozen(slice))).toEqual([true, true, false, false]);
      return { found: found as NonNullable<typeof found>, state, head };
    } finally {
      trainer.dispose();
      prior.dispose();
      model.dispose();
    }
  }

  test("at the mode the effective τ is τ, in one batch or two; before it is reached it is higher", async () => {
    const half = (from: number): Rows => ({ d: 4, x: rows.x.slice(96 * from, 96 * from + 96), y: rows.y.slice(24 * from, 24 * from + 24) }); // biome-ignore format: one line
    for (const of of [[rows], [half(0), half(1)]]) {
      const { found } = await trained({ of });
      expect(found).toMatchObject({ group: "head", precision: 4, size: 18 });
      expect(Math.abs((found.effectivePrecision as number) / 4 - 1)).toBeLessThan(1e-3);
    }
    const early = await trained({ steps: 3 });
    expect(early.found.effectivePrecision).toBeGreaterThan(8);
    expect(early.found.distance).toBeLessThan((await trained()).found.distance);
  });

  test("an optimiser's decay shows as a precision that nobody asked for", async () => {
    const { found } = await trained({ decay: 0.3, tau: 1e-3 });
    expect(found.precision).toBe(1e-3);
    expect(found.effectivePrecision).toBeGreaterThan(0.1);
  });

  test("distance, parameters determined and KL are those of the Gaussian", async () => {
    const { found, state, head } = await trained({ more: { temperature: 0.7, likelihoodTemperature: 2 } });
    const theta = [...head.w2, ...head.b2];
    expect(found.distance).toBeCloseTo(Math.hypot(...theta), 5);
    const gaussian = state.gaussians[0] as (typeof state.gaussians)[number];
    expect(found.determined).toBeCloseTo(18 - 4 * gaussian.traceInverse(), 9);
    // Λ⁻¹, column by column, from what draws of unit vectors give: (Λ^−½)(Λ^−½)ᵀ.
    const root = new Matrix(18, 18);
    for (let c = 0; c < 18; c++) {
      const unit = new Float64Array(18);
      unit[c] = 1;
      gaussian.draw(unit).forEach((x, r) => {
        root.set(r, c, x);
      });
    }
    const S1 = root.mmul(root.transpose()).mul(0.7);
    expect(Math.abs(found.kl / kl(theta, S1, Matrix.eye(18, 18, 0.25)) - 1)).toBeLessThan(1e-6);
  });

  test("refuses data that are not the log-posterior's", async () => {
    await expect(trained({ steps: 2, N: 47 })).rejects.toThrow(/hold 48 terms, the log-posterior says N = 47/);
  });
});
