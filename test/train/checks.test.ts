/** @file The checks of docs/checks.md that training itself must pass: 1 to 5, and of 20 Adam's first step. */
import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { Trainer } from "../../src/train/fit.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { adam, adamW, sgd } from "../../src/train/optimizers.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { gpuForTests } from "../kernels/harness.ts";
import {
  classes,
  distance,
  linearRegression,
  type Rows,
  regression,
  regressionMap,
  rowSource,
  twoLayers,
} from "./toys.ts";
import { full, trainOn } from "./training.ts";

const gpu = gpuForTests();

type Training = Parameters<typeof trainOn>;
const train = (make: Training[1], data: Training[2], spec: Training[3], options: Training[4]) =>
  trainOn(gpu(), make, data, spec, options);

const LINE = regression(200, [0.5, -1, 2], 0.5);
const line = (start?: Float32Array) => (engine: Engine) => linearRegression(engine, 3, 0.25, start);

describe("the objective's terms (check 1)", () => {
  test("are those of the data at θ, and add up", async () => {
    const w = Float32Array.of(0.1, 0.2, 0.3);
    const mu = [0.1, 0.2, 0.3];
    const { reports } = await train(
      line(w),
      LINE,
      { encoder: { precision: 50 } },
      {
        optimizer: sgd({ lr: 0.01 }),
        ...full(200, 3),
      },
    );
    // Replay in float64.
    let theta = [...w].map(Number);
    const s = 50 / 200;
    for (const r of reports) {
      let nll = 0;
      const g = [0, 0, 0];
      for (let i = 0; i < 200; i++) {
        const error = theta.reduce((sum, t, j) => sum + t * LINE.x[i * 3 + j]!, 0) - LINE.y[i]!;
        nll += error ** 2 / 0.5 / 200;
        for (let j = 0; j < 3; j++) g[j]! += (error * LINE.x[i * 3 + j]!) / 0.25 / 200;
      }
      const delta = theta.map((t, j) => t - mu[j]!);
      const prior = delta.map((d) => s * d);
      const logPrior = -25 * delta.reduce((a, d) => a + d * d, 0);
      const norm = (v: number[]) => Math.hypot(...v);
      expect(Math.abs(r.nll / nll - 1)).toBeLessThan(1e-5);
      expect(Math.abs(r.logPrior - logPrior)).toBeLessThan(1e-5 * Math.abs(logPrior) + 1e-9);
      expect(Math.abs(r.logJoint - (-200 * r.nll + r.logPrior))).toBeLessThan(1e-6 * Math.abs(r.logJoint));
      expect(Math.abs(r.gradNorm / norm(g.map((x, j) => x + prior[j]!)) - 1)).toBeLessThan(1e-5);
      expect(Math.abs(r.distance - norm(delta))).toBeLessThan(1e-6);
      expect(Math.abs(r.priorShare - norm(prior) / (norm(g) + norm(prior)))).toBeLessThan(1e-6);
      theta = theta.map((t, j) => t - 0.01 * (g[j]! + prior[j]!));
    }
    expect(reports[0]?.priorShare).toBe(0);
    expect(reports[2]?.priorShare).toBeGreaterThan(0.001);
  });

  test("the mean over all minibatches is the full batch, also when the last is short", async () => {
    // A learning rate so small that θ stays where it is: the gradients of all steps are those at the start.
    const options = { optimizer: sgd({ lr: 1e-30 }), schedule: "constant" as const, warmup: 0, epochs: 1 };
    const spec = { encoder: { precision: 0 } };
    const [whole] = (await train(line(), LINE, spec, { ...options, batch: 200 })).reports;
    const { reports } = await train(line(), LINE, spec, { ...options, batch: 64 });
    expect(reports.length).toBe(4); // 64, 64, 64, 8
    // nll is each batch's own mean, so it is weighted by what the batch holds.
    const mean = reports.reduce((sum, { nll }, i) => sum + nll * [64, 64, 64, 8][i]!, 0) / 200;
    expect(Math.abs(mean / whole!.nll - 1)).toBeLessThan(1e-6);
  });

  test("an epoch of SGD steps is one full-batch step to first order, with any batch and accumulation", async () => {
    const lr = 1e-3;
    const spec = { encoder: { precision: 0 } };
    const move = async (batch: number, accumulate: number, scale: number) => {
      const steps = Math.ceil(Math.ceil(200 / batch) / accumulate);
      const optimizer = sgd({ lr: (scale * lr) / steps });
      const options = { optimizer, epochs: 1, batch, accumulate, schedule: "constant" as const, warmup: 0 };
      const { get } = await train(line(), LINE, spec, options);
      return get("w");
    };
    const whole = await move(200, 1, 1);
    const size = distance(whole, [0, 0, 0]);
    // First order: what is left falls with the learning rate, and is far below the 4 % that a wrong weight of the
    // short last batch (8 of 200) would leave.
    for (const [batch, accumulate] of [
      [64, 1],
      [16, 3],
      [13, 4],
    ] as const) {
      expect(distance(await move(batch, accumulate, 1), whole) / size, `${batch} × ${accumulate}`).toBeLessThan(4e-3);
    }
  });

  test("accumulated micro-batches give the step of one large batch", async () => {
    const spec = { encoder: { precision: 10 } };
    const options = { optimizer: adam({ lr: 0.05 }), epochs: 2, seed: 5 };
    const large = await train(line(), LINE, spec, { ...options, batch: 60 });
    const small = await train(line(), LINE, spec, { ...options, batch: 20, accumulate: 3 });
    expect(small.reports.length).toBe(large.reports.length);
    for (const [i, r] of small.reports.entries())
      expect(Math.abs(r.nll / large.reports[i]!.nll - 1)).toBeLessThan(1e-5);
    expect(distance(small.get("w"), large.get("w"))).toBeLessThan(1e-5);
  });

  test("data listed twice: likelihood × 2, prior × 1", async () => {
    const twice = { x: Float32Array.from([...LINE.x, ...LINE.x]), y: Float32Array.from([...LINE.y, ...LINE.y]), d: 3 };
    const spec = { encoder: { precision: 50 } };
    const options = { optimizer: sgd({ lr: 0.01 }), schedule: "constant" as const, warmup: 0, epochs: 2 };
    const w = Float32Array.of(0.1, 0.2, 0.3);
    const [, once] = (await train(line(w), LINE, spec, { ...options, batch: 200 })).reports;
    const [, two] = (await train(line(w), twice, spec, { ...options, batch: 400 })).reports;
    // Step 1 starts at μ, so after it θ is the same and log-likelihood and log prior can be compared.
    expect(Math.abs((two!.logJoint - two!.logPrior) / (once!.logJoint - once!.logPrior) - 2)).toBeLessThan(1e-5);
    expect(Math.abs(two!.logPrior / once!.logPrior - 1)).toBeLessThan(1e-5);
    const map = await train(line(w), twice, spec, { optimizer: sgd({ lr: 0.2 }), ...full(400, 60) });
    expect(distance(map.get("w"), regressionMap(twice, 0.25, 50, [...w]))).toBeLessThan(1e-5);
    expect(distance(regressionMap(twice, 0.25, 50, [...w]), regressionMap(LINE, 0.25, 25, [...w]))).toBeLessThan(1e-9);
  });
});

