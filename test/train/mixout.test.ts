/** @file Mixout: the loss that it climbs, its steps against float64, and that it costs no bit where it is not asked for. */
import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { InputError } from "../../src/errors.ts";
import { mixoutFactor } from "../../src/kernels/mixout.ts";
import { streamKey } from "../../src/random.ts";
import { type FitOptions, type StepReport, Trainer } from "../../src/train/fit.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { sgd } from "../../src/train/optimizers.ts";
import { type GaussianPriorSpec, gaussianPrior } from "../../src/train/prior.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { linearRegression, type Rows, regression, regressions, rowSource } from "./toys.ts";
import { full } from "./training.ts";

const gpu = gpuForTests();

// Linear regression with variance ¼: the mean NLL is quadratic, H = XᵀX/(N σ²).
const [N, d, SIGMA2] = [60, 4, 0.25];
const LINE = regression(N, [0.5, -1, 2, 0.3], 0.5);
const MU = [0.2, -0.5, 1, 0.4];
const START = [0.9, -1.4, 1.7, -0.2];

function mean(theta: readonly number[]): { nll: number; g: number[]; H: number[] } {
  const [g, H] = [new Array<number>(d).fill(0), new Array<number>(d).fill(0)];
  let nll = 0;
  for (let i = 0; i < N; i++) {
    const x = [...LINE.x.subarray(i * d, (i + 1) * d)];
    const error = theta.reduce((sum, t, j) => sum + t * x[j]!, 0) - LINE.y[i]!;
    nll += error ** 2 / (2 * SIGMA2) / N;
    for (let j = 0; j < d; j++) {
      g[j]! += (error * x[j]!) / SIGMA2 / N;
      H[j]! += x[j]! ** 2 / SIGMA2 / N;
    }
  }
  return { nll, g, H };
}

/** Full batches from START with the prior's mean at MU. */
async function train(
  options: Partial<FitOptions>,
  steps: number,
  lr: number,
  parts = 1,
  spec: GaussianPriorSpec = { encoder: { precision: 0 } },
) {
  // biome-ignore format: one line
  const model = linearRegression(new Engine(gpu()), d, SIGMA2, Float32Array.from(MU));
  const prior = gaussianPrior(model.theta, spec);
  model.theta.set("w", Float32Array.from(START));
  const warnings: string[] = [];
  const make = () =>
    new Trainer(logPosterior(model, prior, { N }), rowSource(LINE), {
      optimizer: sgd({ lr }),
      ...full(N, steps),
      seed: 9,
      settle: () => true,
      warn: (line) => warnings.push(line),
      ...options,
    });
  const reports: StepReport[] = [];
  const thetas = [START];
  let trainer: Trainer<Rows> | undefined;
  try {
    trainer = make();
    for (let part = 1; part <= parts; part++) {
      for await (const report of trainer.run()) {
        reports.push(report);
        if (steps < 20) thetas.push([...(await model.theta.get("w"))]);
        if (part < parts && report.step === Math.floor((part * steps) / parts)) break;
      }
      if (part === parts) break;
      const state = await trainer.state();
      trainer.dispose();
      trainer = make();
      await trainer.restore(state);
    }
    return { reports, thetas, warnings };
  } finally {
    trainer?.dispose();
    prior.dispose();
    model.dispose();
  }
}

