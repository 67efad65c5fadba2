/**
 * @file A dispatch, in data: which shader runs on which ranges of which buffers, with which words and how many
 * workgroups; and what follows from that alone (what is bound, which pipeline it is). gpu.ts records it.
 */
import { DeviceError } from "../errors.ts";
import type { PooledBuffer } from "./pool.ts";
import type { Tile } from "./shaders.ts";

/** A range of a buffer; `byteOffset` is a multiple of 256 (WebGPU's storage alignment) when it is bound. */
export interface View {
  readonly buffer: PooledBuffer;
  readonly byteOffset: number;
  readonly byteLength: number;
  /** Arrays have one; only DEBUG=3 looks at it. */
  readonly shape?: readonly number[];
}

export type Grid = readonly [number, number, number];

export interface Dispatch {
  /** What errors call it, e.g. "layerNorm.forward". */
  op: string;
  /** File in shaders/, without ".wgsl". */
  shader: string;
  entry: string;
  /** WGSL `override` values. */
  constants?: Readonly<Record<string, number>>;
  /** Replacements for the shader's tile lines. */
  tile?: Tile;
  /** In @binding order of @group(0). */
  bindings: readonly View[];
  /** At most 16 words for `var<immediate>`: u32 values, or `f32(x)`. */
  params: readonly number[];
  grid: Grid;
  /** For the profile: floating-point operations, and bytes where they are not those of its bindings, each once. */
  work?: { flops?: number; bytes?: number };
}

const BITS = new DataView(new ArrayBuffer(4));

/** The bits of a float32 as a u32 word for `params`. */
export function f32(x: number): number {
  BITS.setFloat32(0, x);
  return BITS.getUint32(0);
}

/** `n` workgroups over x and y, each dimension within WebGPU's 65,535. Shaders compute w = x + y · num_workgroups.x. */
export function grid(n: number): Grid {
  const limit = 65535;
  if (n <= limit) return [Math.max(1, n), 1, 1];
  const y = Math.ceil(n / limit);
  return [Math.ceil(n / y), y, 1];
}

/**
 * A view at the start of a buffer binds all of it, so that batches of different sizes share their bind groups; a slice
 * binds itself, up to a multiple of 16 bytes, so that a vec4 sees its last element.
 */
export function bindingSize(view: View, limit: number): number {
  const { buffer, byteOffset, byteLength } = view;
  if (byteOffset === 0 && buffer.bytes <= limit) return buffer.bytes;
  return Math.min(Math.max(16, Math.ceil(byteLength / 16) * 16), buffer.bytes - byteOffset);
}

/** Bytes of the view that its buffer has. */
export function roomOf({ buffer, byteOffset, byteLength }: View): number {
  return Math.min(byteLength, buffer.bytes - byteOffset);
}

export function expectLive(view: View, op: string, what: string): void {
  if (!view.buffer.live)
    throw new DeviceError(`${op}: ${what} was released before it was used (buffer of ${view.buffer.bytes} bytes).`, op);
}

export function pipelineKey(d: Dispatch): string {
  let key = `${d.shader}:${d.entry}`;
  for (const name in d.constants) key += `;${name}=${d.constants[name]}`;
  for (const name in d.tile) key += `;${name}:${d.tile[name]}`;
  return key;
}
