/**
 * @file `--method laplace`: structure, groups and predictive, the Gaussian in the run folder, and what is refused. What a
 * state computes is tested in test/posterior; here that a run's is the library's, and predicts the same when it is read.
 */
import { cpSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { openSafetensors } from "../../src/model/safetensors-file.ts";
import { temporaryFolder } from "../data/shared.ts";
import { run, writeModel, writeRows } from "./harness.ts";

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
const json = (path: string) => JSON.parse(readFileSync(path, "utf8"));
const [model, train, dev] = [at("model"), at("train.tsv"), at("dev.tsv")];
const finetune = (out: string, ...more: string[]) => [
  ...["finetune", "--model", model, "--train", train, "--dev", dev, "--out", at(out), "--epochs", "1", "--batch", "8"],
  ...["--seed", "3", "--lr", "1e-3", "--method", "laplace", "--json", ...more],
];
const evaluate = (out: string, ...more: string[]) =>
  run(["evaluate", "--run", at(out), "--data", dev, "--json", ...more]);

beforeAll(() => {
  writeModel(model);
  writeRows(train, 28, 1);
  writeRows(dev, 20, 2);
});

describe("a run", () => {
  test("by probit of the last layer: one member; its Gaussian is read as it was written, to the last bit", async () => {
    for (const structure of ["full", "diagonal", "kronecker"]) {
      const { code, stderr } = await run(finetune(structure, "--predictive", "probit", "--structure", structure));
      expect(code).toBe(0);
      expect(stderr).toMatch(
        new RegExp(`note: laplace: ${structure} over 34 parameters of the last layer: [.\\d]+ MB`),
      );
      expect(readdirSync(at(`${structure}/posterior`)).sort()).toEqual(["gaussian.json", "gaussian.safetensors"]);
      expect(json(at(`${structure}/posterior/gaussian.json`))).toMatchObject({
        ...{ method: "laplace", structure, predictive: "probit", lastLayer: true, n: 28, temperature: 1 },
        blocks: [{ slices: ["classifier.weight", "classifier.bias"], precision: 1 }],
      });
      const metrics = json(at(`${structure}/metrics.json`));
      expect(metrics.members).toBe(1);
      expect(JSON.parse((await evaluate(structure)).stdout)).toMatchObject(metrics);
    }
    const [full, diagonal, kronecker] = ["full", "diagonal", "kronecker"].map((name) => json(at(`${name}/metrics.json`)).nll); // biome-ignore format: three
    expect(new Set([full, diagonal, kronecker]).size).toBe(3);
    const refused = await evaluate("full", "--members", "2");
    expect([refused.code, refused.stderr]).toEqual([2, expect.stringContaining("more than the run predicts with (1,")]);
  });

  test("by the linearisation of the last layer is the average over draws of θ, up to their number", async () => {
    const members = ["--members", "200"];
    expect((await run(finetune("linearised", "--predictive", "linearised", ...members))).code).toBe(0);
    expect((await run(finetune("mc", ...members))).code).toBe(0);
    const epistemic = async (name: string) => {
      const { stdout } = await run(["predict", "--run", at(name), "--data", dev, "--json"]);
      const answers: { epistemic: number; members: number }[] = JSON.parse(stdout);
      expect(new Set(answers.map((answer) => answer.members))).toEqual(new Set([200]));
      return answers.reduce((sum, answer) => sum + answer.epistemic, 0) / answers.length;
    };
    // What members dispute grows with the variance of their logits, which 200 draws tell to √(2/200), a tenth.
    const [linear, drawn] = [await epistemic("linearised"), await epistemic("mc")];
    expect(drawn).toBeGreaterThan(0.01);
    expect(Math.abs(linear / drawn - 1)).toBeLessThan(0.3);
    expect(JSON.parse((await evaluate("linearised")).stdout)).toMatchObject(json(at("linearised/metrics.json")));
    expect(JSON.parse((await evaluate("linearised", "--members", "7")).stdout).members).toBe(7);
  });

  test("of groups: the linearisation by default, of layers and head; predict and a sweep use it", async () => {
    const flags = ["--laplace-groups", "layer.1,head", "--members", "5", "--temperature-sweep", "0.01,100"];
    const { code, stdout, stderr } = await run(finetune("groups", ...flags));
    expect(code).toBe(0);
    expect(stderr).toMatch(
      /laplace: diagonal over [\d,]+ parameters of head, layer\.1: [.\d]+ MB, and [.\d]+ MB for the J/,
    );
    // One pass for all temperatures, of 28 sentences one by one.
    expect(stderr.match(/^curvature 28\/28/gm)).toHaveLength(1);
    const record = json(at("groups/posterior/gaussian.json"));
    expect(record).toMatchObject({ structure: "diagonal", predictive: "linearised", draws: 5, lastLayer: false });
    expect(record.blocks.map(({ precision }: { precision: number }) => precision)).toContain(300);
    expect(record.blocks.at(-1)).toEqual({ slices: ["classifier.bias"], precision: 1 });
    const file = openSafetensors(at("groups/posterior/gaussian.safetensors"));
    expect(file.tensors.get("0.h")?.dtype).toBe("F32");
    file.close();
    const { temperatures, metrics } = JSON.parse(stdout);
    expect(new Set([...temperatures, metrics].map(({ nll }) => nll)).size).toBe(3);
    expect(JSON.parse((await evaluate("groups")).stdout)).toMatchObject(json(at("groups/metrics.json")));
    const [answer] = JSON.parse((await run(["predict", "--run", at("groups"), "--text", "a film", "--json"])).stdout);
    expect(answer.members).toBe(5);
    expect(answer.epistemic).toBeGreaterThan(0);
  });

  test("of Kronecker factors of groups: linear layers, the rest stays; mc draws them and looks at the draws", async () => {
    const flags = ["--laplace-groups", "layer.1,head", "--structure", "kronecker", "--members", "3"];
    const { code, stderr } = await run(finetune("factors", ...flags));
    expect(code).toBe(0);
    expect(stderr).toContain("laplace: 4 tensors of head, layer.1, of no linear layer, stay at the mode");
    expect(JSON.parse((await evaluate("factors")).stdout)).toMatchObject(json(at("factors/metrics.json")));
    const drawn = await run(finetune("drawn", ...flags, "--predictive", "mc", "--prior-precision", "encoder=1"));
    expect([drawn.code, drawn.stderr]).toEqual([0, expect.stringContaining("--predictive mc: draws of head, layer.1 do not keep")]); // biome-ignore format: one comparison
    expect(json(at("drawn/posterior/posterior.json")).covers).toContain("bert.encoder.layer.1.output.dense.weight");
    expect(JSON.parse((await evaluate("drawn")).stdout)).toMatchObject(json(at("drawn/metrics.json")));
  });
});

describe("refused with a sentence", () => {
  const cases: [string, string[], string][] = [
    [
      "an unknown group",
      ["--laplace-groups", "layer.1,haed"],
      '--laplace-groups layer.1,haed: unknown group "haed" (expected encoder, embeddings, pooler, head or layer.N). Did you mean head?',
    ],
    ["a layer that the model has not", ["--laplace-groups", "layer.7"], "no group is named layer.7 (the groups are"],
    [
      "a group twice",
      ["--laplace-groups", "head, head"],
      '--laplace-groups "head, head": group "head" stands twice. Name it once.',
    ],
    ...["", "head,", ",head", "head,,pooler", " "].map((groups): [string, string[], string] => [
      `an empty name of a group (${groups})`,
      ["--laplace-groups", groups],
      "an empty name of a group. Give, say, --laplace-groups layer.1,head.",
    ]),
    ["a group that is frozen", ["--laplace-groups", "layer.1", "--prior-precision", "encoder=inf"], "nothing learns"],
    [
      "a group without a prior",
      ["--laplace-groups", "layer.1,head", "--prior-precision", "layer.1=0"],
      "laplace: layer.1 has a flat prior, and the likelihood alone leaves directions free, along which the smallest eigenvalue",
    ],
    [
      "memory that does not fit, and what would",
      ["--structure", "full", "--laplace-memory", "0.02"],
      "laplace: full over 34 parameters takes 0.028 MB (at most 0.020 MB). What fits: kronecker (0.0073 MB), diagonal (0.00014 MB)",
    ],
    ["a temperature that overflows", ["--temperature-sweep", "1e300"], "--temperature-sweep 1e300: out of range"],
    ["one whose inverse does", ["--likelihood-temperature", "1e-320"], "--likelihood-temperature 1e-320: out of range"],
    ["no amount of memory", ["--laplace-memory", ""], '--laplace-memory "": not a number'],
    [
      "memory of groups",
      ["--laplace-groups", "encoder", "--structure", "kronecker", "--laplace-memory", "0.05"],
      "What fits: diagonal (0.018 MB)",
    ],
  ];
  test.each(cases)("%s, before anything is trained", async (_, flags, sentence) => {
    const { code, stderr } = await run(finetune("never", ...flags));
    expect([code, stderr]).toEqual([2, expect.stringContaining(sentence)]);
    expect(existsSync(at("never"))).toBe(false);
  });

  test("--resume with another curvature or another predictive: the flag; another limit of memory is taken", async () => {
    const own = ["--predictive", "probit", "--structure", "full"];
    for (const [flags, sentence] of [
      [
        ["--predictive", "linearised", "--members", "1", "--structure", "full"],
        '--predictive was "probit" and is "linearised"',
      ],
      [["--predictive", "probit", "--structure", "diagonal"], '--structure was "full" and is "diagonal"'],
      [
        ["--predictive", "probit", "--laplace-groups", "head"],
        '--structure was "full" and is "diagonal"; --laplace-groups was nothing and is "head"',
      ],
      [[...own, "--method", "sgld"], "--structure full: --method sgld does not use it"],
    ] as const) {
      const { code, stderr } = await run(finetune("full", ...flags, "--resume"));
      expect([code, stderr]).toEqual([2, expect.stringContaining(sentence)]);
      expect(stderr.trimEnd().split("\n")).toHaveLength(1);
    }
    const { code, stdout } = await run(finetune("full", ...own, "--laplace-memory", "50", "--resume"));
    expect([code, JSON.parse(stdout).metrics]).toEqual([0, json(at("full/metrics.json"))]);
  });

  test("a Λ that is not positive definite: its group, its smallest eigenvalue, what to do", async () => {
    const { code, stderr } = await run(finetune("singular", "--prior-precision", "head=1e-20"));
    expect(code).toBe(2);
    expect(stderr).toMatch(
      /laplace: the posterior precision of head is not positive definite \(smallest eigenvalue \S+, prior precision 1e-20\)\. Give head a higher prior precision\./,
    );
  });

  test("a Gaussian that is not the one written, or a record that is none", async () => {
    cpSync(at("full"), at("bad"), { recursive: true });
    const [record, numbers] = ["gaussian.json", "gaussian.safetensors"].map((name) => at(`bad/posterior/${name}`)) as [string, string]; // biome-ignore format: two paths
    const own = json(record);
    const says = async (sentence: string) => {
      const { code, stderr } = await evaluate("bad");
      expect([code, stderr]).toEqual([2, expect.stringContaining(sentence)]);
    };
    const change = (fields: object) => writeFileSync(record, JSON.stringify({ ...own, ...fields }));
    change({ blocks: [{ slices: ["classifier.wieght"], precision: 1 }] });
    await says("the model has no tensor classifier.wieght");
    change({ blocks: [{ slices: ["classifier.weight"], precision: 1 }] });
    await says("0.H has 1156 numbers (expected 1024, finite)");
    for (const fields of [
      { lastLayer: false },
      { blocks: [{ slices: ["classifier.bias"], precision: 1 }] },
      { blocks: [...own.blocks, ...own.blocks] },
    ]) {
      // biome-ignore format: three records
      change(fields);
      await says("no block of full");
    }
    const broken: [string, unknown[]][] = [
      ["draws", [2 ** 40]],
      ["blocks", [-5, 0, 1e31, "1", null].map((precision) => [{ ...own.blocks[0], precision }])],
      ["temperature", [0, -1, 1e10, "1"]],
      ["likelihoodTemperature", [0, 1e-10, 1e10, 5e-324]],
      ["sha256", ["", 1]],
      ["weights", [undefined, "", own.weights.slice(1)]],
    ];
    for (const [field, values] of broken) {
      for (const value of values) {
        change({ [field]: value });
        await says(`gaussian.json: ${field} is not what priorwork writes`);
      }
    }
    change({});
    const weights = at("bad/model.safetensors");
    const theirs = readFileSync(weights);
    const others = Buffer.from(theirs);
    others[others.length - 2]! ^= 1;
    writeFileSync(weights, others);
    await says("model.safetensors: not the θ that the run's Gaussian lies around (its SHA-256 differs");
    writeFileSync(weights, theirs);
    expect((await evaluate("bad")).code).toBe(0);
    const bytes = readFileSync(numbers);
    bytes[bytes.length - 1]! ^= 1;
    writeFileSync(numbers, bytes);
    await says("not what the run wrote");
    rmSync(record);
    await says("a run of --method laplace without its members");
  });
});
