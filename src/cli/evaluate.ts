/**
 * @file `evaluate`: a run, or a fine-tuned Hugging Face folder, measured on labelled texts; what its uncertainty is good
 * for on texts of another domain (`--ood`), what a temperature from other rows would mend (`--temperature-from`), and
 * charts of it all (`--charts`).
 */
import type { Example } from "../data/batches.ts";
import { sha256File } from "../data/files.ts";
import { labelSet } from "../data/labels.ts";
import { readTable } from "../data/load.ts";
import type { Table } from "../data/tables.ts";
import { inert } from "../data/text.ts";
import { InputError } from "../errors.ts";
import {
  eceFloor95,
  eceInterval,
  type LabelledLogits,
  oodAuroc,
  type Prediction,
  selective,
  type Temperature,
  temperatureScaled,
} from "../posterior/index.ts";
import { labelsOf as idsOf, type LogProbabilities, topLabels } from "../train/index.ts";
import { chartsOption, writeCharts } from "./chart-files.ts";
import { withEngine } from "./device.ts";
import { examplesOf, lengthFor } from "./examples.ts";
import { figure, table } from "./format.ts";
import type { Io } from "./io.ts";
import {
  batchOption,
  type Calibration,
  checkFinite,
  type Evaluated,
  type EvaluateJson,
  metricsJson,
  posteriorOfRun,
  predictions,
} from "./measure.ts";
import { columnOptions, lengthOptions, membersOption, type RawFlags, required, textFlag } from "./options.ts";
import { Output } from "./output.ts";
import type { RunRecord } from "./run-folder.ts";
import { labelsOf, loadClassifier, openModelFolder, runLength } from "./source.ts";
import { hasTrace, readTrace } from "./trace.ts";

export async function evaluateCommand(raw: RawFlags, io: Io): Promise<void> {
  const folderPath = required(raw, "run", "--run", "DIR");
  const dataPath = required(raw, "data", "--data", "FILE");
  const out = new Output(io, raw.json === true);
  const [columns, lengths, members, batch] = [
    columnOptions(raw),
    lengthOptions(raw),
    membersOption(raw),
    batchOption(raw),
  ];
  const [oodPath, fitPath] = [textFlag(raw, "ood"), textFlag(raw, "temperatureFrom")];
  const traced = hasTrace(folderPath);
  const charts = chartsOption(raw, { ood: oodPath !== undefined, scaled: fitPath !== undefined, trace: traced });
  // Read before anything is measured, as everything that may be refused.
  const trace = charts !== undefined && traced ? readTrace(folderPath) : undefined;
  const folder = openModelFolder("--run", folderPath);
  try {
    const labels = labelsOf("--run", folder);
    const maxLength = lengthFor(lengths.maxLength ?? runLength(folder), folder.config);
    const length = { maxLength, onLong: lengths.onLong };
    const read = (path: string) => readTable(path, { ...columns, needLabels: true });
    const examplesIn = (rows: Table, ids?: ArrayLike<number>) =>
      examplesOf(rows, folder.tokenizer, folder.config, length, out, ids);
    const labelled = (rows: Table) => examplesIn(rows, labelSet([rows], labels).ids[0]);

    const data = read(dataPath);
    const examples = labelled(data);
    const fitRows = fitPath === undefined ? undefined : read(fitPath);
    if (fitRows !== undefined) checkSplit(fitRows, data, folder.run, out);
    const fitOn = fitRows && labelled(fitRows);
    const foreign =
      oodPath === undefined
        ? undefined
        : examplesIn(readTable(oodPath, { ...columns, labelColumn: undefined, needLabels: false }));

    const seen = await withEngine(out, async (engine) => {
      const model = await loadClassifier(engine, "--run", folder, out);
      const posterior = await posteriorOfRun(model, folder, members);
      const predicted = (what: string, some: readonly Example[] | undefined) =>
        some && predictions(posterior, some, { what, out, batch });
      return {
        prediction: await predictions(posterior, examples, { what: "evaluating", out, batch }),
        foreign: await predicted("out of domain", foreign),
        fit: await predicted("for the temperature", fitOn),
      };
    });

    const { prediction } = seen;
    for (const some of [prediction, seen.foreign, seen.fit]) if (some) checkFinite(`--run ${inert(folderPath)}`, some);
    const own = { logits: prediction.logits, K: prediction.K, labels: idsOf(examples) };
    const asIs = { logp: prediction.logMean, K: prediction.K };
    const answer: Evaluated = { ...metricsJson(prediction, examples), ...ranked(asIs, own.labels) };
    if (seen.foreign !== undefined) answer.oodAuroc = outOfDomain(prediction, seen.foreign, out);
    const scaled =
      seen.fit === undefined || fitOn === undefined
        ? undefined
        : atTemperature({ logits: seen.fit.logits, K: seen.fit.K, labels: idsOf(fitOn) }, own);
    if (scaled !== undefined) {
      if (scaled.temperature.atBound) out.warning(boundWarning(`--temperature-from ${fitPath}`, scaled.temperature));
      answer.temperature = scaled.temperature.T;
      answer.scaled = scaled.calibration;
    }
    if (charts !== undefined) {
      const named = { run: folderPath, data: dataPath, ood: oodPath, fit: fitPath };
      const drawn = {
        named,
        answer,
        labels: own.labels,
        logp: asIs,
        scaledLogp: scaled?.logp,
        prediction,
        foreign: seen.foreign,
        trace,
      };
      await writeCharts(charts, drawn, out);
    }
    if (out.json) out.document(answer);
    else out.text(answerText(answer, { ood: oodPath, fit: fitPath }));
  } finally {
    folder.checkpoint.close();
  }
}

