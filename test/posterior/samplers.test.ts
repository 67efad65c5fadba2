/** @file Samplers through the trainer and the GPU, against the stationary laws of their recursions on a Gaussian (check 10). */
import { describe, expect, test } from "vitest";
import { Engine, Layout, ops, Theta } from "../../src/autograd/index.ts";
import { cycleOf, cycleShares, cyclical, realNumbers, sghmc, sgld } from "../../src/posterior/samplers.ts";
import { Stream } from "../../src/random.ts";
import { Trainer } from "../../src/train/fit.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { adam, type Optimizer } from "../../src/train/optimizers.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import type { BatchPlace, Source } from "../../src/train/source.ts";
import { gpuForTests } from "../kernels/harness.ts";

const gpu = gpuForTests();
/** As many independent 1-D Gaussians as θ has numbers; not a multiple of 4. */
const D = 8191;

interface Noise {
  seed: number;
}

/** −log p(X|θ) = ½a‖θ‖² + √V·ξ·θ with new ξ each step: one likelihood term, gradient noise of variance V. */
async function variances(
  optimizer: Optimizer,
  {
    a,
    tau = 0,
    V = 0,
    steps,
    every,
  }: { a: number; tau?: number; V?: number; steps: number; every: (step: number) => boolean },
) {
  const engine = new Engine(gpu());
  const theta = new Theta(
    engine,
    new Layout([
      { key: "x", parameters: [{ name: "x", shape: [D - 2] }], groups: ["head"] },
      { key: "b", parameters: [{ name: "b", shape: [2] }], groups: ["head"] },
    ]),
  );
  const half = (key: string, noise: Float32Array) => {
    const x = theta.tensor(key);
    const quadratic = ops.sum(ops.multiply(x, x), a / 2);
    return V === 0 ? quadratic : ops.add(quadratic, ops.sum(ops.multiply(x, engine.tensor(noise)), Math.sqrt(V)));
  };
  const model = {
    engine,
    theta,
    loss({ seed }: Noise) {
      const stream = new Stream(seed, "gradient noise");
      const noise = Float32Array.from({ length: V === 0 ? 0 : D }, () => stream.normal());
      return { nlls: ops.add(half("x", noise.slice(0, D - 2)), half("b", noise.slice(-2))), count: 1 };
    },
  };
  const source: Source<Noise> = { length: 1, batch: (_, { step }: BatchPlace) => ({ seed: step }) };
  const prior = gaussianPrior(theta, { head: { precision: tau } });
  const trainer = new Trainer(logPosterior(model, prior, { N: 1 }), source, {
    optimizer,
    epochs: steps,
    batch: 1,
    schedule: "constant",
    warmup: 0,
  });
  const squares: number[] = [];
  let padding = 0;
  try {
    for await (const { step } of trainer.run()) {
      if (!every(step)) continue;
      const { theta: values } = await trainer.state();
      squares.push(values.reduce((sum, x) => sum + x * x, 0) / D);
      padding += values.slice(D - 2, 8192).filter((x) => x !== 0).length;
    }
  } finally {
    trainer.dispose();
    prior.dispose();
    theta.dispose();
  }
  expect(padding).toBe(0);
  return { squares, mean: squares.reduce((sum, s) => sum + s, 0) / squares.length };
}

/** Draws ten steps apart, once the start is forgotten. */
const thinned = (step: number) => step > 60 && step % 10 === 0;
/** Relative error of a variance from n independent numbers, times five. */
const five = (n: number) => 5 * Math.sqrt(2 / n);

describe("SGLD on a Gaussian of precision λ", () => {
  test("T/(λ(1 − hλ/2)), not the T/λ of a vanishing step; half of λ is the prior's", async () => {
    const { squares, mean } = await variances(sgld({ lr: 0.1, N: 1, temperature: 0.5 }), { a: 1, tau: 2, steps: 160, every: thinned }); // biome-ignore format: one call
    expect(squares).toHaveLength(10);
    // (1 − hλ)¹⁰ = .03 is left of a draw in the next: they count as independent.
    expect(Math.abs(mean / 0.19608 - 1)).toBeLessThan(five(10 * D));
    expect(Math.abs(mean / (0.5 / 3) - 1)).toBeGreaterThan(5 * five(10 * D));
  });

  test("with gradient noise V: (2hT + h²V)/(1 − (1 − hλ)²)", async () => {
    const [h, a, T, V] = [0.2, 2, 0.3, 4];
    const { mean } = await variances(sgld({ lr: h, N: 1, temperature: T }), { a, V, steps: 160, every: thinned });
    const expected = (2 * h * T + h * h * V) / (1 - (1 - h * a) ** 2);
    expect(Math.abs(mean / expected - 1)).toBeLessThan(five(10 * D));
    expect(Math.abs((2 * h * T) / (1 - (1 - h * a) ** 2) / expected - 1)).toBeGreaterThan(5 * five(10 * D));
  });
});

