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
  const once = async () => {
    await body.run();
    await gpu.settle();
  };
  await once();
  await once();
  const summary = await benny.suite(body.name, benny.add(body.name, once, { minSamples, maxTime }));
  const details = summary.results[0]?.details;
  if (!details) throw new Error(`${body.name}: benny gave no result`);
  body.dispose?.();
  const seconds = details.median;
  return {
    name: body.name,
    ...(body.layout ? { layout: body.layout } : {}),
    shape: body.shape,
    dtype: body.dtype ?? "f32",
    medianMs: round(seconds * 1e3),
    bestMs: round(details.min * 1e3),
    samples: details.sampleResults.length,
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

function round(x: number): number {
  return Number(x.toPrecision(4));
}
