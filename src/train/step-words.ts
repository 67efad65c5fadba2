/**
 * @file What a step sends back: its losses, the sums over θ and the status words in one buffer, so that a step is one
 * read, made while the next step runs. This file alone knows the order:
 *   losses [slots] | divergences [slots with R-Drop] | sums [stretches, 4] | status [16] | scale [16 with f16] | rows of a density [·]
 */
import type { Gpu } from "../gpu/index.ts";
import { allLive, empty, type Live, NdArray, STATUS, vectorTerms } from "../kernels/index.ts";
import type { LossScaling } from "./lossscale.ts";
import type { NllTerm } from "./objective.ts";

/** A report's parts on the host. */
export interface StepParts {
  /** Each micro-batch's NLL term, the rest 0. */
  losses: Float32Array;
  /** The same of R-Drop's divergences; empty without it. */
  divergences: Float32Array;
  /** Of each stretch Σg², ΣΔ², Σg·Δ, 0. */
  sums: Float32Array;
  status: Uint32Array;
  /** What the density's `gradient` gave; none without one. */
  rows: Float32Array;
  /** What a training in f16 says besides. */
  scale: ReturnType<LossScaling["report"]> | undefined;
}

export class StepWords {
  readonly #gpu: Gpu;
  /** For micro-batches. */
  readonly #slots: number;
  /** Of `losses`: twice as many with R-Drop. */
  readonly #losses: number;
  readonly #sums: number;
  readonly #scaling: LossScaling | undefined;
  /** Every loss is looked at: the same words in every step. */
  readonly #live: Live;

  /** `accumulate` micro-batches a step at most. Gives back what it holds with `dispose`. */
  constructor(
    gpu: Gpu,
    { accumulate = 1, rDrop = 0 }: { accumulate?: number | undefined; rDrop?: number | undefined },
    stretches: number,
    scaling: LossScaling | undefined,
  ) {
    this.#gpu = gpu;
    // In whole groups of 64, as `vectorTerms` wants them.
    this.#slots = 64 * Math.ceil(accumulate / 64);
    this.#losses = (rDrop > 0 ? 2 : 1) * this.#slots;
    this.#sums = 4 * stretches;
    this.#scaling = scaling;
    this.#live = allLive(gpu, this.#losses);
    gpu.keep(this.#live.words.buffer);
  }

  /** Room for the losses of a step, all 0. In `engine.step`, as all that follows. */
  losses(): NdArray {
    const losses = empty(this.#gpu, [this.#losses], "f32", "fit.losses");
    this.#gpu.clear(losses);
    return losses;
  }

  /** Puts micro-batch `micro`'s term among them. */
  keep(losses: NdArray, micro: number, { loss, divergence }: NllTerm): void {
    this.#gpu.copy(loss.array, at(losses, micro, 1));
    if (divergence) this.#gpu.copy(divergence.array, at(losses, this.#slots + micro, 1));
  }

  /** Sets the status' word `bad` where a loss is not finite: it must not move θ even where its gradient happens to be finite. */
  judge(losses: NdArray, status: NdArray): void {
    const itself = { theta: losses, grad: losses, mu: losses };
    const all = { offset: 0, length: this.#losses, priorScale: 0 };
    vectorTerms(this.#gpu, itself, [all], status, { live: this.#live });
  }

  /** Copies the parts together and reads them. */
  send({
    losses,
    sums,
    status,
    rows,
  }: {
    losses: NdArray;
    sums: NdArray;
    status: NdArray;
    rows?: NdArray | undefined;
  }): Promise<ArrayBuffer> {
    const gpu = this.#gpu;
    const scale = this.#scaling?.words ?? 0;
    const report = empty(gpu, [this.#common + scale + (rows?.size ?? 0)], "f32", "fit.report");
    gpu.copy(losses, at(report, 0, this.#losses));
    gpu.copy(sums, at(report, this.#losses, this.#sums));
    gpu.copy(status, at(report, this.#losses + this.#sums, 16));
    this.#scaling?.copy(at(report, this.#common, scale));
    if (rows) gpu.copy(rows, at(report, this.#common + scale, rows.size));
    return gpu.read(report);
  }

  /** What `send` sent. */
  parts(words: ArrayBuffer, step: number): StepParts {
    const common = 4 * this.#common;
    return {
      losses: new Float32Array(words, 0, this.#slots),
      divergences: new Float32Array(words, 4 * this.#slots, this.#losses - this.#slots),
      sums: new Float32Array(words, 4 * this.#losses, this.#sums),
      status: new Uint32Array(words, 4 * (this.#losses + this.#sums), 16),
      rows: new Float32Array(words, common + 4 * (this.#scaling?.words ?? 0)),
      scale: this.#scaling?.report(words, common, step),
    };
  }

  dispose(): void {
    this.#gpu.release(this.#live.words.buffer);
  }

  get #common(): number {
    return this.#losses + this.#sums + 16;
  }
}

/** Whether a gradient or a loss was not finite, and the last step whose update ran. */
export function verdict(status: Uint32Array): { bad: boolean; step: number | undefined } {
  return { bad: status[STATUS.bad] !== 0, step: status[STATUS.step] };
}

/** `size` numbers of an array from `offset` on. */
export function at(array: NdArray, offset: number, size: number): NdArray {
  return new NdArray(array.buffer, array.byteOffset + 4 * offset, [size], array.dtype);
}
