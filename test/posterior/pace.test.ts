/** @file How long chains must be and how large their steps may be: against recursions in float64, and Hessians of a head. */
import { EigenvalueDecomposition, Matrix } from "ml-matrix";
import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { packBatch } from "../../src/data/batches.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { headCurvature, meanFactor, relaxation, stepFor, varianceAfter } from "../../src/posterior/pace.ts";
import { cyclical } from "../../src/posterior/samplers.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { tinyCheckpoint } from "../model/tiny.ts";

const gpu = gpuForTests();

/**
 * Var θ by step, from the mode, of SGHMC (friction 1: SGLD) on −log p = ½λθ² with T = 1, over 1/λ; the gradient's noise has
 * variance V.
 */
function recursion(h: number, lambda: number, friction: number, steps: number, V = 0): number[] {
  let [uu, ut, tt] = [friction === 1 ? 0 : h, 0, 0];
  const found: number[] = [];
  for (let step = 0; step < steps; step++) {
    const [p, q] = [1 - friction, -h * lambda];
    const nu = p * p * uu + 2 * p * q * ut + q * q * tt + 2 * friction * h + h * h * V;
    const nt = p * ut + q * tt;
    [uu, ut, tt] = [nu, nu + nt, tt + 2 * nt + nu];
    found.push(tt * lambda);
  }
  return found;
}

describe("a direction that the data leave free", () => {
  test.each([
    ["SGLD", undefined, 0.02],
    ["SGHMC", 0.1, 0.002],
    ["SGHMC with friction .3", 0.3, 0.005],
  ])("%s: its variance on the way is that of the recursion", (_, friction, lr) => {
    // N = 50 terms that say nothing under a prior of τ = 2: on J the curvature is τ/N, the noise's scale 1/N.
    const [N, tau] = [50, 2];
    const forgets = relaxation({ lr, N, friction }, tau);
    const steps = Math.round(3 * forgets);
    const found = recursion(lr / N, tau, friction ?? 1, steps);
    for (const share of [0.3, 0.5, 1, 2, 3]) {
      const step = Math.round(share * forgets);
      expect(Math.abs(found[step - 1]! - varianceAfter(step, forgets)), `${share} of ${forgets}`).toBeLessThan(0.02);
    }
  });

  test("a velocity that hardly knows the prior forgets itself, no sooner", () => {
    expect(relaxation({ lr: 1, N: 10, friction: 0.1 }, 100)).toBe(20);
  });

  test("a cycle's sampling part is worth the mean of its factors", () => {
    for (const exploration of [0, 0.3, 0.5, 0.8]) {
      const { factor, samples } = cyclical({ length: 2000, exploration });
      const own = Array.from({ length: 2000 }, (_, i) => i + 1).filter(samples);
      const mean = own.reduce((sum, step) => sum + factor(step), 0) / own.length;
      expect(meanFactor(exploration)).toBeCloseTo(mean, 2);
    }
    expect(meanFactor(0)).toBe(0.5);
  });
});

describe("the curvature of a linear head's mean NLL", () => {
  test("is above the largest eigenvalue of its Hessian, at p = ½ and elsewhere, and not by more than the features are many", async () => {
    const bert = await BertForSequenceClassification.load(new Engine(gpu()), tinyCheckpoint({ layers: 1, hidden: 16 }), { labels: 2 }); // biome-ignore format: one call
    const texts = [0, 1, 2, 3, 4, 5, 6].map((i) => ({
      ids: [2, 5 + i, 9 - i, 3],
      typeIds: [0, 0, 0, 0],
      label: i % 2,
    }));
    const batch = packBatch(texts);
    const bound = await headCurvature(bert, batch);
    const { read } = bert.engine.step(() => bert.engine.noGrad(() => ({ read: bert.features(batch).read() })));
    const x = await read;
    const width = x.length / texts.length;
    for (const p of [0.5, 0.1]) {
      const H = Matrix.zeros(2 * (width + 1), 2 * (width + 1));
      for (let row = 0; row < texts.length; row++) {
        const own = [...x.subarray(row * width, (row + 1) * width), 1];
        const softmax = new Matrix([[p * (1 - p), -p * (1 - p)], [-p * (1 - p), p * (1 - p)]]); // biome-ignore format: a matrix
        const outer = Matrix.columnVector(own).mmul(Matrix.rowVector(own));
        H.add(softmax.kroneckerProduct(outer).mul(1 / texts.length));
      }
      const largest = Math.max(...new EigenvalueDecomposition(H, { assumeSymmetric: true }).realEigenvalues);
      expect(bound).toBeGreaterThan(largest);
      expect(bound).toBeLessThan((largest * 0.25 * width) / (p * (1 - p)));
    }
    bert.dispose();
  });

  test.each([undefined, 0.1, 0.4])(
    "bounds the step with the prior's: friction %s, whole data and batches",
    (friction) => {
      const N = 4096;
      const whole = stepFor({ friction }, { curvature: 3, precision: 2 * N, N }); // of J: 5
      expect(whole).toBeCloseTo((2 - (friction ?? 1)) / 2 / 5, 12);
      const variance = (h: number, V: number) => recursion(h, 5, friction ?? 1, 4000, V / N).at(-1)!;
      // A third too large where the curvature is attained.
      expect(variance(whole, 0)).toBeCloseTo(4 / 3, 6);
      expect(variance(whole / 10, 0)).toBeCloseTo(40 / 39, 6);
      for (const seen of [0.25, 0.05]) {
        const h = stepFor({ friction }, { curvature: 5, precision: 0, N, seen });
        // A batch of seen·N terms whose scores have the curvature's variance: (1 − seen)·5/(seen·N) on J, where T is 1/N.
        const heat = variance(h, (5 * (1 - seen) * N) / seen) / variance(h, 0);
        expect(heat).toBeGreaterThan(1.1);
        expect(heat).toBeLessThanOrEqual(1.5 + 1e-9);
        // Of a tenth of the temperature the variance is a tenth, and the batch's noise is what it was.
        const cold = stepFor({ friction }, { curvature: 5, precision: 0, N, seen, temperature: 0.1 });
        const noise = (5 * (1 - seen) * N) / seen;
        const warmed = variance(cold, noise / 0.1) / variance(cold, 0);
        expect(warmed).toBeGreaterThan(1.1);
        expect(warmed).toBeLessThanOrEqual(1.5 + 1e-9);
      }
    },
  );
});
