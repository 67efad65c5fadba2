/**
 * @file The other commands on a tiny random BERT: the JSON that scripts rely on, text that is inert wherever it is
 * shown, and one sentence with the right exit code for each kind of bad input.
 */
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { BENCHES } from "../../src/cli/bench.ts";
import { npy } from "../../src/cli/embed.ts";
import { writeSafetensors } from "../../src/model/safetensors.ts";
import { temporaryFolder } from "../data/shared.ts";
import { CONFIG, run, tinyTensors, writeModel, writeRows } from "./harness.ts";

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
const ESCAPE = "\u001b[31m";
/** Anything that could move a cursor or turn the writing round; a line end may stand. */
const ACTIVE = /[\p{Cf}\p{Co}\u2028\u2029]|(?!\n)\p{Cc}/u;

beforeAll(async () => {
  writeModel(at("model"));
  writeModel(at("mlm"), { tensors: tinyTensors({ mlm: true }), config: { architectures: ["BertForMaskedLM"] } });
  writeRows(at("train.tsv"), 12, 1);
  writeRows(at("dev.tsv"), 6, 2);
  const made = ["finetune", "--model", at("model"), "--train", at("train.tsv"), "--epochs", "1", "--out", at("run")];
  expect((await run(made)).code).toBe(0);
});

const document = async (...argv: string[]) => {
  const { code, stdout, stderr } = await run([...argv, "--json"]);
  expect(stderr).toMatch(/^adapter: [^\n]+$/m);
  expect(code, stderr).toBe(0);
  expect(stdout).not.toMatch(ACTIVE);
  return JSON.parse(stdout);
};

describe("predict", () => {
  test("gives label, probabilities, logits and what they leave open", async () => {
    const answers = await document("predict", "--run", at("run"), "--text", "the film is good", "--text", "awful plot");
    expect(answers).toHaveLength(2);
    expect(Object.keys(answers[0])).toEqual(
      "text label probability probabilities logits epistemic aleatoric members".split(" "),
    );
    for (const { label, probability, probabilities, logits, epistemic, aleatoric } of answers) {
      const exp = logits.map(Math.exp);
      const p = exp.map((x: number) => x / (exp[0] + exp[1]));
      expect(probabilities.neg).toBeCloseTo(p[0], 12);
      expect(probabilities.pos).toBeCloseTo(p[1], 12);
      expect(probability).toBe(Math.max(probabilities.neg, probabilities.pos));
      expect(probabilities[label]).toBe(probability);
      expect(epistemic).toBe(0);
      expect(aleatoric).toBeCloseTo(-p[0] * Math.log(p[0]) - p[1] * Math.log(p[1]), 12);
    }
    // Alone or among others: packed sequences do not touch each other.
    const [alone] = await document("predict", "--run", at("run"), "--text", "awful plot");
    for (const k of [0, 1]) expect(alone.logits[k]).toBeCloseTo(answers[1].logits[k], 5);
  });

  test("text from data is inert, on the terminal and in JSON", async () => {
    const text = `good ${ESCAPE}film\u202e\u009b2J \u200b`;
    writeFileSync(at("hostile.jsonl"), `${JSON.stringify({ text })}\n`);
    const shown = await run(["predict", "--run", at("run"), "--data", at("hostile.jsonl")]);
    expect(shown.code).toBe(0);
    expect(shown.stdout + shown.stderr).not.toMatch(ACTIVE);
    expect(shown.stdout).toContain("\\u{1b}[31mfilm\\u{202e}");
    const [answer] = await document("predict", "--run", at("run"), "--data", at("hostile.jsonl"));
    expect(answer.text).toBe(text);
  });

  test("a plain Hugging Face folder of a fine-tuned BERT is one member", async () => {
    const head = [
      { name: "classifier.weight", dtype: "F32" as const, shape: [3, 16], data: new Float32Array(48).fill(0.1) },
      { name: "classifier.bias", dtype: "F32" as const, shape: [3], data: Float32Array.of(0, 1, 2) },
    ];
    const id2label = { 0: "a", 1: "__proto__", 2: "c" };
    writeModel(at("hf"), {
      tensors: [...tinyTensors(), ...head],
      config: { architectures: ["BertForSequenceClassification"], id2label },
    });
    const [answer] = await document("predict", "--run", at("hf"), "--text", "good");
    expect(answer).toMatchObject({ label: "c", members: 1 });
    expect(answer.logits[2] - answer.logits[0]).toBeCloseTo(2, 5);
    expect(Object.keys(answer.probabilities)).toEqual(["a", "__proto__", "c"]);
  });
});

