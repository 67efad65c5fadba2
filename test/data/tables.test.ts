/** @file Tables: every line a row or an error, columns by name, and each kind of bad table in one sentence. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { labelSet } from "../../src/data/labels.ts";
import { readTable } from "../../src/data/load.ts";
import { parseTable, type TableOptions } from "../../src/data/tables.ts";
import { InputError, StorageError } from "../../src/errors.ts";
import { needs, shared, temporaryFolder } from "./shared.ts";

const folder = temporaryFolder();
const table = (text: string, options: Partial<TableOptions> = {}, path = "t.tsv") => {
  const lines = text.split("\n");
  if (lines.at(-1) === "") lines.pop();
  return parseTable(lines, path, { needLabels: true, ...options });
};
const jsonl = (text: string, options: Partial<TableOptions> = {}) => table(text, options, "t.jsonl");
const says = (work: () => unknown, message: string) => {
  expect(work).toThrow(InputError);
  expect(work).toThrow(message);
};
const onDisk = (name: string, content: string | Uint8Array) => {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
};

describe("hostile rows", () => {
  it.each([
    ['{"text": "a", "label": "x", "label": "z"}', 't.jsonl:1: the key "label" stands twice. Keep one of them.'],
    ['{"text": "a", "label": 1e400}', 't.jsonl:1: column "label" is a number too large to be exact (found Infinity'],
    [
      '{"text": "a", "label": 9007199254740993}',
      "(found 9007199254740992; expected at most 2^53). Write it in quotes.",
    ],
    [`{"text": "a", "label": 1, "z": ${"[".repeat(200)}${"]".repeat(200)}}`, "t.jsonl:1: brackets nested 201 deep"],
    [`{"text": "a", "label": 1, "z": [${"[],".repeat(500_000)}0]}`, "t.jsonl:1: 500002 brackets"],
  ])("%.45s", (row, message) => says(() => jsonl(`${row}\n{"text": "b", "label": 2}\n`), message));

  it("a label as long as a text is no label: file, line and column named", () => {
    const rows = (label: string) => table(`text\tlabel\na\tx\nb\t${label}\n`);
    says(() => labelSet([rows("y".repeat(201))]), 't.tsv:3: a label of 201 characters (found "yyy');
    expect(labelSet([rows("y".repeat(200))]).labels).toHaveLength(2);
  });
});

describe("TSV", () => {
  it("finds columns by name in any place, keeps quotes, counts lines", () => {
    const t = table('id\tLabel\tsentence\n7\t1\t"so it begins\n8\t0\tsaid "no"\n\n');
    expect(t.texts).toEqual(['"so it begins', 'said "no"']);
    expect(t.labels).toEqual(["1", "0"]);
    expect(t.lineNumbers).toEqual([2, 3]);
    expect(t.columns).toEqual(["id", "Label", "sentence"]);
    expect(t.used).toEqual({ text: "sentence", label: "Label" });
    expect(t.pairs).toBeUndefined();
  });

  it("takes two texts together when their names belong together, or when they are named", () => {
    const t = table("sentence1\tsentence2\tlabel\na\tb\tx\n");
    expect([t.texts, t.pairs, t.labels]).toEqual([["a"], ["b"], ["x"]]);
    const named = table("one\ttwo\tlabel\na\tb\tx\n", { textColumn: "two", pairColumn: "one" });
    expect([named.texts, named.pairs]).toEqual([["b"], ["a"]]);
    expect(
      table("sentence1\tsentence2\n a\tb\n", { textColumn: "sentence2", needLabels: false }).pairs,
    ).toBeUndefined();
  });

  it("names columns by number where there is no header", () => {
    const t = table("x\tham\thello\ny\tspam\tbuy\n", { header: false, textColumn: "2", labelColumn: "1" });
    expect([t.texts, t.labels, t.lineNumbers]).toEqual([
      ["hello", "buy"],
      ["ham", "spam"],
      [1, 2],
    ]);
    expect(table("hello\nbuy\n", { header: false, needLabels: false }).texts).toEqual(["hello", "buy"]);
  });

  it("does not look for labels that nobody needs", () => {
    expect(table("text\tlabel\na\t\n", { needLabels: false }).labels).toBeUndefined();
  });

  it("refuses rows that are not rows, with file and line", () => {
    says(
      () => table("sentence\tlabel\na\t1\nb\n"),
      't.tsv:3: a column is missing ("label"; found 1 column, expected 2)',
    );
    says(
      () => table("a\t1\nb\n", { header: false, textColumn: "0", labelColumn: "1" }),
      "t.tsv:2: a column is missing (1;",
    );
    says(() => table("sentence\tlabel\na\tb\t1\n"), "t.tsv:2: too many columns (found 3, expected 2)");
    says(() => table("sentence\tlabel\n  \t1\n"), 't.tsv:2: column "sentence" is blank');
    says(() => table("sentence\tlabel\na\t \n"), 't.tsv:2: column "label" is blank');
    says(() => table("sentence1\tsentence2\tlabel\na\t\t1\n"), 't.tsv:2: column "sentence2" is blank');
    says(() => table("sentence\tlabel\na\t1\n\n\nb\t1\n"), "t.tsv:3: an empty line between rows");
  });

  it("refuses what would outgrow its file in memory", () => {
    says(() => table(`${"a\t".repeat(10_000)}\nx\n`), "t.tsv:1: over 10000 columns");
    const rows = function* () {
      yield "text\tlabel";
      for (let i = 0; i < 1_000_001; i++) yield "a\t1";
    };
    says(() => parseTable(rows(), "t.tsv", { needLabels: true }), "t.tsv: over 1000000 rows of under 16 characters");
  });

  it("refuses tables without rows", () => {
    says(() => table(""), "t.tsv: the file is empty");
    says(() => table("\n\n"), "t.tsv: the file is empty");
    says(() => table("sentence\tlabel\n"), 't.tsv: a header and no rows (columns "sentence", "label")');
  });

  it("lists the columns, suggests the nearest and says how to name one", () => {
    says(
      () => table("id\tsentense\tlabel\n1\ta\tb\n"),
      'no text column (found "id", "sentense", "label"; expected sentence,',
    );
    says(
      () => table("id\tsentense\tlabel\n1\ta\tb\n"),
      'Did you mean "sentense"? Name it with --text-column, or add --no-header',
    );
    says(() => table("sentence\tstars\na\t1\n"), 't.tsv: no label column (found "sentence", "stars"; expected label,');
    says(
      () => table("text\tlabel\na\t1\n", { textColumn: "txet" }),
      '--text-column "txet": t.tsv has no such column (found "text", "label"). Did you mean "text"?',
    );
    says(
      () => table("a\t1\n", { header: false }),
      "t.tsv: which column is the text? (found 2 columns and no header). Give --text-column NUMBER",
    );
    says(
      () => table("a\t1\n", { header: false, textColumn: "2" }),
      '--text-column "2": t.tsv has no such column (found 2 columns, counted from 0)',
    );
    says(() => table("text\tlabel\na\t1\n", { labelColumn: "text" }), 'column "text" is named for two purposes');
    says(() => table("text\ttext\tlabel\na\tb\t1\n"), 'two columns are called "text"');
  });

  it("shows nothing from a file that could move a cursor", () => {
    says(() => table("\u001b[2Jbad\u202e\tlabel\na\t1\n"), '"\\u{1b}[2Jbad\\u{202e}"');
  });
});

describe("JSONL", () => {
  it("reads an object a line; labels may be words, numbers or booleans", () => {
    const t = jsonl(
      '{"text": "a\\tb", "label": 1, "__proto__": 3}\n{"label": "x", "text": "c"}\n{"text": "d", "label": true}\n',
    );
    expect([t.texts, t.labels, t.lineNumbers]).toEqual([
      ["a\tb", "c", "d"],
      ["1", "x", "true"],
      [1, 2, 3],
    ]);
  });

  it("refuses what is not a row, with file and line", () => {
    says(() => jsonl('{"text": "a", "label": 1}\n{"text": "b", \n'), "t.jsonl:2: not valid JSON (");
    says(() => jsonl('["a", 1]\n'), "t.jsonl:1: not a JSON object (found an array)");
    says(
      () => jsonl('{"text": "a", "label": 1}\n{"text": "b"}\n'),
      't.jsonl:2: a column is missing ("label"; found "text")',
    );
    says(() => jsonl('{"text": 5, "label": 1}\n'), 't.jsonl:1: column "text" is not a string (found a number)');
    says(
      () => jsonl('{"text": "a", "label": null}\n'),
      't.jsonl:1: column "label" is not a word or a number (found null)',
    );
    says(() => jsonl('{"text": "a\\u0000", "label": 1}\n'), 't.jsonl:1: a NUL character in "text"');
    says(() => jsonl('{"txt": "a", "label": 1}\n'), 't.jsonl: no text column (found "txt", "label"');
    says(() => jsonl('{"text": "a", "label": 1}\n', { textColumn: "toString" }), "no such column");
    says(() => jsonl('{"text": "a"}', { header: false }), "--no-header: t.jsonl is JSONL");
    says(() => jsonl(""), "t.jsonl: the file is empty");
  });
});

describe("files", () => {
  const read = (path: string, options: Partial<TableOptions> = {}) => readTable(path, { needLabels: true, ...options });

  it("takes CRLF, a byte-order mark, and a last line without its end", () => {
    const t = read(onDisk("crlf.tsv", "\ufeffsentence\tlabel\r\nZoë\t1\r\nb\t0"));
    expect([t.texts, t.labels, t.columns]).toEqual([
      ["Zoë", "b"],
      ["1", "0"],
      ["sentence", "label"],
    ]);
  });

  it("says what a file is that isn't a table", () => {
    says(() => read("x.csv"), "x.csv: CSV is not yet supported (expected .tsv or .jsonl)");
    says(() => read("x.parquet"), "Parquet is not yet supported");
    says(() => read("x.json"), "one JSON document is not a table");
    says(() => read("x"), "unknown kind of table (found no extension;");
    says(() => read(onDisk("page.tsv", "<!DOCTYPE html><p>404")), "page.tsv: this is an HTML page");
    says(
      () => read(onDisk("lfs.tsv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")),
      "lfs.tsv: this is a Git LFS pointer",
    );
    says(() => read(onDisk("utf16.tsv", Buffer.from("\ufefftext\n", "utf16le"))), "this is UTF-16");
    says(() => read(onDisk("nul.tsv", "sentence\tlabel\na\u0000\t1\n")), "nul.tsv: a NUL character (line 2;");
    says(() => read(onDisk("empty.tsv", "")), "empty.tsv: the file is empty");
    const broken = Buffer.concat([Buffer.from("sentence\tlabel\na\t1\nb"), Buffer.from([0xe4]), Buffer.from("c\t0\n")]);
    says(() => read(onDisk("latin1.tsv", broken)), "latin1.tsv: invalid UTF-8 (line 3, byte offset 20; found 0xe4)");
    expect(() => read(join(folder, "none.tsv"))).toThrow(StorageError);
    expect(() => read(join(folder, "none.tsv"))).toThrow("none.tsv: cannot open: no such file or folder");
  });
});

describe("labels", () => {
  const of = (path: string, ...labels: string[]) =>
    table(`text\tlabel\n${labels.map((l) => `a\t${l}\n`).join("")}`, {}, path);

  it("are in numeric order if all are whole numbers, else by code points", () => {
    expect(labelSet([of("a.tsv", "10", "9", "-1", "9")])).toEqual({
      labels: ["-1", "9", "10"],
      ids: [Uint32Array.of(2, 1, 0, 1)],
    });
    expect(labelSet([of("a.tsv", "ä", "b", "B", "10", "9")]).labels).toEqual(["10", "9", "B", "b", "ä"]);
  });

  it("of other tables must be the training table's or the model's", () => {
    const train = of("train.tsv", "pos", "neg");
    expect(labelSet([train, of("dev.tsv", "pos")]).ids).toEqual([Uint32Array.of(1, 0), Uint32Array.of(1)]);
    says(
      () => labelSet([train, of("dev.tsv", "neg", "poss")]),
      'dev.tsv:3: unknown label (found "poss"; the training table has "neg", "pos"). Did you mean "pos"?',
    );
    says(
      () => labelSet([of("d.tsv", "meh")], ["neg", "pos"]),
      'd.tsv:2: unknown label (found "meh"; the model knows "neg", "pos")',
    );
    expect(labelSet([of("d.tsv", "pos")], ["neg", "pos"]).ids).toEqual([Uint32Array.of(1)]);
  });

  it("of a model that never named its labels are numbers", () => {
    expect(labelSet([of("d.tsv", "1", "LABEL_0")], ["LABEL_0", "LABEL_1"]).ids).toEqual([Uint32Array.of(1, 0)]);
  });

  it("of a training table need two classes", () => {
    says(
      () => labelSet([of("t.tsv", "1", "1")]),
      't.tsv: a training table needs two classes or more (found "1" in 2 rows)',
    );
  });
});

const real = needs("data/sst2", "data/chnsenticorp", "data/sms_spam");
describe.skipIf(real.skip)(real.named("real tables give a row for every line"), () => {
  it.each([
    ["sst2/train.tsv", 67349, { "0": 29780, "1": 37569 }, {}],
    ["sst2/dev.tsv", 872, { "0": 428, "1": 444 }, {}],
    ["chnsenticorp/train.tsv", 9600, { "0": 4801, "1": 4799 }, {}],
    ["chnsenticorp/dev.tsv", 1200, { "0": 607, "1": 593 }, {}],
    [
      "sms_spam/SMSSpamCollection.tsv",
      5574,
      { ham: 4827, spam: 747 },
      { header: false, textColumn: "1", labelColumn: "0" },
    ],
    ["cola/dev.tsv", 1043, { "0": 322, "1": 721 }, { header: false, textColumn: "3", labelColumn: "1" }],
  ])("%s: %i rows", (path, rows, counts, options: Partial<TableOptions>) => {
    const t = readTable(shared("data", path), { needLabels: true, ...options });
    expect(t.texts.length).toBe(rows);
    const found: Record<string, number> = {};
    for (const label of t.labels ?? []) found[label] = (found[label] ?? 0) + 1;
    expect(found).toEqual(counts);
    expect(t.lineNumbers.at(-1)).toBe(rows + (options.header === false ? 0 : 1));
    expect(t.texts.some((text) => text.includes("\r"))).toBe(false);
  });
});
