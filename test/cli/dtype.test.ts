/** @file `--dtype f16`: refused where there is no matrix unit, with nothing written; where there is one, a run, and its resumption. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { openGpu } from "../../src/gpu/node.ts";
import { open } from "../../src/open.ts";
import { temporaryFolder } from "../data/shared.ts";
import { run, writeModel, writeRows } from "./harness.ts";

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
const command = (out: string, ...more: string[]) => [
  ...["finetune", "--model", at("model"), "--train", at("train.tsv"), "--out", at(out)],
  ...["--epochs", "2", "--batch", "8", "--lr", "1e-3", "--dropout", "0.1", ...more],
];
const lines = (out: string): Record<string, unknown>[] =>
  readFileSync(at(`${out}/metrics.jsonl`), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => ({ ...JSON.parse(line), tokensPerSecond: 0 }));

let able = false;
let driver = "";
beforeAll(async () => {
  const gpu = await openGpu();
  able = gpu.adapter.matrixUnit !== undefined;
  driver = gpu.adapter.driver;
  gpu.destroy();
  writeModel(at("model"));
  writeRows(at("train.tsv"), 28, 1);
});

test("doctor says whether there is a unit", async () => {
  const { stdout } = await run(["doctor"]);
  expect(stdout).toMatch(able ? /^Matrix unit: \d+ × \d+ by \d+ × \d+, f16/m : /^Matrix unit: none .*--dtype f16/m);
});

test("without a unit: exit 3, one sentence, nothing written", async (context) => {
  if (able) context.skip("this adapter has one");
  const { code, stderr } = await run(command("none", "--dtype", "f16"));
  expect(code).toBe(3);
  expect(stderr).toMatch(
    /^dtype f16: .* has no matrix unit that multiplies f16 .* Leave dtype out: f32 runs everywhere\.$/m,
  );
  expect(existsSync(at("none"))).toBe(false);
  writeFileSync(at("text.txt"), "the film was good .\nthe plot was bad .\n\na great film .\n");
  const words = ["pretrain", "--text", at("text.txt"), "--config", at("model/config.json"), "--out", at("none")];
  const other = await run([...words, "--dtype", "f16"]);
  expect([other.code, other.stderr.includes("has no matrix unit")]).toEqual([3, true]);
  expect(existsSync(at("none"))).toBe(false);
  await expect(open({ quiet: true, dtype: "f16" })).rejects.toThrow(/^dtype f16: /);
});

test("with one: a run whose lines follow f32's, the scale beside them; stopped and resumed, the same bytes", async (context) => {
  if (!able) context.skip(`this adapter (${driver}) has no matrix unit`);
  expect((await run(command("plain"))).code).toBe(0);
  const { code, stderr } = await run(command("half", "--dtype", "f16"));
  expect(stderr).toMatch(/^note: training steps multiply in f16 and sum in f32/m);
  expect(code).toBe(0);
  const [plain, half] = [lines("plain"), lines("half")];
  expect(plain[0]).not.toHaveProperty("lossScale");
  for (const [i, line] of half.entries()) {
    expect(line).toMatchObject({ lossScale: 4096, skipped: false });
    expect(Math.abs(Number(line.nll) - Number(plain[i]?.nll))).toBeLessThan(2 ** -11);
  }
  expect(JSON.parse(readFileSync(at("half/run.json"), "utf8")).options.dtype).toBe("f16");

  const stopped = await run(command("parts", "--dtype", "f16"), {
    onStderr: (text, interrupt) => {
      if (text.startsWith("training 3/")) interrupt();
    },
  });
  expect(stopped.code).toBe(130);
  const other = await run(command("parts", "--resume"));
  expect(other.stderr).toMatch(/--dtype was "f16" and is "f32"/);
  expect((await run(command("parts", "--dtype", "f16", "--resume"))).code).toBe(0);
  expect(lines("parts")).toEqual(half);
  expect(readFileSync(at("parts/model.safetensors"))).toEqual(readFileSync(at("half/model.safetensors")));
});
