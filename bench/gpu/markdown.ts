/** @file The results as people read them: the judgement first, then what was done, then the rows. */
import { ceilingOf, shareOf } from "./judge.ts";
import { PARTS } from "./plan.ts";
import type { GpuRow, Results, TorchRow } from "./results.ts";

/** Rows of a table that the short form shows. */
const FEW = 14;

export function markdown(results: Results, short = false): string {
  const { facts, parts, tests } = results;
  const { name = "no adapter", driver = "" } = (facts.adapter ?? {}) as { name?: string; driver?: string };
  const lines = [`# bench/gpu: ${name}`, "", `${driver}, ${results.date}, plan ${results.plan}`.replace(/^, /, "")];
  if (results.rehearsal)
    lines.push("", "**A rehearsal on a software adapter: no number here says anything of a GPU.**");
  lines.push("", "| target | measured | reached |", "|---|---|---|");
  for (const { target, measured, reached } of results.judgement) {
    lines.push(`| ${target} | ${measured} | ${reached === undefined ? "no verdict" : reached ? "yes" : "**no**"} |`);
  }
  lines.push("", "| part | status | seconds |", "|---|---|---|");
  for (const part of PARTS) {
    const { status, seconds, reason } = parts[part];
    lines.push(`| ${part} | ${status}${reason ? `: ${reason}` : ""} | ${seconds} |`);
  }
  const failures = PARTS.flatMap((part) => parts[part].failures.map((one) => ({ part, ...one })));
  const failed = Object.entries(tests.files).flatMap(([file, list]) =>
    list
      .filter(({ status }) => status === "failed")
      .map(({ name, error }) => ({ part: file, name, error: error ?? "" })),
  );
  const wrong = [...failures, ...failed];
  if (wrong.length > 0) lines.push("", "What failed:", "");
  for (const { part, name, error } of short ? wrong.slice(0, FEW) : wrong) {
    lines.push(`- ${part}, ${name}: ${error.replace(/\s+/g, " ").slice(0, short ? 200 : 1000)}`);
  }
  if (short && wrong.length > FEW) lines.push(`- and ${wrong.length - FEW} more in the results file`);
  lines.push("", `Op tests: ${tests.passed} passed, ${tests.failed} failed, ${tests.skipped} skipped.`);
  const ceilings = `${figure(ceilingOf(results, "gflops"))} GFLOP/s, ${figure(ceilingOf(results, "gbps"))} GB/s`;
  const half = ceilingOf(results, "gflops", "f16");
  lines.push(
    `Ceilings (multiply-add, copy): ${ceilings}${half > 0 ? `; of the matrix unit ${figure(half)} GFLOP/s` : ""}.`,
  );
  const own = { Products: results.kernels.filter(isProduct), Steps: results.steps };
  const more = {
    Kernels: results.kernels.filter((row) => !isProduct(row)),
    "Products, robustness off": results.unguarded,
    Ceilings: results.ceilings,
  };
  for (const [title, rows] of Object.entries(short ? own : { ...own, ...more })) {
    lines.push(...table(results, title, short ? rows.slice(0, FEW) : rows));
  }
  lines.push(...torchTable(short ? results.torch.slice(0, FEW) : results.torch));
  return `${lines.join("\n")}\n`;
}

const isProduct = ({ name }: GpuRow) => name.startsWith("matmul");

function table(results: Results, title: string, rows: readonly GpuRow[]): string[] {
  if (rows.length === 0) return [];
  const head = ["case", "shape", "ms", "best", "GPU ms", "host ms", "dispatches", "rate", "of the ceiling"];
  return [
    "",
    `## ${title}`,
    "",
    `| ${head.join(" | ")} |`,
    `|${head.map(() => "---").join("|")}|`,
    ...rows.map((row) => {
      const share = shareOf(results, row);
      const rate =
        row.gflops !== undefined ? `${figure(row.gflops)} GFLOP/s` : row.gbps ? `${figure(row.gbps)} GB/s` : "";
      return `| ${[
        `${row.name}${row.layout ? ` ${row.layout}` : ""}`,
        shaped(row.shape),
        row.medianMs,
        row.bestMs,
        row.gpuMs || "",
        row.hostMs ?? "",
        row.dispatches || "",
        rate,
        share === undefined ? "" : `${(100 * share).toFixed(1)} %`,
      ].join(" | ")} |`;
    }),
  ];
}

function torchTable(rows: readonly TorchRow[]): string[] {
  if (rows.length === 0) return [];
  return [
    "",
    "## PyTorch",
    "",
    "| case | mode | shape | ms | best | GFLOP/s |",
    "|---|---|---|---|---|---|",
    ...rows.map(({ name, layout, mode, shape, medianMs, bestMs, gflops }) => {
      const title = `${name}${layout ? ` ${layout}` : ""}`;
      return `| ${[title, mode, shaped(shape), medianMs, bestMs, gflops === undefined ? "" : figure(gflops)].join(" | ")} |`;
    }),
  ];
}

const shaped = (shape: Record<string, number>) =>
  Object.entries(shape)
    .map(([key, value]) => `${key}${value}`)
    .join(" ");

const figure = (x: number) => Number(x.toPrecision(4));