describe("a quadratic (check 15)", () => {
  for (const p of [0.1, 0.5, 0.8]) {
    test(`p = ${p}: E L(θ') = L(θ) + p/(2(1 − p)) Σ Hᵢᵢ Δᵢ²`, async () => {
      // 64 regressions a step, each with a mask of its own: 3,840 masks.
      const R = 64;
      const model = regressions(new Engine(gpu()), R, SIGMA2, MU);
      const prior = gaussianPrior(model.theta, { encoder: { precision: 0 } });
      model.theta.set(
        "w",
        Float32Array.from({ length: R * d }, (_, i) => START[i % d]!),
      );
      const reports: { nll: number }[] = [];
      const trainer = new Trainer(logPosterior(model, prior, { N }), rowSource(LINE), { optimizer: sgd({ lr: 1e-30 }), ...full(N, 60), seed: 9, mixout: p }); // biome-ignore format: one line
      for await (const { nll } of trainer.run()) reports.push({ nll: nll / R });
      trainer.dispose();
      prior.dispose();
      model.dispose();
      const { nll, H } = mean(START.map(Math.fround));
      // The kernel's p is a multiple of 1/65536.
      const kept = Math.round((1 - p) * 65536) / 65536;
      const delta = START.map((t, i) => t - MU[i]!);
      const expected = nll + ((1 - kept) / (2 * kept)) * H.reduce((sum, h, i) => sum + h * delta[i]! ** 2, 0);
      const found = reports.reduce((sum, r) => sum + r.nll, 0) / reports.length;
      const variance = reports.reduce((sum, r) => sum + (r.nll - found) ** 2, 0) / reports.length;
      expect(Math.abs(found - expected)).toBeLessThan(4 * Math.sqrt(variance / reports.length));
      // The plain loss is far outside.
      expect(Math.abs(found - nll)).toBeGreaterThan(12 * Math.sqrt(variance / reports.length));
    });
  }
});

test("a step is −lr·m/(1 − p) ⊙ ∇L(θ'), and θ itself comes back: a replay in float64", async () => {
  const [p, lr] = [0.5, 0.02];
  const { reports, thetas } = await train({ mixout: p }, 6, lr);
  for (const [k, { step, nll, gradNorm, distance }] of reports.entries()) {
    const theta = thetas[k]!;
    const factor = theta.map((_, i) => mixoutFactor(i, { p, key: streamKey(9, "mixout", step) }));
    const mu = MU.map(Math.fround);
    const at = mean(theta.map((t, i) => mu[i]! + factor[i]! * (t - mu[i]!)));
    const g = at.g.map((x, i) => factor[i]! * x);
    expect(Math.abs(nll / at.nll - 1)).toBeLessThan(1e-5);
    expect(Math.abs(gradNorm / Math.hypot(...g) - 1)).toBeLessThan(1e-5);
    expect(distance).toBeCloseTo(Math.hypot(...theta.map((t, i) => t - mu[i]!)), 5);
    for (let i = 0; i < d; i++) expect(Math.abs(thetas[k + 1]![i]! - (theta[i]! - lr * g[i]!))).toBeLessThan(2e-6);
  }
});

test("p = 0 is plain training, bit for bit; a resumed run draws the same masks", async () => {
  const without = ({ thetas, reports }: Awaited<ReturnType<typeof train>>) => ({ thetas, reports: reports.map((r) => ({ ...r, tokensPerSecond: 0 })) }); // biome-ignore format: one line
  expect(without(await train({ mixout: 0 }, 5, 0.05))).toEqual(without(await train({}, 5, 0.05)));
  const straight = without(await train({ mixout: 0.4 }, 8, 0.05));
  expect(without(await train({ mixout: 0.4 }, 8, 0.05, 2))).toEqual(straight);
  expect(straight.thetas).not.toEqual(without(await train({}, 8, 0.05)).thetas);
});

test("warns beside a prior on the same weights; refuses what cannot be", async () => {
  const both = await train({ mixout: 0.3 }, 2, 0.01, 1, { encoder: { precision: 5 } });
  expect(both.warnings).toEqual([expect.stringMatching(/mixout of 0.3 and the encoder's prior both pull/)]);
  expect((await train({ mixout: 0.3 }, 2, 0.01)).warnings).toEqual([]);
  for (const mixout of [1, -0.1, Number.NaN]) {
    await expect(train({ mixout }, 2, 0.01)).rejects.toThrow(/mixout: (1|-0.1|NaN) \(expected a number from 0 to below 1\)/); // biome-ignore format: one line
    await expect(train({ mixout }, 2, 0.01)).rejects.toThrow(InputError);
  }
});
