/**
 * @file Laplace's approximation on the device against dense float64 references (checks 13 and 14), and its predictions. Long,
 * since every structure and predictive is held against one small net and its float64 twin.
 */
import { inverse, Matrix } from "ml-matrix";
import { describe, expect, test } from "vitest";
import { Engine, Layout, ops, type Tensor, Theta } from "../../src/autograd/index.ts";
import { type Example, type PackedBatch, packBatch } from "../../src/data/batches.ts";
import { fromHost } from "../../src/kernels/index.ts";
import { placeOf, type Structure } from "../../src/posterior/curvature.ts";
import { type Block, type Ggn, type GgnOptions, ggn } from "../../src/posterior/ggn.ts";
import {
  expectLaplace,
  type Laplace,
  laplace,
  laplaceDraws,
  monteCarlo,
  priorShapes,
} from "../../src/posterior/laplace.ts";
import { gaussianLogits, linearised, probit, probitLogits } from "../../src/posterior/linearised.ts";
import { predict } from "../../src/posterior/posterior.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { diagonalPrior, laplacePrior } from "../../src/train/shaped-priors.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";
import { denseGgn, hessianOfSoftmax, jacobianOf, softmaxOf } from "./reference.ts";

const gpu = gpuForTests();
const [V, C, F] = [11, 4, 5];

/** Embedding → linear with tanh on every token → mean over the sequence → linear: a layer of tokens, and one of vectors. */
function net(K: number) {
  const engine = new Engine(gpu());
  const slice = (key: string, shape: number[], ...groups: string[]) => ({
    key,
    parameters: [{ name: key, shape }],
    groups,
  });
  const theta = new Theta(
    engine,
    new Layout([
      slice("e", [V, C], "encoder", "embeddings"),
      slice("w1", [F, C], "encoder", "layer.0"),
      slice("b1", [F], "encoder", "layer.0"),
      slice("w2", [K, F], "head"),
      slice("b2", [K], "head"),
    ]),
  );
  for (const [i, { key, size }] of theta.layout.slices.entries()) theta.set(key, randn(30 + i, size, 0.7));
  return {
    engine,
    theta,
    newParameters: new Set(["w2", "b2"]),
    features(batch: PackedBatch) {
      const x = ops.embeddingSum([{ table: theta.tensor("e"), ids: batch.ids }]);
      const u = ops.linear(x, theta.tensor("w1"), { bias: theta.tensor("b1"), activation: "tanh" });
      return ops.segmentMean(u, fromHost(engine.gpu, batch.starts)); // [B, F]
    },
    classify: (features: Tensor) => ops.linear(features, theta.tensor("w2"), { bias: theta.tensor("b2") }),
    logits(batch: PackedBatch) {
      return this.classify(this.features(batch));
    },
    dispose: () => theta.dispose(),
  };
}

type Net = ReturnType<typeof net>;
const HEAD = ["w2", "b2"];
const LAYER = ["w1", "b1"];

const EXAMPLES: Example[] = [[3, 1, 4], [1, 5], [9, 2, 6, 5], [3], [5, 8, 9, 7, 9], [10, 0]].map((ids) => ({
  ids,
  typeIds: ids.map(() => 0),
}));
const BATCHES = [packBatch(EXAMPLES.slice(0, 4)), packBatch(EXAMPLES.slice(4))];

/** In float64: the logits of one example as a function of some parameters, the others as they are. */
async function inFloat64(model: Net, keys: readonly string[]) {
  const all = new Map<string, Float32Array>();
  for (const name of model.theta.layout.names) all.set(name, await model.theta.get(name));
  const center = Float64Array.from(keys.flatMap((key) => [...(all.get(key) as Float32Array)]));
  const K = all.get("b2")?.length ?? 0;
  const logits = (ids: ArrayLike<number>) => (values: Float64Array) => {
    let at = 0;
    const p = new Map<string, ArrayLike<number>>(all);
    for (const key of keys) {
      const { size } = model.theta.layout.parameter(key);
      p.set(key, values.subarray(at, at + size));
      at += size;
    }
    const [e, w1, b1, w2, b2] = ["e", "w1", "b1", "w2", "b2"].map((key) => p.get(key) as ArrayLike<number>);
    const v = new Float64Array(F);
    for (const id of Array.from(ids)) {
      for (let f = 0; f < F; f++) {
        let u = b1![f]!;
        for (let c = 0; c < C; c++) u += w1![f * C + c]! * e![id * C + c]!;
        v[f]! += Math.tanh(u) / ids.length;
      }
    }
    return Float64Array.from({ length: K }, (_, k) => v.reduce((sum, x, f) => sum + w2![k * F + f]! * x, b2![k]!));
  };
  return { center, functions: EXAMPLES.map(({ ids }) => logits(ids)), logits };
}

