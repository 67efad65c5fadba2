/**
 * @file Mixout (Lee, Cho and Kang 2020) over stretches of the parameter vector: weights swapped at random for their
 * pretrained values, and the gradient that goes with it. The formula stands in shaders/mixout.wgsl.
 */
import { f32, type Gpu, grid } from "../gpu/index.ts";
import { threefry2x32 } from "../random.ts";
import type { NdArray } from "./array.ts";
import { dropoutThreshold } from "./dropout.ts";
import { slice, type Window, windows } from "./windows.ts";

/** vec4 per thread, as in shaders/mixout.wgsl. */
const PER = 16;

export interface MixoutOptions {
  /** Of a swap, 0 ≤ p < 1; quantised to 1/65536, and the scale is that of the quantised one. */
  p: number;
  /** A new one each step. */
  key: readonly [number, number];
  /** Bytes bound at once; tests lower it. */
  window?: number | undefined;
}

/** θ ← μ + m/(1 − p) ⊙ (θ − μ) on the stretches, in place. Offsets are multiples of 64. RangeError: p out of range. */
export function mixoutWeights(
  gpu: Gpu,
  theta: NdArray,
  mu: NdArray,
  stretches: readonly Window[],
  options: MixoutOptions,
): void {
  launch(gpu, "mixoutWeights", "mix", [theta, mu], stretches, options);
}

/** g ← m/(1 − p) ⊙ g with the same m, in place. */
export function mixoutGradient(gpu: Gpu, grad: NdArray, stretches: readonly Window[], options: MixoutOptions): void {
  launch(gpu, "mixoutGradient", "mask", [grad], stretches, options);
}

function launch(
  gpu: Gpu,
  op: string,
  entry: string,
  vectors: readonly NdArray[],
  stretches: readonly Window[],
  { p, key, window }: MixoutOptions,
): void {
  const threshold = dropoutThreshold(p);
  const size = vectors[0]?.size ?? 0;
  for (const stretch of stretches) {
    if (stretch.offset % 64 !== 0 || stretch.offset < 0 || stretch.offset + stretch.length > size)
      throw new RangeError(`${op}: stretch ${stretch.offset} + ${stretch.length} is not within ${size} elements`);
    for (const piece of windows(gpu, stretch.offset, stretch.length, window)) {
      gpu.dispatch({
        op,
        shader: "mixout",
        entry,
        bindings: vectors.map((vector) => slice(vector, piece)),
        params: [piece.length, piece.offset / 4, threshold, f32(65536 / threshold), ...key],
        grid: grid(Math.ceil(piece.length / (4 * 64 * PER))),
        work: { bytes: 4 * piece.length * (vectors.length + 1) },
      });
    }
  }
}

/** m/(1 − p) of element i of θ, in float64. */
export function mixoutFactor(i: number, { p, key }: MixoutOptions): number {
  const threshold = dropoutThreshold(p);
  const word = threefry2x32(key[0], key[1], Math.floor(i / 4), 0)[i % 4 < 2 ? 0 : 1];
  const lane = i % 2 === 0 ? word & 0xffff : word >>> 16;
  return lane < threshold ? 65536 / threshold : 0;
}
