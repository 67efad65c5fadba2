/** @file Ensembles of trained members: seeds alone, and randomised MAP (check 15b) against its closed form. */
import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { packBatch } from "../../src/data/batches.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { drawAnchor, exponentialWeights, perturbedTargets, weighExamples } from "../../src/posterior/anchored.ts";
import { readSlices, thetaMembers, trainedSlices } from "../../src/posterior/draws.ts";
import { ensemble } from "../../src/posterior/ensemble.ts";
import { predictAll } from "../../src/posterior/posterior.ts";
import { Stream } from "../../src/random.ts";
import { adam, gaussianPrior, logPosterior, sgd, fit as train } from "../../src/train/index.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { tinyCheckpoint } from "../model/tiny.ts";
import { linearRegression, type Rows, regression, regressionMap, rowSource, solve } from "../train/toys.ts";

const gpu = gpuForTests();

// y = xθ + noise: d weights, n rows, noise variance σ², prior N(μ, 1/τ).
const [d, n, sigma2, tau] = [3, 40, 0.5, 30];
const MU = [0.4, -0.7, 0.2];
const rows = regression(n, [1, -2, 0.5], Math.sqrt(sigma2));

/** XᵀX/σ² + τI */
const LAMBDA = Array.from({ length: d }, (_, i) =>
  Array.from({ length: d }, (_, j) => {
    let sum = i === j ? tau : 0;
    for (let r = 0; r < n; r++) sum += (rows.x[r * d + i]! * rows.x[r * d + j]!) / sigma2;
    return sum;
  }),
);
const inverse = (A: number[][]) =>
  A.map((_, i) =>
    solve(
      A,
      Array.from({ length: d }, (_, j) => (i === j ? 1 : 0)),
    ),
  );

/** Mean of d numbers each, and their covariance. */
function moments(draws: readonly (readonly number[])[]): { mean: number[]; covariance: number[][] } {
  const mean = MU.map((_, i) => draws.reduce((sum, draw) => sum + draw[i]!, 0) / draws.length);
  const covariance = mean.map((mi, i) =>
    mean.map((mj, j) => draws.reduce((sum, draw) => sum + (draw[i]! - mi) * (draw[j]! - mj), 0) / draws.length),
  );
  return { mean, covariance };
}

