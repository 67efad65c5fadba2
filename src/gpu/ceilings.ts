/**
 * @file The ceilings of this adapter: multiply-adds, and a copy of 64 MiB (a kernel whose arrays fit a cache may exceed
 * it). Measured in the same process as whatever is given a share of them, by the benches and by the profile.
 */
import { grid, type View } from "./dispatch.ts";
import type { Gpu } from "./gpu.ts";

const ROUNDS = 2048;
/** vec4 multiply-adds a thread does in a round. */
const FMAS = 12;
const GROUPS = 512;
const COPY_BYTES = 64 * 2 ** 20;

/** What an adapter does at best. */
export interface Ceilings {
  /** f32 multiply-adds in registers, each two operations. */
  gflops: number;
  /** Bytes read and written together. */
  gbps: number;
}

/** One way to measure a ceiling. `run` records it once. */
export interface CeilingRun {
  name: string;
  shape: Record<string, number>;
  /** f16: products of halfs that a matrix unit sums in f32. */
  dtype?: "f16";
  flops?: number;
  bytes?: number;
  run(): void;
  dispose(): void;
}

/** Multiply-adds of f32 in registers, by `groups` workgroups of 64 threads. */
export function multiplyAdd(gpu: Gpu, { groups = GROUPS, rounds = ROUNDS } = {}): CeilingRun {
  const bindings = [1024, groups * 64 * 4].map((count) => array(gpu, 4 * count));
  // Ordinary numbers: on a CPU adapter, subnormal ones and NaN have a speed of their own.
  gpu.write(bindings[0] as View, new Float32Array(1024).fill(0.5));
  const flops = groups * 64 * rounds * FMAS * 4 * 2;
  return {
    name: "ceiling.multiplyAdd",
    shape: { threads: groups * 64, rounds },
    flops,
    run: () =>
      gpu.dispatch({
        op: "ceiling.multiplyAdd",
        shader: "ceiling",
        entry: "multiply_add",
        bindings,
        params: [rounds, 0],
        grid: [groups, 1, 1],
        work: { flops },
      }),
    dispose: () => release(gpu, bindings),
  };
}

/** Multiply-adds of the adapter's matrix unit, by `groups` workgroups of four subgroups; none where it has no unit. */
export function matrixMultiplyAdd(gpu: Gpu): CeilingRun[] {
  const { matrixUnit, subgroupSize: SG, kind } = gpu.adapter;
  if (!matrixUnit || SG === 0) return [];
  const { M: FM, N: FN, K: FK } = matrixUnit;
  // A CPU takes as long for a thousandth of it.
  const [groups, rounds] = kind === "hardware" ? [2112, 2048] : [16, 256];
  const bindings = [array(gpu, 4 * groups * 4 * 4 * FM * FN)];
  const flops = groups * 4 * rounds * 4 * 2 * FM * FN * FK;
  const name = "ceiling.matrixMultiplyAdd";
  return [
    {
      name,
      shape: { groups, rounds },
      dtype: "f16",
      flops,
      run: () =>
        gpu.dispatch({
          op: name,
          shader: "ceiling_matrix",
          entry: "matrix_multiply_add",
          tile: { SG, FM, FN, FK },
          bindings,
          params: [rounds],
          grid: [groups, 1, 1],
          work: { flops },
        }),
      dispose: () => release(gpu, bindings),
    },
  ];
}

/** A copy by a shader: both ways to lay it out, of which the better counts. */
export function copies(gpu: Gpu, bytes = COPY_BYTES): CeilingRun[] {
  return (["copy", "copy_coalesced"] as const).map((entry) => {
    const bindings = [array(gpu, bytes), array(gpu, bytes)];
    // Else the driver may clear it within the copy that is timed.
    for (const view of bindings) gpu.clear(view);
    const count = bytes / 16;
    return {
      name: "ceiling.copy",
      shape: { bytes },
      bytes: 2 * bytes,
      run: () =>
        gpu.dispatch({
          op: `ceiling.${entry}`,
          shader: "ceiling",
          entry,
          bindings,
          params: [0, count],
          grid: grid(count / 256),
        }),
      dispose: () => release(gpu, bindings),
    };
  });
}

function array(gpu: Gpu, byteLength: number): View {
  return { buffer: gpu.allocate(byteLength, "ceiling"), byteOffset: 0, byteLength };
}

function release(gpu: Gpu, views: readonly View[]): void {
  for (const { buffer } of views) gpu.release(buffer);
}
