/** @file `prior` and `finetune --prior` from end to end on a tiny random BERT: the file, its use, and what is refused. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test, vi } from "vitest";
import { main } from "../../src/cli/main.ts";
import { parseSafetensors, type TensorToWrite, toFloat32, writeSafetensors } from "../../src/model/safetensors.ts";
import { FisherCollector } from "../../src/train/index.ts";
import { temporaryFolder } from "../data/shared.ts";
import { CONFIG, onSharedDevice, run, tinyTensors, writeModel, writeRows } from "./harness.ts";

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
const json = (path: string) => JSON.parse(readFileSync(path, "utf8"));
const [model, bare, train, text] = [at("model"), at("bare"), at("train.tsv"), at("corpus.txt")];
const make = (out: string, ...more: string[]) =>
  run(["prior", "--model", model, "--text", text, "--out", at(out), "--batches", "6", "--batch", "4", ...more]);
const finetune = (out: string, ...more: string[]) =>
  run(["finetune", "--model", model, "--train", train, "--out", at(out), "--epochs", "2", "--batch", "8", "--lr", "1e-3", ...more]); // biome-ignore format: one line
const lines = (out: string) => readFileSync(at(`${out}/metrics.jsonl`), "utf8").trimEnd().split("\n").map((line) => JSON.parse(line)); // biome-ignore format: one line

function tensorsOf(path: string): { tensors: Map<string, Float32Array>; facts: Record<string, unknown> } {
  const { tensors, metadata } = parseSafetensors(readFileSync(path), path);
  return {
    tensors: new Map([...tensors].map(([name, tensor]) => [name, toFloat32(tensor)])),
    facts: JSON.parse(metadata.get("priorwork") ?? "{}"),
  };
}

/** A copy of a prior with something changed. */
function changed(from: string, to: string, change: (tensors: TensorToWrite[], facts: Record<string, unknown>) => void) {
  const { tensors, metadata } = parseSafetensors(readFileSync(at(from)), from);
  const list = [...tensors].map(([name, tensor]): TensorToWrite => ({ name, dtype: "F32", shape: tensor.shape, data: toFloat32(tensor).slice() })); // biome-ignore format: one line
  const facts = JSON.parse(metadata.get("priorwork") ?? "{}");
  change(list, facts);
  writeFileSync(at(to), writeSafetensors(list, { priorwork: JSON.stringify(facts) }));
  return at(to);
}

beforeAll(async () => {
  writeModel(model, { tensors: tinyTensors({ mlm: true }) });
  writeModel(bare);
  writeRows(train, 24, 1);
  writeFileSync(
    text,
    "the film is good .\nthe plot was fine .\n\na great film .\nnot a bad plot .\nthe film was awful .\n",
  );
  expect((await make("plain.prior")).code).toBe(0);
});

