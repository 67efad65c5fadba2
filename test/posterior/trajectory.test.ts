/** @file Chains of a sampler: which steps give draws, what they leave behind, and whether they are of the posterior. */
import { describe, expect, test, vi } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import type { Example, PackedBatch } from "../../src/data/batches.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { cycleShares, cyclical, sghmc, sgld } from "../../src/posterior/samplers.ts";
import { drawsOf, type TrajectoryDraw, type TrajectoryOptions, trajectory } from "../../src/posterior/trajectory.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { exampleSource, type Source } from "../../src/train/source.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { tinyCheckpoint } from "../model/tiny.ts";
import {
  classes,
  linearRegression,
  regression,
  regressionMap,
  regressions,
  rowSource,
  twoLayers,
} from "../train/toys.ts";

const gpu = gpuForTests();
const DATA = classes(32, 6, 3);

async function chains(options: Partial<TrajectoryOptions> & Pick<TrajectoryOptions, "draws">) {
  const model = twoLayers(new Engine(gpu()), { d: 6, h: 10, K: 3 });
  const prior = gaussianPrior(model, { encoder: { precision: 10 }, head: { precision: 1 } });
  const names = model.theta.layout.names;
  const read = () => Promise.all(names.map((name) => model.theta.get(name)));
  const before = await read();
  const draws: TrajectoryDraw[] = [];
  const target = logPosterior(model, prior, { N: 32 });
  const sampler = (seed: number) => sgld({ lr: 1e-2, N: 32, seed });
  try {
    for await (const draw of trajectory(target, rowSource(DATA), { sampler, batch: 8, ...options })) draws.push(draw);
    const restored = JSON.stringify(await read()) === JSON.stringify(before);
    const frozen = model.theta.layout.slices.filter((slice) => model.theta.isFrozen(slice)).length;
    return { draws, restored, frozen };
  } finally {
    prior.dispose();
    model.dispose();
  }
}

