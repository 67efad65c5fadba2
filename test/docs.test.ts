/**
 * @file What the documents say is true: their TypeScript type-checks and runs, and prints what they show; what they quote
 * stands in the file they quote; commands, flags, scripts, files and links exist. A fence says which it is:
 *   ts            one module a document, run in a process of its own from the repository's root
 *   ts no-run     type-checked alone
 *   text output   stands, line by line, in what the document's code prints
 *   LANG from F   lines of file F, in order; a line `…` leaves some out
 *   json          lines of metrics.jsonl, with the keys of `lineOf`, as the command in the `sh` before it writes them
 *   sh            commands that exist, with flags and files that exist
 */
import { execFile } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import ts from "typescript";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { run } from "./cli/harness.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
/** Inside the repository, so that `import … from "priorwork"` leads here. Ignored by git. */
const WORK = join(ROOT, ".docs-test");
const DOCUMENTS = [
  "README.md",
  "CONTRIBUTING.md",
  ...readdirSync(join(ROOT, "docs"))
    .filter((name) => name.endsWith(".md"))
    .map((name) => `docs/${name}`),
];

interface Fence {
  info: string;
  text: string;
  /** Of its first line of text, from 1. */
  line: number;
}

/** A document's fences, and its text without them (same lines). */
function parse(markdown: string): { fences: Fence[]; prose: string } {
  const fences: Fence[] = [];
  const prose: string[] = [];
  let open: (Fence & { indent: string }) | undefined;
  for (const [i, line] of markdown.split("\n").entries()) {
    const mark = /^( *)```(.*)$/.exec(line);
    if (open && mark && mark[2] === "") {
      fences.push(open);
      open = undefined;
    } else if (open) {
      open.text += `${line.startsWith(open.indent) ? line.slice(open.indent.length) : line}\n`;
    } else if (mark) {
      open = { info: (mark[2] ?? "").trim(), text: "", line: i + 2, indent: mark[1] ?? "" };
    }
    prose.push(open || mark ? "" : line);
  }
  if (open) throw new Error(`line ${open.line}: a fence that is not closed`);
  return { fences, prose: prose.join("\n") };
}

const documents = DOCUMENTS.filter((name) => existsSync(join(ROOT, name))).map((name) => ({
  name,
  ...parse(readFileSync(join(ROOT, name), "utf8")),
}));

/** A module whose lines are the document's, so that an error's line is the document's line. */
function moduleOf(fences: readonly Fence[]): string {
  const lines: string[] = [];
  for (const { text, line } of fences) {
    while (lines.length < line - 1) lines.push("");
    lines.push(...text.trimEnd().split("\n"));
  }
  return `${lines.join("\n")}\nexport {};\n`;
}

const moduleName = (name: string, suffix = "") =>
  join(WORK, `${name.replace(/\.md$/, "").replace("/", "-")}${suffix}.ts`);

/** Documents with code, and where it was written. */
const modules = documents
  .map(({ name, fences }) => ({ name, path: moduleName(name), fences: fences.filter(({ info }) => info === "ts") }))
  .filter(({ fences }) => fences.length > 0);
const typedOnly = documents.flatMap(({ name, fences }) =>
  fences
    .filter(({ info }) => info === "ts no-run")
    .map((fence) => ({ name, path: moduleName(name, `-${fence.line}`), fences: [fence] })),
);

beforeAll(() => {
  mkdirSync(WORK, { recursive: true });
  for (const { path, fences } of [...modules, ...typedOnly]) writeFileSync(path, moduleOf(fences));
});
afterAll(() => rmSync(WORK, { recursive: true, force: true }));

test("the documents are there", () => {
  expect(documents.map(({ name }) => name)).toEqual(expect.arrayContaining(["README.md", "CONTRIBUTING.md"]));
  expect(modules.length).toBeGreaterThan(2);
});

test("every fence is of a kind that is checked", () => {
  const known = /^(ts|ts no-run|text output|sh|json|\w+ from \S+)$/;
  const unknown = documents.flatMap(({ name, fences }) =>
    fences.filter(({ info }) => !known.test(info)).map(({ info, line }) => `${name}:${line}: ${info}`),
  );
  expect(unknown).toEqual([]);
});

test("TypeScript type-checks", () => {
  const { config } = ts.readConfigFile(join(ROOT, "tsconfig.json"), ts.sys.readFile);
  const { options } = ts.parseJsonConfigFileContent({ ...config, include: [], files: ["src/index.ts"] }, ts.sys, ROOT);
  const files = [...modules, ...typedOnly];
  const program = ts.createProgram(
    files.map(({ path }) => path),
    options,
  );
  const found = files.flatMap(({ name, path }) => {
    const source = program.getSourceFile(path);
    if (!source) return [`${name}: not read`];
    return [...program.getSyntacticDiagnostics(source), ...program.getSemanticDiagnostics(source)].map((d) => {
      const line = source.getLineAndCharacterOfPosition(d.start ?? 0).line + 1;
      return `${name}:${line}: ${ts.flattenDiagnosticMessageText(d.messageText, " ")}`;
    });
  });
  expect(found).toEqual([]);
});

describe("TypeScript runs and prints what is shown", () => {
  for (const { name, path } of modules) {
    test(name, async () => {
      const { stdout } = await promisify(execFile)(process.execPath, ["--import", "tsx", path], { cwd: ROOT });
      const printed = stdout.split("\n").map((line) => line.trimEnd());
      const shown = documents
        .filter((document) => document.name === name)
        .flatMap(({ fences }) => fences.filter(({ info }) => info === "text output"))
        .flatMap(({ text }) => text.trimEnd().split("\n"));
      expect(missingInOrder(shown, printed), `not printed; printed was:\n${stdout}`).toEqual([]);
    });
  }
});

/** Those of `wanted` that do not follow one another in `lines`. */
function missingInOrder(wanted: readonly string[], lines: readonly string[]): string[] {
  let from = 0;
  return wanted.filter((line) => {
    const at = lines.indexOf(line, from);
    if (at >= 0) from = at + 1;
    return at < 0;
  });
}

describe("quotations", () => {
  for (const { name, fences } of documents) {
    for (const { info, text, line } of fences) {
      const file = /^\w+ from (\S+)$/.exec(info)?.[1];
      if (!file) continue;
      test(`${name}:${line} is in ${file}`, () => {
        const source = readFileSync(join(ROOT, file), "utf8").split("\n");
        const quoted = text.trimEnd().split("\n");
        expect(
          missingInOrder(
            quoted.filter((l) => l.trim() !== "…").map((l) => l.trim()),
            source.map((l) => l.trim()),
          ),
        ).toEqual([]);
      });
    }
  }
});

test("lines of metrics.jsonl have the keys that a run writes, in order", () => {
  const source = readFileSync(join(ROOT, "src/cli/training.ts"), "utf8");
  const keys = /function lineOf[\s\S]*?return \{ ([^}]*) \};/.exec(source)?.[1]?.split(", ");
  const lines = documents.flatMap(({ fences }) =>
    fences.filter(({ info }) => info === "json").flatMap(({ text }) => text.trimEnd().split("\n")),
  );
  expect(lines.length).toBeGreaterThan(0);
  for (const line of lines) expect(Object.keys(JSON.parse(line) as object)).toEqual(keys);
});

test("the keys that README promises stand in the sources", () => {
  const readme = readFileSync(join(ROOT, "README.md"), "utf8");
  const table = /^## What scripts can rely on\n([\s\S]*?)\n## /m.exec(readme)?.[1] ?? "";
  const keys = [...table.matchAll(/^\|[^|]*\|([^|]*)\|$/gm)].flatMap(([, cell = ""]) =>
    [...cell.matchAll(/`([^`]*)`/g)].flatMap(([, words = ""]) => words.match(/[A-Za-z]+/g) ?? []),
  );
  expect(keys.length).toBeGreaterThan(40);
  const sources = ["src/cli", "src/gpu", "src/train", "bench"]
    .flatMap((folder) => readdirSync(join(ROOT, folder)).map((file) => join(ROOT, folder, file)))
    .filter((path) => path.endsWith(".ts"))
    .map((path) => readFileSync(path, "utf8"))
    .join("\n");
  expect(keys.filter((key) => !new RegExp(`\\b${key}\\b`).test(sources))).toEqual([]);
});

