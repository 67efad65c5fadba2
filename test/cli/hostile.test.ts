/**
 * @file Folders that somebody edited, damaged or laid as a trap: a config that asks for terabytes, a run.json of another
 * shape, a checkpoint that speaks of steps that never were, outputs that would fall on inputs. Each ends in one sentence
 * of the right exit code, before anything is lost.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { beforeAll, describe, expect, test, vi } from "vitest";
import { run as runProcess } from "../../src/cli/process.ts";
import { checkOut, emptyOut } from "../../src/cli/run-folder.ts";
import { InputError, StorageError } from "../../src/errors.ts";
import { temporaryFolder } from "../data/shared.ts";
import { run, tinyTensors, writeModel, writeRows } from "./harness.ts";

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
const tune = (out: string, ...more: string[]) => [
  ...["finetune", "--model", at("model"), "--train", at("train.tsv"), "--epochs", "1", "--out", out, ...more],
];

beforeAll(async () => {
  writeModel(at("model"));
  writeRows(at("train.tsv"), 12, 1);
  expect((await run(tune(at("run")))).code).toBe(0);
});

/** The command ends with this code; its last line, the only one besides remarks, matches. */
async function refused(argv: string[], exit: number, message: RegExp): Promise<void> {
  const { code, stdout, stderr } = await run(argv);
  expect([code, stdout], stderr).toEqual([exit, ""]);
  const lines = stderr.trimEnd().split("\n");
  expect(lines.filter((line) => !/^(adapter|note|warning): /.test(line))).toEqual([lines.at(-1)]);
  expect(lines.at(-1)).toMatch(message);
}

/** A copy of the run with one of its JSON files changed. */
function edited(name: string, file: string, change: (json: Record<string, unknown>) => void): string {
  const copy = at(name);
  cpSync(at("run"), copy, { recursive: true });
  const json = JSON.parse(readFileSync(join(copy, file), "utf8"));
  change(json);
  writeFileSync(join(copy, file), JSON.stringify(json));
  return copy;
}

