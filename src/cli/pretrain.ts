/**
 * @file `pretrain`: masked tokens and next sentence, as BERT was pretrained (Devlin et al. 2019), on a text of the
 * user's: from a model, or from a config.json and a random start. Plain maximum likelihood; what it leaves behind is the
 * prior of a later fine-tuning.
 */
import { dirname, join } from "node:path";
import type { Engine } from "../autograd/index.ts";
import { readLines, readText, sha256File, writeFileAtomic } from "../data/files.ts";
import { parseJson } from "../data/json.ts";
import { loadTokenizer } from "../data/load.ts";
import { count } from "../data/tables.ts";
import { inert } from "../data/text.ts";
import type { BertTokenizer } from "../data/tokenizer.ts";
import { InputError } from "../errors.ts";
import { type BertConfig, parseBertConfig } from "../model/config.ts";
import { type Checkpoint, hasParameter } from "../model/load.ts";
import { BertForPreTraining } from "../model/pretraining.ts";
import { adam, gaussianPrior, logPosterior, pretrainingSource } from "../train/index.ts";
import { withEngine } from "./device.ts";
import { checkVocabulary, lengthFor, SHORTEST_PAIR } from "./examples.ts";
import { duration } from "./format.ts";
import type { Io } from "./io.ts";
import { pretrainingConfig, writeModelFolder } from "./model-folder.ts";
import type { RawFlags } from "./options.ts";
import { Output } from "./output.ts";
import { type PretrainOptions, pretrainOptions } from "./pretrain-options.ts";
import { StepProfile } from "./profile.ts";
import { checkOut, emptyOut, type RunRecord, readRun, writeRun } from "./run-folder.ts";
import { checkResume, kernelChoices, takeUpChoices } from "./run-record.ts";
import { adjusted, openModelFolder } from "./source.ts";
import { Training } from "./training.ts";
import { versions } from "./version.ts";

export async function pretrain(raw: RawFlags, io: Io): Promise<void> {
  const options = pretrainOptions(raw);
  const out = new Output(io, options.json);
  const { resume, overwrite, text, model, config, out: folder } = options;
  checkOut(folder, { resume, overwrite, inputs: [text, ...((model ?? config) ? [model ?? config ?? ""] : [])] });
  const start = model === undefined ? fromConfig(config ?? "", options.dropout) : fromModel(model, options.dropout);
  try {
    const documents = readDocuments(text);
    const earlier = resume ? readRun(folder) : undefined;
    const { dtype } = options;
    await withEngine(out, (engine) => train(engine, options, start, documents, earlier, out), { dtype });
  } finally {
    start.close();
  }
}

/** What training begins with: weights, or only their shapes. */
interface Start {
  checkpoint: Checkpoint;
  tokenizer: BertTokenizer;
  /** The folder of the tokenizer's files. */
  folder: string;
  config: BertConfig;
  scratch: boolean;
  sha256: string;
  lineage: RunRecord["lineage"];
  close(): void;
}

function fromModel(path: string, dropout: number | undefined): Start {
  const folder = openModelFolder("--model", path);
  return {
    checkpoint: adjusted(folder, { dropout }),
    tokenizer: folder.tokenizer,
    folder: path,
    config: folder.config,
    scratch: false,
    sha256: sha256File(join(path, "model.safetensors")),
    lineage: folder.run?.lineage ?? [
      { stage: "pretraining", domain: null, task: "unknown", method: "unknown", prior: null },
    ],
    close: () => folder.checkpoint.close(),
  };
}

function fromConfig(path: string, dropout: number | undefined): Start {
  const json = parseJson(readText(path, { maxBytes: 4 << 20, wanted: "a config.json" }), path);
  const raw =
    dropout === undefined ? json : { ...json, hidden_dropout_prob: dropout, attention_probs_dropout_prob: dropout };
  return {
    checkpoint: { name: path, config: raw, shapes: new Map(), read: async () => new Float32Array(0) },
    tokenizer: loadTokenizer(dirname(path)),
    folder: dirname(path),
    config: parseBertConfig(raw, path),
    scratch: true,
    sha256: sha256File(path),
    lineage: [],
    close: () => {},
  };
}

/** A sentence a line, an empty line between documents. InputError: no sentence. */
export function readDocuments(path: string): string[][] {
  const documents: string[][] = [[]];
  for (const line of readLines(path, { wanted: "a text, a sentence a line" })) {
    if (line.trim() !== "") documents.at(-1)?.push(line);
    else if (documents.at(-1)?.length) documents.push([]);
  }
  const filled = documents.filter((sentences) => sentences.length > 0);
  if (filled.length === 0) throw new InputError(`${inert(path)}: the file is empty (expected a sentence a line).`);
  return filled;
}

