/**
 * @file Checkpoints of a run: a folder each, `step-…` with everything a run needs to go on and `best-…` with the θ that
 * was best on dev. A kill at any instant leaves the last finished one loadable (P1): files are written into a folder with
 * a temporary name and synced, the manifest with their sizes and SHA-256 comes last, the folder is renamed, and only then
 * are older ones removed. What is read is checked against its manifest first.
 */
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { join } from "node:path";
import { readBytes, readText, sha256, storageError, syncFolder, writeFileAtomic } from "../data/files.ts";
import { isObject, parseJson } from "../data/json.ts";
import { inert } from "../data/text.ts";
import { InputError } from "../errors.ts";

export type Kind = "step" | "best";

/** A file of a checkpoint: its name, and its bytes, whole or in pieces. */
export interface CheckpointFile {
  name: string;
  content: Uint8Array | string | Iterable<Uint8Array>;
}

/** A checkpoint that was read and whose every file matched its manifest. */
export interface Checkpoint {
  name: string;
  folder: string;
  step: number;
  files: Map<string, Uint8Array<ArrayBuffer>>;
}

/** What was passed over, and why. */
export interface Skipped {
  name: string;
  reason: string;
}

const MANIFEST = "manifest.json";
/** Kind, step, and how often that step was written before: a name is never used twice while it stands. */
const NAME = /^(step|best)-(\d{8,})(?:\.(\d+))?$/;
/** A checkpoint has a handful of files with plain names. */
const FILE = /^[a-z0-9][a-z0-9._-]{0,63}$/i;

interface Entry {
  name: string;
  step: number;
  again: number;
}

/** Checkpoints of a kind, the newest first. */
function checkpointsOf(root: string, kind: Kind): Entry[] {
  return entriesOf(root)
    .flatMap((name) => {
      const match = NAME.exec(name);
      return match?.[1] === kind ? [{ name, step: Number(match[2]), again: Number(match[3] ?? 0) }] : [];
    })
    .sort((a, b) => b.step - a.step || b.again - a.again);
}

/** Writes a checkpoint below `root`, which is made if it is not there; returns its name. Older ones stay. */
export function writeCheckpoint(root: string, kind: Kind, step: number, files: readonly CheckpointFile[]): string {
  const before = checkpointsOf(root, kind).find((entry) => entry.step === step);
  const plain = `${kind}-${String(step).padStart(8, "0")}`;
  const name = before === undefined ? plain : `${plain}.${before.again + 1}`;
  const final = join(root, name);
  const temporary = join(root, `.${name}.${process.pid}.tmp`);
  guarded(root, () => {
    fs.mkdirSync(root, { recursive: true });
    fs.rmSync(temporary, { recursive: true, force: true });
    fs.mkdirSync(temporary);
  });
  const entries: Record<string, { bytes: number; sha256: string }> = {};
  for (const { name: file, content } of files) {
    const hash = createHash("sha256");
    let bytes = 0;
    writeFileAtomic(join(temporary, file), counted(content));
    entries[file] = { bytes, sha256: hash.digest("hex") };

    function* counted(pieces: CheckpointFile["content"]): Generator<Uint8Array> {
      const whole = typeof pieces === "string" ? [new TextEncoder().encode(pieces)] : pieces;
      for (const piece of whole instanceof Uint8Array ? [whole] : whole) {
        hash.update(piece);
        bytes += piece.length;
        yield piece;
      }
    }
  }
  writeFileAtomic(join(temporary, MANIFEST), `${JSON.stringify({ format: 1, kind, step, files: entries }, null, 2)}\n`);
  guarded(final, () => fs.renameSync(temporary, final));
  syncFolder(root);
  return name;
}

/** Removes every checkpoint of a kind but the one named, and what a kill left unfinished. */
export function removeOthers(root: string, kind: Kind, kept: string | undefined): void {
  for (const name of entriesOf(root)) {
    const other = NAME.exec(name)?.[1] === kind && name !== kept;
    const unfinished = name.startsWith(`.${kind}-`) && name.endsWith(".tmp");
    if (other || unfinished) {
      guarded(join(root, name), () => fs.rmSync(join(root, name), { recursive: true, force: true }));
    }
  }
}

/** The newest checkpoint of a kind (and of a step) that is whole, and every newer one that is not. */
export function newestCheckpoint(
  root: string,
  kind: Kind,
  step?: number,
): { taken: Checkpoint | undefined; skipped: Skipped[] } {
  const skipped: Skipped[] = [];
  for (const name of entriesOf(root)) {
    if (name.startsWith(`.${kind}-`)) skipped.push({ name, reason: "it was never finished" });
  }
  for (const entry of checkpointsOf(root, kind)) {
    if (step !== undefined && entry.step !== step) continue;
    const read = readCheckpoint(root, entry);
    if (!("reason" in read)) return { taken: read, skipped };
    skipped.push(read);
  }
  return { taken: undefined, skipped };
}

/** One checkpoint, every file checked; or why it cannot be taken. */
function readCheckpoint(root: string, { name, step }: Entry): Checkpoint | Skipped {
  const folder = join(root, name);
  try {
    const manifest = parseJson(readText(join(folder, MANIFEST), { maxBytes: 1 << 20 }), join(folder, MANIFEST));
    if (manifest.format !== 1 || manifest.step !== step || !isObject(manifest.files)) {
      return { name, reason: "its manifest is of another version or another step" };
    }
    const files = new Map<string, Uint8Array<ArrayBuffer>>();
    for (const [file, entry] of Object.entries(manifest.files)) {
      if (!FILE.test(file) || !isObject(entry) || typeof entry.bytes !== "number") {
        return { name, reason: `its manifest names a file that no checkpoint has (${inert(file)})` };
      }
      const path = join(folder, file);
      const size = fs.statSync(path, { throwIfNoEntry: false })?.size;
      if (size !== entry.bytes) {
        return { name, reason: `${file} has ${size ?? "no"} bytes (the manifest says ${entry.bytes})` };
      }
      const bytes = readBytes(path);
      if (sha256(bytes) !== entry.sha256)
        return { name, reason: `${file} is not what was written (its SHA-256 differs)` };
      files.set(file, bytes);
    }
    return { name, folder, step, files };
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    return { name, reason: inert(error.message.split("\n", 1)[0] ?? "") };
  }
}

/** A file of a checkpoint. InputError: it is not there. */
export function fileOf({ folder, files }: Checkpoint, name: string): Uint8Array<ArrayBuffer> {
  const bytes = files.get(name);
  if (bytes === undefined)
    throw new InputError(`${inert(folder)}: no ${name} in this checkpoint. Remove it and resume.`);
  return bytes;
}

function entriesOf(root: string): string[] {
  return fs.existsSync(root) ? guarded(root, () => fs.readdirSync(root).sort()) : [];
}

function guarded<T>(path: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw storageError(path, "write", error);
  }
}
