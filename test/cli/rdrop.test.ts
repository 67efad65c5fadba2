/** @file `--r-drop`: what a run says of it, that it changes the run, and what is refused. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { temporaryFolder } from "../data/shared.ts";
import { run, writeModel, writeRows } from "./harness.ts";

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
const finetune = (out: string, ...more: string[]) =>
  run([
    ...["finetune", "--model", at("model"), "--train", at("train.tsv"), "--out", at(out), "--epochs", "1"],
    ...["--batch", "8", "--lr", "1e-3", ...more],
  ]);
const lines = (out: string) => readFileSync(at(`${out}/metrics.jsonl`), "utf8").trimEnd().split("\n").map((line) => JSON.parse(line)); // biome-ignore format: one line

beforeAll(() => {
  writeModel(at("model"));
  writeRows(at("train.tsv"), 20, 1);
});

test("two passes beside MAP's prior: in run.json, and the divergence of every step", async () => {
  const { code, stderr } = await finetune("with", "--dropout", "0.3", "--r-drop", "4", "--method", "laplace", "--members", "2"); // biome-ignore format: one line
  expect(code, stderr).toBe(0);
  expect(stderr).toMatch(/^warning: --r-drop 4: a regulariser, not a prior/m);
  const record = JSON.parse(readFileSync(at("with/run.json"), "utf8"));
  expect(record.objective).toMatchObject({ rDrop: 4, precision: "encoder=300,head=1" });
  expect(Math.min(...lines("with").map(({ rDrop }) => rDrop))).toBeGreaterThan(0);
  expect((await finetune("without", "--dropout", "0.3")).code).toBe(0);
  expect(lines("without")[0]).not.toHaveProperty("rDrop");
  expect(lines("without").at(-1).distance).not.toBe(lines("with").at(-1).distance);
  const other = await finetune("with", "--dropout", "0.3", "--r-drop", "5", "--method", "laplace", "--members", "2", "--resume"); // biome-ignore format: one line
  expect([other.code, other.stderr]).toEqual([2, expect.stringContaining("--r-drop was")]);
});

test.each([
  [["--r-drop", "1"], /--r-drop 1: config\.json has no dropout/],
  [["--r-drop", "1", "--dropout", "0"], /--r-drop 1: compares two dropout masks/],
  [["--r-drop", "1", "--method", "rank-one"], /--r-drop 1: --method rank-one shares a batch out/],
  [["--r-drop", "-1"], /--r-drop -1: out of range/],
])("%j is refused", async (flags, message) => {
  const { code, stderr } = await finetune("none", ...flags);
  expect([code, stderr]).toEqual([2, expect.stringMatching(message)]);
});