describe("the prior's gradient (check 2)", () => {
  test("is −τΔ: by finite differences of the reported log prior, and as the optimiser applies it", async () => {
    const tau = 37;
    const mu = Float32Array.of(0.5, -0.25, 1);
    // One row of zeros: the likelihood has no gradient, so what moves θ is the prior alone.
    const nothing = { x: new Float32Array(3), y: Float32Array.of(0), d: 3 };
    const report = async (theta: Float32Array) => {
      const model = linearRegression(new Engine(gpu()), 3, 1, mu);
      const prior = gaussianPrior(model, { encoder: { precision: tau } });
      model.theta.set("w", theta);
      const target = logPosterior(model, prior, { N: 4 });
      const trainer = new Trainer(target, rowSource(nothing), { optimizer: sgd({ lr: 0.01 }), ...full(1, 1) });
      const reports = [];
      for await (const r of trainer.run()) reports.push(r);
      const moved = await model.theta.get("w");
      trainer.dispose();
      prior.dispose();
      model.dispose();
      return { logPrior: reports[0]!.logPrior, moved };
    };
    const theta = Float32Array.of(0.75, 0.25, -1);
    const { moved } = await report(theta);
    for (let j = 0; j < 3; j++) {
      const expected = -tau * (theta[j]! - mu[j]!);
      // log p is quadratic: a central difference is exact for any step, so take one that f32 holds exactly.
      const [up, down] = [theta.slice(), theta.slice()];
      up[j]! += 0.5;
      down[j]! -= 0.5;
      const difference = (await report(up)).logPrior - (await report(down)).logPrior;
      expect(Math.abs(difference / expected - 1)).toBeLessThan(1e-6);
      expect(Math.abs((moved[j]! - theta[j]!) / ((0.01 * expected) / 4) - 1)).toBeLessThan(1e-5);
    }
  });
});

