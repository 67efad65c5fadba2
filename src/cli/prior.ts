/**
 * @file `prior`: what a text has taught a model, as a prior for what follows. The Fisher information of masked tokens (and
 * next sentences) where the checkpoint has the head for it, else of the readout's vectors; N·F + damping is the precision
 * of the Gaussian that a source task of N terms would have left behind (train/fisher.ts).
 */
import * as fs from "node:fs";
import { dirname, join } from "node:path";
import type { Engine } from "../autograd/index.ts";
import { packBatch } from "../data/batches.ts";
import { sha256File } from "../data/files.ts";
import { inert } from "../data/text.ts";
import { InputError, InterruptedError, StorageError } from "../errors.ts";
import { BertForSequenceClassification, encoderSlices } from "../model/bert.ts";
import { hasParameter } from "../model/load.ts";
import { BertForPreTraining } from "../model/pretraining.ts";
import { Stream } from "../random.ts";
import {
  FisherCollector,
  type FisherNumbers,
  featureScores,
  fisherVectors,
  pretrainingScores,
  pretrainingSource,
  type Scores,
  vectorText,
} from "../train/index.ts";
import { deviceMemory, withEngine } from "./device.ts";
import { examplesOf, lengthFor, SHORTEST_PAIR } from "./examples.ts";
import { duration, figure } from "./format.ts";
import type { Io } from "./io.ts";
import { lengthOptions, type RawFlags, readoutOption, required, textFlag } from "./options.ts";
import { Output } from "./output.ts";
import { readDocuments } from "./pretrain.ts";
import { writePrior } from "./prior-file.ts";
import { adjusted, type Folder, openModelFolder, statusOf } from "./source.ts";
import { choiceValue, numberValue, refuse, wholeValue } from "./values.ts";

interface PriorOptions {
  model: string;
  text: string;
  out: string;
  /** undefined: masked tokens where the checkpoint has their head. */
  from: "masked" | "features" | undefined;
  readout: string | undefined;
  sigma: number;
  rank: number;
  batches: number;
  batch: number;
  /** undefined: the sequences of the text. */
  size: number | undefined;
  /** undefined: 1/initializer_range². */
  damping: number | undefined;
  maxLength: number | undefined;
  seed: number;
}

function priorOptions(raw: RawFlags): PriorOptions {
  const value = (key: string, otherwise: string) => textFlag(raw, key) ?? otherwise;
  const optional = <T>(key: string, read: (text: string) => T): T | undefined => {
    const text = textFlag(raw, key);
    return text === undefined ? undefined : read(text);
  };
  const from = optional("from", (text) => choiceValue<"masked" | "features">("--from", text, ["masked", "features"]));
  if (from === "masked") {
    for (const [key, flag] of [
      ["readout", "--readout"],
      ["sigma", "--sigma"],
    ] as const) {
      // biome-ignore format: a table
      const text = textFlag(raw, key);
      if (text !== undefined)
        refuse(flag, text, "masked tokens have no readout", "Leave it out, or use --from features.");
    }
  }
  return {
    model: required(raw, "model", "--model", "DIR"),
    text: required(raw, "text", "--text", "FILE"),
    out: required(raw, "out", "--out", "FILE"),
    from,
    readout: optional("readout", readoutOption),
    sigma: numberValue("--sigma", value("sigma", "1"), { min: 0, above: true, max: 1e6, example: "1" }),
    rank: wholeValue("--rank", value("rank", "0"), { min: 0, max: 256, example: "8" }),
    batches: wholeValue("--batches", value("batches", "256"), { min: 1, max: 1e7, example: "256" }),
    batch: wholeValue("--batch", value("batch", "16"), { min: 1, max: 65_535, example: "16" }),
    size: optional("size", (text) => numberValue("--size", text, { min: 0, above: true, max: 1e15, example: "1e6" })),
    damping: optional("damping", (text) => numberValue("--damping", text, { min: 0, above: true, max: 1e15, example: "2500" })), // biome-ignore format: one line
    maxLength: lengthOptions(raw).maxLength,
    seed: wholeValue("--seed", value("seed", "0"), { min: 0, example: "1" }),
  };
}

