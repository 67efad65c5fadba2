/**
 * @file The JSON of a safetensors header, read byte by byte. `JSON.parse` would keep the last of two tensors of one
 * name in silence, and build whatever a hostile header nests before anyone can look at it; this reader knows the only
 * form there is, stops at the first byte that departs from it, and takes no more memory than the tensors it lists.
 */

import { inert, quote } from "../data/text.ts";
import { InputError } from "../errors.ts";

export interface HeaderEntry {
  dtype: string;
  shape: number[];
  /** First byte and end, counted from the beginning of the data. */
  offsets: [number, number];
}

/** Far above any model (a BERT has 400), and low enough that a list of them stays below P4's 64 MB. */
const MOST_TENSORS = 100_000;
const MOST_DIMENSIONS = 16;

const UTF8 = new TextDecoder("utf-8", { fatal: true });

export class HeaderReader {
  readonly #bytes: Uint8Array;
  readonly #name: string;
  #at = 0;

  constructor(bytes: Uint8Array, name: string) {
    this.#bytes = bytes;
    this.#name = name;
  }

  /** InputError: anything but `{"name": {"dtype", "shape", "data_offsets"}, …, "__metadata__": {"…": "…"}}`. */
  read(): { metadata: Map<string, string>; entries: Map<string, HeaderEntry> } {
    const entries = new Map<string, HeaderEntry>();
    let metadata: Map<string, string> | undefined;
    this.#object((key) => {
      if (entries.size + (metadata?.size ?? 0) >= MOST_TENSORS) this.#fail(`more than ${MOST_TENSORS} tensors`);
      if (entries.has(key)) this.#fail(`tensor ${quote(key, 100)} stands twice`);
      if (key !== "__metadata__") {
        entries.set(key, this.#entry(key));
        return;
      }
      if (metadata !== undefined) this.#fail("__metadata__ stands twice");
      metadata = this.#metadata();
    });
    if (this.#peek() !== -1) this.#fail("something after the header's end");
    return { metadata: metadata ?? new Map(), entries };
  }

  #metadata(): Map<string, string> {
    const metadata = new Map<string, string>();
    this.#object((key) => {
      if (metadata.has(key)) this.#fail(`__metadata__ has ${quote(key)} twice`);
      if (metadata.size >= MOST_TENSORS) this.#fail(`__metadata__ has more than ${MOST_TENSORS} entries`);
      metadata.set(key, this.#string());
    });
    return metadata;
  }

  #entry(tensor: string): HeaderEntry {
    let dtype: string | undefined;
    let shape: number[] | undefined;
    let offsets: number[] | undefined;
    this.#object((key) => {
      const field = { dtype, shape, data_offsets: offsets };
      if (!Object.hasOwn(field, key)) this.#fail(`tensor ${quote(tensor, 100)} has an unknown field ${quote(key)}`);
      if (field[key as keyof typeof field] !== undefined) this.#fail(`tensor ${quote(tensor, 100)} has ${key} twice`);
      if (key === "dtype") dtype = this.#string();
      else if (key === "shape") shape = this.#numbers(MOST_DIMENSIONS, `the shape of tensor ${quote(tensor, 100)}`);
      else offsets = this.#numbers(2, `data_offsets of tensor ${quote(tensor, 100)}`);
    });
    const [from, to] = offsets ?? [];
    if (dtype === undefined || shape === undefined || from === undefined || to === undefined) {
      const missing = dtype === undefined ? "dtype" : shape === undefined ? "shape" : "data_offsets of two numbers";
      return this.#fail(`tensor ${quote(tensor, 100)} has no ${missing}`);
    }
    return { dtype, shape, offsets: [from, to] };
  }

  /** `{"key": value, …}`; `value` is called after each colon. */
  #object(value: (key: string) => void): void {
    this.#expect(0x7b, "{");
    if (this.#peek() === 0x7d) {
      this.#at++;
      return;
    }
    for (;;) {
      const key = this.#string();
      this.#expect(0x3a, ":");
      value(key);
      if (this.#peek() === 0x2c) {
        this.#at++;
        continue;
      }
      this.#expect(0x7d, "} or ,");
      return;
    }
  }

  #numbers(most: number, what: string): number[] {
    const numbers: number[] = [];
    this.#expect(0x5b, "[");
    if (this.#peek() === 0x5d) {
      this.#at++;
      return numbers;
    }
    for (;;) {
      if (numbers.length === most) this.#fail(`${what} has more than ${most} numbers`);
      numbers.push(this.#number(what));
      if (this.#peek() === 0x2c) {
        this.#at++;
        continue;
      }
      this.#expect(0x5d, "] or ,");
      return numbers;
    }
  }

  /** A whole number from 0 that a double holds exactly. */
  #number(what: string): number {
    this.#peek();
    const from = this.#at;
    while (/[-+.0-9a-zA-Z]/.test(String.fromCharCode(this.#bytes[this.#at] ?? 0))) {
      if (++this.#at - from > 40) break;
    }
    const text = String.fromCharCode(...this.#bytes.subarray(from, this.#at));
    const value = Number(text);
    if (!/^(0|[1-9][0-9]*)$/.test(text) || !Number.isSafeInteger(value)) {
      const found = text === "" ? this.#here() : text;
      return this.#fail(`${what} holds ${found} (expected whole numbers from 0)`);
    }
    return value;
  }

  #string(): string {
    this.#expect(0x22, "a string");
    const from = this.#at - 1;
    while (this.#at < this.#bytes.length && this.#bytes[this.#at] !== 0x22) {
      this.#at += this.#bytes[this.#at] === 0x5c ? 2 : 1;
    }
    if (this.#at >= this.#bytes.length) return this.#fail("a string has no end");
    this.#at++;
    const raw = this.#bytes.subarray(from, this.#at);
    try {
      return JSON.parse(UTF8.decode(raw)) as string;
    } catch {
      this.#at = from;
      return this.#fail("a string is not valid JSON or not valid UTF-8");
    }
  }

  /** The next byte that is no white space, not taken; −1 at the end. */
  #peek(): number {
    for (;;) {
      const byte = this.#bytes[this.#at];
      if (byte !== 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09) return byte ?? -1;
      this.#at++;
    }
  }

  #expect(byte: number, wanted: string): void {
    if (this.#peek() !== byte) this.#fail(`found ${this.#here()} (expected ${wanted})`);
    this.#at++;
  }

  #here(): string {
    const byte = this.#bytes[this.#at];
    if (byte === undefined) return "its end";
    return byte > 0x20 && byte < 0x7f ? String.fromCharCode(byte) : `byte 0x${byte.toString(16)}`;
  }

  #fail(what: string): never {
    throw new InputError(
      `${inert(this.#name)}: broken header: ${what}, at byte ${8 + this.#at}. Download or copy the file again.`,
    );
  }
}