function ranked(
  logp: LogProbabilities,
  labels: ArrayLike<number>,
): Pick<Calibration, "eceInterval" | "eceFloor95" | "aurc"> {
  const top = topLabels(logp, labels);
  return { eceInterval: eceInterval(top), eceFloor95: eceFloor95(top.confidence), aurc: selective(top).aurc };
}

/** The temperature of some rows, and the calibration of others at it. */
function atTemperature(fitOn: LabelledLogits, reportOn: LabelledLogits) {
  const { temperature, logp, metrics } = temperatureScaled({ fitOn, reportOn });
  const { accuracy, nll, brier, ece, eceFloor } = metrics;
  const calibration = { accuracy, nll, brier, ece, eceFloor, ...ranked(logp, reportOn.labels) };
  return { temperature, logp, calibration };
}

function boundWarning(flag: string, { T }: Temperature): string {
  const why = T < 1 ? "every row of it is answered right" : "its logits are no better than chance";
  return `${flag}: ${why}, so that T = ${T} is the end of its range, not a fit`;
}

function outOfDomain(own: Prediction, foreign: Prediction, out: Output): { epistemic: number; total: number } {
  if (own.members === 1) {
    out.note("one member: no epistemic uncertainty, and an AUROC of 0.5 by it; total uncertainty can still tell");
  }
  return oodAuroc(own, foreign);
}

/**
 * A temperature is measured on rows that it was not fitted on. InputError: all of `data` are among the rows to fit on.
 * Warns where some are, and where they are the rows that the run was trained on, which it answers too surely.
 */
function checkSplit(fit: Table, data: Table, run: RunRecord | undefined, out: Output): void {
  const key = ({ texts, pairs }: Table) => texts.map((text, i) => `${text}\0${pairs?.[i] ?? ""}`);
  const fitted = new Set(key(fit));
  const shared = key(data).filter((row) => fitted.has(row)).length;
  const flag = `--temperature-from ${inert(fit.path)}`;
  if (shared === data.texts.length) {
    throw new InputError(
      `${flag}: holds every row of --data, so that a temperature would be measured on what it was fitted to. Name rows that are neither in --data nor trained on.`,
    );
  }
  if (shared > 0) out.warning(`${flag}: ${shared} of ${data.texts.length} rows of --data are among its rows`);
  if (run?.data?.train?.sha256 === sha256File(fit.path)) {
    out.warning(`${flag}: the run was trained on these rows; a temperature fitted on them is too low`);
  }
}

/** Metrics for people, a line each. */
export function metricsTable(lines: readonly (readonly [string, EvaluateJson])[]): string {
  const rows = lines.map(([name, { n, members, accuracy, nll, brier, ece, eceFloor }]) => [
    name,
    ...[n, members, accuracy, nll, brier, ece, eceFloor].map(figure),
  ]);
  const heading = ["", "n", "members", "accuracy", "NLL", "Brier", "ECE", "ECE if calibrated"];
  const from = lines.some(([name]) => name !== "") ? 0 : 1; // a column of names only where there are some
  return table(
    heading.slice(from),
    rows.map((row) => row.slice(from)),
  );
}

/** The table, and a sentence for each thing that was asked for beside it. */
function answerText(answer: Evaluated, { ood, fit }: { ood: string | undefined; fit: string | undefined }): string {
  const { temperature, scaled, oodAuroc: told } = answer;
  const lines: [string, EvaluateJson][] = [[scaled === undefined ? "" : "as it is", answer]];
  if (scaled !== undefined) lines.push([`T = ${figure(temperature ?? 1)}`, { ...answer, ...scaled }]);
  const interval = ([low, high]: readonly [number, number]) => `${figure(low)} to ${figure(high)}`;
  const ece = ({ eceInterval, eceFloor95 }: Calibration) =>
    `${interval(eceInterval)}; a calibrated model stays below ${figure(eceFloor95)} in 95 % of label sets`;
  const said = [
    `ECE, bootstrap interval (nominally 95 %): ${ece(answer)}`,
    ...(scaled ? [`at T: ${ece(scaled)}`] : []),
    `area under risk against coverage: ${figure(answer.aurc)}`,
  ];
  if (told !== undefined) {
    const { epistemic, total } = told;
    said.push(`AUROC against ${ood}: ${figure(epistemic)} by epistemic, ${figure(total)} by total uncertainty`);
  }
  if (temperature !== undefined) said.push(`T was fitted on ${fit}`);
  return `${metricsTable(lines)}\n${said.join("\n")}`;
}
