/**
 * @file `--profile`: the table and its JSON from made-up times; which steps are counted; and the flag itself on the
 * default model of the repository.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { Output } from "../../src/cli/output.ts";
import { type KernelRow, profileJson, profileText, StepProfile } from "../../src/cli/profile.ts";
import { type AdapterReport, Gpu, hasTimestamps, type ProfileReport } from "../../src/gpu/index.ts";
import { openGpu, readShaders } from "../../src/gpu/node.ts";
import type { StepReport } from "../../src/train/index.ts";
import { temporaryFolder } from "../data/shared.ts";
import { run } from "./harness.ts";

const folder = temporaryFolder();
const MODEL = fileURLToPath(new URL("../../examples/default/model", import.meta.url));

const ADAPTER: AdapterReport = {
  name: "probe",
  kind: "hardware",
  driver: "",
  features: [],
  limits: {},
  subgroupSize: 0,
};
const REPORT: ProfileReport = {
  milliseconds: 40,
  kernelMilliseconds: 30,
  kernels: [
    { op: "matmul.NT", calls: 8, milliseconds: 24, best: { gflops: 0, gbps: 0 }, flops: 1.2e9, bytes: 5e6 },
    { op: "gelu", calls: 4, milliseconds: 6, best: { gflops: 0, gbps: 0 }, flops: 0, bytes: 3e6 },
    { op: "fill", calls: 1, milliseconds: 0, best: { gflops: 0, gbps: 0 }, flops: 0, bytes: 16 },
  ],
};
const FACTS = { adapter: ADAPTER, steps: 2, skipped: 2, ceilings: { gflops: 100, gbps: 5 } };

describe("the table", () => {
  test("has rates, their share of the ceiling and of the time, and what no kernel took", () => {
    const lines = profileText(profileJson(REPORT, FACTS)).split("\n");
    expect(lines.slice(0, 7)).toEqual([
      "profile: 2 steps counted, 20 ms each (the first 2 are left out: they compile), on probe (GPU)",
      "kernel               calls  total ms  µs/call  GFLOP/s  GB/s  of ceiling  of time",
      "matmul.NT                8     24.00   3000.0       50             50.0%    60.0%",
      "gelu                     4      6.00   1500.0            0.5       10.0%    15.0%",
      "fill                     1      0.00      0.0              0        0.0%     0.0%",
      "outside the kernels            10.00                                        25.0%",
      "all                     13     40.00                                       100.0%",
    ]);
    expect(lines[7]).toContain("100 GFLOP/s of multiply-adds, 5 GB/s of a copy");
  });

  test("is the JSON's, to the digit", () => {
    const { outsideMilliseconds, kernels } = profileJson(REPORT, FACTS);
    expect(outsideMilliseconds).toBe(10);
    expect(kernels[0]).toEqual({
      kernel: "matmul.NT",
      calls: 8,
      milliseconds: 24,
      microsecondsPerCall: 3000,
      gflops: 50,
      ceilingShare: 0.5,
      share: 0.6,
    } satisfies KernelRow);
    expect(Object.keys(kernels[1] ?? {})).toEqual(
      "kernel calls milliseconds microsecondsPerCall gbps ceilingShare share".split(" "),
    );
  });

  test("says so where no step was counted", () => {
    const none = profileJson({ milliseconds: 0, kernelMilliseconds: 0, kernels: [] }, { ...FACTS, steps: 0 });
    expect(profileText(none)).toBe(
      "profile: no step was counted; the first 2 compile and are left out, so train for more.",
    );
  });
});

describe("--profile", () => {
  const rows = Array.from({ length: 40 }, (_, i) => `the ${i % 2 ? "good" : "bad"} film\t${i % 2}`);
  const train = join(folder, "train.tsv");
  writeFileSync(train, `sentence\tlabel\n${rows.join("\n")}\n`);
  const finetune = (out: string, ...more: string[]) =>
    run(["finetune", "--model", MODEL, "--train", train, "--batch", "8", "--epochs", "2", "--out", join(folder, out), ...more]); // biome-ignore format: one command

  test("counts all steps but two, leaves the weights as they are without it, and may come with --resume", async (context) => {
    const gpu = await openGpu();
    const timed = hasTimestamps(gpu);
    gpu.destroy();
    if (!timed) {
      console.warn("SKIPPED: this adapter has no timestamps, so --profile is not tested on it");
      context.skip();
    }
    const plain = await finetune("plain");
    const { code, stdout, stderr } = await finetune("profiled", "--profile", "--json");
    expect([plain.code, code], stderr).toEqual([0, 0]);
    const weights = (name: string) => readFileSync(join(folder, name, "model.safetensors")).toString("base64");
    expect(weights("profiled")).toBe(weights("plain"));
    expect(existsSync(join(folder, "plain/profile.json"))).toBe(false);
    const { profile } = JSON.parse(stdout);
    expect(JSON.parse(readFileSync(join(folder, "profiled/profile.json"), "utf8"))).toEqual(profile);
    // 5 steps an epoch.
    expect(profile).toMatchObject({ steps: 8, skipped: 2 });
    const calls = (op: string) => profile.kernels.find(({ kernel }: KernelRow) => kernel === op)?.calls;
    expect(calls("crossEntropy.forward")).toBe(8);
    expect(calls("attention.forward")).toBe(8 * JSON.parse(readFileSync(join(MODEL, "config.json"), "utf8")).num_hidden_layers); // biome-ignore format: one line
    expect(profile.outsideMilliseconds).toBeLessThan(profile.milliseconds);
    expect(stderr).toMatch(/^profile: 8 steps counted, /m);
    expect(stderr).toMatch(/^matmul\.NT +\d+ +[\d.]+ /m);
    expect(stderr).toMatch(/^outside the kernels /m);

    const resumed = await finetune("plain", "--resume", "--profile");
    expect(resumed.code, resumed.stderr).toBe(0);
    expect(resumed.stderr).toMatch(/^profile: no step was counted/m);
    const again = await finetune("profiled", "--overwrite");
    expect(again.code, again.stderr).toBe(0);
    expect(existsSync(join(folder, "profiled/profile.json"))).toBe(false);
  });

  test("is a warning where the adapter has no timestamps", async () => {
    const base = await openGpu();
    const gpu = new Gpu(base.instance, base.device, { ...base.adapter, features: [] }, readShaders());
    let stderr = "";
    const io = { stdout: { write: () => {} }, stderr: { write: (text: string) => (stderr += text) } };
    const out = new Output({ ...io, env: {}, signal: new AbortController().signal, now: () => 0 }, false);
    expect(await StepProfile.begin(gpu, out)).toBeUndefined();
    expect(stderr).toMatch(
      /^warning: --profile: .* has no timestamps \(feature timestamp-query\), so no profile is made/,
    );
    base.destroy();
  });

  test("is in the help of what trains", async () => {
    for (const command of ["finetune", "pretrain"]) {
      expect((await run([command, "--help"])).stdout).toContain("--profile");
    }
    expect((await run(["predict", "--profile"])).stderr).toContain("--profile: unknown flag");
  });
});

test("DEBUG=2 and 4 show on stderr what the device is told, and leave the answer alone", async () => {
  const embed = (DEBUG: string) => run(["embed", "--model", MODEL, "--text", "the film", "--json"], { env: { DEBUG } });
  const [quiet, dispatches, shaders] = [await embed("1"), await embed("2"), await embed("4")];
  expect(quiet.stderr).not.toMatch(/^dispatch /m);
  expect(dispatches.stderr).toMatch(/^dispatch matmul\.NT {2}\S+ {2}\d+×\d+×1 {2}[\d,]+ bytes$/m);
  expect(dispatches.stderr).not.toMatch(/^compile |^ {2}\[/m);
  expect(shaders.stderr).toMatch(/^compile \S+ for matmul\.NT\n {4}1 \| \/\/ /m);
  expect(shaders.stderr).toMatch(/^ {2}\[.* {2}params \d+ /m);
  for (const { stdout } of [dispatches, shaders]) expect(stdout).toBe(quiet.stdout);
});

test("counting begins and ends where nothing is on its way, a hundred steps on at most", async (context) => {
  const gpu = await openGpu();
  try {
    if (!hasTimestamps(gpu)) context.skip();
    const io = { stdout: { write: () => {} }, stderr: { write: () => {} } };
    const out = new Output({ ...io, env: {}, signal: new AbortController().signal, now: () => 0 }, true);
    const profile = (await StepProfile.begin(gpu, out)) as StepProfile;
    const timed: number[] = [];
    // A trainer of nothing: a step is on its way unless it is settled, as in src/train/fit.ts.
    const trainer = {
      step: 10,
      steps: 200,
      async *run() {
        let landed = 10;
        while (trainer.step < 200) {
          trainer.step++;
          if (gpu.timer !== undefined) timed.push(trainer.step);
          const settled = trainer.step % 40 === 0 || profile.settles(trainer.step);
          while (landed < (settled ? trainer.step : trainer.step - 1)) yield { step: ++landed } as StepReport;
        }
      },
    };
    let between = 0;
    for await (const { step } of profile.over(trainer)) {
      // An evaluation at a settled step is not counted.
      if (step === trainer.step && gpu.timer !== undefined) between++;
    }
    expect(between).toBe(0);
    expect(timed).toEqual(Array.from({ length: 100 }, (_, i) => 13 + i));
    expect(gpu.timer).toBeUndefined();
    expect((await profile.finish(folder)).steps).toBe(100);
  } finally {
    gpu.destroy();
  }
});