/** A block's H, from what Λ = 1·I + H/… says: dense, by the root of Λ⁻¹. */
function dense({ curvature: { size, gaussian } }: Pick<Block, "curvature">, scale = 1): Matrix {
  const R = new Matrix(size, size);
  const { draw } = gaussian(1, scale, "");
  for (let c = 0; c < size; c++) {
    draw(Float64Array.from({ length: size }, (_, i) => (i === c ? 1 : 0))).forEach((x, r) => {
      R.set(r, c, x);
    });
  }
  return Matrix.sub(inverse(R.mmul(R.transpose())), Matrix.eye(size, size)).div(scale);
}

const only = (found: Ggn) => found.blocks[0] as Block;

/** ‖A − B‖ / ‖B‖ */
const apart = (A: Matrix, B: Matrix) => Matrix.sub(A, B).norm() / B.norm();

async function withNet<T>(K: number, body: (model: Net) => Promise<T>): Promise<T> {
  const model = net(K);
  try {
    return await body(model);
  } finally {
    model.dispose();
  }
}

describe("the GGN (check 13)", () => {
  test("of the last layer: full is the dense one; diagonal and kronecker are what they say", async () => {
    await withNet(3, async (model) => {
      const { center, functions } = await inFloat64(model, HEAD);
      const H = denseGgn(functions, center);
      const found = async (structure: Structure) => ggn(model, BATCHES, { structure });
      const full = await found("full");
      expect([full.n, full.lastLayer, full.blocks.length, full.left.length]).toEqual([6, true, 1, 0]);
      expect(only(full).slices.map(({ key }) => key)).toEqual(HEAD);
      // The inputs and logits come from the device in float32.
      expect(apart(dense(only(full)), H)).toBeLessThan(1e-6);
      expect(apart(dense(only(await found("diagonal"))), Matrix.diag(H.diagonal()))).toBeLessThan(1e-6);
      // Σ x̃x̃ᵀ/n ⊗ Σ (diag p − ppᵀ): not H, but its two factors.
      const at = functions.map((f) => f(center));
      const G = at.map(hessianOfSoftmax).reduce((a, b) => Matrix.add(a, b));
      const J = functions.map((f) => jacobianOf(f, center).getRow(0)); // ∂ logit₀: x̃ in row 0 of W̃
      const x = J.map((row) => [...row.slice(0, F), row[3 * F]!]);
      const A = new Matrix(F + 1, F + 1);
      for (const v of x) A.add(Matrix.columnVector(v).mmul(Matrix.rowVector(v)).div(x.length));
      const shape = { inputs: F, outputs: 3, bias: true };
      const product = new Matrix(3 * F + 3, 3 * F + 3);
      for (let o = 0; o < 3; o++)
        for (let q = 0; q < 3; q++)
          for (let i = 0; i <= F; i++)
            for (let j = 0; j <= F; j++)
              product.set(placeOf(shape, o, i), placeOf(shape, q, j), G.get(o, q) * A.get(i, j));
      const kronecker = dense(only(await found("kronecker")));
      expect(apart(kronecker, product)).toBeLessThan(1e-6);
      expect(apart(kronecker, H)).toBeGreaterThan(0.01);
    });
  });

  test("of chosen groups: the head by K backward passes is the head by its inputs", async () => {
    await withNet(3, async (model) => {
      const byInput = await ggn(model, BATCHES, { structure: "kronecker" });
      const byBackward = await ggn(model, BATCHES, { structure: "kronecker", groups: ["head"] });
      expect([byBackward.n, byBackward.lastLayer]).toEqual([6, false]);
      expect(apart(dense(only(byBackward)), dense(only(byInput)))).toBeLessThan(1e-5);
    });
  });

  test("kronecker is exact for one datum of one token, and for its head", async () => {
    await withNet(3, async (model) => {
      const one = [packBatch(EXAMPLES.slice(3, 4))];
      expect(EXAMPLES[3]?.ids.length).toBe(1);
      for (const [group, keys] of [["layer.0", LAYER] as const, ["head", HEAD] as const]) {
        const { center, functions } = await inFloat64(model, keys);
        const H = denseGgn(functions.slice(3, 4), center);
        const found = await ggn(model, one, { structure: "kronecker", groups: [group] });
        expect(apart(dense(only(found)), H), group).toBeLessThan(1e-5);
      }
    });
  });

  test("kronecker over tokens is the expand form: its definition exactly, the dense GGN only roughly", async () => {
    await withNet(3, async (model) => {
      const found = await ggn(model, BATCHES, { structure: "kronecker", groups: ["encoder"] });
      expect(found.blocks.map(({ slices }) => slices.map(({ key }) => key))).toEqual([LAYER]);
      expect(found.left.map(({ key }) => key)).toEqual(["e"]);
      const { center, functions, logits } = await inFloat64(model, LAYER);
      // One token of a sentence of R alone: its part of J is ã ⊗ g. The tokens of a sentence do not meet before the mean.
      const shape = { inputs: C, outputs: F, bias: true };
      const P = F * C + F;
      const A = new Matrix(C + 1, C + 1);
      const G = new Matrix(F, F);
      const e = await model.theta.get("e");
      let tokens = 0;
      for (const [n, { ids }] of EXAMPLES.entries()) {
        const B = hessianOfSoftmax(functions[n]!(center));
        for (const id of Array.from(ids)) {
          tokens++;
          const a = Matrix.columnVector([...e.subarray(id * C, (id + 1) * C), 1]);
          A.add(a.mmul(a.transpose()));
          // ∂ logits / ∂ u of this token: the bias's part of its own Jacobian, over R.
          const J = jacobianOf(logits([id]), center)
            .subMatrix(0, 2, F * C, P - 1)
            .div(ids.length);
          G.add(J.transpose().mmul(B).mmul(J));
        }
      }
      const expand = new Matrix(P, P);
      for (let o = 0; o < F; o++)
        for (let q = 0; q < F; q++)
          for (let i = 0; i <= C; i++)
            for (let j = 0; j <= C; j++)
              expand.set(placeOf(shape, o, i), placeOf(shape, q, j), (G.get(o, q) * A.get(i, j)) / tokens);
      expect(apart(dense(only(found)), expand)).toBeLessThan(1e-5);
      const H = denseGgn(functions, center);
      // Products of different tokens are missing: too little curvature, of the right order.
      const share = dense(only(found)).trace() / H.trace();
      expect(share).toBeGreaterThan(0.2);
      expect(share).toBeLessThan(0.95);
    });
  });

  test("the diagonal of groups is unbiased, and one draw is noisy", async () => {
    await withNet(3, async (model) => {
      const keys = ["e", ...LAYER, ...HEAD];
      const { center, functions } = await inFloat64(model, keys);
      const exact = denseGgn(functions, center).diagonal();
      const diagonal = async (draws: number | undefined, seed: number) => {
        const groups = { structure: "diagonal", groups: ["encoder", "head"], draws, seed } as const;
        const { blocks } = await ggn(model, BATCHES, groups);
        expect(blocks.map(({ slices }) => slices[0]?.key)).toEqual(keys);
        return blocks.flatMap((block) => dense(block).diagonal());
      };
      const S = 150;
      const found = await diagonal(S, 1);
      // A mean of S values with χ²₁'s relative deviation √2 or less; 4 of its standard errors, and float32's rounding.
      found.forEach((h, i) => {
        expect(Math.abs(h - exact[i]!), `element ${i}`).toBeLessThan(4 * Math.sqrt(2 / S) * exact[i]! + 1e-6);
      });
      const one = await diagonal(undefined, 1);
      expect(await diagonal(undefined, 1)).toEqual(one);
      expect(await diagonal(undefined, 2)).not.toEqual(one);
    });
  });

  test("what is refused", async () => {
    await withNet(3, async (model) => {
      const run = (options: GgnOptions, batches = BATCHES) => ggn(model, batches, options);
      await expect(run({ structure: "full", groups: ["head"] })).rejects.toThrow(
        /full covariance is of the last layer/,
      );
      await expect(run({ structure: "full" }, [])).rejects.toThrow(/no data/);
      await expect(run({ structure: "diagonal", groups: ["hed"] })).rejects.toThrow(/Did you mean head/);
      await expect(run({ structure: "kronecker", groups: ["embeddings"] })).rejects.toThrow(/no linear layer learns/);
      await expect(run({ structure: "kronecker", groups: ["head"], draws: 0 })).rejects.toThrow(/0 draws/);
      await expect(run({ structure: "full", maxBytes: 1000 })).rejects.toThrow(
        /full over 18 parameters takes .* What fits: diagonal/,
      );
      model.theta.freeze(({ groups }) => groups[0] === "head");
      await expect(run({ structure: "full" })).rejects.toThrow(/last layer .w2. is frozen/);
    });
  });
});

/** A posterior of the whole: structure, groups, τ and temperatures. */
async function posteriorOf(
  model: Net,
  options: GgnOptions,
  { tau = 0.5, ...temperatures }: { tau?: number; temperature?: number; likelihoodTemperature?: number } = {},
): Promise<Laplace> {
  const prior = gaussianPrior(model, { encoder: { precision: 2 * tau }, head: { precision: tau } });
  const state = laplace(await ggn(model, BATCHES, options), prior, temperatures);
  prior.dispose();
  return state;
}

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
