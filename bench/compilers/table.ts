/** @file Kernels of all compilers side by side, the worst of the variants of each, and which of them spill unexpectedly. */
import type { Compiled, Compiler, Kernel } from "./statistics.ts";

export interface Result {
  compiler: Compiler;
  driver: string;
  kernels: readonly Compiled[];
}

/** A kernel that is known to spill under a compiler, at most so much. */
export interface Known {
  script: string;
  /** As `nameOf` gives it. */
  kernel: string;
  most: number;
}

/** Shader and entry with what the shader's text was made for; variants differ in constants. */
export function nameOf({ shader, entry, tile }: Kernel): string {
  const sizes = Object.entries(tile).map(([name, value]) => `${name} ${value}`);
  return `${shader}.${entry}${sizes.length > 0 ? ` (${sizes.join(", ")})` : ""}`;
}

/** By name, one place for each result. */
export function grouped(results: readonly Result[]): Map<string, (Compiled | undefined)[]> {
  const groups = new Map<string, (Compiled | undefined)[]>();
  for (const [i, { kernels }] of results.entries()) {
    for (const kernel of kernels) {
      const group = groups.get(nameOf(kernel)) ?? results.map(() => undefined);
      const before = group[i];
      group[i] = before === undefined || worse(kernel, before) ? kernel : before;
      groups.set(nameOf(kernel), group);
    }
  }
  return new Map([...groups].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true })));
}

function worse(a: Compiled, b: Compiled): boolean {
  if (a.spills !== b.spills) return a.spills > b.spills;
  return a.scratch !== b.scratch ? a.scratch > b.scratch : a.registers > b.registers;
}

/** A sentence for each kernel whose registers do not do, and for each that is known to spill and no longer does. */
export function complaints(results: readonly Result[], known: readonly Known[]): string[] {
  const said: string[] = [];
  for (const [name, kernels] of grouped(results)) {
    for (const [i, kernel] of kernels.entries()) {
      const { compiler } = results[i] as Result;
      const allowed = known.find((one) => one.script === compiler.script && one.kernel === name);
      const { spills = 0, scratch = 0 } = kernel ?? {};
      if (kernel && spills === 0 && scratch === 0 && allowed)
        said.push(`${name} no longer spills under ${compiler.name}`);
      if (spills > (allowed?.most ?? 0) || (scratch > 0 && !allowed)) {
        said.push(
          `${name} spills under ${compiler.name}: ${spills} stores and loads, ${scratch} of memory a thread${allowed ? ` (known: ${allowed.most})` : ""}`,
        );
      }
    }
  }
  return said;
}

/** Every kernel; as Markdown, those of which some compiler makes one that spills or takes over a quarter of its registers. */
export function table(results: readonly Result[], markdown: boolean): string {
  const heads = results.flatMap(({ compiler: { registers, resident } }) => [
    `registers, ${registers}`,
    resident,
    "spills",
  ]);
  const large = (kernel: Compiled | undefined, i: number) =>
    (kernel?.registers ?? 0) > (results[i] as Result).compiler.most / 4 || (kernel?.spills ?? 0) > 0;
  const cells = (kernel: Compiled | undefined) =>
    kernel ? [kernel.registers, kernel.resident, kernel.spills].map(String) : ["–", "–", "–"];
  const rows = [...grouped(results)]
    .filter(([, kernels]) => !markdown || kernels.some(large))
    .map(([name, kernels]) => [name, ...kernels.flatMap(cells)]);
  const names = results.map(
    ({ compiler, driver, kernels }) => `${compiler.name} (${driver}): ${kernels.length} kernels`,
  );
  return [
    ...names.map((name) => (markdown ? `- ${name}` : name)),
    "",
    ...lines([["kernel", ...heads], ...rows], markdown),
  ].join("\n");
}

function lines(rows: readonly (readonly string[])[], markdown: boolean): string[] {
  const [head = [], ...rest] = rows;
  if (markdown) {
    const line = (row: readonly string[]) => `| ${row.join(" | ")} |`;
    return [line(head), line(head.map((_, i) => (i === 0 ? "---" : "---:"))), ...rest.map(line)];
  }
  const widths = head.map((_, i) => Math.max(...rows.map((row) => (row[i] as string).length)));
  return rows.map((row) =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] as number) : cell.padStart(widths[i] as number))).join("  "),
  );
}
