/**
 * @file The judge of bench/peers: its float64 reference has the right gradients, and its check refuses a peer that is
 * wrong or does not wait; the protocol of those in a child process. (The peers themselves are not installed here.)
 */
import { describe, expect, onTestFinished, test } from "vitest";
import { adapterKey } from "../../bench/peers/burn.ts";
import { check } from "../../bench/peers/check.ts";
import { reference } from "../../bench/peers/f64.ts";
import { compare } from "../../bench/peers/measure.ts";
import { encoderLayer, fill, layerShapes } from "../../bench/peers/model.ts";
import { padding } from "../../bench/peers/model-tasks.ts";
import { chosenTasks, optionsOf } from "../../bench/peers/options.ts";
import {
  type Algebra,
  inputsOf as batchInputs,
  type Input,
  type Prepared,
  Refusal,
  type Task,
} from "../../bench/peers/peer.ts";
import { Pipe } from "../../bench/peers/pipe.ts";
import { batches, product } from "../../bench/peers/product.ts";
import { merged, type Report, title } from "../../bench/peers/report.ts";
import { epoch, SENTENCES, tokensOf, typicalBatches } from "../../bench/peers/sst2.ts";
import { tasks } from "../../bench/peers/tasks.ts";
import { Stream } from "../../src/random.ts";

type Shapes = Record<string, readonly number[]>;
type Forward = <T>(a: Algebra<T>, x: Record<string, T>) => T;

/** Inputs in float64, so that differences are not of float32's rounding. */
function inputsOf(shapes: Shapes): Record<string, Input> {
  const stream = new Stream(1, "peers");
  const inputs = fill(shapes, () => stream.normal(), 0.5);
  for (const input of Object.values(inputs)) input.data = Float64Array.from(input.data) as unknown as Float32Array;
  return inputs;
}

function taskOf(forward: Forward, gradients: readonly string[]): Task {
  return { name: "t", shape: {}, work: { kind: "softmax" }, inputs: () => ({}), forward, gradients };
}

/** The largest relative difference between the tape's gradients and central differences. */
function gradientError(forward: Forward, shapes: Shapes, wanted = Object.keys(shapes)): number {
  const inputs = inputsOf(shapes);
  const { y } = reference(taskOf(forward, []), inputs);
  const stream = new Stream(2, "dy");
  const dy = Float64Array.from(y ?? [], () => stream.normal());
  inputs.dy = { shape: [dy.length], data: dy as unknown as Float32Array };
  const slopes = reference(taskOf(forward, wanted), inputs);
  const value = () =>
    Float64Array.from(reference(taskOf(forward, []), inputs).y ?? []).reduce((sum, v, i) => sum + v * (dy[i] ?? 0), 0);
  let worst = 0;
  for (const name of wanted) {
    const { data } = inputs[name] as Input;
    for (let i = 0; i < data.length; i += Math.max(1, Math.floor(data.length / 7))) {
      const [before, h] = [data[i] ?? 0, 1e-6];
      data[i] = before + h;
      const above = value();
      data[i] = before - h;
      const slope = (above - value()) / (2 * h);
      data[i] = before;
      const analytic = slopes[`d${name}`]?.[i] ?? Number.NaN;
      worst = Math.max(worst, Math.abs(slope - analytic) / (1 + Math.abs(analytic)));
    }
  }
  return worst;
}

