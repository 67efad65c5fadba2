import { describe, expect, test } from "vitest";
import { checkGradients, Engine, Layout, ops, type Tensor, Theta, valueFor } from "../../src/autograd/index.ts";
import { attentionPlan, binary, fromHost, readArray } from "../../src/kernels/index.ts";
import { expectClose, gpuForTests, randn } from "../kernels/harness.ts";

const gpu = gpuForTests();
const LAYOUT = new Layout([
  { key: "w", parameters: [{ name: "w", shape: [3, 5] }], groups: ["encoder", "layer.0"] },
  {
    key: "qkv",
    parameters: ["q", "k", "v"].map((name) => ({ name, shape: [2, 5] })),
    groups: ["encoder", "layer.1"],
  },
  { key: "b", parameters: [{ name: "b", shape: [3] }], groups: ["head"] },
]);

describe("backward", () => {
  test("adds the gradients of a value used twice", async () => {
    const engine = new Engine(gpu());
    const { read } = engine.step(() => {
      const x = engine.tensor([1, 2, 3], [3], { grad: true });
      // y = Σ (x·x + x), dy/dx = 2x + 1; `add` passes one gradient array to two inputs.
      engine.backward(ops.sum(ops.add(ops.multiply(x, x), x)));
      return { read: readArray(engine.gpu, engine.gradientOf(x)) };
    });
    expectClose(await read, [3, 5, 7]);
  });

  test("of x + x is 2, although both gradients are the same array", async () => {
    const engine = new Engine(gpu());
    const { read } = engine.step(() => {
      const x = engine.tensor([1, -4], [2], { grad: true });
      const y = ops.scale(x, 3);
      engine.backward(ops.sum(ops.multiply(ops.add(y, y), engine.tensor([1, 10], [2]))));
      return { read: readArray(engine.gpu, engine.gradientOf(x)) };
    });
    expectClose(await read, [6, 60]);
  });

  test("an array that a rule passes to two leaves is there for both", async () => {
    const engine = new Engine(gpu());
    const { reads } = engine.step(() => {
      const [a, b] = [engine.tensor([1], [1], { grad: true }), engine.tensor([2], [1], { grad: true })];
      const y = engine.record("both", [a, b], fromHost(engine.gpu, [3]), (dy, [da, db]) => {
        const other = engine.gpu.allocate(4);
        const d = binary(engine.gpu, "add", dy, dy);
        da!.pass(d);
        // Another buffer is there now for what comes next: d's own would hide that d was given back too early.
        engine.gpu.release(other);
        db!.pass(d);
      });
      engine.backward(y);
      return { reads: [a, b].map((leaf) => readArray(engine.gpu, engine.gradientOf(leaf))) };
    });
    expect((await Promise.all(reads)).map(([d]) => d)).toEqual([2, 2]);
  });

  test("one array that a rule passes twice to one value counts twice", async () => {
    const engine = new Engine(gpu());
    const { reads } = engine.step(() => {
      const x = engine.tensor([1, 3, -2], [1, 3], { grad: true });
      const h = ops.scale(x, 1);
      const [gamma, beta] = [engine.tensor([1, 2, 3], [3]), engine.tensor([0, 0, 0], [3])];
      const c = engine.tensor([1, 10, 100], [1, 3]);
      const once = ops.sum(ops.multiply(ops.layerNorm(ops.add(h, h), gamma, beta, 1e-5), c));
      engine.backward(once);
      const expected = readArray(engine.gpu, engine.gradientOf(x));
      const z = engine.tensor([1, 3, -2], [1, 3], { grad: true });
      const g = ops.scale(z, 1);
      engine.backward(ops.sum(ops.multiply(ops.addLayerNorm(g, g, gamma, beta, 1e-5), c)));
      return { reads: [expected, readArray(engine.gpu, engine.gradientOf(z))] };
    });
    const [expected, actual] = await Promise.all(reads);
    expectClose(actual!, expected!, { rtol: 1e-5, atol: 1e-6 });
  });

  test("a product adds its gradient to what is there, and no other pass does", async () => {
    const engine = new Engine(gpu());
    const [a, b] = [randn(1, 6), randn(2, 6)];
    const recorded: string[] = [];
    engine.gpu.afterDispatch = ({ op }) => recorded.push(op);
    try {
      const { read } = engine.step(() => {
        const x = engine.tensor([1, 2, 3], [1, 3], { grad: true });
        const h = ops.scale(x, 2);
        const products = [a, b].map((w) => ops.linear(h, engine.tensor(w, [2, 3])));
        engine.backward(ops.sum(ops.add(products[0]!, products[1]!)));
        return { read: readArray(engine.gpu, engine.gradientOf(x)) };
      });
      // dh is a column's sum of each matrix.
      expectClose(
        await read,
        [0, 1, 2].map((i) => 2 * (a[i]! + a[i + 3]! + b[i]! + b[i + 3]!)),
      );
    } finally {
      engine.gpu.afterDispatch = undefined;
    }
    expect(recorded).toContain("matmul.NN");
    expect(recorded).not.toContain("addInto");
  });

  test("an operation without a rule is an error, not zeros", () => {
    const engine = new Engine(gpu());
    expect(() =>
      engine.step(() => {
        const x = engine.tensor([1, 2], [2], { grad: true });
        const y = engine.record("mystery", [x], fromHost(engine.gpu, [5, 6]), undefined);
        engine.backward(ops.sum(y));
      }),
    ).toThrow("mystery has no backward");
  });

  test("a value that depends on no leaf is an error", () => {
    const engine = new Engine(gpu());
    expect(() => engine.step(() => engine.backward(ops.sum(engine.tensor([1]))))).toThrow("does not depend");
  });

  test("noGrad records nothing", () => {
    const engine = new Engine(gpu());
    engine.step(() => {
      const x = engine.tensor([1, 2], [2], { grad: true });
      expect(engine.noGrad(() => ops.scale(x, 2)).requiresGrad).toBe(false);
      expect(ops.scale(x, 2).requiresGrad).toBe(true);
    });
  });

  test("a step that returns a Promise is an error", () => {
    const engine = new Engine(gpu());
    expect(() => engine.step(() => Promise.resolve(1))).toThrow("synchronous");
  });

  test("the walk frees what it has passed", async () => {
    const engine = new Engine(gpu());
    const { live, read } = engine.step(() => {
      let x: Tensor = engine.tensor(randn(1, 64), [64], { grad: true });
      for (let i = 0; i < 10; i++) x = ops.tanh(x);
      const loss = ops.sum(x);
      const before = engine.gpu.stats.liveBuffers;
      engine.backward(loss);
      return { live: [before, engine.gpu.stats.liveBuffers], read: loss.read() };
    });
    await read;
    // Left: the leaf, its gradient, the loss.
    expect(live).toEqual([12, 3]);
  });

  test("keep lets a value escape the step", async () => {
    const engine = new Engine(gpu());
    const y = engine.step(() => ops.scale(engine.tensor([1, 2]), 2).keep());
    expectClose(await y.read(), [2, 4]);
    y.dispose();
  });
});

