/**
 * @file Loss scaling as a training sees it: a backward in f16 begins with S in place of 1, and the gradient is divided by S
 * before anyone looks at it, so terms, clipping, prior and optimiser know nothing of S. What S is, and when a step is
 * skipped, is decided on the device (kernels/lossscale.ts): the host hears of it a step late, like everything else.
 */
import { InputError } from "../errors.ts";
import type { Gpu } from "../gpu/index.ts";
import {
  createLossScale,
  LARGEST_SCALE,
  LEAST_SCALE,
  type Live,
  type LossScale,
  lossScaleWords,
  lossSeed,
  type NdArray,
  parseLossScale,
  readIndices,
  type Stretch,
  settleScale,
  unscale,
} from "../kernels/index.ts";

const START = 4096;
const INTERVAL = 256;

/**
 * Dynamic, as no scale fits every model: it is halved where a gradient overflows, at the price of a step, and doubled
 * again after `interval` good ones. The start lifts a gradient of 1.5e-8 to f16's least normal number and leaves room up to 16:
 * a mean over a batch of NLLs has gradients below 1, so a run of a few hundred steps seldom skips any.
 */
export interface LossScaleOptions {
  /** A power of two; default 4,096. */
  start?: number | undefined;
  /** Good steps in a row after which the scale is doubled; default 256. */
  interval?: number | undefined;
}

/** Throws InputError for an option out of range. */
export function expectLossScale({ start = START, interval = INTERVAL }: LossScaleOptions = {}): void {
  if (!(Number.isInteger(Math.log2(start)) && start >= LEAST_SCALE && start <= LARGEST_SCALE)) {
    throw new InputError(`loss scale: ${start} (expected a power of two from 1 to 2^24). The default is 4096.`);
  }
  if (!Number.isSafeInteger(interval) || interval < 1) {
    throw new InputError(
      `loss scale: an interval of ${interval} (expected a whole number from 1). The default is 256.`,
    );
  }
}

export class LossScaling {
  readonly facts: Readonly<Record<string, string | number>>;
  readonly #gpu: Gpu;
  readonly #interval: number;
  readonly #state: NdArray;

  /** Throws InputError for an option out of range. */
  constructor(gpu: Gpu, { start = START, interval = INTERVAL }: LossScaleOptions = {}) {
    expectLossScale({ start, interval });
    this.#gpu = gpu;
    this.#interval = interval;
    this.#state = createLossScale(gpu, { scale: start, good: 0, skipped: 0, last: 0 });
    gpu.keep(this.#state.buffer);
    this.facts = { dtype: "f16", "loss scale": `${start}, doubled after ${interval}` };
  }

  /** What a backward begins with, [1]. */
  seed(): NdArray {
    return lossSeed(this.#gpu, this.#state);
  }

  /** Divides the gradient by S. */
  unscale(grad: NdArray, stretches: readonly Stretch[], live: Live): void {
    unscale(this.#gpu, grad, stretches, this.#state, { live });
  }

  /** The step's last dispatch. */
  settle(status: NdArray, losses: NdArray, step: number): void {
    settleScale(this.#gpu, this.#state, status, losses, { step, interval: this.#interval });
  }

  /** Words that the report of a step carries: `copy` puts them there, `report` reads them. */
  readonly words = 16;

  copy(to: NdArray): void {
    this.#gpu.copy(this.#state, to);
  }

  /** What a step's report says besides. A gradient that overflowed has no norm, and no share of J's. */
  report(words: ArrayBuffer, byteOffset: number, step: number) {
    const { scale, last } = parseLossScale(new Uint32Array(words, byteOffset, this.words));
    const skipped = last === step;
    return { lossScale: scale, skipped, ...(skipped ? { gradNorm: Number.NaN, priorShare: Number.NaN } : {}) };
  }

  async state(): Promise<LossScale> {
    return parseLossScale(await readIndices(this.#gpu, this.#state));
  }

  restore(state: LossScale): void {
    this.#gpu.write(this.#state, lossScaleWords(state));
  }

  dispose(): void {
    this.#gpu.release(this.#state.buffer);
  }
}
