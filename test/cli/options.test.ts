/** @file Flags to options: every default, every sentence of refusal, every contradiction. No model, no device. */
import { describe, expect, test } from "vitest";
import { differingFlags, optionRecord, withoutDraws } from "../../src/cli/option-record.ts";
import { finetuneOptions, MANY, optionWarnings, type RawFlags } from "../../src/cli/options.ts";
import { precisionText } from "../../src/cli/values.ts";
import { InputError } from "../../src/errors.ts";

const base: RawFlags = { model: "m", train: "data/few.tsv" };
const options = (raw: RawFlags = {}) => finetuneOptions({ ...base, ...raw });

describe("defaults", () => {
  test("are those of the design", () => {
    expect(options()).toMatchObject({
      task: "classify",
      method: "map",
      precisions: { encoder: 300, head: 1 },
      readout: undefined,
      head: undefined,
      epochs: 3,
      batch: 16,
      accumulate: 1,
      lr: 5e-5,
      headLr: 1e-3,
      warmup: 0.1,
      schedule: "linear",
      clip: undefined,
      optimizer: "adam",
      weightDecay: 0,
      dropout: undefined,
      maxLength: undefined,
      seed: 0,
      shuffle: true,
      members: 1,
      evaluate: "last",
      select: "last",
      out: "runs/few-map",
    });
  });

  test("of one flag follow from another", () => {
    // One draw is of one chain.
    for (const [members, chains] of [
      ["1", 1],
      ["2", 2],
      ["16", 2],
    ] as const)
      expect(options({ method: "sgld", members }).sampler?.chains).toBe(chains);
    expect(options({ select: "best", dev: "d.tsv" }).evaluate).toBe("every");
    expect(options({ method: "dropout" }).members).toBe(16);
    expect(options({ method: "laplace", predictive: "probit" }).members).toBe(1);
    const laplace = (raw: RawFlags) => options({ method: "laplace", ...raw }).laplace!;
    expect([laplace({}).structure, laplace({ laplaceGroups: "layer.1,head" }).structure]).toEqual(["full", "diagonal"]);
    expect(laplace({}).predictive).toBe("linearised");
    expect(options({ method: "laplace" }).members).toBe(64);
    expect(options({ method: "laplace", predictive: "mc" }).members).toBe(16);
    expect(laplace({ laplaceGroups: "layer.1", predictive: "mc" }).predictive).toBe("mc");
    expect(options({ optimizer: "adamw" }).weightDecay).toBe(0.01);
    expect(options({ shuffle: false }).shuffle).toBe(false);
  });
});

describe("precisions", () => {
  test.each([
    ["map", undefined, "encoder=300,head=1"],
    ["map", "encoder=1000", "encoder=1000,head=1"],
    ["map", "layer.3=10,embeddings=inf", "encoder=300,head=1,layer.3=10,embeddings=inf"],
    ["map", "encoder=0,head=0", "encoder=0,head=0"],
    ["mle", undefined, "encoder=0,head=0"],
    ["mle", "encoder=0", "encoder=0,head=0"],
    ["scratch", undefined, "encoder=0,head=0"],
    ["frozen", undefined, "encoder=inf,head=1"],
    ["frozen", "head=3", "encoder=inf,head=3"],
    ["dropout", "encoder=1e3", "encoder=1000,head=1"],
  ])("--method %s --prior-precision %s", (method, priorPrecision, expected) => {
    expect(precisionText(options({ method, priorPrecision }).precisions)).toBe(expected);
  });
});