describe("randomised MAP of linear regression (check 15b)", () => {
  /** θ̂ of member s by the normal equations, with the library's own noise. */
  const anchorOf = (member: number) => {
    const stream = new Stream(5, "anchor", member, 0);
    return MU.map((m) => m + stream.normal() / Math.sqrt(tau));
  };
  const member = (s: number, { anchors = true, targets = true } = {}): number[] => {
    const y = targets ? Float32Array.from(perturbedTargets(rows.y, sigma2, { seed: 5, member: s })) : rows.y;
    return regressionMap({ ...rows, y }, sigma2, tau, anchors ? anchorOf(s) : MU);
  };

  test("its members' covariance is Λ⁻¹, their mean the MAP; anchors alone, or targets alone, fall short", () => {
    const S = 10_000;
    const all = Array.from({ length: S }, (_, s) => s);
    const expected = inverse(LAMBDA);
    const { mean, covariance } = moments(all.map((s) => member(s)));
    // The standard error of a variance from S draws is √(2/S) = 1.4 %.
    for (let i = 0; i < d; i++) {
      for (let j = 0; j < d; j++) {
        const scale = Math.sqrt(expected[i]![i]! * expected[j]![j]!);
        expect(Math.abs(covariance[i]![j]! - expected[i]![j]!) / scale).toBeLessThan(0.06);
      }
    }
    const map = regressionMap(rows, sigma2, tau, MU);
    map.forEach((value, i) => {
      expect(Math.abs(mean[i]! - value)).toBeLessThan(4 * Math.sqrt(expected[i]![i]! / S));
    });
    // Either half alone has τΛ⁻² or the rest of Λ⁻¹: the two add up, and neither is enough.
    const trace = (m: number[][]) => m.reduce((sum, row, i) => sum + row[i]!, 0);
    const anchors = trace(moments(all.map((s) => member(s, { targets: false }))).covariance);
    const targets = trace(moments(all.map((s) => member(s, { anchors: false }))).covariance);
    const square = expected.map((row) =>
      expected.map((_, j) => row.reduce((sum, v, k) => sum + v * expected[k]![j]!, 0)),
    );
    expect(anchors / (tau * trace(square))).toBeCloseTo(1, 1);
    expect((anchors + targets) / trace(expected)).toBeCloseTo(1, 1);
    expect(Math.max(anchors, targets) / trace(expected)).toBeLessThan(0.85);
  });

  test("is what training gives: each member is its closed form", async () => {
    const engine = new Engine(gpu());
    const draws = await ensemble<Rows>(
      () => {
        const toy = linearRegression(engine, d, sigma2, Float32Array.from(MU));
        const prior = gaussianPrior(toy.theta, { encoder: { mean: "pretrained", precision: tau } });
        const dispose = () => {
          prior.dispose();
          toy.dispose();
        };
        return { target: logPosterior(toy, prior, { N: n }), data: rowSource(rows), dispose };
      },
      {
        members: 2,
        fit: { optimizer: sgd({ lr: 0.2 }), epochs: 120, batch: n, schedule: "constant", warmup: 0, seed: 5 },
        anchored: {
          groups: ["encoder"],
          perturb: (_, name) => {
            const y = Float32Array.from(perturbedTargets(rows.y, sigma2, name));
            return rowSource({ ...rows, y });
          },
        },
      },
    );
    for (const s of [0, 1]) {
      const found = await draws.read(s);
      member(s).forEach((value, i) => {
        expect(found[i]).toBeCloseTo(value, 4);
      });
    }
  });
});

describe("members start at their anchors", () => {
  // The data see the first weight well and the two others hardly, as a head's many features: there Λ ≈ τI.
  const open = { ...rows, x: rows.x.map((value, i) => (i % d === 0 ? value : 0.1 * value)) };
  const [STEPS, RATE] = [5, 0.2];
  const options = {
    optimizer: sgd({ lr: RATE }),
    epochs: STEPS,
    batch: n,
    schedule: "constant",
    warmup: 0,
    seed: 5,
  } as const;
  const H = LAMBDA.map((row, i) => row.map((_, j) => open.x.reduce((sum, value, k) => sum + (k % d === i ? (value * open.x[k - i + j]!) / sigma2 : 0), 0))); // biome-ignore format: one line
  const expected = inverse(H.map((row, i) => row.map((value, j) => value + (i === j ? tau : 0))));

  /** STEPS of gradient descent in float64 of member s, from its anchor or from μ. */
  const walk = (s: number, fromAnchor: boolean): number[] => {
    const y = perturbedTargets(open.y, sigma2, { seed: 5, member: s });
    const stream = new Stream(5, "anchor", s, 0);
    const anchor = MU.map((m) => m + stream.normal() / Math.sqrt(tau));
    let w = fromAnchor ? anchor : MU;
    for (let step = 0; step < STEPS; step++) {
      const g = w.map((value, i) => tau * (value - anchor[i]!));
      for (let r = 0; r < n; r++) {
        const x = open.x.subarray(r * d, (r + 1) * d);
        const error = w.reduce((sum, value, i) => sum + value * x[i]!, 0) - y[r]!;
        for (let i = 0; i < d; i++) g[i]! += (error * x[i]!) / sigma2;
      }
      w = w.map((value, i) => value - (RATE / n) * g[i]!);
    }
    return w;
  };

  test("so that a few steps leave them as wide as Λ⁻¹ where the data say little", () => {
    const distanceOf = (fromAnchor: boolean) => {
      const { covariance } = moments(Array.from({ length: 4000 }, (_, s) => walk(s, fromAnchor)));
      const norm = (of: (i: number, j: number) => number) => Math.hypot(...MU.flatMap((_, i) => MU.map((_, j) => of(i, j)))); // biome-ignore format: one line
      return norm((i, j) => covariance[i]![j]! - expected[i]![j]!) / norm((i, j) => expected[i]![j]!);
    };
    // The standard error of the nearer one is about √(2/4,000).
    expect(distanceOf(true)).toBeLessThan(0.08);
    expect(distanceOf(false)).toBeGreaterThan(0.5);
  });

  test("and that is what training does", async () => {
    const draws = await ensemble<Rows>(
      () => {
        const toy = linearRegression(new Engine(gpu()), d, sigma2, Float32Array.from(MU));
        const prior = gaussianPrior(toy.theta, { encoder: { mean: "pretrained", precision: tau } });
        const dispose = () => {
          prior.dispose();
          toy.dispose();
        };
        return { target: logPosterior(toy, prior, { N: n }), data: rowSource(open), dispose };
      },
      {
        members: 2,
        fit: options,
        anchored: {
          groups: ["encoder"],
          perturb: (_, name) => rowSource({ ...open, y: Float32Array.from(perturbedTargets(open.y, sigma2, name)) }),
        },
      },
    );
    for (const s of [0, 1]) {
      const found = await draws.read(s);
      walk(s, true).forEach((value, i) => {
        expect(found[i]).toBeCloseTo(value, 5);
      });
    }
  });
});

