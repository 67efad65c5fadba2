/**
 * @file The ceilings of this adapter, measured in the same run as everything else: multiply-adds and a copy. The copy is
 * of 64 MiB: a kernel whose arrays fit a cache may exceed it.
 */
import { type Gpu, grid } from "../src/gpu/index.ts";
import { fill } from "../src/kernels/elementwise.ts";
import { empty } from "../src/kernels/index.ts";
import type { BenchCase } from "./case.ts";

const ROUNDS = 2048;
/** vec4 multiply-adds a thread does in a round. */
const FMAS = 12;
const GROUPS = 512;
const COPY_BYTES = 64 * 2 ** 20;

/** GFLOP/s of f32 multiply-adds in registers. */
export function multiplyAdd(gpu: Gpu): BenchCase {
  const source = empty(gpu, [1024]);
  const destination = empty(gpu, [GROUPS * 64 * 4]);
  fill(gpu, source, 0.5);
  return {
    name: "ceiling.multiplyAdd",
    shape: { threads: GROUPS * 64, rounds: ROUNDS },
    flops: GROUPS * 64 * ROUNDS * FMAS * 4 * 2,
    run: () =>
      gpu.dispatch({
        op: "ceiling.multiplyAdd",
        shader: "ceiling",
        entry: "multiply_add",
        bindings: [source, destination],
        params: [ROUNDS, 0],
        grid: [GROUPS, 1, 1],
      }),
    dispose: () => {
      for (const array of [source, destination]) gpu.release(array.buffer);
    },
  };
}

/** GB/s, read and written bytes together, of a copy by a shader: both ways to lay it out, of which the better counts. */
export function copies(gpu: Gpu): BenchCase[] {
  return (["copy", "copy_coalesced"] as const).map((entry) => copy(gpu, entry));
}

function copy(gpu: Gpu, entry: "copy" | "copy_coalesced"): BenchCase {
  const count = COPY_BYTES / 16;
  const [source, destination] = [empty(gpu, [COPY_BYTES / 4]), empty(gpu, [COPY_BYTES / 4])];
  fill(gpu, source, 1);
  return {
    name: "ceiling.copy",
    shape: { bytes: COPY_BYTES },
    bytes: 2 * COPY_BYTES,
    run: () =>
      gpu.dispatch({
        op: `ceiling.${entry}`,
        shader: "ceiling",
        entry,
        bindings: [source, destination],
        params: [0, count],
        grid: grid(count / 256),
      }),
    dispose: () => {
      for (const array of [source, destination]) gpu.release(array.buffer);
    },
  };
}
