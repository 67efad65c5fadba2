/** @file Millions of numbers for a bench, quickly: making each by itself would take longer than what is measured. */

/** A prime, so that no two rows of a matrix begin at the same place of the block. */
const BLOCK = 65_521;

/** `value(0)`, `value(1)` … up to the length of a block, again and again: [n]. */
export function tiled(n: number, value: (i: number) => number): Float32Array {
  const block = Float32Array.from({ length: Math.min(n, BLOCK) }, (_, i) => value(i));
  const numbers = new Float32Array(n);
  for (let at = 0; at < n; at += BLOCK) numbers.set(block.subarray(0, Math.min(BLOCK, n - at)), at);
  return numbers;
}
