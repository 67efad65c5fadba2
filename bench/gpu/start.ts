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

/** Runs one part until it ends or `due` (Date.now) has come. */
export function startPart(
  script: string,
  order: Order,
  env: NodeJS.ProcessEnv,
  due: number,
  hear: (message: Message) => void,
): Promise<Ended> {
  // "advanced" keeps NaN and infinities.
  const child = fork(script, [], { env, stdio: ["ignore", "pipe", "pipe", "ipc"], serialization: "advanced" });
  const done = { value: false };
  child.on("message", (message: Message | { kind: "end" }) => {
    if (message.kind !== "end") return hear(message);
    done.value = true;
    setTimeout(() => child.kill("SIGKILL"), LEAVING).unref();
  });
  child.send(order);
  return ended(child, due, done);
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
  return ended(child, due, done).then((end) => (skipped ? { skipped, output: end.output } : end));
}

function ended(child: ChildProcess, due: number, done: { value: boolean }): Promise<Ended> {
  let output = "";
  const keep = (chunk: Buffer) => {
    output = (output + chunk.toString()).slice(-KEPT);
  };
  child.stdout?.on("data", keep);
  child.stderr?.on("data", keep);
  let late = false;
  const timer = setTimeout(
    () => {
      late = true;
      child.kill("SIGKILL");
    },
    Math.max(0, due - Date.now()),
  );
  return new Promise((resolve) => {
    const end = (how: string) => {
      clearTimeout(timer);
      if (done.value) resolve({ output });
      else if (late) resolve({ error: "ran past its time and was ended; what it told until then stands", output });
      else resolve({ error: `ended early (${how}): ${output.trim().split("\n").slice(-6).join(" | ")}`, output });
    };
    child.on("error", (error) => end(error.message));
    child.on("close", (code, signal) => end(signal ?? `exit code ${code}`));
  });
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
