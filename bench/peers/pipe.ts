/**
 * @file A peer in a child process: it answers a line of JSON with a line of JSON, each followed by the numbers it speaks
 * of (float32 or int32, little-endian). A run's round trip through the pipe is in its time.
 */
import { type ChildProcess, type SpawnOptions, spawn } from "node:child_process";
import { once } from "node:events";
import { type Input, type Prepared, Refusal, resultNames, sizeOf, type Task } from "./peer.ts";

export interface Answer {
  error?: string;
  version?: string;
  adapter?: string;
  arrays?: { name: string; size: number }[];
}

export class Pipe {
  readonly #child: ChildProcess;
  #chunks: Buffer[] = [];
  #wake: (() => void) | undefined;
  #ended: string | undefined;

  constructor(command: string, args: readonly string[], options: SpawnOptions = {}) {
    this.#child = spawn(command, args, { ...options, stdio: ["pipe", "pipe", "inherit"] });
    const end = (why: string) => {
      this.#ended ??= why;
      this.#wake?.();
    };
    this.#child.on("error", (error) => end(`${command} does not start: ${error.message}`));
    this.#child.on("exit", (code, signal) => end(`${command} ended (${signal ?? `exit code ${code}`})`));
    this.#child.stdin?.on("error", () => {});
    this.#child.stdout?.on("data", (chunk: Buffer) => {
      this.#chunks.push(chunk);
      this.#wake?.();
    });
  }

  async prepare(task: Task, inputs: Record<string, Input>): Promise<Prepared> {
    const { work, gradients = [], weights = [] } = task;
    const arrays = Object.entries(inputs).map(([name, { shape, data }]) => ({
      name,
      shape,
      size: sizeOf(shape),
      integer: data instanceof Int32Array,
    }));
    const numbers = Object.values(inputs).map(({ data }) => Buffer.from(data.buffer, data.byteOffset, data.byteLength));
    await this.ask({ command: "prepare", work, gradients, weights, results: resultNames(task), arrays }, numbers);
    return {
      run: async () => void (await this.ask({ command: "run" })),
      read: async (names) => (await this.ask({ command: "read", names })).arrays,
      dispose: async () => void (await this.ask({ command: "dispose" })),
    };
  }

  /** Throws Refusal with the child's own words, or when it has ended. */
  async ask(
    question: object,
    numbers: readonly Buffer[] = [],
  ): Promise<{ answer: Answer; arrays: Record<string, Float32Array> }> {
    for (const part of [`${JSON.stringify(question)}\n`, ...numbers]) this.#child.stdin?.write(part);
    const line = await this.#take((all) => all.indexOf(10) + 1);
    const answer = JSON.parse(line.toString()) as Answer;
    if (answer.error) throw new Refusal(answer.error);
    const arrays: Record<string, Float32Array> = {};
    for (const { name, size } of answer.arrays ?? []) {
      const data = await this.#take((all) => (all.length >= 4 * size ? 4 * size : 0));
      arrays[name] = new Float32Array(Uint8Array.from(data).buffer);
    }
    return { answer, arrays };
  }

  async close(): Promise<void> {
    this.#child.stdin?.end();
    if (this.#ended === undefined) await once(this.#child, "exit");
  }

  /** As many bytes as `enough` finds in what has come; it is asked again whenever more has. */
  async #take(enough: (all: Buffer) => number): Promise<Buffer> {
    for (;;) {
      if (this.#chunks.length > 1) this.#chunks = [Buffer.concat(this.#chunks)];
      const all = this.#chunks[0] ?? Buffer.alloc(0);
      const count = enough(all);
      if (count > 0) {
        this.#chunks = [all.subarray(count)];
        return all.subarray(0, count);
      }
      if (this.#ended) throw new Refusal(this.#ended);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }
}
