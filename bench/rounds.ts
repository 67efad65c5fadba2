/** @file Rounds in turn, and what is made of their times: for our own benches and for those beside other libraries. */
import type { Gpu } from "../src/gpu/index.ts";
import type { BenchCase } from "./case.ts";
import type { BenchRow } from "./runner.ts";

export async function milliseconds(body: () => unknown): Promise<number> {
  const start = performance.now();
  await body();
  return performance.now() - start;
}

/** Runs between two waits, at most. */
const MOST_RUNS = 512;

/** Milliseconds of `runs` runs of a case until the device has done them, and of recording them alone. */
export async function runsOf(gpu: Gpu, body: BenchCase, runs: number): Promise<{ wall: number; host: number }> {
  const start = performance.now();
  for (let i = 0; i < runs; i++) {
    const running = body.run();
    if (running) await running;
  }
  const host = performance.now() - start;
  await gpu.settle();
  return { wall: performance.now() - start, host };
}

/**
 * Warms a case up, and finds how many runs last `ms`: awaiting a device costs what many a kernel does, and training awaits
 * it once for hundreds of them.
 */
export async function calibrated(gpu: Gpu, body: BenchCase, ms: number): Promise<number> {
  await runsOf(gpu, body, 1);
  let { wall } = await runsOf(gpu, body, 1);
  let runs = 1;
  while (wall < ms && runs < MOST_RUNS) {
    runs = Math.min(MOST_RUNS, runs * 4);
    ({ wall } = await runsOf(gpu, body, runs));
  }
  return runs;
}

/**
 * Times bodies that are to be compared: a round runs each once, so that what else the machine does meets all alike. The
 * milliseconds of each body, `rounds` of them, after `warmup` rounds that do not count.
 */
export async function inTurn(
  bodies: readonly (() => unknown)[],
  { rounds, warmup }: { rounds: number; warmup: number },
): Promise<number[][]> {
  const times = bodies.map((): number[] => []);
  for (let round = -warmup; round < rounds; round++) {
    for (const [i, body] of bodies.entries()) {
      const ms = await milliseconds(body);
      if (round >= 0) times[i]?.push(ms);
    }
  }
  return times;
}

/** Of samples in any order; NaN of none. */
export function spreadOf(samples: readonly number[]): { median: number; fastest: number; slowest: number } {
  const sorted = samples.toSorted((a, b) => a - b);
  const at = (index: number) => sorted[index] ?? Number.NaN;
  const middle = (sorted.length - 1) / 2;
  return {
    median: (at(Math.floor(middle)) + at(Math.ceil(middle))) / 2,
    fastest: at(0),
    slowest: at(sorted.length - 1),
  };
}

/** A case's row from its times, in milliseconds. */
export function rowOf(body: BenchCase, samples: readonly number[]): BenchRow {
  const { median, fastest } = spreadOf(samples);
  return {
    name: body.name,
    ...(body.layout ? { layout: body.layout } : {}),
    shape: body.shape,
    dtype: body.dtype ?? "f32",
    medianMs: rounded(median),
    bestMs: rounded(fastest),
    samples: samples.length,
    ...(body.flops ? { gflops: rounded(body.flops / median / 1e6) } : {}),
    ...(body.bytes ? { gbps: rounded(body.bytes / median / 1e6) } : {}),
  };
}

/** Four digits: what a timing is good for. */
export function rounded(x: number): number {
  return Number(x.toPrecision(4));
}
