/**
 * @file `npm run bench:compilers -- DIR [--json | --markdown] [--unguarded]`: what compilers of real GPUs make of every kernel,
 * without a GPU. DIR is what `.ci/mesa26 DIR` has made: Mesa's drivers for an NVIDIA, an AMD and an Apple GPU, each before an
 * operating system's kernel that has no such device. `--unguarded`: with Dawn's toggle `disable_robustness`.
 * Ends with 1 where a kernel spills more than is known (`KNOWN`, of one version of Mesa) or no longer does, with 2 where a
 * compiler did not answer.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import {
  accessSync,
  closeSync,
  constants,
  createReadStream,
  mkdtempSync,
  openSync,
  rmSync,
  symlinkSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { COMPILERS, type Compiler, read } from "./statistics.ts";
import { complaints, type Known, type Result, table } from "./table.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const MINUTES = 15;
const USAGE =
  "usage: npm run bench:compilers -- DIR [--json | --markdown] [--unguarded], DIR as .ci/mesa26 DIR makes it";

/** What `KNOWN` was found with; another version's numbers are shown and not held against it. */
const MESA = "Mesa 26.1.6";
/** A thread of an M1 has 128 registers of 32 bits, too few for a square of scores beside the sums of up to 64 channels. */
const KNOWN: readonly Known[] = (
  [
    ["forward", 16, 28, 56],
    ["forward", 20, 32, 64],
    ["forward", 32, 32, 64],
    ["backwardQuery", 16, 14, 28],
    ["backwardQuery", 20, 12, 24],
    ["backwardQuery", 32, 12, 24],
    ["backwardKey", 4, 8, 16],
    ["backwardKey", 8, 53, 64],
    ["backwardKey", 16, 274, 224],
    ["backwardKey", 20, 280, 232],
    ["backwardKey", 32, 280, 232],
  ] as const
).map(([entry, d4, spills, scratch]) => ({
  script: "run-apple",
  kernel: `attention_tiled.${entry} (D4 ${d4})`,
  spills,
  scratch,
}));

const words = process.argv.slice(2);
const flags = words.filter((word) => word.startsWith("-"));
const [given, ...more] = words.filter((word) => !word.startsWith("-"));
if (given === undefined || more.length > 0 || flags.some((flag) => !/^--(json|markdown|unguarded)$/.test(flag))) {
  process.stderr.write(`${USAGE}\n`);
  process.exit(2);
}
// npm runs scripts from the package's root.
const folder = resolve(process.env.INIT_CWD ?? ".", given);
for (const { script } of COMPILERS) {
  try {
    accessSync(join(folder, script), constants.X_OK);
  } catch {
    process.stderr.write(`${join(folder, script)}: no such program. Make the folder with .ci/mesa26 ${given}\n`);
    process.exit(2);
  }
}

const packed = mkdtempSync(join(tmpdir(), "priorwork-compilers-"));
let running: ChildProcess | undefined;
const clean = () => {
  running?.kill("SIGKILL");
  rmSync(packed, { recursive: true, force: true });
};
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => {
    clean();
    process.exit(2);
  });
}

try {
  await pack();
  const results: Result[] = [];
  for (const compiler of COMPILERS) {
    process.stderr.write(`${compiler.name} …\n`);
    results.push({ compiler, ...(await compile(compiler)) });
  }
  const unguarded = flags.includes("--unguarded");
  const comparable = !unguarded && results.every(({ driver }) => driver.includes(MESA));
  const said = comparable ? complaints(results, KNOWN) : [];
  if (!comparable && !unguarded) process.stderr.write(`not ${MESA}: what is known to spill is not compared\n`);
  const rows = results.map(({ compiler, ...rest }) => ({ compiler: compiler.name, ...rest }));
  const json = { date: new Date().toISOString(), unguarded, results: rows };
  process.stdout.write(
    flags.includes("--json")
      ? `${JSON.stringify(json, null, 1)}\n`
      : `${table(results, flags.includes("--markdown"))}\n`,
  );
  for (const line of said) process.stderr.write(`${line}\n`);
  process.exitCode = said.length > 0 ? 1 : 0;
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : error}\n`);
  process.exitCode = 2;
} finally {
  clean();
}

/** record.ts as one file of plain JavaScript: a loader of TypeScript would itself run before the kernel without a device. */
async function pack(): Promise<void> {
  await build({
    absWorkingDir: ROOT,
    entryPoints: ["bench/compilers/record.ts"],
    // Two folders deep, as the modules are that look for ../../shaders.
    outfile: join(packed, "bench/compilers/record.mjs"),
    bundle: true,
    format: "esm",
    platform: "node",
    target: "node20",
    packages: "external",
    logLevel: "warning",
  });
  symlinkSync(join(ROOT, "shaders"), join(packed, "shaders"));
  symlinkSync(join(ROOT, "node_modules"), join(packed, "node_modules"));
}

async function compile(compiler: Compiler): Promise<Omit<Result, "compiler">> {
  // To a file: NAK says 300 MB in small pieces, for which a pipe takes twice the time.
  const said = join(packed, compiler.script);
  const file = openSync(said, "w");
  const program = join(packed, "bench/compilers/record.mjs");
  const child = spawn(join(folder, compiler.script), [program, ...flags], {
    env: { ...process.env, MESA_SHADER_CACHE_DISABLE: "true", ...compiler.env },
    stdio: ["ignore", "ignore", file],
  });
  running = child;
  closeSync(file);
  // spawn's own limit would hold the process until it is over where the program cannot be started.
  const limit = setTimeout(() => child.kill("SIGKILL"), MINUTES * 60_000);
  let code: number | null = null;
  let signal: string | null = null;
  try {
    [code, signal] = (await once(child, "close")) as [number | null, string | null];
  } finally {
    clearTimeout(limit);
  }
  try {
    return await read(createInterface({ input: createReadStream(said) }), compiler);
  } catch (error) {
    const reason = signal === "SIGKILL" ? `ended after ${MINUTES} minutes; ` : code === 0 ? "" : `${signal ?? code}; `;
    throw new Error(`${compiler.name}: ${reason}${error instanceof Error ? error.message : error}`);
  } finally {
    rmSync(said);
  }
}
