/** @file Commands that hold many vectors of θ's length say so before they do, and refuse what the device is known not to have. */
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { temporaryFolder } from "../data/shared.ts";
import { run, writeModel, writeRows } from "./harness.ts";

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
const swag = ["finetune", "--model", at("model"), "--train", at("train.tsv"), "--epochs", "1", "--batch", "8", "--method", "swag", "--points", "4", "--rank", "4"]; // biome-ignore format: a command
const prior = ["prior", "--model", at("model"), "--text", at("text.txt"), "--batches", "2", "--rank", "4"];

beforeAll(() => {
  writeModel(at("model"));
  writeRows(at("train.tsv"), 12, 1);
  writeFileSync(at("text.txt"), "the film is good .\nthe plot was awful .\n");
});

const withMemory = (bytes: string, argv: string[]) => run(argv, { env: { PRIORWORK_DEVICE_MEMORY: bytes } });

test("SWAG: a note before training, a refusal before anything is written", async () => {
  const { code, stderr } = await withMemory("1e9", [...swag, "--members", "2", "--out", at("swag")]);
  expect(code, stderr).toBe(0);
  // The gradient, Adam's two moments, SWAG's 3 and 4 deviations.
  expect(stderr).toMatch(
    /^note: SWAG: 10 vectors of θ's length, [\d.]+ MB of device memory, beside [\d.]+ MB in use$/m,
  );
  expect(stderr.indexOf("note: SWAG")).toBeLessThan(stderr.indexOf("training "));
  const refused = await withMemory("250000", [...swag, "--out", at("refused")]);
  expect(refused.code).toBe(2);
  expect(refused.stderr).toMatch(/^SWAG: 10 vectors .* \(at most 0\.25 MB in all\)\. A rank of \d fits/m);
  expect(existsSync(at("refused"))).toBe(false);
});

test("priorwork prior: the same", async () => {
  const { code, stderr } = await withMemory("1e9", [...prior, "--out", at("a.prior")]);
  expect(code, stderr).toBe(0);
  expect(stderr).toMatch(/^note: Fisher information: 10 vectors of θ's length/m);
  const refused = await withMemory("150000", [...prior, "--out", at("b.prior")]);
  expect([refused.code, refused.stderr]).toEqual([2, expect.stringMatching(/^Fisher information: 10 vectors .* A rank of \d fits/m)]); // biome-ignore format: one sentence
  expect(existsSync(at("b.prior"))).toBe(false);
  expect((await withMemory("lots", [...prior, "--out", at("b.prior")])).stderr).toMatch(/^PRIORWORK_DEVICE_MEMORY lots: not a number/m); // biome-ignore format: one sentence
});
