/**
 * @file The folder of a run: what may be written where, run.json, and the metrics lines. A run folder is a Hugging Face
 * model folder with more beside it; model-folder.ts writes that part. Nothing is overwritten unasked (P7), and
 * `--overwrite` removes only what a run writes.
 */
import * as fs from "node:fs";
import { dirname, join, relative, resolve, sep } from "node:path";
import { fileExists, readText, storageError, writeFileAtomic } from "../data/files.ts";
import { isObject, type JsonObject, parseJson } from "../data/json.ts";
import { inert, quote } from "../data/text.ts";
import { InputError } from "../errors.ts";
import type { AdapterReport } from "../gpu/index.ts";
import { SHORTEST_TEXT } from "./values.ts";
import type { Versions } from "./version.ts";

/** A table as a run remembers it: enough to know it again. */
export interface DataRecord {
  file: string;
  sha256: string;
  rows: number;
  columns: { text: string; pair?: string; label?: string };
}

/** One stage of a chain of posteriors: each one starts from the one before; a prior, where it has one, is centred on it. */
export interface Stage {
  stage: "pretraining" | "domain" | "task";
  /** What was learned from: a table or a text by hash and size; null where the checkpoint does not say. */
  domain: { file: string; sha256: string; size: number } | null;
  task: string;
  method: string;
  /** Where the prior came from, and how strong it was; null where every precision is 0, as in maximum likelihood. */
  prior: {
    mean: string;
    sha256: string;
    precision: string;
    /** As typed after --prior. */
    family?: string;
    /** Of a prior file: its hash, what its information is of, and the hash of the text that it was gathered on. */
    file?: { sha256: string; source: string; text: string };
  } | null;
}

/** run.json: everything that is needed to repeat a run. */
export interface RunRecord {
  format: 1;
  command: "finetune" | "pretrain";
  finished: boolean;
  versions: Versions;
  adapter: AdapterReport;
  /** The kernel choices in force; equal choices give equal bits. */
  kernels: unknown;
  seed: number;
  options: JsonObject;
  data: { train: DataRecord; dev: DataRecord | null };
  objective: JsonObject;
  model: { source: string; weights: string; labels: string[]; maxLength: number };
  lineage: Stage[];
  /** The metrics of the model as loaded. */
  before: JsonObject | null;
  steps: number;
  /** Of training. */
  seconds: number;
  /** Of what a method does after it: a sweep over temperatures, its draws, members or Gaussian, the prior's strength. */
  posteriorSeconds?: number;
}

/** What a run may write; `--overwrite` removes these and nothing else. */
const OURS = [
  "run.json",
  "metrics.jsonl",
  "metrics.json",
  "profile.json",
  "config.json",
  "model.safetensors",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "vocab.txt",
  "README.md",
  "checkpoints",
  "posterior",
];

/**
 * May a run be written here? InputError: the folder holds something and neither `resume` nor `overwrite` was asked,
 * there is nothing to resume, or it is a folder that the run reads from. Changes nothing.
 */
export function checkOut(
  out: string,
  { resume, overwrite, inputs }: { resume: boolean; overwrite: boolean; inputs: readonly string[] },
): void {
  const shown = `--out ${inert(out)}`;
  const status = guarded(out, "write", () => fs.statSync(out, { throwIfNoEntry: false }));
  if (status !== undefined && !status.isDirectory()) throw new InputError(`${shown}: a file (expected a folder).`);
  // Found out now, not when the model has been measured.
  guarded(out, "write", () => fs.accessSync(nearestThere(out), fs.constants.W_OK | fs.constants.X_OK));
  const here = realPath(out);
  for (const input of inputs) {
    // A file of the run, or one in a folder of the run's, under the name it was given or the one that links lead to.
    const within = [relative(resolve(out), resolve(input)), relative(here, realPath(input))];
    if (within.some((path) => path === "" || OURS.includes(path.split(sep)[0] ?? ""))) {
      throw new InputError(`${shown}: the run would overwrite its own input ${quote(input)}. Choose another folder.`);
    }
  }
  const names =
    status === undefined
      ? []
      : guarded(out, "read", () => fs.readdirSync(out)).filter(
          // Left by a kill while the folder was begun.
          (name) => !/^\..*\.tmp$/.test(name),
        );
  const isRun = fileExists(join(out, "run.json"));
  if (resume) {
    if (isRun) return;
    throw new InputError(`--resume: no run in ${quote(out)} (expected run.json). Leave --resume out to start one.`);
  }
  if (names.length === 0) return;
  if (!overwrite) {
    throw new InputError(
      isRun
        ? `${shown}: this folder holds a run. Add --resume to continue it, --overwrite to replace it, or choose another.`
        : `${shown}: this folder is not empty. Choose another, or empty it.`,
    );
  }
  if (!isRun) {
    throw new InputError(
      `${shown}: not empty, and no run either (no run.json), so --overwrite leaves it alone. Choose another.`,
    );
  }
}

