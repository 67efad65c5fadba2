/**
 * @file Label words to ids. Labels may be words; their order must be the same on every machine and in every run, since
 * row k of a saved classifier means label k. So: numeric order if all are whole numbers, else by code points.
 */

import { InputError } from "../errors.ts";
import { count, type Table } from "./tables.ts";
import { inert, nearest, quote, quoteList } from "./text.ts";

/** Label words in the order of their ids, and each table's ids by row. */
export interface LabelSet {
  labels: string[];
  ids: Uint32Array[];
}

/** As many classes as a classification can sensibly have; more means that the wrong column was taken. */
const MOST_CLASSES = 10_000;
/** Characters of a label. Labels stand in config.json, twice each, and a config beyond 4 MB would not be read again. */
const LONGEST_LABEL = 200;

/**
 * Label ids for some tables (all with labels). Without `known`, the first table is the training table and defines the
 * labels: in numeric order if all are whole numbers, else sorted by code points; the others must keep to them.
 * With `known` (a fine-tuned model's `id2label`, in order), every table must keep to those.
 * InputError: a label that is not known (file and line), a training table with one class.
 */
export function labelSet(tables: readonly Table[], known?: readonly string[]): LabelSet {
  const labels = known === undefined ? labelsOf(tables[0]) : [...known];
  const idOf = new Map(labels.map((label, id) => [label, id]));
  // A model whose labels were never named calls them LABEL_0, LABEL_1, …; its data say 0, 1, …
  if (labels.every((label, id) => label === `LABEL_${id}`)) {
    for (let id = 0; id < labels.length; id++) idOf.set(String(id), id);
  }
  const ids = tables.map((table) =>
    Uint32Array.from(table.labels ?? [], (word, row) => {
      const id = idOf.get(word);
      if (id !== undefined) return id;
      const near = nearest(word, labels);
      throw new InputError(
        `${inert(table.path)}:${table.lineNumbers[row]}: unknown label (found ${quote(word)}; ` +
          `${known === undefined ? "the training table has" : "the model knows"} ${quoteList(labels)}). ` +
          `${near === undefined ? "Correct or remove the row." : `Did you mean ${quote(near)}?`}`,
      );
    }),
  );
  return { labels, ids };
}

function labelsOf(table: Table | undefined): string[] {
  const labels = [...new Set(table?.labels ?? [])];
  const path = inert(table?.path ?? "");
  if (labels.length < 2) {
    throw new InputError(
      `${path}: a training table needs two classes or more (found ${quoteList(labels) || "none"} in ${count(table?.texts.length ?? 0, "row")}). ` +
        "Add examples of another class, or name another --label-column.",
    );
  }
  const long = labels.find((label) => label.length > LONGEST_LABEL);
  if (long !== undefined) {
    throw new InputError(
      `${path}:${table?.lineNumbers[table.labels?.indexOf(long) ?? 0]}: a label of ${long.length} characters (found ${quote(long, 30)}; expected at most ${LONGEST_LABEL}). Is ${quote(table?.used.label ?? "")} a column of labels? Name another with --label-column.`,
    );
  }
  if (labels.length > MOST_CLASSES) {
    throw new InputError(
      `${path}: ${labels.length} different labels in column ${quote(table?.used.label ?? "")}. Is it a column of labels? Name another with --label-column.`,
    );
  }
  const numeric = labels.every((label) => /^-?\d{1,15}$/.test(label));
  // By code points, not by locale: the order must not depend on the machine.
  return labels.sort((a, b) => (numeric ? Number(a) - Number(b) || (a < b ? -1 : 1) : a < b ? -1 : 1));
}