export async function prior(raw: RawFlags, io: Io): Promise<void> {
  const options = priorOptions(raw);
  const out = new Output(io, raw.json === true);
  checkFile(options, raw.overwrite === true);
  const folder = openModelFolder("--model", options.model);
  try {
    const documents = readDocuments(options.text);
    const weights = sha256File(join(options.model, "model.safetensors"));
    const damping = dampingOf(options, folder);
    const begun = io.now();
    const found = await withEngine(out, (engine) => collect({ engine, options, folder, documents, damping, out }));
    const { numbers, source, N, terms, shapes } = found;
    const size = documents.reduce((sum, sentences) => sum + sentences.length, 0);
    writePrior(options.out, numbers, shapes, {
      rank: numbers.rank,
      model: weights,
      source,
      N,
      damping,
      terms,
      batches: options.batches,
      seed: options.seed,
      text: { file: options.text, sha256: sha256File(options.text), size },
    });
    const precision = quantiles(numbers);
    const result = {
      prior: options.out,
      source,
      rank: numbers.rank,
      N,
      damping,
      batches: options.batches,
      terms,
      precision,
      seconds: (io.now() - begun) / 1000,
    };
    if (out.json) out.document(result);
    else {
      out.text(
        `Fisher information of ${source}, the mean of ${terms} terms in ${options.batches} batches, ${duration(result.seconds)}\n` +
          `precision: ${figure(precision.min)} to ${figure(precision.max)}, half of the parameters below ${figure(precision.median)} (N ${figure(N)}, damping ${figure(damping)})`,
      );
      out.text(
        `prior: ${options.out}\nnext: priorwork finetune --model ${options.model} --prior ${options.out} --train …`,
      );
    }
  } finally {
    folder.checkpoint.close();
  }
}

/** Before the work is done, not after. */
function checkFile({ out, text }: PriorOptions, overwrite: boolean): void {
  const shown = `--out ${inert(out)}`;
  const [status, read] = [statusOf(out), statusOf(text)];
  if (status?.isDirectory()) throw new InputError(`${shown}: a folder (expected a file). Choose another.`);
  if (status !== undefined && status.ino === read?.ino && status.dev === read.dev)
    throw new InputError(`${shown}: this is --text, which would be overwritten. Choose another file.`);
  if (fs.existsSync(out) && !overwrite)
    throw new InputError(`${shown}: this file exists. Add --overwrite to replace it, or choose another.`);
  if (/(^|[\\/])model\.safetensors$/.test(out))
    throw new InputError(`${shown}: the name of a model's weights. Choose another.`);
  if (statusOf(dirname(out)) === undefined)
    throw new StorageError(`${shown}: its folder does not exist. Make it, or choose another.`);
}

/** What is known of a weight before the source task: that it started from a normal of this spread. */
function dampingOf({ damping }: PriorOptions, { config, path }: Folder): number {
  if (damping !== undefined) return damping;
  if (config.initializerRange > 0) return 1 / config.initializerRange ** 2;
  throw new InputError(
    `--damping: missing (${inert(path)}/config.json says initializer_range 0, so the default 1/initializer_range² is none). Give, say, --damping 2500.`,
  );
}

/** What is asked, of which model and which text. */
interface Task {
  engine: Engine;
  options: PriorOptions;
  folder: Folder;
  documents: readonly string[][];
  damping: number;
  out: Output;
}

interface Collected {
  numbers: FisherNumbers;
  source: string;
  N: number;
  terms: number;
  /** Of every parameter in the numbers. */
  shapes: Map<string, readonly number[]>;
}

async function collect(task: Task): Promise<Collected> {
  const { options, folder, out } = task;
  const { checkpoint } = folder;
  const hasHead = hasParameter(checkpoint, "cls.predictions.transform.dense.weight");
  if (options.from === "masked" && !hasHead) {
    throw new InputError(
      `--from masked: ${inert(folder.path)} has no masked-language-model head (expected cls.predictions.transform.dense.weight). Use --from features.`,
    );
  }
  const masked = options.from === "masked" || (options.from === undefined && options.readout === undefined && hasHead);
  if (options.from === undefined && !masked && !hasHead)
    out.note(
      "no masked-language-model head: the Fisher information is that of the readout's vectors (--from features)",
    );
  return masked ? await ofMasked(task) : await ofFeatures(task);
}

async function ofMasked(task: Task): Promise<Collected> {
  const { engine, options, folder, documents, out } = task;
  const { checkpoint, config, tokenizer } = folder;
  const maxLength = lengthFor(options.maxLength ?? Math.min(128, config.maxPositions), config);
  const pairs =
    hasParameter(checkpoint, "cls.seq_relationship.weight") &&
    hasParameter(checkpoint, "bert.pooler.dense.weight") &&
    config.typeVocabSize > 1 &&
    documents.length > 1 &&
    documents.some((sentences) => sentences.length > 1);
  if (pairs && maxLength < SHORTEST_PAIR)
    throw new InputError(`--max-length ${maxLength}: too short for pairs of sentences (expected ${SHORTEST_PAIR} or more). Give more.`); // biome-ignore format: one sentence
  if (!pairs)
    out.note("masked tokens alone: next sentence needs its head, a pooler and two documents (an empty line between)");
  const model = await BertForPreTraining.load(engine, adjusted(folder, {}), { nextSentence: pairs });
  const missing = model.report.missing[0];
  if (missing !== undefined)
    throw new InputError(`--model ${inert(folder.path)}: its pretraining head is not whole (${missing} is missing). Use --from features.`); // biome-ignore format: one sentence
  const { seed } = options;
  const source = pretrainingSource(documents, tokenizer, { seed, maxLength, nextSentence: pairs, vocabSize: config.vocabSize }); // biome-ignore format: one line
  const batchOf = (rows: readonly number[], epoch: number, step: number) =>
    source.batch(rows, { epoch, step, micro: 0 });
  const what = pairs ? "masked tokens and next sentences" : "masked tokens";
  return gather(pretrainingScores(model), { what, length: source.length, batchOf }, task);
}

