/** @file `posterior/trace.json` of a sampler's run, read again. */
import { join } from "node:path";
import { fileExists, readText } from "../data/files.ts";
import { duplicateKey, isObject, refuseBrackets } from "../data/json.ts";
import { inert, quote } from "../data/text.ts";
import { InputError } from "../errors.ts";
import type { TraceRow } from "../posterior/index.ts";
import { CHAINS } from "./method-options.ts";
import { MEMBERS } from "./options.ts";

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
  const refused = (what: string) => new InputError(`${inert(path)}: ${what}. Restore it, or train again.`);
  if (!Array.isArray(rows) || rows.length === 0)
    throw refused("not a trace (expected an array of chain, draw, variable and value)");
  const twice = duplicateKey(text);
  if (twice) throw refused(`the key ${quote(twice.key)} stands twice in one row (line ${twice.line})`);
  const next = new Map<string, number>();
  let chains = 0;
  for (const [i, row] of rows.entries()) {
    const wrong = wrongField(row, next, chains);
    if (wrong !== undefined) throw refused(`row ${i + 1}: ${wrong}`);
    chains = Math.max(chains, row.chain + 1);
  }
  return rows as TraceRow[];
}

/**
 * What is wrong with a row, or undefined. Chains come one after the other, and a chain's draws of a variable are counted
 * from 0: `next` has the draw that each is at, `chains` are those begun.
 */
function wrongField(row: unknown, next: Map<string, number>, chains: number): string | undefined {
  if (!isObject(row)) return "not an object (expected chain, draw, variable and value)";
  const { chain, draw, variable, value } = row;
  const differs = (name: string, found: unknown, expected: string) =>
    `${name} is ${inert(String(JSON.stringify(found)).slice(0, 60))} (expected ${expected})`;
  const most = Math.min(chains, CHAINS.max - 1);
  if (!(Number.isSafeInteger(chain) && Number(chain) >= 0 && Number(chain) <= most))
    return differs("chain", chain, most === 0 ? "0" : `a whole number from 0 to ${most}`);
  if (typeof variable !== "string" || variable === "") return differs("variable", variable, "a name");
  const of = JSON.stringify([chain, variable]);
  const due = next.get(of) ?? 0;
  if (draw !== due) return differs("draw", draw, `${due}, the next of ${quote(variable, 60)} in chain ${chain}`);
  if (due >= MEMBERS.max) return differs("draw", draw, `below ${MEMBERS.max}`);
  next.set(of, due + 1);
  return Number.isFinite(value) ? undefined : differs("value", value, "a finite number");
}
