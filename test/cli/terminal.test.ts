/** @file What a terminal shows: tables, figures, the bar and the lines, inert JSON; and the program as a process. */
import { spawnSync } from "node:child_process";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { markdown, python } from "../../src/cli/card.ts";
import { cut, duration, figure, jsonText, table, width } from "../../src/cli/format.ts";
import { Progress } from "../../src/cli/progress.ts";

test("columns line up, also of wide characters; numbers to the right", () => {
  const text = table(
    ["name", "n"],
    [
      ["电影", "1"],
      ["film\u001b[2J", "1000"],
    ],
  );
  expect(text.split("\n")).toEqual(["name              n", "电影              1", "film\\u{1b}[2J  1000"]);
  expect(width("电影é")).toBe(5);
  expect(cut("a long sentence", 8)).toBe("a long …");
  expect(cut("电影电影", 5)).toBe("电影…");
});

test("figures and durations", () => {
  expect([0, 0.123456, 1234.5678, -2e-9, 123456789, Number.NaN].map(figure)).toEqual([
    "0",
    "0.1235",
    "1235",
    "-2.00e-9",
    "1.23e+8",
    "NaN",
  ]);
  expect([0.4, 59, 60, 200, 7500].map(duration)).toEqual(["0 s", "59 s", "1 min", "3 min 20 s", "2 h 5 min"]);
});

test("JSON means the same and moves no cursor", () => {
  const value = { "k\u202e": ["\u001b[31m", "\u009b", "line\nend", "é", "🎬", "\u{e0001}"] };
  const text = jsonText(value);
  expect(JSON.parse(text)).toEqual(value);
  expect(text).not.toMatch(/[\p{Cf}\p{Co}]|(?!\n)\p{Cc}/u);
  expect(text).toContain("🎬");
});

test("words from data are no markup in a card", () => {
  const hostile = "<script>alert(1)</script> | [a](javascript:b) `x` **y** ![z](q)\n# h https://e.x www.e.x a@b.c";
  const shown = markdown(hostile);
  expect(shown).not.toMatch(/[<>|[\]`*!\n]|#(?!\d+;)|:\/\/|www\.|@/);
  expect(markdown("- item")).toBe("&#45; item");
  expect(markdown("train-2.tsv")).toBe("train-2.tsv");
});

test("Python's lines follow the readout", () => {
  const lines = (readout: string, head = "linear") => python({ plain: false, readout, head, maxLength: 64 });
  expect(lines("cls")).toContain("x = out.last_hidden_state[:, 0]");
  expect(lines("max")).toContain("x = out.last_hidden_state.amax(1)");
  expect(lines("last4-sum")).toContain("x = sum([h[:, 0] for h in out.hidden_states[-4:]])");
  expect(lines("pooler", "mlp:8")).toContain("x = out.pooler_output");
  for (const readout of ["mean", "last2-concat-max"]) expect(lines(readout).split("\n")).toHaveLength(5);
});

/** A stream and a clock that only the test moves. */
function screen(isTTY: boolean) {
  const written: string[] = [];
  const clock = { ms: 0 };
  const stream = { write: (text: string) => written.push(text), isTTY, columns: 60 };
  return { written, clock, progress: new Progress(stream, () => clock.ms, "training", 100) };
}

test("a bar on a terminal: one line, within the width, with the time left, wiped at the end", () => {
  const { written, clock, progress } = screen(true);
  progress.update(1);
  clock.ms += 50;
  progress.update(2); // too soon to draw
  clock.ms += 9_950;
  progress.update(51, "nll 0.5");
  expect(written).toHaveLength(2);
  expect(written[1]?.replace("\r\u001b[K", "")).toMatch(/^training █+░+ 51\/100 {2}nll 0\.5/);
  // 50 steps in 10 s after the first: 49 are left.
  clock.ms += 1000;
  progress.update(61);
  expect(written[2]).toContain("61/100  7 s left");
  for (const line of written) expect(width(line.replace("\r\u001b[K", ""))).toBeLessThan(60);
  progress.end();
  expect(written.at(-1)).toBe("\r\u001b[K");
  progress.update(99);
  expect(written).toHaveLength(4);
});

test("plain lines elsewhere: few, and the last one always", () => {
  const { written, clock, progress } = screen(false);
  for (let step = 1; step <= 100; step++) {
    progress.update(step, "\u001b[31m");
    clock.ms += 400;
  }
  expect(written.length).toBeGreaterThan(3);
  expect(written.length).toBeLessThan(15);
  expect(written.at(-1)).toBe("training 100/100  \\u{1b}[31m  40 s\n");
});

test("a finished line is written once; what is not finished is not rounded up", () => {
  const { written, clock, progress } = screen(false);
  // One of 64 members after the other predicts 100 examples.
  for (let member = 1; member <= 64; member++) {
    progress.update((100 * member) / 64);
    clock.ms += 20_000;
  }
  progress.update(100);
  expect(written).toHaveLength(64);
  expect(written[0]).toBe("training 1/100\n");
  expect(written[62]).toBe("training 98/100  20 s left\n");
  expect(written[63]).toBe("training 100/100  21 min\n");
});

test("the program starts from any folder, and a reader that goes away is no failure", () => {
  const program = fileURLToPath(new URL("../../bin/priorwork.js", import.meta.url));
  const version = spawnSync(process.execPath, [program, "--version"], { cwd: tmpdir(), encoding: "utf8" });
  expect(version.stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  expect(version.status).toBe(0);
  const usage = spawnSync(process.execPath, [program, "finetune", "--lr"], { cwd: tmpdir(), encoding: "utf8" });
  expect([usage.status, usage.stdout]).toEqual([2, ""]);
  if (process.platform === "win32") return;
  const pipe = spawnSync("sh", ["-c", `"${process.execPath}" "${program}" finetune --help | true`], {
    encoding: "utf8",
  });
  expect([pipe.status, pipe.stderr]).toEqual([0, ""]);
});
