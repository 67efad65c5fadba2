/**
 * @file What finetune says at its end of a run with a Gaussian over a part of a prior's group: what the numbers of the
 * prior's strength are of, how long the posterior took beside training, and which flag sets a limit.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { strengthText } from "../../src/cli/prior-strength.ts";
import { temporaryFolder } from "../data/shared.ts";
import { run, writeModel, writeRows } from "./harness.ts";

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
const json = (path: string) => JSON.parse(readFileSync(path, "utf8"));
const finetune = (out: string, ...more: string[]) =>
  run([
    ...["finetune", "--model", at("model"), "--train", at("train.tsv"), "--dev", at("dev.tsv"), "--out", at(out)],
    ...["--epochs", "1", "--batch", "8", "--seed", "3", "--lr", "1e-3", ...more],
  ]);

beforeAll(() => {
  writeModel(at("model"));
  writeRows(at("train.tsv"), 28, 1);
  writeRows(at("dev.tsv"), 20, 2);
});

describe("a run with a Gaussian", () => {
  test("of one layer: its strength is the layer's, under the prior of the encoder; the posterior's time is its own", async () => {
    const { code, stdout, stderr } = await finetune("layer", "--method", "laplace", "--laplace-groups", "layer.1");
    expect(code, stderr).toBe(0);
    // 2,224: three and one projections of 16 · 16 + 16, two of 16 · 32 and their biases, two norms of 32.
    expect(stdout).toMatch(
      /^layer\.1 \(prior of encoder\), prior precision 300: the data determine [\d.]+ of 2,224 parameters and moved the posterior [\d.]+ nats from the prior; θ lies [\d.]+ from the prior mean, /m,
    );
    expect(stdout).toMatch(/^4 steps in [^,]+, posterior in [^,]+, [\d,]+ trainable parameters$/m);
    const record = json(at("layer/run.json"));
    expect(record.priorStrength).toMatchObject([{ group: "encoder", precision: 300, size: 2224 }]);
    expect(record.posteriorSeconds).toBeGreaterThan(0);
    // The card says what of the run the lines of Python leave out.
    expect(readFileSync(at("layer/README.md"), "utf8")).toContain("the Gaussian in posterior/");
  });

  test("of a part of the head, and of all of it", async () => {
    const mlp = await finetune("mlp", "--method", "laplace", "--head", "mlp:3");
    expect(mlp.stdout).toMatch(/^the last layer \(prior of head\), prior precision 1: .* of 8 parameters /m);
    const { stdout } = await finetune("head", "--method", "laplace");
    expect(stdout).toMatch(/^head, prior precision 1: the data determine [\d.]+ of 34 parameters /m);
  });

  test("has posteriorSeconds in its JSON, where a run without a phase has none", async () => {
    const { stdout } = await finetune("ensemble", "--method", "ensemble", "--members", "2", "--json");
    const answer = JSON.parse(stdout);
    expect(Object.keys(answer)).toEqual("run method steps seconds posteriorSeconds trainableParameters before metrics".split(" ")); // biome-ignore format: one comparison
    expect(answer.posteriorSeconds).toBe(json(at("ensemble/run.json")).posteriorSeconds);
    const map = await finetune("map");
    expect(map.stdout).toMatch(/^4 steps in [^,]+, [\d,]+ trainable parameters$/m);
    expect(json(at("map/run.json"))).not.toHaveProperty("posteriorSeconds");
  });

  test("that does not fit names the flag that sets the limit", async () => {
    const groups = ["--laplace-groups", "encoder", "--structure", "kronecker", "--laplace-memory", "0.05"];
    const { code, stderr } = await finetune("never", "--method", "laplace", ...groups);
    expect(code).toBe(2);
    expect(stderr).toMatch(
      /^laplace: kronecker over 4,592 parameters takes [\d.]+ MB \(at most 0\.050 MB\)\. What fits: diagonal \(0\.018 MB\); or raise the limit\. --laplace-memory MB sets it\.$/m,
    );
  });
});

test("a training that had a prior shows its share, one without a prior shows none", async () => {
  expect((await finetune("flat", "--method", "mle")).stderr).not.toContain("prior share");
  expect((await finetune("held", "--method", "map")).stderr).toMatch(/^training 4\/4 .*nll [\d.]+ {2}prior share [\d.]+/m);
}); // biome-ignore format: one comparison a line

test("where θ lies is said of the precision that would hold it there", () => {
  const line = (fields: object) =>
    strengthText([{ group: "head", precision: 2, size: 1300, determined: 11.23, distance: 0.9, kl: 8.4, ...fields }], ["head"]); // biome-ignore format: one line
  const begin =
    "head, prior precision 2: the data determine 11.23 of 1,300 parameters and moved the posterior 8.4 nats from the prior; ";
  expect(line({})).toBe(`${begin}θ is the prior mean`);
  expect(line({ effectivePrecision: 2.01 })).toBe(`${begin}θ lies 0.9 from the prior mean, where this prior holds it`);
  expect(line({ effectivePrecision: 5 })).toBe(
    `${begin}θ lies 0.9 from the prior mean, where a prior precision of 5 would hold it (more than 2: training ended before the maximum, or a weight decay held θ too)`,
  );
  expect(line({ effectivePrecision: 0.5 })).toBe(
    `${begin}θ lies 0.9 from the prior mean, where a prior precision of 0.5 would hold it (less than 2: θ is beyond the maximum)`,
  );
  expect(line({ effectivePrecision: -1 })).toBe(
    `${begin}θ lies 0.9 from the prior mean, where the likelihood itself pulls it back`,
  );
});
