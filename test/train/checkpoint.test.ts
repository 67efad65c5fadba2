import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { InputError } from "../../src/errors.ts";
import { parseState, serializeState, type TrainState } from "../../src/train/checkpoint.ts";
import { type FitOptions, Trainer } from "../../src/train/fit.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { adam, type Optimizer, sgd } from "../../src/train/optimizers.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { classes, rowSource, twoLayers } from "./toys.ts";

const gpu = gpuForTests();
const DATA = classes(64, 6, 3);
const spec = { encoder: { precision: 10 }, head: { precision: 1 } };

interface Part {
  optimizer: Optimizer;
  from?: TrainState;
  /** Stop after this many steps. */
  stop?: number;
  more?: Partial<FitOptions>;
  tau?: number;
}

/** A part of a run of 12 steps (2 epochs), with dropout, shuffling and decay: all that a resumed run must find again. */
async function part({ optimizer, from, stop, more, tau = 10 }: Part) {
  const model = twoLayers(new Engine(gpu()), { d: 6, h: 10, K: 3, p: 0.3 });
  const prior = gaussianPrior(model, { ...spec, encoder: { precision: tau } });
  const trainer = new Trainer(logPosterior(model, prior, { N: 64 }), rowSource(DATA), {
    optimizer,
    epochs: 2,
    batch: 12,
    accumulate: 1,
    seed: 9,
    settle: (step) => step === stop,
    ...more,
  });
  try {
    const notes = from ? await trainer.restore(from) : [];
    const nll: number[] = [];
    for await (const report of trainer.run()) {
      nll.push(report.nll);
      if (report.step === stop) break;
    }
    return { nll, notes, state: await trainer.state() };
  } finally {
    trainer.dispose();
    prior.dispose();
    model.dispose();
  }
}

describe("resuming", () => {
  test.each([
    ["adam", adam({ lr: 1e-3, headLr: 0.02 })],
    ["sgd with momentum", sgd({ lr: 0.05, momentum: 0.9 })],
  ])("%s: 10 steps straight are 5 + save + restore + 5, bit for bit", async (_, optimizer) => {
    const straight = await part({ optimizer, stop: 10 });
    const first = await part({ optimizer, stop: 5 });
    const saved = serializeState(first.state);
    const second = await part({ optimizer, from: parseState(saved, "state"), stop: 10 });
    expect(second.notes).toEqual([]);
    expect(first.state.step).toBe(5);
    expect([...first.nll, ...second.nll]).toEqual(straight.nll);
    expect(second.state.theta).toEqual(straight.state.theta);
    expect(second.state.vectors).toEqual(straight.state.vectors);
    expect(Object.keys(straight.state.vectors)).toEqual([...optimizer.vectors]);
    // Without the optimiser's vectors the continuation is another one: the comparison can fail.
    const empty = Object.fromEntries(
      optimizer.vectors.map((name) => [name, new Float32Array(first.state.theta.length)]),
    );
    const forgetful = await part({ optimizer, from: { ...first.state, vectors: empty }, stop: 10 });
    expect(forgetful.state.theta).not.toEqual(straight.state.theta);
  });

  test("says what differs instead of continuing another run", async () => {
    const optimizer = adam({ lr: 1e-3, headLr: 0.02 });
    const { state: from } = await part({ optimizer, stop: 3 });
    const other = (change: Partial<Part>) => part({ optimizer, from, ...change });
    await expect(other({ optimizer: adam({ lr: 2e-3, headLr: 0.02 }) })).rejects.toThrow(
      /resume: lr differs \(the checkpoint has 0.001, this run 0.002\)/,
    );
    await expect(other({ more: { seed: 8 } })).rejects.toThrow(/seed differs .*has 9, this run 8/);
    await expect(other({ more: { batch: 16 } })).rejects.toThrow(/batch differs/);
    await expect(other({ tau: 11 })).rejects.toThrow(/prior precision of encoder differs/);
    await expect(other({ from: { ...from, facts: { ...from.facts, "prior mean": "0" } } })).rejects.toThrow(
      /prior mean differs/,
    );
    await expect(other({ from: { ...from, theta: new Float32Array(64) } })).rejects.toThrow(
      /not the size of this model/,
    );
    await expect(other({ from: { ...from, step: 13 } })).rejects.toThrow(/step 13 of a run of 12/);
    const { notes } = await other({ from: { ...from, adapter: "another" }, stop: 4 });
    expect(notes).toEqual([expect.stringMatching(/made on another, this is .*not bit for bit/)]);
  });

  test("a state is not given away while a step is in flight", async () => {
    const model = twoLayers(new Engine(gpu()), { d: 6, h: 10, K: 3 });
    const prior = gaussianPrior(model, spec);
    const options = { optimizer: adam({ lr: 1e-3 }), epochs: 1, batch: 12 };
    const trainer = new Trainer(logPosterior(model, prior, { N: 64 }), rowSource(DATA), options);
    for await (const { step } of trainer.run()) {
      if (step === 1) await expect(trainer.state()).rejects.toThrow(/step 2 is in flight/);
    }
    expect((await trainer.state()).step).toBe(6);
    trainer.dispose();
    prior.dispose();
    model.dispose();
  });
});

describe("a state as a file", () => {
  const state: TrainState = {
    step: 7,
    adapter: "a GPU (driver)",
    facts: { lr: 5e-5, seed: 9, order: "shuffled" },
    theta: Float32Array.of(1, -2.5, 3e-30),
    vectors: { m: Float32Array.of(0, 0, 1), v: Float32Array.of(1, 2, 3) },
  };

  test("comes back as it was, and the same state gives the same bytes", () => {
    const bytes = serializeState(state);
    expect(parseState(bytes, "f")).toEqual(state);
    expect(serializeState(state)).toEqual(bytes);
  });

  test("is refused when it is truncated, damaged, or something else", () => {
    const bytes = serializeState(state);
    const refused = (b: Uint8Array, message: RegExp) => {
      expect(() => parseState(b, "f.safetensors")).toThrow(message);
      expect(() => parseState(b, "f.safetensors")).toThrow(InputError);
    };
    refused(bytes.subarray(0, bytes.length - 4), /^f\.safetensors: /);
    refused(new Uint8Array(0), /empty/);
    refused(serializeState({ ...state, theta: Float32Array.of(1, Number.NaN) }), /tensor theta has NaN at position 1/);
    const text = (from: string, to: string) => {
      const copy = bytes.slice();
      const at = new TextDecoder("latin1").decode(copy).indexOf(from);
      copy.set(new TextEncoder().encode(to), at);
      return copy;
    };
    refused(text('version\\":1', 'version\\":2'), /state of version 2 .expected 1/);
    refused(text('"priorwork"', '"priorwurk"'), /not a training state/);
    refused(text('"optimizer.m"', '"optimizur.m"'), /tensor optimizur.m/);
    refused(text("step", "stup"), /without its step/);
  });
});
