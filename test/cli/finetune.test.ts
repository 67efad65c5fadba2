/**
 * @file `finetune` from end to end on a tiny random BERT: what a run folder holds, that the same command gives the same
 * bytes, that an interrupted and resumed run equals an uninterrupted one bit for bit, and what is refused.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { parseSafetensors } from "../../src/model/safetensors.ts";
import { temporaryFolder } from "../data/shared.ts";
import { run, tinyTensors, writeModel, writeRows } from "./harness.ts";

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
const json = (path: string) => JSON.parse(readFileSync(path, "utf8"));
const [model, train, dev] = [at("model"), at("train.tsv"), at("dev.tsv")];
const command = (out: string, ...more: string[]) => [
  ...["finetune", "--model", model, "--train", train, "--dev", dev, "--out", at(out)],
  ...["--epochs", "3", "--batch", "8", "--lr", "1e-3", "--dropout", "0.1", "--seed", "3"],
  ...more,
];

beforeAll(() => {
  writeModel(model);
  writeRows(train, 28, 1);
  writeRows(dev, 20, 2);
});

/** Weights, metrics and the log without what time decides. */
function outcome(out: string) {
  const lines = readFileSync(at(`${out}/metrics.jsonl`), "utf8")
    .trimEnd()
    .split("\n");
  return {
    weights: readFileSync(at(`${out}/model.safetensors`)).toString("base64"),
    metrics: readFileSync(at(`${out}/metrics.json`), "utf8"),
    log: lines.map((line) => ({ ...JSON.parse(line), tokensPerSecond: 0 })),
    evaluations: json(at(`${out}/run.json`)).evaluations,
    // Shaders that were edited between two runs explain other bits.
    kernels: json(at(`${out}/run.json`)).kernels,
  };
}

