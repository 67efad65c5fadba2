/** @file The Gaussian of curvature and prior: temperatures, precisions by group and by parameter, and what is refused (check 14). */
import { inverse, Matrix } from "ml-matrix";
import { describe, expect, test } from "vitest";
import type { PackedBatch } from "../../src/data/batches.ts";
import { ggn } from "../../src/posterior/ggn.ts";
import { expectLaplace, laplace, laplaceDraws, priorShapes } from "../../src/posterior/laplace.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { diagonalPrior, laplacePrior } from "../../src/train/shaped-priors.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";
import { denseGgn } from "./reference.ts";
import { apart, BATCHES, C, dense, F, HEAD, inFloat64, LAYER, netsOn, posteriorOf, V } from "./token-net.ts";

const gpu = gpuForTests();
const withNet = netsOn(gpu);

describe("the posterior", () => {
  test("two temperatures (check 14): variance times T, and Λ₀ + H/T", async () => {
    await withNet(2, async (model) => {
      const { center, functions } = await inFloat64(model, HEAD);
      const H = denseGgn(functions, center);
      const P = center.length;
      const covariance = async (likelihoodTemperature: number) => {
        const { gaussians } = await posteriorOf(model, { structure: "full" }, { likelihoodTemperature });
        const R = new Matrix(P, P);
        for (let c = 0; c < P; c++) {
          gaussians[0]!.draw(Float64Array.from({ length: P }, (_, i) => (i === c ? 1 : 0))).forEach((x, r) => {
            R.set(r, c, x);
          });
        }
        return R.mmul(R.transpose());
      };
      const plain = inverse(Matrix.add(H, Matrix.eye(P, P, 0.5)));
      expect(apart(await covariance(1), plain)).toBeLessThan(1e-5);
      const cold = inverse(Matrix.add(Matrix.div(H, 0.3), Matrix.eye(P, P, 0.5)));
      expect(apart(await covariance(0.3), cold)).toBeLessThan(1e-5);
      // The same z at another temperature is √T times as far from θ̂.
      const [at1, at4] = [1, 4].map(async (temperature) => {
        const state = await posteriorOf(model, { structure: "full" }, { temperature });
        return laplaceDraws(state, { S: 3, seed: 5 }).read(2);
      });
      const [one, four] = [await at1!, await at4!];
      center.forEach((mean, i) => {
        expect(four[i]! - mean).toBeCloseTo(2 * (one[i]! - mean), 5);
      });
      const at = (temperatures: object) => posteriorOf(model, { structure: "full" }, temperatures);
      await expect(at({ temperature: 0 })).rejects.toThrow(/temperature is 0 .expected a number above 0/);
      await expect(at({ likelihoodTemperature: Number.NaN })).rejects.toThrow(/likelihoodTemperature is NaN/);
      const H1 = await ggn(model, BATCHES, { structure: "full" });
      const prior = gaussianPrior(model, { encoder: { precision: 1 }, head: { precision: 0.5 } });
      // A denormal: its inverse is no number, and a search over what it left of Λ had no end.
      expect(() => laplace(H1, prior, { likelihoodTemperature: 5e-324 })).toThrow(
        "laplace: likelihoodTemperature is 5e-324 (expected a number whose inverse is one). 1 is Bayes' rule.",
      );
      // Of the whole posterior it leaves the mode alone.
      const coldest = await laplaceDraws(laplace(H1, prior, { temperature: 5e-324 }), { S: 1 }).read(0);
      expect([...coldest]).toEqual([...H1.center[0]!]);
      expect(() => laplace(H1, prior, { likelihoodTemperature: 1e-308 })).toThrow(
        /precision of head is not finite|not positive definite/,
      );
      expect(laplace(H1, prior, { likelihoodTemperature: 1e308 }).gaussians[0]?.logDet).toBeCloseTo(
        P * Math.log(0.5),
        12,
      );
      prior.dispose();
    });
  });

  test("τ by group can be another than the prior's, and must be one for a layer", async () => {
    await withNet(2, async (model) => {
      const prior = gaussianPrior(model, { encoder: { precision: 7 }, head: { precision: 3 } });
      const H = await ggn(model, BATCHES, { structure: "diagonal", groups: ["encoder", "head"] });
      expect(laplace(H, prior).precisions).toEqual([7, 7, 7, 3, 3]);
      expect(laplace(H, prior, { precisions: { "layer.0": 11 } }).precisions).toEqual([7, 11, 11, 3, 3]);
      expect(() => laplace(H, prior, { precisions: { head: Number.POSITIVE_INFINITY } })).toThrow(
        /of head is Infinity/,
      );
      const flat = gaussianPrior(model, { encoder: { precision: 7 }, head: { precision: 0 } });
      const full = await ggn(model, BATCHES, { structure: "full" });
      // Softmax does not feel a shift of all logits: without a prior that direction is free.
      expect(() => laplace(full, flat)).toThrow(/precision of head is not positive definite .smallest eigenvalue/);
      prior.dispose();
      flat.dispose();
    });
  });
});

