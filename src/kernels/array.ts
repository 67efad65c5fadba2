/**
 * @file What a kernel takes and gives: an n-dimensional array on the device, that is, a range of a buffer with a shape.
 * Rows are contiguous, the last index runs fastest. No gradients here; those are the next layer's.
 */
import type { Gpu, PooledBuffer, View } from "../gpu/index.ts";

export type DType = "f32" | "u32";

export class NdArray implements View {
  readonly buffer: PooledBuffer;
  /** Multiple of 256 when the array is bound by a kernel. */
  readonly byteOffset: number;
  readonly shape: readonly number[];
  readonly dtype: DType;
  /** Number of elements. */
  readonly size: number;

  constructor(buffer: PooledBuffer, byteOffset: number, shape: readonly number[], dtype: DType = "f32") {
    this.buffer = buffer;
    this.byteOffset = byteOffset;
    this.shape = shape;
    this.dtype = dtype;
    this.size = sizeOf(shape);
  }

  get byteLength(): number {
    return this.size * 4;
  }

  /** The same elements under another shape of the same size. */
  reshape(shape: readonly number[]): NdArray {
    if (sizeOf(shape) !== this.size) throw new RangeError(`reshape: [${this.shape}] has not the size of [${shape}]`);
    return new NdArray(this.buffer, this.byteOffset, shape, this.dtype);
  }
}

/** Where a parameter's gradient goes: written, or added when an earlier use has written already. */
export interface Into {
  readonly array: NdArray;
  readonly accumulate: boolean;
  /** Tables: the rows that are not 0 and that the contribution does not name; absent: any row may be anything. */
  readonly stale?: readonly number[] | undefined;
}

export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

/** A fresh array with undefined contents. */
export function empty(gpu: Gpu, shape: readonly number[], dtype: DType = "f32", op = "empty"): NdArray {
  return new NdArray(gpu.allocate(sizeOf(shape) * 4, op), 0, shape, dtype);
}

/** A fresh array with the host's numbers. */
export function fromHost(
  gpu: Gpu,
  data: Float32Array | Uint32Array | readonly number[],
  shape: readonly number[] = [data.length],
  dtype: DType = data instanceof Uint32Array ? "u32" : "f32",
): NdArray {
  if (data.length !== sizeOf(shape)) throw new RangeError(`fromHost: ${data.length} numbers for shape [${shape}]`);
  const array = new NdArray(gpu.allocate(4 * data.length, "fromHost", { upload: true }), 0, shape, dtype);
  const typed =
    dtype === "u32" ? Uint32Array.from(data) : data instanceof Float32Array ? data : Float32Array.from(data);
  gpu.write(array, typed);
  return array;
}

/** The array's numbers on the host, once all that was recorded has run. */
export async function readArray(gpu: Gpu, array: NdArray): Promise<Float32Array> {
  return new Float32Array(await gpu.read(array));
}

/** As `readArray`, for whole numbers. */
export async function readIndices(gpu: Gpu, array: NdArray): Promise<Uint32Array> {
  return new Uint32Array(await gpu.read(array));
}

/** The target of a parameter's gradient: `into` if given (its shape checked), else a fresh array to be written. */
export function target(gpu: Gpu, op: string, shape: readonly number[], into?: Into): Into {
  if (!into) return { array: empty(gpu, shape, "f32", op), accumulate: false };
  if (into.array.size !== sizeOf(shape)) {
    throw new RangeError(`${op}: gradient has shape [${shape}], its target [${into.array.shape}]`);
  }
  return into;
}

/** What a word that stands for nothing becomes; a parameter of shaders, since WGSL refuses a constant NaN. */
export const NAN_BITS = 0x7fc00000;

/** Throws RangeError unless the array holds whole numbers: as such, the bits of a float are numbers in the billions. */
export function expectIndex(op: string, argument: string, array: NdArray): void {
  if (array.dtype !== "u32") throw new RangeError(`${op}: ${argument} holds ${array.dtype}, expected u32`);
}

/**
 * Checks a shape against letters and numbers, `expectShape("layerNorm", "x", x, "N C", dims)`: a letter that `dims`
 * knows must agree, one that it does not know is written into it. Throws RangeError that names op, argument, both shapes.
 */
export function expectShape(
  op: string,
  argument: string,
  array: { readonly shape: readonly number[] },
  spec: string,
  dims: Record<string, number> = {},
): void {
  const letters = spec.split(" ");
  const ok =
    letters.length === array.shape.length &&
    letters.every((letter, i) => {
      const actual = array.shape[i] as number;
      const number = Number(letter);
      if (Number.isInteger(number)) return number === actual;
      const known = dims[letter];
      if (known === undefined) dims[letter] = actual;
      return known === undefined || known === actual;
    });
  if (ok) return;
  const expected = letters.map((l) => (dims[l] === undefined ? l : `${l}=${dims[l]}`)).join(" ");
  throw new RangeError(`${op}: ${argument} has shape [${array.shape.join(" ")}], expected [${expected}]`);
}