describe("a run folder", () => {
  test("holds a Hugging Face model and everything to repeat it", async () => {
    const { code, stdout, stderr } = await run(command("first", "--json"));
    expect(stderr).toMatch(/^adapter: /m);
    expect(code).toBe(0);
    const result = JSON.parse(stdout);
    expect(Object.keys(result)).toEqual("run method steps seconds trainableParameters before metrics".split(" "));
    const keys = "task n members accuracy nll brier ece eceFloor".split(" ");
    expect(Object.keys(result.before)).toEqual(keys);
    expect(Object.keys(result.metrics)).toEqual(keys);
    // 28 rows in batches of 8 are 4 steps an epoch; 5,536 is the encoder with its pooler, 34 the head.
    const parameters = tinyTensors().reduce((sum, { data }) => sum + data.length, 0);
    expect(result).toMatchObject({ steps: 12, method: "map", trainableParameters: parameters + 2 * 16 + 2 });

    expect(readdirSync(at("first")).sort()).toEqual(
      "README.md checkpoints config.json metrics.json metrics.jsonl model.safetensors run.json vocab.txt".split(" "),
    );
    expect(json(at("first/metrics.json"))).toEqual(result.metrics);
    // What run.json calls finished is all there: it is written last.
    const written = (name: string) => statSync(at(`first/${name}`), { bigint: true }).mtimeNs;
    for (const name of readdirSync(at("first"))) {
      if (!["run.json", "checkpoints"].includes(name)) expect([name, written(name) <= written("run.json")]).toEqual([name, true]); // biome-ignore format: one thought
    }
    const log = outcome("first").log;
    expect(log.map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    expect(Object.keys(log[0])).toEqual(
      "step epoch nll logPrior logJoint priorShare distance lr gradNorm tokensPerSecond".split(" "),
    );
    const config = json(at("first/config.json"));
    expect(config).toMatchObject({
      architectures: ["BertForSequenceClassification"],
      id2label: { 0: "neg", 1: "pos" },
      label2id: { neg: 0, pos: 1 },
    });
    expect(config).not.toHaveProperty("priorwork");
    // Python's transformers refuses 0 where it wants 0.0.
    expect(readFileSync(at("first/config.json"), "utf8")).toMatch(/"hidden_dropout_prob": 0\.1,/);
    const { tensors } = parseSafetensors(readFileSync(at("first/model.safetensors")), "run");
    expect([...tensors.keys()].sort()).toEqual(
      [...tinyTensors().map(({ name }) => name), "classifier.weight", "classifier.bias"].sort(),
    );
    const record = json(at("first/run.json"));
    expect(record).toMatchObject({
      finished: true,
      seed: 3,
      data: { train: { rows: 28 }, dev: { rows: 20 } },
      objective: { N: 28, precision: "encoder=300,head=1" },
    });
    expect(record.data.train.sha256).toMatch(/^[0-9a-f]{64}$/);
    expect(record.lineage.map((stage: { stage: string }) => stage.stage)).toEqual(["pretraining", "task"]);
    expect(record.lineage[1]).toMatchObject({ prior: { mean: model, precision: "encoder=300,head=1" } });
    expect(readdirSync(at("first/checkpoints"))).toEqual(["step-00000012"]);

    const evaluated = await run(["evaluate", "--run", at("first"), "--data", dev, "--json"]);
    // `evaluate` says the same, and more beside it.
    expect(JSON.parse(evaluated.stdout)).toMatchObject(result.metrics);
  });

  test("of another readout is a BertModel with its head apart, and says how Python gets the logits", async () => {
    const { code } = await run(command("mean", "--readout", "mean", "--head", "mlp:4", "--epochs", "1"));
    expect(code).toBe(0);
    const config = json(at("mean/config.json"));
    expect(config).toMatchObject({ architectures: ["BertModel"], priorwork: { readout: "mean", head: "mlp:4" } });
    const { tensors } = parseSafetensors(readFileSync(at("mean/model.safetensors")), "run");
    expect([...tensors.keys()].filter((name) => !name.startsWith("bert."))).toEqual([
      "priorwork.head.hidden.weight",
      "priorwork.head.hidden.bias",
      "priorwork.head.output.weight",
      "priorwork.head.output.bias",
    ]);
    expect(readFileSync(at("mean/README.md"), "utf8")).toContain("x = out.last_hidden_state.mean(1)");
    const evaluated = await run(["evaluate", "--run", at("mean"), "--data", dev, "--json"]);
    expect(JSON.parse(evaluated.stdout)).toMatchObject(json(at("mean/metrics.json")));
  });

  test("a second task's lineage goes on from the first, and its head keeps the order of the same labels", async () => {
    const second = [
      "finetune",
      "--model",
      at("first"),
      "--train",
      train,
      "--epochs",
      "0",
      "--out",
      at("second"),
      "--json",
    ];
    const { code, stdout, stderr } = await run(second);
    expect(code).toBe(0);
    expect(stderr).not.toContain("new head");
    expect(json(at("second/run.json")).lineage).toHaveLength(3);
    const result = JSON.parse(stdout);
    expect(result.steps).toBe(0);
    expect(result.metrics).toEqual(result.before);
    expect(stderr).toContain("no --dev");
  });

  test("a head for other labels is left out, aloud", async () => {
    const other = at("other.tsv");
    writeFileSync(other, "sentence\tlabel\na film\tham\nthe plot\tspam\n");
    const { code, stderr } = await run([
      "finetune",
      "--model",
      at("first"),
      "--train",
      other,
      "--epochs",
      "0",
      "--out",
      at("o"),
    ]);
    expect(code).toBe(0);
    expect(stderr).toContain('note: the checkpoint\'s head is for other labels ("neg", "pos") and is left out');
    expect(stderr).toContain("new head: classifier.weight");
  });
});

describe("the same bits", () => {
  test("from the same command, and from an interrupted and resumed one", async () => {
    const best = ["--select", "best"];
    expect((await run(command("whole", ...best))).code).toBe(0);
    const stopped = await run(command("parts", ...best), {
      onStderr: (text, interrupt) => {
        if (text.startsWith("training 6/")) interrupt();
      },
    });
    expect(stopped.code).toBe(130);
    expect(stopped.stderr).toMatch(
      /^interrupted after step [67] of 12: a checkpoint is in .* Run the same command with --resume/m,
    );
    expect(existsSync(at("parts/model.safetensors"))).toBe(false);
    const unfinished = await run(["evaluate", "--run", at("parts"), "--data", dev]);
    expect(unfinished).toMatchObject({ code: 2, stdout: "" });
    expect(unfinished.stderr).toContain("this run is not finished");

    // A line that a kill cut short, and steps beyond the checkpoint, are dropped.
    const log = at("parts/metrics.jsonl");
    writeFileSync(log, `${readFileSync(log, "utf8")}{"step":9,"nll":0}\n{"step":10,"nl`);
    // A checkpoint that was damaged since is passed over, aloud.
    mkdirSync(at("parts/checkpoints/step-00000011"));
    // Layers that are run again give the same bits: the flag may come and go.
    const resumed = await run(command("parts", ...best, "--resume", "--recompute"));
    expect(resumed.code).toBe(0);
    expect(resumed.stderr).toContain("warning: checkpoint step-00000011 was skipped");
    expect(resumed.stderr).toMatch(/note: continuing after step [67] of 12/);
    expect(outcome("parts")).toEqual(outcome("whole"));
  });

  test("from one that was interrupted while it was measured", async () => {
    const stopped = await run(command("measured", "--select", "best"), {
      onStderr: (text, interrupt) => {
        if (text.startsWith("step 12: dev")) interrupt();
      },
    });
    expect(stopped.code).toBe(130);
    expect(stopped.stderr).toMatch(/^interrupted after step 12 of 12: a checkpoint is in /m);
    // Begun with another Dawn and other shaders, by its record.
    const record = json(at("measured/run.json"));
    const other = { versions: { ...record.versions, webgpu: "0.0.1" }, kernels: { ...record.kernels, shaders: "" } };
    writeFileSync(at("measured/run.json"), JSON.stringify({ ...record, ...other }));
    const resumed = await run(command("measured", "--select", "best", "--resume"));
    expect(resumed.code).toBe(0);
    for (const what of ["versions of priorwork, Node or Dawn", "kernels"])
      expect(resumed.stderr).toContain(`note: the run was begun with other ${what}: it may not continue bit for bit`);
    const { versions, kernels } = record;
    writeFileSync(at("measured/run.json"), JSON.stringify({ ...json(at("measured/run.json")), versions, kernels }));
    expect(outcome("measured")).toEqual(outcome("whole"));
  });

  test("interrupted before training: nothing is written", async () => {
    const stopped = await run(command("early"), {
      onStderr: (text, interrupt) => {
        if (text.startsWith("before training")) interrupt();
      },
    });
    expect(stopped.code).toBe(130);
    expect(stopped.stderr).toContain("Nothing was written.");
    expect(existsSync(at("early"))).toBe(false);
  });

  test("another seed gives others", async () => {
    expect((await run(command("seed", "--select", "best", "--seed", "4"))).code).toBe(0);
    expect(outcome("seed").weights).not.toBe(outcome("whole").weights);
  });

  test("resume names a flag that differs, a file that changed, and a folder without a run", async () => {
    const flag = await run(command("whole", "--select", "best", "--resume", "--lr", "2e-3"));
    expect(flag.code).toBe(2);
    expect(flag.stderr).toContain('--resume: the flags are not those of the run (--lr was "0.001" and is "0.002")');
    const none = await run(command("nowhere", "--resume"));
    expect(none.code).toBe(2);
    expect(none.stderr).toContain("--resume: no run in");
    const before = readFileSync(train);
    writeFileSync(train, before.toString().replace("film", "plot"));
    const file = await run(command("whole", "--select", "best", "--resume"));
    writeFileSync(train, before);
    expect(file.code).toBe(2);
    expect(file.stderr).toMatch(/--resume: --train .* has changed since the run began/);
  });
});

describe("methods", () => {
  test.each([
    ["mle", []],
    ["frozen", []],
    ["scratch", []],
    ["dropout", ["--members", "3"]],
  ])("%s", async (method, more) => {
    const { code, stdout } = await run(command(method, "--method", method, "--epochs", "1", ...more, "--json"));
    expect(code).toBe(0);
    const result = JSON.parse(stdout);
    const last = outcome(method).log.at(-1);
    const flat = method === "mle" || method === "scratch";
    if (flat) expect(last).toMatchObject({ logPrior: 0, priorShare: 0 });
    else expect(last.logPrior).toBeLessThan(0);
    const { objective, lineage } = json(at(`${method}/run.json`));
    expect([objective.mean === "none", lineage.at(-1).prior === null]).toEqual([flat, flat]);
    if (method === "frozen") {
      expect(result.trainableParameters).toBe(34);
      expect(last.distance).toBe(0);
      const { tensors } = parseSafetensors(readFileSync(at("frozen/model.safetensors")), "run");
      for (const { name, data } of tinyTensors()) {
        expect(Buffer.from(tensors.get(name)?.bytes ?? []).equals(Buffer.from(data.buffer)), name).toBe(true);
      }
    }
    expect(result.metrics.members).toBe(method === "dropout" ? 3 : 1);
  });

  test("a prior that never had a say is not passed off as MAP: exit 2, and one sentence", async () => {
    const { code, stderr } = await run(command("idle", "--epochs", "1", "--lr", "1e-30"));
    expect(code).toBe(2);
    expect(stderr).toMatch(/^prior: its share of the gradient was 0 in every step in encoder .* train longer/m);
    expect(existsSync(at("idle/model.safetensors"))).toBe(false);
    // One step cannot tell: θ = μ there.
    expect((await run(command("single", "--epochs", "1", "--batch", "28", "--lr", "1e-30"))).code).toBe(0);
  });

  test("dropout's members are drawn again by evaluate; one member is θ without dropout", async () => {
    const on = (...more: string[]) => run(["evaluate", "--run", at("dropout"), "--data", dev, "--json", ...more]);
    expect(JSON.parse((await on()).stdout)).toMatchObject(json(at("dropout/metrics.json")));
    expect(JSON.parse((await on("--members", "1")).stdout).members).toBe(1);
    const map = await run(["evaluate", "--run", at("first"), "--data", dev, "--members", "4"]);
    expect(map.code).toBe(2);
    expect(map.stderr).toContain("--members 4: this run keeps one θ");
  });
});

describe("nothing is overwritten unasked", () => {
  test("a folder with a run, with something else, and with the run's own input", async () => {
    const again = await run(command("first"));
    expect(again.code).toBe(2);
    expect(again.stderr).toContain("this folder holds a run. Add --resume to continue it, --overwrite to replace it");
    mkdirSync(at("photos"));
    writeFileSync(at("photos/cat.jpg"), "meow");
    for (const more of [[], ["--overwrite"]]) expect((await run(command("photos", ...more))).code).toBe(2);
    expect(readFileSync(at("photos/cat.jpg"), "utf8")).toBe("meow");
    const own = await run(command("model", "--overwrite"));
    expect(own.code).toBe(2);
    expect(own.stderr).toContain("the run would overwrite its own input");
  });

  test("--overwrite replaces the run and leaves what is not the run's", async () => {
    await run(command("replaced", "--epochs", "1", "--readout", "mean"));
    writeFileSync(at("replaced/notes.txt"), "mine");
    const { code } = await run(command("replaced", "--epochs", "1", "--overwrite"));
    expect(code).toBe(0);
    expect(readFileSync(at("replaced/notes.txt"), "utf8")).toBe("mine");
    expect(json(at("replaced/config.json"))).not.toHaveProperty("priorwork");
    expect(outcome("replaced").log).toHaveLength(4);
  });

  test("a refused command leaves the folder it would replace as it was", async () => {
    const before = readFileSync(at("replaced/run.json"), "utf8");
    const broken = at("broken.tsv");
    writeFileSync(broken, "sentence\tlabel\na film\tpos\nthe plot\n");
    const bad = ["finetune", "--model", model, "--train", broken, "--out", at("replaced"), "--overwrite"];
    expect((await run(bad)).code).toBe(2);
    expect(readFileSync(at("replaced/run.json"), "utf8")).toBe(before);
    rmSync(broken);
  });
});
