/** @file What was measured, as lines for a terminal and as the table of bench/README.md. */
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { adapterText } from "../../src/cli/output.ts";
import type { Entry, Row } from "./measure.ts";
import { type Report, title } from "./report.ts";

const [BEGIN, END] = ["<!-- peers-table -->", "<!-- /peers-table -->"];

/** A task, a line for each peer. */
export function text(row: Row): string {
  const verdict = row.best.map(({ peer, ratio }) => `${peer} / priorwork = ${ratio}`).join(", ");
  const lines = row.entries.map(({ peer, medianMs, range, gflops, gbps, refused }) => {
    if (refused !== undefined) return `  ${peer.padEnd(16)} ${refused}`;
    const rate = gflops !== undefined ? `${gflops} GFLOP/s` : gbps !== undefined ? `${gbps} GB/s` : "";
    return `  ${peer.padEnd(16)} ${`${medianMs} ms`.padStart(10)}  (${range?.join(" … ")})  ${rate}`;
  });
  return [title(row), ...lines, ...(verdict ? [`  ${verdict}`] : [])].join("\n");
}

/** Replaces what stands between the marks in bench/README.md; returns its path. */
export function writeTable(report: Report): string {
  const path = fileURLToPath(new URL("../README.md", import.meta.url));
  const readme = readFileSync(path, "utf8");
  const [from, to] = [readme.indexOf(BEGIN), readme.indexOf(END)];
  if (from < 0 || to < from) throw new Error(`${path}: the marks ${BEGIN} and ${END} are missing`);
  writeFileSync(path, `${readme.slice(0, from)}${BEGIN}\n${table(report)}\n${readme.slice(to)}`);
  return path;
}

export function table({ adapter, date, node, rounds, peers, absent, results }: Report): string {
  const head = peers.map(({ name, version }) => `${name} ${version}`);
  const cell = (entry: Entry | undefined) =>
    entry?.medianMs === undefined ? "–" : `${entry.medianMs} (${entry.range?.join("…")})`;
  const rows = results.map((row) => {
    const cells = peers.map(({ name }) => cell(row.entries.find(({ peer }) => peer === name)));
    const ratios = row.best.map(({ peer, ratio }) => `${ratio} (${peer})`).join(", ") || "–";
    return `| ${title(row)} | ${cells.join(" | ")} | ${ratios} |`;
  });
  const slower = results.flatMap((row) =>
    row.best.slice(0, 1).flatMap((best) => (best.ratio < 1 ? [{ row, ...best }] : [])),
  );
  const verdict =
    slower.length === 0
      ? "priorwork is the fastest of those on the adapter in every row that has a ratio."
      : `priorwork is not the fastest in: ${slower.map(({ row, peer, ratio }) => `${title(row)}, where ${peer} takes ${ratio} of its time`).join("; ")}.`;
  const refusals = new Map<string, string[]>();
  for (const row of results)
    for (const { peer, refused } of row.entries)
      if (refused !== undefined) {
        const key = `${peer}: ${refused}`;
        refusals.set(key, [...(refusals.get(key) ?? []), `${row.name}${row.layout ? ` ${row.layout}` : ""}`]);
      }
  return [
    `${adapterText(adapter)}; Node ${node.slice(1)}; ${date.slice(0, 10)}. Milliseconds, median of ${rounds} rounds (fastest…slowest); the last column is the fastest in JavaScript on the adapter, and burn, divided by priorwork: above 1 where priorwork is faster.`,
    "",
    `| | ${head.join(" | ")} | others / priorwork |`,
    `|---|${peers.map(() => "---:").join("|")}|---:|`,
    ...rows,
    "",
    verdict,
    ...(refusals.size + absent.length > 0 ? ["", "No number (–):", ""] : []),
    ...[...refusals].map(([why, names]) => `- ${why} (${names.join(", ")})`),
    ...absent.map((why) => `- ${why}`),
  ].join("\n");
}
