import { describe, expect, test } from "vitest";
import { f32, formatCompilation, withTile } from "../../src/gpu/index.ts";

const SOURCE = `// why
const ROWS = 1u;
// --- tile (defaults)
const ROWS2 = 4u;   // rows a thread
const SCALE = 2.0;
alias T = f32;
// --- end
const AFTER = 4u;
`;

describe("withTile", () => {
  test("replaces the named lines between the marks, keeps suffixes and comments", () => {
    const text = withTile(SOURCE, { ROWS2: 8, T: "vec4f" }, "probe");
    expect(text).toContain("const ROWS2 = 8u;   // rows a thread\n");
    expect(text).toContain("const SCALE = 2.0;\n");
    expect(text).toContain("alias T = vec4f;\n");
    expect(text.split("\n").length).toBe(SOURCE.split("\n").length);
  });

  test("gives the text itself where nothing is asked", () => expect(withTile(SOURCE, {}, "probe")).toBe(SOURCE));

  test("refuses names that do not stand between the marks", () => {
    for (const name of ["ROWS", "AFTER", "NONE"]) {
      expect(() => withTile(SOURCE, { [name]: 1 }, "probe")).toThrow(`shaders/probe.wgsl has no tile line for ${name}`);
    }
    expect(() => withTile("const ROWS2 = 1u;", { ROWS2: 2 }, "probe")).toThrow("ROWS2");
  });
});

describe("formatCompilation", () => {
  const message = (lineNum: number, linePos: number, text: string, type = "error") =>
    ({ type, message: text, lineNum, linePos, offset: 0, length: 1 }) as GPUCompilationMessage;

  test("puts the message beneath its numbered line, in its column, among its neighbours", () => {
    const shown = formatCompilation("a\nb\nc\nlet d = e;\nf\ng", [message(4, 9, "unresolved value 'e'")]);
    expect(shown.split("\n")).toEqual([
      "    1 | a",
      "    2 | b",
      "    3 | c",
      "    4 | let d = e;",
      "      |         ^ unresolved value 'e'",
      "    5 | f",
    ]);
  });

  test("on the first line too, and leaves warnings out", () => {
    const shown = formatCompilation("x\ny", [message(2, 1, "a warning", "warning"), message(1, 1, "bad")]);
    expect(shown.split("\n")).toEqual(["    1 | x", "      | ^ bad", "    2 | y"]);
  });
});

test("f32 gives the bits of the nearest float32", () => {
  expect(f32(1)).toBe(0x3f800000);
  expect(f32(-0)).toBe(0x80000000);
  expect(f32(0.1)).toBe(0x3dcccccd);
  expect(f32(Number.POSITIVE_INFINITY)).toBe(0x7f800000);
});
