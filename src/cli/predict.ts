/** @file `predict`: texts to labels, with probabilities and what they leave open. */
import { readTable } from "../data/load.ts";
import { inert } from "../data/text.ts";
import { InputError } from "../errors.ts";
import type { Prediction } from "../posterior/index.ts";
import { withEngine } from "./device.ts";
import { examplesOf, lengthFor, type Texts, typedTexts } from "./examples.ts";
import { cut, figure, table } from "./format.ts";
import type { Io } from "./io.ts";
import { batchOption, checkFinite, posteriorOfRun, predictions } from "./measure.ts";
import {
  type ColumnOptions,
  columnOptions,
  lengthOptions,
  membersOption,
  type RawFlags,
  required,
  textFlag,
} from "./options.ts";
import { Output } from "./output.ts";
import { labelsOf, loadClassifier, openModelFolder, runLength } from "./source.ts";

export async function predict(raw: RawFlags, io: Io): Promise<void> {
  const folderPath = required(raw, "run", "--run", "DIR");
  const out = new Output(io, raw.json === true);
  const [lengths, members, batch] = [lengthOptions(raw), membersOption(raw), batchOption(raw)];
  const texts = textsOf(raw, columnOptions(raw));
  const folder = openModelFolder("--run", folderPath);
  try {
    labelsOf("--run", folder); // a folder without a head is refused before the device is opened
    const maxLength = lengthFor(lengths.maxLength ?? runLength(folder), folder.config);
    const length = { maxLength, onLong: lengths.onLong };
    const examples = examplesOf(texts, folder.tokenizer, folder.config, length, out);
    const answers = await withEngine(out, async (engine) => {
      const model = await loadClassifier(engine, "--run", folder, out);
      const posterior = await posteriorOfRun(model, folder, members);
      const prediction = await predictions(posterior, examples, { what: "predicting", out, batch });
      checkFinite(`--run ${inert(folderPath)}`, prediction);
      return answersOf(texts, model.labels, prediction);
    });
    if (out.json) out.document(answers);
    else out.text(answersTable(answers, io.stdout.columns || 120));
  } finally {
    folder.checkpoint.close();
  }
}

/** The texts of `--text`, or those of the table `--data`. InputError: neither, or both. */
export function textsOf(raw: RawFlags, columns: ColumnOptions): Texts {
  const typed = raw.text;
  const data = textFlag(raw, "data");
  if (Array.isArray(typed) && data !== undefined) {
    throw new InputError("--text: contradicts --data. Give texts in one way.");
  }
  if (Array.isArray(typed)) return typedTexts(typed as readonly string[]);
  if (data === undefined)
    throw new InputError('--text: missing (expected --text "…" or --data FILE). Give one of them.');
  return readTable(data, { ...columns, labelColumn: undefined, needLabels: false });
}

interface Answer {
  text: string;
  pair?: string;
  label: string;
  probability: number;
  probabilities: Record<string, number>;
  logits: number[];
  epistemic: number;
  aleatoric: number;
  members: number;
}

function answersOf({ texts, pairs }: Texts, labels: readonly string[], prediction: Prediction): Answer[] {
  const { K, logMean, logits, epistemic, aleatoric, members } = prediction;
  return texts.map((text, i) => {
    const row = [...logMean.subarray(i * K, (i + 1) * K)];
    const largest = Math.max(...row);
    const top = row.indexOf(largest);
    const pair = pairs?.[i];
    return {
      text,
      ...(pair === undefined ? {} : { pair }),
      label: labels[top] ?? String(top),
      probability: Math.exp(largest),
      probabilities: Object.fromEntries(row.map((logp, k) => [labels[k] ?? String(k), Math.exp(logp)])),
      logits: [...logits.subarray(i * K, (i + 1) * K)],
      epistemic: epistemic[i] ?? 0,
      aleatoric: aleatoric[i] ?? 0,
      members,
    };
  });
}

function answersTable(answers: readonly Answer[], columns: number): string {
  const several = (answers[0]?.members ?? 1) > 1;
  const heading = ["label", "probability", ...(several ? ["epistemic", "aleatoric"] : []), "text"];
  const rows = answers.map(({ label, probability, epistemic, aleatoric, text, pair }) => [
    cut(label, 30),
    probability.toFixed(4),
    ...(several ? [figure(epistemic), figure(aleatoric)] : []),
    cut(pair === undefined ? text : `${text} | ${pair}`, Math.max(20, columns - 60)),
  ]);
  return table(heading, rows);
}