describe("SGHMC on a Gaussian of precision λ", () => {
  const [h, a, T, friction] = [0.05, 3, 0.4, 0.2];

  /** Var θ after `steps` of the recursion in float64; u drawn anew where `resample` says so. */
  function theory(steps: number, resample: (step: number) => boolean): number[] {
    let [uu, ut, tt] = [0, 0, 0];
    const found: number[] = [];
    for (let step = 1; step <= steps; step++) {
      const anew = resample(step);
      if (anew) [uu, ut] = [h * T, 0];
      // u' = (1 − α)u − haθ + noise, drawn anew u − ½haθ; θ' = θ + u'.
      const [p, q, noise] = anew ? [1, (-h * a) / 2, 0] : [1 - friction, -h * a, 2 * friction * h * T];
      const nu = p * p * uu + 2 * p * q * ut + q * q * tt + noise;
      const nt = p * ut + q * tt; // Cov(u', θ)
      [uu, ut, tt] = [nu, nu + nt, tt + 2 * nt + nu];
      found.push(tt);
    }
    return found;
  }

  test.each([
    ["the velocity goes on", undefined],
    ["the velocity is drawn anew every 7 steps", 7],
  ])("%s: the covariance of the recursion, on the way and at its end", async (_, every) => {
    const optimizer = sghmc({ lr: h, N: 1, temperature: T, friction, resample: every });
    const at = [1, 2, 5, 12, 40, 75, 110, 145, 180];
    const { squares } = await variances(optimizer, { a, steps: 180, every: (step) => at.includes(step) });
    const expected = theory(180, (step) => (every === undefined ? step === 1 : (step - 1) % every === 0));
    for (const [i, step] of at.entries()) {
      expect(Math.abs(squares[i]! / expected[step - 1]! - 1), `step ${step}`).toBeLessThan(five(D));
    }
    // Near T/λ once it is stationary.
    expect(Math.abs(expected[179]! / (T / a) - 1)).toBeLessThan(0.1);
  });
});

describe("cycles", () => {
  test("fall from 1 along a cosine and start again; the last part samples", () => {
    const { factor, samples } = cyclical({ length: 10, exploration: 0.7 });
    expect([1, 6, 11, 16].map(factor)).toEqual([1, 0.5, 1, 0.5].map((x) => expect.closeTo(x, 12)));
    expect(factor(10)).toBeCloseTo(0.5 * (1 + Math.cos(0.9 * Math.PI)), 12);
    expect(Array.from({ length: 20 }, (_, k) => samples(k + 1))).toEqual(
      Array.from({ length: 20 }, (_, k) => k % 10 >= 7),
    );
  });

  test("explore without noise: θ stays at the mode until the sampling part begins", async () => {
    const optimizer = sgld({ lr: 0.1, N: 1, cycle: { length: 10, exploration: 0.5 } });
    const { squares } = await variances(optimizer, { a: 1, steps: 6, every: () => true });
    expect(squares.slice(0, 5)).toEqual([0, 0, 0, 0, 0]);
    // One step of √(2h·f) noise from the mode, f = ½(1 + cos π/2).
    expect(Math.abs(squares[5]! / (2 * 0.1 * 0.5) - 1)).toBeLessThan(five(D));
  });

  test("the variance over three cycles is that of the recursion, whose steps shrink and whose noise comes and goes", async () => {
    const [h, a, T, cycle] = [0.3, 2, 0.7, { length: 12, exploration: 0.5 }];
    const optimizer = sgld({ lr: h, N: 1, temperature: T, cycle });
    const { squares } = await variances(optimizer, { a, steps: 36, every: () => true });
    let variance = 0;
    for (const [i, square] of squares.entries()) {
      const [place, step] = [(i % 12) / 12, h * 0.5 * (1 + Math.cos((Math.PI * (i % 12)) / 12))];
      variance = (1 - step * a) ** 2 * variance + (place >= 0.5 ? 2 * step * T : 0);
      expect(Math.abs(square - variance), `step ${i + 1}`).toBeLessThanOrEqual(five(D) * variance);
    }
    expect(variance).toBeGreaterThan(0.1);
  });
});

