/**
 * @file `embed`: one vector a text, by a readout. What the model can hold is kept whole. Vectors go to stdout, or to a
 * file: .jsonl, or .npy, NumPy's own format, whose header is a line of text before the numbers.
 */
import * as fs from "node:fs";
import { dirname } from "node:path";
import { type Example, packBatch } from "../data/batches.ts";
import { writeFileAtomic } from "../data/files.ts";
import { inert } from "../data/text.ts";
import { InputError, InterruptedError, StorageError } from "../errors.ts";
import { BertForSequenceClassification } from "../model/bert.ts";
import { withEngine } from "./device.ts";
import { examplesOf, lengthFor } from "./examples.ts";
import { cut, figure, jsonText, table } from "./format.ts";
import type { Io } from "./io.ts";
import { batchOption } from "./measure.ts";
import { columnOptions, lengthOptions, type RawFlags, readoutOption, required, textFlag } from "./options.ts";
import { Output } from "./output.ts";
import { textsOf } from "./predict.ts";
import { adjusted, openModelFolder, statusOf } from "./source.ts";
import { refuse } from "./values.ts";

export async function embed(raw: RawFlags, io: Io): Promise<void> {
  const folderPath = required(raw, "model", "--model", "DIR");
  const out = new Output(io, raw.json === true);
  const [lengths, batch, file] = [lengthOptions(raw), batchOption(raw), fileOption(raw)];
  const asked = textFlag(raw, "readout");
  const readout = asked === undefined ? undefined : readoutOption(asked);
  const texts = textsOf(raw, columnOptions(raw));
  const folder = openModelFolder("--model", folderPath);
  try {
    const length = { maxLength: lengthFor(lengths.maxLength, folder.config), onLong: lengths.onLong };
    const examples = examplesOf(texts, folder.tokenizer, folder.config, length, out);
    const vectors = await withEngine(out, async (engine) => {
      const model = await BertForSequenceClassification.load(engine, adjusted(folder, { newHead: true }), {
        labels: 2,
        head: "linear",
        readout: readout ?? folder.storedReadout ?? "mean",
      });
      return vectorsOf(model, examples, batch, out);
    });
    if (raw.normalize === true) for (const vector of vectors) normalize(vector);
    const rows = texts.texts.map((text, i) => ({ text, vector: [...(vectors[i] ?? [])].map(shortest) }));
    if (file !== undefined) {
      const lines = () => rows.map((row) => `${jsonText(row).replace(/\n\s*/g, "")}\n`).join("");
      writeFileAtomic(file, file.endsWith(".npy") ? npy(vectors) : lines());
    }
    if (out.json) out.document(rows);
    else if (file !== undefined) out.text(`${rows.length} vectors of ${vectors[0]?.length ?? 0} numbers in ${file}`);
    else out.text(vectorsTable(rows));
  } finally {
    folder.checkpoint.close();
  }
}

function fileOption(raw: RawFlags): string | undefined {
  const file = textFlag(raw, "out");
  if (file === undefined) return undefined;
  if (!/\.(jsonl|npy)$/.test(file))
    refuse("--out", file, "unknown kind of file (expected .jsonl or .npy)", "Rename it.");
  if (fs.existsSync(file) && raw.overwrite !== true) {
    throw new InputError(`--out ${inert(file)}: this file exists. Add --overwrite to replace it, or choose another.`);
  }
  const status = statusOf(file);
  if (status?.isDirectory()) throw new InputError(`--out ${inert(file)}: a folder (expected a file). Choose another.`);
  const data = textFlag(raw, "data");
  const read = data === undefined ? undefined : statusOf(data);
  if (status !== undefined && status.ino === read?.ino && status.dev === read.dev) {
    throw new InputError(`--out ${inert(file)}: this is --data, which would be overwritten. Choose another file.`);
  }
  // Before the work is done, not after.
  if (statusOf(dirname(file)) === undefined) {
    throw new StorageError(`--out ${inert(file)}: its folder does not exist. Make it, or choose another.`);
  }
  return file;
}

/** A readout's vector of every example. */
async function vectorsOf(
  model: BertForSequenceClassification,
  examples: readonly Example[],
  batch: number,
  out: Output,
): Promise<Float64Array[]> {
  const { engine } = model;
  const vectors: Float64Array[] = [];
  const bar = out.progress("embedding", examples.length);
  for (let from = 0; from < examples.length; from += batch) {
    const packed = packBatch(examples.slice(from, from + batch));
    const values = await engine.evaluate(() => model.features(packed));
    const width = values.length / packed.sequences;
    for (let b = 0; b < packed.sequences; b++)
      vectors.push(Float64Array.from(values.subarray(b * width, (b + 1) * width)));
    bar.update(vectors.length);
    if (out.io.signal.aborted)
      throw new InterruptedError(`interrupted (embedding, ${vectors.length} of ${examples.length}).`);
  }
  out.end();
  return vectors;
}

/** To length 1; a vector of zeros stays. */
function normalize(vector: Float64Array): void {
  const norm = Math.sqrt(vector.reduce((sum, x) => sum + x * x, 0));
  if (norm > 0) for (let i = 0; i < vector.length; i++) vector[i] = (vector[i] ?? 0) / norm;
}

/** Nine digits give a float32 back exactly. */
const shortest = (x: number) => Number(x.toPrecision(9));

/** A float32 array [rows, width] as a .npy file, version 1.0 of the format. */
export function npy(vectors: readonly Float64Array[]): Uint8Array {
  const width = vectors[0]?.length ?? 0;
  const fields = `{'descr': '<f4', 'fortran_order': False, 'shape': (${vectors.length}, ${width}), }`;
  // The numbers begin at a multiple of 64 bytes.
  const size = Math.ceil((10 + fields.length + 1) / 64) * 64;
  const bytes = new Uint8Array(size + 4 * vectors.length * width);
  bytes.set([0x93, ...new TextEncoder().encode("NUMPY"), 1, 0]);
  const view = new DataView(bytes.buffer);
  view.setUint16(8, size - 10, true);
  bytes.set(new TextEncoder().encode(`${fields.padEnd(size - 11)}\n`), 10);
  let at = size;
  for (const vector of vectors) {
    for (const x of vector) {
      view.setFloat32(at, x, true);
      at += 4;
    }
  }
  return bytes;
}

function vectorsTable(rows: readonly { text: string; vector: readonly number[] }[]): string {
  const shown = rows.map(({ text, vector }) => [
    `${vector.slice(0, 4).map(figure).join(" ")}${vector.length > 4 ? ` … (${vector.length})` : ""}`,
    cut(text, 60),
  ]);
  return table(["vector", "text"], shown);
}
