/**
 * @file Tables of examples: TSV and JSONL, columns found by name, texts and label words as written.
 * TSV is split at tabs and nothing else: a quote is text. (CSV readers pair quotes up across lines and so lose two
 * thirds of ChnSentiCorp's rows without a word.) Every line is a row or an error, so rows can be counted against lines.
 */

import { InputError } from "../errors.ts";
import { duplicateKey, refuseBrackets } from "./json.ts";
import { inert, nearest, quote, quoteList } from "./text.ts";

export interface TableOptions {
  /** The column of the text: a name, or where there is no header its number counted from 0. */
  textColumn?: string | undefined;
  /** The column of a second text. */
  pairColumn?: string | undefined;
  labelColumn?: string | undefined;
  /** False (`--no-header`): the first line is a row, and columns are named by number. Default true. */
  header?: boolean | undefined;
  /** True: a table without labels is an error. False: labels are not even looked for. */
  needLabels: boolean;
}

/** A table as read: row i is `texts[i]`, `pairs?.[i]`, `labels?.[i]`, and stood on line `lineNumbers[i]` (from 1). */
export interface Table {
  path: string;
  texts: string[];
  pairs?: string[];
  /** The labels as the file writes them; `labelSet` makes ids of them. */
  labels?: string[];
  lineNumbers: number[];
  /** Every column of the file, in its order. */
  columns: string[];
  /** The columns that were taken. */
  used: { text: string; pair?: string; label?: string };
}

/** Columns that hold two texts, first and second; taken together when both are there. */
const PAIRS: readonly (readonly [string, string])[] = [
  ["sentence1", "sentence2"],
  ["text", "text_pair"],
  ["text_a", "text_b"],
  ["premise", "hypothesis"],
  ["question1", "question2"],
  ["question", "sentence"],
];
const TEXTS = [
  "sentence",
  "text",
  "review",
  "content",
  "text_a",
  "sentence1",
  "comment",
  "message",
  "tweet",
  "question",
];
const LABELS = ["label", "labels", "class", "category"];

type Format = "tsv" | "jsonl";

/** By extension; InputError for what cannot be read (yet), with the way out. */
export function tableFormat(path: string): Format {
  const extension = /\.([a-z0-9]+)$/i.exec(path)?.[1]?.toLowerCase();
  if (extension === "tsv" || extension === "txt") return "tsv";
  if (extension === "jsonl" || extension === "ndjson") return "jsonl";
  const shown = inert(path);
  if (extension === "csv" || extension === "parquet") {
    const kind = extension === "csv" ? "CSV" : "Parquet";
    throw new InputError(`${shown}: ${kind} is not yet supported (expected .tsv or .jsonl). Convert it and run again.`);
  }
  if (extension === "json") {
    throw new InputError(
      `${shown}: one JSON document is not a table (expected .jsonl, one object a line). Convert it.`,
    );
  }
  const found = extension === undefined ? "no extension" : `.${extension}`;
  throw new InputError(
    `${shown}: unknown kind of table (found ${found}; expected .tsv, .txt, .jsonl or .ndjson). Rename it.`,
  );
}

/** A table from its lines (without line ends). `path` decides the format and stands in messages. */
export function parseTable(lines: Iterable<string>, path: string, options: TableOptions): Table {
  const format = tableFormat(path);
  if (format === "jsonl" && options.header === false) {
    throw new InputError(`--no-header: ${inert(path)} is JSONL, whose columns always have names. Leave the flag out.`);
  }
  return format === "tsv" ? parseTsv(lines, path, options) : parseJsonl(lines, path, options);
}

/** Tables as wide as this hold something else than text; and lists of their columns would outgrow the file. */
const MOST_COLUMNS = 10_000;
/** From this many rows on, a table must look like text: 16 characters a row on average. Shorter rows, a few bytes
 * each, would take many times the file's size in memory (P4). */
const MANY_ROWS = 1_000_000;
const SHORT_ROW = 16;

/** Lines with their numbers. Empty lines at the very end are dropped; one before a row is an error. */
function* numbered(lines: Iterable<string>, path: string): Generator<[string, number], void> {
  let number = 0;
  let empty = 0;
  let characters = 0;
  for (const line of lines) {
    number++;
    characters += line.length;
    if (number > MANY_ROWS && characters < SHORT_ROW * number) {
      throw new InputError(
        `${inert(path)}: over ${MANY_ROWS} rows of under ${SHORT_ROW} characters on average. Is this a table of texts?`,
      );
    }
    if (line.trim() === "" && !line.includes("\t")) {
      if (empty === 0) empty = number;
      continue;
    }
    if (empty > 0) throw new InputError(`${inert(path)}:${empty}: an empty line between rows. Remove it.`);
    yield [line, number];
  }
}

