/**
 * @file The one place that knows benny. Takes bench cases, runs each until the GPU is done, and gives rows with the
 * median, the best, the rate, and the share of the ceiling measured in the same run. A case whose GPU work is not
 * awaited would time nothing, so the runner itself waits (`settle`) inside the timed function, once for as many runs of a
 * small kernel as last ten milliseconds.
 */
import benny from "benny";
import type { Ceilings, Gpu } from "../src/gpu/index.ts";
import type { BenchCase, MemoryFigures } from "./case.ts";
import { calibrated, inTurn, rounded, rowOf, runsOf } from "./rounds.ts";

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

/** What a sample lasts at least, of as many runs as that takes. */
const SAMPLE_MS = 10;

/** Times one case: a warm-up, then at least `minSamples` samples. */
export async function measure(gpu: Gpu, body: BenchCase, { minSamples = 9, maxTime = 2 } = {}): Promise<BenchRow> {
  const runs = await calibrated(gpu, body, SAMPLE_MS);
  const once = () => runsOf(gpu, body, runs);
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
    details.sampleResults.map((seconds) => (1e3 * seconds) / runs),
  );
}

/**
 * Times cases that are to be compared, in turn. (benny runs one case to its end before the next.) Cases that tell their
 * memory do so first, which warms them up.
 */
export async function measureInTurn(gpu: Gpu, bodies: readonly BenchCase[]): Promise<BenchRow[]> {
  const memory: (MemoryFigures | undefined)[] = [];
  for (const body of bodies) memory.push(await body.memory?.());
  const runs: number[] = [];
  for (const [i, body] of bodies.entries()) runs.push(memory[i] ? 1 : await calibrated(gpu, body, SAMPLE_MS));
  const times = await inTurn(
    bodies.map((body, i) => () => runsOf(gpu, body, runs[i] ?? 1)),
    { rounds: bodies[0]?.rounds ?? 9, warmup: 0 },
  );
  for (const body of bodies) await body.dispose?.();
  return bodies.map((body, i) => {
    const each = (times[i] ?? []).map((ms) => ms / (runs[i] ?? 1));
    return withMemory(rowOf(body, each), memory[i]);
  });
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

/** `halfGflops`: of a matrix unit, for rows in f16. */
export function withShare(row: BenchRow, ceilings: Ceilings & { halfGflops?: number | undefined }): BenchRow {
  const multiplyAdd = row.dtype === "f16" ? (ceilings.halfGflops ?? Number.NaN) : ceilings.gflops;
  const share =
    row.gflops !== undefined ? row.gflops / multiplyAdd : row.gbps !== undefined ? row.gbps / ceilings.gbps : undefined;
  return share === undefined ? row : { ...row, ceilingShare: rounded(share) };
}
