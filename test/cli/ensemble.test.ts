/** @file Runs whose members are trained: seeds alone, anchored, and what an interruption leaves. */
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { Layout, type Theta } from "../../src/autograd/index.ts";
import { PosteriorWriter, readPosterior, storedDraws } from "../../src/cli/posterior-folder.ts";
import { parseSafetensors } from "../../src/model/safetensors.ts";
import { temporaryFolder } from "../data/shared.ts";
import { run, writeModel, writeRows } from "./harness.ts";

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
const json = (path: string) => JSON.parse(readFileSync(path, "utf8"));
const [model, train, dev] = [at("model"), at("train.tsv"), at("dev.tsv")];
const finetune = (out: string, ...more: string[]) => [
  ...["finetune", "--model", model, "--train", train, "--dev", dev, "--out", at(out), "--epochs", "1", "--batch", "8"],
  ...["--seed", "3", "--lr", "1e-3", "--dropout", "0.1", "--json", ...more],
];
const member = (out: string, s: number) => at(`${out}/posterior/member-00${s}.safetensors`);
/** Tensors by name, as bytes. */
const tensors = (path: string) =>
  new Map([...parseSafetensors(readFileSync(path), path).tensors].map(([name, { bytes }]) => [name, bytes]));

beforeAll(async () => {
  writeModel(model);
  writeRows(train, 28, 1);
  writeRows(dev, 20, 2);
  expect((await run(finetune("plain", "--method", "ensemble", "--members", "3"))).code).toBe(0);
});