describe("a model", () => {
  test.each<[string, Record<string, unknown>, RegExp]>([
    [
      "wider than its weights",
      { hidden_size: 65_536 },
      /word_embeddings\.weight has shape \[23,16\] \(config\.json says/,
    ],
    [
      "with a vocabulary of gigabytes",
      { vocab_size: 16_000_000 },
      /has shape \[23,16\] \(config\.json says \[16000000,16\]/,
    ],
    [
      "deeper than its weights",
      { num_hidden_layers: 1000 },
      /the weights have 2 layers \(config\.json says num_hidden_layers 1000\)/,
    ],
    ["with other inner layers", { intermediate_size: 1_048_576 }, /intermediate\.dense\.weight has shape \[32,16\]/],
    ["too short for a word", { max_position_embeddings: 2 }, /max_position_embeddings is 2 \(expected 3 or more/],
  ])("%s is refused before memory is taken for it", async (name, config, message) => {
    writeModel(at(name), { config });
    await refused(["embed", "--model", at(name), "--text", "a film"], 2, message);
  });

  test("with a readout that does not exist is blamed, and not a flag that nobody gave", async () => {
    const copy = edited("readout", "config.json", (json) => {
      json.priorwork = { readout: "banana", head: "linear" };
    });
    await refused(
      ["predict", "--run", copy, "--text", "a film"],
      2,
      /readout: priorwork\.readout banana: no such readout/,
    );
  });

  test("whose tokenizer knows more words than it has: fill-mask too", async () => {
    const path = writeModel(at("words"), { tensors: tinyTensors({ mlm: true }) });
    writeFileSync(join(path, "vocab.txt"), `${readFileSync(join(path, "vocab.txt"), "utf8")}more\n`);
    await refused(
      ["fill-mask", "--model", path, "more [MASK]"],
      2,
      /^tokenizer: its highest id is 23 \(config\.json says/,
    );
  });

  test("fill-mask says that it cut the text", async () => {
    const path = writeModel(at("mlm"), { tensors: tinyTensors({ mlm: true }) });
    const { code, stderr } = await run(["fill-mask", "--model", path, `[MASK] ${"film ".repeat(99)}`]);
    expect(code).toBe(0);
    expect(stderr).toMatch(/^note: the text was cut to 24 word pieces/m);
  });

  test("a tensor's name fills no screen", async () => {
    const extra = { name: "x".repeat(50_000), dtype: "F32" as const, shape: [1], data: new Float32Array(1) };
    const path = writeModel(at("names"), { tensors: [...tinyTensors(), extra] });
    const { code, stderr } = await run(["embed", "--model", path, "--text", "a film"]);
    expect(code).toBe(0);
    expect(stderr.length).toBeLessThan(2000);
  });

  test.each(["train.tsv/model", "m".repeat(5000)])("under a path that cannot be one: %.15s", async (path) => {
    await refused(["predict", "--run", at(path), "--text", "a"], 4, /^--run .*: no such folder/);
  });
});

test("pairs need room for two word pieces", async () => {
  writeFileSync(at("pairs.tsv"), "sentence1\tsentence2\tlabel\na\tfilm\tx\nthe\tplot\ty\n");
  const argv = tune(at("never"), "--max-length", "4").map((word) =>
    word === at("train.tsv") ? at("pairs.tsv") : word,
  );
  await refused(argv, 2, /^--max-length 4: too short for pairs of texts \(expected 5 or more/);
});

describe("run.json", () => {
  test.each<[string, unknown]>([
    ["options", null],
    ["data", { train: {} }],
    ["model", 5],
    ["adapter", null],
    ["lineage", 5],
    ["seed", "1; rm"],
    ["finished", undefined],
  ])("whose %s is %j is refused, to predict and to resume", async (key, value) => {
    const path = edited(`field ${key}`, "run.json", (json) => Object.assign(json, { [key]: value }));
    const message = new RegExp(`run\\.json: ${key} is missing or not what priorwork writes\\. Was it edited\\?`);
    await refused(["predict", "--run", path, "--text", "a film"], 2, message);
    await refused(tune(path, "--resume"), 2, message);
    expect(readdirSync(join(path, "checkpoints"))).toHaveLength(1);
  });

  test.each([0, 1, 2])("whose longest sequence is %i pieces, which no text fits, is refused", async (maxLength) => {
    const path = edited(`length ${maxLength}`, "run.json", ({ model }) =>
      Object.assign(model as object, { maxLength }),
    );
    await refused(
      ["predict", "--run", path, "--text", "a film"],
      2,
      /run\.json: model is missing or not what priorwork/,
    );
  });

  test("that asks for a thousand million members is refused", async () => {
    const path = edited("members", "run.json", ({ options }) => {
      Object.assign(options as object, { method: "dropout", members: 1_000_000_000 });
    });
    await refused(["predict", "--run", path, "--text", "a"], 2, /^run\.json: members 1000000000: out of range/);
  });

  test("that is a folder makes no run: nothing is resumed, nothing removed", async () => {
    const path = at("folder");
    cpSync(at("run"), path, { recursive: true });
    rmSync(join(path, "run.json"));
    mkdirSync(join(path, "run.json"));
    const before = readdirSync(path);
    await refused(tune(path, "--resume"), 2, /^--resume: no run in /);
    await refused(tune(path, "--overwrite"), 2, /not empty, and no run either/);
    expect(readdirSync(path)).toEqual(before);
  });
});

test.each([
  { seconds: 1, evaluations: [], pending: 5 },
  { seconds: 1, evaluations: [{ nll: 1 }], pending: null },
])("a checkpoint that speaks of steps that never were: %j", async (journey) => {
  const path = at(`journey ${JSON.stringify(journey).length}`);
  cpSync(at("run"), path, { recursive: true });
  const [name = ""] = readdirSync(join(path, "checkpoints"));
  const inside = (file: string) => join(path, "checkpoints", name, file);
  const text = JSON.stringify(journey);
  writeFileSync(inside("journey.json"), text);
  // Its hash is right: only a look at what it says can tell.
  const manifest = JSON.parse(readFileSync(inside("manifest.json"), "utf8"));
  manifest.files["journey.json"] = { bytes: text.length, sha256: createHash("sha256").update(text).digest("hex") };
  writeFileSync(inside("manifest.json"), JSON.stringify(manifest));
  await refused(tune(path, "--resume"), 2, /journey\.json: not what a checkpoint holds/);
});

describe("--out", () => {
  const out = (path: string, inputs: string[] = []) => checkOut(path, { resume: false, overwrite: true, inputs });

  test("spares an input in a folder of the run's, also behind a link", () => {
    const inside = join(at("run"), "checkpoints", "mine.tsv");
    writeFileSync(inside, "text\tlabel\n");
    symlinkSync(inside, at("link.tsv"));
    for (const input of [inside, at("link.tsv"), at("run"), join(at("run"), "model.safetensors")]) {
      expect(() => out(at("run"), [input])).toThrow(InputError);
      expect(() => out(at("run"), [input])).toThrow("the run would overwrite its own input");
    }
    expect(() => out(at("run"), [at("train.tsv"), at("model")])).not.toThrow();
    rmSync(inside);
  });

  test.each(["train.tsv/run", "train.tsv/a/b", "o".repeat(5000)])("that cannot be made is exit 4: %.15s", (path) => {
    expect(() => out(at(path))).toThrow(StorageError);
    expect(() => out(at(path))).toThrow(/: cannot write: [^\n]+\.$/);
  });

  test.skipIf(process.platform !== "linux")("where no folder can be made ends, and does not try for ever", () => {
    expect(() => emptyOut("/proc/priorwork")).toThrow(StorageError);
  });

  test.each(["--out", "--dev"])("%s with an empty path is named as such", async (flag) => {
    await refused(tune(at("never"), flag, " "), 2, new RegExp(`^${flag} " ": empty`));
  });

  test("of embed: not over --data, not a folder, not in a folder that is not there", async () => {
    writeFileSync(at("texts.jsonl"), '{"text":"a film"}\n');
    symlinkSync(at("texts.jsonl"), at("alias.jsonl"));
    mkdirSync(at("vectors.npy"));
    const embed = (path: string) => [
      ...["embed", "--model", at("model"), "--data", at("texts.jsonl"), "--overwrite", "--out", at(path)],
    ];
    for (const same of ["texts.jsonl", "alias.jsonl"])
      await refused(embed(same), 2, /: this is --data, which would be/);
    await refused(embed("vectors.npy"), 2, /: a folder \(expected a file\)/);
    await refused(embed("nowhere/v.npy"), 4, /: its folder does not exist/);
    expect(readFileSync(at("texts.jsonl"), "utf8")).toBe('{"text":"a film"}\n');
    expect(existsSync(at("nowhere"))).toBe(false);
  });
});

test.skipIf(!existsSync("/dev/full"))("an answer that cannot be written is exit 4, in one line", () => {
  const program = join(dirname(fileURLToPath(import.meta.url)), "../../bin/priorwork.js");
  const { status, stderr } = spawnSync("sh", ["-c", `"${process.execPath}" "${program}" --help > /dev/full`], {
    encoding: "utf8",
  });
  expect([status, stderr]).toEqual([4, "stdout: cannot write: no space left on the disk. Free some and run again.\n"]);
});

describe("a promise that nobody waits for any more", () => {
  const source = (path: string) => JSON.stringify(new URL(`../../src/${path}`, import.meta.url).href);
  /** A program of its own, in which the first pass of a model is followed by these lines. */
  const broken = (lines: string) => {
    const program = at("broken.mjs");
    writeFileSync(
      program,
      `import { Engine } from ${source("autograd/index.ts")};
       import { run } from ${source("cli/process.ts")};
       const { step } = Engine.prototype;
       Engine.prototype.step = function (body) {
         Engine.prototype.step = step;
         ${lines}
       };
       await run(["evaluate", "--run", ${JSON.stringify(at("run"))}, "--data", ${JSON.stringify(at("train.tsv"))}, "--json"]);`,
    );
    const tsx = createRequire(import.meta.url).resolve("tsx");
    const { status, stderr } = spawnSync(process.execPath, ["--import", pathToFileURL(tsx).href, program], {
      ...{ encoding: "utf8", env: { ...process.env, DEBUG: "" } },
    });
    return {
      status,
      lines: stderr
        .trimEnd()
        .split("\n")
        .filter((line) => !/^(adapter|note|evaluating|Warning)/.test(line)),
    };
  };

  test("fails with the device that a bug has closed: the bug's line is the only one", () => {
    // A read is under way, as in a pass that starts one and then goes wrong.
    const { status, lines } = broken(`this.gpu.settle(); throw new Error("a wrong turn");`);
    expect(lines).toEqual(["a bug of priorwork: a wrong turn. Please report it with the output of DEBUG=1."]);
    expect(status).toBe(1);
  });

  test("fails by itself: one line, and no success", () => {
    const { status, lines } = broken(`Promise.reject(new Error("left alone")); return step.call(this, body);`);
    expect(lines).toEqual(["a bug of priorwork: left alone. Please report it with the output of DEBUG=1."]);
    expect(status).toBe(1);
  });
});

test("Ctrl-C is the system's own until there is something to save", async () => {
  const on = vi.spyOn(process, "on");
  const before = process.exitCode;
  vi.spyOn(process.stderr, "write").mockReturnValue(true);
  await runProcess(["finetune", "--model", at("model"), "--train", at("nowhere.tsv"), "--out", at("never")]);
  expect(process.exitCode).toBe(4);
  process.exitCode = before;
  expect(on.mock.calls.map(([event]) => event)).not.toContain("SIGINT");
  vi.restoreAllMocks();
});
