/**
 * @file `evaluate` beyond the metrics that a run keeps: the ECE's interval, risk against coverage, other domains,
 * temperature, charts. What it says is worked out again here from `predict`'s logits and entropies.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { temporaryFolder } from "../data/shared.ts";
import { run, writeModel, writeRows } from "./harness.ts";
import { elements, textsIn } from "./svg.ts";

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
/** A name that a file may have, and that must stay text in a chart. */
const DATA = `d<b>&'"\u202e.tsv`;

beforeAll(async () => {
  writeModel(at("model"));
  writeRows(at("train.tsv"), 24, 1);
  writeRows(at(DATA), 21, 2);
  writeRows(at("kept.tsv"), 16, 3);
  writeFileSync(at("ood.tsv"), `text\n${["a a a", "> <", "s . s", "not very"].join("\n")}\n`);
  const tune = ["finetune", "--model", at("model"), "--train", at("train.tsv"), "--epochs", "4", "--head-lr", "1e-2"];
  const made = await run([...tune, "--method", "dropout", "--dropout", "0.2", "--members", "6", "--out", at("run")]);
  expect(made.code, made.stderr).toBe(0);
});

const evaluate = (...more: string[]) => run(["evaluate", "--run", at("run"), "--data", at(DATA), ...more]);

interface Answer {
  logits: number[];
  epistemic: number;
  aleatoric: number;
}
const predict = async (file: string): Promise<Answer[]> => {
  const { code, stdout, stderr } = await run(["predict", "--run", at("run"), "--data", at(file), "--json"]);
  expect(code, stderr).toBe(0);
  return JSON.parse(stdout);
};

const BASE = "task n members accuracy nll brier ece eceFloor eceInterval eceFloor95 aurc";