describe("exponential weights", () => {
  test("have mean and variance 1, and are named by seed and member", () => {
    const weights = exponentialWeights(100_000, { seed: 1, member: 2 });
    const mean = weights.reduce((a, b) => a + b) / weights.length;
    const variance = weights.reduce((sum, w) => sum + (w - mean) ** 2, 0) / weights.length;
    expect(mean).toBeCloseTo(1, 1.5);
    expect(variance).toBeCloseTo(1, 1.5);
    expect(Math.min(...weights.subarray(0, 1000))).toBeGreaterThanOrEqual(0);
    expect(exponentialWeights(5, { seed: 1, member: 2 })).toEqual(weights.slice(0, 5));
    expect(exponentialWeights(5, { seed: 1, member: 3 })).not.toEqual(weights.slice(0, 5));
  });

  test("make the members' covariance Λ⁻¹ too, where the model is right", () => {
    // Weighted least squares of the same data: its spread is that of the data's own residuals, so over many data sets.
    const S = 200;
    const sums = [0, 0];
    for (let set = 0; set < 40; set++) {
      const own = regression(n, [1, -2, 0.5], Math.sqrt(sigma2), 100 + set);
      const lambda = Array.from({ length: d }, (_, i) =>
        Array.from({ length: d }, (_, j) => {
          let sum = i === j ? tau : 0;
          for (let r = 0; r < n; r++) sum += (own.x[r * d + i]! * own.x[r * d + j]!) / sigma2;
          return sum;
        }),
      );
      const draws = Array.from({ length: S }, (_, s) => {
        const w = exponentialWeights(n, { seed: set, member: s });
        const stream = new Stream(set, "anchor", s, 0);
        const anchor = [1, -2, 0.5].map((m) => m + stream.normal() / Math.sqrt(tau));
        // √w on both sides of a row is its weight.
        const x = own.x.map((value, i) => value * Math.sqrt(w[Math.floor(i / d)]!));
        return regressionMap({ x, y: own.y.map((y, r) => y * Math.sqrt(w[r]!)), d }, sigma2, tau, anchor);
      });
      const { covariance } = moments(draws);
      const exact = inverse(lambda);
      for (let i = 0; i < d; i++) {
        sums[0]! += covariance[i]![i]!;
        sums[1]! += exact[i]![i]!;
      }
    }
    // Right in expectation to first order in 1/n: n = 40 rows leave some per cent.
    expect(sums[0]! / sums[1]!).toBeGreaterThan(0.85);
    expect(sums[0]! / sums[1]!).toBeLessThan(1.15);
  });
});

