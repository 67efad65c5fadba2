/**
 * @file Dropout (Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014) whose
 * mask is a function of (key, element): the backward makes it again, a run can be repeated bit for bit, and no mask is
 * stored. The probability is quantised to 1/65536 and the scale is the inverse of the quantised one, so E y = x exactly.
 */
import { f32, type Gpu } from "../gpu/index.ts";
import { threefry2x32 } from "../random.ts";
import { empty, type NdArray } from "./array.ts";
import { spread } from "./spread.ts";

/** How often an element is kept, in 1/65536; at least once, since a mask of zeros has no scale. */
export function dropoutThreshold(p: number): number {
  if (!(p >= 0 && p < 1)) throw new RangeError(`dropout: p is ${p}, expected 0 ≤ p < 1`);
  return Math.max(1, Math.round((1 - p) * 65536));
}

/**
 * y = x ⊙ mask / keep, any shape; keep is 1 − p rounded to a multiple of 1/65536. `key` is two u32 words, a new pair for
 * each use. The gradient is the same call on dy. Throws RangeError unless 0 ≤ p < 1.
 */
export function dropout(gpu: Gpu, x: NdArray, p: number, key: readonly [number, number]): NdArray {
  const threshold = dropoutThreshold(p);
  const y = empty(gpu, x.shape, "f32", "dropout");
  const { per, grid } = spread(gpu, x.size);
  gpu.dispatch({
    op: "dropout",
    shader: "dropout",
    entry: "dropout",
    bindings: [x, y],
    params: [x.size, per, threshold, f32(65536 / threshold), key[0], key[1]],
    grid,
  });
  return y;
}

/** The same on the host: element i uses 16-bit lane i mod 4 of Threefry(key, (⌊i/4⌋, 0)). Mask equal bit for bit. */
export function dropoutReference(x: ArrayLike<number>, p: number, key: readonly [number, number]): Float64Array {
  const threshold = dropoutThreshold(p);
  return Float64Array.from(x, (value, i) => {
    const word = threefry2x32(key[0], key[1], Math.floor(i / 4), 0)[i % 4 < 2 ? 0 : 1];
    const lane = i % 2 === 0 ? word & 0xffff : word >>> 16;
    return value * (lane < threshold ? 65536 / threshold : 0);
  });
}
