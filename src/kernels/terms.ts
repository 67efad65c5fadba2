/**
 * @file The terms of the log-posterior that live in parameter space, from one pass over θ, its gradient and the prior
 * mean μ: what the prior costs, how long the gradient is, and whether it is finite. The verdict and the clip factor
 * stay on the device in `status`, where the update (update.ts) reads them: no round trip inside a step.
 */
import { f32, type Gpu } from "../gpu/index.ts";
import { empty, fromHost, type NdArray } from "./array.ts";
import { allLive, BLOCK, blockWindows, type Live } from "./live.ts";
import { partialSums, slice } from "./windows.ts";

/** A stretch of the parameter vector with one prior and one learning rate; frozen groups (τ = ∞) are in none. */
export interface Stretch {
  /** First element, a multiple of 64. */
  readonly offset: number;
  /** Elements, a multiple of 64. */
  readonly length: number;
  /** τ/N; 0 is a flat prior. */
  readonly priorScale: number;
}

/** Flat f32 vectors of equal length, a multiple of 64; padding between parameters is 0 in all of them. */
export interface TermVectors {
  readonly theta: NdArray;
  /** Gradient of the mean negative log-likelihood alone. */
  readonly grad: NdArray;
  /** Prior mean. */
  readonly mu: NdArray;
}

export interface TermOptions {
  /** Largest ‖∇J‖ that an update follows unshortened; absent: no clipping. */
  clip?: number | undefined;
  /** What to visit; default: everything. */
  live?: Live | undefined;
  /** Bytes bound at once, at least a block; tests lower it. */
  window?: number | undefined;
}

/** Words of `status`, a u32 [16] that lives as long as an optimiser. */
export const STATUS = {
  /** Not 0 once a gradient was not finite: every later update is skipped. Where the loss is scaled, only 2 and 3 are final. */
  bad: 0,
  /** Bits of the clip factor, an f32. */
  clipFactor: 1,
  /** The last step whose last update ran. */
  step: 2,
  /** Bits of ‖∇J‖² before clipping, an f32. */
  squaredNorm: 3,
} as const;

/** A status that says: nothing bad yet, no clipping, no step taken. */
export function createStatus(gpu: Gpu): NdArray {
  const words = new Uint32Array(16);
  words[STATUS.clipFactor] = f32(1);
  return fromHost(gpu, words);
}

/**
 * [R, 4], a row a stretch: Σg², ΣΔ², Σg·Δ, 0, with Δ = θ − μ. Sets status[1] = min(1, clip/‖∇J‖) over all stretches, and
 * status[0] |= 1 where some g, or the norm, is not finite.
 */
export function vectorTerms(
  gpu: Gpu,
  vectors: TermVectors,
  stretches: readonly Stretch[],
  status: NdArray,
  { clip, live: given, window }: TermOptions = {},
): NdArray {
  const op = "vectorTerms";
  expectStretches(op, vectors, stretches);
  if (clip !== undefined && !(clip > 0 && Number.isFinite(clip)))
    throw new RangeError(`${op}: clip ${clip} is not > 0`);
  const { theta, grad, mu } = vectors;
  const live = given ?? allLive(gpu, theta.size);
  const terms = empty(gpu, [stretches.length, 4], "f32", op);
  stretches.forEach((stretch, row) => {
    const step = { op, shader: "terms" };
    const parts = partialSums(gpu, op, 4, blockWindows(gpu, stretch.offset, stretch.length, window), {
      partials({ offset, length, begin }, first, sums, grid) {
        const vectors = [theta, grad, mu].map((vector) => slice(vector, { offset, length }));
        gpu.dispatch({
          ...step,
          entry: "partials",
          bindings: [...vectors, live.words, sums],
          params: [length, begin, offset / BLOCK, first, 0, 0, 0, 0],
          grid,
          work: { bytes: 4 * 3 * (length - begin) * live.share },
        });
      },
      fold(count, sums, fewer, grid) {
        gpu.dispatch({ ...step, entry: "fold", bindings: [sums, fewer], params: [count, 0, 0, 0, 0, 0, 0, 0], grid });
      },
    });
    const [count = 0] = parts.shape;
    gpu.dispatch({
      ...step,
      entry: "finish",
      bindings: [parts, terms, status],
      params: [
        count,
        0,
        0,
        row,
        row === 0 ? 1 : 0,
        row === stretches.length - 1 ? 1 : 0,
        f32(stretch.priorScale),
        f32(clip ?? 0),
      ],
      grid: [1, 1, 1],
    });
    gpu.release(parts.buffer);
  });
  if (!given) gpu.release(live.words.buffer);
  return terms;
}

/** Throws RangeError where the vectors differ in length or a stretch is not within them. */
export function expectStretches(op: string, vectors: object, stretches: readonly Stretch[]): void {
  const entries = Object.entries(vectors).filter((e): e is [string, NdArray] => e[1] !== undefined);
  const length = entries[0]?.[1].size ?? 0;
  for (const [name, v] of entries) {
    if (v.size !== length || v.size % 64 !== 0) {
      throw new RangeError(`${op}: ${name} has ${v.size} elements; all vectors have one length, a multiple of 64`);
    }
  }
  for (const { offset, length: n, priorScale } of stretches) {
    if (offset < 0 || offset % 64 !== 0 || n < 64 || n % 64 !== 0 || offset + n > length) {
      throw new RangeError(`${op}: stretch ${offset} + ${n} is not within ${length} elements in multiples of 64`);
    }
    if (!(priorScale >= 0 && Number.isFinite(Math.fround(priorScale)))) {
      throw new RangeError(
        `${op}: prior scale τ/N = ${priorScale}; expected 0 ≤ τ/N < ∞ (a frozen group is in no stretch)`,
      );
    }
  }
}

export interface TermsReference {
  /** Per stretch: Σg², ΣΔ², Σg·Δ. */
  rows: [number, number, number][];
  /** ‖∇J‖. */
  norm: number;
  factor: number;
}

/** The definitions, in float64. */
export function vectorTermsReference(
  { theta, grad, mu }: { theta: ArrayLike<number>; grad: ArrayLike<number>; mu: ArrayLike<number> },
  stretches: readonly Stretch[],
  clip?: number,
): TermsReference {
  let square = 0;
  const rows = stretches.map(({ offset, length, priorScale }): [number, number, number] => {
    let gg = 0;
    let dd = 0;
    let gd = 0;
    for (let i = offset; i < offset + length; i++) {
      const g = grad[i] ?? 0;
      const d = (theta[i] ?? 0) - (mu[i] ?? 0);
      gg += g * g;
      dd += d * d;
      gd += g * d;
      square += (g + priorScale * d) ** 2;
    }
    return [gg, dd, gd];
  });
  const norm = Math.sqrt(square);
  return { rows, norm, factor: clip !== undefined && norm > clip ? clip / norm : 1 };
}