function parseTsv(lines: Iterable<string>, path: string, options: TableOptions): Table {
  const table: Table = { path, texts: [], lineNumbers: [], columns: [], used: { text: "" } };
  const header = options.header !== false;
  let where: ColumnNumbers | undefined;
  const words = new Map<string, string>();
  for (const [line, number] of numbered(lines, path)) {
    // One cell more than expected shows that there are too many; splitting all of a hostile line would cost memory.
    const cells = line.split("\t", (where === undefined ? MOST_COLUMNS : table.columns.length) + 1);
    if (where === undefined) {
      if (cells.length > MOST_COLUMNS) {
        throw new InputError(`${inert(path)}:${number}: over ${MOST_COLUMNS} columns. Is this a table of texts?`);
      }
      table.columns = header ? cells.map((name) => name.trim()) : cells.map((_, i) => String(i));
      where = chooseColumns(table, options);
      if (header) continue;
    }
    const expected = table.columns.length;
    if (cells.length < expected) {
      const name = table.columns[cells.length] ?? "";
      throw new InputError(
        `${inert(path)}:${number}: a column is missing (${header ? quote(name) : name}; found ${count(cells.length, "column")}, ` +
          `expected ${expected}). Complete the row or remove it.`,
      );
    }
    if (cells.length > expected) {
      throw new InputError(
        `${inert(path)}:${number}: too many columns (found ${tabs(line) + 1}, expected ${expected}). ` +
          "Replace tabs inside a text by spaces.",
      );
    }
    addRow(table, number, cells[where.text] ?? "", cells[where.pair] ?? "", cells[where.label] ?? "", words);
  }
  return finished(table, header && where !== undefined);
}

function tabs(line: string): number {
  let n = 0;
  for (let i = line.indexOf("\t"); i >= 0; i = line.indexOf("\t", i + 1)) n++;
  return n;
}

function parseJsonl(lines: Iterable<string>, path: string, options: TableOptions): Table {
  const table: Table = { path, texts: [], lineNumbers: [], columns: [], used: { text: "" } };
  let where: ColumnNumbers | undefined;
  const words = new Map<string, string>();
  for (const [line, number] of numbered(lines, path)) {
    const row = parseObject(line, path, number);
    if (where === undefined) {
      table.columns = Object.keys(row);
      where = chooseColumns(table, options);
    }
    const { text, pair, label } = table.used;
    addRow(
      table,
      number,
      textOf(row, text, path, number),
      pair === undefined ? "" : textOf(row, pair, path, number),
      label === undefined ? "" : labelOf(row, label, path, number),
      words,
    );
  }
  return finished(table, false);
}

function parseObject(line: string, path: string, number: number): Record<string, unknown> {
  refuseBrackets(line, `${path}:${number}`);
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    const reason = inert((cause as Error).message).slice(0, 120);
    throw new InputError(`${inert(path)}:${number}: not valid JSON (${reason}). Write one object a line.`, { cause });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new InputError(
      `${inert(path)}:${number}: not a JSON object (found ${kindOf(value)}). Write one object a line.`,
    );
  }
  const twice = duplicateKey(line);
  if (twice !== undefined) {
    throw new InputError(`${inert(path)}:${number}: the key ${quote(twice.key)} stands twice. Keep one of them.`);
  }
  return value as Record<string, unknown>;
}

const kindOf = (value: unknown) => (value === null ? "null" : Array.isArray(value) ? "an array" : `a ${typeof value}`);
/** "1 row", "2 rows". */
export const count = (n: number, noun: string) => `${n} ${noun}${n === 1 ? "" : "s"}`;

function textOf(row: Record<string, unknown>, name: string, path: string, number: number): string {
  const value = Object.hasOwn(row, name) ? row[name] : undefined;
  if (typeof value === "string") {
    if (!value.includes("\0")) return value;
    throw new InputError(`${inert(path)}:${number}: a NUL character in ${quote(name)}. Remove it.`);
  }
  throw missingOrWrong(row, name, path, number, "a string");
}

function labelOf(row: Record<string, unknown>, name: string, path: string, number: number): string {
  const value = Object.hasOwn(row, name) ? row[name] : undefined;
  // Above 2^53 neighbours become one number, and above 1.8e308 all are Infinity.
  if (typeof value === "number" && Math.abs(value) > Number.MAX_SAFE_INTEGER) {
    throw new InputError(
      `${inert(path)}:${number}: column ${quote(name)} is a number too large to be exact (found ${value}; expected at most 2^53). Write it in quotes.`,
    );
  }
  if (typeof value === "string" || typeof value === "number" || typeof value === "boolean") return String(value);
  throw missingOrWrong(row, name, path, number, "a word or a number");
}

function missingOrWrong(row: Record<string, unknown>, name: string, path: string, number: number, wanted: string) {
  const at = `${inert(path)}:${number}`;
  return Object.hasOwn(row, name)
    ? new InputError(`${at}: column ${quote(name)} is not ${wanted} (found ${kindOf(row[name])}). Correct the row.`)
    : new InputError(
        `${at}: a column is missing (${quote(name)}; found ${quoteList(Object.keys(row)) || "none"}). Complete the row or remove it.`,
      );
}