describe("refusals: one line, exit 2", () => {
  test.each<[RawFlags, string | RegExp]>([
    [{ model: undefined }, "--model: missing (expected DIR). Add --model DIR."],
    [{ train: undefined }, "--train: missing (expected FILE). Add --train FILE."],
    [{ lr: "banana" }, "--lr banana: not a number (expected a number > 0 and ≤ 1000000000). Give, say, --lr 5e-5."],
    [{ lr: "0" }, /^--lr 0: nothing would be learned .* --epochs 0\.$/],
    [{ lr: "0.0e3" }, /^--lr 0\.0e3: nothing would be learned/],
    [{ headLr: "0" }, /^--head-lr 0: nothing would be learned/],
    [{ lr: "-1e-5" }, /^--lr -1e-5: out of range/],
    [{ lr: "1e-400" }, /^--lr 1e-400: out of range/],
    [{ lr: "NaN" }, /^--lr NaN: not a number/],
    [{ lr: "Infinity" }, /^--lr Infinity: not a number/],
    [{ lr: "0x10" }, /^--lr 0x10: not a number/],
    [{ lr: "" }, /^--lr "": not a number/],
    [{ dtype: "bf16" }, /^--dtype bf16: unknown \(expected f32, f16\)/],
    [{ seed: "-1" }, "--seed -1: out of range (expected a whole number ≥ 0). Give, say, --seed 1."],
    [{ seed: "1.5" }, /^--seed 1\.5: not a whole number/],
    [{ seed: "9007199254740993" }, /^--seed 9007199254740993: out of range/],
    [{ epochs: "2.5" }, /^--epochs 2\.5: not a whole number/],
    [{ batch: "0" }, /^--batch 0: out of range/],
    [{ accumulate: "0" }, /^--accumulate 0: out of range/],
    [{ warmup: "1" }, /^--warmup 1: out of range/],
    [{ clip: "0" }, /^--clip 0: out of range/],
    [{ dropout: "1" }, /^--dropout 1: out of range/],
    [{ maxLength: "2" }, /^--max-length 2: out of range/],
    [{ onLong: "wrap" }, /^--on-long wrap: unknown \(expected truncate, refuse\)/],
    [{ schedule: "linaer" }, "--schedule linaer: unknown (expected linear, cosine, constant). Did you mean linear?"],
    [{ optimizer: "adamm" }, /Did you mean adam\?$/],
    [{ method: "mapp" }, /^--method mapp: unknown .* Did you mean map\?$/],
    [{ task: "regress" }, "--task regress: not yet in this version. Choose classify."],
    [{ readout: "last4-mix" }, /^--readout last4-mix: learned layer weights are not yet in this version\./],
    [{ readout: "poler" }, /Did you mean pooler\?$/],
    [{ head: "mlp" }, /^--head mlp: unknown \(expected linear or mlp:H\)/],
    [{ head: "mlp:0" }, /^--head mlp:0: unknown/],
    [{ head: "mlp:65537" }, /^--head mlp:65537: out of range \(expected H ≤ 65536\)/],
    [{ evaluate: "0" }, /^--evaluate 0: out of range/],
    [{ evaluate: "evry", dev: "d" }, /Did you mean every\?$/],
    [
      { prior: "student-t:0" },
      "--prior student-t:0: ν is out of range (expected a number > 0 and ≤ 1000000). Give, say, --prior student-t:4.",
    ],
    [{ prior: "student-t:" }, /^--prior student-t:: ν is not a number .* Give, say, --prior student-t:4\.$/],
    [{ prior: "student-t: 4" }, /^--prior "student-t: 4": ν is not a number .* Give, say, --prior student-t:4\.$/],
    [{ prior: "student-t:1e7" }, /^--prior student-t:1e7: ν is out of range/],
    [{ priorPrecision: "encoder=-1" }, /^--prior-precision encoder=-1: a precision cannot be negative/],
    [{ priorPrecision: "encoder=lots" }, /^--prior-precision encoder=lots: not a precision/],
    [{ priorPrecision: "encoder=2e30" }, /^--prior-precision encoder=2e30: out of range .* 0 to 1e\+30, or inf/],
    [{ priorPrecision: "encoder=evidence" }, /not yet in this version/],
    [{ priorPrecision: "encodr=1" }, /unknown group "encodr" .* Did you mean encoder\?$/],
    [{ priorPrecision: "encoder=1,encoder=2" }, /group "encoder" stands twice/],
    [{ priorPrecision: "encoder" }, /"encoder" is not GROUP=VALUE/],
    [{ priorPrecision: "" }, /is not GROUP=VALUE/],
    // contradictions
    [{ method: "mle", priorPrecision: "encoder=300" }, /^--prior-precision encoder=300: --method mle has no prior/],
    [{ method: "scratch", priorPrecision: "head=1" }, /^--prior-precision head=1: --method scratch starts at random/],
    [{ method: "frozen", priorPrecision: "encoder=300" }, /^--prior-precision encoder=300: --method frozen holds/],
    [{ method: "frozen", priorPrecision: "layer.1=3" }, /^--prior-precision layer\.1=3: --method frozen holds/],
    [{ resume: true, overwrite: true }, /^--resume: contradicts --overwrite/],
    [{ weightDecay: "0.1" }, /^--weight-decay 0\.1: decoupled decay belongs to AdamW/],
    [{ select: "best" }, /^--select best: nothing to select on/],
    [{ select: "best", dev: "d", evaluate: "last" }, /^--select best: contradicts --evaluate last/],
    [{ evaluate: "every" }, /^--evaluate every: nothing to evaluate on/],
    [{ members: "4" }, /^--members 4: --method map keeps one θ/],
    [{ method: "dropout", dropout: "0" }, /^--dropout 0: --method dropout draws its members by dropout/],
    [{ method: "laplace", structure: "full", laplaceGroups: "layer.1" }, /^--structure full: a full covariance is of/],
    [{ method: "laplace", laplaceGroups: " ," }, /^--laplace-groups " ,": an empty name of a group/],
    [{ method: "sgld", sample: "head,pooler,head" }, /^--sample head,pooler,head: group "head" stands twice/],
    [{ method: "sgld", sample: "layer.01" }, /^--sample layer\.01: unknown group "layer\.01"/],
    [{ method: "ensemble", anchored: "" }, /^--anchored "": an empty name of a group/],
    [{ method: "laplace", predictive: "probitt" }, /^--predictive probitt: unknown .* Did you mean probit\?$/],
    [{ method: "laplace", predictive: "probit", members: "4" }, /^--members 4: --predictive probit is one member/],
    [{ method: "laplace", laplaceMemory: "0" }, /^--laplace-memory 0: out of range/],
    [{ method: "swag", predictive: "mc" }, /^--predictive mc: --method swag does not use it/],
    [{ method: "sgld", exploration: "0.5" }, /^--exploration 0\.5: a share of a cycle \(found no --cycles\)/],
    [{ method: "sgld", cycles: "2", burnIn: "9" }, /^--burn-in 9: every cycle begins with its exploration/],
    [{ method: "sgld", cycles: "0" }, /^--cycles 0: out of range/],
    [
      { method: "sgld", cycles: "9" },
      /^--cycles 9: more cycles than each chain has draws \(found --members 16, by 2 chains\)\. Take at most 8, or --members 18\.$/,
    ],
    // The second chain has two draws only.
    [
      { method: "sgld", cycles: "3", members: "5" },
      /^--cycles 3: more cycles than .* Take at most 2, or --members 6\.$/,
    ],
    [
      { method: "swag", modes: "2", members: "1" },
      /^--modes 2: more modes than the draws that they share \(found --members 1\)\. Take at most 1, or --members 2\.$/,
    ],
    [
      { method: "sghmc", chains: "4", members: "3" },
      /^--chains 4: more chains than the draws that they share \(found --members 3\)\. Take at most 3, or --members 4\.$/,
    ],
    [{ method: "sghmc", cycles: "2", exploration: "1" }, /^--exploration 1: out of range/],
    [{ method: "sgld", resample: "9" }, /^--resample 9: --method sgld does not use it/],
    [{ method: "sghmc", resample: "0" }, /^--resample 0: out of range/],
    [{ method: "\u001b[31mred" }, /^--method "\\u\{1b\}\[31mred": unknown/],
  ])("%j", (raw, message) => {
    let thrown: unknown;
    try {
      options(raw);
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toBeInstanceOf(InputError);
    const { message: found, exitCode } = thrown as InputError;
    if (typeof message === "string") expect(found).toBe(message);
    else expect(found).toMatch(message);
    expect(found).not.toContain("\n");
    expect(exitCode).toBe(2);
  });
});

describe("warnings", () => {
  test("MAP without a prior", () => {
    expect(optionWarnings(options({ priorPrecision: "encoder=0,head=0" })).join()).toMatch(/this is --method mle/);
    expect(optionWarnings(options())).toEqual([]);
  });
  test.each(MANY)("no prior, of --method %s: that is all that is said, for it is not --method mle", (method) => {
    expect(optionWarnings(options({ method, priorPrecision: "encoder=0,head=0" }))).toEqual([
      "--prior-precision encoder=0,head=0: every precision is 0, so there is no prior",
    ]);
  });
  test.each<[string, RegExp | undefined]>([
    ["laplace", /the Gaussian stands around a θ that is not the posterior's mode$/],
    ["sgld", /the chains draw without it, and what they do not sample stays at a θ that is not the posterior's mode$/],
    ["sghmc", /the chains draw without it/],
    ["swag", /the path, and the Gaussian of it, are of another objective than the posterior's$/],
    ["map", undefined],
    ["dropout", undefined],
    ["ensemble", undefined],
  ])("R-Drop is no prior: --method %s", (method, message) => {
    const warnings = optionWarnings(options({ method, rDrop: "2" }));
    expect(warnings).toEqual(message ? [expect.stringMatching(/^--r-drop 2: a regulariser, not a prior/)] : []);
    if (message) expect(warnings[0]).toMatch(message);
    expect(optionWarnings(options({ method, rDrop: "0" }))).toEqual([]);
  });
});

describe("the same flags to resume", () => {
  const record = (raw: RawFlags = {}) => optionRecord(options(raw));
  test("what doesn't change the numbers may differ", () => {
    expect(
      differingFlags(record(), record({ resume: true, json: true, out: "elsewhere", recompute: true })),
    ).toBeUndefined();
  });
  test("so may a limit, and a default that is spelt out", () => {
    const laplace = (raw: RawFlags) => record({ method: "laplace", ...raw });
    expect(differingFlags(laplace({ laplaceMemory: "50" }), laplace({}))).toBeUndefined();
    expect(differingFlags(laplace({}), laplace({ predictive: "linearised", structure: "full" }))).toBeUndefined();
    const groups = { laplaceGroups: "layer.1" };
    expect(differingFlags(laplace(groups), laplace({ ...groups, predictive: "linearised" }))).toBeUndefined();
    const sghmc = (raw: RawFlags) => record({ method: "sghmc", cycles: "2", ...raw });
    expect(differingFlags(sghmc({}), sghmc({ chains: "2", exploration: ".5" }))).toBeUndefined();
  });
  test("what only draws after training read is no option of training; what members are trained with is", () => {
    const same = (method: string, one: RawFlags, other: RawFlags) =>
      differingFlags(withoutDraws(record({ method, ...one })), withoutDraws(record({ method, ...other })));
    expect(same("sgld", { thin: "3" }, { members: "4", sample: "layer.1", temperatureSweep: "2" })).toBeUndefined();
    expect(same("laplace", {}, { predictive: "probit", temperature: "2" })).toBeUndefined();
    expect(same("swag", { modes: "2" }, { points: "9", members: "7" })).toBeUndefined();
    expect(same("swag", {}, { seed: "1" })).toBe('--seed was "0" and is "1"');
    expect(same("ensemble", {}, { members: "3", anchored: "head" })).toBe(
      '--members was "5" and is "3"; --anchored was nothing and is "head"',
    );
    expect(same("rank-one", {}, { memberLayers: "all" })).toBe('--member-layers was "head" and is "all"');
    expect(same("dropout", {}, { members: "3" })).toBe('--members was "16" and is "3"');
  });
  test("a flag that differs is named with both values", () => {
    expect(differingFlags(record(), record({ lr: "1e-4", shuffle: false }))).toBe(
      '--lr was "0.00005" and is "0.0001"; --no-shuffle was "true" and is "false"',
    );
    expect(differingFlags(record({ priorPrecision: "encoder=inf" }), record())).toBe(
      '--prior-precision was "encoder=inf,head=1" and is "encoder=300,head=1"',
    );
    // A method's own, under the name that was typed.
    const sghmc = (raw: RawFlags) => record({ method: "sghmc", members: "4", chains: "1", ...raw });
    expect(differingFlags(sghmc({}), sghmc({ resample: "5", sampleLr: "0.1" }))).toBe(
      '--sample-lr was nothing and is "0.1"; --resample was nothing and is "5"',
    );
    expect(differingFlags(sghmc({ cycles: "2" }), sghmc({ cycles: "4" }))).toBe('--cycles was "2" and is "4"');
    expect(differingFlags(sghmc({ cycles: "2" }), sghmc({}))).toBe(
      '--cycles was "2" and is nothing; --exploration was "0.5" and is nothing; --burn-in was "0" and is nothing',
    );
    const laplace = (raw: RawFlags) => record({ method: "laplace", ...raw });
    expect(differingFlags(laplace({}), laplace({ structure: "diagonal", laplaceGroups: "head" }))).toBe(
      '--structure was "full" and is "diagonal"; --laplace-groups was nothing and is "head"',
    );
    expect(differingFlags(laplace({ predictive: "mc", members: "64" }), laplace({}))).toBe(
      '--predictive was "mc" and is "linearised"',
    );
    // Of another method only that, and what both have.
    expect(differingFlags(sghmc({}), laplace({ members: "4", lr: "1e-4" }))).toBe(
      '--method was "sghmc" and is "laplace"; --lr was "0.00005" and is "0.0001"',
    );
    expect(differingFlags(sghmc({}), record({}))).toBe(
      '--method was "sghmc" and is "map"; --members was "4" and is "1"',
    );
    expect(differingFlags(record(), record({ dev: "d.tsv" }))).toBe('--dev was nothing and is "d.tsv"');
  });
});
