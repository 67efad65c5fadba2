/**
 * @file PyTorch on the CPU, in a child process that PRIORWORK_PYTHON names (a python with torch): torch.py answers lines
 * of JSON with lines of JSON, each followed by the numbers it speaks of. A run's round trip through the pipe is in its time.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { type Input, type Peer, type Prepared, Refusal, resultNames, sizeOf, type Task } from "./peer.ts";

interface Answer {
  error?: string;
  version?: string;
  arrays?: { name: string; size: number }[];
}

export async function openTorch(python: string): Promise<Peer> {
  const child = spawn(python, [fileURLToPath(new URL("torch_peer.py", import.meta.url))], {
    stdio: ["pipe", "pipe", "inherit"],
    // Its threads sleep while others have their turn, instead of spinning.
    env: { ...process.env, OMP_WAIT_POLICY: "PASSIVE", KMP_BLOCKTIME: "0", PYTHONDONTWRITEBYTECODE: "1" },
  });
  const pipe = new Pipe(child, python);
  const { answer } = await pipe.ask({ command: "hello" });
  return {
    name: "PyTorch CPU",
    version: answer.version ?? "",
    where: "cpu",
    prepare: (task, inputs) => prepare(pipe, task, inputs),
    close: async () => {
      child.stdin?.end();
      if (child.exitCode === null) await once(child, "exit");
    },
  };
}

async function prepare(pipe: Pipe, task: Task, inputs: Record<string, Input>): Promise<Prepared> {
  const { work, gradients = [], weights = [] } = task;
  const arrays = Object.entries(inputs).map(([name, { shape, data }]) => ({
    name,
    shape,
    size: sizeOf(shape),
    integer: data instanceof Int32Array,
  }));
  const numbers = Object.values(inputs).map(({ data }) => Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  await pipe.ask({ command: "prepare", work, gradients, weights, results: resultNames(task), arrays }, numbers);
  return {
    run: async () => void (await pipe.ask({ command: "run" })),
    read: async (names) => (await pipe.ask({ command: "read", names })).arrays,
    dispose: async () => void (await pipe.ask({ command: "dispose" })),
  };
}

class Pipe {
  readonly #child: ChildProcess;
  #chunks: Buffer[] = [];
  #wake: (() => void) | undefined;
  #ended: string | undefined;

  constructor(child: ChildProcess, python: string) {
    this.#child = child;
    const end = (why: string) => {
      this.#ended ??= why;
      this.#wake?.();
    };
    child.on("error", (error) => end(`${python} does not start: ${error.message}`));
    child.on("exit", (code) => end(`the python process ended (exit code ${code})`));
    child.stdin?.on("error", () => {});
    child.stdout?.on("data", (chunk: Buffer) => {
      this.#chunks.push(chunk);
      this.#wake?.();
    });
  }

  async ask(
    question: object,
    numbers: Buffer[] = [],
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
