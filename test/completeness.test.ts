/**
 * @file What CONTRIBUTING.md promises: an operation, a prior or a readout that lacks one of its parts fails here, with
 * the part named. (That every operation of autograd has a gradient check stands in autograd/engine.test.ts, what holds
 * for every shader in shaders.test.ts, the order of layers in layers.test.ts.)
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import * as kernels from "../src/kernels/index.ts";
import { READOUTS } from "../src/model/readout.ts";
import * as train from "../src/train/index.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const read = (path: string) => readFileSync(join(ROOT, path), "utf8");
const list = (folder: string, end: string) =>
  readdirSync(join(ROOT, folder), { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(end))
    .map((file) => `${folder}/${file}`);

/** Kernel files that launch something: operations. The others (shapes, choices, windows) serve them. */
const operations = list("src/kernels", ".ts").filter((path) => /\bgpu\.dispatch\(/.test(read(path)));

describe("every operation", () => {
  test("is found", () => expect(operations.length).toBeGreaterThan(10));

  for (const path of operations) {
    const name = path.replace(/^.*\/|\.ts$/g, "");
    describe(name, () => {
      test("has a line in src/kernels/index.ts", () => {
        expect(read("src/kernels/index.ts")).toContain(`export * from "./${name}.ts";`);
      });
      test("has a test file", () => expect(existsSync(join(ROOT, `test/kernels/${name}.test.ts`))).toBe(true));
    });
  }

  test("that is differentiable is used by autograd: a backward that no rule calls is dead or forgotten", () => {
    const rules = read("src/autograd/ops.ts");
    const backwards = Object.keys(kernels).filter((name) => name.endsWith("Backward"));
    expect(backwards.length).toBeGreaterThan(5);
    expect(backwards.filter((name) => !rules.includes(`k.${name}(`))).toEqual([]);
  });
});

test("every shader is launched by some kernel, by the device layer or by a bench", () => {
  const sources = [...list("src/kernels", ".ts"), ...list("src/gpu", ".ts"), ...list("bench", ".ts")]
    .map(read)
    .join("\n");
  const unused = list("shaders", ".wgsl")
    .map((path) => path.replace(/^.*\/|\.wgsl$/g, ""))
    .filter((name) => !new RegExp(`shader:[^,;]*"${name}"`).test(sources));
  expect(unused).toEqual([]);
});

test("every prior is exported and tested", () => {
  // A prior is what a function in src/train returns as `Prior`.
  const priors = list("src/train", ".ts").flatMap((path) =>
    [...read(path).matchAll(/export function (\w+)\((?:(?!export function)[\s\S])*?\): Prior \{/g)].map(
      (match) => match[1] ?? "",
    ),
  );
  expect(priors).toContain("gaussianPrior");
  const tests = list("test/train", ".test.ts").map(read).join("\n");
  const lacking = priors.flatMap((name) => [
    ...(name in train ? [] : [`${name}: no line in src/train/index.ts`]),
    ...(tests.includes(`${name}(`) ? [] : [`${name}: no test in test/train`]),
  ]);
  expect(lacking).toEqual([]);
});

test("every readout has a case in test/model/readout.test.ts", () => {
  // "last4-sum" stands for any number of layers.
  const cases = read("test/model/readout.test.ts").replace(/"last\d+-/g, '"last4-');
  expect(READOUTS.filter((name) => !cases.includes(`"${name}"`))).toEqual([]);
});
