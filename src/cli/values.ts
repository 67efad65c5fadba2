/**
 * @file One flag's text to one value, or one sentence that says what was found, what was expected and what to type.
 * Pure: nothing here looks at files or at the device. Flags arrive as text, so that every message is ours.
 */
import { nearest, quote } from "../data/text.ts";
import { InputError } from "../errors.ts";
import { LARGEST_PRECISION } from "../train/prior.ts";

/** `--flag value: what is wrong (found …; expected …). What to do.` */
export function refuse(flag: string, value: string, what: string, advice: string): never {
  const shown = value === "" ? '""' : /^[\w.,:=+\-/]{1,60}$/.test(value) ? value : quote(value);
  throw new InputError(`${flag} ${shown}: ${what}. ${advice}`);
}

/** Word pieces of the shortest text: [CLS], one of its own, [SEP]. */
export const SHORTEST_TEXT = 3;

interface Range {
  /** The smallest value allowed. */
  min?: number;
  /** True: `min` itself is not allowed. */
  above?: boolean;
  max?: number;
  /** True: `max` itself is not allowed. */
  below?: boolean;
  example: string;
}

function rangeText({ min, above, max, below }: Range): string {
  const parts = [];
  if (min !== undefined) parts.push(above ? `> ${min}` : `≥ ${min}`);
  if (max !== undefined) parts.push(below ? `< ${max}` : `≤ ${max}`);
  return parts.join(" and ");
}

/** Whether a text is a number as people and programs write them (no hexadecimal, no spaces). */
export const isNumber = (text: string): boolean => /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text);

/** A finite number in a range, as `isNumber` says. */
export function numberValue(flag: string, text: string, range: Range): number {
  const wanted = `a number ${rangeText(range)}`;
  if (!isNumber(text)) {
    refuse(flag, text, `not a number (expected ${wanted})`, `Give, say, ${flag} ${range.example}.`);
  }
  const value = Number(text);
  const { min = -Infinity, max = Infinity, above, below } = range;
  const fits = Number.isFinite(value) && (above ? value > min : value >= min) && (below ? value < max : value <= max);
  if (!fits) refuse(flag, text, `out of range (expected ${wanted})`, `Give, say, ${flag} ${range.example}.`);
  return value;
}

/** A whole number in a range; at most 2^53 − 1, where whole numbers are still exact. */
export function wholeValue(flag: string, text: string, range: Range): number {
  const wanted = `a whole number ${rangeText(range)}`;
  if (!/^[+-]?\d+$/.test(text)) {
    refuse(flag, text, `not a whole number (expected ${wanted})`, `Give, say, ${flag} ${range.example}.`);
  }
  const value = Number(text);
  const { min = -Infinity, max = Number.MAX_SAFE_INTEGER } = range;
  if (!(value >= min && value <= max)) {
    refuse(flag, text, `out of range (expected ${wanted})`, `Give, say, ${flag} ${range.example}.`);
  }
  return value;
}

/** One of some words; `later` are words that are planned, and are refused as such. */
export function choiceValue<T extends string>(
  flag: string,
  text: string,
  choices: readonly T[],
  later: readonly string[] = [],
): T {
  const found = choices.find((choice) => choice === text);
  if (found !== undefined) return found;
  const list = choices.join(", ");
  if (later.includes(text)) {
    const advice = choices.length === 1 ? `Choose ${list}.` : `Choose one of ${list}.`;
    return refuse(flag, text, "not yet in this version", advice);
  }
  const near = nearest(text, choices);
  const advice = near === undefined ? "Choose one of them." : `Did you mean ${near}?`;
  return refuse(flag, text, `unknown (expected ${list})`, advice);
}

/** The groups of parameters; `layer.N` stands for any layer. */
const GROUPS = ["encoder", "embeddings", "pooler", "head"];

/** InputError: no group of any model has this name. */
function expectGroup(flag: string, text: string, group: string): void {
  if (GROUPS.includes(group) || /^layer\.(0|[1-9]\d{0,3})$/.test(group)) return;
  const near = nearest(group, [...GROUPS, "layer.0"]);
  const hint = near === undefined ? "Name one of them." : `Did you mean ${near}?`;
  refuse(flag, text, `unknown group ${quote(group)} (expected ${GROUPS.join(", ")} or layer.N)`, hint);
}

/** `layer.1,head`: names of groups, in an order that is not the caller's (it means nothing). InputError: an empty or unknown name, a group named twice. */
export function groupsValue(flag: string, text: string): string[] {
  const groups = text.split(",").map((group) => group.trim());
  if (groups.includes("")) refuse(flag, text, "an empty name of a group", `Give, say, ${flag} layer.1,head.`);
  for (const [i, group] of groups.entries()) {
    expectGroup(flag, text, group);
    if (groups.indexOf(group) < i) refuse(flag, text, `group ${quote(group)} stands twice`, "Name it once.");
  }
  return groups.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
}

/** Precision of the prior by group: 0 (flat) … Infinity (frozen). */
export type Precisions = Record<string, number>;

/** `encoder=300,head=1`: a group each, a number ≥ 0 or `inf`. InputError: anything else, a group named twice. */
export function precisionValue(flag: string, text: string): Precisions {
  const precisions: Precisions = {};
  for (const part of text.split(",")) {
    const [group = "", value, ...rest] = part.split("=");
    if (value === undefined || rest.length > 0 || group === "" || value === "") {
      refuse(flag, text, `${quote(part)} is not GROUP=VALUE`, `Give, say, ${flag} encoder=300,head=1.`);
    }
    expectGroup(flag, text, group);
    if (Object.hasOwn(precisions, group)) {
      refuse(flag, text, `group ${quote(group)} stands twice`, "Keep one of the values.");
    }
    precisions[group] = precisionOf(flag, group, value);
  }
  return precisions;
}

function precisionOf(flag: string, group: string, value: string): number {
  if (/^(inf|infinity|∞)$/i.test(value)) return Number.POSITIVE_INFINITY;
  const shown = `${group}=${value}`;
  if (value === "evidence") {
    refuse(flag, shown, "learning the precision from the evidence is not yet in this version", "Give a number.");
  }
  if (!isNumber(value)) {
    refuse(flag, shown, "not a precision (expected a number ≥ 0, or inf)", `Give, say, ${flag} ${group}=300.`);
  }
  const precision = Number(value);
  if (!(precision >= 0) || precision > LARGEST_PRECISION) {
    const wrong = precision < 0 ? "a precision cannot be negative" : "out of range";
    const what = `${wrong} (expected a number from 0 to ${LARGEST_PRECISION}, or inf)`;
    refuse(flag, shown, what, "0 is a flat prior, inf freezes.");
  }
  return precision === 0 ? 0 : precision;
}

/** Precisions as they are typed: `encoder=300,head=inf`. */
export function precisionText(precisions: Readonly<Precisions>): string {
  return Object.entries(precisions)
    .map(([group, value]) => `${group}=${value === Number.POSITIVE_INFINITY ? "inf" : value}`)
    .join(",");
}
