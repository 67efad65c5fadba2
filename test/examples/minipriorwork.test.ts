/** @file examples/minipriorwork.ts: the twin against itself (gradients, quadrature), and the library against the twin. */
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { describe, expect, test } from "vitest";
import * as mini from "../../examples/minipriorwork.ts";
import { Engine } from "../../src/autograd/index.ts";
import { effectiveSampleSize } from "../../src/posterior/diagnostics.ts";
import { evidence } from "../../src/posterior/evidence.ts";
import { ggn } from "../../src/posterior/ggn.ts";
import { laplace, laplaceDraws } from "../../src/posterior/laplace.ts";
import { readLastLayer } from "../../src/posterior/layers.ts";
import { covarianceOfLastLayer, probitLogits } from "../../src/posterior/linearised.ts";
import { sgld } from "../../src/posterior/samplers.ts";
import { trajectory } from "../../src/posterior/trajectory.ts";
import { type FitOptions, Trainer } from "../../src/train/fit.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { sgd } from "../../src/train/optimizers.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { logistic, type Rows, rowSource } from "../train/toys.ts";
import { full } from "../train/training.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const { FILMS, PRIOR } = mini;
const N = FILMS.y.length;
const target = mini.logPosterior(FILMS, mini.gaussianPrior(PRIOR));
const mode = mini.fit(target);

describe("the twin", () => {
  test("prints a table in which the methods approach the answer", async () => {
    const { stdout } = await promisify(execFile)(process.execPath, ["--import", "tsx", "examples/minipriorwork.ts"], {
      cwd: ROOT,
    });
    const rows = stdout.split("\n").filter((line) => /^(MLE|MAP|Laplace|SGLD|quadrature) /.test(line));
    expect(rows.map((line) => line.split(" ")[0])).toEqual(["MLE", "MAP", "Laplace", "SGLD", "quadrature"]);
    expect(rows[4]).toMatch(/^quadrature {2}0\.766 ± 0\.367 {2}0\.233 ± 0\.573 /);
    expect(stdout).not.toMatch(/NaN|undefined/);
  });

  test("its gradients are those of its log-posterior, and its precision is theirs", () => {
    const theta: mini.Pair = [0.3, -0.4];
    const h = 1e-5;
    const shifted = (k: number, by: number) => theta.map((t, i) => (i === k ? t + by : t)) as unknown as mini.Pair;
    const [a, b, c] = target.precision(theta);
    for (const k of [0, 1]) {
      const slope = (target.terms(shifted(k, h)).logJoint - target.terms(shifted(k, -h)).logJoint) / (2 * h);
      expect(target.gradient(theta)[k as 0 | 1]).toBeCloseTo(slope, 7);
      const [up, down] = [target.gradient(shifted(k, h)), target.gradient(shifted(k, -h))];
      expect(-(up[0] - down[0]) / (2 * h)).toBeCloseTo(k === 0 ? a : b, 7);
      expect(-(up[1] - down[1]) / (2 * h)).toBeCloseTo(k === 0 ? b : c, 7);
    }
    expect(Math.hypot(...target.gradient(mode))).toBeLessThan(1e-10);
  });

  test("its quadrature does not depend on its grid", () => {
    const [coarse, fine] = [mini.quadrature(target, 150), mini.quadrature(target, 331)];
    expect(coarse.evidence).toBeCloseTo(fine.evidence, 8);
    expect(mini.moments(coarse.draws).mean[0]).toBeCloseTo(mini.moments(fine.draws).mean[0], 8);
  });

  test("MacKay's τ is where the evidence by Laplace, H held fixed, is flat", () => {
    const tau = mini.precisionByEvidence(FILMS, PRIOR.mean);
    const at = mini.laplace(mini.logPosterior(FILMS, mini.gaussianPrior({ ...PRIOR, precision: tau })));
    const distance2 = (at.mean[0] - PRIOR.mean[0]) ** 2 + (at.mean[1] - PRIOR.mean[1]) ** 2;
    expect(2 / tau - distance2 - at.covariance[0] - at.covariance[2]).toBeCloseTo(0, 10);
  });
});

const gpu = gpuForTests();
const ROWS: Rows = { x: Float32Array.from(FILMS.x.flatMap((x) => [x, 1])), y: Float32Array.from(FILMS.y), d: 2 };

/** The twin's model in the library: the logits are 0 and slope·x + offset, and θ starts at its prior mean. */
async function inLibrary<T>(use: (library: Awaited<ReturnType<typeof trained>>) => Promise<T>): Promise<T> {
  const library = await trained();
  try {
    return await use(library);
  } finally {
    library.dispose();
  }
}

async function trained() {
  const model = logistic(new Engine(gpu()), 2, Float32Array.from(PRIOR.mean));
  const prior = gaussianPrior(model.theta, { encoder: { mean: "pretrained", precision: PRIOR.precision } });
  const target = logPosterior(model, prior, { N });
  // The mean NLL and the prior over N have curvature 2.2 at most: a step of .5 settles.
  const options: FitOptions = { optimizer: sgd({ lr: 0.5 }), ...full(N, 400) };
  const trainer = new Trainer(target, rowSource(ROWS), options);
  const reports = [];
  for await (const report of trainer.run()) reports.push(report);
  trainer.dispose();
  const dispose = () => {
    prior.dispose();
    model.dispose();
  };
  return { model, prior, target, reports, dispose };
}

