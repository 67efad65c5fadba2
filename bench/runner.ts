/**
 * @file The one place that knows benny. Takes bench cases, runs each until the GPU is done, and gives rows with the
 * median, the best, the rate, and the share of the ceiling measured in the same run. A case whose GPU work is not
 * awaited would time nothing, so the runner itself waits (`settle`) inside the timed function.
 */
import benny from "benny";
import type { Gpu } from "../src/gpu/index.ts";
import type { BenchCase } from "./case.ts";

export interface BenchRow {
  name: string;
  layout?: string;
  shape: Record<string, number>;
  dtype: string;
  medianMs: number;
  bestMs: number;
  samples: number;
  gflops?: number;
  gbps?: number;
  /** Of the multiply-add ceiling for rows with GFLOP/s, of the copy's for rows with GB/s. */
  ceilingShare?: number;
}

export interface Ceilings {
  gflops: number;
  gbps: number;
}

/** Times one case: two warm-up runs, then at least `minSamples` timed ones. */
export async function measure(gpu: Gpu, body: BenchCase, { minSamples = 9, maxTime = 2 } = {}): Promise<BenchRow> {
  const once = waited(gpu, body);
  await once();
  await once();
  const log = console.log;
  console.log = () => {}; // benny announces every suite on stdout, which belongs to the results
  const summary = await benny.suite(body.name, benny.add(body.name, once, { minSamples, maxTime })).finally(() => {
    console.log = log;
  });
  const details = summary.results[0]?.details;
  if (!details) throw new Error(`${body.name}: benny gave no result`);
  await body.dispose?.();
  return row(body, details.sampleResults);
}

/**
 * Times cases that are to be compared: a round runs each once, so that what else the machine does meets all alike. Two
 * rounds of warm-up, then `rounds`. (benny runs one case to its end before the next.)
 */
export async function measureInTurn(gpu: Gpu, bodies: readonly BenchCase[], rounds = 9): Promise<BenchRow[]> {
  const seconds = bodies.map((): number[] => []);
  for (let round = -2; round < rounds; round++) {
    for (const [i, body] of bodies.entries()) {
      const start = performance.now();
      await waited(gpu, body)();
      if (round >= 0) seconds[i]?.push((performance.now() - start) / 1e3);
    }
  }
  for (const body of bodies) await body.dispose?.();
  return bodies.map((body, i) => row(body, seconds[i] ?? []));
}

function waited(gpu: Gpu, body: BenchCase): () => Promise<void> {
  return async () => {
    await body.run();
    await gpu.settle();
  };
}

function row(body: BenchCase, samples: readonly number[]): BenchRow {
  const sorted = [...samples].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const seconds = sorted.length % 2 ? at(sorted, middle) : (at(sorted, middle - 1) + at(sorted, middle)) / 2;
  return {
    name: body.name,
    ...(body.layout ? { layout: body.layout } : {}),
    shape: body.shape,
    dtype: body.dtype ?? "f32",
    medianMs: round(seconds * 1e3),
    bestMs: round(at(sorted, 0) * 1e3),
    samples: sorted.length,
    ...(body.flops ? { gflops: round(body.flops / seconds / 1e9) } : {}),
    ...(body.bytes ? { gbps: round(body.bytes / seconds / 1e9) } : {}),
  };
}

export function withShare(row: BenchRow, ceilings: Ceilings): BenchRow {
  const share =
    row.gflops !== undefined
      ? row.gflops / ceilings.gflops
      : row.gbps !== undefined
        ? row.gbps / ceilings.gbps
        : undefined;
  return share === undefined ? row : { ...row, ceilingShare: round(share) };
}

function at(values: readonly number[], index: number): number {
  return values[index] ?? Number.NaN;
}

function round(x: number): number {
  return Number(x.toPrecision(4));
}