describe("prior", () => {
  test("writes a precision for every encoder parameter, and says what it is of", async () => {
    const { code, stdout, stderr } = await make("json.prior", "--json", "--size", "100", "--damping", "7");
    expect(code, stderr).toBe(0);
    const result = JSON.parse(stdout);
    expect(Object.keys(result)).toEqual("prior source rank N damping batches terms precision seconds".split(" "));
    expect(result).toMatchObject({ source: "masked tokens", rank: 0, N: 100, damping: 7, batches: 6, terms: 24 });
    expect(stderr).toContain("note: masked tokens alone");
    const { tensors, facts } = tensorsOf(at("json.prior"));
    const encoder = tinyTensors().filter(({ name }) => name.startsWith("bert."));
    expect([...tensors.keys()].sort()).toEqual(encoder.map(({ name }) => `precision.${name}`).sort());
    for (const { name, data } of encoder) expect(tensors.get(`precision.${name}`)?.length).toBe(data.length);
    const all = [...tensors.values()].flatMap((values) => [...values]).sort((a, b) => a - b);
    expect(result.precision).toEqual({ min: all[0], median: all[all.length >> 1], max: all.at(-1) });
    expect(all[0]).toBe(7);
    expect(all.at(-1)).toBeGreaterThan(70);
    // The pooler has no part in masked tokens.
    expect(new Set(tensors.get("precision.bert.pooler.dense.weight"))).toEqual(new Set([7]));
    expect(facts).toMatchObject({ kind: "prior", version: 1, rank: 0, N: 100, damping: 7, text: { size: 5 } });
  });

  test("the same command gives the same bytes; N scales what the text knew and leaves the start's precision", async () => {
    const bytes = (name: string) => readFileSync(at(name));
    await make("again.prior");
    expect(bytes("again.prior").equals(bytes("plain.prior"))).toBe(true);
    await make("twice.prior", "--size", "10");
    const [one, two] = [tensorsOf(at("plain.prior")).tensors, tensorsOf(at("twice.prior")).tensors];
    for (const [name, values] of one) {
      // The text has 5 sentences and initializer_range is .02.
      for (const [i, x] of values.entries())
        expect(Math.abs((two.get(name)?.[i] ?? 0) - 2500 - 2 * (x - 2500))).toBeLessThan(1e-3);
    }
  });

  test("of features, where there is no head, and with a rank", async () => {
    const { code, stderr } = await run(["prior", "--model", bare, "--text", text, "--out", at("features.prior"), "--readout", "mean", "--sigma", "0.5", "--rank", "2", "--batches", "8", "--batch", "5"]); // biome-ignore format: one line
    expect(code, stderr).toBe(0);
    const { tensors, facts } = tensorsOf(at("features.prior"));
    expect(facts).toMatchObject({ source: "the mean readout's vectors (σ 0.5)", rank: 2 });
    const words = "bert.embeddings.word_embeddings.weight";
    expect(tensors.get(`factors.${words}`)?.length).toBe(2 * (tensors.get(`precision.${words}`)?.length ?? 0));
    const asked = await run(["prior", "--model", bare, "--text", text, "--out", at("none.prior"), "--from", "masked"]);
    expect([asked.code, asked.stderr]).toEqual([2, expect.stringContaining("no masked-language-model head")]);
  });

  test("interrupted, wipes its bar, gives its memory back and writes nothing", async () => {
    const stop = new AbortController();
    const disposed = vi.spyOn(FisherCollector.prototype, "dispose");
    let written = "";
    let ticks = 0;
    const write = (piece: string) => {
      written += piece;
      if (piece.includes("Fisher information █")) stop.abort();
    };
    const io = { stdout: { write }, stderr: { write, isTTY: true, columns: 80 }, env: { PRIORWORK_ADAPTER: process.env.PRIORWORK_ADAPTER, PRIORWORK_TUNED: "0" }, signal: stop.signal, now: () => 20_000 * ticks++ }; // biome-ignore format: one object
    const command = ["prior", "--model", model, "--text", text, "--out", at("cut.prior"), "--batches", "6"];
    expect(await onSharedDevice(io, () => main(command, io))).toBe(130);
    const last = written.split("\r\u001b[K").at(-1);
    expect(last).toMatch(/^interrupted \(Fisher information, \d of 6 batches\)\. Nothing was written\.\n$/);
    expect(disposed).toHaveBeenCalledTimes(1);
    expect(existsSync(at("cut.prior"))).toBe(false);
    disposed.mockRestore();
  });

  test.each([
    ["an --out that exists", ["--out", "plain.prior"], /this file exists. Add --overwrite/],
    ["the weights' name", ["--out", "model.safetensors"], /the name of a model's weights/],
    [
      "a readout of masked tokens",
      ["--out", "x", "--from", "masked", "--readout", "mean"],
      /masked tokens have no readout/,
    ],
    ["σ = 0", ["--out", "x", "--sigma", "0"], /--sigma 0: out of range/],
    ["an unknown source", ["--out", "x", "--from", "maskd"], /Did you mean masked/],
  ] as const)("refuses %s", async (_, [, out, ...more], message) => {
    // biome-ignore format: a table
    const { code, stderr } = await make(out as string, ...more);
    expect(code).toBe(2);
    expect(stderr.split("\n").filter((line) => !/^(adapter|note|warning):/.test(line)).join("\n")).toMatch(message); // biome-ignore format: one thought
  });
});

describe("finetune --mixout", () => {
  test("is a prior of the encoder in place of the default's, and stays in run.json", async () => {
    const { code, stderr } = await finetune("mixout", "--mixout", "0.5", "--lr", "1e-2");
    expect(code, stderr).toBe(0);
    expect(stderr).not.toMatch(/^warning/m);
    const record = json(at("mixout/run.json"));
    expect(record.objective).toMatchObject({ mixout: 0.5, precision: "encoder=0,head=1" });
    // The same, but for the mask.
    await finetune("unmixed", "--prior-precision", "encoder=0", "--lr", "1e-2");
    expect(lines("mixout").at(-1).distance).not.toBe(lines("unmixed").at(-1).distance);
    expect(lines("mixout")[0].nll).toBe(lines("unmixed")[0].nll);
    const both = await finetune("both", "--mixout", "0.5", "--prior-precision", "encoder=3");
    expect(both.stderr).toMatch(/^warning: mixout of 0.5 and the encoder's prior both pull/m);
  });

  test.each([
    ["1", "map", /--mixout 1: out of range/],
    ["0.5", "scratch", /has no pretrained values to swap for/],
    ["0.5", "frozen", /holds the encoder/],
  ])("refuses %s with --method %s", async (p, method, message) => {
    const { code, stderr } = await finetune("none", "--mixout", p, "--method", method);
    expect([code, stderr]).toEqual([2, expect.stringMatching(message)]);
  });
});

describe("finetune --prior FILE", () => {
  test("is a MAP with these precisions, says so in run.json, and --prior-precision is a factor on them", async () => {
    const { code, stderr } = await finetune("map", "--prior", at("plain.prior"), "--json");
    expect(code, stderr).toBe(0);
    const record = json(at("map/run.json"));
    expect(record.objective).toMatchObject({
      precision: "encoder=1,head=1",
      prior: { source: "masked tokens", rank: 0, N: 5, damping: 2500, sha256: expect.stringMatching(/^[0-9a-f]{64}$/) },
    });
    expect(record.objective.formula).toContain("prior file");
    expect(record.lineage.at(-1).prior).toMatchObject({ family: at("plain.prior"), file: { source: "masked tokens" } });
    const log = lines("map");
    expect(log[0].priorShare).toBeGreaterThanOrEqual(0);
    expect(log.at(-1).logPrior).toBeLessThan(0);
    expect(log.at(-1).priorShare).toBeGreaterThan(0);
    // Five sentences add little to a damping of 2,500, so an isotropic prior of that is close; factors move it.
    await finetune("weak", "--prior", at("plain.prior"), "--prior-precision", "encoder=0.01");
    await finetune("isotropic", "--prior-precision", "encoder=2500");
    const distance = (out: string) => lines(out).at(-1).distance;
    expect(distance("map")).toBeLessThan(distance("weak"));
    expect(lines("map").at(-1).priorShare).toBeGreaterThan(2 * lines("weak").at(-1).priorShare);
    expect(Math.abs(distance("map") / distance("isotropic") - 1)).toBeLessThan(0.01);
  });

  test("equal precisions for all are the isotropic Gaussian", async () => {
    changed("plain.prior", "flat.prior", (tensors) => {
      for (const { data } of tensors) data.fill(50);
    });
    await finetune("flat", "--prior", at("flat.prior"), "--prior-precision", "encoder=2");
    await finetune("hundred", "--prior-precision", "encoder=100");
    for (const [i, { logPrior, distance, nll }] of lines("flat").entries()) {
      const other = lines("hundred")[i];
      expect(Math.abs(logPrior - other.logPrior)).toBeLessThan(1e-3 * Math.abs(other.logPrior) + 1e-6);
      expect(Math.abs(distance - other.distance)).toBeLessThan(1e-3 * other.distance + 1e-9);
      expect(Math.abs(nll - other.nll)).toBeLessThan(1e-4);
    }
  });

  test("resumes, and refuses to where the file is another", async () => {
    changed("plain.prior", "moving.prior", () => {});
    const flags = ["--prior", at("moving.prior")];
    expect((await finetune("resumed", ...flags)).code).toBe(0);
    expect((await finetune("resumed", ...flags, "--resume")).code).toBe(0);
    changed("plain.prior", "moving.prior", (tensors) => tensors[0]?.data.fill(9));
    const { code, stderr } = await finetune("resumed", ...flags, "--resume");
    expect([code, stderr]).toEqual([
      2,
      expect.stringMatching(/--prior .*moving.prior has changed since the run began/),
    ]);
    const other = await finetune("resumed", "--resume");
    expect([other.code, other.stderr]).toEqual([2, expect.stringContaining("--prior was")]);
  });

  test("low rank, Laplace and Student-t; a sampler and an anchored ensemble under a file's prior", async () => {
    await run(["prior", "--model", model, "--text", text, "--out", at("rank.prior"), "--rank", "2", "--batches", "5", "--batch", "5"]); // biome-ignore format: one line
    for (const [out, ...flags] of [
      ["rank", "--prior", at("rank.prior")],
      ["laplace", "--prior", "laplace", "--prior-precision", "encoder=1000"],
      ["student", "--prior", "student-t:3", "--prior-precision", "encoder=1000,head=0"],
      ["anchored", "--prior", at("rank.prior"), "--method", "ensemble", "--anchored", "head,encoder", "--members", "2"],
      ["sgld", "--prior", at("plain.prior"), "--method", "sgld", "--burn-in", "2", "--thin", "1", "--members", "2", "--chains", "1", "--sample", "head,encoder", "--sample-lr", "1e-6"], // biome-ignore format: one line
    ]) {
      const { code, stderr } = await finetune(out as string, ...flags);
      expect(code, stderr).toBe(0);
      const last = lines(out as string).at(-1);
      expect(last.logPrior).toBeLessThan(0);
      expect(last.priorShare).toBeGreaterThan(0);
    }
    expect(json(at("student/run.json")).objective.formula).toContain("ν = 3");
  });

  test("is refused where it is not of this model, damaged, or asked of a method that has no prior", async () => {
    const grown = at("grown");
    const tensors = tinyTensors().map((t) => (t.name === "bert.embeddings.position_embeddings.weight" ? { ...t, shape: [25, 16], data: new Float32Array(400) } : t)); // biome-ignore format: one line
    writeModel(grown, { config: { ...CONFIG, max_position_embeddings: 25 }, tensors });
    const word = (tensors: TensorToWrite[]) => tensors.find(({ name }) => name.endsWith("word_embeddings.weight"));
    // Two columns that are one, so large that I + UᵀD⁻¹U has no I left in float64.
    const alike = (all: TensorToWrite[], facts: Record<string, unknown>) => {
      Object.assign(facts, { rank: 2 });
      for (const { name, shape, data } of [...all])
        all.push({ name: name.replace("precision", "factors"), dtype: "F32", shape: [2, ...shape], data: new Float32Array(2 * data.length).fill(1e10) }); // biome-ignore format: one tensor
    };
    const bad = (name: string, change: Parameters<typeof changed>[2]) => [
      "--prior",
      changed("plain.prior", name, change),
    ];
    const cases: [string[], RegExp][] = [
      [["--prior", at("plain.prior"), "--model", grown], /another architecture: tensor "precision.bert.embeddings.position_embeddings.weight" has shape \[24,16\] \(expected \[25,16\]\)/],
      [["--prior", at("plain.prior"), "--model", bare], /its mean is another model/],
      [bad("a.prior", (all) => all.splice(2, 1)), /tensor "precision[^"]*" is missing/],
      [bad("b.prior", (all) => all.push({ name: "precision.bert.encoder.layer.2.output.dense.bias", dtype: "F32", shape: [1], data: Float32Array.of(1) })), /layer.2[^"]*" is one that the model has not/],
      [bad("c.prior", (all) => word(all)?.data.set([-1], 3)), /c.prior: precision of bert.embeddings.word_embeddings.weight is -1 at position 3/],
      [bad("d.prior", (all) => word(all)?.data.set([Number.NaN], 5)), /d.prior: precision of bert.embeddings.word_embeddings.weight is NaN at position 5/],
      [bad("e.prior", (_, facts) => Object.assign(facts, { rank: -1 })), /its metadata lack what a prior says/],
      [bad("n.prior", (_, facts) => Object.assign(facts, { N: -5 })), /its metadata lack what a prior says/],
      [bad("o.prior", (_, facts) => Object.assign(facts, { damping: -1 })), /its metadata lack what a prior says/],
      [bad("f.prior", (_, facts) => Object.assign(facts, { version: 2 })), /not a prior of version 1/],
      [bad("g.prior", (all) => word(all)?.data.fill(1e20)).concat("--prior-precision", "encoder=1e20"), /g.prior: strength 10{20} times the precision of bert.embeddings.word_embeddings.weight, 1.00e\+20, is beyond f32/],
      [bad("h.prior", alike), /h.prior: its diagonal and factors are not positive definite/],
      [["--prior", join(model, "model.safetensors")], /not a prior of priorwork/],
      [["--prior", at("none-there.prior")], /none-there.prior/],
      [["--prior", at("plain.prior"), "--method", "mle"], /--method mle has no prior/],
      [["--prior", at("plain.prior"), "--method", "frozen"], /--method frozen holds all that the file is about/],
      [["--prior", "student-t:0"], /student-t:0: ν is out of range/],
    ]; // biome-ignore format: a table
    const half = readFileSync(at("plain.prior"));
    writeFileSync(at("half.prior"), half.subarray(0, half.length - 40));
    cases.push([["--prior", at("half.prior")], /half.prior: truncated/]);
    for (const [i, [flags, message]] of cases.entries()) {
      const { code, stderr } = await finetune(`refused${i}`, ...flags);
      expect(code, stderr).toBe(/none-there/.test(flags[1] as string) ? 4 : 2);
      const failure = stderr.trimEnd().split("\n").filter((line) => !/^(adapter|note|warning):/.test(line)); // biome-ignore format: one thought
      expect(failure).toHaveLength(1);
      expect(failure[0]).toMatch(message);
    }
  });
});
