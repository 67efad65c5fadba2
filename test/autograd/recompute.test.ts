/**
 * @file Values that are not kept: `recompute` gives the same bits with less memory, also where its input has other uses
 * and where one stands in another; `tidy` frees what no rule reads.
 */
import { describe, expect, test } from "vitest";
import { Engine, ops, type Tensor } from "../../src/autograd/index.ts";
import { sizeClass } from "../../src/gpu/index.ts";
import { fromHost, readArray } from "../../src/kernels/index.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";

const gpu = gpuForTests();
const N = 67; // one above a workgroup and three more
const C = 20;
/** Bytes of a block's weights, and of one [N, C]. */
const WEIGHTS = sizeClass(4 * C * C) + 3 * sizeClass(4 * C);
const STATE = sizeClass(4 * N * C);

/** A block of a net: dropout, a product with a GELU, and a normalisation over the sum with its input. */
interface Weights {
  w: Tensor;
  b: Tensor;
  gamma: Tensor;
  beta: Tensor;
}

function block(x: Tensor, { w, b, gamma, beta }: Weights, site: number): Tensor {
  const hidden = ops.linear(x, w, { bias: b, activation: "gelu" });
  return ops.addLayerNorm(ops.dropout(hidden, 0.3, [7, site]), x, gamma, beta, 1e-5);
}

type Layer = (engine: Engine, x: Tensor, body: () => Tensor) => Tensor;
const kept: Layer = (_, __, body) => body();
const again: Layer = (engine, x, body) => engine.recompute([x], body);
const tidy: Layer = (engine, _, body) => engine.tidy(body);

/** Four blocks; every block's input is also read by the result. Gradients of all leaves, loss, and memory. */
async function net(layer: Layer, { inputGrad = true } = {}) {
  const engine = new Engine(gpu());
  engine.gpu.resetPeak();
  const { reads, live } = engine.step(() => {
    const input = engine.tensor(randn(1, N * C), [N, C], { grad: inputGrad });
    const leaves = inputGrad ? [input] : [];
    let x = input;
    const states: Tensor[] = [x];
    const from = engine.gpu.stats.liveBytes;
    for (let i = 0; i < 4; i++) {
      const leaf = (seed: number, shape: number[]) =>
        engine.tensor(
          randn(
            10 * i + seed,
            shape.reduce((a, b) => a * b),
          ),
          shape,
          { grad: true },
        );
      const weights = { w: leaf(2, [C, C]), b: leaf(3, [C]), gamma: leaf(4, [C]), beta: leaf(5, [C]) };
      leaves.push(...Object.values(weights));
      const at = x;
      x = layer(engine, at, () => block(at, weights, i));
      states.push(x);
    }
    const live = engine.gpu.stats.liveBytes - from;
    // Not uniform, and all five states: the gradient of each is a sum of several.
    const y = states.reduce((sum, state, i) => ops.add(sum, ops.scale(state, 1 + i)));
    engine.backward(y, fromHost(engine.gpu, randn(99, N * C), [N, C]));
    return { reads: [y.read(), ...leaves.map((l) => readArray(engine.gpu, engine.gradientOf(l)))], live };
  });
  return { values: await Promise.all(reads), live, peak: engine.gpu.stats.peakLiveBytes };
}

describe("recompute", () => {
  test("gives the same bits: the result, and the gradient of every leaf", async () => {
    const plain = await net(kept);
    const saved = await net(again);
    expect(saved.values.length).toBe(18);
    expect(saved.values).toEqual(plain.values);
    expect(plain.values.every((values) => values.some((v) => v !== 0))).toBe(true);
  });

  test("keeps one array a block, and the peak falls", async () => {
    const [plain, saved] = [await net(kept), await net(again)];
    expect(saved.live).toBe(4 * (WEIGHTS + STATE));
    expect(plain.live).toBeGreaterThan(4 * (WEIGHTS + 5 * STATE));
    expect(saved.peak).toBeLessThan(0.75 * plain.peak);
  });

  test("works where only parameters inside want a gradient", async () => {
    const [plain, saved] = [await net(kept, { inputGrad: false }), await net(again, { inputGrad: false })];
    expect(saved.values).toEqual(plain.values);
  });

  test("one inside another gives the same bits", async () => {
    const nested: Layer = (engine, x, body) => engine.recompute([x], () => engine.recompute([x], body));
    expect((await net(nested)).values).toEqual((await net(kept)).values);
  });

  test("what depends on no leaf is not recorded, and an input that is handed on stays what it is", () => {
    const engine = new Engine(gpu());
    engine.step(() => {
      const x = engine.tensor([1, 2], [2], { grad: true });
      const constant = engine.tensor([3, 4]);
      expect(engine.recompute([constant], () => ops.scale(constant, 2)).requiresGrad).toBe(false);
      expect(engine.noGrad(() => engine.recompute([x], () => ops.scale(x, 2))).requiresGrad).toBe(false);
      expect(engine.recompute([x], () => x)).toBe(x);
    });
  });

  test("an operation without a rule is still an error that names it", () => {
    const engine = new Engine(gpu());
    expect(() =>
      engine.step(() => {
        const x = engine.tensor([1, 2], [2], { grad: true });
        const y = engine.recompute([x], () => engine.record("mystery", [x], fromHost(engine.gpu, [5, 6]), undefined));
        engine.backward(ops.sum(y));
      }),
    ).toThrow("mystery has no backward");
  });
});

describe("tidy", () => {
  test("gives the same bits", async () => {
    expect((await net(tidy)).values).toEqual((await net(kept)).values);
  });

  test("keeps what rules read: of a block the GELU's input, the sum, its statistics and the result", async () => {
    const { live } = await net(tidy);
    // Without it, GELU's output and the dropout's stayed too.
    expect(live).toBe(4 * (WEIGHTS + 3 * STATE + sizeClass(4 * 2 * N)));
  });

  test("frees nothing that a rule of an operation outside may read, nor what a view shows", async () => {
    const run = async (inTidy: boolean) => {
      const engine = new Engine(gpu());
      const { reads } = engine.step(() => {
        const x = engine.tensor(randn(1, 12), [12], { grad: true });
        // dropout's own result is read by no rule here, but it is what the body returns, under another shape.
        const body = () => ops.reshape(ops.dropout(x, 0.4, [1, 2]), [3, 4]);
        const y = inTidy ? engine.tidy(body) : body();
        const z = ops.multiply(y, y);
        engine.backward(z, fromHost(engine.gpu, randn(2, 12), [3, 4]));
        return { reads: [z.read(), readArray(engine.gpu, engine.gradientOf(x))] };
      });
      return Promise.all(reads);
    };
    expect(await run(true)).toEqual(await run(false));
  });
});
