/**
 * @file `bench`: hands over to bench/run.ts, which is a program of its own (`npm run bench`). `bench --tune` is part of the
 * package: whoever installs it on a GPU that was never measured wants it.
 */
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { quote } from "../data/text.ts";
import { InputError, PriorworkError } from "../errors.ts";
import type { Io } from "./io.ts";
import type { RawFlags } from "./options.ts";

/** The groups of cases in bench/run.ts, in its order. Here, since the help names them and ships without `bench/`. */
export const BENCHES = [
  "matmul",
  "attention",
  "layernorm",
  "softmax",
  "elementwise",
  "vector",
  "ladder",
  "host",
  "step",
  "stack",
  "memory",
  "posterior",
] as const;

export async function bench(words: readonly string[], raw: RawFlags, io: Io): Promise<void> {
  if (raw.tune === true) {
    if (words.length > 0) {
      throw new InputError(
        `--tune: it measures the matrix products only (found ${quote(words.join(" "))}). Leave it out.`,
      );
    }
    return (await import("./tune.ts")).tune(raw, io);
  }
  const program = fileURLToPath(new URL("../../bench/run.ts", import.meta.url));
  if (!existsSync(program)) {
    throw new InputError(
      "bench: the benchmarks are not part of the installed package. Run it in a clone of priorwork.",
    );
  }
  const argv = ["--import", import.meta.resolve("tsx"), program, ...words, ...(raw.json === true ? ["--json"] : [])];
  const code = await new Promise<number>((resolve, reject) => {
    // A process of its own: its device must not share the cores with anything here.
    const child = spawn(process.execPath, argv, { stdio: ["ignore", "pipe", "pipe"], env: { ...io.env } });
    child.stdout.on("data", (chunk: Buffer) => io.stdout.write(chunk.toString()));
    child.stderr.on("data", (chunk: Buffer) => io.stderr.write(chunk.toString()));
    io.signal.addEventListener("abort", () => child.kill("SIGINT"));
    child.on("error", reject);
    child.on("close", (exit) => resolve(exit ?? 130));
  });
  if (code !== 0) throw new PriorworkError(`bench: ended with exit code ${code}. Its own messages stand above.`, code);
}
