/**
 * @file The charts of `evaluate --charts DIR` as files: which there will be, that none is overwritten unasked (P7), and
 * what each says above itself. charts.ts draws them.
 */
import * as fs from "node:fs";
import { join, resolve } from "node:path";
import { storageError, writeFileAtomic } from "../data/files.ts";
import { count } from "../data/tables.ts";
import { inert } from "../data/text.ts";
import { InputError, StorageError } from "../errors.ts";
import { type Prediction, reliability, selective, type TraceRow } from "../posterior/index.ts";
import { type LogProbabilities, topLabels } from "../train/index.ts";
import { figure } from "./format.ts";
import type { Calibration, Evaluated } from "./measure.ts";
import { type RawFlags, textFlag } from "./options.ts";
import type { Output } from "./output.ts";
import { makeFolder, nearestThere } from "./run-folder.ts";
import { statusOf } from "./source.ts";
import { refuse } from "./values.ts";

const FILES = {
  reliability: "reliability.svg",
  scaled: "reliability-scaled.svg",
  coverage: "coverage.svg",
  uncertainty: "uncertainty.svg",
  trace: "trace.svg",
} as const;

/**
 * The folder of `--charts`, which may not be there yet; undefined without the flag. Checked before anything is measured.
 * InputError: a chart of it would be overwritten. StorageError: nothing can be written there.
 */
export function chartsOption(
  raw: RawFlags,
  { ood, scaled, trace }: { ood: boolean; scaled: boolean; trace: boolean },
): string | undefined {
  const folder = textFlag(raw, "charts");
  if (folder === undefined) {
    if (raw.overwrite !== true) return undefined;
    throw new InputError("--overwrite: nothing to replace (found no --charts). Leave it out, or add --charts DIR.");
  }
  if (folder.trim() === "") refuse("--charts", folder, "empty (expected DIR)", "Give a path.");
  const flag = `--charts ${inert(folder)}`;
  const status = statusOf(folder);
  if (status !== undefined && !status.isDirectory()) {
    throw new InputError(`${flag}: a file (expected a folder). Choose another.`);
  }
  const there = nearestThere(folder);
  if (statusOf(there)?.isDirectory() !== true) {
    throw new StorageError(`${flag}: a part of this path is a file, not a folder. Check the path.`);
  }
  const { reliability, coverage } = FILES;
  const [own, other, chains] = [scaled && FILES.scaled, ood && FILES.uncertainty, trace && FILES.trace];
  const files = [reliability, coverage, own, other, chains].filter((file) => file !== false);
  const drawn = files.find((file) => statusOf(join(folder, file)) !== undefined);
  if (drawn !== undefined && raw.overwrite !== true) {
    throw new InputError(`${flag}: ${drawn} exists. Add --overwrite to replace it, or choose another folder.`);
  }
  try {
    fs.accessSync(there, fs.constants.W_OK | fs.constants.X_OK);
  } catch (error) {
    throw storageError(folder, "write", error);
  }
  return folder;
}

/** What the charts are drawn from. */
export interface Drawn {
  /** Paths as they were typed. */
  named: { run: string; data: string; ood: string | undefined; fit: string | undefined };
  answer: Evaluated;
  labels: ArrayLike<number>;
  logp: LogProbabilities;
  scaledLogp: LogProbabilities | undefined;
  prediction: Prediction;
  foreign: Prediction | undefined;
  /** Of a sampler's run. */
  trace: readonly TraceRow[] | undefined;
}

/** Draws and writes. The libraries that draw are loaded here, at the end of all other work. */
export async function writeCharts(folder: string, drawn: Drawn, out: Output): Promise<void> {
  const { coverageChart, reliabilityChart, uncertaintyChart } = await import("./charts.ts");
  const { named, answer, labels, logp, scaledLogp, prediction, foreign, trace } = drawn;
  const on = `${named.run} on ${named.data}`;
  const counts = `n ${answer.n}, members ${answer.members}`;
  const calibration = ({ ece, eceInterval: [low, high], eceFloor, eceFloor95 }: Calibration) =>
    `ECE ${figure(ece)} (bootstrap: ${figure(low)} to ${figure(high)}); if calibrated ${figure(eceFloor)}, in 95 % below ${figure(eceFloor95)}`;
  const top = topLabels(logp, labels);
  const charts: [string, string][] = [
    [
      FILES.reliability,
      await reliabilityChart(reliability(top), {
        title: "Reliability",
        lines: [on, `${counts}. ${calibration(answer)}`],
      }),
    ],
    [
      FILES.coverage,
      await coverageChart(selective(top), {
        title: "Accuracy against coverage",
        lines: [on, `${counts}. Accuracy ${figure(answer.accuracy)}, area under risk ${figure(answer.aurc)}`],
      }),
    ],
  ];
  if (scaledLogp !== undefined && answer.scaled !== undefined) {
    const lines = [
      `${on}, T = ${figure(answer.temperature ?? 1)} fitted on ${named.fit}`,
      `${counts}. ${calibration(answer.scaled)}`,
    ];
    const bins = reliability(topLabels(scaledLogp, labels));
    charts.push([FILES.scaled, await reliabilityChart(bins, { title: "Reliability at a temperature", lines })]);
  }
  if (foreign !== undefined && answer.oodAuroc !== undefined) {
    // One member has no epistemic part; what it leaves open is all there is.
    const key = prediction.members > 1 ? "epistemic" : "total";
    const seen = { what: `${key} uncertainty`, inDomain: prediction[key], outOfDomain: foreign[key] };
    const lines = [
      `${on}, against ${named.ood}`,
      `n ${answer.n} and ${foreign.n}, members ${answer.members}. AUROC ${figure(answer.oodAuroc[key])}`,
    ];
    const title = key === "epistemic" ? "Epistemic uncertainty" : "Total uncertainty";
    charts.push([FILES.uncertainty, await uncertaintyChart(seen, { title: `${title}, in and out of domain`, lines })]);
  }
  if (trace !== undefined) {
    const { traceChart } = await import("./trace-chart.ts");
    const [chains, draws] = [new Set(trace.map((row) => row.chain)).size, new Set(trace.map(placeOf)).size];
    const lines = [named.run, `${count(chains, "chain")}, ${count(draws, "draw")}; ESS and R-hat of these draws`];
    charts.push([FILES.trace, await traceChart(trace, { title: "Trace", lines })]);
  }
  try {
    makeFolder(resolve(folder));
  } catch (error) {
    throw storageError(folder, "write", error);
  }
  for (const [file, svg] of charts) writeFileAtomic(join(folder, file), svg);
  out.note(`charts in ${folder}: ${charts.map(([file]) => file).join(", ")}`);
}

const placeOf = ({ chain, draw }: TraceRow) => `${chain} ${draw}`;
