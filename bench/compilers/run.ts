/**
 * @file `npm run bench:compilers -- DIR [--json | --markdown]`: what compilers of real GPUs make of every kernel, without a GPU.
 * DIR is what `.ci/mesa26 DIR` has made: Mesa's drivers for an NVIDIA, an AMD and an Apple GPU, each before a kernel that
 * has no such device. They compile a shader as for the GPU and say how many registers it takes, how much of it did not fit
 * in them ("spills"), and how many threads are resident at once. That is no speed. But a kernel that spills in its inner loop, or leaves
 * a multiprocessor nearly empty, is slow on the GPU, and that is seen here.
 * Ends with 1 where a kernel spills under a compiler in which none is known to (`KNOWN`).
 */
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { COMPILERS, type Compiled, type Compiler, read } from "./statistics.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
/** Kernels that spill, and why that is left so. */
const KNOWN: readonly { compiler: string; shader: string; why: string }[] = [
  { compiler: "run-apple", shader: "attention_tiled", why: "an M1's thread has 128 registers of 32 bits" },
];

const [folder, ...flags] = process.argv.slice(2);
const unknown = flags.find((flag) => flag !== "--json" && flag !== "--markdown");
if (folder === undefined || folder.startsWith("-") || unknown !== undefined) {
  process.stderr.write("usage: npm run bench:compilers -- DIR [--json | --markdown], DIR as .ci/mesa26 makes it\n");
  process.exit(2);
}
for (const { script } of COMPILERS) {
  if (existsSync(join(folder, script))) continue;
  process.stderr.write(`${join(folder, script)}: not there. Make the folder with .ci/mesa26 ${folder}\n`);
  process.exit(2);
}

interface Row {
  compiler: Compiler;
  driver: string;
  kernels: Compiled[];
}

const results: Row[] = [];
const packed = await pack();
try {
  for (const compiler of COMPILERS) {
    process.stderr.write(`${compiler.name} …\n`);
    results.push({ compiler, ...(await compile(packed, compiler)) });
  }
} finally {
  rmSync(packed, { recursive: true });
}
if (flags.includes("--json")) {
  process.stdout.write(
    `${JSON.stringify({ date: new Date().toISOString(), results: results.map(({ compiler, ...rest }) => ({ compiler: compiler.name, ...rest })) }, null, 1)}\n`,
  );
} else {
  process.stdout.write(`${table(results, flags.includes("--markdown"))}\n`);
}
process.exitCode = unexpected(results).length > 0 ? 1 : 0;

/** record.ts as one file of plain JavaScript: a loader of TypeScript would itself be run before the kernel without a device. */
async function pack(): Promise<string> {
  const target = mkdtempSync(join(tmpdir(), "priorwork-compilers-"));
  await build({
    absWorkingDir: ROOT,
    entryPoints: ["bench/compilers/record.ts"],
    // Two folders deep, as the modules are that look for ../../shaders.
    outfile: join(target, "bench/compilers/record.mjs"),
    bundle: true,
    format: "esm",
    platform: "node",
    target: "node20",
    packages: "external",
    logLevel: "warning",
  });
  symlinkSync(join(ROOT, "shaders"), join(target, "shaders"));
  symlinkSync(join(ROOT, "node_modules"), join(target, "node_modules"));
  return target;
}

async function compile(packed: string, compiler: Compiler): Promise<Omit<Row, "compiler">> {
  const env = { ...process.env, PRIORWORK_ADAPTER: "", MESA_SHADER_CACHE_DISABLE: "true", ...compiler.env };
  // One stream for both of them, so that a kernel's name stands before what is said of it.
  const command = 'exec "$0" "$1" 2>&1 >/dev/null';
  const program = join(packed, "bench/compilers/record.mjs");
  const child = spawn("sh", ["-c", command, join(folder as string, compiler.script), program], {
    env,
    stdio: ["ignore", "pipe", "inherit"],
  });
  try {
    return await read(createInterface({ input: child.stdout }), compiler);
  } catch (error) {
    throw new Error(`${compiler.name}: ${error instanceof Error ? error.message : error}`);
  } finally {
    child.kill();
  }
}

/** Kernels by shader, entry and size, of all compilers, the worst of the variants of each. */
function grouped(results: readonly Row[]): Map<string, (Compiled | undefined)[]> {
  const groups = new Map<string, (Compiled | undefined)[]>();
  for (const [i, { kernels }] of results.entries()) {
    for (const kernel of kernels) {
      const sizes = Object.entries(kernel.tile).map(([name, value]) => `${name} ${value}`);
      const key = [`${kernel.shader}.${kernel.entry}`, ...(sizes.length > 0 ? [`(${sizes.join(", ")})`] : [])].join(
        " ",
      );
      const group = groups.get(key) ?? results.map(() => undefined);
      const before = group[i];
      group[i] = before === undefined || worse(kernel, before) ? kernel : before;
      groups.set(key, group);
    }
  }
  return new Map([...groups].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true })));
}

function worse(a: Compiled, b: Compiled): boolean {
  return a.spills !== b.spills ? a.spills > b.spills : a.registers > b.registers;
}

/** Every kernel, or, for Markdown, those of which some compiler makes one with more than a quarter of the registers. */
function table(results: readonly Row[], markdown: boolean): string {
  const heads = results.map(({ compiler: { unit, full } }) => [`registers`, `${unit}, of ${full}`, "spills"]);
  const cells = (kernel: Compiled | undefined) =>
    kernel ? [kernel.registers, kernel.resident, kernel.spills].map(String) : ["–", "–", "–"];
  const large = (kernel: Compiled | undefined, i: number) =>
    (kernel?.registers ?? 0) > (results[i] as Row).compiler.most / 4 || (kernel?.spills ?? 0) > 0;
  const rows = [...grouped(results)]
    .filter(([, kernels]) => !markdown || kernels.some(large))
    .map(([name, kernels]) => [name, ...kernels.flatMap(cells)]);
  const names = results.map(
    ({ compiler, driver, kernels }) => `${compiler.name} (${driver}): ${kernels.length} kernels`,
  );
  const wrong = unexpected(results).map(
    ({ compiler, kernel }) => `${kernel.shader}.${kernel.entry} spills under ${compiler.name}`,
  );
  const all = [["kernel", ...heads.flat()], ...rows];
  if (markdown) {
    const line = (row: string[]) => `| ${row.join(" | ")} |`;
    const rule = line(["---", ...heads.flat().map(() => "---:")]);
    return [...names.map((name) => `- ${name}`), "", line(all[0] as string[]), rule, ...rows.map(line)].join("\n");
  }
  const widths = (all[0] as string[]).map((_, i) => Math.max(...all.map((row) => (row[i] as string).length)));
  const lines = all.map((row) =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] as number) : cell.padStart(widths[i] as number))).join("  "),
  );
  return [...names, "", ...lines, ...wrong].join("\n");
}

function unexpected(results: readonly Row[]): { compiler: Compiler; kernel: Compiled }[] {
  return results.flatMap(({ compiler, kernels }) =>
    kernels
      .filter(
        ({ spills, shader }) =>
          spills > 0 && !KNOWN.some((known) => known.compiler === compiler.script && known.shader === shader),
      )
      .map((kernel) => ({ compiler, kernel })),
  );
}
