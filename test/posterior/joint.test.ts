/**
 * @file Samplers on logistic regression, by the joint distribution of parameters and data, so that no answer has to be
 * known: θ is drawn from the prior and y from the likelihood, hence θ is a draw from p(θ|y), and a sampler of p(θ|y) must
 *   - leave the law of θ as it is (Geweke 2004; Grosse and Duvenaud 2014): after any number of steps θ has the prior's moments;
 *   - give draws among which that θ has a uniform rank (simulation-based calibration: Talts et al. 2018). Draws of a chain
 *     that began at θ know it: so θ stands at a random place of a path that two chains have walked from it, the one backwards,
 *     which for a reversible sampler is the same walk (Gandy and Scott 2020). Then no thinning is asked for.
 * R regressions with d weights each are one model, a step of which moves them all; they are independent, so errors are
 * plain standard errors. Samplers that are wrong on purpose must fail.
 */
import { describe, expect, test } from "vitest";
import { Engine, Layout, ops, Theta } from "../../src/autograd/index.ts";
import { sghmc, sgld } from "../../src/posterior/samplers.ts";
import { trajectory } from "../../src/posterior/trajectory.ts";
import { Stream } from "../../src/random.ts";
import { logPosterior } from "../../src/train/objective.ts";
import type { Optimizer } from "../../src/train/optimizers.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import type { Source } from "../../src/train/source.ts";
import { gpuForTests } from "../kernels/harness.ts";

const gpu = gpuForTests();
const [R, D, N, TAU] = [1500, 3, 12, 2];
/** All tests of this file together fail by chance once in a thousand runs: a bound for each of the z below, by Bonferroni. */
const Z = 4.6;

/** Inputs [N, D], the same for every regression; labels ±1 [N, R]; and the θ [R·D] that they came from. */
function simulate() {
  const stream = new Stream(11, "joint");
  const theta = Float32Array.from({ length: R * D }, () => stream.normal() / Math.sqrt(TAU));
  const x = Float32Array.from({ length: N * D }, () => 1.5 * stream.normal());
  const y = new Float32Array(N * R);
  for (let r = 0; r < R; r++) {
    for (let i = 0; i < N; i++) {
      let z = 0;
      for (let j = 0; j < D; j++) z += (x[i * D + j] ?? 0) * (theta[r * D + j] ?? 0);
      y[i * R + r] = stream.uniform() < 1 / (1 + Math.exp(-z)) ? 1 : -1;
    }
  }
  return { theta, x, y };
}
const DATA = simulate();

/** All R regressions: the i-th likelihood term is that of the i-th row of each, so N of them are J's mean. */
function regressions(engine: Engine) {
  const theta = new Theta(
    engine,
    new Layout([{ key: "w", parameters: [{ name: "w", shape: [R, D] }], groups: ["head"] }]),
  );
  theta.set("w", DATA.theta);
  return {
    engine,
    theta,
    loss() {
      // One small product for all, and σ by elements: a gather of θ for each row, and logits of two classes, take the
      // bundled adapter three times as long.
      const z = ops.linear(engine.tensor(DATA.x, [N, D]), theta.tensor("w")); // [N, R]
      const likelihood = ops.unary("sigmoid", ops.multiply(z, engine.tensor(DATA.y, [N, R])));
      return { nlls: ops.reshape(ops.scale(ops.unary("log", likelihood), -1), [N * R]), count: N };
    },
  };
}

/** What the sampler is told of the posterior. */
interface Wrong {
  tau?: number;
  /** N of the prior's share. */
  n?: number;
}

/** Draws of all regressions, thinned, from two chains that start at the θ the data came from: those of the first, then of the second. */
async function draws(
  sampler: (seed: number) => Optimizer,
  { tau = TAU, n = N }: Wrong,
  options: { draws: number; thin: number },
) {
  const model = regressions(new Engine(gpu()));
  const prior = gaussianPrior(model.theta, { head: { mean: 0, precision: tau } });
  const source: Source<object> = { length: N, batch: () => ({}) };
  const found: Float32Array[] = [];
  for await (const { values } of trajectory(logPosterior(model, prior, { N: n }), source, {
    sampler,
    batch: N,
    chains: 2,
    thin: options.thin,
    draws: 2 * options.draws,
  }))
    found.push(values);
  prior.dispose();
  model.theta.dispose();
  return found;
}

/** z of a mean of independent numbers against what it should be. */
function zScore(values: readonly number[], expected: number): number {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  const variance = values.reduce((a, x) => a + (x - mean) ** 2, 0) / (values.length - 1);
  return (mean - expected) / Math.sqrt(variance / values.length);
}