describe("theta", () => {
  test("slices start at multiples of 64 numbers and padding stays 0", async () => {
    const engine = new Engine(gpu());
    const theta = new Theta(engine, LAYOUT);
    expect(LAYOUT.slices.map((s) => [s.key, s.offset, s.shape])).toEqual([
      ["w", 0, [3, 5]],
      ["qkv", 64, [6, 5]],
      ["b", 128, [3]],
    ]);
    expect([LAYOUT.length, LAYOUT.parameterCount]).toEqual([192, 48]);
    theta.set(
      "k",
      Float32Array.from({ length: 10 }, (_, i) => i + 1),
    );
    const all = await readArray(engine.gpu, theta.values);
    expect([...all.slice(74, 84)]).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    expect(all.filter((x) => x !== 0).length).toBe(10);
    expectClose(await theta.get("k"), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    theta.dispose();
  });

  test("gradients land in the vector, accumulate over two uses, and are 0 where nothing reached", async () => {
    const engine = new Engine(gpu());
    const theta = new Theta(engine, LAYOUT);
    theta.set("w", randn(1, 15));
    const x = randn(2, 20);
    const read = async () => {
      const { gradient } = engine.step(() => {
        const w = theta.tensor("w");
        const [a, b] = [engine.tensor(x.subarray(0, 10), [2, 5]), engine.tensor(x.subarray(10), [2, 5])];
        engine.backward(ops.sum(ops.add(ops.linear(a, w), ops.linear(b, w))));
        return { gradient: readArray(engine.gpu, theta.gradient()) };
      });
      return gradient;
    };
    const expected = new Float64Array(192);
    for (let o = 0; o < 3; o++)
      for (let i = 0; i < 5; i++) for (let n = 0; n < 4; n++) expected[o * 5 + i]! += x[n * 5 + i]!;
    expectClose(await read(), expected);
    // Without zeroGradient the next step adds to it.
    expectClose(
      await read(),
      expected.map((g) => 2 * g),
      { rtol: 1e-5, atol: 1e-5 },
    );
    theta.zeroGradient();
    expectClose(await read(), expected);
    theta.dispose();
  });

  test("a frozen slice gets no gradient and no work", () => {
    const engine = new Engine(gpu());
    const theta = new Theta(engine, LAYOUT);
    theta.freeze((slice) => slice.groups.includes("encoder"));
    expect([theta.tensor("w").requiresGrad, theta.tensor("b").requiresGrad]).toEqual([false, true]);
    engine.step(() => {
      expect(ops.linear(engine.tensor(randn(1, 5), [1, 5]), theta.tensor("w")).requiresGrad).toBe(false);
    });
    theta.dispose();
  });

  test("the most particular group decides", () => {
    const values = { encoder: 1000, "layer.1": 10 };
    expect(LAYOUT.slices.map((slice) => valueFor(slice, values))).toEqual([1000, 10, undefined]);
  });
});

describe("gradient check of every operation", () => {
  const [n, c] = [5, 6];
  const x = { shape: [n, c], data: randn(1, n * c) };
  const y = { shape: [n, c], data: randn(2, n * c) };
  const away = { shape: [n, c], data: randn(3, n * c).map((v) => v + 2 * Math.sign(v)) };
  const starts = () => fromHost(gpu(), Uint32Array.of(0, 1, 3, 5));
  const cases: Record<string, [(...t: Tensor[]) => Tensor, { shape: number[]; data: Float32Array }[]]> = {
    matmulNN: [(a, b) => ops.matmul(a!, b!, "NN"), [x, { shape: [c, 4], data: randn(4, c * 4) }]],
    matmulNT: [(a, b) => ops.matmul(a!, b!, "NT"), [x, { shape: [3, c], data: randn(4, c * 3) }]],
    matmulTN: [(a, b) => ops.matmul(a!, b!, "TN"), [x, { shape: [n, 7], data: randn(4, n * 7) }]],
    linear: [
      (a, w, b, r) => ops.linear(a!, w!, { bias: b!, activation: "gelu", residual: r! }),
      [
        x,
        { shape: [4, c], data: randn(5, 4 * c) },
        { shape: [4], data: randn(6, 4) },
        { shape: [n, 4], data: randn(7, n * 4) },
      ],
    ],
    layerNorm: [
      (a, g, b) => ops.layerNorm(a!, g!, b!, 1e-5),
      [x, { shape: [c], data: randn(8, c) }, { shape: [c], data: randn(9, c) }],
    ],
    addLayerNorm: [
      (a, r, g, b) => ops.addLayerNorm(a!, r!, g!, b!, 1e-5),
      [x, y, { shape: [c], data: randn(8, c) }, { shape: [c], data: randn(9, c) }],
    ],
    softmax: [(a) => ops.softmax(a!), [x]],
    logSoftmax: [(a) => ops.logSoftmax(a!), [x]],
    crossEntropy: [(a) => ops.crossEntropy(a!, fromHost(gpu(), Uint32Array.of(0, 5, 2, 3, 3))), [x]],
    gelu: [(a) => ops.gelu(a!), [x]],
    tanh: [(a) => ops.tanh(a!), [x]],
    relu: [(a) => ops.relu(a!), [away]],
    silu: [(a) => ops.silu(a!), [x]],
    add: [(a, b) => ops.add(a!, b!), [x, y]],
    subtract: [(a, b) => ops.subtract(a!, b!), [x, y]],
    multiply: [(a, b) => ops.multiply(a!, b!), [x, y]],
    divide: [(a, b) => ops.divide(a!, b!), [x, away]],
    scale: [(a) => ops.scale(a!, -1.5, 2), [x]],
    sum: [(a) => ops.sum(a!, 0.5), [x]],
    mean: [(a) => ops.mean(a!), [x]],
    dropout: [(a) => ops.dropout(a!, 0.4, [1, 2]), [x]],
    reshape: [(a) => ops.reshape(a!, [c, n]), [x]],
    embedding: [(t) => ops.embedding(t!, Uint32Array.of(2, 0, 2, 2, 4, 1)), [x]],
    embeddingSum: [
      (s, t) =>
        ops.embeddingSum([
          { table: s!, ids: Uint32Array.of(2, 0, 2) },
          { table: t!, ids: Uint32Array.of(1, 1, 1) },
        ]),
      [x, y],
    ],
    rows: [(a) => ops.rows(a!, fromHost(gpu(), Uint32Array.of(4, 0, 1))), [x]],
    repeatRows: [(a) => ops.repeatRows(a!, 3), [x]],
    rowScale: [
      (a, v) => ops.rowScale(a!, v!),
      [
        { shape: [6, c], data: randn(14, 6 * c) },
        { shape: [3, c], data: randn(15, 3 * c) },
      ],
    ],
    segmentMean: [(a) => ops.segmentMean(a!, starts()), [x]],
    segmentMax: [(a) => ops.segmentMax(a!, starts()), [x]],
    concat: [(a, b) => ops.concat([a!, b!]), [x, { shape: [n, 3], data: randn(10, n * 3) }]],
    attention: [
      (a) => ops.attention(a!, attentionPlan(gpu(), Uint32Array.of(0, 1, 5)), { heads: 2 }),
      [{ shape: [n, 24], data: randn(11, n * 24) }],
    ],
  };

  for (const [name, [f, inputs]] of Object.entries(cases)) {
    test(name, async () => {
      const { errors } = await checkGradients(new Engine(gpu()), f, inputs);
      // Fourth-order differences with h = .01 of float32 results: 1e-5 of rounding over h.
      for (const error of errors) expect(error).toBeLessThan(2e-3);
    });
  }

  test("every operation has a case", () => {
    const covered = new Set([...Object.keys(cases).map((name) => name.replace(/NN|NT|TN/, "")), "unary"]);
    expect(Object.keys(ops).filter((name) => !covered.has(name))).toEqual([]);
  });

  test("finds a wrong gradient", async () => {
    const engine = new Engine(gpu());
    const wrong = (a: Tensor) =>
      // d(x²) = 2x·dy; this rule forgets the 2.
      engine.record("square", [a], binary(gpu(), "multiply", a.array, a.array), (dy, [da]) =>
        da!.accept(() => binary(gpu(), "multiply", dy, a.array)),
      );
    const { errors } = await checkGradients(engine, (a) => wrong(a!), [x]);
    expect(errors[0]).toBeGreaterThan(0.1);
  });
});
