import { describe, expect, test } from "vitest";
import { fromHost } from "../../src/kernels/array.ts";
import {
  crossEntropy,
  crossEntropyBackward,
  crossEntropyReference,
  IGNORE_TARGET,
} from "../../src/kernels/crossentropy.ts";
import { softmaxReference } from "../../src/kernels/softmax.ts";
import { Stream } from "../../src/random.ts";
import { expectClose, gpuForTests, numericGradient, randn, run } from "./harness.ts";

const gpu = gpuForTests();
const INF = Number.POSITIVE_INFINITY;

function labels(seed: number, b: number, k: number): Uint32Array {
  const stream = new Stream(seed, "labels");
  return Uint32Array.from({ length: b }, () => stream.integer(k));
}

const SIZES = [
  [1, 1],
  [1, 2],
  [16, 2],
  [65, 3],
  [129, 7],
  [5, 64],
  [3, 513],
] as const;

describe("crossEntropy", () => {
  test.each([...SIZES, [5, 30522] as const])("[%i, %i] agrees with float64", async (b, k) => {
    const g = gpu();
    const x = randn(1, b * k, 3);
    const t = labels(2, b, k);
    const [loss] = await run(g, () => [crossEntropy(g, fromHost(g, x, [b, k]), fromHost(g, t)).loss]);
    expectClose(loss ?? [], crossEntropyReference(x, t), { rtol: 5e-6, atol: 1e-6 });
  });

  test.each(SIZES)("[%i, %i] gradient is the numeric one", async (b, k) => {
    const g = gpu();
    const x = randn(3, b * k);
    const t = labels(4, b, k);
    const dloss = randn(5, b);
    const [dx] = await run(g, () => {
      const logits = fromHost(g, x, [b, k]);
      const targets = fromHost(g, t);
      const { lse } = crossEntropy(g, logits, targets);
      return [crossEntropyBackward(g, logits, targets, lse, fromHost(g, dloss))];
    });
    expectClose(
      dx ?? [],
      numericGradient((at) => crossEntropyReference(at, t), x, dloss),
      { rtol: 2e-5, atol: 2e-6 },
    );
  });

  test("a vocabulary's gradient agrees with softmax − one-hot in float64", async () => {
    const g = gpu();
    const [b, k] = [5, 30522];
    const x = randn(6, b * k, 2);
    const t = labels(7, b, k);
    t[3] = IGNORE_TARGET;
    const dloss = randn(8, b);
    const [dx] = await run(g, () => {
      const logits = fromHost(g, x, [b, k]);
      const targets = fromHost(g, t);
      const { lse } = crossEntropy(g, logits, targets);
      return [crossEntropyBackward(g, logits, targets, lse, fromHost(g, dloss))];
    });
    const expected = softmaxReference(x, k).map((p, i) => {
      const row = Math.floor(i / k);
      if (t[row] === IGNORE_TARGET) return 0;
      return (p - (t[row] === i % k ? 1 : 0)) * (dloss[row] ?? 0);
    });
    expectClose(dx ?? [], expected, { rtol: 2e-5, atol: 1e-9 });
  });

  test("a small loss beside large logits keeps its digits", async () => {
    const g = gpu();
    const x = Float32Array.from([1e4, 9992, -1e4, 1e4, -INF, 9999, 1e4, -1e4, 0]);
    const t = Uint32Array.from([0, 2, 1]);
    const [loss] = await run(g, () => [crossEntropy(g, fromHost(g, x, [3, 3]), fromHost(g, t)).loss]);
    // log(1 + e⁻⁸) is known to 1 + e⁻⁸ in float32, no better
    expectClose(loss ?? [], crossEntropyReference(x, t), { rtol: 1e-6, atol: 1.2e-7 });
    expect(loss?.[2]).toBe(20000);
  });

  test("an ignored row has loss 0 and gradient 0, even where its logits are NaN", async () => {
    const g = gpu();
    const t = Uint32Array.from([1, IGNORE_TARGET, IGNORE_TARGET]);
    const x = [1, 2, 3, 4, 5, 6, Number.NaN, 1, INF];
    const [loss, dx] = await run(g, () => {
      const logits = fromHost(g, x, [3, 3]);
      const targets = fromHost(g, t);
      const r = crossEntropy(g, logits, targets);
      return [r.loss, crossEntropyBackward(g, logits, targets, r.lse, fromHost(g, [1, 1, 1]))];
    });
    expectClose([...(loss ?? [])].slice(1), [0, 0]);
    expect([...(dx ?? [])].slice(3)).toEqual([0, 0, 0, 0, 0, 0]);
    expect(loss?.[0]).toBeGreaterThan(1);
  });

  test("NaN, +∞, −∞ alone and a class that does not exist give NaN in their own rows", async () => {
    const g = gpu();
    const x = [1, Number.NaN, 3, 4, 5, INF, 1, 2, 3, 1, 2, 3, -INF, -INF, -INF];
    const t = Uint32Array.from([0, 0, 3, 2, 1]);
    const [loss, dx] = await run(g, () => {
      const logits = fromHost(g, x, [5, 3]);
      const targets = fromHost(g, t);
      const r = crossEntropy(g, logits, targets);
      return [r.loss, crossEntropyBackward(g, logits, targets, r.lse, fromHost(g, [1, 1, 1, 1, 1]))];
    });
    expect([...(loss ?? [])].map(Number.isNaN)).toEqual([true, true, true, false, true]);
    expect(Number.isNaN(dx?.[0])).toBe(true);
    // Row by row: a NaN spoils its own gradient and so does a class that does not exist, the whole of it.
    const nans = [0, 1, 2, 3, 4].map((b) => [0, 1, 2].filter((k) => Number.isNaN(dx?.[3 * b + k])).length);
    expect(nans).toEqual([3, 3, 3, 0, 3]);
  });

  test("shapes and element types are checked by name", () => {
    const g = gpu();
    g.scope(() => {
      const x = fromHost(g, [1, 2, 3, 4], [2, 2]);
      const one = fromHost(g, Uint32Array.from([1]));
      expect(() => crossEntropy(g, x, one)).toThrow("crossEntropy: targets has shape [1], expected [B=2]");
      expect(() => crossEntropy(g, x, fromHost(g, [0, 1]))).toThrow("crossEntropy: targets holds f32, expected u32");
    });
  });
});
