/**
 * @file Counter-based random numbers: Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror, Shaw, "Parallel random
 * numbers: as easy as 1, 2, 3", SC 2011). A number is a pure function of (key, counter), so a dropout mask can be made
 * again in the backward pass, a resumed run continues bit for bit, and any number in a report can be produced again.
 * `shaders/dropout.wgsl` computes the same function on the GPU.
 */

const ROTATIONS = [13, 15, 26, 6, 17, 29, 16, 24] as const;
const PARITY = 0x1bd11bda;

/** Two 32-bit words from a 64-bit key and a 64-bit counter. */
export function threefry2x32(k0: number, k1: number, c0: number, c1: number): [number, number] {
  const keys = [k0 >>> 0, k1 >>> 0, (k0 ^ k1 ^ PARITY) >>> 0];
  let x = (c0 + k0) >>> 0;
  let y = (c1 + k1) >>> 0;
  for (let round = 0; round < 20; round++) {
    const r = ROTATIONS[round % 8] as number;
    x = (x + y) >>> 0;
    y = ((y << r) | (y >>> (32 - r))) >>> 0;
    y = (y ^ x) >>> 0;
    if (round % 4 === 3) {
      const s = (round + 1) / 4;
      x = (x + (keys[s % 3] as number)) >>> 0;
      y = (y + (keys[(s + 1) % 3] as number) + s) >>> 0;
    }
  }
  return [x, y];
}

/** A 64-bit key from a seed, the name of a purpose, and any indices (step, micro-batch, replica, …). */
export function streamKey(seed: number, purpose: string, ...indices: number[]): [number, number] {
  if (!Number.isSafeInteger(seed) || seed < 0) throw new RangeError(`seed: ${seed} is not a whole number ≥ 0`);
  let key: [number, number] = [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0];
  for (const byte of new TextEncoder().encode(purpose)) key = threefry2x32(key[0], key[1], byte, 0x70757270);
  for (const i of indices) key = threefry2x32(key[0], key[1], i >>> 0, Math.floor(i / 2 ** 32) >>> 0);
  return key;
}

/** A stream of numbers that depends only on its seed, its purpose and its indices. */
export class Stream {
  readonly #key: [number, number];
  #counter = 0;
  #spare: number | undefined;

  constructor(seed: number, purpose: string, ...indices: number[]) {
    this.#key = streamKey(seed, purpose, ...indices);
  }

  /** Uniform on [0, 1) with 53 random bits. */
  uniform(): number {
    const c = this.#counter++;
    const [a, b] = threefry2x32(this.#key[0], this.#key[1], c >>> 0, Math.floor(c / 2 ** 32));
    return ((a >>> 5) * 67108864 + (b >>> 6)) / 9007199254740992;
  }

  /** Standard normal (Box–Muller, both halves used). */
  normal(): number {
    if (this.#spare !== undefined) {
      const z = this.#spare;
      this.#spare = undefined;
      return z;
    }
    const r = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.#spare = r * Math.sin(angle);
    return r * Math.cos(angle);
  }

  /** A whole number in [0, n), without bias worth the name (53 bits). */
  integer(n: number): number {
    return Math.floor(this.uniform() * n);
  }

  /** A random permutation of 0 … n−1 (Fisher–Yates). */
  shuffle(n: number): Uint32Array {
    const order = Uint32Array.from({ length: n }, (_, i) => i);
    for (let i = n - 1; i > 0; i--) {
      const j = this.integer(i + 1);
      const t = order[i] as number;
      order[i] = order[j] as number;
      order[j] = t;
    }
    return order;
  }
}
