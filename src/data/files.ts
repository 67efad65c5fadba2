/**
 * @file The only file of src/data that touches Node: reading files within bounds, and writing them so that a kill at
 * any instant leaves the old file or the new one whole. What the system refuses becomes a StorageError (exit 4) of one
 * line; a file that can be read but isn't what it should be becomes an InputError (exit 2).
 */

import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { basename, dirname, join } from "node:path";
import { InputError, StorageError } from "../errors.ts";
import { decodeUtf8, inert, refuseImpostor } from "./text.ts";

export { describeImpostor } from "./text.ts";

/** V8 holds at most 2^29 − 24 characters in a string; a text file can have one character per byte. */
const LONGEST_TEXT = 2 ** 29 - 24;
const LONGEST_LINE = 16 * 2 ** 20;
const CHUNK = 2 ** 20;

const REASONS: Record<string, string> = {
  ENOENT: "no such file or folder. Check the path.",
  ENOTDIR: "a part of this path is a file, not a folder. Check the path.",
  EACCES: "permission denied. Check who may use it.",
  EPERM: "the system does not allow this. Check who may use it.",
  EISDIR: "this is a folder (expected a file). Name a file in it.",
  EEXIST: "this exists already. Choose another name.",
  ENOTEMPTY: "this folder is not empty. Choose another name.",
  ENOSPC: "no space left on the disk. Free some and run again.",
  EDQUOT: "your disk quota is used up. Free some space and run again.",
  EFBIG: "larger than this file system can hold. Write to another disk.",
  EROFS: "this disk can only be read. Write to another one.",
  EMFILE: "too many open files. Raise the limit (ulimit -n) and run again.",
  ENFILE: "too many open files on this machine. Close some and run again.",
  ENAMETOOLONG: "this name is too long for the file system. Choose a shorter one.",
  ELOOP: "this link leads back to itself. Check the path.",
  EBUSY: "in use by another program. Close it and run again.",
  EIO: "the disk reports an error. Check it before you run again.",
};

/** A StorageError of one line from what `node:fs` threw; errors of ours and unknown ones pass through. */
export function storageError(path: string, doing: "read" | "write" | "open", error: unknown): Error {
  if (!(error instanceof Error)) return new Error(String(error));
  const code = (error as NodeJS.ErrnoException).code;
  // Only what the system said: Node's own complaints (ERR_…) are bugs of ours.
  if (code === undefined || !/^E[A-Z0-9]+$/.test(code)) return error;
  const reason = REASONS[code] ?? `the system says ${code}. Check the path and the disk.`;
  return new StorageError(`${inert(path)}: cannot ${doing}: ${reason}`, { cause: error });
}

function guarded<T>(path: string, doing: "read" | "write" | "open", work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw storageError(path, doing, error);
  }
}

/** An open file that is read by ranges: for weights that should not lie in memory twice. Dispose of it with `close()`. */
export class RangeFile {
  readonly path: string;
  readonly size: number;
  readonly #descriptor: number;

  constructor(path: string) {
    this.path = path;
    [this.#descriptor, this.size] = guarded(path, "open", () => {
      // O_NONBLOCK: opening a pipe nobody writes to would wait for ever.
      const descriptor = fs.openSync(path, fs.constants.O_RDONLY | (fs.constants.O_NONBLOCK ?? 0));
      const status = fs.fstatSync(descriptor);
      if (status.isFile()) return [descriptor, status.size];
      fs.closeSync(descriptor);
      if (status.isDirectory()) throw Object.assign(new Error("folder"), { code: "EISDIR" });
      throw new StorageError(
        `${inert(path)}: cannot read: this is a device or a pipe (expected a file). Save it first.`,
      );
    });
  }

  /** Bytes `offset` to `offset + length`; a StorageError if the file ends before (it shrank meanwhile). */
  read(offset: number, length: number): Uint8Array<ArrayBuffer> {
    // The range is checked before memory is taken for it.
    if (offset + length > this.size) this.#shrank(offset + length);
    const bytes = new Uint8Array(length);
    let done = 0;
    while (done < length) {
      const n = guarded(this.path, "read", () =>
        // A single read() call takes at most 2 GiB.
        fs.readSync(this.#descriptor, bytes, done, Math.min(length - done, 2 ** 30), offset + done),
      );
      if (n === 0) this.#shrank(offset + length);
      done += n;
    }
    return bytes;
  }

  #shrank(end: number): never {
    throw new StorageError(
      `${inert(this.path)}: cannot read: it ended early (wanted bytes up to ${end}, opened with ${this.size}). Was it changed meanwhile?`,
    );
  }

  close(): void {
    fs.closeSync(this.#descriptor);
  }
}

/** The whole file. `maxBytes`: a larger one is an InputError before any memory is taken. */
export function readBytes(path: string, { maxBytes = Number.POSITIVE_INFINITY } = {}): Uint8Array<ArrayBuffer> {
  const file = new RangeFile(path);
  try {
    if (file.size > maxBytes) {
      throw new InputError(
        `${inert(path)}: too large (found ${file.size} bytes, expected at most ${maxBytes}). Is this the right file?`,
      );
    }
    return file.read(0, file.size);
  } finally {
    file.close();
  }
}

