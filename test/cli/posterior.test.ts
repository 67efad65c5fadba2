/** @file Runs that keep many θ: what their folder holds, that predict and evaluate use them, and what is refused. */
import { createHash } from "node:crypto";
import { cpSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { parseSafetensors, writeSafetensors } from "../../src/model/safetensors.ts";
import type { TraceRow } from "../../src/posterior/index.ts";
import { temporaryFolder } from "../data/shared.ts";
import { run, writeModel, writeRows } from "./harness.ts";
import { textsIn } from "./svg.ts";

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
const json = (path: string) => JSON.parse(readFileSync(path, "utf8"));
const [model, train, dev] = [at("model"), at("train.tsv"), at("dev.tsv")];
const finetune = (out: string, ...more: string[]) => [
  ...["finetune", "--model", model, "--train", train, "--dev", dev, "--out", at(out), "--epochs", "1", "--batch", "8"],
  ...["--seed", "3", "--lr", "1e-3", "--members", "5", "--burn-in", "10", "--thin", "3", "--json"],
  ...more,
];
const evaluate = (out: string, ...more: string[]) =>
  run(["evaluate", "--run", at(out), "--data", dev, "--json", ...more]);

/** Puts tensors in place of a member's, and the file's SHA-256 into the manifest. */
function rewritten(out: string, s: number, tensors: { name: string; shape: number[]; data: Float32Array }[]): void {
  const file = `member-00${s}.safetensors`;
  const bytes = writeSafetensors(tensors.map((tensor) => ({ ...tensor, dtype: "F32" })));
  writeFileSync(at(`${out}/posterior/${file}`), bytes);
  const manifest = json(at(`${out}/posterior/posterior.json`));
  manifest.members[s].sha256 = createHash("sha256").update(bytes).digest("hex");
  writeFileSync(at(`${out}/posterior/posterior.json`), JSON.stringify(manifest));
}

beforeAll(async () => {
  writeModel(model);
  writeRows(train, 28, 1);
  writeRows(dev, 20, 2);
  expect((await run(finetune("sgld", "--method", "sgld"))).code).toBe(0);
});

describe("a run of a sampler", () => {
  test("keeps its draws under the checkpoint's names, its trace, and what they were drawn with", () => {
    expect(readdirSync(at("sgld/posterior")).sort()).toEqual([
      ...[0, 1, 2, 3, 4].map((s) => `member-00${s}.safetensors`),
      "posterior.json",
      "trace.csv",
      "trace.json",
    ]);
    const record = json(at("sgld/posterior/posterior.json"));
    expect(record).toMatchObject({ method: "sgld", covers: ["classifier.weight", "classifier.bias"] });
    expect(record.settings).toMatchObject({ temperature: 1, chains: 2, thin: 3, burnIn: 10, batch: 28 });
    // The head's steps see all of the data, so that their NLL is the posterior's own.
    expect(Object.keys(record.settings.diagnostics)).toEqual(["nll", "logPrior", "logJoint"]);
    expect(record.settings.diagnostics.logPrior.rhat).toBeGreaterThan(0.9);
    const [a, b] = [0, 1].map((s) =>
      parseSafetensors(readFileSync(at(`sgld/posterior/member-00${s}.safetensors`)), "m"),
    );
    expect(a!.tensors.get("classifier.weight")?.shape).toEqual([2, 16]);
    expect(a!.tensors.get("classifier.weight")?.bytes).not.toEqual(b!.tensors.get("classifier.weight")?.bytes);
    const trace = readFileSync(at("sgld/posterior/trace.csv"), "utf8").trimEnd().split("\n");
    expect(trace[0]).toBe("chain,draw,variable,value");
    expect(trace.filter((line) => line.includes(",logPrior,"))).toHaveLength(5);
    const rows = json(at("sgld/posterior/trace.json"));
    expect(rows.map((row: TraceRow) => `${row.chain},${row.draw},${row.variable},${row.value}`)).toEqual(
      trace.slice(1),
    );
    // Four sentences of the training table, two classes.
    expect(trace.filter((line) => /,logit\.[0-3]\.[01],/.test(line))).toHaveLength(5 * 4 * 2);
    // Two chains share five draws: 3 + 2.
    expect(trace.filter((line) => line.startsWith("1,") && line.includes(",nll,"))).toHaveLength(2);
  });

  test("predicts with every draw, in evaluate and predict as at its end; --members takes fewer", async () => {
    const metrics = json(at("sgld/metrics.json"));
    expect(metrics.members).toBe(5);
    expect(JSON.parse((await evaluate("sgld")).stdout)).toMatchObject(metrics);
    expect(JSON.parse((await evaluate("sgld", "--members", "2")).stdout).members).toBe(2);
    const { stdout } = await run(["predict", "--run", at("sgld"), "--text", "the film is good", "--json"]);
    const [answer] = JSON.parse(stdout);
    expect(answer.members).toBe(5);
    expect(answer.epistemic).toBeGreaterThan(0);
  });

  test("has its trace drawn by evaluate --charts; one that is not a trace is refused", async () => {
    expect((await evaluate("sgld", "--charts", at("charts"))).code).toBe(0);
    const svg = readFileSync(at("charts/trace.svg"), "utf8");
    expect(textsIn(svg)).toEqual(expect.arrayContaining(["Trace", "distance.head", "logit.3.1", "draw of its chain"]));
    expect(textsIn(svg)).toContain("2 chains, 5 draws; ESS and R-hat of these draws");
    expect(svg).not.toMatch(/NaN|Infinity|undefined/);
    const again = await evaluate("sgld", "--charts", at("charts"));
    expect([again.code, again.stderr]).toEqual([2, expect.stringContaining(" exists. Add --overwrite")]);
    cpSync(at("sgld"), at("odd"), { recursive: true });
    const row = (fields: object) => ({ chain: 0, draw: 0, variable: "nll", value: 1, ...fields });
    const broken: [unknown, string][] = [
      [{}, "not a trace (expected an array of"],
      [[], "not a trace (expected an array of"],
      [[row({}), 3], "row 2: not an object"],
      [[row({ chain: -1 })], "row 1: chain is -1 (expected 0)"],
      [[row({}), row({ chain: 2 })], "row 2: chain is 2 (expected a whole number from 0 to 1)"],
      [Array.from({ length: 65 }, (_, chain) => row({ chain })), "row 65: chain is 64 (expected a whole number from 0 to 63)"],
      ...[undefined, null, -1, 0.5, 1, "0"].map((draw): [unknown, string] => [
        [row({ draw })],
        `row 1: draw is ${JSON.stringify(draw)} (expected 0, the next of "nll" in chain 0). Restore it, or train again.`,
      ]),
      [[row({}), row({ variable: "d" }), row({})], 'row 3: draw is 0 (expected 1, the next of "nll" in chain 0)'],
      [[row({ variable: 1 })], "row 1: variable is 1 (expected a name)"],
      [[row({ variable: "" })], 'row 1: variable is "" (expected a name)'],
      [[row({ value: null })], "row 1: value is null (expected a finite number)"],
      [[row({ value: "1" })], 'row 1: value is "1" (expected a finite number)'],
    ]; // biome-ignore format: a row each
    for (const [rows, sentence] of broken) {
      writeFileSync(at("odd/posterior/trace.json"), JSON.stringify(rows));
      const odd = await evaluate("odd", "--charts", at("charts-odd"));
      expect([odd.code, odd.stderr]).toEqual([2, expect.stringContaining(`trace.json: ${sentence}`)]);
      expect(odd.stderr.split("\n")).toHaveLength(2);
    }
    for (const [text, sentence] of [
      ["[", "not a trace"],
      ['[{"chain":0,"draw":0,"draw":0,"variable":"nll","value":1}]', 'the key "draw" stands twice in one row (line 1)'],
      ['[{"chain":0,"draw":0,"variable":"nll","value":1e999}]', "row 1: value is null (expected a finite number)"],
    ] as const) {
      writeFileSync(at("odd/posterior/trace.json"), text);
      const odd = await evaluate("odd", "--charts", at("charts-odd"));
      expect([odd.code, odd.stderr]).toEqual([2, expect.stringContaining(`trace.json: ${sentence}`)]);
    }
    expect(existsSync(at("charts-odd"))).toBe(false);
  });

  test("shares its draws out among all of its chains", async () => {
    expect((await run(finetune("four", "--method", "sgld", "--chains", "4"))).code).toBe(0);
    const { members } = json(at("four/posterior/posterior.json"));
    expect(members.map(({ chain }: { chain: number }) => chain)).toEqual([0, 0, 1, 2, 3]);
  });

  test("is the same for the same command; the mode is that of MAP", async () => {
    expect((await run(finetune("again", "--method", "sgld"))).code).toBe(0);
    for (const name of readdirSync(at("sgld/posterior"))) {
      expect(readFileSync(at(`again/posterior/${name}`)), name).toEqual(readFileSync(at(`sgld/posterior/${name}`)));
    }
    const map = ["finetune", "--model", model, "--train", train, "--dev", dev, "--out", at("map"), "--epochs", "1"];
    expect((await run([...map, "--batch", "8", "--seed", "3", "--lr", "1e-3"])).code).toBe(0);
    expect(readFileSync(at("map/model.safetensors"))).toEqual(readFileSync(at("sgld/model.safetensors")));
  });

  test("by SGHMC, of the groups that are named", async () => {
    const { code, stderr } = await run(
      finetune("sghmc", "--method", "sghmc", "--sample", "head,pooler", "--chains", "1", "--temperature", "1000"),
    );
    expect(code).toBe(0);
    // So hot that the pooler, whose weights are of the order of .2, is another after a few steps.
    expect(stderr).toContain("warning: --sample: draws of head, pooler do not keep the features");
    // One chain: an effective size, and no R-hat; batches of 8 of 28 say nothing of the data's likelihood.
    const { diagnostics } = json(at("sghmc/posterior/posterior.json")).settings;
    const logits = [0, 1, 2, 3].flatMap((s) => [0, 1].map((k) => `logit.${s}.${k}`));
    expect(Object.keys(diagnostics)).toEqual(["logPrior", "distance.pooler", "distance.head", ...logits]);
    expect(diagnostics["logit.3.1"].ess).toBeGreaterThan(0);
    expect(diagnostics.logPrior.ess).toBeGreaterThan(0);
    expect(diagnostics.logPrior).not.toHaveProperty("rhat");
    expect(json(at("sghmc/posterior/posterior.json")).covers).toContain("bert.pooler.dense.weight");
    expect(JSON.parse((await evaluate("sghmc")).stdout)).toMatchObject(json(at("sghmc/metrics.json")));
  });

  test("by cyclical SGHMC, velocities drawn anew: draws of the last part of each cycle", async () => {
    const flags = ["--method", "sghmc", "--cycles", "2", "--exploration", "0.5", "--resample", "3"];
    const command = finetune("cycles", ...flags).filter((word, i, all) => !/--burn-in/.test(`${word} ${all[i - 1]}`));
    expect((await run(command)).code).toBe(0);
    const { settings, members } = json(at("cycles/posterior/posterior.json"));
    // Five draws of two chains are three and two, at most two of a cycle: 2 · 3 steps that sample, after as many that explore.
    expect(settings).toMatchObject({ cycles: 2, exploration: 0.5, cycle: 12, resample: 3, burnIn: 0, thin: 3 });
    expect(members).toHaveLength(5);
    expect(json(at("cycles/run.json")).options.sampler).toMatchObject({ cycles: 2, exploration: 0.5, resample: 3 });
    const other = await run([...command.map((word) => (word === "0.5" ? "0.6" : word)), "--resume"]);
    expect([other.code, other.stderr]).toEqual([2, expect.stringContaining('(--exploration was "0.5" and is "0.6")')]);
    expect((await run([...command, "--resume"])).code).toBe(0);
    expect(JSON.parse((await evaluate("cycles")).stdout)).toMatchObject(json(at("cycles/metrics.json")));
  });

  test("by SWAG: draws of all that was trained, from two modes; the run's own θ is MAP's", async () => {
    const flags = ["--method", "swag", "--points", "3", "--rank", "2", "--modes", "2"];
    const command = finetune("swag", ...flags).filter(
      (word, i, all) => !/--(burn-in|thin)/.test(`${word} ${all[i - 1]}`),
    );
    expect((await run(command)).code).toBe(0);
    const record = json(at("swag/posterior/posterior.json"));
    expect(record.covers.length).toBeGreaterThan(30);
    // 28 rows in batches of 8: a point an epoch of 4 steps. Five draws are 3 + 2.
    expect(record.settings).toMatchObject({ points: 3, every: 4, modes: 2, draws: 5 });
    expect(record.members).toHaveLength(5);
    expect(readFileSync(at("map/model.safetensors"))).toEqual(readFileSync(at("swag/model.safetensors")));
    expect(JSON.parse((await evaluate("swag")).stdout)).toMatchObject(json(at("swag/metrics.json")));
  });

  test("by SWAG at several temperatures: one path, an epoch of accumulated steps a point", async () => {
    const more = ["--method", "swag", "--points", "2", "--rank", "1", "--accumulate", "2"];
    const command = (out: string, ...flags: string[]) =>
      finetune(out, ...more, ...flags).filter((word, i, all) => !/--(burn-in|thin)/.test(`${word} ${all[i - 1]}`));
    const { code, stdout, stderr } = await run(command("swags", "--temperature-sweep", "0.1,100"));
    expect(code).toBe(0);
    expect(stderr.match(/^SWAG 2\/2/gm)).toHaveLength(1);
    const { temperatures, metrics } = JSON.parse(stdout);
    expect(new Set([...temperatures, metrics].map(({ nll }) => nll)).size).toBe(3);
    // 28 rows in batches of 8, two to a step.
    expect(json(at("swags/posterior/posterior.json")).settings).toMatchObject({ every: 2, temperature: 1 });
    // What was kept for the sweep draws what a path of its own would.
    expect((await run(command("swagged"))).code).toBe(0);
    expect(json(at("swags/posterior/posterior.json"))).toEqual(json(at("swagged/posterior/posterior.json")));
  });

  test("by SWAG, whose path leaves the finite numbers: says whose step that is and what is kept", async () => {
    const wild = ["--epochs", "0", "--points", "40", "--optimizer", "sgd", "--lr", "1e9", "--head-lr", "1e9"];
    const { code, stderr } = await run(
      finetune("wild-swag", "--method", "swag", ...wild).filter(
        (word, i, all) => !/--(burn-in|thin)/.test(`${word} ${all[i - 1]}`),
      ),
    );
    expect(code).toBe(2);
    expect(stderr.trimEnd().split("\n").at(-1)).toMatch(
      /^SWAG: step \d+: .*\)\. The step is counted from the start of SWAG\. The run's mode is unchanged\. Start anew with a lower --lr and --head-lr, or with --clip 1\.$/,
    );
  });

  test("by Laplace: draws of the last layer around the mode", async () => {
    const base = [
      "finetune",
      "--model",
      model,
      "--train",
      train,
      "--dev",
      dev,
      "--out",
      at("laplace"),
      "--epochs",
      "1",
    ];
    const flags = [
      "--batch",
      "8",
      "--seed",
      "3",
      "--lr",
      "1e-3",
      "--method",
      "laplace",
      "--predictive",
      "mc",
      "--members",
      "7",
    ];
    const sweep = ["--likelihood-temperature", "2", "--temperature-sweep", "0.1,100", "--json"];
    const { code, stdout, stderr } = await run([...base, ...flags, ...sweep]);
    expect(code).toBe(0);
    // One pass for all temperatures.
    expect(stderr.match(/^curvature 1\/1/gm)).toHaveLength(1);
    const { temperatures, metrics } = JSON.parse(stdout);
    expect(temperatures.map((row: { temperature: number }) => row.temperature)).toEqual([0.1, 100]);
    expect(new Set([...temperatures, metrics].map(({ nll }) => nll)).size).toBe(3);
    // The colder the posterior, the nearer its members to the mode, which is the MAP run's.
    const [cold, hot] = temperatures.map(({ nll }: { nll: number }) =>
      Math.abs(nll - json(at("map/metrics.json")).nll),
    );
    expect(10 * cold).toBeLessThan(hot);
    expect(json(at("laplace/run.json")).temperatures).toEqual(temperatures);
    // How strong the prior was: of the head's 2·16 + 2 numbers, at the run's own temperature.
    const { priorStrength } = JSON.parse(stdout);
    expect(priorStrength).toEqual([
      {
        group: "head",
        precision: 1,
        effectivePrecision: expect.any(Number),
        size: 34,
        determined: expect.any(Number),
        distance: expect.any(Number),
        kl: expect.any(Number),
      },
    ]);
    expect(priorStrength[0].kl).toBeGreaterThan(0);
    expect(priorStrength[0].determined).toBeGreaterThan(0);
    expect(priorStrength[0].determined).toBeLessThan(34);
    expect(json(at("laplace/run.json")).priorStrength).toEqual(priorStrength);
    const record = json(at("laplace/posterior/posterior.json"));
    expect(record).toMatchObject({ method: "laplace", covers: ["classifier.weight", "classifier.bias"] });
    expect(record.settings).toMatchObject({ structure: "full", temperature: 1, likelihoodTemperature: 2, n: 28, precisions: [1] }); // biome-ignore format: one record
    expect(record.members).toHaveLength(7);
    expect(readFileSync(at("map/model.safetensors"))).toEqual(readFileSync(at("laplace/model.safetensors")));
    expect(JSON.parse((await evaluate("laplace")).stdout)).toMatchObject(json(at("laplace/metrics.json")));
  });

  test("interrupted while it samples, is not finished; --resume samples anew and ends as if nothing had been", async () => {
    const command = finetune("cut", "--method", "sgld");
    const interrupted = async (...more: string[]) => {
      let seen = false;
      const cut = await run([...command, ...more], {
        onStderr: (text, interrupt) => {
          if (!text.includes("sampling") || seen) return;
          seen = true;
          interrupt();
        },
      });
      expect([seen, cut.code]).toEqual([true, 130]);
      return cut;
    };
    const cut = await interrupted();
    expect(cut.stderr).toContain("--resume to sample anew");
    expect(json(at("cut/run.json")).finished).toBe(false);
    expect((await run([...command, "--resume"])).code).toBe(0);
    for (const name of readdirSync(at("sgld/posterior"))) {
      expect(readFileSync(at(`cut/posterior/${name}`)), name).toEqual(readFileSync(at(`sgld/posterior/${name}`)));
    }
    // A finished run that is drawn anew is not finished meanwhile, although it has weights.
    await interrupted("--resume");
    const unfinished = await evaluate("cut");
    expect([unfinished.code, unfinished.stderr]).toEqual([2, expect.stringContaining("this run is not finished")]);
  });
});