describe("a trajectory", () => {
  test("gives a draw every `thin` steps after `burnIn`, chain by chain, and puts θ back", async () => {
    const watched: number[] = [];
    const watch = (chain: number) => watched.push(chain);
    const heard: number[] = [];
    const progress = (share: number) => heard.push(share);
    const { draws, restored, frozen } = await chains({ draws: 3, thin: 2, burnIn: 5, chains: 2, watch, progress });
    expect(heard).toEqual(Array.from({ length: 22 }, (_, i) => (i + 1) / 22));
    // Steps 6 to 11 of each.
    expect(watched).toEqual([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
    expect(draws.map(({ chain, draw, step }) => [chain, draw, step])).toEqual([
      [0, 0, 7],
      [0, 1, 9],
      [0, 2, 11],
      [1, 0, 7],
      [1, 1, 9],
      [1, 2, 11],
    ]);
    expect([restored, frozen]).toEqual([true, 0]);
    // The head alone by default: W₂ [3, 10] and b₂ [3].
    expect(draws.every(({ values }) => values.length === 33)).toBe(true);
    expect(new Set(draws.map(({ values }) => values[0])).size).toBe(6);
    expect(Object.keys(draws[0]!.functionals)).toEqual(["nll", "logPrior", "logJoint", "distance.head"]);
    const [{ values, functionals }] = draws as [TrajectoryDraw];
    expect(functionals["distance.head"]).toBeCloseTo(Math.hypot(...values), 5); // the head's mean is 0
  });

  test("is the same for the same seed, and moves the groups that are named", async () => {
    const options = { draws: 2, groups: ["encoder", "head"] };
    const a = await chains(options);
    expect((await chains(options)).draws).toEqual(a.draws);
    expect((await chains({ ...options, seed: 1 })).draws).not.toEqual(a.draws);
    expect(a.draws[0]!.values.length).toBe(60 + 10 + 33);
    expect(a.draws[0]!.functionals).toHaveProperty(["distance.layer.0"]);
  });

  test("gives as many draws of a chain as were asked of it, the same ones", async () => {
    const options = { thin: 2, burnIn: 1, chains: 3 };
    const { draws } = await chains({ ...options, draws: (chain) => 3 - chain });
    expect(draws.map(({ chain }) => chain)).toEqual([0, 0, 0, 1, 1, 2]);
    const three = await chains({ ...options, draws: 3 });
    expect(draws).toEqual(three.draws.filter(({ chain, draw }) => draw < 3 - chain));
    await expect(chains({ ...options, draws: (chain) => chain })).rejects.toThrow(/^draws: 0/);
  });

  test("that leaves the finite numbers says in which chain", async () => {
    let made = 0;
    // The second chain's burn-in: no draw of it was given.
    const sampler = (seed: number) => sgld({ lr: made++ === 0 ? 1e-2 : 1e30, N: 32, seed });
    await expect(chains({ draws: 2, burnIn: 5, chains: 3, sampler })).rejects.toMatchObject({ chain: 1 });
  });

  test("draws from the sampling part of each cycle", async () => {
    const cycle = { length: 8, exploration: 0.5 };
    let watched = 0;
    const { draws } = await chains({
      draws: 6,
      sampler: (seed) => sgld({ lr: 1e-2, N: 32, seed, cycle }),
      samples: cyclical(cycle).samples,
      watch: () => watched++,
    });
    expect(draws.map(({ step }) => step)).toEqual([5, 6, 7, 8, 13, 14]);
    // What explores is no draw and tells nothing of their mixing.
    expect(watched).toBe(6);
  });

  test("each chain's own, where one has a draw fewer: both walk to their last cycle", async () => {
    const cycle = { length: 4, exploration: 0.5 };
    const shares = [3, 2];
    const { draws } = await chains({
      draws: (chain) => shares[chain] ?? 0,
      chains: 2,
      sampler: (seed) => sgld({ lr: 1e-2, N: 32, seed, cycle }),
      samples: (step, chain) => cycleShares(cycle, { draws: shares[chain] ?? 0, thin: 1, cycles: 2 })(step),
    });
    expect(draws.map(({ chain, step }) => [chain, step])).toEqual([
      ...[3, 4, 8].map((step) => [0, step]),
      ...[4, 8].map((step) => [1, step]),
    ]);
  });

  test("ends early when told to, with θ put back", async () => {
    const stop = new AbortController();
    stop.abort();
    const { draws, restored } = await chains({ draws: 4, signal: stop.signal });
    expect([draws.length, restored]).toEqual([0, true]);
  });

  test("refuses what has no posterior or nothing to sample", async () => {
    await expect(chains({ draws: 0 })).rejects.toThrow("draws: 0");
    await expect(chains({ draws: 1, groups: ["nobody"] })).rejects.toThrow("no group is named");
    await expect(chains({ draws: 1, thin: 0 })).rejects.toThrow("thin: 0");
    await expect(chains({ draws: 1, thin: 1e6, burnIn: 1e7 })).rejects.toThrow(/^draws: the last .* 10000000 steps/);
    const cycle = { length: 4, exploration: 0.9 };
    await expect(chains({ draws: 1, samples: cyclical(cycle).samples })).rejects.toThrow("the cycle's sampling part");
    const model = linearRegression(new Engine(gpu()), 2, 1);
    const prior = gaussianPrior(model, { encoder: { precision: 0 } });
    const run = trajectory(logPosterior(model, prior, { N: 4 }), rowSource(regression(4, [1, 2], 1)), {
      sampler: () => sgld({ lr: 0.1, N: 4 }),
      groups: ["encoder"],
      draws: 1,
      batch: 4,
    });
    await expect(run.next()).rejects.toThrow("encoder has a flat prior");
    prior.dispose();
    model.dispose();
  });
});

test("chains of a head alone have the encoder's vectors once, and the bits of the long way", async () => {
  const model = await BertForSequenceClassification.load(new Engine(gpu()), tinyCheckpoint(), { labels: 2 });
  const prior = gaussianPrior(model, { encoder: { precision: 10 }, head: { precision: 1 } });
  const examples = Array.from({ length: 9 }, (_, i) => ({
    ids: Uint32Array.from({ length: 2 + (i % 4) }, (_, k) => (7 * i + 3 * k) % 40),
    typeIds: new Uint32Array(2 + (i % 4)),
    label: i % 2,
  }));
  const passes = vi.spyOn(model, "features");
  const walk = async (data: Example[] | Source<PackedBatch>) => {
    const draws: TrajectoryDraw[] = [];
    const sampler = (seed: number) => sgld({ lr: 1e-2, N: 9, seed });
    const options = { sampler, draws: 2, chains: 3, batch: 4 };
    for await (const draw of trajectory(logPosterior(model, prior, { N: 9 }), data, options)) draws.push(draw);
    return draws;
  };
  const short = await walk(examples);
  expect(passes).toHaveBeenCalledTimes(1);
  expect(short).toEqual(await walk(exampleSource(examples)));
  prior.dispose();
  model.dispose();
});

describe("the posterior of a linear regression", () => {
  const [d, sigma2, tau, n, R] = [3, 0.25, 4, 40, 256];
  const data = regression(n, [0.5, -1, 2], 0.5);
  /** Λ = XᵀX/(σ²T) + τI, T the likelihood's temperature. */
  const precisionAt = (T: number) =>
    Array.from({ length: d }, (_, i) =>
      Array.from({ length: d }, (_, j) => {
        let sum = i === j ? tau : 0;
        for (let r = 0; r < n; r++) sum += (data.x[r * d + i]! * data.x[r * d + j]!) / (sigma2 * T);
        return sum;
      }),
    );

  for (const [name, make, T] of [
    ["SGLD", (seed: number) => sgld({ lr: 1e-2, N: n, seed }), 1],
    ["SGHMC", (seed: number) => sghmc({ lr: 3e-3, N: n, seed, friction: 0.3 }), 1],
    // N/T terms with the same mean: the likelihood alone is tempered, and the mode moves towards the prior's.
    ["SGLD at likelihood temperature 8", (seed: number) => sgld({ lr: 1e-2, N: n / 8, seed }), 8],
  ] as const) {
    test(`${name}: mean and E (θ − θ̂)ᵀΛ(θ − θ̂) = d, over ${R} chains`, async () => {
      const mode = regressionMap(data, sigma2 * T, tau, [0, 0, 0]);
      const precision = precisionAt(T);
      const model = regressions(new Engine(gpu()), R, sigma2, mode);
      const prior = gaussianPrior(model.theta, { encoder: { mean: 0, precision: tau } });
      // λh is near .04: 100 steps are four relaxation times, and draws 10 apart say something new of a square.
      const options = { sampler: make, groups: ["encoder"], draws: 10, thin: 10, burnIn: 100, batch: n };
      const target = logPosterior(model, prior, { N: n });
      /** Per chain: the sums over its draws of the form, and of each coordinate. */
      const forms = new Array<number>(R).fill(0);
      const sums = Array.from({ length: d }, () => new Array<number>(R).fill(0));
      for await (const { values } of trajectory({ ...target, N: n / T }, rowSource(data), options)) {
        for (let r = 0; r < R; r++) {
          const v = mode.map((m, i) => values[r * d + i]! - m);
          forms[r]! += v.reduce((sum, a, i) => sum + v.reduce((s, b, j) => s + a * precision[i]![j]! * b, 0), 0) / 10;
          for (const [i, x] of v.entries()) sums[i]![r]! += x / 10;
        }
      }
      const { mean, error } = overChains(forms);
      // The eigenvalues of Λ/N are near 4, so that a step of h = .01 leaves a variance 1/(1 − hλ/2), 2 %, too large.
      expect(Math.abs(mean - d)).toBeLessThan(4 * error + 0.03 * d);
      // The single chain of 400 draws that this was had a standard error three times as large, .07·d.
      expect(error).toBeLessThan(0.03 * d);
      for (const sum of sums) {
        const { mean, error } = overChains(sum);
        expect(Math.abs(mean)).toBeLessThan(5 * error);
      }
      prior.dispose();
      model.dispose();
    });
  }
});

/** Mean over independent chains, and its standard error. */
function overChains(means: readonly number[]) {
  const mean = means.reduce((sum, x) => sum + x, 0) / means.length;
  const variance = means.reduce((sum, x) => sum + (x - mean) ** 2, 0) / (means.length - 1);
  return { mean, error: Math.sqrt(variance / means.length) };
}

test("draws become members", async () => {
  const model = twoLayers(new Engine(gpu()), { d: 6, h: 10, K: 3 });
  const head = model.theta.layout.slices.filter(({ groups }) => groups[0] === "head");
  const draw = { chain: 0, draw: 0, step: 1, functionals: {}, values: new Float32Array(33).fill(2) };
  expect(drawsOf(head, [draw, draw]).size).toBe(2);
  expect(() => drawsOf(head, [{ ...draw, values: new Float32Array(3) }])).toThrow("draw 0 has 3 numbers");
  model.dispose();
});
