/**
 * @file The house's order: imports go one way (cli → posterior → train → model → autograd → kernels → gpu), there is no
 * cycle between files, and only the files named here touch Node.
 */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const SRC = fileURLToPath(new URL("../src", import.meta.url));
const ORDER = ["gpu", "kernels", "autograd", "model", "train", "posterior", "cli"];
const MAY_IMPORT_DATA = ["model", "train", "posterior", "cli"];
const ROOT_LEAVES = ["errors.ts", "random.ts"];
const TOUCH_NODE = [/^gpu\/node\.ts$/, /^data\/(files|load)\.ts$/, /^model\/folder\.ts$/, /^cli\//, /^open\.ts$/];

interface Import {
  from: string;
  to: string;
  typeOnly: boolean;
}

const files = readdirSync(SRC, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".ts"));

function importsOf(file: string): { path: string; typeOnly: boolean }[] {
  const text = readFileSync(join(SRC, file), "utf8");
  const found = [...text.matchAll(/(?:^|\n)\s*(?:import|export)\s+(type\s)?(?:[^;"']*?\sfrom\s+)?["']([^"']+)["']/g)];
  const dynamic = [...text.matchAll(/\bimport\(\s*["']([^"']+)["']\s*\)/g)].map((m) => ({
    path: m[1] as string,
    typeOnly: false,
  }));
  return [...found.map((m) => ({ path: m[2] as string, typeOnly: m[1] !== undefined })), ...dynamic];
}

const imports: Import[] = files.flatMap((from) =>
  importsOf(from)
    .filter(({ path }) => path.startsWith("."))
    .map(({ path, typeOnly }) => ({ from, to: relative(SRC, resolve(SRC, dirname(from), path)), typeOnly })),
);

const layer = (file: string) => (file.includes("/") ? (file.split("/")[0] as string) : "");

test("imports go downwards only", () => {
  const wrong = imports.filter(({ from, to }) => {
    const [a, b] = [layer(from), layer(to)];
    if (a === b || ROOT_LEAVES.includes(to)) return false;
    if (a === "") return from !== "index.ts" && from !== "open.ts";
    if (b === "data") return !MAY_IMPORT_DATA.includes(a);
    if (a === "data") return true;
    return !(ORDER.includes(b) && ORDER.indexOf(a) > ORDER.indexOf(b));
  });
  expect(wrong.map(({ from, to }) => `${from} imports ${to}`)).toEqual([]);
});

test("no cycle between files", () => {
  const cycles: string[] = [];
  const done = new Set<string>();
  const visit = (file: string, path: string[]) => {
    if (path.includes(file)) {
      cycles.push([...path.slice(path.indexOf(file)), file].join(" → "));
      return;
    }
    if (done.has(file)) return;
    for (const { from, to, typeOnly } of imports) if (from === file && !typeOnly) visit(to, [...path, file]);
    done.add(file);
  };
  for (const file of files) visit(file, []);
  expect(cycles).toEqual([]);
});

test("only named files touch Node", () => {
  const wrong = files.filter(
    (file) =>
      importsOf(file).some(({ path }) => path.startsWith("node:")) && !TOUCH_NODE.some((allowed) => allowed.test(file)),
  );
  expect(wrong).toEqual([]);
});

test("every import leads to a file", () => {
  const missing = imports.filter(({ to }) => !files.includes(to));
  expect(missing.map(({ from, to }) => `${from}: ${to}`)).toEqual([]);
});
