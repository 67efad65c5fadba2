/**
 * @file A model from a folder, for a command: a run folder or any Hugging Face folder of a BERT, with its tokenizer. The
 * checkpoint is handed to the model with what the flags change about it (another dropout, a head for other labels).
 */
import * as fs from "node:fs";
import type { Engine } from "../autograd/index.ts";
import { storageError } from "../data/files.ts";
import { isObject } from "../data/json.ts";
import { loadTokenizer } from "../data/load.ts";
import { inert, quote } from "../data/text.ts";
import type { BertTokenizer } from "../data/tokenizer.ts";
import { InputError, StorageError } from "../errors.ts";
import { BertForSequenceClassification } from "../model/bert.ts";
import { type BertConfig, parseBertConfig } from "../model/config.ts";
import { openFolder } from "../model/folder.ts";
import type { Checkpoint, LoadReport } from "../model/load.ts";
import { cut } from "./format.ts";
import type { Output } from "./output.ts";
import { type RunRecord, readRun } from "./run-folder.ts";

/** Names of a classifier's tensors that are not the encoder's. */
const HEAD = /^(classifier|priorwork\.head)\./;

export type LoadedClassifier = BertForSequenceClassification & { report: LoadReport };

/** A folder that can be opened. StorageError: there is none; a hub id says what it would need. */
export function checkFolder(flag: string, folder: string): void {
  const status = statusOf(folder);
  if (status?.isDirectory()) return;
  if (status !== undefined) {
    throw new InputError(`${flag} ${inert(folder)}: a file (expected a folder with config.json). Name its folder.`);
  }
  const hub = /^[\w-]+\/[\w.-]+$/.test(folder);
  const hint = hub
    ? "Loading from the Hugging Face Hub is not yet in this version: download the model's files into a folder."
    : "Check the path.";
  throw new StorageError(`${flag} ${inert(folder)}: no such folder. ${hint}`);
}

/** undefined: there is none, or the path cannot be one. */
export function statusOf(path: string): fs.Stats | undefined {
  try {
    return fs.statSync(path, { throwIfNoEntry: false });
  } catch (error) {
    const cannotBe = ["ENOTDIR", "ENAMETOOLONG", "ELOOP"].includes((error as NodeJS.ErrnoException).code ?? "");
    if (cannotBe) return undefined;
    throw storageError(path, "open", error);
  }
}

export interface Folder {
  path: string;
  /** The readout that config.json names, if it does. */
  storedReadout: string | undefined;
  checkpoint: Checkpoint & { close(): void };
  config: BertConfig;
  tokenizer: BertTokenizer;
  run: RunRecord | undefined;
}

/** Opens a folder without putting anything on a device; `checkpoint.close()` when done. */
export function openModelFolder(flag: string, path: string): Folder {
  checkFolder(flag, path);
  const run = readRun(path);
  if (run !== undefined && !run.finished) {
    // With weights it was interrupted while it was saved, or drawn anew: they may be of a posterior that is half gone.
    const missing = fs.existsSync(`${path}/model.safetensors`) ? "" : " (no model.safetensors yet)";
    throw new InputError(`${flag} ${inert(path)}: this run is not finished${missing}. Finish it with --resume first.`);
  }
  const checkpoint = openFolder(path);
  try {
    const config = parseBertConfig(checkpoint.config, `${path}/config.json`);
    const stored = config.raw.priorwork;
    const storedReadout = isObject(stored) && typeof stored.readout === "string" ? stored.readout : undefined;
    return { path, storedReadout, checkpoint, config, tokenizer: loadTokenizer(path), run };
  } catch (error) {
    checkpoint.close();
    throw error;
  }
}

/** The checkpoint with another dropout in its config, and without its head where `newHead`. */
export function adjusted(folder: Folder, changes: { dropout?: number | undefined; newHead?: boolean }): Checkpoint {
  const { checkpoint, config } = folder;
  const { dropout } = changes;
  const raw =
    dropout === undefined
      ? config.raw
      : {
          ...config.raw,
          hidden_dropout_prob: dropout,
          attention_probs_dropout_prob: dropout,
          classifier_dropout: null,
        };
  const shapes = changes.newHead
    ? new Map([...checkpoint.shapes].filter(([name]) => !HEAD.test(name)))
    : checkpoint.shapes;
  // Without `close`: the folder's owner closes it.
  return { name: folder.path, config: raw, shapes, read: (name) => checkpoint.read(name) };
}

/** The longest sequence that a run was trained with; undefined for a folder of another origin. */
export function runLength({ run, config }: Folder): number | undefined {
  const length = run?.model.maxLength;
  return typeof length === "number" && length <= config.maxPositions ? length : undefined;
}

/** True if the folder has the head of a classifier. */
export function hasHead({ checkpoint }: Folder): boolean {
  return [...checkpoint.shapes.keys()].some((name) => HEAD.test(name));
}

/** What the classes of a fine-tuned folder are called. InputError: it has no head. */
export function labelsOf(flag: string, folder: Folder): string[] {
  if (!hasHead(folder)) {
    throw new InputError(
      `${flag} ${inert(folder.path)}: no fine-tuned head (expected classifier.weight). Fine-tune it first, or name a run folder.`,
    );
  }
  const classes = folder.checkpoint.shapes.get("classifier.weight")?.[0] ?? 2;
  return folder.config.labels ?? Array.from({ length: classes }, (_, k) => `LABEL_${k}`);
}

/** A fine-tuned classifier, ready to predict. InputError: the folder has no head, so there is nothing it can answer. */
export async function loadClassifier(
  engine: Engine,
  flag: string,
  folder: Folder,
  out: Output,
): Promise<LoadedClassifier> {
  const labels = labelsOf(flag, folder);
  const model = await BertForSequenceClassification.load(engine, adjusted(folder, {}), { labels });
  const missing = model.report.missing[0];
  if (missing !== undefined) {
    throw new InputError(
      `${flag} ${inert(folder.path)}: its head is not whole (tensor ${quote(missing)} is missing or has another shape than config.json says). Use another checkpoint.`,
    );
  }
  report(model.report, out);
  return model;
}

/** What loading has to say. */
export function report({ notes, unexpected }: LoadReport, out: Output): void {
  for (const note of notes) out.note(note);
  if (unexpected.length > 0) {
    const shown =
      unexpected
        .slice(0, 5)
        .map((name) => cut(name, 100))
        .join(", ") + (unexpected.length > 5 ? `, … ${unexpected.length - 5} more` : "");
    out.note(`tensors of the checkpoint that this task does not use: ${shown}`);
  }
}
