import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { InputError } from "../../src/errors.ts";
import { readArray } from "../../src/kernels/index.ts";
import { combineTerms, stretchesOf } from "../../src/train/objective.ts";
import { type GaussianPriorSpec, gaussianPrior } from "../../src/train/prior.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { twoLayers } from "./toys.ts";

const gpu = gpuForTests();
const net = () => twoLayers(new Engine(gpu()), { d: 6, h: 10, K: 3 });
const inf = Number.POSITIVE_INFINITY;

describe("gaussianPrior", () => {
  test("means: the start for what was loaded, 0 for what is new; a flat prior measures from the start", async () => {
    const model = net();
    const read = async (spec: GaussianPriorSpec) => {
      const prior = gaussianPrior(model, spec);
      const mu = await readArray(gpu(), prior.mu);
      prior.dispose();
      const of = (name: string) => {
        const { offset, size } = model.theta.layout.parameter(name);
        return [...mu.subarray(offset, offset + size)];
      };
      return { w1: of("w1"), b1: of("b1"), w2: of("w2"), b2: of("b2") };
    };
    const [w1, b1, w2] = await Promise.all(["w1", "b1", "w2"].map(async (n) => [...(await model.theta.get(n))]));
    const a = await read({ encoder: { precision: 300 }, head: { precision: 1 } });
    expect([a.w1, a.b1]).toEqual([w1, b1]);
    expect([...a.w2, ...a.b2]).toEqual(Array(33).fill(0));
    expect((await read({ encoder: { precision: 300 }, head: { precision: 0 } })).w2).toEqual(w2);
    const zero = await read({
      encoder: { precision: 1, mean: 0 },
      "layer.1": { precision: 1 },
      head: { precision: 1 },
    });
    expect(zero.w1).toEqual(Array(60).fill(0));
    expect(zero.b1).toEqual(b1);
    model.dispose();
  });

  test("freezes groups at ∞, and thaws them for another prior", () => {
    const model = net();
    const [w1, b1] = model.theta.layout.slices;
    gaussianPrior(model, { encoder: { precision: inf }, "layer.1": { precision: 5 }, head: { precision: 1 } });
    expect([model.theta.isFrozen(w1!), model.theta.isFrozen(b1!)]).toEqual([true, false]);
    gaussianPrior(model, { encoder: { precision: 5 }, head: { precision: 1 } });
    expect(model.theta.isFrozen(w1!)).toBe(false);
    model.dispose();
  });

  test("knows its constant: Σ ½ d log(τ/2π) over the groups with 0 < τ < ∞", () => {
    const model = net();
    const prior = gaussianPrior(model, {
      encoder: { precision: 300 },
      "layer.1": { precision: 0 },
      head: { precision: 2 },
    });
    const expected = 30 * Math.log(300 / (2 * Math.PI)) + 16.5 * Math.log(2 / (2 * Math.PI));
    expect(prior.logConstant).toBeCloseTo(expected, 10);
    expect(prior.active).toBe(true);
    const flat = gaussianPrior(model, { encoder: { precision: 0 }, head: { precision: 0 } });
    expect([flat.active, flat.logConstant]).toEqual([false, 0]);
    model.dispose();
  });

  test.each<[string, GaussianPriorSpec, RegExp]>([
    [
      "negative",
      { encoder: { precision: -1 }, head: { precision: 1 } },
      /precision of encoder is -1 .expected 0 to inf/,
    ],
    ["NaN", { encoder: { precision: Number.NaN }, head: { precision: 1 } }, /precision of encoder is NaN/],
    ["beyond f32", { encoder: { precision: 1e39 }, head: { precision: 1 } }, /1e\+39 .*Write inf to freeze/],
    [
      "unknown group",
      { encodr: { precision: 1 }, head: { precision: 1 } },
      /no group is named encodr \(the groups are encoder, layer.0, layer.1, head\). Did you mean encoder\?/,
    ],
    ["far from any group", { zzzzzzz: { precision: 1 } }, /no group is named zzzzzzz .*Name one of them/],
    ["a group left out", { encoder: { precision: 1 } }, /group head has no precision .parameter w2/],
    [
      "all frozen",
      { encoder: { precision: inf }, head: { precision: inf } },
      /head is new and cannot be frozen|nothing is left to train/,
    ],
    [
      "a new head frozen",
      { encoder: { precision: 1 }, head: { precision: inf } },
      /head is new and cannot be frozen .parameter w2 starts at random/,
    ],
    [
      "a new head held to its random start",
      { encoder: { precision: 1 }, head: { precision: 1, mean: "pretrained" } },
      /head is new, so it has no pretrained mean/,
    ],
    [
      "frozen at 0",
      { encoder: { precision: inf, mean: 0 }, head: { precision: 1 } },
      /encoder cannot be frozen at mean 0/,
    ],
  ])("refuses %s, in one sentence", (_, spec, message) => {
    const model = net();
    const make = () => gaussianPrior(model, spec);
    expect(make).toThrow(message);
    expect(make).toThrow(InputError);
    model.dispose();
  });

  test("refuses to freeze everything where nothing is new", () => {
    const model = net();
    const spec = { encoder: { precision: inf }, head: { precision: inf } };
    expect(() => gaussianPrior(model.theta, spec)).toThrow(
      /every group has precision inf, so nothing is left to train/,
    );
    model.dispose();
  });
});

describe("stretches and terms", () => {
  test("θ is cut where precision, rate or encoder change, and frozen slices are in none", () => {
    const model = net();
    const cut = (spec: GaussianPriorSpec, head = 1) => {
      const prior = gaussianPrior(model, spec);
      const found = stretchesOf(model.theta, prior, 10, (slice) => (slice.groups[0] === "head" ? head : 1));
      return found.map(({ offset, length, priorScale, lr, inEncoder }) => [offset, length, priorScale, lr, inEncoder]);
    };
    // w1 0…64, b1 64…128, w2 128…192, b2 192…256
    expect(cut({ encoder: { precision: 20 }, head: { precision: 20 } }, 2)).toEqual([
      [0, 128, 2, 1, true],
      [128, 128, 2, 2, false],
    ]);
    expect(cut({ encoder: { precision: 20 }, "layer.1": { precision: inf }, head: { precision: 20 } })).toEqual([
      [0, 64, 2, 1, true],
      [128, 128, 2, 1, false],
    ]);
    expect(cut({ encoder: { precision: 20 }, "layer.1": { precision: 0 }, head: { precision: 1 } })).toEqual([
      [0, 64, 2, 1, true],
      [64, 64, 0, 1, true],
      [128, 128, 0.1, 1, false],
    ]);
    model.dispose();
  });

  test("combine in float64, without the cancellation of a small gradient making a NaN", () => {
    const stretch = { offset: 0, length: 64, priorScale: 0.5, precision: 5, lr: 1, inEncoder: true };
    const terms = combineTerms(6, 4, [4, 9, -6.0000000001, 0], [stretch], 10);
    expect(terms.nll).toBe(1.5);
    expect(terms.logPrior).toBe(-22.5);
    expect(terms.logJoint).toBe(-37.5);
    expect(terms.distance).toBe(3);
    expect(terms.gradNorm).toBeCloseTo(Math.sqrt(4 - 6 + 2.25), 6);
    expect(terms.priorShare).toBeCloseTo(1.5 / 3.5, 12);
    expect(combineTerms(1, 1, [1, 4, -2.0000001, 0], [{ ...stretch, precision: 5 }], 10).gradNorm).toBe(0);
  });
});