/** The whole file as strict UTF-8 without its byte-order mark. InputError: invalid UTF-8 (line and byte named), an impostor. */
export function readText(path: string, { maxBytes = LONGEST_TEXT, wanted = "text" } = {}): string {
  const bytes = readBytes(path, { maxBytes });
  refuseImpostor(bytes, path, wanted);
  return decodeUtf8(bytes, path);
}

/**
 * The lines of a UTF-8 file, one at a time, without their ends (LF or CRLF): memory for a chunk, not for the file.
 * An unfinished last line counts; nothing comes after a final line end. InputError: invalid UTF-8 or a NUL (line and
 * byte named), a line above 16 MB, an impostor.
 */
export function* readLines(path: string, { wanted = "text" } = {}): Generator<string, void> {
  const file = new RangeFile(path);
  try {
    let line = 1;
    let byte = 0; // where `rest` begins in the file
    let rest = new Uint8Array(0);
    for (let read = 0; read < file.size; ) {
      const fresh = file.read(read, Math.min(CHUNK, file.size - read));
      if (read === 0) refuseImpostor(fresh, path, wanted);
      read += fresh.length;
      const joined = new Uint8Array(rest.length + fresh.length);
      joined.set(rest);
      joined.set(fresh, rest.length);
      // Cutting at a line end never cuts a character: 0x0A occurs nowhere else in UTF-8.
      const end = read === file.size ? joined.length : joined.lastIndexOf(10) + 1;
      const text = decodeUtf8(joined.subarray(0, end), path, { byte, line });
      for (let from = 0; from < text.length; line++) {
        let to = text.indexOf("\n", from);
        if (to < 0) to = text.length;
        const content = text.slice(from, text[to - 1] === "\r" && to > from ? to - 1 : to);
        if (content.includes("\0")) {
          throw new InputError(
            `${inert(path)}: a NUL character (line ${line}; expected plain text). Is this a text file, saved as UTF-8?`,
          );
        }
        yield content;
        from = to + 1;
      }
      rest = joined.slice(end);
      byte += end;
      if (rest.length > LONGEST_LINE) {
        throw new InputError(
          `${inert(path)}: a line is longer than 16 MB (line ${line}). Is this a table with one example a line?`,
        );
      }
    }
  } finally {
    file.close();
  }
}

let written = 0;

/**
 * Writes `content` (whole, or in pieces that need not lie in memory together) under a temporary name beside `path`,
 * syncs it, renames it over `path`, and syncs the folder. An older file of that name is replaced; until the rename it
 * stands untouched. Whether replacing is wanted is the caller's question. StorageError: what the system refused.
 */
export function writeFileAtomic(path: string, content: Uint8Array | string | Iterable<Uint8Array>): void {
  const pieces =
    typeof content === "string"
      ? [new TextEncoder().encode(content)]
      : content instanceof Uint8Array
        ? [content]
        : content;
  const temporary = join(dirname(path), `.${basename(path)}.${process.pid}-${written++}.tmp`);
  guarded(path, "write", () => {
    const descriptor = fs.openSync(temporary, "wx");
    try {
      try {
        for (const piece of pieces) {
          for (let done = 0; done < piece.length; ) {
            done += fs.writeSync(descriptor, piece, done, Math.min(piece.length - done, 2 ** 30));
          }
        }
        fs.fsyncSync(descriptor);
      } finally {
        fs.closeSync(descriptor);
      }
      fs.renameSync(temporary, path);
    } catch (error) {
      fs.rmSync(temporary, { force: true });
      throw error;
    }
    syncFolder(dirname(path));
  });
}

/** Makes a rename in `folder` last through a power cut, where the system can (Windows cannot open a folder). */
export function syncFolder(folder: string): void {
  if (process.platform === "win32") return;
  guarded(folder, "write", () => {
    const descriptor = fs.openSync(folder, "r");
    try {
      fs.fsyncSync(descriptor);
    } catch (error) {
      // Some network file systems refuse to sync a folder; the file itself is synced.
      if (!["EINVAL", "ENOTSUP"].includes((error as NodeJS.ErrnoException).code ?? "")) throw error;
    } finally {
      fs.closeSync(descriptor);
    }
  });
}

/** SHA-256 of bytes or text, as 64 hexadecimal digits. */
export function sha256(content: Uint8Array | string): string {
  return createHash("sha256").update(content).digest("hex");
}

/** SHA-256 of a file of any size, read in pieces. */
export function sha256File(path: string): string {
  const hash = createHash("sha256");
  const file = new RangeFile(path);
  try {
    for (let at = 0; at < file.size; at += CHUNK) hash.update(file.read(at, Math.min(CHUNK, file.size - at)));
  } finally {
    file.close();
  }
  return hash.digest("hex");
}

/** True if `path` names a file (through links); false if there is none; StorageError if that cannot be told. */
export function fileExists(path: string): boolean {
  return guarded(path, "open", () => fs.statSync(path, { throwIfNoEntry: false })?.isFile() ?? false);
}
