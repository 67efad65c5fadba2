/**
 * @file The judge of bench/peers: its float64 reference has the right gradients, and its check refuses a peer that is
 * wrong or does not wait. (The peers themselves are not installed here.)
 */
import { describe, expect, test } from "vitest";
import { check } from "../../bench/peers/check.ts";
import { reference } from "../../bench/peers/f64.ts";
import { encoderLayer, fill, layerShapes } from "../../bench/peers/model.ts";
import type { Algebra, Input, Prepared, Task } from "../../bench/peers/peer.ts";
import { batches, product } from "../../bench/peers/product.ts";
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
};

describe("the reference's gradient of", () => {
  for (const [name, [forward, shapes]] of Object.entries(cases)) {
    const wanted = Object.keys(shapes).filter((key) => key !== "one");
    test(name, () => expect(gradientError(forward, shapes, wanted)).toBeLessThan(1e-7));
  }
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

  test("accepts float32's rounding", () => expect(judge(peer([2, 4.00001, 6]))).resolves.toBeUndefined());
  test("refuses a wrong number", () => expect(judge(peer([2, 4.01, 6]))).rejects.toThrow(/y\[1\] is 4.01/));
  test("refuses NaN", () => expect(judge(peer([2, Number.NaN, 6]))).rejects.toThrow(/wrong/));
  test("refuses too few numbers", () => expect(judge(peer([2, 4]))).rejects.toThrow(/2 numbers where 3/));
  test("refuses one that does not wait", () =>
    expect(judge(peer([2, 4, 6], 50))).rejects.toThrow(/says that it is done/));
});
