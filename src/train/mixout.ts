/**
 * @file Mixout around a step's gradient: the encoder's weights that train are swapped at random for the prior's mean while
 * forward and backward run, and come back before anything else reads θ. An approximate prior (shaders/mixout.wgsl says of
 * which precision), beside the explicit ones; one mask a step, a function of seed and step, so a resumed run sees the same.
 */
import type { Slice, Theta } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import { mixoutGradient, mixoutWeights, type NdArray } from "../kernels/index.ts";
import { joinWindows, type Window } from "../kernels/windows.ts";
import { streamKey } from "../random.ts";

/** The encoder's slices that train. Throws InputError: p is not below 1, or there are none. */
export function mixedSlices(theta: Theta, p: number): Slice[] {
  if (!(p >= 0 && p < 1)) throw new InputError(`mixout: ${p} (expected a number from 0 to below 1). 0 is none.`);
  const slices = theta.layout.slices.filter((slice) => slice.groups[0] === "encoder" && !theta.isFrozen(slice));
  if (slices.length > 0) return slices;
  throw new InputError("mixout: nothing of the encoder trains, so no weight has a pretrained value to be swapped for. Leave it out."); // biome-ignore format: one sentence
}

export class Mixing {
  readonly #theta: Theta;
  readonly #mu: NdArray;
  readonly #p: number;
  readonly #seed: number;
  /** θ while the mixed weights stand in its place. */
  readonly #saved: NdArray;
  readonly #stretches: readonly Window[];

  /** Throws InputError: p is not below 1, or nothing of the encoder trains. */
  constructor(theta: Theta, mu: NdArray, { p, seed }: { p: number; seed: number }) {
    const slices = mixedSlices(theta, p);
    this.#theta = theta;
    this.#mu = mu;
    this.#p = p;
    this.#seed = seed;
    this.#stretches = joinWindows(slices.map(({ offset, stride: length }) => ({ offset, length })));
    this.#saved = theta.vector();
  }

  /** Runs `body`, which leaves a gradient, at the mixed weights; the gradient is θ's afterwards. Inside `engine.step`. */
  around<T>(step: number, body: () => T): T {
    const { gpu } = this.#theta.engine;
    const { values } = this.#theta;
    const options = { p: this.#p, key: streamKey(this.#seed, "mixout", step) };
    gpu.copy(values, this.#saved);
    mixoutWeights(gpu, values, this.#mu, this.#stretches, options);
    try {
      const result = body();
      mixoutGradient(gpu, this.#theta.gradient(), this.#stretches, options);
      return result;
    } finally {
      gpu.copy(this.#saved, values);
    }
  }

  dispose(): void {
    this.#theta.release(this.#saved);
  }
}
