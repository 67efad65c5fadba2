/**
 * @file What Laplace's tests share: a small net with a layer of tokens and one of vectors, its float64 twin, and dense
 * matrices from what a Gaussian says of itself.
 */
import { inverse, Matrix } from "ml-matrix";
import { Engine, Layout, ops, type Tensor, Theta } from "../../src/autograd/index.ts";
import { type Example, type PackedBatch, packBatch } from "../../src/data/batches.ts";
import type { Gpu } from "../../src/gpu/index.ts";
import { fromHost } from "../../src/kernels/index.ts";
import type { Block, Ggn, GgnOptions } from "../../src/posterior/ggn.ts";
import { ggn } from "../../src/posterior/ggn.ts";
import { type Laplace, laplace } from "../../src/posterior/laplace.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { randn } from "../kernels/harness.ts";

export const [V, C, F] = [11, 4, 5];

/** Embedding → linear with tanh on every token → mean over the sequence → linear: a layer of tokens, and one of vectors. */
export function net(gpu: Gpu, K: number) {
  const engine = new Engine(gpu);
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

export type Net = ReturnType<typeof net>;
export const HEAD = ["w2", "b2"];
export const LAYER = ["w1", "b1"];

export const EXAMPLES: Example[] = [[3, 1, 4], [1, 5], [9, 2, 6, 5], [3], [5, 8, 9, 7, 9], [10, 0]].map((ids) => ({
  ids,
  typeIds: ids.map(() => 0),
}));
export const BATCHES = [packBatch(EXAMPLES.slice(0, 4)), packBatch(EXAMPLES.slice(4))];

/** In float64: the logits of one example as a function of some parameters, the others as they are. */
export async function inFloat64(model: Net, keys: readonly string[]) {
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
export function dense({ curvature: { size, gaussian } }: Pick<Block, "curvature">, scale = 1): Matrix {
  const R = new Matrix(size, size);
  const { draw } = gaussian(1, scale, "");
  for (let c = 0; c < size; c++) {
    draw(Float64Array.from({ length: size }, (_, i) => (i === c ? 1 : 0))).forEach((x, r) => {
      R.set(r, c, x);
    });
  }
  return Matrix.sub(inverse(R.mmul(R.transpose())), Matrix.eye(size, size)).div(scale);
}

export const only = (found: Ggn) => found.blocks[0] as Block;

/** ‖A − B‖ / ‖B‖ */
export const apart = (A: Matrix, B: Matrix) => Matrix.sub(A, B).norm() / B.norm();

/** Runs a body with a net on the tests' device. */
export const netsOn =
  (gpu: () => Gpu) =>
  async <T>(K: number, body: (model: Net) => Promise<T>): Promise<T> => {
    const model = net(gpu(), K);
    try {
      return await body(model);
    } finally {
      model.dispose();
    }
  };

/** A posterior of the whole: structure, groups, τ and temperatures. */
export async function posteriorOf(
  model: Net,
  options: GgnOptions,
  { tau = 0.5, ...temperatures }: { tau?: number; temperature?: number; likelihoodTemperature?: number } = {},
): Promise<Laplace> {
  const prior = gaussianPrior(model, { encoder: { precision: 2 * tau }, head: { precision: tau } });
  const state = laplace(await ggn(model, BATCHES, options), prior, temperatures);
  prior.dispose();
  return state;
}