/** Of the regressions' own functionals: the prior's E‖θ‖², and what y says of θ: E(log p(y|θ) − log p(y|θ*)) = 0. */
function geweke(values: Float32Array): Record<string, number> {
  const squares: number[] = [];
  const gains: number[] = [];
  for (let r = 0; r < R; r++) {
    let square = 0;
    for (let j = 0; j < D; j++) square += (values[r * D + j] ?? 0) ** 2;
    squares.push(square);
    gains.push(logLikelihood(values, r) - logLikelihood(DATA.theta, r));
  }
  return { "‖θ‖²": zScore(squares, D / TAU), "log p(y|θ)": zScore(gains, 0) };
}

function logLikelihood(theta: Float32Array, r: number): number {
  let sum = 0;
  for (let i = 0; i < N; i++) {
    let z = 0;
    for (let j = 0; j < D; j++) z += (DATA.x[i * D + j] ?? 0) * (theta[r * D + j] ?? 0);
    sum -= Math.log1p(Math.exp(-z * (DATA.y[i * R + r] ?? 0)));
  }
  return sum;
}

/**
 * z of the ECDF of ranks, by the Dvoretzky–Kiefer–Wolfowitz bound P(sup|F̂ − F| > ε) ≤ 2exp(−2mε²): the supremum in units in
 * which `Z` is as unlikely as for a normal. Ranks of θ* in each coordinate, and of its log-likelihood.
 */
function calibration(all: readonly Float32Array[]): Record<string, number> {
  const length = all.length / 2;
  const stream = new Stream(12, "places");
  // How many draws of each regression's path come before θ*, of the second chain; the others are the first's.
  const places = Array.from({ length: R }, () => stream.integer(length + 1));
  const ranksOf = (f: (values: Float32Array, r: number) => number) =>
    places.map((before, r) => {
      const path = [...all.slice(0, length - before), ...all.slice(length, length + before)];
      return path.filter((values) => f(values, r) < f(DATA.theta, r)).length;
    });
  const ecdf = (ranks: number[]) => {
    let worst = 0;
    for (let k = 0; k < length; k++) {
      const share = ranks.filter((rank) => rank <= k).length / ranks.length;
      worst = Math.max(worst, Math.abs(share - (k + 1) / (length + 1)));
    }
    return 2 * worst * Math.sqrt(ranks.length);
  };
  const found: Record<string, number> = { "rank of log p(y|θ)": ecdf(ranksOf(logLikelihood)) };
  for (let j = 0; j < D; j++) found[`rank of θ${j}`] = ecdf(ranksOf((values, r) => values[r * D + j] ?? 0));
  return found;
}

/** 12 draws a chain, as many steps apart: between half a relaxation time (along the prior) and two and a half, for power. */
async function scores(sampler: (seed: number) => Optimizer, wrong: Wrong = {}, thin = 12) {
  const all = await draws(sampler, wrong, { draws: 12, thin });
  return { ...geweke(all.at(-1) as Float32Array), ...calibration(all) };
}

// The curvature of J is at most about (¼·2.25·12 + τ)/N = .7 and at least τ/N = .17: a step of h = .3 forgets 5 to 20 % of θ.
const H = 0.3;

describe("samplers that are right", () => {
  test.each([
    ["SGLD", (seed: number) => sgld({ lr: H, N, seed })],
    ["SGHMC", (seed: number) => sghmc({ lr: 0.06, N, seed, friction: 0.3 })],
    ["SGHMC, resampled", (seed: number) => sghmc({ lr: 0.06, N, seed, friction: 0.05, resample: 6 })],
  ])("%s keeps the joint distribution", async (_, sampler) => {
    for (const [name, z] of Object.entries(await scores(sampler))) expect(Math.abs(z), name).toBeLessThan(Z);
  });
});

test("SGLD in short steps, whose draws are near to each other and to θ*, keeps it too", async () => {
  const found = await scores((seed) => sgld({ lr: H / 10, N, seed }), {}, 1);
  for (const [name, z] of Object.entries(found)) expect(Math.abs(z), name).toBeLessThan(Z);
});

describe("samplers that are wrong are found out", () => {
  const sgldAt =
    (temperature: number, n = N) =>
    (seed: number) =>
      sgld({ lr: H, N: n, seed, temperature });
  test.each<[string, (seed: number) => Optimizer, Wrong]>([
    ["a wrong N, twice the data's", sgldAt(1, 2 * N), { n: 2 * N }],
    ["a prior counted twice", sgldAt(1), { tau: 2 * TAU }],
    ["a misplaced T, half where 1 was meant", sgldAt(0.5), {}],
    ["the noise of T = 1 on a mean loss, without its 1/N", sgldAt(1, 1), {}],
    [
      "SGHMC whose noise lacks the friction's share",
      (seed) => sghmc({ lr: 0.06, N, seed, friction: 0.3, temperature: 1 / 0.3 }),
      {},
    ],
  ])("%s", async (_, sampler, wrong) => {
    const worst = Math.max(...Object.values(await scores(sampler, wrong)).map(Math.abs));
    expect(worst).toBeGreaterThan(Z + 2);
  });
});
