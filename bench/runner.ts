/**
 * @file The one place that knows benny. Takes bench cases, runs each until the GPU is done, and gives rows with the
 * median, the best, the rate, and the share of the ceiling measured in the same run. A case whose GPU work is not
 * awaited would time nothing, so the runner itself waits (`settle`) inside the timed function.
 */
import benny from "benny";
import type { Ceilings, Gpu } from "../src/gpu/index.ts";
import type { BenchCase, MemoryFigures } from "./case.ts";
import { inTurn, rounded, rowOf } from "./rounds.ts";

export interface BenchRow extends Partial<MemoryFigures> {
  name: string;
  layout?: string;
  shape: Record<string, number>;
  dtype: string;
  medianMs: number;
  bestMs: number;
  samples: number;
  gflops?: number;
  gbps?: number;
  /** Of the multiply-add ceiling of its dtype for rows with GFLOP/s, of the copy's for rows with GB/s. */
  ceilingShare?: number;
  /** `peakBytes` over `predictedBytes` and over `allowedBytes`. */
  ofPredicted?: number;
  ofAllowed?: number;
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
  return rowOf(
    body,
    details.sampleResults.map((seconds) => 1e3 * seconds),
  );
}

/**
 * Times cases that are to be compared, in turn. (benny runs one case to its end before the next.) Cases that tell their
 * memory do so first, which warms them up.
 */
export async function measureInTurn(gpu: Gpu, bodies: readonly BenchCase[]): Promise<BenchRow[]> {
  const memory: (MemoryFigures | undefined)[] = [];
  for (const body of bodies) memory.push(await body.memory?.());
  const times = await inTurn(
    bodies.map((body) => waited(gpu, body)),
    { rounds: bodies[0]?.rounds ?? 9, warmup: memory[0] ? 0 : 2 },
  );
  for (const body of bodies) await body.dispose?.();
  return bodies.map((body, i) => withMemory(rowOf(body, times[i] ?? []), memory[i]));
}

function withMemory(row: BenchRow, memory: MemoryFigures | undefined): BenchRow {
  if (!memory) return row;
  const { peakBytes, predictedBytes, allowedBytes } = memory;
  return {
    ...row,
    ...memory,
    ofPredicted: rounded(peakBytes / predictedBytes),
    ofAllowed: rounded(peakBytes / allowedBytes),
  };
}

function waited(gpu: Gpu, body: BenchCase): () => Promise<void> {
  return async () => {
    await body.run();
    await gpu.settle();
  };
}

/** `halfGflops`: of a matrix unit, for rows in f16. */
export function withShare(row: BenchRow, ceilings: Ceilings & { halfGflops?: number | undefined }): BenchRow {
  const multiplyAdd = row.dtype === "f16" ? (ceilings.halfGflops ?? Number.NaN) : ceilings.gflops;
  const share =
    row.gflops !== undefined ? row.gflops / multiplyAdd : row.gbps !== undefined ? row.gbps / ceilings.gbps : undefined;
  return share === undefined ? row : { ...row, ceilingShare: rounded(share) };
}