test("the noise's scale is N's: a tenth of the variance for ten times the data", async () => {
  const run = (N: number) => variances(sgld({ lr: 0.1, N }), { a: 3, steps: 160, every: thinned });
  const ratio = (await run(1)).mean / (await run(10)).mean;
  expect(Math.abs(ratio / 10 - 1)).toBeLessThan(2 * five(10 * D));
});

test("a cycle ends with as many sampling steps as its draws take", () => {
  for (const [draws, thin, cycles, exploration] of [
    [8, 50, 4, 0.8],
    [7, 3, 2, 0.8],
    [5, 1, 5, 0.9],
    [1, 1, 1, 0],
    [9, 7, 4, 0.37],
  ] as const) {
    const cycle = cycleOf({ draws, thin, cycles, exploration });
    const { samples, factor } = cyclical(cycle);
    const steps = Array.from({ length: 2 * cycle.length }, (_, i) => i + 1);
    const expected = thin * Math.ceil(draws / cycles);
    expect(steps.slice(0, cycle.length).filter(samples)).toHaveLength(expected);
    expect(steps.slice(-expected).every(samples)).toBe(true);
    expect(Math.abs(cycle.length * (1 - exploration) - expected)).toBeLessThan(1.01);
    expect([factor(1), factor(cycle.length + 1)]).toEqual([1, 1]);
  }
});

test("draws that do not come out even are of every cycle, the first having one more", () => {
  for (const [draws, thin, cycles, shares] of [
    [5, 3, 4, [2, 1, 1, 1]],
    [2, 3, 2, [1, 1]],
    [7, 1, 3, [3, 2, 2]],
    [8, 2, 2, [4, 4]],
  ] as const) {
    // Of a chain with one draw more, whose cycles all chains have.
    const cycle = cycleOf({ draws: draws + 1, thin, cycles, exploration: 0.4 });
    const counts = cycleShares(cycle, { draws, thin, cycles });
    const { samples } = cyclical(cycle);
    for (const [c, share] of shares.entries()) {
      const steps = Array.from({ length: cycle.length }, (_, i) => c * cycle.length + i + 1);
      expect(steps.map(counts)).toEqual(steps.map((_, i) => i >= cycle.length - thin * share));
      expect(steps.filter((step) => counts(step) && !samples(step))).toEqual([]);
    }
  }
});

test("numbers without padding are one piece with their neighbours", () => {
  const layout = new Layout(
    [128, 64, 2, 64, 3].map((size, i) => ({
      key: `${i}`,
      parameters: [{ name: `${i}`, shape: [size] }],
      groups: ["head"],
    })),
  );
  expect(realNumbers(layout, { offset: 0, length: layout.length })).toEqual([
    { offset: 0, length: 194 },
    { offset: 256, length: 67 },
  ]);
  expect(realNumbers(layout, { offset: 128, length: 128 })).toEqual([{ offset: 128, length: 66 }]);
});

test("settings out of range, and clipping, are refused with a sentence", () => {
  expect(() => sgld({ lr: 0.1, N: 1, temperature: -1 })).toThrow("temperature: -1");
  expect(() => sghmc({ lr: 0.1, N: 1, friction: 0 })).toThrow("friction: 0");
  expect(() => sghmc({ lr: 0.1, N: 1, resample: 0.5 })).toThrow("resample: every 0.5 steps");
  expect(() => sgld({ lr: 0.1, N: 1, cycle: { length: 1 } })).toThrow("cycle: 1 steps");
  expect(() => sgld({ lr: 0.1, N: 1, cycle: { length: 9, exploration: 1 } })).toThrow("exploration: 1");
  const engine = new Engine(gpu());
  const theta = new Theta(
    engine,
    new Layout([{ key: "x", parameters: [{ name: "x", shape: [4] }], groups: ["head"] }]),
  );
  const prior = gaussianPrior(theta, { head: { precision: 1 } });
  const model = { engine, theta, loss: () => ({ nlls: ops.sum(theta.tensor("x")), count: 1 }) };
  const make = (optimizer: Optimizer) =>
    new Trainer(logPosterior(model, prior, { N: 1 }), { length: 1, batch: () => ({}) }, { optimizer, epochs: 1, batch: 1, clip: 1 }); // biome-ignore format: one call
  expect(() => make(sgld({ lr: 0.1, N: 1 }))).toThrow("clip: not with sgld");
  make(adam({ lr: 0.1 })).dispose();
  prior.dispose();
  theta.dispose();
});
