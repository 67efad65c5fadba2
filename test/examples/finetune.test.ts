/** @file examples/finetune.ts as a user runs it: a process of its own, on a table and a model folder that are named. */
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { writeModel, writeRows } from "../cli/harness.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

test("finetune.ts trains on a user's table, reports every term, and ends", async () => {
  const folder = mkdtempSync(join(tmpdir(), "priorwork-example-"));
  try {
    const model = writeModel(join(folder, "model"));
    const table = writeRows(join(folder, "mine.tsv"), 20, 1);
    const { stdout, stderr } = await promisify(execFile)(
      process.execPath,
      ["--import", "tsx", "examples/finetune.ts", table, model],
      { cwd: ROOT },
    );
    const steps = [
      ...stdout.matchAll(/^step (\d+) {2}nll (\S+) {2}log p\(θ\) (\S+) {2}.* (\S+) {2}priorShare (\S+)$/gm),
    ];
    expect(steps.map(([, step]) => Number(step))).toEqual([1, 2, 3, 4, 5, 6]); // ⌈20/16⌉ batches, 3 epochs
    for (const [, , nll, logPrior, logJoint, share] of steps.map((match) => match.map(Number))) {
      // J's one rule for N: the terms that are printed add up to their last digits.
      expect(logJoint).toBeCloseTo(-20 * (nll ?? Number.NaN) + (logPrior ?? Number.NaN), 2);
      expect(share).toBeGreaterThan(0); // the new head starts at random, away from its mean 0
    }
    expect(stdout).toMatch(/accuracy 0\.\d+, nll 0\.\d+/);
    expect(stderr).toMatch(/^adapter: /m);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
