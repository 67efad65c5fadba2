/**
 * @file What the shaped priors refuse, and what refuses them: each in one sentence that names the parameter, the place and
 * what was expected.
 */
import { describe, expect, test } from "vitest";
import { Engine, Layout, type Slice, type Theta } from "../../src/autograd/index.ts";
import { InputError } from "../../src/errors.ts";
import type { PriorDensity } from "../../src/train/density.ts";
import { expectGaussian, expectIsotropic, gaussianPrior } from "../../src/train/prior.ts";
import { diagonalPrior, laplacePrior, lowRankPrior, studentTPrior } from "../../src/train/shaped-priors.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { asMap, FAMILIES, line, lowRank, SPEC } from "./families.ts";

const gpu = gpuForTests();

describe("refusals, in one sentence", () => {
  const bad = (values: readonly number[]) => asMap(values);
  test.each([
    [
      "a negative precision",
      (t: Theta) => diagonalPrior(t, SPEC, bad([1, 2, -3, 4])),
      /precision of b is -3 at position 1/,
    ],
    [
      "a precision that is no number",
      (t: Theta) => diagonalPrior(t, SPEC, bad([1, Number.NaN, 3, 4])),
      /precision of b is NaN at position 0/,
    ],
    ["one beyond float32", (t: Theta) => diagonalPrior(t, SPEC, bad([1e39, 1, 3, 4])), /precision of a is 1e\+39/],
    ["half a slice", (t: Theta) => diagonalPrior(t, SPEC, new Map([["a", [1]]])), /b has no precision, and a/],
    [
      "another size",
      (t: Theta) => diagonalPrior(t, SPEC, new Map([["c", [1, 2]]])),
      /precision of c: 2 numbers \(expected 1\)/,
    ],
    [
      "another model's",
      (t: Theta) => diagonalPrior(t, SPEC, new Map([["z", [1]]])),
      /no parameter of the model has a precision/,
    ],
    [
      "a low-rank diagonal of 0",
      (t: Theta) => lowRankPrior(t, SPEC, { ...lowRank("precision"), diagonal: bad([1, 0, 1, 1]) }),
      /precision of b is 0 at position 0 \(expected finite numbers above 0\)/,
    ],
    [
      "factors that are not finite",
      (t: Theta) =>
        lowRankPrior(t, SPEC, {
          ...lowRank("precision"),
          factors: asMap([1, 2, 3, 4, 5, 6, 7, Number.POSITIVE_INFINITY], 2),
        }),
      /factors of c have Infinity/,
    ],
    [
      "factors of another rank",
      (t: Theta) => lowRankPrior(t, SPEC, { ...lowRank("precision"), rank: 3 }),
      /factors of a: 2 numbers \(expected 3\)/,
    ],
    ["ν = 0", (t: Theta) => studentTPrior(t, SPEC, { nu: 0 }), /ν is 0/],
    [
      "a group without a strength",
      (t: Theta) => laplacePrior(t, { encoder: { precision: 1 } }),
      /head has no precision/,
    ],
  ] as const)("%s", (_, make, message) => {
    const model = line(new Engine(gpu()));
    expect(() => make(model.theta)).toThrow(message);
    expect(() => make(model.theta)).toThrow(InputError);
    model.dispose();
  });

  test("what takes isotropic Gaussians alone says so", () => {
    const model = line(new Engine(gpu()));
    const [w, c, v] = model.theta.layout.slices as [Slice, Slice, Slice];
    const prior = FAMILIES.diagonal!.make(model);
    expect(() => expectIsotropic("laplace", prior, [v])).not.toThrow();
    expect(() => expectGaussian("anchored", prior, [v, c])).not.toThrow();
    const heavy = laplacePrior(model.theta, SPEC);
    expect(() => expectGaussian("anchored", heavy, [v, c])).toThrow("anchored: the prior of head is laplace (expected a Gaussian)"); // biome-ignore format: one line
    heavy.dispose();
    expect(() => expectIsotropic("laplace", prior, [v, c])).toThrow("laplace: the prior of layer.1 is diagonal");
    prior.dispose();
    const gaussian = gaussianPrior(model.theta, SPEC);
    expect(() => expectIsotropic("laplace", gaussian, [w, c, v])).not.toThrow();
    gaussian.dispose();
    model.dispose();
  });

  test("and names tensors that a checkpoint has, where several are one slice", () => {
    const named = (...names: string[]) => {
      const parameters = names.map((name) => ({ name, shape: [2, 2] }));
      const { slices } = new Layout([{ key: "slice", parameters, groups: ["encoder", "layer.1"] }]);
      const prior = { density: { name: "low-rank", covers: () => true } as unknown as PriorDensity };
      expectIsotropic("laplace", prior, slices);
    };
    const attention = ["query", "key", "value"].map((part) => `bert.encoder.layer.1.attention.self.${part}.weight`);
    expect(() => named(...attention)).toThrow(
      "one precision for all of bert.encoder.layer.1.attention.self.{query,key,value}.weight)",
    );
    expect(() => named("w")).toThrow("one precision for all of w)");
    expect(() => named("w", "a.v")).toThrow("one precision for all of w, a.v)");
  });
});