test("lines of metrics.jsonl are what the command before them writes", async () => {
  for (const { fences } of documents) {
    for (const [i, { info, text }] of fences.entries()) {
      if (info !== "json") continue;
      const before = fences.slice(0, i).filter((fence) => fence.info === "sh");
      const words = before.at(-1)?.text.replaceAll("\\\n", " ").trim().split(/\s+/) ?? [];
      expect(words).toEqual(expect.arrayContaining(["npx", "priorwork", "--out"]));
      const folder = join(WORK, "run");
      words[words.indexOf("--out") + 1] = folder;
      expect(await run([...words.slice(2), "--overwrite"])).toMatchObject({ code: 0 });
      const written = readFileSync(join(folder, "metrics.jsonl"), "utf8").split("\n");
      for (const line of text.trimEnd().split("\n")) {
        const shown = JSON.parse(line) as Record<string, number>;
        const found = JSON.parse(written[(shown.step ?? 0) - 1] ?? "{}") as Record<string, number>;
        for (const [key, value] of Object.entries(shown)) {
          // A speed is the machine's; of the others an adapter may have other last digits.
          if (key === "tokensPerSecond") continue;
          expect(Math.abs((found[key] ?? Number.NaN) - value), key).toBeLessThanOrEqual(1e-3 * Math.abs(value));
        }
      }
    }
  }
});