function addRow(table: Table, line: number, text: string, pair: string, label: string, words: Map<string, string>) {
  const { used, path } = table;
  if (text.trim() === "") throw blank(path, line, used.text);
  table.texts.push(text);
  if (table.pairs !== undefined) {
    if (pair.trim() === "") throw blank(path, line, used.pair ?? "");
    table.pairs.push(pair);
  }
  if (table.labels !== undefined) {
    const word = label.trim();
    if (word === "") throw blank(path, line, used.label ?? "");
    // One string per label, not one per row (which would also keep its whole line alive).
    let known = words.get(word);
    if (known === undefined) {
      known = word;
      words.set(word, known);
    }
    table.labels.push(known);
  }
  table.lineNumbers.push(line);
}

const blank = (path: string, line: number, column: string) =>
  new InputError(`${inert(path)}:${line}: column ${quote(column)} is blank. Fill it in or remove the row.`);

function finished(table: Table, sawHeader: boolean): Table {
  if (table.texts.length > 0) return table;
  if (!sawHeader) throw new InputError(`${inert(table.path)}: the file is empty (expected one example a line).`);
  throw new InputError(
    `${inert(table.path)}: a header and no rows (columns ${quoteList(table.columns)}). If that line is an example, add --no-header.`,
  );
}

/** Indices into a row; −1 for a column that is not wanted. */
interface ColumnNumbers {
  text: number;
  pair: number;
  label: number;
}

function chooseColumns(table: Table, options: TableOptions): ColumnNumbers {
  const { columns } = table;
  const lower = columns.map((name) => name.toLowerCase());
  const named = (flag: string, name: string | undefined) =>
    name === undefined ? -1 : findNamed(table, options, flag, name);
  let text = named("--text-column", options.textColumn);
  let pair = named("--pair-column", options.pairColumn);
  let label = options.needLabels ? named("--label-column", options.labelColumn) : -1;

  if (text < 0 && pair < 0) {
    const both = PAIRS.find(([first, second]) => lower.includes(first) && lower.includes(second));
    if (both !== undefined) [text, pair] = [lower.indexOf(both[0]), lower.indexOf(both[1])];
  }
  if (text < 0) text = firstOf(lower, TEXTS, pair);
  if (text < 0 && options.header === false && columns.length === 1) text = 0;
  if (text < 0) throw notFound(table, options, "text", "--text-column", TEXTS);
  if (options.needLabels && label < 0) label = firstOf(lower, LABELS, text);
  if (options.needLabels && label < 0) throw notFound(table, options, "label", "--label-column", LABELS);
  if (text === pair || text === label || (pair >= 0 && pair === label)) {
    throw new InputError(
      `${inert(table.path)}: column ${quote(columns[text === pair || text === label ? text : pair] ?? "")} is named for two purposes. Name different columns.`,
    );
  }
  for (const i of [text, pair, label]) {
    if (i >= 0 && columns.indexOf(columns[i] ?? "") !== columns.lastIndexOf(columns[i] ?? "")) {
      throw new InputError(
        `${inert(table.path)}: two columns are called ${quote(columns[i] ?? "")}. Rename one of them.`,
      );
    }
  }
  table.used = { text: columns[text] ?? "" };
  if (pair >= 0) {
    table.used.pair = columns[pair] ?? "";
    table.pairs = [];
  }
  if (label >= 0) {
    table.used.label = columns[label] ?? "";
    table.labels = [];
  }
  return { text, pair, label };
}

function firstOf(lower: string[], wanted: readonly string[], not: number): number {
  for (const name of wanted) {
    const i = lower.indexOf(name);
    if (i >= 0 && i !== not) return i;
  }
  return -1;
}

function findNamed(table: Table, options: TableOptions, flag: string, name: string): number {
  const i = table.columns.indexOf(name);
  if (i >= 0) return i;
  const found = `${flag} ${quote(name)}: ${inert(table.path)} has no such column`;
  if (options.header === false) {
    throw new InputError(`${found} (found ${count(table.columns.length, "column")}, counted from 0). Give a number.`);
  }
  const near = nearest(name, table.columns);
  const hint = near === undefined ? "" : ` Did you mean ${quote(near)}?`;
  throw new InputError(`${found} (found ${quoteList(table.columns)}).${hint || " Name one of them."}`);
}

function notFound(
  table: Table,
  options: TableOptions,
  what: string,
  flag: string,
  wanted: readonly string[],
): InputError {
  const path = inert(table.path);
  if (options.header === false) {
    return new InputError(
      `${path}: which column is the ${what}? (found ${count(table.columns.length, "column")} and no header). ` +
        `Give ${flag} NUMBER, counted from 0.`,
    );
  }
  let hint = `Name it with ${flag}`;
  for (const column of table.columns) {
    const near = nearest(column, wanted);
    if (near !== undefined) hint = `Did you mean ${quote(column)}? Name it with ${flag}`;
  }
  return new InputError(
    `${path}: no ${what} column (found ${quoteList(table.columns)}; expected ${wanted.slice(0, 4).join(", ")} …). ` +
      `${hint}${table.path.toLowerCase().endsWith("l") ? "" : ", or add --no-header if the first line is an example"}.`,
  );
}
