/**
 * @file Values as text: tables, figures, durations, JSON. All of it is inert (P8) and, on a terminal, as wide as it
 * says: a column of Chinese lines up with one of English.
 */
import { inert } from "../data/text.ts";

/** Each line inert; the line ends stay. */
export function inertLines(text: string): string {
  return text.split("\n").map(inert).join("\n");
}

/** JSON that is inert as well: control and direction characters as \u escapes, which mean the same. */
export function jsonText(value: unknown): string {
  return JSON.stringify(value, null, 2).replace(/[\p{Cc}\p{Cf}\p{Co}\u2028\u2029]/gu, (c) =>
    // A line end stands between values, never inside a string.
    c === "\n" ? c : [...c].flatMap((one) => utf16(one)).join(""),
  );
}

function utf16(character: string): string[] {
  return Array.from(
    { length: character.length },
    (_, i) => `\\u${character.charCodeAt(i).toString(16).padStart(4, "0")}`,
  );
}

/** Rows under a heading, columns as wide as their widest cell; numbers to the right. */
export function table(heading: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [heading, ...rows].map((row) => row.map(inert));
  const widths = heading.map((_, c) => Math.max(...all.map((row) => width(row[c] ?? ""))));
  const right = heading.map(
    (_, c) => rows.length > 0 && rows.every((row) => /^[-+−]?[\d.,e+−-]*%?$/.test(row[c] ?? "")),
  );
  return all
    .map((row) =>
      row
        .map((cell, c) => {
          const space = " ".repeat((widths[c] ?? 0) - width(cell));
          return right[c] ? space + cell : cell + space;
        })
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

/** Columns on a terminal: wide for CJK and emoji, none for marks that combine. */
export function width(text: string): number {
  let columns = 0;
  for (const c of text)
    columns += /\p{M}/u.test(c)
      ? 0
      : /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{1f300}-\u{1faff}\u{20000}-\u{3fffd}]/u.test(
            c,
          )
        ? 2
        : 1;
  return columns;
}

/** `text` cut to some columns, with … where something is missing. */
export function cut(text: string, columns: number): string {
  const shown = inert(text);
  if (width(shown) <= columns) return shown;
  let kept = "";
  for (const c of shown) {
    if (width(kept) + width(c) > columns - 1) break;
    kept += c;
  }
  return `${kept}…`;
}

/** A number for people: four significant digits, never in exponents where that can be helped. */
export function figure(x: number): string {
  if (!Number.isFinite(x)) return String(x);
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e7 || size < 1e-4) return x.toExponential(2);
  return String(Number(x.toPrecision(4)));
}

/** Seconds as people say them: 8 s, 3 min 20 s, 2 h 5 min. */
export function duration(seconds: number): string {
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s % 60 === 0 ? "" : ` ${s % 60} s`}`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}
