/** @file examples/finetune.ts as a user runs it: a process of its own, on tables and a model folder that are named. */
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { writeModel, writeRows } from "../cli/harness.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const finetune = (...args: string[]) =>
  promisify(execFile)(process.execPath, ["--import", "tsx", "examples/finetune.ts", ...args], { cwd: ROOT });

test("finetune.ts trains on a user's tables, reports every term, and asks about the other one", async () => {
  const folder = mkdtempSync(join(tmpdir(), "priorwork-example-"));
  try {
    const model = writeModel(join(folder, "model"));
    const table = writeRows(join(folder, "mine.tsv"), 20, 1);
    const others = writeRows(join(folder, "others.tsv"), 30, 2);
    const { stdout, stderr } = await finetune(table, others, model);
    const steps = [
      ...stdout.matchAll(/^step (\d+) {2}nll (\S+) {2}log p\(θ\) (\S+) {2}.* (\S+) {2}priorShare (\S+)$/gm),
    ];
    expect(steps.map(([, step]) => Number(step))).toEqual(Array.from({ length: 50 }, (_, epoch) => 2 * epoch + 2)); // ⌈20/16⌉ batches, 100 steps
    for (const [, , nll, logPrior, logJoint, share] of steps.map((match) => match.map(Number))) {
      // J's one rule for N: the terms that are printed add up to their last digits.
      expect(logJoint).toBeCloseTo(-20 * (nll ?? Number.NaN) + (logPrior ?? Number.NaN), 2);
      expect(share).toBeGreaterThan(0); // the new head starts at random, away from its mean 0
    }
    expect(stdout).toMatch(/^30 other sentences: accuracy 0\.\d+, nll 0\.\d+ nats\n\(always "\w+": 0\.500\)$/m);
    const said = [...stdout.matchAll(/^\w+ (0\.\d\d|1\.00), \w+ (0\.\d\d|1\.00): \S/gm)];
    expect(said).toHaveLength(3);
    for (const [, p, q] of said) expect(Number(p) + Number(q)).toBeCloseTo(1, 1);
    expect(stderr).toMatch(/^adapter: /m);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("without arguments it ends where the default's 64 labels lead, far above chance", async () => {
  const { stdout } = await finetune();
  const [, accuracy, always] = (/accuracy (0\.\d+),.*\n\(always "displeased": (0\.\d+)\)/.exec(stdout) ?? []).map(
    Number,
  );
  expect(always).toBe(0.53);
  expect(accuracy).toBeGreaterThan(0.78); // .823 or so; two standard errors are .04
});