describe("evaluate", () => {
  test("a run by members: interval, risk, other domain, temperature, charts", async () => {
    const asked = ["--ood", at("ood.tsv"), "--temperature-from", at("kept.tsv"), "--charts", at("charts"), "--json"];
    const { code, stdout, stderr } = await evaluate(...asked);
    expect(code, stderr).toBe(0);
    const answer = JSON.parse(stdout);
    expect(Object.keys(answer)).toEqual([...BASE.split(" "), "oodAuroc", "temperature", "scaled"]);
    expect(Object.keys(answer.scaled)).toEqual(
      "accuracy nll brier ece eceFloor eceInterval eceFloor95 aurc".split(" "),
    );
    expect(answer).toMatchObject({ task: "classify", n: 21, members: 6 });
    const [low, high] = answer.eceInterval;
    expect(0 <= low && low <= high && high <= 1).toBe(true);

    const [own, foreign] = [await predict(DATA), await predict("ood.tsv")];
    const labels = readFileSync(at(DATA), "utf8")
      .trimEnd()
      .split("\n")
      .slice(1)
      .map((line) => (line.endsWith("\tpos") ? 1 : 0)); // neg, pos
    // NLL at the temperature, from log p̄.
    const T = answer.temperature;
    let nll = 0;
    for (const [i, { logits }] of own.entries()) {
      const lse = Math.log(logits.reduce((sum, z) => sum + Math.exp(z / T), 0));
      nll += (lse - (logits[labels[i] ?? 0] ?? 0) / T) / own.length;
    }
    expect(answer.scaled.nll).toBeCloseTo(nll, 9);
    expect(answer.scaled.accuracy).toBe(answer.accuracy);
    // The share of pairs in which the foreign text is the more uncertain.
    const pairs = (of: (a: Answer) => number) => {
      let won = 0;
      for (const a of foreign) for (const b of own) won += of(a) > of(b) ? 1 : of(a) === of(b) ? 0.5 : 0;
      return won / (foreign.length * own.length);
    };
    expect(answer.oodAuroc.epistemic).toBeCloseTo(
      pairs(({ epistemic }) => epistemic),
      9,
    );
    expect(answer.oodAuroc.total).toBeCloseTo(
      pairs((a) => a.epistemic + a.aleatoric),
      9,
    );
    // Errors among the k surest, averaged over k.
    const sure = own
      .map(({ logits: [neg = 0, pos = 0] }, i) => ({ c: Math.abs(pos - neg), wrong: pos > neg !== (labels[i] === 1) }))
      .sort((a, b) => b.c - a.c);
    let [wrong, risk] = [0, 0];
    for (const [k, text] of sure.entries()) {
      wrong += text.wrong ? 1 : 0;
      risk += wrong / (k + 1) / own.length;
    }
    expect(answer.aurc).toBeCloseTo(risk, 9);

    const charts = ["coverage.svg", "reliability-scaled.svg", "reliability.svg", "uncertainty.svg"];
    expect(readdirSync(at("charts")).sort()).toEqual(charts);
    expect(stderr).toContain(`note: charts in ${at("charts")}: reliability.svg, coverage.svg, `);
    for (const chart of charts) {
      const svg = readFileSync(join(at("charts"), chart), "utf8");
      expect(elements(svg).length).toBeGreaterThan(20);
      expect(textsIn(svg).join("\n")).toMatch(/^n 21( and 4)?, members 6/m);
      expect(svg).not.toContain("<b>");
      expect(svg).not.toContain("\u202e");
    }
    const before = readFileSync(at("charts/coverage.svg"), "utf8");
    writeFileSync(at("charts/coverage.svg"), "mine");
    const again = await evaluate("--charts", at("charts"));
    expect([again.code, again.stdout]).toEqual([2, ""]);
    expect(again.stderr).toMatch(/^--charts \S+: reliability\.svg exists\. Add --overwrite to replace it/);
    expect(readFileSync(at("charts/coverage.svg"), "utf8")).toBe("mine");
    const replaced = await evaluate("--charts", at("charts"), "--overwrite");
    expect(replaced.code, replaced.stderr).toBe(0);
    // The same seed, device and input: the same chart, whatever was asked for beside it.
    expect(readFileSync(at("charts/coverage.svg"), "utf8")).toBe(before);
  });

  test("one member: its keys, words for people, and an epistemic AUROC of one half, said aloud", async () => {
    const asked = ["--members", "1", "--ood", at("ood.tsv"), "--temperature-from"];
    // Each text with either label: no temperature but the flattest.
    writeFileSync(at("chance.tsv"), "sentence\tlabel\nfilm\tpos\nfilm\tneg\n");
    const { code, stdout, stderr } = await evaluate(...asked, at("chance.tsv"));
    expect(code, stderr).toBe(0);
    expect(stderr).toContain("note: one member: no epistemic uncertainty");
    expect(stderr).toMatch(/^warning: --temperature-from \S+: its logits are no better than chance, so that T = 100 /m);
    expect(stdout).toMatch(
      /^T = 100 .*\nECE, bootstrap interval \(nominally 95 %\): .* a calibrated model stays below 0\.\d+ in 95 % of label sets\nat T: /m,
    );
    expect(stdout).toMatch(/: 0\.5 by epistemic, [\d.]+ by total uncertainty$/m);
    const plain = await evaluate("--members", "1", "--json");
    expect(Object.keys(JSON.parse(plain.stdout))).toEqual(BASE.split(" "));
  });

  test("warns of a temperature from rows that were trained on, or that are reported", async () => {
    const trained = await evaluate("--temperature-from", at("train.tsv"), "--members", "1");
    expect(trained.stderr).toContain("the run was trained on these rows");
    const rows = readFileSync(at(DATA), "utf8").split("\n");
    writeFileSync(at("some.tsv"), `${rows.slice(0, 4).join("\n")}\n`);
    const shared = await evaluate("--temperature-from", at("some.tsv"), "--members", "1");
    expect(shared.stderr).toMatch(/^warning: --temperature-from \S+: \d+ of 21 rows of --data are among its rows$/m);
  });

  test.each<[string, number, string[], RegExp]>([
    ["the rows that are reported", 2, ["--temperature-from", DATA], /holds every row of --data, so that a temperature/],
    ["no such file", 4, ["--temperature-from", "nowhere.tsv"], /nowhere\.tsv/],
    ["rows without labels", 2, ["--temperature-from", "ood.tsv"], /ood\.tsv: no label column/],
    ["no such other domain", 4, ["--ood", "nowhere.tsv"], /nowhere\.tsv/],
    ["a file for a folder", 2, ["--charts", "train.tsv"], /: a file \(expected a folder\)/],
    [
      "a folder in a file",
      4,
      ["--charts", "train.tsv/a/charts"],
      /charts: a part of this path is a file, not a folder\. Check/,
    ],
    ["an empty name", 2, ["--charts", ""], /^--charts "": empty \(expected DIR\)/],
    ["nothing to replace", 2, ["--overwrite"], /^--overwrite: nothing to replace \(found no --charts\)/],
  ])("refuses %s: one line, nothing written", async (_, expected, [flag = "", name], message) => {
    const before = readdirSync(folder).sort();
    const { code, stdout, stderr } = await evaluate(flag, ...(name === undefined ? [] : [name && at(name)]));
    expect([code, stdout]).toEqual([expected, ""]);
    expect(stderr.trimEnd()).toMatch(message);
    expect(stderr.trimEnd()).not.toContain("\n");
    expect(readdirSync(folder).sort()).toEqual(before);
  });

  test("makes the folder of the charts, and those that it lies in", async () => {
    expect((await evaluate("--members", "1", "--charts", at("new/deep/charts"))).code).toBe(0);
    expect(readdirSync(at("new/deep/charts")).sort()).toEqual(["coverage.svg", "reliability.svg"]);
  });

  test("an existing folder keeps what else is in it", async () => {
    mkdirSync(at("notes"));
    writeFileSync(at("notes/mine.txt"), "mine");
    expect((await evaluate("--members", "1", "--charts", at("notes"))).code).toBe(0);
    expect(readdirSync(at("notes")).sort()).toEqual(["coverage.svg", "mine.txt", "reliability.svg"]);
  });
});
