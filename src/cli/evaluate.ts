/** @file `evaluate`: a run, or a fine-tuned Hugging Face folder, measured on labelled texts. */
import { labelSet } from "../data/labels.ts";
import { readTable } from "../data/load.ts";
import { withEngine } from "./device.ts";
import { examplesOf, lengthFor } from "./examples.ts";
import { figure, table } from "./format.ts";
import type { Io } from "./io.ts";
import { batchOption, type EvaluateJson, measure, posteriorOfRun } from "./measure.ts";
import { columnOptions, lengthOptions, membersOption, type RawFlags, required } from "./options.ts";
import { Output } from "./output.ts";
import { labelsOf, loadClassifier, openModelFolder, runLength } from "./source.ts";

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
  const folder = openModelFolder("--run", folderPath);
  try {
    const data = readTable(dataPath, { ...columns, needLabels: true });
    const { ids } = labelSet([data], labelsOf("--run", folder));
    const maxLength = lengthFor(lengths.maxLength ?? runLength(folder), folder.config);
    const length = { maxLength, onLong: lengths.onLong };
    const examples = examplesOf(data, folder.tokenizer, folder.config, length, out, ids[0]);
    const metrics = await withEngine(out, async (engine) => {
      const model = await loadClassifier(engine, "--run", folder, out);
      const posterior = posteriorOfRun(model, folder.run, members);
      return measure(posterior, examples, { what: "evaluating", out, batch });
    });
    if (out.json) out.document(metrics);
    else out.text(metricsTable([["", metrics]]));
  } finally {
    folder.checkpoint.close();
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