const cases: Record<string, [Forward, Shapes]> = {
  "a product": [(a, x) => a.matmul(x.a!, x.b!), { a: [3, 5], b: [5, 2] }],
  "a product NT": [(a, x) => a.matmul(x.a!, x.b!, "NT"), { a: [2, 3, 5], b: [2, 4, 5] }],
  "a product TN": [(a, x) => a.matmul(x.a!, x.b!, "TN"), { a: [5, 3], b: [5, 2] }],
  "a broadcast sum": [(a, x) => a.softmax(a.add(x.a!, x.b!)), { a: [2, 3, 4], b: [2, 1, 4] }],
  "layer norm": [(a, x) => a.layerNorm(x.x!, x.g!, x.b!, 1e-12), { x: [3, 7], g: [7], b: [7] }],
  GELU: [(a, x) => a.gelu(a.scale(x.x!, 3)), { x: [11] }],
  sums: [(a, x) => a.softmax(a.tokenMean(a.permute(x.x!, [1, 0, 2]))), { x: [2, 3, 4] }],
  "a column sum": [(a, x) => a.gelu(a.columnSum(x.x!)), { x: [5, 3] }],
  "cross-entropy": [(a, x) => a.crossEntropy(x.x!, a.softmax(a.scale(x.one!, 1e3))), { x: [2, 3], one: [2, 3] }],
  "an encoder layer": [
    (a, x) => encoderLayer(a, x.x!, (name) => x[name]!, { b: 2, t: 3, c: 4, heads: 2 }),
    { x: [6, 4], ...layerShapes("", 4, 8) },
  ],
  "an encoder layer with padding": [
    (a, x) => encoderLayer(a, x.x!, (name) => x[name]!, { b: 2, t: 3, c: 4, heads: 2 }, a.scale(x.mask!, 20)),
    { x: [6, 4], mask: [4, 1, 3], ...layerShapes("", 4, 8) },
  ],
};

describe("the reference's gradient of", () => {
  for (const [name, [forward, shapes]] of Object.entries(cases)) {
    const wanted = Object.keys(shapes).filter((key) => key !== "one");
    test(name, () => expect(gradientError(forward, shapes, wanted)).toBeLessThan(1e-7));
  }
});

test("the reference trains by Adam as its authors write it, a step on each batch", () => {
  // Loss w·x, so the gradient is x: of the first batch 3, of the second −1; w is 5 at first.
  const task: Task = {
    ...taskOf((a, x) => a.matmul(x.x!, x.w!), []),
    work: { kind: "train", heads: 1, layers: 1, lr: 0.1, batches: [3, -1].map(() => ({ lengths: [1], labels: [0] })) },
    weights: ["w"],
  };
  const number = (value: number) => ({ shape: [1, 1], data: Float32Array.of(value) });
  const found = reference(task, { w: number(5), "x@0": number(3), "x@1": number(-1) });
  const first = 5 - (0.1 * 3) / (3 + 1e-8);
  const [m, v] = [0.9 * (0.1 * 3) + 0.1 * -1, 0.999 * (0.001 * 9) + 0.001 * 1];
  const second = first - (0.1 * (m / (1 - 0.9 ** 2))) / (Math.sqrt(v / (1 - 0.999 ** 2)) + 1e-8);
  expect(found["y@0"]?.[0]).toBeCloseTo(15, 12);
  expect(found["y@1"]?.[0]).toBeCloseTo(-first, 12);
  expect(found.w?.[0]).toBeCloseTo(second, 12);
});

describe("SST-2's epoch", () => {
  const mean = (batches: readonly number[][], of: "packed" | "padded") =>
    batches.reduce((sum, lengths) => sum + tokensOf(lengths)[of], 0) / batches.length;

  test("has every sentence of the training set once, but for the last batch", () => {
    expect(SENTENCES.reduce((a, b) => a + b, 0)).toBe(67_349);
    const lengths = epoch(16).flat();
    expect(lengths).toHaveLength(67_349 - (67_349 % 16));
    expect(lengths.filter((length) => length === 3).length).toBeGreaterThan(1978 - 6);
    expect(Math.max(...lengths)).toBe(66);
  });

  test("is what the batches that stand for it are", () => {
    const [all, few] = [epoch(16), typicalBatches(16, 3)];
    expect(few.map(({ length }) => length)).toEqual([16, 16, 16]);
    for (const of of ["packed", "padded"] as const) {
      expect(Math.abs(mean(few, of) / mean(all, of) - 1)).toBeLessThan(0.01);
    }
    expect(tokensOf(few[0] ?? []).padded).toBeLessThan(tokensOf(few[2] ?? []).padded);
  });

  test("is masked where it is padded, and the mean leaves padding out", () => {
    const { mask, pool } = padding([1, 3], 2);
    expect(mask).toEqual({
      shape: [4, 1, 3],
      data: Float32Array.of(0, -1e4, -1e4, 0, -1e4, -1e4, 0, 0, 0, 0, 0, 0),
    });
    expect(pool).toEqual({ shape: [2, 1, 3], data: Float32Array.of(1, 0, 0, 1 / 3, 1 / 3, 1 / 3) });
    const task = tasks().find(({ name }) => name === "train.sst2");
    expect(task?.shape).toMatchObject({ batches: 3, B: 16, N: 640, padded: 1696 });
    expect(batchInputs({ "x@0": 1, "x@1": 2, "0.up.w": 3 }, 1)).toEqual({ x: 2, "0.up.w": 3 });
  });
});

