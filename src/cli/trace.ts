/** @file `posterior/trace.json` of a sampler's run, read again. */
import { join } from "node:path";
import { fileExists, readText } from "../data/files.ts";
import { isObject, refuseBrackets } from "../data/json.ts";
import { inert } from "../data/text.ts";
import { InputError } from "../errors.ts";
import type { TraceRow } from "../posterior/index.ts";

const tracePath = (run: string) => join(run, "posterior", "trace.json");

/** Whether a run has a trace. */
export function hasTrace(run: string): boolean {
  return fileExists(tracePath(run));
}

/** The rows of a run's trace. InputError: it is not what a sampler writes. */
export function readTrace(run: string): TraceRow[] {
  const path = tracePath(run);
  const text = readText(path, { maxBytes: 64 << 20 });
  refuseBrackets(text, path);
  let rows: unknown;
  try {
    rows = JSON.parse(text);
  } catch {
    rows = undefined;
  }
  const whole = (x: unknown) => Number.isSafeInteger(x) && Number(x) >= 0 && Number(x) < 4096;
  const isRow = (row: unknown) =>
    isObject(row) && whole(row.chain) && typeof row.variable === "string" && Number.isFinite(row.value);
  if (Array.isArray(rows) && rows.length > 0 && rows.every(isRow)) return rows as TraceRow[];
  throw new InputError(`${inert(path)}: not a trace (expected chain, draw, variable and value). Train again.`);
}