async function ofFeatures(task: Task): Promise<Collected> {
  const { engine, options, folder, documents, out } = task;
  const { checkpoint, config, tokenizer, storedReadout } = folder;
  const fallback = hasParameter(checkpoint, "bert.pooler.dense.weight") ? "pooler" : "cls";
  const readout = options.readout ?? storedReadout ?? fallback;
  const texts = documents.flat();
  const lines = { path: options.text, texts, lineNumbers: texts.map((_, i) => i + 1) };
  const maxLength = lengthFor(options.maxLength ?? Math.min(128, config.maxPositions), config);
  const examples = examplesOf(lines, tokenizer, config, { maxLength, onLong: "truncate" }, out);
  const model = await BertForSequenceClassification.load(engine, adjusted(folder, { newHead: true }), { labels: 2, head: "linear", readout }); // biome-ignore format: one line
  const batchOf = (rows: readonly number[]) => packBatch(rows.map((row) => examples[row] as (typeof examples)[number]));
  const what = `the ${readout} readout's vectors (σ ${options.sigma})`;
  const scores = featureScores(model, { sigma: options.sigma });
  return gather(scores, { what, length: examples.length, batchOf }, task);
}

/** All batches, each of rows in an order that the seed names; the text is gone through as often as they need. */
async function gather<B>(
  scores: Scores<B>,
  data: { what: string; length: number; batchOf(rows: readonly number[], epoch: number, step: number): B },
  { options, folder: { checkpoint, config }, damping, out }: Task,
): Promise<Collected> {
  const { theta } = scores;
  const { rank, seed, batches } = options;
  // Of the head's parameters nothing is asked; gradients go through them all the same.
  theta.freeze((slice) => slice.groups[0] === "head");
  const maxBytes = deviceMemory(scores.engine.gpu, out.io);
  out.note(vectorText(theta, fisherVectors(rank)));
  const collector = new FisherCollector(scores, { rank, seed, maxBytes });
  const size = Math.min(options.batch, data.length);
  const perEpoch = Math.floor(data.length / size);
  const bar = out.progress("Fisher information", batches);
  try {
    let order = new Uint32Array(0);
    for (let step = 0; step < batches; step++) {
      const [epoch, index] = [Math.floor(step / perEpoch), step % perEpoch];
      if (index === 0) order = Uint32Array.from(new Stream(seed, "prior order", epoch).shuffle(data.length));
      await collector.add(data.batchOf([...order.subarray(index * size, (index + 1) * size)], epoch, step + 1));
      bar.update(step + 1);
      if (out.io.signal.aborted)
        throw new InterruptedError(`interrupted (Fisher information, ${step + 1} of ${batches} batches). Nothing was written.`); // biome-ignore format: one sentence
    }
    const parameters = encoderSlices(config, hasParameter(checkpoint, "bert.pooler.dense.weight")).flatMap((slice) => slice.parameters); // biome-ignore format: one line
    const shapes = new Map(parameters.map(({ name, shape }) => [name, shape]));
    const N = options.size ?? data.length;
    const numbers = await collector.numbers({ N, damping }, (name) => shapes.has(name));
    // A pooler that the source task does not use knows no more than its start.
    for (const [name, shape] of shapes) {
      if (numbers.diagonal.has(name)) continue;
      const count = shape.reduce((a, b) => a * b, 1);
      numbers.diagonal.set(name, new Float32Array(count).fill(damping));
      if (numbers.rank > 0) numbers.factors.set(name, new Float32Array(numbers.rank * count));
    }
    return { numbers, source: data.what, N, terms: collector.terms, shapes };
  } finally {
    out.end();
    collector.dispose();
  }
}

/** Of the diagonal of the precision, UUᵀ's included. */
function quantiles({ diagonal, factors, rank }: FisherNumbers): { min: number; median: number; max: number } {
  const all = new Float32Array([...diagonal.values()].reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const [name, values] of diagonal) {
    const U = factors.get(name);
    for (let i = 0; i < values.length; i++) {
      let tau = values[i] ?? 0;
      for (let j = 0; j < rank; j++) tau += (U?.[j * values.length + i] ?? 0) ** 2;
      all[at++] = tau;
    }
  }
  all.sort();
  return { min: all[0] ?? 0, median: all[all.length >> 1] ?? 0, max: all.at(-1) ?? 0 };
}