describe("the flags", () => {
  const peers = ["jax-js", "burn"];
  test("say what runs", () => {
    const { filters, rounds, burn, without } = optionsOf(["train", "--rounds", "2", "--without", "jax-js"], peers);
    expect({ filters, rounds, burn, without }).toEqual({
      filters: ["train"],
      rounds: 2,
      burn: false,
      without: ["jax-js"],
    });
  });
  test("refuse what they don't know", () => {
    expect(() => optionsOf(["--without", "tensorflow"], peers)).toThrow(/no such peer. There are jax-js, burn/);
    expect(() => optionsOf(["--rounds", "0"], peers)).toThrow(/--rounds 0/);
    expect(() => optionsOf(["--bern"], peers)).toThrow(/--bern/);
    expect(() => chosenTasks(tasks(), ["fft"])).toThrow(/fft: no task has that in its name. There are matmul, /);
  });
  test("choose tasks by name, layout and sizes", () => {
    const names = (...filters: string[]) => chosenTasks(tasks(), filters).map(title);
    expect(names("matmul NT", "train.sst2").map((name) => name.slice(0, 10))).toEqual(["matmul NT ", "train.sst2"]);
    expect(names()).toHaveLength(tasks().length);
  });
});

describe("reports of two runs", () => {
  const row = (name: string, ms: number, ...peers: string[]) => ({
    name,
    shape: {},
    entries: peers.map((peer) => ({ peer, medianMs: ms })),
    best: [],
  });
  const report = (peers: string[], rounds: number, ...results: Report["results"]): Report => ({
    adapter: { name: "a", kind: "software", driver: "d", features: [], limits: {}, subgroupSize: 8 },
    date: "2026-01-01",
    node: "v20",
    rounds,
    peers: peers.map((name) => ({ name, version: "1", where: "gpu" })),
    absent: peers.includes("burn") ? [] : ["burn: it takes part with --burn"],
    results,
  });
  const titles = ["a ()", "b ()", "c ()"];
  const earlier = report(["ours"], 9, row("a", 1, "ours"), row("b", 2, "ours"), row("gone", 3, "ours"));

  test("become one, the later's rows first, in the tasks' order", () => {
    const both = merged(
      report(["ours", "burn"], 20, row("c", 4, "ours", "burn"), row("b", 5, "ours", "burn")),
      earlier,
      titles,
    );
    expect(both.results.map(({ name, entries }) => [name, ...entries.map(({ medianMs }) => medianMs)])).toEqual([
      ["a", 1, undefined],
      ["b", 5, 5],
      ["c", 4, 4],
    ]);
    expect(both.results[0]?.entries[1]?.refused).toMatch(/did not take part/);
    expect(both.peers.map(({ name }) => name)).toEqual(["ours", "burn"]);
    expect(both.rounds).toBe(9);
  });

  test("are the later's alone where it has measured all", () => {
    const again = report(["ours"], 20, row("a", 1, "ours"));
    const both = merged(again, report(["ours", "burn"], 9, row("a", 2, "ours", "burn")), titles);
    expect(both.rounds).toBe(20);
    expect(both.peers).toEqual(again.peers);
    expect(both.absent).toEqual(again.absent);
  });

  test("of another driver or another version are not compared", () => {
    const other = report(["ours"], 9);
    other.adapter.driver = "e";
    expect(() => merged(other, earlier, titles)).toThrow(/measured on d, this is e/);
    const newer = report(["ours"], 9);
    (newer.peers[0] as { version: string }).version = "2";
    expect(() => merged(newer, earlier, titles)).toThrow(/it has ours 1, this is 2/);
  });
});

