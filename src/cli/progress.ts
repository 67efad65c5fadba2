/**
 * @file Progress of what takes long: on a terminal a bar with the time left, elsewhere plain lines, few enough for a log
 * file. Written here because the bars on npm did not pass a look at their health: cli-progress 3.12 (2023) and
 * progress 2.0 (2019) are no longer released, listr2 11 and log-update 8 want Node 22, and ora and @clack/prompts draw
 * spinners and dialogues. A bar is one line that begins with a carriage return.
 */
import { inert } from "../data/text.ts";
import { cut, duration } from "./format.ts";
import type { Clock, Stream } from "./io.ts";

const BAR = 24;
/** Redrawn no more often than the eye follows. */
const REDRAW_MS = 100;
/** Between two plain lines, unless a tenth of the work was done meanwhile and 1 s has passed. */
const LINE_MS = 10_000;

export class Progress {
  readonly #stream: Stream;
  readonly #now: Clock;
  readonly #what: string;
  readonly #total: number;
  readonly #start: number;
  #first: { done: number; at: number } | undefined;
  #last = { at: Number.NEGATIVE_INFINITY, done: 0 };
  #drawn = false;
  #finished = false;
  #ended = false;

  constructor(stream: Stream, now: Clock, what: string, total: number) {
    this.#stream = stream;
    this.#now = now;
    this.#what = what;
    this.#total = total;
    this.#start = now();
  }

  /** `done` of the total, whole or not: what is begun counts in the time left. `detail` stands behind it. */
  update(done: number, detail = ""): void {
    if (this.#ended || this.#finished) return;
    const now = this.#now();
    // The first piece compiles shaders and says nothing about the others.
    this.#first ??= { done, at: now };
    const finished = done >= this.#total;
    this.#finished = finished;
    if (this.#stream.isTTY) {
      if (!finished && now - this.#last.at < REDRAW_MS) return;
      this.#last = { at: now, done };
      this.#draw(this.#bar(done, now, detail));
      return;
    }
    const since = now - this.#last.at;
    const tenth = done - this.#last.done >= this.#total / 10 && since >= 1000;
    if (!finished && since < LINE_MS && !tenth) return;
    this.#last = { at: now, done };
    this.#stream.write(`${inert(`${this.#what} ${this.#count(done)}${this.#tail(done, now, detail)}`)}\n`);
  }

  /** Wipes the bar, so that a line may be written where it stood; the next update draws it again. */
  clear(): void {
    if (!this.#drawn) return;
    this.#stream.write("\r\u001b[K");
    this.#drawn = false;
  }

  end(): void {
    this.clear();
    this.#ended = true;
  }

  #draw(line: string): void {
    // One column stays free: a full line would wrap, and the next carriage return would miss it.
    this.#stream.write(`\r\u001b[K${cut(line, (this.#stream.columns || 80) - 1)}`);
    this.#drawn = true;
  }

  #bar(done: number, now: number, detail: string): string {
    const share = this.#total === 0 ? 1 : Math.min(1, done / this.#total);
    const full = Math.round(share * BAR);
    return `${this.#what} ${"█".repeat(full)}${"░".repeat(BAR - full)} ${this.#count(done)}${this.#tail(done, now, detail)}`;
  }

  /** What is finished, of all. */
  #count(done: number): string {
    return `${Math.floor(done)}/${this.#total}`;
  }

  #tail(done: number, now: number, detail: string): string {
    const said = detail === "" ? "" : `  ${detail}`;
    if (done >= this.#total) return `${said}  ${duration((now - this.#start) / 1000)}`;
    const first = this.#first;
    if (first === undefined || done <= first.done) return said;
    const left = ((now - first.at) / (done - first.done)) * (this.#total - done);
    return `${said}  ${duration(left / 1000)} left`;
  }
}