describe("an ensemble", () => {
  test("holds the run itself, and the runs with the seeds after its own", async () => {
    expect(readdirSync(at("plain/posterior")).sort()).toEqual([0, 1, 2].map((s) => `member-00${s}.safetensors`).concat("posterior.json")); // biome-ignore format: one comparison
    expect(tensors(member("plain", 0))).toEqual(tensors(at("plain/model.safetensors")));
    expect((await run(finetune("alone", "--method", "map", "--seed", "4"))).code).toBe(0);
    expect(tensors(member("plain", 1))).toEqual(tensors(at("alone/model.safetensors")));
    expect(tensors(member("plain", 2))).not.toEqual(tensors(member("plain", 1)));
  });

  test("predicts with all of them, in evaluate as at its end", async () => {
    const metrics = json(at("plain/metrics.json"));
    expect(metrics.members).toBe(3);
    const { stdout } = await run(["evaluate", "--run", at("plain"), "--data", dev, "--json"]);
    expect(JSON.parse(stdout)).toMatchObject(metrics);
    expect(readFileSync(at("plain/README.md"), "utf8")).toContain(
      "by the average over 3 members, the θ in posterior/.",
    );
  });

  test("says of one text when all members have answered, and not before", async () => {
    const { stderr } = await run(["predict", "--run", at("plain"), "--text", "a film"]);
    expect(stderr.match(/^predicting .*/gm)?.map((line) => line.split(" ")[1])).toEqual(["0/1", "0/1", "1/1"]);
  });

  test("interrupted, keeps the members that are finished; --resume trains the others and ends as if nothing had been", async () => {
    const command = finetune("cut", "--method", "ensemble", "--members", "3");
    let seen = false;
    const cut = await run(command, {
      onStderr: (text, interrupt) => {
        if (!text.includes("member 3 of 3") || seen) return;
        seen = true;
        interrupt();
      },
    });
    expect([seen, cut.code]).toEqual([true, 130]);
    expect(cut.stderr).toContain("2 of 3 members are kept. Run the same command with --resume to go on.");
    expect(readdirSync(at("cut/posterior")).sort()).toEqual(["journal.json", "member-000.safetensors", "member-001.safetensors"]); // biome-ignore format: one comparison
    const written = statSync(member("cut", 1)).mtimeMs;
    const resumed = await run([...command, "--resume"]);
    expect([resumed.code, resumed.stderr]).toEqual([0, expect.stringContaining("2 of 3 members are there already")]);
    expect(statSync(member("cut", 1)).mtimeMs).toBe(written);
    for (const name of readdirSync(at("plain/posterior"))) {
      expect(readFileSync(at(`cut/posterior/${name}`)), name).toEqual(readFileSync(at(`plain/posterior/${name}`)));
    }
    expect(readdirSync(at("cut/posterior"))).not.toContain("journal.json");
  });

  test.each(["journal.json", "posterior.json"])(
    "whose %s is no JSON any more is trained anew by --resume, aloud",
    async (file) => {
      const name = `torn-${file}`;
      cpSync(at("plain"), at(name), { recursive: true });
      if (file === "journal.json") {
        rmSync(at(`${name}/posterior/posterior.json`));
        const run = json(at(`${name}/run.json`));
        writeFileSync(at(`${name}/run.json`), JSON.stringify({ ...run, finished: false }));
      }
      writeFileSync(at(`${name}/posterior/${file}`), "{");
      const { code, stderr } = await run([...finetune(name, "--method", "ensemble", "--members", "3"), "--resume"]);
      expect(code, stderr).toBe(0);
      expect(stderr).toContain(
        `note: ${at(name)}/posterior/${file}: not what priorwork writes: no member that it names is kept`,
      );
      expect(stderr).not.toContain("are there already");
      for (const member of readdirSync(at("plain/posterior")))
        expect(readFileSync(at(`${name}/posterior/${member}`)), member).toEqual(
          readFileSync(at(`plain/posterior/${member}`)),
        );
      expect(json(at(`${name}/run.json`)).finished).toBe(true);
    },
  );

  test("anchored, holds members of perturbed objectives beside the mode, which is MAP's; destroyed features are warned of", async () => {
    const flags = ["--method", "ensemble", "--anchored", "--members", "2"];
    const { code, stderr } = await run(finetune("anchored", ...flags));
    expect([code, stderr.includes("do not keep the features")]).toEqual([0, false]);
    expect(json(at("anchored/posterior/posterior.json")).settings).toEqual({ members: 2, seed: 3, anchored: ["head"] });
    expect(tensors(at("anchored/model.safetensors"))).toEqual(tensors(at("plain/model.safetensors")));
    // Not even the first is the mode; the encoder moves too, since the examples' weights differ.
    for (const s of [0, 1]) expect(tensors(member("anchored", s))).not.toEqual(tensors(member("plain", s)));

    const wide = ["--anchored", "encoder,head", "--prior-precision", "encoder=1,head=1", "--members", "1"];
    const destroyed = await run(finetune("wide", "--method", "ensemble", ...wide));
    expect(destroyed.code).toBe(0);
    expect(destroyed.stderr).toMatch(/warning: --anchored: draws of encoder, head do not keep the features/);
    expect(destroyed.stderr).toMatch(
      /no believable prior\. Anchor the head alone .--anchored head., or raise --prior-precision\.$/m,
    );
  });
});

test("a member that leaves the finite numbers is named, and the run's mode stays", async () => {
  const anchors = ["--anchored", "--prior-precision", "encoder=1,head=1e-70", "--members", "2"];
  const { code, stderr } = await run(finetune("torn", "--method", "ensemble", ...anchors));
  expect(code).toBe(2);
  expect(stderr.trimEnd().split("\n").at(-1)).toMatch(
    /^member 1 of 2: step \d+: .*\)\. The step .* member 1 of 2\. The run's mode is unchanged\. Start anew with a lower --lr and --head-lr, or with --clip 1\.$/,
  );
});

