/**
 * @file Loss scaling: S, a power of two that the backward begins with instead of 1, kept on the device with the rule by
 * which it changes (shaders/lossscale.wgsl says what and why). A step whose gradient overflowed is skipped without a
 * round trip: the next one, already recorded, reads half the S.
 */
import { f32, type Gpu, grid } from "../gpu/index.ts";
import { empty, fromHost, NdArray } from "./array.ts";
import { allLive, BLOCK, blockWindows, type Live } from "./live.ts";
import { expectStretches, type Stretch } from "./terms.ts";
import { slice } from "./windows.ts";

export interface LossScale {
  /** S, a power of two. */
  scale: number;
  /** Steps since S last changed. */
  good: number;
  /** Steps skipped so far. */
  skipped: number;
  /** The last of them, counted from 1; 0: none. */
  last: number;
}

/** Below 1 it would lose what it is to save; beyond 2²⁴ f16 has no more to gain, whose range is 2⁻²⁴ … 2¹⁶. */
export const LEAST_SCALE = 1;
export const LARGEST_SCALE = 2 ** 24;

/** u32 [16] that lives as long as a training. RangeError: no power of two within the limits. */
export function createLossScale(gpu: Gpu, state: LossScale): NdArray {
  return fromHost(gpu, lossScaleWords(state));
}

/** A state as the device has it. */
export function lossScaleWords({ scale, good, skipped, last }: LossScale): Uint32Array {
  if (!(Number.isInteger(Math.log2(scale)) && scale >= LEAST_SCALE && scale <= LARGEST_SCALE)) {
    throw new RangeError(`loss scale: ${scale} is no power of two from ${LEAST_SCALE} to ${LARGEST_SCALE}`);
  }
  const words = new Uint32Array(16);
  words.set([f32(scale), good, skipped, last]);
  return words;
}

/** The state in the device's words. */
export function parseLossScale(words: Uint32Array): LossScale {
  const [bits = 0, good = 0, skipped = 0, last = 0] = words;
  return { scale: new Float32Array(Uint32Array.of(bits).buffer)[0] ?? 0, good, skipped, last };
}

/** [1]: S, as what a backward begins with. A copy: the walk back may add to what it is given. */
export function lossSeed(gpu: Gpu, scale: NdArray): NdArray {
  const seed = empty(gpu, [1], "f32", "lossSeed");
  gpu.copy(new NdArray(scale.buffer, 0, [1]), seed);
  return seed;
}

/** g ← g / S in the stretches. `live`: what to visit; default everything. `window` as in terms.ts. */
export function unscale(
  gpu: Gpu,
  grad: NdArray,
  stretches: readonly Stretch[],
  scale: NdArray,
  { live: given, window }: { live?: Live | undefined; window?: number | undefined } = {},
): void {
  const op = "unscale";
  expectStretches(op, { grad }, stretches);
  const live = given ?? allLive(gpu, grad.size);
  for (const stretch of stretches) {
    for (const { offset, length, begin } of blockWindows(gpu, stretch.offset, stretch.length, window)) {
      gpu.dispatch({
        op,
        shader: "lossscale",
        entry: "unscale",
        bindings: [scale, live.words, slice(grad, { offset, length })],
        params: [length, begin, offset / BLOCK, 0, 0, 0, 0],
        grid: grid(Math.ceil(length / BLOCK)),
        work: { bytes: 4 * 2 * (length - begin) * live.share },
      });
    }
  }
  if (!given) gpu.release(live.words.buffer);
}

/**
 * After a step's updates: judges it, changes S by the rule (doubled after `interval` good steps in a row, halved where a
 * gradient was not finite), and clears `status` of what half the S may mend. `losses`: those of the step.
 */
export function settleScale(
  gpu: Gpu,
  scale: NdArray,
  status: NdArray,
  losses: NdArray,
  { step, interval }: { step: number; interval: number },
): void {
  gpu.dispatch({
    op: "settleScale",
    shader: "lossscale",
    entry: "settle",
    bindings: [scale, status, losses],
    params: [losses.size, 0, 0, step, interval, f32(LEAST_SCALE), f32(LARGEST_SCALE)],
    grid: [1, 1, 1],
  });
}
