/**
 * @file Passes over vectors too long for one binding. A buffer may hold 4 GiB where a binding stops at 128 MiB
 * (lavapipe), so a stretch is walked in windows below that limit, each starting at a multiple of 256 bytes. And the
 * shape of the tree by which reduce.wgsl and terms.wgsl add up.
 */
import type { Gpu } from "../gpu/index.ts";
import { NdArray } from "./array.ts";

/** A stretch of a vector, in elements (4 bytes each). */
export interface Window {
  readonly offset: number;
  readonly length: number;
}

/** Cuts [offset, offset + length) into windows of at most `limit` bytes; the default is what the adapter binds. */
export function windows(
  gpu: Gpu,
  offset: number,
  length: number,
  limit = gpu.device.limits.maxStorageBufferBindingSize,
): Window[] {
  const most = Math.floor(limit / 256) * 64;
  if (most < 64) throw new RangeError(`windows: a limit of ${limit} bytes is below one window of 256`);
  const found: Window[] = [];
  for (let at = 0; at < length; at += most) found.push({ offset: offset + at, length: Math.min(most, length - at) });
  return found;
}

/** The window of a vector as an array of its own: the same memory. */
export function slice(vector: NdArray, { offset, length }: Window): NdArray {
  return new NdArray(vector.buffer, vector.byteOffset + offset * 4, [length], vector.dtype);
}

/** As in shaders/reduce.wgsl and shaders/terms.wgsl: vec4 per thread; partial sums per thread; what one workgroup finishes. */
export const PER = 32;
export const FOLD = 64;
export const FINISH = 4096;

/** Partial sums that the first pass over `length` elements leaves: one a thread, whole workgroups. */
export function partials(length: number): number {
  return 64 * Math.ceil(Math.ceil(length / 4) / (64 * PER));
}