describe("refused with a sentence", () => {
  const cases: [string, string[], string][] = [
    ["S = 0", ["--method", "sgld", "--members", "0"], "--members 0"],
    ["a sampler's flag without a sampler", ["--thin", "2"], "--thin 2: --method map does not use it"],
    ["friction for SGLD", ["--method", "sgld", "--friction", ".1"], "--friction .1: --method sgld does not use it"],
    ["a group that is not there", ["--method", "sgld", "--sample", "haed"], "Did you mean head?"],
    ["a step of 0", ["--method", "sgld", "--sample-lr", "0"], "--sample-lr 0"],
    [
      "a chain without end",
      ["--method", "sgld", "--members", "4096", "--thin", "1000000"],
      "--thin 1000000: a chain of 2048003000 steps (expected at most 10000000). Take a smaller one, a smaller --burn-in, or",
    ],
    [
      "a cycle that does little but explore",
      ["--method", "sgld", "--members", "4", "--cycles", "2", "--exploration", "0.99999999"],
      "--exploration 0.99999999: a chain of 59999999698 steps (expected at most 10000000). Take a smaller one, or fewer",
    ],
    [
      "a path without end",
      ["--method", "swag", "--points", "1000000", "--every", "1000000"],
      "SWAG: 1000000 points, 1000000 steps apart, are 1000001000000 steps (at most 10000000). Take fewer",
    ],
    ["a flat prior", ["--method", "sgld", "--prior-precision", "head=0"], "has a flat prior"],
    [
      "Laplace on a flat head",
      ["--method", "laplace", "--prior-precision", "head=0"],
      "laplace: head has a flat prior",
    ],
    ["Laplace under another density", ["--method", "laplace", "--prior", "laplace"], "the prior of head is laplace"],
  ];
  test.each(cases)("%s", async (_, flags, sentence) => {
    const base = [
      "finetune",
      "--model",
      model,
      "--train",
      train,
      "--out",
      at("never"),
      "--epochs",
      "1",
      "--batch",
      "8",
    ];
    const { code, stderr } = await run([...base, ...flags]);
    expect(stderr).toContain(sentence);
    expect(code).toBe(2);
    expect(existsSync(at("never"))).toBe(false);
  });

  test("members that are gone, where a single θ would answer for them", async () => {
    cpSync(at("sgld"), at("gone"), { recursive: true });
    rmSync(at("gone/posterior/posterior.json"));
    const { code, stderr } = await evaluate("gone");
    expect([code, stderr]).toEqual([2, expect.stringContaining("a run of --method sgld without its members")]);
  });

  test("more members than the run holds", async () => {
    const { code, stderr } = await evaluate("sgld", "--members", "6");
    expect([code, stderr.split("\n").find((line) => line.includes("--members 6"))]).toEqual([
      2,
      expect.stringContaining("more than the run holds (5 in"),
    ]);
  });

  test("weights that are not those that draws of the head belong to; a manifest without a SHA-256", async () => {
    cpSync(at("sgld"), at("moved"), { recursive: true });
    const path = at("moved/model.safetensors");
    const weights = readFileSync(path);
    weights[weights.length - 2]! ^= 1;
    writeFileSync(path, weights);
    const says = async (sentence: string) => {
      const { code, stderr } = await evaluate("moved");
      expect([code, stderr]).toEqual([2, expect.stringContaining(sentence)]);
    };
    await says(
      "model.safetensors: not the θ that the run's members belong to (its SHA-256 differs from posterior.json's",
    );
    const manifest = json(at("moved/posterior/posterior.json"));
    writeFileSync(at("moved/posterior/posterior.json"), JSON.stringify({ ...manifest, weights: "0".repeat(63) }));
    await says("not what priorwork writes");
  });

  test("a member whose finite weights overflow: no answer is printed, in predict as in evaluate", async () => {
    cpSync(at("sgld"), at("huge"), { recursive: true });
    rewritten("huge", 1, [
      { name: "classifier.weight", shape: [2, 16], data: Float32Array.from({ length: 32 }, (_, i) => (i % 2 ? -1 : 1) * 3e38) },
      { name: "classifier.bias", shape: [2], data: Float32Array.of(3e38, -3e38) },
    ]); // biome-ignore format: two tensors
    for (const argv of [
      ["predict", "--run", at("huge"), "--text", "the film is good", "--json"],
      ["predict", "--run", at("huge"), "--text", "the film is good"],
      ["evaluate", "--run", at("huge"), "--data", dev, "--json"],
    ]) {
      const { code, stdout, stderr } = await run(argv);
      expect([code, stdout]).toEqual([2, ""]);
      expect(stderr).toContain("huge: its answer to text 1 is not a number (its weights are too large for f32)");
    }
  });

  test("a member that is not the one written; one of another shape; a manifest that leads elsewhere", async () => {
    cpSync(at("sgld"), at("bad"), { recursive: true });
    const path = at("bad/posterior/member-002.safetensors");
    writeFileSync(path, writeSafetensors([{ name: "classifier.weight", dtype: "F32", shape: [2, 8], data: new Float32Array(16) }])); // biome-ignore format: one tensor
    const first = await evaluate("bad");
    expect([first.code, first.stderr]).toEqual([2, expect.stringContaining("not the member that the run wrote")]);
    const manifest = json(at("bad/posterior/posterior.json"));
    manifest.members[2].sha256 = createHash("sha256").update(readFileSync(path)).digest("hex");
    writeFileSync(at("bad/posterior/posterior.json"), JSON.stringify(manifest));
    const second = await evaluate("bad");
    expect([second.code, second.stderr]).toEqual([2, expect.stringContaining("classifier.weight has shape [2,8] (expected [2,16])")]); // biome-ignore format: one comparison
    manifest.members[2].file = "../model.safetensors";
    writeFileSync(at("bad/posterior/posterior.json"), JSON.stringify(manifest));
    const third = await evaluate("bad");
    expect([third.code, third.stderr]).toEqual([2, expect.stringContaining("not what priorwork writes")]);
    manifest.members[2].file = ["member-002.safetensors"];
    writeFileSync(at("bad/posterior/posterior.json"), JSON.stringify(manifest));
    const fourth = await evaluate("bad");
    expect([fourth.code, fourth.stderr]).toEqual([2, expect.stringContaining("not what priorwork writes")]);
  });

  test.each<[string, Record<string, unknown>, string]>([
    ["covers nothing", { covers: [] }, "posterior.json: not what priorwork writes"],
    [
      "covers less than its members hold",
      { covers: ["classifier.bias"] },
      "member-000.safetensors: holds tensor classifier.weight, which posterior.json's covers does not name. Restore both, or train again.",
    ],
    [
      "is of another method",
      { method: "swag" },
      'posterior/posterior.json: of method "swag" (run.json says sgld). Restore the folder, or train again with --overwrite.',
    ],
  ])("a manifest that %s", async (what, changes, sentence) => {
    cpSync(at("sgld"), at(what), { recursive: true });
    const path = at(`${what}/posterior/posterior.json`);
    writeFileSync(path, JSON.stringify({ ...json(path), ...changes }));
    const { code, stdout, stderr } = await evaluate(what);
    expect([code, stdout]).toEqual([2, ""]);
    expect(stderr).toContain(sentence);
  });

  test("a posterior where the run's method keeps none, be it members or a Gaussian", async () => {
    const says = async (out: string, sentence: string) => {
      const { code, stdout, stderr } = await evaluate(out);
      expect([code, stdout, stderr]).toEqual([2, "", expect.stringContaining(sentence)]);
    };
    expect((await run(finetune("bare").filter((word, i, all) => !/--(burn-in|thin|members)/.test(`${word} ${all[i - 1]}`)))).code).toBe(0); // biome-ignore format: one command
    cpSync(at("sgld/posterior"), at("bare/posterior"), { recursive: true });
    await says("bare", 'bare/posterior/posterior.json: of method "sgld" (run.json says map)');
    rmSync(at("bare/posterior"), { recursive: true });
    const laplace = finetune("gaussian", "--method", "laplace").filter((word, i, all) => !/--(burn-in|thin)/.test(`${word} ${all[i - 1]}`)); // biome-ignore format: one command
    expect((await run(laplace)).code).toBe(0);
    cpSync(at("gaussian/posterior"), at("bare/posterior"), { recursive: true });
    await says("bare", 'bare/posterior/gaussian.json: of method "laplace" (run.json says map)');
  });
});