describe("a BERT", () => {
  const EXAMPLES = [[3, 1, 4], [1, 5], [9, 2, 6, 5], [3], [5, 8, 9, 7, 9]].map((ids, i) => ({
    ids,
    typeIds: ids.map(() => 0),
    label: i % 2,
  }));
  const options = { optimizer: adam({ lr: 1e-3, headLr: 1e-2 }), epochs: 2, batch: 2, seed: 7 };
  const make = (frozen: boolean) => async (seed: number) => {
    const model = await BertForSequenceClassification.load(new Engine(gpu()), tinyCheckpoint(), { labels: 2, seed });
    const prior = gaussianPrior(model, {
      encoder: { precision: frozen ? Number.POSITIVE_INFINITY : 10 },
      head: { precision: 1 },
    });
    return {
      model,
      target: logPosterior(model, prior, { N: EXAMPLES.length }),
      data: EXAMPLES,
      dispose: () => model.dispose(),
    };
  };

  test("member s is the run with seed + s, and S members are averaged", async () => {
    const draws = await ensemble(make(false), { members: 2, fit: options });
    const alone = await make(false)(8);
    for await (const _ of train(alone.target, EXAMPLES, { ...options, seed: 8 }));
    expect(await draws.read(1)).toEqual(await readSlices(alone.model.theta, trainedSlices(alone.model.theta)));
    expect(await draws.read(0)).not.toEqual(await draws.read(1));
    const { members, epistemic } = await predictAll(thetaMembers(alone.model, draws), EXAMPLES);
    expect(members).toBe(2);
    expect(Math.min(...epistemic)).toBeGreaterThan(0);
    alone.dispose();
  });

  test("weighted examples count as often as their weight says", async () => {
    // With a frozen encoder, training goes over vectors that are computed once.
    for (const frozen of [false, true]) {
      const weights = [2, 0, 1, 1, 0.5];
      const { model, target, dispose } = await make(frozen)(3);
      const batch = packBatch(EXAMPLES.map((example, i) => ({ ...example, weight: weights[i]! })));
      const { plain, weighted } = model.engine.step(() => ({
        plain: model.loss(packBatch(EXAMPLES)).nlls.read(),
        weighted: model.loss(batch).nlls.read(),
      }));
      const nlls = await plain;
      (await weighted).forEach((nll, i) => {
        expect(nll).toBe(Math.fround(weights[i]! * nlls[i]!));
      });
      const w = exponentialWeights(5, { seed: 4, member: 1 });
      const expected = nlls.reduce((sum, nll, i) => sum + w[i]! * nll, 0) / 5;
      const examples = weighExamples(EXAMPLES, { seed: 4, member: 1 });
      for await (const { nll } of train(target, examples, { ...options, batch: 5, epochs: 1 })) {
        expect(nll).toBeCloseTo(expected, 5);
      }
      dispose();
    }
  });

  test("an anchor moves the prior's mean of its group alone, and is refused where the prior is flat", async () => {
    const { model, target, dispose } = await make(false)(3);
    const { theta } = model;
    const before = await readSlices(theta, theta.layout.slices, target.prior.mu);
    const head = theta.layout.slices.filter(({ groups }) => groups[0] === "head");
    await drawAnchor(target, head, { seed: 1, member: 0 });
    const after = await readSlices(theta, theta.layout.slices, target.prior.mu);
    const moved = after.map((value, i) => Number(value !== before[i])).reduce((a, b) => a + b);
    expect(moved).toBe(head.reduce((sum, { size }) => sum + size, 0));
    expect(await readSlices(theta, head)).toEqual(await readSlices(theta, head, target.prior.mu));
    dispose();
    await expect(
      ensemble(
        async (seed) => {
          const own = await BertForSequenceClassification.load(new Engine(gpu()), tinyCheckpoint(), {
            labels: 2,
            seed,
          });
          const prior = gaussianPrior(own, { encoder: { precision: 10 }, head: { precision: 0 } });
          return { target: logPosterior(own, prior, { N: 5 }), data: EXAMPLES, dispose: () => own.dispose() };
        },
        { members: 2, fit: options, anchored: { perturb: (data) => data } },
      ),
    ).rejects.toThrow(/head has a flat prior/);
  });
});