describe("a rank-one ensemble", () => {
  const command = (out: string, ...more: string[]) => finetune(out, "--method", "rank-one", "--members", "3", ...more);
  const evaluated = async (out: string) =>
    JSON.parse((await run(["evaluate", "--run", at(out), "--data", dev, "--json"])).stdout);

  test("holds the shared weights in the model, each member's own in posterior/, and predicts with all", async () => {
    const { code, stdout } = await run(command("one"));
    expect(code).toBe(0);
    // Three members of a head of 16 inputs and 2 outputs.
    const plain = JSON.parse((await run(finetune("none", "--epochs", "0"))).stdout);
    expect(JSON.parse(stdout).trainableParameters - plain.trainableParameters).toBe(3 * (16 + 2));
    expect([...tensors(at("one/model.safetensors")).keys()]).toEqual([...tensors(at("none/model.safetensors")).keys()]);
    const record = json(at("one/posterior/posterior.json"));
    expect(record.covers).toEqual(["classifier.weight", "classifier.bias"]);
    expect(record.settings).toEqual({ layers: "head", precision: 100, members: 3, seed: 3 });
    expect(tensors(member("one", 0))).not.toEqual(tensors(member("one", 1)));
    const metrics = json(at("one/metrics.json"));
    expect([metrics.members, JSON.parse(stdout).before.members]).toEqual([3, 3]);
    expect(await evaluated("one")).toMatchObject(metrics);
  });

  test("interrupted while it trains and resumed, is what it would have been", async () => {
    let seen = false;
    const cut = await run(command("one-cut"), {
      onStderr: (text, interrupt) => {
        if (!/training.* 1\/4/.test(text) || seen) return;
        seen = true;
        interrupt();
      },
    });
    expect([seen, cut.code, cut.stderr]).toEqual([true, 130, expect.stringContaining("interrupted after step")]);
    expect((await run([...command("one-cut"), "--resume"])).code).toBe(0);
    for (const file of ["model.safetensors", "posterior/member-002.safetensors"])
      expect(readFileSync(at(`one-cut/${file}`)), file).toEqual(readFileSync(at(`one/${file}`)));
  });

  test("of all linear layers, the best on dev, its layers run again in the backward", async () => {
    const more = ["--member-layers", "all", "--member-precision", "400", "--select", "best", "--recompute"];
    expect((await run(command("all", ...more))).code).toBe(0);
    const { covers, settings } = json(at("all/posterior/posterior.json"));
    expect(settings).toMatchObject({ layers: "all", precision: 400 });
    expect(covers).toContain("bert.encoder.layer.1.attention.self.key.weight");
    expect(covers).toContain("bert.pooler.dense.bias");
    expect(covers).not.toContain("bert.embeddings.LayerNorm.weight");
    expect(await evaluated("all")).toMatchObject({ members: 3, nll: json(at("all/metrics.json")).nll });
  });
});

