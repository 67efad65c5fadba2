/**
 * @file Which parts of the parameter vector a step has to visit. A word that no batch has held has no gradient, no
 * moments and no distance from its prior mean: its row of the embedding table adds exact zeros to every sum, and an
 * update leaves it as it is. Half of a small BERT are such rows, so the passes over θ skip them, which changes no bit.
 * A chunk is 256 numbers, what a workgroup loads at once; a block is the 8,192 that it covers, its 32 chunks the bits of
 * one word.
 */
import type { Gpu } from "../gpu/index.ts";
import { fromHost, type NdArray } from "./array.ts";
import type { Window } from "./windows.ts";

/** 64 threads, a vec4 each. */
const CHUNK = 256;
/** 32 of them: PER in shaders/terms.wgsl and shaders/update.wgsl. */
export const BLOCK = 32 * CHUNK;

/** The chunks to visit, as a step's dispatches see them. */
export interface Live {
  /** u32 [blocks]: bit i of word b stands for the numbers from 8192·b + 256·i on. A cleared bit is a promise: g = 0, θ = μ, moments 0. */
  readonly words: NdArray;
  /** The share of chunks that are live, for the profile's bytes. */
  readonly share: number;
}

/** The set, on the host. It only grows. */
export class LiveChunks {
  readonly #words: Uint32Array;
  readonly #chunks: number;
  #count = 0;

  /** None live, of a vector of `length` numbers. */
  constructor(length: number) {
    this.#words = new Uint32Array(Math.ceil(length / BLOCK));
    this.#chunks = Math.ceil(length / CHUNK);
  }

  /** The numbers from `from` to below `to` are to be visited from now on. */
  add(from: number, to: number): void {
    for (let chunk = Math.floor(from / CHUNK); chunk * CHUNK < to; chunk++) {
      const [word, bit] = [chunk >>> 5, 1 << (chunk & 31)];
      const before = this.#words[word] ?? 0;
      if ((before & bit) !== 0) continue;
      this.#words[word] = before | bit;
      this.#count++;
    }
  }

  /** Of the vector's chunks. */
  get share(): number {
    return this.#count / this.#chunks;
  }

  upload(gpu: Gpu): Live {
    return { words: fromHost(gpu, this.#words), share: this.share };
  }
}

/** All of a vector, for a caller that makes no promise. */
export function allLive(gpu: Gpu, length: number): Live {
  return { words: fromHost(gpu, new Uint32Array(Math.ceil(length / BLOCK)).fill(0xffffffff)), share: 1 };
}

/** A window that starts where a block does: of its `length` numbers the first `begin` are not meant. */
export interface BlockWindow extends Window {
  readonly begin: number;
}

/** Cuts [offset, offset + length) into windows of whole blocks, of at most `limit` bytes; default: what the adapter binds. */
export function blockWindows(
  gpu: Gpu,
  offset: number,
  length: number,
  limit = gpu.device.limits.maxStorageBufferBindingSize,
): BlockWindow[] {
  const most = Math.floor(limit / (4 * BLOCK)) * BLOCK;
  if (most < BLOCK) throw new RangeError(`windows: a limit of ${limit} bytes is below one block of ${4 * BLOCK}`);
  const found: BlockWindow[] = [];
  const end = offset + length;
  for (let at = Math.floor(offset / BLOCK) * BLOCK; at < end; at += most) {
    found.push({ offset: at, length: Math.min(most, end - at), begin: Math.max(0, offset - at) });
  }
  return found;
}
