/**
 * @file Text and bytes that came from outside: strict decoding, a look at what a file really is, and how to quote it.
 * Whatever a file says may end up on a terminal, so it is quoted with every control and direction character escaped;
 * and a download that went wrong (an HTML page, a Git LFS pointer) is named as such by whoever reads it.
 */

import { InputError } from "../errors.ts";

/** Control, format, surrogate, private-use and line-separating characters: invisible, or able to move a cursor. */
const UNSAFE = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\u2028\u2029]/gu;

/** `text` without anything that could move a cursor or turn writing round: such characters become `\u{…}`. */
export function inert(text: string): string {
  return text.replace(UNSAFE, (c) => {
    if (c === "\t") return "\\t";
    if (c === "\n") return "\\n";
    if (c === "\r") return "\\r";
    return `\\u{${(c.codePointAt(0) ?? 0).toString(16)}}`;
  });
}

/** `text` in double quotes, inert, cut after `longest` characters: for messages. */
export function quote(text: string, longest = 60): string {
  // Cut before splitting into characters: the text may be megabytes long.
  const characters = [...text.slice(0, 2 * longest + 2)];
  const cut = characters.length > longest;
  return `"${inert(cut ? characters.slice(0, longest).join("") : text)}${cut ? "…" : ""}"`;
}

/** Quoted words with commas between, at most `most` of them and a count of the rest. */
export function quoteList(words: readonly string[], most = 12): string {
  const shown = words.slice(0, most).map((word) => quote(word, 30));
  if (words.length > most) shown.push(`… ${words.length - most} more`);
  return shown.join(", ");
}

/** The candidate nearest to `word` in edits (insert, delete, replace, swap), if it is near enough to be a slip. */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  let best: string | undefined;
  let fewest = Number.POSITIVE_INFINITY;
  for (const candidate of candidates) {
    if (Math.abs(candidate.length - word.length) > 3 || candidate.length > 64) continue;
    const edits = editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (edits < fewest) {
      fewest = edits;
      best = candidate;
    }
  }
  return fewest <= Math.max(1, Math.floor(word.length / 3)) ? best : undefined;
}

function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1;
      let d = Math.min((previous[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, (previous[j - 1] ?? 0) + same);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) d = Math.min(d, (before[j - 2] ?? 0) + 1);
      row.push(d);
    }
    before = previous;
    previous = row;
  }
  return previous[b.length] ?? 0;
}

/**
 * What a file really is, from its first bytes, when it is one of the things a failed download or a wrong path leaves
 * behind; `undefined` when nothing is recognised. Worded to follow "this is".
 */
export function describeImpostor(bytes: Uint8Array): string | undefined {
  const starts = (...signature: number[]) => signature.every((byte, i) => bytes[i] === byte);
  const head = new TextDecoder("latin1").decode(bytes.subarray(0, 512));
  if (head.startsWith("version https://git-lfs.github.com/spec/")) {
    return "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`";
  }
  const word = head.replace(/^\u00ef\u00bb\u00bf/, "").trimStart();
  if (/^(<!doctype html|<html)[\s>]/i.test(word)) return "an HTML page, not the file itself; download it again";
  if (/^<\?xml[\s]/i.test(word)) return "an XML document, perhaps a server's error message; download the file again";
  if (starts(0x1f, 0x8b)) return "a gzip archive; unpack it first";
  if (starts(0x50, 0x4b, 3, 4)) return "a ZIP archive (.pt, .bin and .xlsx files are such)";
  if (starts(0x50, 0x41, 0x52, 0x31)) return "a Parquet file";
  return undefined;
}

/** Throws an InputError when `bytes` (the first ones of `name`) are recognised as something that nobody wants to read. */
export function refuseImpostor(bytes: Uint8Array, name: string, wanted: string): void {
  const found = describeImpostor(bytes);
  if (found !== undefined) throw new InputError(`${inert(name)}: this is ${found} (expected ${wanted}).`);
}

/** Where the first byte stands that no UTF-8 text has (RFC 3629), or −1. */
export function firstInvalidUtf8(bytes: Uint8Array): number {
  let i = 0;
  while (i < bytes.length) {
    const lead = bytes[i] ?? 0;
    if (lead < 0x80) {
      i++;
      continue;
    }
    const length =
      lead >= 0xc2 && lead <= 0xdf ? 2 : lead >= 0xe0 && lead <= 0xef ? 3 : lead >= 0xf0 && lead <= 0xf4 ? 4 : 0;
    if (length === 0) return i;
    // The second byte excludes overlong forms, surrogates and code points above 10FFFF.
    const low = lead === 0xe0 ? 0xa0 : lead === 0xf0 ? 0x90 : 0x80;
    const high = lead === 0xed ? 0x9f : lead === 0xf4 ? 0x8f : 0xbf;
    for (let k = 1; k < length; k++) {
      const byte = bytes[i + k] ?? 0;
      if (byte < (k === 1 ? low : 0x80) || byte > (k === 1 ? high : 0xbf)) return i;
    }
    i += length;
  }
  return -1;
}

const STRICT = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * Strict UTF-8. `at` says where `bytes` stands in the file when it is only a part of it (byte offset, first line).
 * A byte-order mark at the start of the file is dropped. InputError: invalid UTF-8, or UTF-16 by its mark.
 */
export function decodeUtf8(bytes: Uint8Array, name: string, at = { byte: 0, line: 1 }): string {
  if (at.byte === 0) {
    const [a, b, c] = bytes;
    if ((a === 0xff && b === 0xfe) || (a === 0xfe && b === 0xff)) {
      throw new InputError(`${inert(name)}: this is UTF-16 (expected UTF-8). Save it as UTF-8 and run again.`);
    }
    if (a === 0xef && b === 0xbb && c === 0xbf) return decodeUtf8(bytes.subarray(3), name, { byte: 3, line: at.line });
  }
  try {
    return STRICT.decode(bytes);
  } catch (cause) {
    const offset = firstInvalidUtf8(bytes);
    let line = at.line;
    for (let i = 0; i < offset; i++) if (bytes[i] === 10) line++;
    const byte = (bytes[offset] ?? 0).toString(16).padStart(2, "0");
    throw new InputError(
      `${inert(name)}: invalid UTF-8 (line ${line}, byte offset ${at.byte + offset}; found 0x${byte}). Save it as UTF-8 and run again.`,
      { cause },
    );
  }
}
