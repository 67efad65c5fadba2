/** @file The loop: order, determinism, memory, clipping, stopping, and what happens to a loss that is not finite. */
import { describe, expect, test, vi } from "vitest";
import { Engine, ops } from "../../src/autograd/index.ts";
import { DivergedError } from "../../src/errors.ts";
import { type FitOptions, Trainer } from "../../src/train/fit.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { adam, sgd } from "../../src/train/optimizers.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { classes, distance, linearRegression, type Rows, regression, rowSource, type Toy, twoLayers } from "./toys.ts";
import { full, trainOn } from "./training.ts";

const gpu = gpuForTests();

type Training = Parameters<typeof trainOn>;
const train = (make: Training[1], data: Training[2], spec: Training[3], options: Training[4]) =>
  trainOn(gpu(), make, data, spec, options);

const LINE = regression(200, [0.5, -1, 2], 0.5);
const line = (start?: Float32Array) => (engine: Engine) => linearRegression(engine, 3, 0.25, start);

describe("the loop", () => {
  const DATA = classes(64, 6, 3);
  const net = (engine: Engine) => twoLayers(engine, { d: 6, h: 10, K: 3, p: 0.3 });
  const spec = { encoder: { precision: 10 }, head: { precision: 1 } };
  const options = { optimizer: adam({ lr: 1e-3, headLr: 0.02 }), epochs: 3, batch: 12, seed: 9 };

  test("reports every step once, in order, and gives the same bits for the same seed", async () => {
    const a = await train(net, DATA, spec, options);
    const b = await train(net, DATA, spec, options);
    const c = await train(net, DATA, spec, { ...options, seed: 10 });
    expect(a.reports.map((r) => r.step)).toEqual(Array.from({ length: 18 }, (_, i) => i + 1));
    expect(a.reports.at(-1)?.epoch).toBe(3);
    expect(a.reports.map((r) => r.nll)).toEqual(b.reports.map((r) => r.nll));
    expect(a.get("w1")).toEqual(b.get("w1"));
    expect(a.get("w1")).not.toEqual(c.get("w1"));
    const plain = await train(net, DATA, spec, { ...options, dropout: false });
    expect(plain.reports[0]!.nll).not.toBe(a.reports[0]!.nll);
  });

  test("live memory after the last step is that after the first epoch", async () => {
    const model = net(new Engine(gpu()));
    const prior = gaussianPrior(model, spec);
    const trainer = new Trainer(logPosterior(model, prior, { N: 64 }), rowSource(DATA), { ...options, epochs: 6 });
    const live: number[] = [];
    for await (const { step } of trainer.run()) if (step % 6 === 0) live.push(gpu().stats.liveBytes);
    expect(live[5]).toBe(live[0]);
    trainer.dispose();
    prior.dispose();
    model.dispose();
  });

  test("clips ‖∇J‖, prior included, and reports it unclipped", async () => {
    const w = Float32Array.of(5, 5, 5);
    const spec = { encoder: { mean: 0 as const, precision: 400 } };
    const [short, free] = await Promise.all([
      train(line(w), LINE, spec, { optimizer: sgd({ lr: 0.01 }), ...full(200, 1), clip: 0.5 }),
      train(line(w), LINE, spec, { optimizer: sgd({ lr: 0.01 }), ...full(200, 1) }),
    ]);
    expect(short.reports[0]!.gradNorm).toBe(free.reports[0]!.gradNorm);
    expect(distance(short.get("w"), w)).toBeCloseTo(0.01 * 0.5, 5);
    expect(distance(free.get("w"), w) / (0.01 * free.reports[0]!.gradNorm)).toBeCloseTo(1, 4);
  });

  test("one run at a time: the second is refused before the first has sent a step, and may begin when that has ended", async () => {
    const model = net(new Engine(gpu()));
    const prior = gaussianPrior(model, spec);
    const trainer = new Trainer(logPosterior(model, prior, { N: 64 }), rowSource(DATA), options);
    const [first, second] = [trainer.run(), trainer.run()];
    const begun = first.next();
    await expect(second.next()).rejects.toThrow("run: this training runs already");
    await begun;
    await first.return();
    const seen: number[] = [];
    for await (const { step } of trainer.run()) seen.push(step);
    expect(seen).toEqual(Array.from({ length: 16 }, (_, i) => i + 3)); // step 2 was under way
    trainer.dispose();
    prior.dispose();
    model.dispose();
  });

  test("tokensPerSecond leaves out what the caller does after a settled step", async () => {
    const model = net(new Engine(gpu()));
    const prior = gaussianPrior(model, spec);
    const target = logPosterior(model, prior, { N: 64 });
    const trainer = new Trainer(target, rowSource(DATA), { ...options, settle: (step) => step === 2 });
    const rates: number[] = [];
    // A step takes no time by this clock.
    let now = 0;
    const clock = vi.spyOn(performance, "now").mockImplementation(() => now);
    for await (const { step, tokensPerSecond } of trainer.run()) {
      rates.push(tokensPerSecond);
      if (step === 2) now += 2000;
    }
    clock.mockRestore();
    // 12 rows in the two seconds would be 6 a second.
    expect(rates[2]).toBeGreaterThan(12);
    trainer.dispose();
    prior.dispose();
    model.dispose();
  });

  test("what is refused has taken no memory, and a second disposal gives nothing back twice", () => {
    const model = net(new Engine(gpu(), { dtype: "f16" }));
    const prior = gaussianPrior(model, spec);
    const target = logPosterior(model, prior, { N: 64 });
    const before = gpu().stats.liveBuffers;
    const make = (more: Partial<FitOptions>) =>
      new Trainer(target, rowSource(DATA), { ...options, warn: () => {}, ...more });
    expect(() => make({ mixout: 0.5, lossScale: { start: 3 } })).toThrow("loss scale: 3");
    expect(() => make({ mixout: 1 })).toThrow("mixout: 1");
    expect(gpu().stats.liveBuffers).toBe(before);
    const trainer = make({ mixout: 0.5 });
    expect(gpu().stats.liveBuffers).toBeGreaterThan(before);
    trainer.dispose();
    trainer.dispose();
    expect(gpu().stats.liveBuffers).toBe(before);
    prior.dispose();
    model.dispose();
  });

  test("an abort finishes the step under way", async () => {
    const model = net(new Engine(gpu()));
    const prior = gaussianPrior(model, spec);
    const stop = new AbortController();
    const target = logPosterior(model, prior, { N: 64 });
    const trainer = new Trainer(target, rowSource(DATA), { ...options, signal: stop.signal });
    const seen: number[] = [];
    for await (const { step } of trainer.run()) {
      seen.push(step);
      if (step === 3) stop.abort();
    }
    // Step 4 was under way when step 3 was reported.
    expect(seen).toEqual([1, 2, 3, 4]);
    expect(trainer.step).toBe(4);
    expect((await trainer.state()).step).toBe(4);
    trainer.dispose();
    prior.dispose();
    model.dispose();
  });

  test("a loss that overflows stops the run: θ untouched, step, rows and operation named", async () => {
    const data = classes(64, 6, 3);
    const bad = 37;
    data.x[bad * 6] = 3e38; // finite, but its row overflows in the first product
    data.x[bad * 6 + 1] = 3e38;
    const model = twoLayers(new Engine(gpu()), { d: 6, h: 10, K: 3 });
    model.theta.set("w1", new Float32Array(60).fill(2));
    const target = logPosterior({ ...model, loss: unbounded(model) }, gaussianPrior(model, spec), { N: 64 });
    const trainer = new Trainer(target, rowSource(data), {
      ...options,
      batch: 8,
      order: () => Array.from({ length: 64 }, (_, i) => i),
      settle: () => true,
    });
    let before = new Float32Array();
    let caught: unknown;
    try {
      for await (const _ of trainer.run()) before = new Float32Array(await model.theta.get("w1"));
    } catch (error) {
      caught = error;
    }
    expect(caught).toBeInstanceOf(DivergedError);
    const error = caught as DivergedError;
    expect(error.step).toBe(5); // rows 32 … 39
    expect(error.operation).toMatch(/^(matmul|linear)/);
    // Facts alone: a library's caller has no flags, and may have put θ back.
    expect(error.message).toMatch(
      /^step 5: [^.]*first in (matmul|linear)[^;]*; training examples 32, 33, .*39, counted from 0\)\.$/,
    );
    expect(await model.theta.get("w1")).toEqual(before);
    expect(before.every(Number.isFinite)).toBe(true);
    expect((await trainer.state()).step).toBe(4);
    trainer.dispose();
    model.dispose();
  });

  test("a bad loss whose gradient is finite moves nothing either", async () => {
    const base = line(Float32Array.of(0.1, 0.2, 0.3))(new Engine(gpu()));
    const model = {
      ...base,
      loss(rows: Rows) {
        const { nlls, count } = base.loss(rows);
        // + a constant infinity: no gradient flows from it.
        const shift = base.engine.tensor(new Float32Array(count).fill(Number.POSITIVE_INFINITY));
        return { nlls: ops.add(nlls, shift), count };
      },
    };
    const prior = gaussianPrior(base, { encoder: { precision: 0 } });
    const options = { optimizer: sgd({ lr: 0.01 }), ...full(200, 3) };
    const trainer = new Trainer(logPosterior(model, prior, { N: 200 }), rowSource(LINE), options);
    await expect(
      (async () => {
        for await (const _ of trainer.run());
      })(),
    ).rejects.toThrow(/step 1: .*first in add/);
    expect(await base.theta.get("w")).toEqual(Float32Array.of(0.1, 0.2, 0.3));
    trainer.dispose();
    prior.dispose();
    base.dispose();
  });

  test("a prior whose share is 0 in every step fails (check 21)", async () => {
    // Data that θ = μ fits exactly: it never leaves μ.
    const still = { x: Float32Array.from(LINE.x), y: new Float32Array(200), d: 3 };
    await expect(
      train(line(), still, { encoder: { precision: 300 } }, { optimizer: adam({ lr: 0.01 }), ...full(200, 4) }),
    ).rejects.toThrow(/share of the gradient was 0 in every step [^-]*precision 0, which is maximum likelihood\.$/);
    const flat = await train(
      line(),
      still,
      { encoder: { precision: 0 } },
      { optimizer: adam({ lr: 0.01 }), ...full(200, 4) },
    );
    expect(flat.reports.map((r) => r.priorShare)).toEqual([0, 0, 0, 0]);
    const { reports } = await train(
      line(),
      LINE,
      { encoder: { precision: 300 } },
      { optimizer: adam({ lr: 0.01 }), ...full(200, 4) },
    );
    expect(reports.map((r) => r.priorShare > 0)).toEqual([false, true, true, true]);
  });

  test("a new head's random start does not hide an encoder's prior that never had a share", async () => {
    // A rate below float32's resolution of θ: the encoder stays at μ, bit for bit; the head starts away from its 0.
    const run = (encoder: number) =>
      train(
        net,
        DATA,
        { encoder: { precision: encoder }, head: { precision: 1 } },
        { ...options, optimizer: adam({ lr: 1e-30, headLr: 0.02 }) },
      );
    await expect(run(10)).rejects.toThrow(/^prior: its share .* was 0 in every step in encoder \(from w1\)/);
    expect((await run(0)).reports.some(({ priorShare }) => priorShare > 0)).toBe(true);
  });

  test("a step whose last stretch was not updated did not happen", async () => {
    const model = net(new Engine(gpu()));
    const prior = gaussianPrior(model, spec);
    const real = adam({ lr: 1e-3, headLr: 0.02 });
    const lost: typeof real = {
      ...real,
      // The head, the last of two stretches, is forgotten in step 3: as if its dispatch had failed.
      update: (context, stretch, lr, step, last) => {
        if (!(last && step === 3)) real.update(context, stretch, lr, step, last);
      },
    };
    const trainer = new Trainer(logPosterior(model, prior, { N: 64 }), rowSource(DATA), {
      ...options,
      optimizer: lost,
      settle: () => true,
    });
    expect(trainer.stretches.length).toBe(2);
    const seen: number[] = [];
    const all = async () => {
      for await (const { step } of trainer.run()) seen.push(step);
    };
    await expect(all()).rejects.toThrow(/step 3: the device says that its last update was step 2/);
    expect(seen).toEqual([1, 2]);
    trainer.dispose();
    prior.dispose();
    model.dispose();
  });

  test("refuses options that make no sense", () => {
    const model = net(new Engine(gpu()));
    const prior = gaussianPrior(model, spec);
    const target = logPosterior(model, prior, { N: 64 });
    const make = (more: Partial<FitOptions>) => () => new Trainer(target, rowSource(DATA), { ...options, ...more });
    expect(make({ epochs: 1.5 })).toThrow(/epochs: 1.5 .expected a whole number/);
    expect(make({ batch: 0 })).toThrow(/batch: 0/);
    expect(make({ seed: -1 })).toThrow(/seed: -1/);
    expect(make({ clip: 0 })).toThrow(/clip: 0/);
    expect(make({ optimizer: adam({ lr: 1e-3, lrs: { hed: 1 } }) })).toThrow(
      /lr: no group is named hed .*Did you mean head/,
    );
    expect(() => adam({ lr: 0 })).toThrow(/lr: 0 .expected a number above 0/);
    expect(() => adam({ lr: 1, headLr: Number.NaN })).toThrow(/lr of head: NaN/);
    expect(() => sgd({ lr: 1, momentum: 1 })).toThrow(/momentum: 1/);
    expect(() => logPosterior(model, prior, { N: 0 })).toThrow(/N: 0/);
    expect(() => new Trainer(target, rowSource({ ...DATA, y: new Float32Array() }), options)).toThrow(/no examples/);
    prior.dispose();
    model.dispose();
  });
});

/** A likelihood whose NLLs are a product of x and the weights: nothing bounds it. */
function unbounded({ engine, theta }: Toy): Toy["loss"] {
  return ({ x, y, d }) => {
    const product = ops.linear(engine.tensor(x, [y.length, d]), theta.tensor("w1")); // [n, h]
    return { nlls: ops.sum(product), count: y.length };
  };
}
