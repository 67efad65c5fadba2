/**
 * @file A value of the computation: an array on the device that may require a gradient. Leaves either stand for a slice
 * of θ (their gradient goes into the gradient vector) or were made by `engine.tensor(data, shape, { grad: true })`
 * (their gradient is kept beside them).
 */
import { type Into, type NdArray, readArray } from "../kernels/array.ts";
import type { Engine } from "./engine.ts";

/** Where a leaf's gradient lives between backward passes. */
export interface GradientSlot {
  /**
   * The target of the next contribution: overwrite the first time, then accumulate. `rows`: it is 0 but in these rows of
   * a table.
   */
  next(rows?: readonly number[]): Into;
}

export class Tensor {
  readonly engine: Engine;
  readonly array: NdArray;
  /** True when a gradient flows to or through this value. */
  readonly requiresGrad: boolean;
  readonly slot: GradientSlot | undefined;

  constructor(engine: Engine, array: NdArray, requiresGrad = false, slot?: GradientSlot) {
    this.engine = engine;
    this.array = array;
    this.requiresGrad = requiresGrad;
    this.slot = slot;
  }

  get shape(): readonly number[] {
    return this.array.shape;
  }

  get size(): number {
    return this.array.size;
  }

  /** The numbers, row by row, once all recorded work has run. Throws DeviceError if any of it failed. */
  read(): Promise<Float32Array> {
    return readArray(this.engine.gpu, this.array);
  }

  /** The only number of a tensor of size 1. */
  async item(): Promise<number> {
    if (this.size !== 1) throw new RangeError(`item: a tensor of shape [${this.shape}] has ${this.size} numbers`);
    return (await this.read())[0] as number;
  }

  /** Lets the value outlive its step; it must be disposed of explicitly. */
  keep(): this {
    this.engine.gpu.keep(this.array.buffer);
    return this;
  }

  /** Returns the memory to the pool. */
  dispose(): void {
    this.engine.gpu.release(this.array.buffer);
  }
}
