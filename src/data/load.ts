/**
 * @file What commands read from disk: tables, and a folder's tokenizer. Touches Node through files.ts, so a page takes
 * `parseTable` and `BertTokenizer.from` instead, with content it fetched itself.
 */

import { join } from "node:path";
import { InputError } from "../errors.ts";
import { fileExists, readLines, readText } from "./files.ts";
import { parseTable, type Table, type TableOptions, tableFormat } from "./tables.ts";
import { inert } from "./text.ts";
import { BertTokenizer } from "./tokenizer.ts";

/** A table of examples (.tsv, .txt, .jsonl, .ndjson). Errors: StorageError as `readLines`, InputError as `parseTable`. */
export function readTable(path: string, options: TableOptions): Table {
  tableFormat(path); // before the file is touched: "CSV is not supported" beats "invalid UTF-8"
  return parseTable(readLines(path, { wanted: "a table of examples" }), path, options);
}

/** LaBSE's tokenizer, with half a million word pieces, has 9.6 MB. */
const LARGEST = 32 * 2 ** 20;

/** The tokenizer of a model folder: `tokenizer.json`, or else `vocab.txt`; with `tokenizer_config.json` if there is one. */
export function loadTokenizer(folder: string): BertTokenizer {
  const file = (name: string) => {
    const path = join(folder, name);
    if (!fileExists(path)) return undefined;
    return { name: path, text: readText(path, { maxBytes: LARGEST, wanted: "a tokenizer file" }) };
  };
  const config = file("tokenizer_config.json");
  const tokenizer = file("tokenizer.json");
  const vocab = tokenizer === undefined ? file("vocab.txt") : undefined;
  if (tokenizer === undefined && vocab === undefined) {
    throw new InputError(
      `${inert(folder)}: no tokenizer (expected tokenizer.json or vocab.txt). Copy the model's tokenizer files into the folder.`,
    );
  }
  return BertTokenizer.from({
    ...(tokenizer === undefined ? {} : { tokenizer }),
    ...(vocab === undefined ? {} : { vocab }),
    ...(config === undefined ? {} : { config }),
  });
}