describe("commands", () => {
  const scripts = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")).scripts as Record<string, string>;
  const readAll = (folder: string) =>
    readdirSync(join(ROOT, folder), { recursive: true, encoding: "utf8" })
      .filter((file) => file.endsWith(".ts") && file !== "docs.test.ts")
      .map((file) => readFileSync(join(ROOT, folder, file), "utf8"))
      .join("\n");
  const sources = readAll("src") + readAll("test");

  /** What is wrong with one command line; nothing if all of it exists. */
  async function wrongIn(command: string): Promise<string[]> {
    const words = command.match(/"[^"]*"|\S+/g) ?? [];
    const wrong: string[] = [];
    while (/^[A-Z_]+=/.test(words[0] ?? "")) {
      const variable = words.shift()?.split("=")[0] ?? "";
      if (!new RegExp(`\\b${variable}\\b`).test(sources)) wrong.push(`nothing reads ${variable}`);
    }
    const [program, ...rest] = words;
    if (program === "npx" && rest[0] === "priorwork") return [...wrong, ...(await wrongFlags(rest.slice(1)))];
    if (program === "priorwork") return [...wrong, ...(await wrongFlags(rest))];
    if (program === "npx" && (rest[0] === "vitest" || rest[0] === "tsx")) {
      const files = rest
        .slice(rest[0] === "vitest" ? 2 : 1)
        .filter((word) => /^(src|test|examples|bench)\//.test(word));
      if (files.length === 0) wrong.push(`no file in ${command}`);
      return [...wrong, ...files.filter((file) => !existsSync(join(ROOT, file))).map((file) => `no file ${file}`)];
    }
    if (program === "npx" && rest[0] === "biome") return wrong;
    if (program === "npm" && ["install", "ci"].includes(rest[0] ?? "")) return wrong;
    const script = program === "npm" ? (rest[0] === "run" ? rest[1] : rest[0]) : undefined;
    if (script !== undefined && scripts[script] !== undefined) return wrong;
    return [...wrong, `unknown: ${command}`];
  }

  async function wrongFlags([command = "", ...words]: string[]): Promise<string[]> {
    const help = command.startsWith("-") ? await run([command]) : await run([command, "--help"]);
    // The help of a command that does not exist is the program's own.
    if (!command.startsWith("-") && !help.stdout.includes(`Usage: priorwork ${command}`)) {
      return [`priorwork has no command ${command}`];
    }
    const flags = new Set(help.stdout.match(/--[a-z][a-z-]*/g));
    return words
      .filter((word) => word.startsWith("-"))
      .map((word) => word.split("=", 1)[0] ?? "")
      .filter((flag) => !flags.has(flag))
      .map((flag) => `priorwork ${command} has no ${flag}`);
  }

  for (const { name, fences, prose } of documents) {
    test(name, async () => {
      const shell = fences
        .filter(({ info }) => info === "sh")
        .flatMap(({ text }) => text.replace(/\\\n\s*/g, " ").split("\n"))
        .map((line) => line.replace(/(^|\s)#.*$/, "").trim());
      const inline = [...prose.matchAll(/`((?:npx |npm |priorwork )[^`]*)`/g)].map((match) => match[1] ?? "");
      const commands = [...shell, ...inline].flatMap((line) => line.split("&&")).map((line) => line.trim());
      const wrong: string[] = [];
      for (const command of commands) if (command !== "") wrong.push(...(await wrongIn(command)));
      expect(wrong).toEqual([]);
    });
  }

  test("the check sees a wrong flag, script, file and variable", async () => {
    expect(await wrongIn("npx priorwork finetune --modell x --lr 1")).toEqual(["priorwork finetune has no --modell"]);
    expect(await wrongIn("npx priorwork finetun --lr 1")).toEqual(["priorwork has no command finetun"]);
    expect(await wrongIn("npm run strat")).toEqual(["unknown: npm run strat"]);
    expect(await wrongIn("npx tsx examples/nothing.ts")).toEqual(["no file examples/nothing.ts"]);
    expect(await wrongIn("PRIORWORK_ADAPTR=x npm test")).toEqual(["nothing reads PRIORWORK_ADAPTR"]);
  });
});

describe("links and files", () => {
  for (const { name, prose } of documents) {
    test(name, () => {
      const wrong: string[] = [];
      for (const [, target = ""] of prose.matchAll(/\]\(([^)\s]+)\)/g)) {
        if (/^[a-z]+:/.test(target)) continue;
        const [file = "", anchor] = target.split("#");
        const path = file === "" ? join(ROOT, name) : resolve(ROOT, dirname(name), file);
        if (!existsSync(path)) wrong.push(`${target}: no such file`);
        else if (anchor !== undefined && !headings(readFileSync(path, "utf8")).includes(anchor)) {
          wrong.push(`${target}: no such heading`);
        }
      }
      // Paths in backticks are paths from the root; NAME stands for a name of the reader's own.
      for (const [, path = ""] of prose.matchAll(/`((?:src|test|shaders|examples|docs|bench|\.ci)\/[\w./-]*)`/g)) {
        if (!path.includes("NAME") && !existsSync(join(ROOT, path))) wrong.push(`${path}: no such file`);
      }
      expect(wrong).toEqual([]);
    });
  }

  /** As GitHub makes anchors of headings. */
  function headings(markdown: string): string[] {
    return [...parse(markdown).prose.matchAll(/^#+ (.*)$/gm)].map(([, title = ""]) =>
      title
        .toLowerCase()
        .replace(/[^\p{L}\p{N} _-]/gu, "")
        .replaceAll(" ", "-"),
    );
  }
});
