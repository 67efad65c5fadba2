/**
 * @file What the terminal sees. stdout has the answer (text for people, or one JSON document), stderr the adapter and
 * remarks, a line each. Text from data may hold anything, so all that leaves here is inert: no character of it can move
 * a cursor, colour a line or turn the writing round (P8).
 */
import { inert } from "../data/text.ts";
import type { AdapterReport } from "../gpu/index.ts";
import { inertLines, jsonText } from "./format.ts";
import type { Io } from "./io.ts";
import { Progress } from "./progress.ts";

export class Output {
  readonly io: Io;
  readonly json: boolean;
  #progress: Progress | undefined;

  constructor(io: Io, json: boolean) {
    this.io = io;
    this.json = json;
  }

  adapter(report: AdapterReport): void {
    this.#line(`adapter: ${adapterText(report)}`);
  }

  note(text: string): void {
    this.#line(`note: ${text}`);
  }

  warning(text: string): void {
    this.#line(`warning: ${text}`);
  }

  /** Lines on stderr that are neither: a profile, a trace. */
  remark(text: string): void {
    this.#progress?.clear();
    this.io.stderr.write(`${inertLines(text)}\n`);
  }

  /** For people only: with `--json` nothing is written. */
  text(text: string): void {
    this.#progress?.clear();
    if (!this.json) this.io.stdout.write(`${inertLines(text)}\n`);
  }

  /** The one JSON document of `--json`. */
  document(value: unknown): void {
    this.#progress?.clear();
    this.io.stdout.write(`${jsonText(value)}\n`);
  }

  /** A progress bar, or lines; the one before it ends. */
  progress(what: string, total: number): Progress {
    this.#progress?.end();
    this.#progress = new Progress(this.io.stderr, this.io.now, what, total);
    return this.#progress;
  }

  /** Ends what is unfinished on the terminal. */
  end(): void {
    this.#progress?.end();
    this.#progress = undefined;
  }

  #line(text: string): void {
    this.#progress?.clear();
    this.io.stderr.write(`${inert(text)}\n`);
  }
}

/** "llvmpipe (LLVM 15.0.6, 256 bits), a software adapter (Mesa 25.0.7)": numbers from it must be labelled as such. */
export function adapterText({ name, kind, driver }: AdapterReport): string {
  const what = {
    hardware: "GPU",
    software: "software adapter: times are not a GPU's",
    bundled: "bundled software adapter, for small models: times are not a GPU's",
  }[kind];
  return `${name} (${what}${driver === "" || driver === name ? "" : `; ${driver}`})`;
}
