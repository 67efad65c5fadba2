/** @file What a run remembers of its flags, and which of them a continuation has otherwise. */
import { isObject } from "../data/json.ts";
import { quote } from "../data/text.ts";
import { flagOfMethod } from "./method-options.ts";
import type { FinetuneOptions } from "./options.ts";
import { precisionText } from "./values.ts";

/** For `--resume`: the options that decide what a run computes, as JSON values. */
export function optionRecord(options: FinetuneOptions): Record<string, unknown> {
  const { columns, precisions, ...flags } = options;
  const { recompute: _c, resume: _r, overwrite: _o, profile: _p, json: _j, out: _out, ...rest } = flags;
  return JSON.parse(
    JSON.stringify({ ...rest, ...columns, priorPrecision: precisionText(precisions) }, (_, v) => v ?? null),
  ) as Record<string, unknown>;
}

/** Limits that only refuse: no number depends on them, and a continuation may have others. */
const LIMITS: readonly string[] = ["--laplace-memory"];

/** Methods whose members are drawn after training; those of others are trained. */
const DRAWN: readonly unknown[] = ["sgld", "sghmc", "swag", "laplace"];

/** A record's options without those that are read only once θ is trained, and of which nothing is kept before all is done. */
export function withoutDraws(record: Record<string, unknown>): Record<string, unknown> {
  const drawn = ["sampler", "swag", "laplace", "sweep", ...(DRAWN.includes(record.method) ? ["members"] : [])];
  return Object.fromEntries(Object.entries(record).filter(([key]) => !drawn.includes(key)));
}

/**
 * The flags that differ between a run and the command that would continue it, in one sentence; undefined if none. Of another
 * method's flags nothing is said: they differ because the method does.
 */
export function differingFlags(run: Record<string, unknown>, now: Record<string, unknown>): string | undefined {
  const other = run.method !== now.method;
  const [before, after] = [run, now].map((record) => flagsOf(record, other)) as [
    Map<string, unknown>,
    Map<string, unknown>,
  ];
  const differing = [...new Set([...before.keys(), ...after.keys()])].filter(
    (flag) =>
      !LIMITS.includes(flag) && JSON.stringify(before.get(flag) ?? null) !== JSON.stringify(after.get(flag) ?? null),
  );
  if (differing.length === 0) return undefined;
  const shown = (value: unknown) => (value === undefined || value === null ? "nothing" : quote(String(value)));
  return differing.map((flag) => `${flag} was ${shown(before.get(flag))} and is ${shown(after.get(flag))}`).join("; ");
}

/** A record's values by flag; those of a method lie one deeper, and may be left out. */
function flagsOf(record: Record<string, unknown>, withoutMethods: boolean): Map<string, unknown> {
  // Groups are a set: a run of before may have them in the order in which they were typed.
  const plain = (of: unknown) => (Array.isArray(of) ? [...of].sort() : of);
  const entries = Object.entries(record).filter(([, value]) => !(withoutMethods && isObject(value)));
  return new Map(
    entries.flatMap(([key, value]): [string, unknown][] =>
      isObject(value)
        ? Object.entries(value).map(([field, of]) => [flagOfMethod(key, field) ?? flagOf(field), plain(of)])
        : [[flagOfMethod(key) ?? flagOf(key), value]],
    ),
  );
}

function flagOf(key: string): string {
  const negated: Record<string, string> = { shuffle: "--no-shuffle", header: "--no-header" };
  return negated[key] ?? `--${key.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`;
}
