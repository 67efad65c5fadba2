/**
 * @file bench/compilers: each compiler's words, as it says them, become the same numbers of the right kernel; what is silent,
 * ends early or comes from another adapter is an error; and a kernel that spills is complained of.
 */
import { describe, expect, test } from "vitest";
import { COMPILERS, MARK, read, type Said } from "../../bench/compilers/statistics.ts";
import { complaints, nameOf, type Result, table } from "../../bench/compilers/table.ts";

const WORDS: Record<string, { adapter: string; words: string[] }> = {
  "run-nvidia": {
    adapter: "nvk",
    words: [
      "Stage: compute",
      "Instruction count: 5743",
      "Static cycle count: 29114",
      "Max warps/SM: 12",
      "Spills to mem: 23",
      "Spills to reg: 7",
      "Fills from mem: 20",
      "Fills from reg: 7",
      "Num GPRs: 168",
      "SLM size: 72",
    ],
  },
  "run-amd": {
    adapter: "amd-radeon-rx-7900-xtx-radv-navi31",
    words: [
      "*** SHADER STATS ***",
      "VGPRs: 168",
      "Spilled SGPRs: 20",
      "Spilled VGPRs: 43",
      "Scratch size: 72",
      "Subgroups per SIMD: 12",
      "Instructions: 5743",
    ],
  },
  "run-apple": {
    adapter: "apple-m1-g13g-a0",
    words: [
      "CS shader: 5743 instrs, 4000 alu, 4000 fscib, 148 ic, 13454 code size, 168 gprs, 160 uniforms, 72 scratch, 12 threads, 2 loops, 23:20 spills:fills, 73 preamble inst",
    ],
  },
};
const NUMBERS = { instructions: 5743, registers: 168, spills: 43, scratch: 72, resident: 12 };

async function* lines(said: readonly (string | Said)[]): AsyncGenerator<string> {
  for (const one of said) yield typeof one === "string" ? one : MARK + JSON.stringify(one);
}
const kernel = (entry: string) => ({ shader: "softmax", entry, tile: { K: 3 }, constants: {} });
const [done, end] = [{ done: true }, { end: true }] as const;

describe.each(COMPILERS)("$name", (compiler) => {
  const { adapter, words } = WORDS[compiler.script] as (typeof WORDS)[string];
  const opened = { adapter, driver: "Mesa 26" };
  const nines = words.map((line) => line.replace(/\d+/g, "9"));

  test("numbers are those of the kernel that is compiled, and no other shader's", async () => {
    const said = [opened, "Warning: of Dawn's", kernel("forward"), ...words, ...nines, done, ...nines];
    const more = [kernel("backward"), ...words, done, ...nines, end];
    const { driver, kernels } = await read(lines([...said, ...more]), compiler);
    expect(driver).toBe(`${adapter}: Mesa 26`);
    expect(kernels).toEqual([
      { ...kernel("forward"), ...NUMBERS },
      { ...kernel("backward"), ...NUMBERS },
    ]);
  });

  test("a mark behind a line that was not ended is one", async () => {
    const said = [opened, kernel("forward"), ...words.slice(0, -1), words.at(-1) + MARK + JSON.stringify(done), end];
    expect((await read(lines(said), compiler)).kernels).toEqual([{ ...kernel("forward"), ...NUMBERS }]);
  });

  test.each([
    [
      "without its last words",
      [opened, kernel("forward"), ...words, "Segmentation fault"],
      /ended early(.|\n)*Segment/,
    ],
    ["of nothing", [opened, end], /compiled nothing/],
    ["of another adapter", [{ ...opened, adapter: "swiftshader" }], /the adapter that answers is swiftshader/],
    ["of a silent compiler", [opened, kernel("forward"), done, end], /nothing of instructions(.|\n)*softmax.forward/],
    ["of half a mark", [opened, `${MARK}{"shad`], /half a line/],
    [
      "in other words than before",
      [opened, kernel("forward"), ...words.map((line) => line.replace(/scratch|Scratch|SLM/, "stack")), done, end],
      /nothing of scratch/,
    ],
  ])("a run %s is an error", async (_, said, message) => {
    await expect(read(lines(said), compiler)).rejects.toThrow(message);
  });
});

describe("the table", () => {
  const [compiler, other] = COMPILERS as [Result["compiler"], Result["compiler"]];
  const fine = { ...kernel("forward"), ...NUMBERS, spills: 0, scratch: 0, registers: 20 };
  const spilt = { ...fine, constants: { dropout: 1 }, spills: 5, scratch: 16 };
  const results: Result[] = [
    { compiler, driver: "a", kernels: [spilt, fine] },
    { compiler: other, driver: "b", kernels: [] },
  ];
  const name = nameOf(fine);

  test("has of variants the worst, and – where a compiler was not asked", () => {
    expect(name).toBe("softmax.forward (K 3)");
    expect(table(results, false)).toMatch(/softmax.forward \(K 3\) +20 +12 +5 +– +– +–$/);
    expect(table(results, true)).toContain("| softmax.forward (K 3) | 20 | 12 | 5 | – | – | – |");
    expect(table([{ compiler, driver: "a", kernels: [fine] }], true)).not.toContain("softmax.forward");
  });

  test("what spills is named, unless that much is known, and so is what no longer does", () => {
    const known = { script: compiler.script, kernel: name, spills: 5, scratch: 16 };
    expect(complaints(results, [])).toEqual([expect.stringMatching(/^softmax.forward \(K 3\), by NAK.*: 5 stores/)]);
    expect(complaints(results, [known])).toEqual([]);
    for (const less of [{ spills: 4 }, { scratch: 12 }]) {
      expect(complaints(results, [{ ...known, ...less }])).toEqual([expect.stringContaining("(known: ")]);
    }
    const cured = [{ compiler, driver: "a", kernels: [fine] }];
    expect(complaints(cured, [known])).toEqual([expect.stringContaining("no longer does")]);
    expect(complaints(cured, [{ ...known, kernel: "gone" }])).toEqual([expect.stringContaining("gone")]);
    // An array with a computed index lies in memory, and nobody calls that a spill.
    expect(complaints([{ compiler, driver: "a", kernels: [{ ...fine, scratch: 16 }] }], [])).toHaveLength(1);
  });
});
