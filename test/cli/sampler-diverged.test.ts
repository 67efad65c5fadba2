/** @file Samplers that leave the finite numbers: what is kept of the draws before, and how a run goes on that has none. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { temporaryFolder } from "../data/shared.ts";
import { run, writeModel, writeRows } from "./harness.ts";

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
const json = (path: string) => JSON.parse(readFileSync(path, "utf8"));
const [model, train, dev] = [at("model"), at("train.tsv"), at("dev.tsv")];
const finetune = (out: string, ...more: string[]) => [
  ...["finetune", "--model", model, "--train", train, "--dev", dev, "--out", at(out), "--epochs", "1", "--batch", "8"],
  ...["--seed", "3", "--lr", "1e-3", "--members", "5", "--burn-in", "10", "--thin", "3", "--json"],
  ...more,
];

beforeAll(() => {
  writeModel(model);
  writeRows(train, 28, 1);
  writeRows(dev, 20, 2);
});

test("a sampler that diverges is stopped, its step named; the run is that of the draws before it", async () => {
  const flags = [
    "--method",
    "sgld",
    "--sample-lr",
    "1e5",
    "--burn-in",
    "0",
    "--thin",
    "1",
    "--members",
    "60",
    "--chains",
    "1",
  ];
  const base = ["finetune", "--model", model, "--train", train, "--out", at("wild"), "--epochs", "1", "--batch", "8"];
  const { code, stderr } = await run([...base, ...flags, "--temperature-sweep", "0.5,1"]);
  expect(code).toBe(2);
  expect(stderr).toMatch(
    /^warning: --sample-lr 100000: where the likelihood is most curved .* Take at most [\d.]+\.$/m,
  );
  const [, step, kept] = /^sampling: step (\d+) of chain 0 .* The (\d+) draws before it are kept/m.exec(stderr) ?? [];
  expect(Number(kept)).toBe(Number(step) - 1);
  expect(Number(kept)).toBeGreaterThan(2);
  const record = json(at("wild/posterior/posterior.json"));
  expect([record.members.length, record.settings.divergedAt]).toEqual([Number(kept), Number(step)]);
  const { finished, temperatures } = json(at("wild/run.json"));
  expect(finished).toBe(true);
  expect(temperatures).toEqual([
    { temperature: 0.5, diverged: expect.any(Number) },
    { temperature: 1, diverged: Number(step) },
  ]);
  const again = await run(["evaluate", "--run", at("wild"), "--data", train, "--json"]);
  expect(JSON.parse(again.stdout)).toMatchObject({ ...json(at("wild/metrics.json")), members: Number(kept) });
});

describe("a sampler that diverges before its first draw", () => {
  const flags = ["--burn-in", "30", "--chains", "1", "--method", "sgld"];

  test("goes on from the trained θ with --resume and another step, which the run then remembers", async () => {
    expect((await run(finetune("early", ...flags, "--sample-lr", "1e6"))).code).toBe(2);
    expect(json(at("early/run.json")).finished).toBe(false);
    const trained = await run([...finetune("early", ...flags, "--sample-lr", "1e-2"), "--lr", "2e-3", "--resume"]);
    expect([trained.code, trained.stderr]).toEqual([
      2,
      expect.stringContaining('--resume: the flags are not those of the run (--lr was "0.001" and is "0.002"). Give'),
    ]);
    // Other draws of what is trained; more of them, too.
    const other = [...flags, "--sample-lr", "1e-2", "--members", "3", "--temperature-sweep", "2"];
    const { code, stderr } = await run([...finetune("early", ...other), "--resume"]);
    expect(code, stderr).toBe(0);
    expect(stderr).toContain("continuing after step 4 of 4");
    expect(stderr).toMatch(
      /^note: other flags for what follows training: --members was "5" and is "3"; --sample-lr was/m,
    );
    expect(json(at("early/run.json"))).toMatchObject({
      finished: true,
      options: { members: 3, sampler: { lr: 0.01 } },
    });
    expect((await run(finetune("late", ...other))).code).toBe(0);
    for (const file of ["model.safetensors", "posterior/member-002.safetensors", "posterior/posterior.json"])
      expect(readFileSync(at(`early/${file}`)), file).toEqual(readFileSync(at(`late/${file}`)));
    // A finished run keeps its flags.
    const again = await run([...finetune("early", ...other, "--thin", "9"), "--resume"]);
    expect([again.code, again.stderr]).toEqual([2, expect.stringContaining('(--thin was "3" and is "9")')]);
    expect(json(at("early/run.json")).finished).toBe(true);
  });

  test("interrupted on the way there, the run has the new flags already", async () => {
    expect((await run(finetune("twice", ...flags, "--sample-lr", "1e6"))).code).toBe(2);
    const { code } = await run([...finetune("twice", ...flags, "--sample-lr", "1e7"), "--resume"]);
    expect([code, json(at("twice/run.json")).options.sampler.lr]).toEqual([2, 1e7]);
  });
});