test("what would be refused after a pass is refused from one forward: memory, a head at rest, another prior, a flat one", async () => {
  await withNet(3, async (model) => {
    const [first] = BATCHES as [PackedBatch];
    const full = { structure: "full" } as const;
    const proper = { encoder: { precision: 1 }, head: { precision: 2 } };
    const prior = gaussianPrior(model, proper);
    expect(() => expectLaplace(model, prior, first, full)).not.toThrow();
    // 18 parameters: 24 · 18² bytes.
    expect(() => expectLaplace(model, prior, first, { ...full, maxBytes: 24 * 18 ** 2 })).not.toThrow();
    expect(() => expectLaplace(model, prior, first, { ...full, maxBytes: 24 * 18 ** 2 - 1 })).toThrow(
      /full over 18 parameters takes/,
    );
    model.theta.freeze(({ key }) => key === "w2");
    expect(() => expectLaplace(model, prior, first, full)).toThrow(/the last layer \(w2\) is frozen/);
    model.theta.freeze(() => false);
    const flat = gaussianPrior(model, { ...proper, head: { precision: 0 } });
    expect(() => expectLaplace(model, flat, first, full)).toThrow(/head has a flat prior/);
    const shaped = laplacePrior(model, proper);
    expect(() => expectLaplace(model, shaped, first, full)).toThrow(/the prior of head is laplace/);
    const tau = new Map(HEAD.map((key) => [key, new Float32Array(model.theta.layout.parameter(key).size).fill(0.5)]));
    const diagonal = diagonalPrior(model, proper, tau);
    expect(() => expectLaplace(model, diagonal, first, full)).not.toThrow();
    let forwards = 0;
    const counted = {
      ...model,
      logits(batch: PackedBatch) {
        forwards++;
        return model.logits(batch);
      },
    };
    const groups = ["encoder", "head"];
    for (const structure of ["diagonal", "kronecker"] as const)
      expectLaplace(counted, prior, first, { structure, groups, linearised: true });
    expect(forwards).toBe(2);
    for (const made of [prior, flat, shaped, diagonal]) made.dispose();
  });
});

describe("a prior from a source task's Fisher information", () => {
  const strengths = { encoder: { precision: 0.5 }, embeddings: { precision: 2 }, head: { precision: 3 } };

  test("adds its own precision to every parameter; the head's is one", async () => {
    await withNet(3, async (model) => {
      const t = new Map(["e", ...LAYER].map((key, i) => [key, randn(60 + i, model.theta.layout.parameter(key).size).map((x) => x * x + 0.1)])); // biome-ignore format: one line
      const prior = diagonalPrior(model, strengths, t);
      const H = await ggn(model, BATCHES, { structure: "diagonal", groups: ["encoder", "head"] });
      const shapes = await priorShapes(H, prior, model.theta);
      expect(shapes.map((shape) => shape?.length)).toEqual([V * C, F * C, F, undefined, undefined]);
      const state = laplace(H, prior, { shapes });
      expect(state.precisions).toEqual([2, 0.5, 0.5, 3, 3]);
      for (const [b, block] of H.blocks.entries()) {
        const own = t.get(block.slices[0]?.key ?? "");
        const h = dense(block).diagonal();
        const root = state.gaussians[b]!.draw(new Float64Array(h.length).fill(1));
        h.forEach((value, i) => {
          expect(root[i]! ** -2 / (value + state.precisions[b]! * (own?.[i] ?? 1)) - 1).toBeCloseTo(0, 6);
        });
      }
      // Without t the group's number would be taken for a precision.
      expect(() => laplace(H, prior)).toThrow(/prior of embeddings is diagonal/);
      const kronecker = await ggn(model, BATCHES, { structure: "kronecker", groups: ["encoder"] });
      const ofLayer = await priorShapes(kronecker, prior, model.theta);
      expect(() => laplace(kronecker, prior, { shapes: ofLayer })).toThrow(/Kronecker factors cannot take/);
      prior.dispose();
    });
  });

  test("a prior that is no Gaussian is refused", async () => {
    await withNet(3, async (model) => {
      const prior = laplacePrior(model, strengths);
      const H = await ggn(model, BATCHES, { structure: "full" });
      await expect(priorShapes(H, prior, model.theta)).rejects.toThrow(/prior of head is laplace/);
      expect(() => laplace(H, prior)).toThrow(/prior of head is laplace/);
      prior.dispose();
    });
  });
});