test("the reference's product is the sum that defines it", () => {
  const [a, b] = [inputsOf({ a: [5, 3] }).a, inputsOf({ b: [5, 6] }).b] as [Input, Input];
  const [, sizes] = batches(a.shape, b.shape, "TN");
  const c = product(Float64Array.from(a.data), Float64Array.from(b.data), "TN", sizes);
  let sum = 0;
  for (let k = 0; k < 5; k++) sum += (a.data[k * 3 + 2] ?? 0) * (b.data[k * 6 + 4] ?? 0);
  expect(c[2 * 6 + 4]).toBeCloseTo(sum, 14);
});

describe("the check", () => {
  const task = taskOf((a, x) => a.scale(x.x!, 2), []);
  const expected = { y: Float64Array.of(2, 4, 6) };
  const peer = (y: readonly number[], late = 0): Prepared => {
    let done = Promise.resolve();
    return {
      run: async () => {
        done = new Promise((resolve) => setTimeout(resolve, late));
      },
      read: async () => {
        await done;
        return { y };
      },
      dispose: () => {},
    };
  };
  const judge = (prepared: Prepared) => check(task, {}, prepared, expected);

  test("accepts float32's rounding", () => expect(judge(peer([2, 4.00001, 6]))).resolves.toEqual(expect.any(Number)));
  test("refuses a wrong number", () => expect(judge(peer([2, 4.01, 6]))).rejects.toThrow(/y\[1\] is 4.01/));
  test("is wider for gradients alone, where a peer has another formula", async () => {
    const gradient = taskOf((a, x) => a.scale(x.x!, 2), ["x"]);
    const judged = (y: number, dx: number) => {
      const prepared: Prepared = {
        run: async () => {},
        read: async () => ({ y: [y], dx: [dx] }),
        dispose: () => {},
        gradientTolerance: 1e-2,
      };
      return check(gradient, {}, prepared, { y: Float64Array.of(2), dx: Float64Array.of(2) });
    };
    await expect(judged(2, 2.01)).resolves.toEqual(expect.any(Number));
    await expect(judged(2, 2.03)).rejects.toThrow(/dx\[0\] is 2.03/);
    await expect(judged(2.01, 2)).rejects.toThrow(/y\[0\] is 2.01/);
  });
  test("refuses NaN", () => expect(judge(peer([2, Number.NaN, 6]))).rejects.toThrow(/wrong/));
  test("refuses too few numbers", () => expect(judge(peer([2, 4]))).rejects.toThrow(/2 numbers where 3/));
  test("refuses one that does not wait", () =>
    expect(judge(peer([2, 4, 6], 50))).rejects.toThrow(/says that it is done/));
});

describe("the comparison", () => {
  const peers = [
    { name: "ours", where: "gpu" },
    { name: "slow script", where: "gpu" },
    { name: "script", where: "gpu" },
    { name: "program", where: "gpu", native: true },
    { name: "processor", where: "cpu", native: true },
  ] as const;
  const times = (all: Record<string, number>) => Object.entries(all).map(([peer, medianMs]) => ({ peer, medianMs }));

  test("is with the fastest script and with programs, on the adapter, the fastest first", () => {
    const entries = times({ processor: 1, "slow script": 90, script: 30, ours: 10, program: 25 });
    expect(compare(entries, "ours", peers)).toEqual([
      { peer: "program", ratio: 2.5 },
      { peer: "script", ratio: 3 },
    ]);
  });

  test("leaves out who has no number, and is none where we have none", () => {
    const refused = { peer: "script", refused: "wrong" };
    expect(compare([refused, ...times({ ours: 30, "slow script": 10 })], "ours", peers)).toEqual([
      { peer: "slow script", ratio: 0.333 },
    ]);
    expect(compare(times({ script: 10 }), "ours", peers)).toEqual([]);
  });
});