async function train(
  engine: Engine,
  options: PretrainOptions,
  start: Start,
  documents: readonly string[][],
  earlier: RunRecord | undefined,
  out: Output,
): Promise<void> {
  const { tokenizer, config } = start;
  checkVocabulary(tokenizer, config);
  const maxLength = lengthFor(options.maxLength ?? Math.min(128, config.maxPositions), config);
  const hasPooler = start.scratch || hasParameter(start.checkpoint, "bert.pooler.dense.weight");
  const nextSentence =
    documents.length > 1 && documents.some((d) => d.length > 1) && hasPooler && config.typeVocabSize > 1;
  if (nextSentence && maxLength < SHORTEST_PAIR) {
    throw new InputError(
      `--max-length ${maxLength}: too short for pairs of sentences (expected ${SHORTEST_PAIR} or more). Give more.`,
    );
  }
  if (!nextSentence)
    out.note("next sentence is not trained: it needs two documents (an empty line between them) and a pooler");
  const { seed, recompute, out: folder } = options;
  if (earlier !== undefined) for (const note of takeUpChoices(engine.gpu, earlier)) out.note(note);
  const { scratch } = start;
  const model = await BertForPreTraining.load(engine, start.checkpoint, { nextSentence, seed, scratch, recompute });
  for (const note of model.report.notes) out.note(note);
  const source = pretrainingSource(documents, tokenizer, {
    seed,
    maxLength,
    nextSentence,
    vocabSize: config.vocabSize,
  });
  const { epochs, batch, lr, warmup, schedule } = options;
  const prior = gaussianPrior(model, { encoder: { precision: 0 }, head: { precision: 0 } });
  const profile = options.profile ? await StepProfile.begin(engine.gpu, out) : undefined;
  const training = new Training(logPosterior(model, prior, { N: source.length }), source, {
    folder,
    out,
    fit: { epochs, batch, seed, warmup, schedule, optimizer: adam({ lr }) },
    evaluate: "last",
    keepBest: false,
    profile,
  });
  const sentences = documents.reduce((sum, document) => sum + document.length, 0);
  out.note(
    `${count(sentences, "sentence")} in ${count(documents.length, "document")}, ${count(training.trainer.steps, "step")}`,
  );
  const record = newRecord(engine, options, start, { sentences, maxLength, nextSentence, N: source.length });
  if (earlier === undefined) {
    emptyOut(folder);
    writeRun(folder, record);
  } else {
    const inputs = { train: record.data.train, dev: null, weights: start.sha256, maxLength };
    checkResume(earlier, record.options, inputs);
    await training.resume();
  }
  let last: number | undefined;
  await training.run((report) => {
    last = report.nll;
  });
  const profiled = await profile?.finish(folder);
  await writeModelFolder(folder, model, pretrainingConfig(model), start.folder);
  const result = { run: folder, steps: training.trainer.steps, seconds: training.seconds, nll: last ?? null };
  writeFileAtomic(join(folder, "metrics.json"), `${JSON.stringify({ nll: result.nll }, null, 2)}\n`);
  writeRun(folder, { ...record, finished: true, steps: result.steps, seconds: result.seconds });
  if (out.json) out.document(profiled ? { ...result, profile: profiled } : result);
  else
    out.text(
      `${count(result.steps, "step")} in ${duration(result.seconds)}\nmodel: ${folder}\nnext: priorwork fill-mask --model ${folder} "…"`,
    );
}

function newRecord(
  { gpu }: Engine,
  options: PretrainOptions,
  start: Start,
  { sentences, maxLength, nextSentence, N }: { sentences: number; maxLength: number; nextSentence: boolean; N: number },
): RunRecord {
  const { recompute: _c, resume: _r, overwrite: _o, profile: _p, json: _j, out: _out, ...flags } = options;
  const hash = sha256File(options.text);
  const task = nextSentence ? "masked tokens and next sentence" : "masked tokens";
  const source = options.model ?? options.config ?? "";
  return {
    format: 1,
    command: "pretrain",
    finished: false,
    versions: versions(),
    adapter: gpu.adapter,
    kernels: kernelChoices(gpu),
    seed: options.seed,
    options: { ...flags },
    data: { train: { file: options.text, sha256: hash, rows: sentences, columns: { text: "line" } }, dev: null },
    objective: {
      task,
      method: start.scratch ? "scratch" : "mle",
      formula: `mean masked-token NLL${nextSentence ? " + mean next-sentence NLL" : ""}`,
      N,
    },
    model: { source, weights: start.sha256, labels: [], maxLength },
    lineage: [
      ...start.lineage,
      {
        stage: start.scratch ? "pretraining" : "domain",
        domain: { file: options.text, sha256: hash, size: sentences },
        task,
        method: start.scratch ? "scratch" : "mle",
        prior: null,
      },
    ],
    before: null,
    steps: 0,
    seconds: 0,
  };
}