describe("MAP with a Gaussian prior (check 3)", () => {
  test("of a Gaussian mean is the weighted mean of μ and the data", async () => {
    const data = regression(1000, [0], 1);
    data.x.fill(1);
    for (let i = 0; i < 1000; i++) data.y[i]! += 0.7;
    const sum = data.y.reduce((a, y) => a + y, 0);
    const mu = 3;
    const start = Float32Array.of(mu);
    const mean = (engine: Engine) => linearRegression(engine, 1, 1, start);
    const { get } = await train(
      mean,
      data,
      { encoder: { precision: 200 } },
      {
        optimizer: sgd({ lr: 0.5 }),
        ...full(1000, 40),
      },
    );
    expect(Math.abs(get("w")[0]! - (200 * mu + sum) / (200 + 1000))).toBeLessThan(1e-5);
  });

  test("of linear regression solves the normal equations", async () => {
    const mu = [1, 1, -1];
    const { get } = await train(
      line(Float32Array.from(mu)),
      LINE,
      { encoder: { precision: 300 } },
      {
        optimizer: adam({ lr: 0.05 }),
        ...full(200, 400),
        schedule: "cosine",
      },
    );
    const map = regressionMap(LINE, 0.25, 300, mu);
    expect(distance(get("w"), map) / Math.hypot(...map)).toBeLessThan(1e-5);
  });

  test("is not what decoupled decay finds", { timeout: 300_000 }, async () => {
    const data = regression(1000, [0], 1);
    data.x.fill(1);
    for (let i = 0; i < 1000; i++) data.y[i]! += 2;
    const mle = data.y.reduce((a, y) => a + y, 0) / 1000;
    const tau = 200;
    const map = (mle * 1000) / (1000 + tau);
    const mean = (start: number) => (engine: Engine) => linearRegression(engine, 1, 1, Float32Array.of(start));
    const flat = { encoder: { precision: 0 } };
    // The decay that would be this prior if decay were one: w = τ/N.
    const decayed = adamW({ lr: 0.01, decay: tau / 1000, betas: [0.9, 0.95] });
    // Full batch: near the mode the gradient's noise is 0, √v̂ decays, and with it the decay's strength in NLL units.
    const whole = await train(mean(0), data, flat, { optimizer: decayed, ...full(1000, 800), schedule: "linear" });
    expect(Math.abs(whole.get("w")[0]! - mle), "full batch against the MLE").toBeLessThan(1e-3);
    const small = await train(mean(0), data, flat, { optimizer: decayed, epochs: 20, batch: 20, schedule: "linear" });
    const w = small.get("w")[0]!;
    expect(w, "small batches: below the MLE").toBeLessThan(mle - 0.01);
    expect(w, "small batches: above the MAP").toBeGreaterThan(map + 0.05);
  });
});

describe("the continuum from MLE to the prior (check 4)", () => {
  test("‖θ(τ) − MLE‖ = O(τ) and ‖θ(τ) − μ‖ = O(1/τ) over six decades", () => {
    const mu = [1, 1, -1];
    const mle = regressionMap(LINE, 0.25, 0, mu);
    const slope = (from: number, to: readonly number[]) => {
      const at = (tau: number) => Math.log10(distance(regressionMap(LINE, 0.25, tau, mu), to));
      return (at(from * 1e6) - at(from)) / 6;
    };
    expect(slope(1e-7, mle)).toBeCloseTo(1, 2);
    expect(slope(1e6, mu)).toBeCloseTo(-1, 2);
  });

  test("training lands on that curve", async () => {
    const mu = Float32Array.of(1, 1, -1);
    for (const tau of [1, 1e3, 1e5]) {
      const lr = 1 / (5 + tau / 200);
      const { get } = await train(
        line(mu),
        LINE,
        { encoder: { precision: tau } },
        { optimizer: sgd({ lr }), ...full(200, 80) },
      );
      expect(distance(get("w"), regressionMap(LINE, 0.25, tau, [...mu])), `τ ${tau}`).toBeLessThan(2e-5);
    }
  });
});