describe("library and twin", () => {
  test("the same terms at the same θ, and the same MAP", async () => {
    await inLibrary(async ({ model, reports }) => {
      const first = target.terms(PRIOR.mean);
      expect(reports[0]?.nll).toBeCloseTo(first.nll, 6);
      expect(reports[0]?.logPrior).toBe(0);
      const last = target.terms(mode);
      expect(reports.at(-1)?.logPrior).toBeCloseTo(last.logPrior, 5);
      expect(reports.at(-1)?.logJoint).toBeCloseTo(last.logJoint, 5);
      const theta = await model.theta.get("w");
      expect(theta[0]).toBeCloseTo(mode[0], 5);
      expect(theta[1]).toBeCloseTo(mode[1], 5);
    });
  });

  test("the same Laplace: precision, draws, probit, evidence", async () => {
    await inLibrary(async ({ model, prior, target: posterior }) => {
      const gauss = mini.laplace(target);
      const state = laplace(await ggn(model, [ROWS], { structure: "full" }), prior);
      // Λ by its action: the covariance of wᵀx for x = (1, 0), (1, 1), (0, 1).
      const [a, b, c] = gauss.covariance;
      const variance = (x: number[]) => state.gaussians[0]?.outputCovariance(x)[0];
      expect(variance([1, 0])).toBeCloseTo(a, 5);
      expect(variance([1, 1])).toBeCloseTo(a + 2 * b + c, 5);
      expect(variance([0, 1])).toBeCloseTo(c, 5);

      const draws = laplaceDraws(state, { S: 4000, seed: 1 });
      const slopes = await Promise.all(Array.from({ length: 4000 }, async (_, s) => (await draws.read(s))[0] ?? 0));
      const mean = slopes.reduce((sum, t) => sum + t, 0) / 4000;
      const deviation = Math.sqrt(slopes.reduce((sum, t) => sum + (t - mean) ** 2, 0) / 4000);
      // Standard errors σ/√S and σ/√(2S), four of each.
      expect(Math.abs(mean - gauss.mean[0])).toBeLessThan((4 * Math.sqrt(a)) / Math.sqrt(4000));
      expect(Math.abs(deviation - Math.sqrt(a))).toBeLessThan((4 * Math.sqrt(a)) / Math.sqrt(8000));

      const films = { x: Float32Array.of(2, 1, -4, 1), y: new Float32Array(2), d: 2 };
      const logits = probitLogits(covarianceOfLastLayer(await readLastLayer(model, films), state));
      for (const [i, x] of [2, -4].entries()) {
        const p = 1 / (1 + Math.exp((logits[2 * i] ?? 0) - (logits[2 * i + 1] ?? 0)));
        expect(p).toBeCloseTo(mini.probit(gauss, x), 5);
      }

      const found = await evidence(posterior, state, [ROWS]);
      expect(found.logEvidence).toBeCloseTo(mini.evidence(target, gauss), 4);
      // Two parameters, fourteen films: Laplace is off by what the table shows.
      expect(Math.abs(found.logEvidence - mini.quadrature(target).evidence)).toBeLessThan(0.07);
    });
  });

  test("the same SGLD: draws with the twin's moments and predictions", async () => {
    // A large step, so that few steps go far: its bias, about hλ/2 of the variance, is the same in both.
    const lr = 1;
    const twin = mini.sgld(target, { lr, steps: 200_000 });
    const { mean, deviation } = mini.moments(twin);
    await inLibrary(async ({ target: posterior }) => {
      const options = { groups: ["encoder"], draws: 500, thin: 3, burnIn: 60, batch: N, seed: 3 };
      const sampler = (seed: number) => sgld({ lr, N, seed });
      const draws: mini.Draw[] = [];
      for await (const { values } of trajectory(posterior, rowSource(ROWS), { ...options, sampler })) {
        draws.push({ theta: [values[0] ?? Number.NaN, values[1] ?? Number.NaN], weight: 1 });
      }
      expect(draws.length).toBe(500);
      const found = mini.moments(draws);
      for (const k of [0, 1] as const) {
        const ess = effectiveSampleSize([draws.map(({ theta }) => theta[k])]);
        expect(ess).toBeGreaterThan(200);
        // Four standard errors of a mean, and of a standard deviation, of that many independent draws.
        expect(Math.abs(found.mean[k] - mean[k])).toBeLessThan((4 * deviation[k]) / Math.sqrt(ess));
        expect(Math.abs(found.deviation[k] - deviation[k])).toBeLessThan((4 * deviation[k]) / Math.sqrt(2 * ess));
      }
      // The probabilities have a deviation of about .1 over the draws: four standard errors.
      for (const x of [2, -4]) expect(Math.abs(mini.predict(draws, x) - mini.predict(twin, x))).toBeLessThan(0.03);
    });
  });
});
