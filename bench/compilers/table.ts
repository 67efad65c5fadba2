/** @file Kernels of all compilers side by side, the worst of the variants of each, and which of them spill unexpectedly. */
import type { Compiled, Compiler, Kernel } from "./statistics.ts";

export interface Result {
  compiler: Compiler;
  driver: string;
  kernels: readonly Compiled[];
}

/** A kernel that is known to spill under a compiler, and how much at most. */
export interface Known {
  script: string;
  /** As `nameOf` gives it. */
  kernel: string;
  spills: number;
  scratch: number;
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

/** A sentence for each kernel that spills more than is known, and for what is known and no longer so. */
export function complaints(results: readonly Result[], known: readonly Known[]): string[] {
  const said: string[] = [];
  const seen = new Set<Known>();
  for (const [name, kernels] of grouped(results)) {
    for (const [i, kernel] of kernels.entries()) {
      const { compiler } = results[i] as Result;
      const allowed = known.find((one) => one.script === compiler.script && one.kernel === name);
      if (allowed) seen.add(allowed);
      const { spills = 0, scratch = 0 } = kernel ?? {};
      if (spills > (allowed?.spills ?? 0) || scratch > (allowed?.scratch ?? 0)) {
        const before = allowed ? ` (known: ${allowed.spills}, ${allowed.scratch})` : "";
        said.push(
          `${name}, by ${compiler.name}: ${spills} ${compiler.spilt} spilt, ${scratch} of memory a thread${before}`,
        );
      } else if (allowed && spills === 0 && scratch === 0) {
        said.push(`${name}, by ${compiler.name}: known to spill, and no longer does`);
      }
    }
  }
  for (const one of known)
    if (!seen.has(one)) said.push(`${one.kernel}: known to spill by ${one.script}, and not there`);
  return said;
}

/** Every kernel; as Markdown, those of which some compiler makes one that spills or takes over a quarter of its registers. */
export function table(results: readonly Result[], markdown: boolean): string {
  const heads = results.flatMap(({ compiler: { registers, resident, spilt } }) => [
    `registers, ${registers}`,
    resident,
    `spilt ${spilt}`,
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
