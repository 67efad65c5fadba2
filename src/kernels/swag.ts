/**
 * @file The vector passes of SWAG (Maddox et al., "A simple baseline for Bayesian uncertainty in deep learning", 2019):
 * running moments of points on a path, and draws from the Gaussian that they make. Flat vectors of one length, a multiple
 * of 64, walked in windows.
 */
import { f32, type Gpu, grid } from "../gpu/index.ts";
import type { NdArray } from "./array.ts";
import { allLive, BLOCK, blockWindows, type Live } from "./live.ts";
import { slice, windows } from "./windows.ts";

/** vec4 per thread of a draw, as in shaders/swag.wgsl. */
const PER = 16;

export interface SwagMoments {
  /** θ̄ of the points so far; zeros before the first. */
  readonly mean: NdArray;
  /** Σ (θ − θ̄)² over the points so far, by element; zeros before the first. */
  readonly m2: NdArray;
}

export interface SwagCollectOptions {
  /** What may have moved since point 1, for the points after it; default: everything. The rest has θ = θ̄, m₂ = 0 and d = 0. */
  live?: Live | undefined;
  /** Bytes bound at once, at least a block; tests lower it. */
  window?: number | undefined;
}

/**
 * Takes in the n-th point (counted from 1); its deviation d from the new mean is written to `deviation`, which holds zeros
 * or an older deviation of the same path.
 */
export function swagCollect(
  gpu: Gpu,
  theta: NdArray,
  { mean, m2 }: SwagMoments,
  deviation: NdArray,
  n: number,
  { live: given, window }: SwagCollectOptions = {},
): void {
  const op = "swagCollect";
  const vectors = [theta, mean, m2, deviation];
  expectVectors(op, vectors);
  if (!Number.isSafeInteger(n) || n < 1) throw new RangeError(`${op}: point ${n}; points are counted from 1`);
  // Where nothing moves, the first point is the mean.
  const known = n > 1 ? given : undefined;
  const live = known ?? allLive(gpu, theta.size);
  for (const piece of blockWindows(gpu, 0, theta.size, window)) {
    gpu.dispatch({
      op,
      shader: "swag",
      entry: "collect",
      bindings: [live.words, ...vectors.map((vector) => slice(vector, piece))],
      params: [piece.length, piece.offset / BLOCK, f32(1 / n), 0, 0, 0],
      grid: grid(Math.ceil(piece.length / BLOCK)),
      work: { bytes: 4 * piece.length * live.share * 6 },
    });
  }
  if (!known) gpu.release(live.words.buffer);
}

export interface SwagGaussian extends SwagMoments {
  /** Points collected, ≥ 1. */
  readonly points: number;
  /** The last K deviations, or none: diagonal only. */
  readonly deviations: readonly NdArray[];
}

export interface SwagDrawOptions {
  /** Names z. */
  key: readonly [number, number];
  /** The K normals of the deviations. */
  weights: readonly number[];
  /** T; default 1. */
  temperature?: number | undefined;
  window?: number | undefined;
}

/**
 * θ ~ N(θ̄, T·(½ diag(m₂)/n + ½ DDᵀ/(K − 1))) into `drawn`; with fewer than two deviations N(θ̄, T·diag(m₂)/n).
 */
export function swagDraw(
  gpu: Gpu,
  { mean, m2, points, deviations }: SwagGaussian,
  drawn: NdArray,
  { key, weights, temperature = 1, window }: SwagDrawOptions,
): void {
  const op = "swagDraw";
  expectVectors(op, [mean, m2, drawn, ...deviations]);
  if (weights.length !== deviations.length)
    throw new RangeError(`${op}: ${weights.length} normals for ${deviations.length} deviations`);
  const share = deviations.length > 1 ? 0.5 : 1;
  launch(gpu, op, "draw", [mean, m2, drawn], Math.sqrt((share * temperature) / points), key, window);
  if (deviations.length < 2) return;
  const scale = Math.sqrt((0.5 * temperature) / (deviations.length - 1));
  for (const [k, deviation] of deviations.entries())
    launch(gpu, op, "add", [deviation, drawn], scale * (weights[k] as number), [0, 0], window);
}

function expectVectors(op: string, vectors: readonly NdArray[]): void {
  const [length = 0] = vectors.map(({ size }) => size);
  const wrong = vectors.find(({ size }) => size !== length || size % 64 !== 0);
  if (wrong) throw new RangeError(`${op}: vectors of ${length} and ${wrong.size} elements; all have one length, a multiple of 64`); // biome-ignore format: one sentence
}

function launch(
  gpu: Gpu,
  op: string,
  entry: string,
  vectors: readonly NdArray[],
  factor: number,
  key: readonly [number, number],
  window: number | undefined,
): void {
  for (const piece of windows(gpu, 0, vectors[0]?.size ?? 0, window)) {
    const bindings = vectors.map((vector) => slice(vector, piece));
    gpu.dispatch({
      op,
      shader: "swag",
      entry,
      bindings,
      params: [piece.length, piece.offset / 4, f32(factor), 0, ...key],
      grid: grid(Math.ceil(piece.length / (4 * 64 * PER))),
      work: { bytes: 4 * piece.length * 3 },
    });
  }
}

/** The definitions in float64: θ̄, m₂ and deviations of the points in order, of which the last `rank` are kept. */
export function swagReference(points: readonly ArrayLike<number>[], rank: number) {
  const length = points[0]?.length ?? 0;
  const mean = new Float64Array(length);
  const m2 = new Float64Array(length);
  const deviations: Float64Array[] = [];
  for (const [k, point] of points.entries()) {
    for (let i = 0; i < length; i++) {
      const before = (point[i] ?? 0) - (mean[i] ?? 0);
      mean[i] = (mean[i] ?? 0) + before / (k + 1);
      m2[i] = (m2[i] ?? 0) + before * ((point[i] ?? 0) - (mean[i] ?? 0));
    }
    deviations.push(Float64Array.from(mean, (m, i) => (point[i] ?? 0) - m));
    if (deviations.length > rank) deviations.shift();
  }
  return { mean, m2, deviations };
}