describe("embed", () => {
  test("vectors of a readout, of length 1 when asked, the same in every form", async () => {
    const rows = await document("embed", "--model", at("model"), "--text", "two films", "--readout", "mean");
    expect(Object.keys(rows[0])).toEqual(["text", "vector"]);
    expect(rows[0].vector).toHaveLength(16);
    const [unit] = await document("embed", "--model", at("model"), "--text", "two films", "--normalize");
    const norm = Math.hypot(...rows[0].vector);
    for (const [i, x] of unit.vector.entries()) expect(x).toBeCloseTo(rows[0].vector[i] / norm, 6);
    const wide = await document("embed", "--model", at("model"), "--text", "a", "--readout", "last2-concat");
    expect(wide[0].vector).toHaveLength(32);

    const to = (file: string, ...more: string[]) =>
      run(["embed", "--model", at("model"), "--data", at("dev.tsv"), "--out", at(file), ...more]);
    expect((await to("v.jsonl")).code).toBe(0);
    const lines = readFileSync(at("v.jsonl"), "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines).toHaveLength(6);
    expect((await to("v.npy")).code).toBe(0);
    const file = readFileSync(at("v.npy"));
    const start = 10 + file.readUInt16LE(8);
    expect(start % 64).toBe(0);
    expect(file.subarray(10, start).toString()).toContain("'shape': (6, 16)");
    for (let i = 0; i < 16; i++)
      expect(file.readFloatLE(start + 4 * (2 * 16 + i))).toBe(Math.fround(lines[2].vector[i]));
    const again = await to("v.npy");
    expect(again.code).toBe(2);
    expect(again.stderr).toContain("this file exists. Add --overwrite");
    expect((await to("v.npy", "--overwrite")).code).toBe(0);
    expect((await to("v.csv")).stderr).toContain("unknown kind of file (expected .jsonl or .npy)");
  });

  test("a .npy header of any width ends at a multiple of 64 bytes", () => {
    for (const rows of [1, 9, 12_345]) {
      const file = npy(Array.from({ length: rows }, () => Float64Array.of(1)));
      expect((file.length - 4 * rows) % 64).toBe(0);
      expect(file[file.length - 4 * rows - 1]).toBe(10);
    }
  });
});

describe("fill-mask", () => {
  test("answers with an array for each mask, probabilities of the whole vocabulary", async () => {
    const masks = await document("fill-mask", "--model", at("mlm"), "the [MASK] was [MASK] .", "--top", "100");
    expect(masks).toHaveLength(2);
    for (const guesses of masks) {
      expect(guesses).toHaveLength(CONFIG.vocab_size);
      const total = guesses.reduce(
        (sum: number, { logProbability }: { logProbability: number }) => sum + Math.exp(logProbability),
        0,
      );
      expect(total).toBeCloseTo(1, 9);
      for (let i = 1; i < guesses.length; i++)
        expect(guesses[i].logProbability <= guesses[i - 1].logProbability).toBe(true);
    }
    expect(masks[0].map(({ token }: { token: string }) => token)).toContain("##s");
  });

  test.each([
    ["no mask", ["--model", "mlm", "the film"], /^fill-mask: no \[MASK\] in the text/m],
    ["no head", ["--model", "model", "the [MASK]"], /no masked-language-model head/],
  ])("%s", async (_, [flag = "", name = "", text = ""], message) => {
    const { code, stderr, stdout } = await run(["fill-mask", flag, at(name), text]);
    expect([code, stdout]).toEqual([2, ""]);
    expect(stderr).toMatch(message);
  });
});

describe("pretrain", () => {
  test("from a config, interrupted and resumed, then a source of priors", async () => {
    const text = Array.from({ length: 5 }, (_, i) => `the film is good .\nthe plot was awful ${i} .\na film .\n`).join(
      "\n",
    );
    writeFileSync(at("corpus.txt"), text);
    const command = (out: string, ...more: string[]) => [
      ...["pretrain", "--text", at("corpus.txt"), "--config", at("model/config.json"), "--batch", "4", "--epochs", "2"],
      ...["--lr", "1e-3", "--out", at(out), ...more],
    ];
    const whole = await run(command("whole", "--json"));
    expect(whole.code, whole.stderr).toBe(0);
    expect(JSON.parse(whole.stdout).steps).toBe(6);
    const stopped = await run(command("parts", "--recompute"), {
      onStderr: (line, interrupt) => line.startsWith("training 2/") && interrupt(),
    });
    expect(stopped.code).toBe(130);
    expect((await run(command("parts", "--resume"))).code).toBe(0);
    const weights = (out: string) => readFileSync(at(`${out}/model.safetensors`)).toString("base64");
    expect(weights("parts")).toBe(weights("whole"));
    expect((await document("fill-mask", "--model", at("whole"), "the [MASK] ."))[0]).toHaveLength(5);
    const tuned = await run([
      ...["finetune", "--model", at("whole"), "--train", at("train.tsv"), "--epochs", "0", "--out", at("tuned")],
    ]);
    expect(tuned.code, tuned.stderr).toBe(0);
    // Five documents of three sentences: ten pairs, a likelihood term each.
    expect(JSON.parse(readFileSync(at("whole/run.json"), "utf8")).objective.N).toBe(10);
    const { lineage } = JSON.parse(readFileSync(at("tuned/run.json"), "utf8"));
    expect(lineage.map((stage: { task: string }) => stage.task)).toEqual([
      "masked tokens and next sentence",
      "classify",
    ]);
    const domain = await run(["pretrain", "--text", at("corpus.txt"), "--model", at("whole"), "--out", at("domain")]);
    expect(domain.code, domain.stderr).toBe(0);
    // Ten pairs in batches of 32.
    expect(domain.stderr).toMatch(/15 sentences in 5 documents, 1 step$/m);
    expect(domain.stdout).toMatch(/^1 step in /);
    // Maximum likelihood has no prior, and no share of one.
    expect(domain.stderr).toMatch(/^training 1\/1 {2}epoch 1\.0 {2}nll \d+\.\d+ {2}\S+ s$/m);
    const stages = JSON.parse(readFileSync(at("domain/run.json"), "utf8")).lineage;
    // Maximum likelihood, from weights too: it starts at them and has no prior around them.
    expect(stages.map(({ prior }: { prior: unknown }) => prior)).toEqual([null, null]);
  });
});

describe("doctor", () => {
  test("says what is used and what was tried", async () => {
    const { adapter, tried } = await document("doctor");
    expect(Object.keys(adapter)).toEqual(["name", "kind", "driver", "features", "limits", "matrixUnit"]);
    expect(adapter.limits.maxBufferSize).toBeGreaterThan(0);
    expect(tried.at(-1)).toMatchObject({ name: adapter.name, taken: true });
    const text = await run(["doctor"]);
    expect(text.stdout).toContain(`Used: ${adapter.name}`);
  });

  test("works where there is no adapter: exit 3, what was tried, what to do; an unknown name is exit 2", async () => {
    const none = await run(["doctor", "--json"], { env: { PRIORWORK_ADAPTER: "hardware" } });
    if (none.code !== 0) {
      expect(none.code).toBe(3);
      expect(JSON.parse(none.stdout)).toMatchObject({ adapter: null, tried: [{ taken: false }] });
      expect(none.stderr).toMatch(/^PRIORWORK_ADAPTER=hardware: no such adapter here \(.+\)\. Choose /m);
    }
    const unknown = await run(["doctor"], { env: { PRIORWORK_ADAPTER: "no-such-card" } });
    expect(unknown.code).toBe(2);
    expect(unknown.stdout).toContain("passed over");
  });
});

describe("usage", () => {
  test.each<[string[], string | RegExp]>([
    [[], /^priorwork: no command \(expected finetune, evaluate, /],
    [["finetun"], /^"finetun": unknown command .* Did you mean finetune\?$/],
    [["finetune", "--lrr", "1"], "--lrr: unknown flag. Did you mean --lr? priorwork finetune --help lists all."],
    [["evaluate", "--rnu=x"], "--rnu: unknown flag. Did you mean --run? priorwork evaluate --help lists all."],
    [["finetune", "--lr"], "--lr: a value is missing (expected --lr RATE). Give one."],
    [["evaluate"], "--run: missing (expected DIR). Add --run DIR."],
    [["doctor", "now"], /^doctor: words that belong to no flag \(found "now"\)/],
    [["fill-mask", "--model", "m"], /^fill-mask: a text is missing/],
    [["predict", "--run", "r"], /^--text: missing \(expected --text "…" or --data FILE\)/],
    [["predict", "--run", "r", "--text", ""], /^--text "": empty/],
    [["predict", "--run", "r", "--text", "a", "--data", "b.tsv"], /^--text: contradicts --data/],
    [["embed", "--model", "m", "--text", "a", "--batch", "many"], /^--batch many: not a whole number/],
    [["pretrain", "--text", "t", "--out", "o"], /^--model: missing \(expected --model DIR .* or --config FILE/],
    [["finetune", ESCAPE], /^finetune: words that belong to no flag \(found "\\u\{1b\}\[31m"\)/],
  ])("%j: one line, exit 2", async (argv, message) => {
    const { code, stdout, stderr } = await run(argv);
    expect([code, stdout]).toEqual([2, ""]);
    expect(stderr.trimEnd()).toMatch(message);
    expect(stderr.trimEnd()).not.toContain("\n");
  });

  test.each(["", "finetune", "evaluate", "predict", "embed", "fill-mask", "pretrain", "doctor", "bench"])(
    "%s --help has an example",
    async (command) => {
      const { code, stdout } = await run([...(command === "" ? [] : [command]), "--help"]);
      expect(code).toBe(0);
      expect(stdout).toContain("Example:\n  priorwork ");
    },
  );

  test.each(["evaluate", "predict"])("%s --help says what --batch changes", async (command) => {
    const { stdout } = await run([command, "--help"]);
    expect(stdout.replace(/\s+/g, " ")).toContain("a dropout run's masks, and so its answers, depend on it");
  });

  test("bench --help names what can be measured", async () => {
    const { stdout } = await run(["bench", "--help"]);
    expect(stdout.replace(/\s+/g, " ")).toContain(`kernels, ${BENCHES.join(", ")}, or part of a case's name`);
  });

  test("DEBUG=1 adds the stack", async () => {
    const quiet = await run(["evaluate"]);
    const loud = await run(["evaluate"], { env: { DEBUG: "1" } });
    expect(quiet.stderr).not.toContain("    at ");
    expect(loud.stderr).toContain("    at ");
    expect(loud.code).toBe(2);
  });
});

describe("bad input: one sentence, the right exit code, nothing lost", () => {
  const tune = (model: string, train: string, ...more: string[]) => [
    ...["finetune", "--model", at(model), "--train", at(train), "--epochs", "1", "--out", at("never"), ...more],
  ];
  const weights = writeSafetensors(tinyTensors());
  const lying = weights.slice();
  lying.set([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
  const nan = tinyTensors().map((tensor, i) =>
    i === 4 ? { ...tensor, data: tensor.data.map(() => Number.NaN) } : tensor,
  );
  const weightFile = (content: string | Uint8Array) => (name: string) => {
    writeModel(at(name));
    writeFileSync(at(`${name}/model.safetensors`), content);
  };

  test.each<[string, number, (name: string) => void, RegExp]>([
    ["weights cut short", 2, weightFile(weights.subarray(0, weights.length - 8)), /model\.safetensors: /],
    ["a lying header", 2, weightFile(lying), /model\.safetensors: /],
    ["an empty file", 2, weightFile(""), /model\.safetensors: /],
    ["an HTML page", 2, weightFile("<!DOCTYPE html><html>"), /an HTML page/],
    [
      "a Git LFS pointer",
      2,
      weightFile("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
      /a Git LFS pointer/,
    ],
    [
      "a NaN",
      2,
      (name) => writeModel(at(name), { tensors: nan }),
      /tensor bert\.embeddings\.LayerNorm\.bias has NaN at position 0/,
    ],
    [
      "another shape",
      2,
      (name) => writeModel(at(name), { config: { vocab_size: 24 } }),
      /word_embeddings\.weight has shape \[23,16\]/,
    ],
    [
      "a config that is none",
      2,
      (name) => {
        writeModel(at(name));
        writeFileSync(at(`${name}/config.json`), "{");
      },
      /config\.json: not valid JSON/,
    ],
    [
      "no tokenizer",
      2,
      (name) => {
        writeModel(at(name));
        writeFileSync(at(`${name}/vocab.txt`), "a\n");
      },
      /vocab\.txt: \[CLS\]/,
    ],
    ["another model type", 2, (name) => writeModel(at(name), { config: { model_type: "gpt2" } }), /model_type/],
    [
      "a missing tensor",
      2,
      (name) => writeModel(at(name), { tensors: tinyTensors().slice(0, -3) }),
      /encoder tensors are missing/,
    ],
    ["no such folder", 4, () => {}, /no such folder/],
  ])("a model with %s", async (what, exit, make, message) => {
    const name = `bad model ${what}`;
    make(name);
    const { code, stdout, stderr } = await run(tune(name, "train.tsv"));
    expect([code, stdout], stderr).toEqual([exit, ""]);
    expect(stderr.trimEnd().split("\n").at(-1)).toMatch(message);
    expect(existsSync(at("never"))).toBe(false);
  });

  test.each<[string, number, string, string | Uint8Array | undefined, string[], RegExp]>([
    ["missing", 4, "tsv", undefined, [], /no such file/],
    ["empty", 2, "tsv", "", [], /is empty/],
    ["a header alone", 2, "tsv", "text\tlabel\n", [], /a header and no rows/],
    ["one class", 2, "tsv", "text\tlabel\na\tx\nb\tx\n", [], /needs two classes/],
    ["a row with a column missing", 2, "tsv", "text\tlabel\na\tx\nb\n", [], /\.tsv:3: a column is missing \("label"/],
    [
      "invalid UTF-8",
      2,
      "tsv",
      Uint8Array.of(116, 101, 120, 116, 9, 108, 97, 98, 101, 108, 10, 0xff),
      [],
      /invalid UTF-8 \(line 2/,
    ],
    ["CSV", 2, "csv", "text,label\n", [], /CSV is not yet supported/],
    ["no label column", 2, "tsv", "text\tlable\na\tx\n", [], /no label column .* Did you mean "lable"\?/],
    [
      "no such column",
      2,
      "tsv",
      "text\tlabel\na\tx\nb\ty\n",
      ["--text-column", "txt"],
      /--text-column "txt": .* Did you mean "text"\?/,
    ],
    [
      "too long, refused",
      2,
      "tsv",
      `text\tlabel\n${"a ".repeat(99)}\tx\nb\ty\n`,
      ["--on-long", "refuse"],
      /\.tsv:2: longer than 24 word pieces/,
    ],
    [
      "longer than the model",
      2,
      "tsv",
      "text\tlabel\na\tx\nb\ty\n",
      ["--max-length", "25"],
      /--max-length 25: longer than the model holds/,
    ],
    [
      "a layer that is not there",
      2,
      "tsv",
      "text\tlabel\na\tx\nb\ty\n",
      ["--prior-precision", "layer.9=1"],
      /layer\.9/,
    ],
    [
      "a readout too deep",
      2,
      "tsv",
      "text\tlabel\na\tx\nb\ty\n",
      ["--readout", "last4-sum"],
      /--readout last4-sum: this encoder has 2 layers/,
    ],
    [
      "members without dropout",
      2,
      "tsv",
      "text\tlabel\na\tx\nb\ty\n",
      ["--method", "dropout"],
      /config\.json has no dropout/,
    ],
  ])("a table that is %s", async (what, exit, extension, content, more, message) => {
    const name = `bad table ${what}.${extension}`;
    if (content !== undefined) writeFileSync(at(name), content);
    const { code, stdout, stderr } = await run(tune("model", name, ...more));
    expect([code, stdout], stderr).toEqual([exit, ""]);
    expect(stderr.trimEnd().split("\n").at(-1)).toMatch(message);
    expect(existsSync(at("never"))).toBe(false);
  });

  test("an unknown label in dev: file and line", async () => {
    writeFileSync(at("odd.tsv"), `sentence\tlabel\na film\tpos\nthe plot\t${ESCAPE}ppos\n`);
    const { code, stderr } = await run(tune("model", "train.tsv", "--dev", at("odd.tsv")));
    expect(code).toBe(2);
    expect(stderr).toMatch(
      /odd\.tsv:3: unknown label \(found "\\u\{1b\}\[31mppos"; the training table has "neg", "pos"\)/,
    );
  });

  test("long texts are cut, with a count", async () => {
    writeFileSync(at("long.tsv"), `text\tlabel\n${"a ".repeat(99)}\tx\nb\ty\n`);
    const { code, stderr } = await run([
      "finetune",
      "--model",
      at("model"),
      "--train",
      at("long.tsv"),
      "--epochs",
      "0",
      "--out",
      at("long"),
    ]);
    expect(code).toBe(0);
    expect(stderr).toMatch(/^note: .*long\.tsv: 1 text of 2 cut to 24 word pieces$/m);
  });

  test("a run that diverges is exit 2, names step and operation, and keeps the last good state", async () => {
    const wild = [
      ...tune("model", "train.tsv").slice(0, -2),
      "--out",
      at("wild"),
      "--optimizer",
      "sgd",
      "--lr",
      "1000",
    ];
    const { code, stderr } = await run([
      ...wild,
      "--head-lr",
      "1000",
      "--warmup",
      "0",
      "--batch",
      "2",
      "--epochs",
      "40",
    ]);
    expect(code, stderr).toBe(2);
    const last = stderr.trimEnd().split("\n").at(-1) ?? "";
    expect(last).toMatch(
      /^step \d+: the loss or its gradient is not finite \(first in [\w.]+; training examples [\d, ]+/,
    );
    const kept = Number(/^step (\d+)/.exec(last)?.[1]) - 1;
    expect(last).toContain(
      `The weights are kept as they were after step ${kept}. Lower --lr and --head-lr, lengthen --warmup, or set --clip 1.`,
    );
    expect(existsSync(at("wild/checkpoints"))).toBe(true);
    expect(existsSync(at("wild/model.safetensors"))).toBe(false);
  });

  test.skipIf(process.getuid?.() === 0 || process.platform === "win32")(
    "a folder that may not be written is exit 4",
    async () => {
      mkdirSync(at("locked"));
      chmodSync(at("locked"), 0o500);
      const { code, stderr } = await run([...tune("model", "train.tsv").slice(0, -2), "--out", at("locked/run")]);
      expect(code).toBe(4);
      expect(stderr).toContain("permission denied");
    },
  );
});