describe("precision per group (check 5)", () => {
  const DATA = classes(96, 6, 3);
  const net = (engine: Engine) => twoLayers(engine, { d: 6, h: 10, K: 3 });
  const options = { optimizer: adam({ lr: 5e-3, headLr: 0.02 }), epochs: 10, batch: 16 };

  test("τ = ∞ stays bit-identical and costs no optimiser work", async () => {
    const spec = (tau: number) => ({ encoder: { precision: tau }, head: { mean: 0 as const, precision: 1 } });
    const frozen = await train(net, DATA, spec(Number.POSITIVE_INFINITY), options);
    expect(frozen.get("w1")).toEqual(frozen.start("w1"));
    expect(frozen.get("b1")).toEqual(frozen.start("b1"));
    expect(distance(frozen.get("w2"), frozen.start("w2"))).toBeGreaterThan(0.1);
    expect(frozen.reports.at(-1)?.distance).toBe(0);
    const free = await train(net, DATA, spec(1), options);
    expect(frozen.reports[0]!.dispatches).toBeLessThan(free.reports[0]!.dispatches);

    const stiff = await train(net, DATA, spec(1e8), options);
    expect(distance(stiff.get("w1"), stiff.start("w1"))).toBeGreaterThan(0);
    const [a, b] = [probabilities(frozen, DATA), probabilities(stiff, DATA)];
    expect(Math.max(...a.map((p, i) => Math.abs(p - b[i]!)))).toBeLessThan(1e-3);
    const c = probabilities(free, DATA);
    expect(Math.max(...a.map((p, i) => Math.abs(p - c[i]!)))).toBeGreaterThan(1e-2);
  });

  test("a part named alone overrides its group", async () => {
    const inf = Number.POSITIVE_INFINITY;
    const { get, start, reports } = await train(
      net,
      DATA,
      { encoder: { precision: 10 }, "layer.0": { precision: inf }, head: { precision: 0 } },
      options,
    );
    expect(get("w1")).toEqual(start("w1"));
    expect(distance(get("b1"), start("b1"))).toBeGreaterThan(1e-4);
    expect(reports.at(-1)!.logPrior).toBeLessThan(0);
  });

  test("the head's mean is 0, its bias included, so a new head has a share at step 1", async () => {
    const { reports, start } = await train(net, DATA, { encoder: { precision: 0 }, head: { precision: 8 } }, options);
    const square = [...start("w2"), ...start("b2")].reduce((a, w) => a + w * w, 0);
    expect(Math.abs(reports[0]!.logPrior / (-4 * square) - 1)).toBeLessThan(1e-5);
    expect(reports[0]!.priorShare).toBeGreaterThan(0);
  });

  /** In float64 from the weights. */
  function probabilities({ get }: { get(name: string): Float32Array }, { x, y }: Rows): number[] {
    const [w1, b1, w2, b2] = ["w1", "b1", "w2", "b2"].map(get) as [
      Float32Array,
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    return [...y].flatMap((_, i) => {
      const u = [...b1].map((b, r) =>
        Math.tanh(b + x.subarray(i * 6, i * 6 + 6).reduce((a, v, j) => a + v * w1[r * 6 + j]!, 0)),
      );
      const z = [...b2].map((b, k) => Math.exp(b + u.reduce((a, v, r) => a + v * w2[k * 10 + r]!, 0)));
      const total = z.reduce((a, v) => a + v);
      return z.map((v) => v / total);
    });
  }
});

describe("Adam (check 20)", () => {
  test("step 1 is lr·sign(g)", async () => {
    const w = Float32Array.of(0.1, -0.2, 0.3);
    const { get } = await train(
      line(w),
      LINE,
      { encoder: { precision: 0 } },
      { optimizer: adam({ lr: 0.01 }), ...full(200, 1) },
    );
    const g = [0, 0, 0];
    for (let i = 0; i < 200; i++) {
      const error = [...w].reduce((sum, t, j) => sum + t * LINE.x[i * 3 + j]!, 0) - LINE.y[i]!;
      for (let j = 0; j < 3; j++) g[j]! += error * LINE.x[i * 3 + j]!;
    }
    for (let j = 0; j < 3; j++) expect(get("w")[j]! - w[j]!).toBeCloseTo(-0.01 * Math.sign(g[j]!), 6);
  });

  test("AdamW decays to 0 as PyTorch's, or to the prior's mean, and warns beside a prior", async () => {
    const w = Float32Array.of(2, -3, 4);
    const once = full(200, 1);
    const nothing = { x: new Float32Array(600), y: new Float32Array(200), d: 3 };
    const flat = { encoder: { precision: 0 } };
    const zero = await train(line(w), nothing, flat, { optimizer: adamW({ lr: 0.1, decay: 0.5 }), ...once });
    expect([...zero.get("w")].map((x, j) => x / w[j]!)).toEqual([0.95, 0.95, 0.95].map((x) => expect.closeTo(x, 6)));
    const warnings: string[] = [];
    const mean = await train(
      line(w),
      nothing,
      { encoder: { precision: 1 } },
      {
        optimizer: adamW({ lr: 0.1, decay: 0.5, towards: "mean" }),
        ...once,
        warn: (text) => warnings.push(text),
      },
    );
    expect(mean.get("w")).toEqual(w);
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toMatch(/decay.*is not a prior/);
  });
});