describe("a peer in a child process", () => {
  /** Knows the protocol, and gives back what it was given: its first byte alone at first, so that the rest comes later. */
  const echo = `
    let [all, arrays, held] = [Buffer.alloc(0), [], {}];
    const say = (answer, data = []) => {
      const bytes = Buffer.concat([Buffer.from(JSON.stringify(answer) + "\\n"), ...data]);
      process.stdout.write(bytes.subarray(0, 1));
      setTimeout(() => process.stdout.write(bytes.subarray(1)), 1);
    };
    const answer = (question) => {
      const { command, names = [] } = question;
      if (command === "leave") process.exit(3);
      const missing = names.find((name) => !(name in held));
      if (missing) return say({ error: "no result " + missing });
      if (command === "read") say({ arrays: names.map((name) => ({ name, size: held[name].length / 4 })) }, names.map((name) => held[name]));
      else say({ version: JSON.stringify(question) });
    };
    process.stdin.on("data", (chunk) => {
      all = Buffer.concat([all, chunk]);
      for (;;) {
        const line = all.indexOf(10) + 1;
        if (arrays.length > 0) {
          const [{ name, size }] = arrays;
          if (all.length < 4 * size) return;
          held[name] = all.subarray(0, 4 * size);
          all = all.subarray(4 * size);
          if (arrays.shift() && arrays.length === 0) say({});
        } else if (line > 0) {
          const question = JSON.parse(all.subarray(0, line).toString());
          all = all.subarray(line);
          if (question.command === "prepare") arrays = question.arrays;
          else answer(question);
        } else return;
      }
    });
    process.stdin.on("end", () => process.exit(0));
  `;
  const open = (command = process.execPath) => {
    const pipe = new Pipe(command, ["-e", echo]);
    onTestFinished(() => pipe.close());
    return pipe;
  };
  const task = taskOf((a, x) => a.scale(x.x!, 2), []);

  test("gets every number and gives it back, bit by bit", async () => {
    const stream = new Stream(3, "pipe");
    const all = Float32Array.from({ length: 100_003 }, () => stream.normal());
    const x = { shape: [3, 33_334], data: all.subarray(1) };
    const ids = { shape: [2], data: Int32Array.of(-1, 0x0a0a0a0a) }; // line feeds in the numbers
    const prepared = await open().prepare(task, { x, ids });
    await prepared.run();
    const found = await prepared.read(["ids", "x"]);
    expect(new Int32Array((found.ids as Float32Array).buffer)).toEqual(ids.data);
    expect(found.x).toEqual(Float32Array.from(x.data));
  });

  test("hears what is asked", async () => {
    const { answer } = await open().ask({ command: "hello", name: "ö\n" });
    expect(JSON.parse(answer.version ?? "")).toEqual({ command: "hello", name: "ö\n" });
  });

  test("refuses in its own words, and goes on", async () => {
    const prepared = await open().prepare(task, { x: { shape: [2], data: Float32Array.of(1, 2) } });
    await expect(prepared.read(["y"])).rejects.toThrow(new Refusal("no result y"));
    expect(await prepared.read(["x"])).toEqual({ x: Float32Array.of(1, 2) });
  });

  test("that ends is refused, and whatever is asked of it later", async () => {
    const pipe = open();
    await expect(pipe.ask({ command: "leave" })).rejects.toThrow(/ended \(exit code 3\)/);
    await expect(pipe.ask({ command: "hello" })).rejects.toThrow(/ended \(exit code 3\)/);
  });

  test("that is not there is refused", () =>
    expect(open("no-such-program").ask({ command: "hello" })).rejects.toThrow(/no-such-program does not start/));

  test("has the same adapter by wgpu's name and by Dawn's", () => {
    expect(adapterKey("llvmpipe (LLVM 15.0.6, 256 bits)")).toBe(adapterKey("llvmpipe-llvm-15-0-6-256-bits"));
    expect(adapterKey("SwiftShader Device (Subzero)")).toBe(adapterKey("swiftshader-device-subzero-"));
    expect(adapterKey("NVIDIA H100")).not.toBe(adapterKey("NVIDIA H200"));
  });
});
