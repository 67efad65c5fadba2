/** @file What a Laplace approximation predicts: Gaussian logits, probit and draws, against float64 (checks 13 and 14). */
import { inverse, Matrix } from "ml-matrix";
import { describe, expect, test } from "vitest";
import { type PackedBatch, packBatch } from "../../src/data/batches.ts";
import { laplaceDraws, monteCarlo } from "../../src/posterior/laplace.ts";
import { gaussianLogits, linearised, probit, probitLogits } from "../../src/posterior/linearised.ts";
import { predict } from "../../src/posterior/posterior.ts";
import { expectClose, gpuForTests } from "../kernels/harness.ts";
import { jacobianOf, softmaxOf } from "./reference.ts";
import { apart, BATCHES, dense, EXAMPLES, HEAD, inFloat64, LAYER, netsOn, only, posteriorOf } from "./token-net.ts";

const gpu = gpuForTests();
const withNet = netsOn(gpu);

describe("predictions", () => {
  const batch = BATCHES[1] as PackedBatch;

  for (const structure of ["full", "diagonal", "kronecker"] as const) {
    test(`the last layer's logits are exactly Gaussian: ${structure}`, async () => {
      await withNet(3, async (model) => {
        const state = await posteriorOf(model, { structure }, { temperature: 0.8 });
        const { mean, covariance } = await gaussianLogits(model, state, batch);
        const { center, functions } = await inFloat64(model, HEAD);
        const precision = Matrix.add(dense(only(state.ggn)), Matrix.eye(center.length, center.length, 0.5));
        for (const [row, f] of functions.slice(4).entries()) {
          const J = jacobianOf(f, center);
          const expected = J.mmul(inverse(precision)).mmul(J.transpose()).mul(0.8);
          f(center).forEach((value, k) => {
            expect(mean[row * 3 + k]).toBeCloseTo(value, 5);
          });
          const found = new Matrix(
            [0, 1, 2].map((k) => [...covariance.subarray((row * 3 + k) * 3, (row * 3 + k + 1) * 3)]),
          );
          expect(apart(found, expected)).toBeLessThan(1e-6);
        }
      });
    });
  }

  test("a text's draws do not hang on how the texts are batched", async () => {
    await withNet(3, async (model) => {
      const posterior = linearised(model, await posteriorOf(model, { structure: "full" }), { S: 6, seed: 2 });
      const one = await posterior.logits([packBatch(EXAMPLES)]);
      const apart = await posterior.logits(EXAMPLES.map((example) => packBatch([example])));
      for (const [s, logits] of one.entries()) expectClose(apart[s]!, logits, { rtol: 1e-5, atol: 1e-5 });
    });
  });

  for (const structure of ["diagonal", "kronecker"] as const) {
    test(`groups are linearised, J Λ⁻¹ Jᵀ: ${structure}`, async () => {
      await withNet(3, async (model) => {
        const groups = ["encoder", "head"];
        const state = await posteriorOf(model, { structure, groups }, { temperature: 0.8 });
        const { mean, covariance } = await gaussianLogits(model, state, batch);
        const keys = state.ggn.blocks.flatMap(({ slices }) => slices.map(({ key }) => key));
        const { center, functions } = await inFloat64(model, keys);
        const covarianceOfTheta = new Matrix(center.length, center.length);
        let at = 0;
        for (const [b, block] of state.ggn.blocks.entries()) {
          const { size } = block.curvature;
          const precision = Matrix.add(dense(block), Matrix.eye(size, size, state.precisions[b]));
          covarianceOfTheta.setSubMatrix(inverse(precision), at, at);
          at += size;
        }
        for (const [row, f] of functions.slice(4).entries()) {
          const J = jacobianOf(f, center);
          const expected = J.mmul(covarianceOfTheta).mmul(J.transpose()).mul(0.8);
          f(center).forEach((value, k) => {
            expect(mean[row * 3 + k]).toBeCloseTo(value, 5);
          });
          const found = new Matrix(
            [0, 1, 2].map((k) => [...covariance.subarray((row * 3 + k) * 3, (row * 3 + k + 1) * 3)]),
          );
          expect(apart(found, expected)).toBeLessThan(1e-5);
        }
      });
    });
  }

  test("two classes: probit is near E σ(z), closer than no averaging at all; draws converge to it", async () => {
    await withNet(2, async (model) => {
      const state = await posteriorOf(model, { structure: "full" }, { tau: 0.1 });
      const { mean, covariance } = await gaussianLogits(model, state, batch);
      const [byProbit, byDraws] = [
        await predict(probit(model, state), [batch]),
        await predict(linearised(model, state, { S: 4000, seed: 1 }), [batch]),
      ];
      expect([byProbit.members, byDraws.members]).toEqual([1, 4000]);
      for (let row = 0; row < 2; row++) {
        const m = mean[2 * row + 1]! - mean[2 * row]!;
        const [a, b, , d] = covariance.subarray(4 * row, 4 * row + 4);
        const v = a! + d! - 2 * b!;
        let exact = 0;
        for (let z = -8; z <= 8; z += 0.01) {
          exact += (0.01 * Math.exp((-z * z) / 2)) / Math.sqrt(2 * Math.PI) / (1 + Math.exp(-m - Math.sqrt(v) * z));
        }
        const plugIn = 1 / (1 + Math.exp(-m));
        const p = (prediction: typeof byProbit) => Math.exp(prediction.logMean[2 * row + 1]!);
        expect(v).toBeGreaterThan(1);
        expect(Math.abs(p(byProbit) - exact)).toBeLessThan(0.01);
        expect(Math.abs(p(byProbit) - exact)).toBeLessThan(0.3 * Math.abs(plugIn - exact));
        expect(p(byProbit)).toBeCloseTo(1 / (1 + Math.exp(-m / Math.sqrt(1 + (Math.PI / 8) * v))), 6);
        expect(Math.abs(p(byDraws) - exact)).toBeLessThan((4 * 0.5) / Math.sqrt(4000));
        expect(byDraws.epistemic[row]).toBeGreaterThan(0.01);
      }
    });
  });

  test("two classes: however wide the Gaussian, the answers are the mode's, of probit and of two draws alike", async () => {
    await withNet(2, async (model) => {
      const state = await posteriorOf(model, { structure: "full" }, { tau: 0.001 });
      const { mean } = await gaussianLogits(model, state, batch);
      for (let seed = 0; seed < 10; seed++) {
        for (const posterior of [
          probit(model, state),
          linearised(model, state, { S: 2, seed }),
          monteCarlo(model, state, { S: 2, seed }),
        ]) {
          const { logMean } = await predict(posterior, [batch]);
          for (let row = 0; row < 2; row++)
            expect(Math.sign(logMean[2 * row + 1]! - logMean[2 * row]!)).toBe(
              Math.sign(mean[2 * row + 1]! - mean[2 * row]!),
            );
        }
      }
      // A pair lies about θ̂, and pairs differ.
      const draws = laplaceDraws(state, { S: 3, seed: 1 });
      const [a, b, c] = await Promise.all([0, 1, 2].map((s) => draws.read(s)));
      const center = state.ggn.center.flatMap((values) => [...values]);
      a!.forEach((value, i) => {
        expect(value + b![i]!).toBeCloseTo(2 * center[i]!, 4);
      });
      expect(Math.abs(c![0]! - a![0]!)).toBeGreaterThan(1e-3);
    });
  });

  test("three classes: probit is near the average of draws, and a shift of all logits changes nothing", async () => {
    await withNet(3, async (model) => {
      const state = await posteriorOf(model, { structure: "full" }, { tau: 0.2 });
      const [byProbit, byDraws] = [
        await predict(probit(model, state), [batch]),
        await predict(linearised(model, state, { S: 4000, seed: 2 }), [batch]),
      ];
      const { mean } = await gaussianLogits(model, state, batch);
      let plugIn = 0;
      let shrunk = 0;
      for (let row = 0; row < 2; row++) {
        const p = softmaxOf(mean.subarray(3 * row, 3 * row + 3));
        for (let k = 0; k < 3; k++) {
          const average = Math.exp(byDraws.logMean[3 * row + k]!);
          plugIn += Math.abs(p[k]! - average);
          shrunk += Math.abs(Math.exp(byProbit.logMean[3 * row + k]!) - average);
        }
      }
      expect(shrunk).toBeLessThan(0.5 * plugIn);
      const logits = await gaussianLogits(model, state, batch);
      const covariance = logits.covariance.map((c) => c + 50);
      const shifted = probitLogits({ ...logits, mean: mean.map((f) => f - 3), covariance });
      for (const [i, f] of probitLogits(logits).entries()) expect(shifted[i]).toBeCloseTo(f, 10);
    });
  });

  test("draws of the last layer are the linearisation; θ is left as it was", async () => {
    await withNet(3, async (model) => {
      const state = await posteriorOf(model, { structure: "kronecker" });
      const before = await model.theta.get("w2");
      const [byTheta, byLogits] = [
        await predict(monteCarlo(model, state, { S: 800, seed: 3 }), [batch]),
        await predict(linearised(model, state, { S: 4000, seed: 3 }), [batch]),
      ];
      byTheta.logMean.forEach((logp, i) => {
        // Standard error of a mean of 800 probabilities: at most ½/√800.
        expect(Math.abs(Math.exp(logp) - Math.exp(byLogits.logMean[i]!))).toBeLessThan((4 * 0.5) / Math.sqrt(800));
      });
      byTheta.epistemic.forEach((mi, row) => {
        expect(Math.abs(mi - byLogits.epistemic[row]!)).toBeLessThan(0.03);
      });
      expect(await model.theta.get("w2")).toEqual(before);
      expect(() => linearised(model, state, { S: 0 })).toThrow(/members: 0/);
      expect(() => monteCarlo(model, state, { S: 0 })).toThrow(/members: 0/);
    });
  });

  test("a pair of draws is one solve, whose bits do not hang on what was read before", async () => {
    await withNet(2, async (model) => {
      const state = await posteriorOf(model, { structure: "kronecker", groups: ["encoder", "head"] });
      let solves = 0;
      const gaussians = state.gaussians.map((gaussian) => {
        const draw = (z: Float64Array) => {
          solves++;
          return gaussian.draw(z);
        };
        return Object.assign(Object.create(gaussian), { draw });
      });
      const draws = laplaceDraws({ ...state, gaussians }, { S: 4, seed: 1 });
      const inOrder = [0, 1, 2, 3].map((s) => draws.read(s));
      expect(solves).toBe(2 * gaussians.length);
      for (const s of [3, 1, 0, 2]) expect(laplaceDraws(state, { S: 4, seed: 1 }).read(s)).toEqual(inOrder[s]);
      for (const s of [3, 1, 0, 2]) expect(draws.read(s)).toEqual(inOrder[s]);
    });
  });

  test("groups' logits take K forwards of each example, and leave no memory where a root cannot be made", async () => {
    await withNet(3, async (model) => {
      const state = await posteriorOf(model, { structure: "kronecker", groups: ["encoder", "head"] });
      let forwards = 0;
      const { engine, theta } = model;
      const counting = {
        engine,
        theta,
        logits: (batch: PackedBatch) => {
          forwards++;
          return model.logits(batch);
        },
      };
      await gaussianLogits(counting, state, batch);
      expect(forwards).toBe(batch.sequences * 3);
      const before = gpu().stats.liveBuffers;
      const [first] = state.gaussians;
      const broken = Object.create(state.gaussians[1]!, { eigenvalues: { get: () => { throw new Error("no root"); } } }); // biome-ignore format: one object
      await expect(gaussianLogits(model, { ...state, gaussians: [first!, broken] }, batch)).rejects.toThrow("no root");
      expect(gpu().stats.liveBuffers).toBe(before);
    });
  });

  test("draws of every group go where they belong, in whatever order the blocks come", async () => {
    await withNet(2, async (model) => {
      const state = await posteriorOf(model, { structure: "kronecker", groups: ["head", "layer.0"] }, { tau: 1e12 });
      const draws = laplaceDraws(state, { S: 1 });
      expect(draws.slices.map(({ key }) => key)).toEqual([...LAYER, ...HEAD]);
      const { center } = await inFloat64(model, [...LAYER, ...HEAD]);
      // At τ = 10¹² a draw is θ̂, to a millionth.
      (await draws.read(0)).forEach((value, i) => {
        expect(value).toBeCloseTo(center[i]!, 5);
      });
      expect(await draws.read(0)).toEqual(await draws.read(0));
    });
  });
});
