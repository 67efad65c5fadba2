/**
 * @file Passes over vectors too long for one binding. A buffer may hold 4 GiB where a binding stops at 128 MiB
 * (lavapipe), so a stretch is walked in windows below that limit, each starting at a multiple of 256 bytes. And the
 * shape of the tree by which reduce.wgsl and terms.wgsl add up.
 */
import { type Gpu, type Grid, grid } from "../gpu/index.ts";
import { empty, NdArray } from "./array.ts";

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

/** Windows in order of their offset, of which those that touch are one. */
export function joinWindows(pieces: Iterable<Window>): Window[] {
  const found: { offset: number; length: number }[] = [];
  for (const { offset, length } of pieces) {
    const last = found.at(-1);
    if (last && last.offset + last.length === offset) last.length += length;
    else found.push({ offset, length });
  }
  return found;
}

/** The window of a vector as an array of its own: the same memory. */
export function slice(vector: NdArray, { offset, length }: Window): NdArray {
  return new NdArray(vector.buffer, vector.byteOffset + offset * 4, [length], vector.dtype);
}

/** As in shaders/reduce.wgsl and shaders/terms.wgsl: vec4 per thread; partial sums per thread; what one workgroup finishes. */
const PER = 32;
const FOLD = 64;
const FINISH = 4096;

/** The two dispatches that a sum of its own gives to the tree: each reads what it sums and writes partial sums. */
export interface Passes<W extends Window = Window> {
  /** Partial sums of a window, written from row `first` on. */
  partials(window: W, first: number, sums: NdArray, grid: Grid): void;
  /** `count` partial sums to fewer. */
  fold(count: number, sums: NdArray, fewer: NdArray, grid: Grid): void;
}

/**
 * Partial sums of the windows in order, folded until one workgroup can finish them: [count, width], to be released. The
 * tree depends on the windows' lengths alone.
 */
export function partialSums<W extends Window>(
  gpu: Gpu,
  op: string,
  width: number,
  pieces: readonly W[],
  passes: Passes<W>,
): NdArray {
  let count = pieces.reduce((n, { length }) => n + partials(length), 0);
  let sums = empty(gpu, [count, width], "f32", op);
  let first = 0;
  for (const piece of pieces) {
    passes.partials(piece, first, sums, grid(partials(piece.length) / 64));
    first += partials(piece.length);
  }
  while (count > FINISH) {
    const fewer = Math.ceil(count / FOLD);
    const folded = empty(gpu, [fewer, width], "f32", op);
    passes.fold(count, sums, folded, grid(Math.ceil(fewer / 64)));
    gpu.release(sums.buffer);
    sums = folded;
    count = fewer;
  }
  return sums;
}

/** Partial sums that the first pass over `length` elements leaves: one a thread, whole workgroups. */
function partials(length: number): number {
  return 64 * Math.ceil(Math.ceil(length / 4) / (64 * PER));
}
