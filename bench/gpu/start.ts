/** @file Starting the parts: a process each, killed when its time is over. The end of what it printed is kept for the log. */
import { type ChildProcess, fork, spawn } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join, sep } from "node:path";
import { createInterface } from "node:readline";
import type { Order } from "./parts.ts";
import type { Plan } from "./plan.ts";
import type { Message } from "./results.ts";

/** How a process ended. Nothing said: well. */
export interface Ended {
  error?: string;
  /** It said itself that it has nothing to do here. */
  skipped?: string;
  output: string;
}

/** Milliseconds that a process which has said that it is done may take to end: a driver may hang there. */
const LEAVING = 3000;
/** Characters of output that are kept. */
const KEPT = 8000;

/** When a process is ended: at a time of Date.now, or after so many milliseconds without a word. */
export interface Limits {
  due: number;
  silence: number;
}

/**
 * Runs one part, or one test file of it, to its end: where a process dies or falls silent over a case, the next one
 * leaves that out and goes on. How each of them ended.
 */
export async function throughAll(
  script: string,
  order: Order,
  env: NodeJS.ProcessEnv,
  limits: Limits,
  hear: (message: Message) => void,
): Promise<Ended[]> {
  const ends: Ended[] = [];
  const begun = [...order.begun];
  const fatal = [...order.fatal];
  for (;;) {
    let current: string | undefined;
    const end = await startPart(script, { ...order, begun, fatal }, env, limits, (message) => {
      if (message.kind !== "begin") return hear(message);
      current = message.name;
      begun.push(current);
    });
    ends.push(end);
    // Each process that is started again leaves out one thing more than the last: there is an end to it.
    if (!end.error || current === undefined || Date.now() > limits.due - LEAVING) return ends;
    end.error = `${current}: ${end.error}`;
    fatal.push(current);
  }
}

/** Runs one process of a part. */
export function startPart(
  script: string,
  order: Order,
  env: NodeJS.ProcessEnv,
  limits: Limits,
  hear: (message: Message) => void,
): Promise<Ended> {
  // "advanced" keeps NaN and infinities.
  const child = fork(script, [], { env, stdio: ["ignore", "pipe", "pipe", "ipc"], serialization: "advanced" });
  const done = { value: false };
  const { ending, heard } = ended(child, limits, done);
  child.on("message", (message: Message | { kind: "end" }) => {
    heard();
    if (message.kind !== "end") return hear(message);
    done.value = true;
    setTimeout(() => child.kill("SIGKILL"), LEAVING).unref();
  });
  child.send(order);
  return ending;
}

/** PyTorch's side, where there is a Python that has it: its lines of JSON are messages. */
export function runPython(script: string, plan: Plan, due: number, hear: (message: Message) => void): Promise<Ended> {
  const python = process.env.PRIORWORK_PYTHON ?? "python3";
  const { products, model, batches, rounds, round } = plan;
  const seconds = Math.max(1, (due - Date.now()) / 1000 - 5);
  const work = JSON.stringify({ products, model, batches, rounds, round, seconds });
  const child = spawn(python, ["-u", script, work], { stdio: ["ignore", "pipe", "pipe"] });
  const done = { value: false };
  let skipped: string | undefined;
  createInterface({ input: child.stdout }).on("line", (line) => {
    let said: (Message | { kind: "end" } | { kind: "skip"; reason: string }) | undefined;
    try {
      said = JSON.parse(line);
    } catch {
      return; // a library's own words
    }
    if (said?.kind === "end") done.value = true;
    else if (said?.kind === "skip") skipped = said.reason;
    else if (said) hear(said);
  });
  child.on("error", (error) => {
    skipped = `PyTorch was not asked: ${python} does not start (${error.message}); PRIORWORK_PYTHON may name another`;
  });
  const { ending } = ended(child, { due, silence: Number.POSITIVE_INFINITY }, done);
  return ending.then((end) => (skipped ? { skipped, output: end.output } : end));
}

/** `heard` is to be called at each word of the child's. */
function ended(child: ChildProcess, { due, silence }: Limits, done: { value: boolean }) {
  let output = "";
  const keep = (chunk: Buffer) => {
    output = (output + chunk.toString()).slice(-KEPT);
  };
  child.stdout?.on("data", keep);
  child.stderr?.on("data", keep);
  let cut: string | undefined;
  const end = (why: string) => {
    cut = `${why} and was ended; what it told until then stands`;
    child.kill("SIGKILL");
  };
  const timer = setTimeout(() => end("ran past its time"), Math.max(0, due - Date.now()));
  const watch = () =>
    Number.isFinite(silence) ? setTimeout(() => end(`said nothing for ${silence / 1000} s`), silence) : undefined;
  let watching = watch();
  const ending = new Promise<Ended>((resolve) => {
    const closed = (how: string) => {
      clearTimeout(timer);
      clearTimeout(watching);
      if (done.value) resolve({ output });
      else if (cut) resolve({ error: cut, output });
      else resolve({ error: `ended early (${how}): ${output.trim().split("\n").slice(-6).join(" | ")}`, output });
    };
    child.on("error", (error) => closed(error.message));
    child.on("close", (code, signal) => closed(signal ?? `exit code ${code}`));
  });
  const heard = () => {
    clearTimeout(watching);
    watching = watch();
  };
  return { ending, heard };
}

/** The carried test files, those that match an earlier word first. */
export function testFiles(folder: string, words: readonly string[]): string[] {
  if (!existsSync(folder)) return [];
  const all = readdirSync(folder, { recursive: true, encoding: "utf8" })
    .map((path) => path.split(sep).join("/"))
    .filter((path) => path.endsWith(".test.js"))
    .sort();
  const found = new Set(words.flatMap((word) => all.filter((path) => path.startsWith(word))));
  return [...found].map((path) => join(folder, path));
}
