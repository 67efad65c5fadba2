/**
 * @file `npm run bench [-- FILTER…] [--json]`: every case whose name contains one of the filters (all without one), each
 * with its share of this adapter's ceilings, which are measured before every group of cases. A line a case on stdout, or,
 * with --json, one JSON document, and the lines on stderr.
 */

import { BENCHES } from "../src/cli/bench.ts";
import { adapterText } from "../src/cli/output.ts";
import { run } from "../src/cli/process.ts";
import { loadTuned, tunedRemark } from "../src/cli/tuned.ts";
import { copies as copyCeilings, matrixMultiplyAdd, multiplyAdd as multiplyAddCeiling } from "../src/gpu/index.ts";
import { openGpu } from "../src/gpu/node.ts";
import { cases as attention } from "./attention.ts";
import type { BenchCase } from "./case.ts";
import { cases as elementwise } from "./elementwise.ts";
import { hostCases } from "./host.ts";
import { ladder } from "./ladder.ts";
import { cases as layernorm } from "./layernorm.ts";
import { cases as matmul } from "./matmul.ts";
import { memoryCases } from "./memory.ts";
import { posteriorCases } from "./posterior.ts";
import { type BenchRow, measure, measureInTurn, withShare } from "./runner.ts";
import { cases as softmax } from "./softmax.ts";
import { stackCases, stepCases } from "./step.ts";
import { cases as vector } from "./vector.ts";

const words = process.argv.slice(2);
if (words.includes("--tune")) {
  await run(["bench", ...words]);
  process.exit();
}
const json = words.includes("--json");
const filters = words.filter((word) => !word.startsWith("-") && word !== "kernels");
const unknown = words.find((word) => word.startsWith("-") && word !== "--json");
if (unknown) {
  process.stderr.write(`${unknown}: unknown flag. Usage: npm run bench [-- FILTER… --json] or [-- --tune --json]\n`);
  process.exit(2);
}

const gpu = await openGpu();
process.stderr.write(`adapter: ${adapterText(gpu.adapter)}\n`);
const tuned = tunedRemark(loadTuned(gpu, process.env));
if (tuned !== undefined) process.stderr.write(`note: ${tuned}\n`);
if (gpu.adapter.kind !== "hardware")
  process.stderr.write("note: a software adapter; compare ratios, not milliseconds\n");

/** Made group by group, so that no group holds memory while another is timed. */
const GROUPS: Record<(typeof BENCHES)[number], () => BenchCase[] | Promise<BenchCase[]>> = {
  matmul: () => matmul(gpu),
  attention: () => attention(gpu),
  layernorm: () => layernorm(gpu),
  softmax: () => softmax(gpu),
  elementwise: () => elementwise(gpu),
  vector: () => vector(gpu),
  ladder: () => ladder(gpu),
  host: () => hostCases(gpu),
  step: () => stepCases(gpu),
  stack: () => stackCases(gpu),
  memory: () => memoryCases(gpu),
  posterior: () => posteriorCases(gpu),
};

const results: BenchRow[] = [];
for (const group of BENCHES) {
  if (words.includes("kernels") && ["step", "stack", "host", "memory", "posterior"].includes(group)) continue;
  const bodies = await GROUPS[group]();
  const wanted = bodies.filter(
    ({ name }) =>
      filters.length === 0 || filters.some((f) => name.toLowerCase().includes(f.toLowerCase()) || group === f),
  );
  for (const body of bodies) if (!wanted.includes(body)) await body.dispose?.();
  if (wanted.length === 0) continue;
  // Before every group: on a shared machine the ceiling moves within a run.
  const multiplyAdd = await measure(gpu, multiplyAddCeiling(gpu), { maxTime: 0.5 });
  const units: BenchRow[] = [];
  for (const body of matrixMultiplyAdd(gpu)) units.push(await measure(gpu, body, { maxTime: 0.5 }));
  const copies: BenchRow[] = [];
  for (const body of copyCeilings(gpu)) copies.push(await measure(gpu, body, { maxTime: 0.5 }));
  const copy = copies.reduce((a, b) => ((b.gbps ?? 0) > (a.gbps ?? 0) ? b : a));
  const limits = {
    gflops: multiplyAdd.gflops ?? Number.NaN,
    halfGflops: units[0]?.gflops,
    gbps: copy.gbps ?? Number.NaN,
  };
  const add = (row: BenchRow) => {
    results.push(row);
    (json ? process.stderr : process.stdout).write(`${line(row)}\n`);
  };
  for (const row of [multiplyAdd, ...units, copy]) add(withShare(row, limits));
  const turns = new Set(wanted.map((body) => body.turn));
  for (const turn of turns) {
    const bodies = wanted.filter((body) => body.turn === turn);
    if (turn === undefined) for (const body of bodies) add(withShare(await measure(gpu, body), limits));
    else for (const row of await measureInTurn(gpu, bodies)) add(withShare(row, limits));
  }
  gpu.trim();
}

if (json) {
  process.stdout.write(
    `${JSON.stringify({ adapter: gpu.adapter, date: new Date().toISOString(), node: process.version, results }, null, 2)}\n`,
  );
}
if (results.length === 0) {
  process.stderr.write(
    `"${filters.join(" ")}": no case has that in its name. Choose kernels, ${BENCHES.join(", ")}, or part of a case's name.\n`,
  );
  process.exitCode = 2;
}
gpu.destroy();

function line({ name, layout, shape, medianMs, bestMs, gflops, gbps, ceilingShare, ...memory }: BenchRow): string {
  const size = Object.entries(shape)
    .map(([key, value]) => `${key}${value}`)
    .join(" ");
  const rate = gflops !== undefined ? `${gflops} GFLOP/s` : gbps !== undefined ? `${gbps} GB/s` : "";
  const share = ceilingShare !== undefined ? `${(100 * ceilingShare).toFixed(0)} %` : "";
  const { peakBytes, ofPredicted = Number.NaN, ofAllowed = Number.NaN } = memory;
  const bytes =
    peakBytes === undefined
      ? ""
      : `${(peakBytes / 1e6).toFixed(0)} MB, ${ofPredicted.toFixed(3)} of predicted, ${ofAllowed.toFixed(3)} of allowed`;
  return [
    `${name}${layout ? ` ${layout}` : ""}`.padEnd(30),
    size.padEnd(32),
    `${medianMs} ms`.padStart(12),
    `best ${bestMs}`.padStart(14),
    rate.padStart(16),
    share.padStart(6),
    bytes,
  ]
    .join(" ")
    .trimEnd();
}
