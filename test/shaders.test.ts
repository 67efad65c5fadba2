/**
 * @file What holds for every shader: it compiles alone, with its defaults; it opens with a comment that says why; each
 * binding says its shape; and, since WGSL cannot include, a function that stands in two shaders is the same text in both.
 */
import { describe, expect, test } from "vitest";
import { formatCompilation, withTile } from "../src/gpu/index.ts";
import { readShaders } from "../src/gpu/node.ts";
import { gpuForTests } from "./kernels/harness.ts";

const gpu = gpuForTests();
const shaders = [...readShaders()];

/** Names of the entry points. */
function entryPoints(source: string): string[] {
  return [...source.matchAll(/@compute[^{;]*?\bfn\s+(\w+)/g)].map((match) => match[1] as string);
}

/** Functions other than entry points, name → text from `fn` to the brace that closes it. */
function functions(source: string): Map<string, string> {
  const code = source.replace(/\/\/.*$/gm, (comment) => comment.replace(/[{}]/g, " "));
  const entries = new Set(entryPoints(code));
  const found = new Map<string, string>();
  for (const match of code.matchAll(/^fn\s+(\w+)/gm)) {
    const name = match[1] as string;
    if (entries.has(name)) continue;
    let depth = 0;
    let end = code.indexOf("{", match.index);
    do {
      if (code[end] === "{") depth++;
      if (code[end] === "}") depth--;
      end++;
    } while (depth > 0 && end < code.length);
    found.set(name, source.slice(match.index, end));
  }
  return found;
}

/** Lines that declare a binding and do not end in a comment with a shape. */
function bindingsWithoutShape(source: string): string[] {
  return source.split("\n").filter((line) => line.includes("@binding(") && !/\/\/.*\[.+\]/.test(line));
}

/** The functions of one name whose texts differ, with the shaders they stand in. */
function disagreements(sources: readonly (readonly [string, string])[]): string[] {
  const first = new Map<string, { text: string; shader: string }>();
  const found: string[] = [];
  for (const [shader, source] of sources) {
    for (const [name, text] of functions(source)) {
      const known = first.get(name);
      if (!known) first.set(name, { text, shader });
      else if (known.text !== text) found.push(`${name} in ${known.shader} and ${shader}`);
    }
  }
  return found;
}

describe("every shader", () => {
  for (const [name, source] of shaders) {
    describe(name, () => {
      test("opens with a comment", () => expect(source).toMatch(/^\/\/ \S/));

      test("each binding says its shape", () => expect(bindingsWithoutShape(source)).toEqual([]));

      // The lane of a broadcast or a shuffle is a subgroup_invocation_id, which nothing says to be the local_invocation_index.
      test("lanes of a subgroup go by their number in it", () => {
        if (/subgroup(Broadcast|Shuffle)\(/.test(source))
          expect(source).not.toContain("builtin(local_invocation_index)");
      });

      // A smaller bound would leave the rest of a longer array out, and nobody would hear of it.
      test("its loops' constant bound is no limit", () => {
        for (const [, value] of source.matchAll(/\bLIMIT = (\w+);/g)) expect(value).toBe("0xffffffffu");
      });

      test("has entry points, and each makes a pipeline with the defaults", async (context) => {
        const { device } = gpu();
        const entries = entryPoints(source);
        expect(entries.length).toBeGreaterThan(0);
        const missing = [...source.matchAll(/^enable\s+([\w, ]+);/gm)]
          .flatMap((match) => (match[1] as string).split(/\s*,\s*/))
          .map((extension) => ({ f16: "shader-f16" })[extension] ?? extension.replaceAll("_", "-"))
          .filter((feature) => !device.features.has(feature as GPUFeatureName));
        if (missing.length > 0) context.skip(`this adapter has not ${missing.join(", ")}`);
        // A matrix unit multiplies its own sizes and no others.
        const { matrixUnit: unit, subgroupSize: SG } = gpu().adapter;
        const ofUnits = source.includes("subgroup_matrix_left<");
        if (ofUnits && !unit) context.skip("this adapter has no matrix unit that sums in f32");
        const tile = ofUnits && unit ? { SG, FM: unit.M, FN: unit.N, FK: unit.K } : {};
        const module = device.createShaderModule({ label: name, code: withTile(source, tile, name) });
        const { messages } = await module.getCompilationInfo();
        expect(formatCompilation(source, messages)).toBe("");
        for (const entryPoint of entries) {
          await device.createComputePipelineAsync({ label: name, layout: "auto", compute: { module, entryPoint } });
        }
      });
    });
  }

  test("functions of one name are one text", () => expect(disagreements(shaders)).toEqual([]));
});

describe("the checks themselves", () => {
  test("see a difference of one character, and none in entry points", () => {
    const a =
      "fn f(x: f32) -> f32 { if (x > 0.0) { return x; } return 0.0; }\n@compute @workgroup_size(1)\nfn main() { }\n";
    const b = a.replace("return 0.0", "return 1.0").replace("main() { }", "main() { let y = 1; }");
    expect(
      disagreements([
        ["a", a],
        ["b", b],
      ]),
    ).toEqual(["f in a and b"]);
    expect(
      disagreements([
        ["a", a],
        ["c", a.replace("{ }", "{ let y = 1; }")],
      ]),
    ).toEqual([]);
    expect(entryPoints(a)).toEqual(["main"]);
  });

  test("see a binding without a shape", () => {
    const line = "@group(0) @binding(0) var<storage, read> x: array<f32>;";
    expect(bindingsWithoutShape(`${line}\n${line}  // the input\n${line}  // [N, C]`)).toHaveLength(2);
  });
});