function realPath(path: string): string {
  try {
    return fs.realpathSync(path);
  } catch {
    return resolve(path);
  }
}

/** Makes the folder; with what an older run left there removed. Called once nothing can be refused any more. */
export function emptyOut(out: string): void {
  guarded(out, "write", () => {
    makeFolder(resolve(out));
    // run.json goes last: as long as it is there, what is left is known for a run.
    for (const name of [...OURS].reverse()) fs.rmSync(join(out, name), { recursive: true, force: true });
  });
}

/** The path, or the nearest folder above it that is there. */
export function nearestThere(path: string): string {
  let found = resolve(path);
  while (!fs.existsSync(found) && dirname(found) !== found) found = dirname(found);
  return found;
}

/** As `mkdir -p`. Node's own, where the system says ENOENT although the parent is there (in /proc), tries for ever. */
export function makeFolder(path: string): void {
  if (fs.statSync(path, { throwIfNoEntry: false })?.isDirectory()) return;
  if (!fs.existsSync(dirname(path))) makeFolder(dirname(path));
  fs.mkdirSync(path);
}

export function writeRun(out: string, record: RunRecord): void {
  writeFileAtomic(join(out, "run.json"), `${JSON.stringify(record, null, 2)}\n`);
}

/** run.json, or undefined where there is none. InputError: it is broken or of another version. */
export function readRun(folder: string): RunRecord | undefined {
  const path = join(folder, "run.json");
  if (!fileExists(path)) return undefined;
  const record = parseJson(readText(path, { maxBytes: 16 << 20 }), path);
  if (record.format !== 1) {
    throw new InputError(
      `${inert(path)}: format ${quote(String(record.format))} (expected 1). Was it written by a newer version?`,
    );
  }
  const wrong = wrongField(record);
  if (wrong !== undefined) {
    throw new InputError(
      `${inert(path)}: ${wrong} is missing or not what priorwork writes. Was it edited? Restore it, or train again with --overwrite.`,
    );
  }
  return record as unknown as RunRecord;
}

/** The first field of run.json that is not of its kind: what is read again here must not surprise anyone later. */
function wrongField(record: JsonObject): string | undefined {
  const whole = (x: unknown) => Number.isSafeInteger(x) && Number(x) >= 0;
  const words = (x: unknown) => Array.isArray(x) && x.every((word) => typeof word === "string");
  const text = (x: unknown) => typeof x === "string";
  const table = (x: unknown) => isObject(x) && text(x.file) && text(x.sha256) && whole(x.rows);
  const kinds: Record<string, (x: unknown) => boolean> = {
    command: (x) => x === "finetune" || x === "pretrain",
    finished: (x) => typeof x === "boolean",
    versions: isObject,
    adapter: (x) => isObject(x) && text(x.name) && text(x.kind) && text(x.driver),
    seed: whole,
    options: isObject,
    data: (x) => isObject(x) && table(x.train) && (x.dev === null || table(x.dev)),
    model: (x) =>
      isObject(x) &&
      text(x.source) &&
      text(x.weights) &&
      words(x.labels) &&
      whole(x.maxLength) &&
      Number(x.maxLength) >= SHORTEST_TEXT,
    lineage: (x) => Array.isArray(x) && x.every(isObject),
    before: (x) => x === null || isObject(x),
    steps: whole,
  };
  return Object.keys(kinds).find((key) => kinds[key]?.(Object.hasOwn(record, key) ? record[key] : undefined) !== true);
}

/** metrics.jsonl: a line a step. Lines after `step` are dropped when a run goes on from there. */
export class MetricsLog {
  readonly #path: string;
  #file: number | undefined;

  constructor(out: string, step: number) {
    this.#path = join(out, "metrics.jsonl");
    const kept = step === 0 ? [] : keptLines(this.#path, step);
    writeFileAtomic(this.#path, kept.map((line) => `${line}\n`).join(""));
    this.#file = guarded(this.#path, "write", () => fs.openSync(this.#path, "a"));
  }

  add(line: JsonObject): void {
    const file = this.#file;
    if (file !== undefined) guarded(this.#path, "write", () => fs.writeSync(file, `${JSON.stringify(line)}\n`));
  }

  close(): void {
    const file = this.#file;
    this.#file = undefined;
    if (file !== undefined) guarded(this.#path, "write", () => fs.closeSync(file));
  }
}

function keptLines(path: string, step: number): string[] {
  if (!fileExists(path)) return [];
  return readText(path)
    .split("\n")
    .filter((line) => {
      try {
        // A kill may have cut the last line short.
        return (JSON.parse(line) as { step: number }).step <= step;
      } catch {
        return false;
      }
    });
}

function guarded<T>(path: string, doing: "read" | "write", work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw storageError(path, doing, error);
  }
}
