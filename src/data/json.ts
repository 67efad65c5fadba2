/**
 * @file JSON from outside. `JSON.parse` keeps the last of two equal keys and says nothing, and a few megabytes of `[[],`
 * grow to many times their size, `1e999` becomes an infinity that no JSON can hold again: all are refused here, in words.
 * And JSON for Python, where 0 and 0.0 differ.
 */

import { InputError } from "../errors.ts";
import { inert, quote } from "./text.ts";

export type JsonObject = Record<string, unknown>;

export const isObject = (value: unknown): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** An empty array takes 40 bytes of memory for 3 of text; a tokenizer or a config has a few dozen. */
const MOST_BRACKETS = 500_000;
/** Whoever writes JSON again does so by recursion; a config or a tokenizer nests five deep. */
const DEEPEST = 100;

/**
 * A JSON object. InputError: not JSON, not an object, a key that stands twice in one object, nested beyond reason, a
 * number beyond the largest there is.
 */
export function parseJson(text: string, name: string): JsonObject {
  if (text.trim() === "") throw new InputError(`${inert(name)}: the file is empty (expected a JSON object).`);
  refuseBrackets(text, name);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    const reason = inert((cause as Error).message).slice(0, 160);
    throw new InputError(`${inert(name)}: not valid JSON (${reason}). Copy or download the file again.`, { cause });
  }
  if (!isObject(value)) throw new InputError(`${inert(name)}: not a JSON object. Is this the right file?`);
  const twice = duplicateKey(text);
  if (twice !== undefined) {
    throw new InputError(
      `${inert(name)}: the key ${quote(twice.key)} stands twice (line ${twice.line}). Keep one of them.`,
    );
  }
  // Only such a number can be infinite; most files have none, and are not walked.
  if (/\d[eE]\+?\d{3}|\d{300}/.test(text)) {
    const key = infiniteKey(value);
    if (key !== undefined) {
      throw new InputError(
        `${inert(name)}: ${quote(key)} has a number that is too large (expected at most 1.8e308). Correct it.`,
      );
    }
  }
  return value;
}

/** InputError: more brackets, or brackets nested deeper, than any file has that is wanted here. Before it is parsed. */
export function refuseBrackets(text: string, name: string): void {
  let brackets = 0;
  let depth = 0;
  let deepest = 0;
  let quoted = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) {
      if (c === "\\") i++;
      else if (c === '"') quoted = false;
    } else if (c === '"') quoted = true;
    else if (c === "[" || c === "{") {
      brackets++;
      if (++depth > deepest) deepest = depth;
    } else if (c === "]" || c === "}") depth--;
  }
  if (brackets <= MOST_BRACKETS && deepest <= DEEPEST) return;
  const what =
    brackets > MOST_BRACKETS
      ? `${brackets} brackets (expected at most ${MOST_BRACKETS})`
      : `brackets nested ${deepest} deep (expected at most ${DEEPEST})`;
  throw new InputError(`${inert(name)}: ${what}. Is this the right file?`);
}

/** The key under which a number that is not finite stands. */
function infiniteKey(value: unknown, key = ""): string | undefined {
  if (typeof value === "number") return Number.isFinite(value) ? undefined : key;
  if (typeof value !== "object" || value === null) return undefined;
  for (const [k, item] of Object.entries(value)) {
    const found = infiniteKey(item, Array.isArray(value) ? key : k);
    if (found !== undefined) return found;
  }
  return undefined;
}

/** The first key that stands twice in one object of `text`, which is valid JSON. */
export function duplicateKey(text: string): { key: string; line: number } | undefined {
  // A Set per open object, undefined per open array. Outside strings only brackets matter, and a colon makes a key.
  // By hand rather than by a pattern: a string of many megabytes would overflow a pattern's stack.
  const open: (Set<string> | undefined)[] = [];
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (c === "{") open.push(new Set());
    else if (c === "[") open.push(undefined);
    else if (c === "}" || c === "]") open.pop();
    else if (c === '"') {
      const from = i++;
      while (text[i] !== '"') i += text[i] === "\\" ? 2 : 1;
      let next = i + 1;
      while (" \t\n\r".includes(text[next] ?? "?")) next++;
      if (text[next] !== ":") continue;
      const key = JSON.parse(text.slice(from, i + 1)) as string;
      const keys = open.at(-1);
      if (keys?.has(key)) return { key, line: text.slice(0, from).split("\n").length };
      keys?.add(key);
    }
  }
  return undefined;
}

/**
 * JSON in Python's eyes: numbers under a key in `floats` (at any depth) always have a point or an exponent (`0.0`,
 * `1e-12`), all others are written as they are. RangeError: a number that is not finite.
 */
export function pythonJson(value: unknown, floats: ReadonlySet<string>): string {
  const write = (v: unknown, key: string, indent: string): string => {
    if (typeof v === "number") {
      if (!Number.isFinite(v)) throw new RangeError(`${key}: ${v} cannot be written as JSON`);
      const shown = Object.is(v, -0) ? "-0" : String(v);
      return floats.has(key) && /^-?\d+$/.test(shown) ? `${shown}.0` : shown;
    }
    if (typeof v !== "object" || v === null) return JSON.stringify(v) ?? "null";
    const deeper = `${indent}  `;
    const items = Array.isArray(v)
      ? v.map((item) => deeper + write(item, key, deeper))
      : Object.entries(v)
          .filter(([, item]) => item !== undefined)
          .map(([k, item]) => `${deeper}${JSON.stringify(k)}: ${write(item, k, deeper)}`);
    const [left, right] = Array.isArray(v) ? "[]" : "{}";
    return items.length === 0 ? `${left}${right}` : `${left}\n${items.join(",\n")}\n${indent}${right}`;
  };
  return `${write(value, "", "")}\n`;
}