describe("members of an earlier attempt", () => {
  const WHOLE = [{ key: "w", parameters: [{ name: "w", shape: [2, 3] }], groups: ["head"] }];
  const theta = { layout: new Layout(WHOLE) } as Theta; // the members cover all of it
  const { slices } = theta.layout;
  const written = (name: string, n: number) => {
    const writer = new PosteriorWriter(at(name), slices, { keep: "ensemble" });
    for (let s = 0; s < n; s++) writer.add(Float32Array.from([s, 1, 2, 3, 4, 5]));
    return writer;
  };

  test("stay up to the first that is not the one written, also once they were a posterior", async () => {
    written("kept", 3);
    expect(new PosteriorWriter(at("kept"), slices, { keep: "ensemble" }).size).toBe(3);
    await written("whole", 3).finish("ensemble", {}, theta);
    expect(new PosteriorWriter(at("whole"), slices, { keep: "ensemble" }).size).toBe(3);
    // From here on it is no posterior until it is finished again.
    expect(readdirSync(at("whole/posterior"))).not.toContain("posterior.json");
    const path = at("kept/posterior/member-001.safetensors");
    const bytes = readFileSync(path);
    bytes[bytes.length - 1] = 7;
    writeFileSync(path, bytes);
    expect(new PosteriorWriter(at("kept"), slices, { keep: "ensemble" }).size).toBe(1);
    expect(readdirSync(at("kept/posterior")).sort()).toEqual(["journal.json", "member-000.safetensors"]);
  });

  test("once a posterior, a few of them are spread over all, as chains and modes lie one after the other", async () => {
    await written("spread", 7).finish("ensemble", {}, theta);
    const record = readPosterior(at("spread"));
    const firsts = async (members?: number) => {
      const draws = storedDraws(at("spread"), record as NonNullable<typeof record>, theta, members);
      const all = await Promise.all(Array.from({ length: draws.size }, (_, s) => draws.read(s)));
      return all.map(([first]) => first);
    };
    expect(await firsts()).toEqual([0, 1, 2, 3, 4, 5, 6]);
    expect(await firsts(1)).toEqual([0]);
    expect(await firsts(3)).toEqual([0, 2, 4]);
  });

  test("and chains that are not equally long take turns: a few are of each", async () => {
    const writer = new PosteriorWriter(at("uneven"), slices);
    // Ten draws of chain 0, two of chain 1, one of chain 2.
    for (let s = 0; s < 13; s++) writer.add(Float32Array.from([s, 1, 2, 3, 4, 5]), s < 10 ? 0 : s < 12 ? 1 : 2);
    await writer.finish("sgld", {}, theta);
    const record = readPosterior(at("uneven"));
    const firsts = async (members: number) => {
      const draws = storedDraws(at("uneven"), record as NonNullable<typeof record>, theta, members);
      return (await Promise.all(Array.from({ length: draws.size }, (_, s) => draws.read(s)))).map(([first]) => first);
    };
    expect(await firsts(2)).toEqual([0, 10]);
    expect(await firsts(3)).toEqual([0, 10, 12]);
    expect(await firsts(6)).toEqual([0, 3, 6, 10, 11, 12]);
    expect(await firsts(13)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
  });

  test("that go leave what this program does not write", async () => {
    await written("guest", 2).finish("ensemble", {}, theta);
    mkdirSync(at("guest/posterior/mydir"));
    const mine = ["mydir/notes.txt", "member-notes.txt", ".member-000.safetensors.bak"];
    const ours = ["trace.csv", "trace.json", "journal.json", "gaussian.json", "gaussian.safetensors", ".member-002.safetensors.77-3.tmp"]; // biome-ignore format: names
    for (const name of [...mine, ...ours]) writeFileSync(at(`guest/posterior/${name}`), "mine");
    new PosteriorWriter(at("guest"), slices);
    expect(readdirSync(at("guest/posterior")).sort()).toEqual([
      ".member-000.safetensors.bak",
      "member-notes.txt",
      "mydir",
    ]);
    expect(readdirSync(at("guest/posterior/mydir"))).toEqual(["notes.txt"]);
  });

  test("go where they are of another method or cover something else, or where nothing is to be kept", () => {
    written("other", 2);
    const { slices: others } = new Layout([{ key: "v", parameters: [{ name: "v", shape: [2, 3] }], groups: ["head"] }]);
    expect(new PosteriorWriter(at("other"), others, { keep: "ensemble" }).size).toBe(0);
    written("other", 2);
    expect(new PosteriorWriter(at("other"), slices, { keep: "swag" }).size).toBe(0);
    written("other", 2);
    expect(new PosteriorWriter(at("other"), slices).size).toBe(0);
    expect(readdirSync(at("other/posterior"))).toEqual([]);
  });
});

describe("refused with a sentence", () => {
  const cases: [string, string[], string][] = [
    ["anchors of another method", ["--method", "map", "--anchored"], "--anchored: --method map does not use it"],
    ["a group that is not there", ["--method", "ensemble", "--anchored", "haed"], "Did you mean head?"],
    ["no group", ["--method", "ensemble", "--anchored", ","], "--anchored ,: an empty name of a group"],
    ["a flat prior", ["--method", "ensemble", "--anchored", "--prior-precision", "head=0"], "has a flat prior"],
    [
      "a prior that is no Gaussian",
      ["--method", "ensemble", "--anchored", "--prior", "laplace"],
      "(expected a Gaussian)",
    ],
    ["one rank-one member", ["--method", "rank-one", "--members", "1"], "a rank-one ensemble has two or more"],
    ["no precision of members", ["--method", "rank-one", "--member-precision", "0"], "--member-precision 0"],
    ["members' layers of another method", ["--member-layers", "all"], "--method map does not use it"],
    ["S = 0", ["--method", "ensemble", "--members", "0"], "--members 0"],
  ];
  test.each(cases)("%s", async (_, flags, sentence) => {
    const { code, stderr } = await run(finetune("never", ...flags));
    expect(stderr).toContain(sentence);
    expect(code).toBe(2);
  });
});
