/**
 * @file What a run found, and how parts that were measured in several runs become one table: a run's rows, and of an
 * earlier run those that it has not measured. A row is always of one run, in which its peers took turns.
 */
import { readFileSync } from "node:fs";
import type { AdapterReport } from "../../src/gpu/index.ts";
import type { Row } from "./measure.ts";

export interface Report {
  adapter: AdapterReport;
  /** ISO. */
  date: string;
  node: string;
  /** The fewest of any row. */
  rounds: number;
  peers: { name: string; version: string; where: string }[];
  /** Who does not take part, and why. */
  absent: string[];
  results: Row[];
}

export function title({ name, layout, shape }: Pick<Row, "name" | "layout" | "shape">): string {
  const sizes = Object.entries(shape).map(([key, value]) => `${key} ${value}`);
  return `${name}${layout ? ` ${layout}` : ""} (${sizes.join(", ")})`;
}

/** Error: it isn't a file that `--save` wrote. */
export function readReport(path: string): Report {
  const report = JSON.parse(readFileSync(path, "utf8")) as Partial<Report>;
  if (!report.adapter || !report.peers || !report.results) throw new Error(`${path}: not what --save writes`);
  return report as Report;
}

/** Rows in the order of `titles`; others are left out. Error: another adapter, driver or version of a peer. */
export function merged(now: Report, earlier: Report, titles: readonly string[]): Report {
  if (earlier.adapter.name !== now.adapter.name || earlier.adapter.driver !== now.adapter.driver) {
    throw new Error(`--merge: it was measured on ${earlier.adapter.driver}, this is ${now.adapter.driver}`);
  }
  for (const { name, version } of now.peers) {
    const other = earlier.peers.find((peer) => peer.name === name)?.version ?? version;
    if (other !== version) throw new Error(`--merge: it has ${name} ${other}, this is ${version}`);
  }
  const again = new Set(now.results.map(title));
  const kept = earlier.results.filter((row) => titles.includes(title(row)) && !again.has(title(row)));
  const takesPart = (name: string) => kept.some(({ entries }) => entries.some(({ peer }) => peer === name));
  const known = new Set(now.peers.map(({ name }) => name));
  const peers = [...now.peers, ...earlier.peers.filter(({ name }) => !known.has(name) && takesPart(name))];
  const rows = new Map([...kept, ...now.results].map((row) => [title(row), row]));
  const results = titles.flatMap((key) => {
    const row = rows.get(key);
    if (!row) return [];
    const missing = peers.filter(({ name }) => !row.entries.some(({ peer }) => peer === name));
    return [{ ...row, entries: [...row.entries, ...missing.map(({ name }) => ({ peer: name, refused: ABSENT }))] }];
  });
  return {
    ...now,
    rounds: kept.length > 0 ? Math.min(now.rounds, earlier.rounds) : now.rounds,
    peers,
    absent: now.absent.filter((why) => !peers.some(({ name }) => why.startsWith(`${name}:`))),
    results,
  };
}

const ABSENT = "did not take part in that run";
