/**
 * @file `bench --tune`: how it decides (on a stand-in for the device with times of our choosing), what it keeps on disk,
 * and that runs remember their choices. Nothing here depends on how fast anything is.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, beforeEach, describe, expect, test } from "vitest";
import { takeUpChoices } from "../../src/cli/run-record.ts";
import { contestOn, type Product, tune, tunedShapes, tuneShape } from "../../src/cli/tune.ts";
import { keepUnfinished, loadTuned, readUnfinished, storeTuned, tunedRemark } from "../../src/cli/tuned.ts";
import { type Choice, choicesInForce, useChoices } from "../../src/kernels/matmul-choice.ts";
import { ableFamilies, type Family } from "../../src/kernels/matmul-families.ts";
import { temporaryFolder } from "../data/shared.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { onSharedDevice, run, writeModel, writeRows } from "./harness.ts";

const gpu = gpuForTests();
const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
const cache = at("cache");
const env = { PRIORWORK_CACHE: cache, PRIORWORK_TUNED: "1" };
const product: Product = { layout: "NN", G: 1, M: 64, N: 64, K: 64 };
const adapter = {
  kind: "software" as const,
  subgroupSize: 8,
  limits: { maxComputeInvocationsPerWorkgroup: 1024, maxComputeWorkgroupStorageSize: 32768 },
};

/** A device on which each family takes the times given, one after another and then the last for ever. */
function stage(times: Partial<Record<Family, number[]>>, wrong: Partial<Record<Family, string>> = {}) {
  const timed: Partial<Record<Family, number>> = {};
  return {
    timed,
    check: async (family: Family) => wrong[family],
    time: async (family: Family) => {
      const n = timed[family] ?? 0;
      timed[family] = n + 1;
      const series = times[family] ?? [100];
      return series[Math.min(n, series.length - 1)] as number;
    },
    dispose: () => {},
  };
}

describe("a shape's choice", () => {
  test("is by medians, and families far behind are timed once", async () => {
    // One slow round of the winner and one lucky round of the other change nothing.
    const contest = stage({ strip32: [9, 9, 9, 9, 9, 2, 9, 9, 9, 9], register: [8, 8, 30, 8, 8, 8, 8, 8, 8, 8] });
    const { choice, milliseconds } = await tuneShape(adapter, product, contest);
    expect(choice).toMatchObject({
      ...product,
      families: ["register", "strip32", "packed", "strip16", "subgroup", "tile32", "tile64", "tile128"],
    });
    expect(milliseconds).toMatchObject({ register: 8, strip32: 9, tile32: 100 });
    expect(contest.timed).toMatchObject({ register: 10, strip32: 10, tile32: 1, tile64: 1, tile128: 1 });
  });

  test("stays with the built-in one unless another is clearly faster", async () => {
    const near = await tuneShape(adapter, product, stage({ strip32: [10.2], register: [10] }));
    expect(near.choice.families[0]).toBe("strip32");
    const clear = await tuneShape(adapter, product, stage({ strip32: [10.4], register: [10] }));
    expect(clear.choice.families[0]).toBe("register");
  });

  test("is never one whose result is wrong, however fast", async () => {
    const contest = stage({ strip32: [1], register: [9] }, { strip32: "[0, 0] is 1, not 2" });
    const { choice, wrong } = await tuneShape(adapter, product, contest);
    expect(choice.families).not.toContain("strip32");
    expect(choice.families[0]).toBe("register");
    expect(wrong).toEqual(["strip32: [0, 0] is 1, not 2"]);
    expect(contest.timed.strip32).toBeUndefined();
    const all = Object.fromEntries(ableFamilies(adapter, "NN", product).map((family) => [family, "nothing right"]));
    await expect(tuneShape(adapter, product, stage({}, all))).rejects.toThrow("no kernel is right at NN M64 N64 K64");
  });

  test("slow rounds are fewer, never under three", async () => {
    const contest = stage({ strip32: [3000] });
    await tuneShape(adapter, product, { ...contest, time: async (family) => 60 * (await contest.time(family)) });
    expect(contest.timed.tile32).toBe(4);
  });
});

describe("on the device", () => {
  for (const layout of ["NN", "NT", "TN"] as const) {
    test(`${layout}: every family is found right, and one that writes nothing or something else is found out`, async () => {
      const g = gpu();
      const sizes: Product = { layout, G: 3, M: 68, N: 20, K: 12 };
      const contest = contestOn(g, sizes);
      for (const family of ableFamilies(g.adapter, layout, sizes)) {
        expect([family, await contest.check(family)]).toEqual([family, undefined]);
        expect(await contest.time(family, 2)).toBeGreaterThan(0);
      }
      const dispatch = g.dispatch;
      try {
        // A dispatch that does not happen leaves zeros, not the result of the family before.
        g.dispatch = () => {};
        expect(await contest.check("register")).toMatch(/^\[0, 0\] is 0, not /);
        g.dispatch = (d) => dispatch.call(g, { ...d, params: d.params.map((x, i) => (i === 2 ? x - 2 : x)) });
        expect(await contest.check("register")).toMatch(/^\[0, \d+\] is .*, not /);
      } finally {
        g.dispatch = dispatch;
        contest.dispose();
      }
    });
  }

  test("the shapes are all three layouts of a layer, and small", () => {
    const shapes = tunedShapes();
    for (const layout of ["NN", "NT", "TN"])
      expect(shapes.filter((s) => s.layout === layout).length).toBeGreaterThan(9);
    for (const { G, M, N, K } of shapes) expect(2 * G * M * N * K).toBeLessThan(3e9);
  });
});

const choices: Choice[] = (["NN", "NT", "TN"] as const).map((layout) => ({
  ...product,
  layout,
  families: ["register"],
}));

describe("on disk", () => {
  beforeEach(() => {
    rmSync(cache, { recursive: true, force: true });
    useChoices(gpu(), undefined);
    return () => useChoices(gpu(), undefined);
  });

  test("choices are stored whole, and in force when they are loaded", () => {
    const file = storeTuned(gpu(), env, choices);
    expect(readdirSync(cache)).toHaveLength(1);
    expect(choicesInForce(gpu())).toBeUndefined();
    const loaded = loadTuned(gpu(), env);
    expect(loaded.tuned?.file).toBe(file);
    expect(choicesInForce(gpu())).toEqual(choices);
    expect(tunedRemark(loaded)).toMatch(/^matrix products as tuned here on 20\d\d-\d\d-\d\d \(PRIORWORK_TUNED=0/);
  });

  test("none, or PRIORWORK_TUNED=0: nothing is in force and nothing is said", () => {
    expect(loadTuned(gpu(), env)).toEqual({});
    storeTuned(gpu(), env, choices);
    expect(loadTuned(gpu(), { ...env, PRIORWORK_TUNED: "0" })).toEqual({});
    expect(choicesInForce(gpu())).toBeUndefined();
  });

  test.each<[string, (text: string) => string, RegExp]>([
    ["cut short", (text) => text.slice(0, 100), /not valid JSON/],
    ["empty", () => "", /the file is empty/],
    ["of other shaders", (text) => text.replace(/"shaders": "./, '"shaders": "x'), /measured with other shaders/],
    ["of another adapter", (text) => text.replace(/"adapter": "./, '"adapter": "x'), /not a file of this adapter/],
    ["of another driver", (text) => text.replace(/"driver": "./, '"driver": "x'), /not a file of this adapter/],
    [
      "with a kernel of the future",
      (text) => text.replace("register", "warp"),
      /names a kernel that is not known here/,
    ],
    ["of a later format", (text) => text.replace('"format": 1', '"format": 2'), /not a file of this adapter/],
  ])("a file that is %s is left aside with a remark", (_, damage, why) => {
    const file = storeTuned(gpu(), env, choices);
    const text = readFileSync(file, "utf8");
    writeFileSync(file, damage(text));
    expect(damage(text)).not.toBe(text);
    const loaded = loadTuned(gpu(), env);
    expect(loaded.tuned).toBeUndefined();
    expect(loaded.problem).toMatch(why);
    expect(loaded.problem).toContain("The built-in choice of kernels is used");
    expect(choicesInForce(gpu())).toBeUndefined();
  });

  test("a folder in the file's place is left aside too, and cannot be written over", () => {
    const file = storeTuned(gpu(), env, choices);
    rmSync(file);
    mkdirSync(join(file, "x"), { recursive: true });
    expect(loadTuned(gpu(), env)).toEqual({});
    expect(() => storeTuned(gpu(), env, choices)).toThrow(/cannot write/);
    expect(readdirSync(cache)).toHaveLength(1);
  });

  test("doctor says whether tuned choices are in force", async () => {
    const before = await run(["doctor", "--json"], { env });
    expect(JSON.parse(before.stdout).tuned).toBeNull();
    const file = storeTuned(gpu(), env, choices);
    const after = await run(["doctor", "--json"], { env });
    expect(JSON.parse(after.stdout).tuned).toMatchObject({ file });
    expect((await run(["doctor"], { env })).stdout).toContain(`(${file})`);
    writeFileSync(file, "{");
    const damaged = await run(["doctor"], { env });
    expect(damaged.code).toBe(0);
    expect(damaged.stderr).toMatch(/^note: .*not valid JSON/m);
    expect(damaged.stdout).toContain("Matrix products: the built-in choice");
  });
});

describe("a run", () => {
  const command = (out: string, ...more: string[]) => [
    ...["finetune", "--model", at("model"), "--train", at("train.tsv"), "--out", at(out)],
    ...["--epochs", "2", "--batch", "8", "--seed", "3", ...more],
  ];
  const record = (out: string) => JSON.parse(readFileSync(at(`${out}/run.json`), "utf8"));
  const weights = (out: string) => readFileSync(at(`${out}/model.safetensors`)).toString("base64");
  /** Stopped in the middle. */
  const stopped = (out: string) =>
    run(command(out), {
      env,
      onStderr: (text, interrupt) => {
        if (text.startsWith("training 2/")) interrupt();
      },
    });

  beforeAll(() => {
    writeModel(at("model"));
    writeRows(at("train.tsv"), 28, 1);
    rmSync(cache, { recursive: true, force: true });
  });

  test("remembers its choices and takes them up again when the file is gone: the same bits", async () => {
    storeTuned(gpu(), env, choices);
    const whole = await run(command("whole"), { env });
    expect(whole.stderr).toMatch(/^note: matrix products as tuned here/m);
    expect(record("whole").kernels.tuned).toEqual(choices);
    expect(record("whole").kernels.matmul.NN.shader).toBe("matmul_register");

    expect((await stopped("parts")).code).toBe(130);
    rmSync(cache, { recursive: true });
    const resumed = await run(command("parts", "--resume"), { env });
    expect(resumed.code, resumed.stderr).toBe(0);
    expect(resumed.stderr).toMatch(/^note: matrix products as when the run was begun: tuned/m);
    expect(resumed.stderr).not.toContain("bit for bit");
    expect(record("parts").kernels).toEqual(record("whole").kernels);
    expect(weights("parts")).toBe(weights("whole"));
  });

  test("begun without, goes on without, although the adapter was tuned since", async () => {
    expect((await stopped("plain")).code).toBe(130);
    storeTuned(gpu(), env, choices);
    const resumed = await run(command("plain", "--resume"), { env });
    expect(resumed.code, resumed.stderr).toBe(0);
    expect(resumed.stderr).toMatch(/^note: matrix products as when the run was begun: the built-in choice/m);
    expect(resumed.stderr).not.toContain("bit for bit");
    expect(record("plain").kernels.tuned).toBeNull();
  });

  test("of another adapter, or with choices that nobody knows here, says so", () => {
    expect(existsSync(at("whole/run.json"))).toBe(true);
    const earlier = record("whole");
    const g = gpu();
    try {
      const elsewhere = { ...earlier, adapter: { ...earlier.adapter, name: "another card" } };
      expect(takeUpChoices(g, elsewhere)).toEqual([expect.stringMatching(/begun on another card .* this is /)]);
      expect(choicesInForce(g)).toBeUndefined();
      const future = [{ ...product, families: ["warp"] }];
      expect(takeUpChoices(g, { ...earlier, kernels: { tuned: future } })).toEqual([
        expect.stringMatching(/^run.json: its kernel choices cannot be taken up \(choice 0 names/),
      ]);
      expect(takeUpChoices(g, { ...earlier, kernels: "none" })).toEqual([]);
    } finally {
      useChoices(g, undefined);
    }
  });
});

describe("the command", () => {
  const shapes: Product[] = [product, { layout: "TN", G: 2, M: 20, N: 12, K: 5 }];
  const world = () => {
    const written = { stdout: "", stderr: "" };
    const interrupted = new AbortController();
    const io = {
      stdout: { write: (text: string) => (written.stdout += text) },
      stderr: { write: (text: string) => (written.stderr += text) },
      env: { ...env, PRIORWORK_ADAPTER: process.env.PRIORWORK_ADAPTER },
      signal: interrupted.signal,
      now: () => performance.now(),
    };
    return { written, interrupted, io };
  };

  test("measures, prints one document, and stores what is then in force", async () => {
    rmSync(cache, { recursive: true, force: true });
    const { written, io } = world();
    await onSharedDevice(io, () => tune({ json: true }, io, shapes));
    const { adapter, file, choices } = JSON.parse(written.stdout);
    expect(adapter.name).toBe(gpu().adapter.name);
    expect(written.stderr).toMatch(/^adapter: /);
    expect(choices.map(({ layout, G, M }: Choice) => [layout, G, M])).toEqual([
      ["NN", 1, 64],
      ["TN", 2, 20],
    ]);
    for (const { layout, G, M, N, K, families, milliseconds } of choices) {
      const able = ableFamilies(gpu().adapter, layout, { M, N, K });
      expect([...families].sort(), `${layout} ${G}`).toEqual(able.sort());
      for (const family of families) expect(milliseconds[family]).toBeGreaterThan(0);
    }
    try {
      expect(loadTuned(gpu(), env).tuned?.file).toBe(file);
      expect(choicesInForce(gpu())).toMatchObject(
        choices.map(({ milliseconds: _, ...choice }: Choice & { milliseconds: unknown }) => choice),
      );
    } finally {
      useChoices(gpu(), undefined);
    }
  });

  test("interrupted, it keeps the shapes that it has measured, and goes on with the next", async () => {
    rmSync(cache, { recursive: true, force: true });
    const { interrupted, io } = world();
    const stopping = {
      ...io,
      stderr: { write: (text: string) => (text.includes("tuning 1/2") ? interrupted.abort() : io.stderr.write(text)) },
    };
    await expect(onSharedDevice(stopping, () => tune({}, stopping, shapes))).rejects.toThrow(
      "interrupted: 1 of 2 shapes are kept. Run it again.",
    );
    expect(loadTuned(gpu(), env), "not in force").toEqual({});
    const [first] = readUnfinished(gpu(), env);
    expect(first?.choice).toMatchObject(product);

    const again = world();
    await onSharedDevice(again.io, () => tune({ json: true }, again.io, shapes));
    expect(again.written.stderr).toMatch(/^note: goes on with a tuning that ended early; 1 of 2 shapes are there$/m);
    const { choices } = JSON.parse(again.written.stdout);
    expect(choices).toHaveLength(2);
    expect(choices[0]).toEqual({ ...first?.choice, milliseconds: first?.milliseconds });
    expect(readdirSync(cache), "the unfinished file is gone").toHaveLength(1);
    useChoices(gpu(), undefined);
  });

  test.each<[string, (text: string) => string]>([
    ["is cut short", (text) => text.slice(0, 80)],
    ["is of other shaders", (text) => text.replace(/"shaders": "./, '"shaders": "x')],
    ["has a time that is none", (text) => text.replace('"register": 3', '"register": "3"')],
    ["has no times", (text) => text.replace('"milliseconds"', '"times"')],
  ])("an unfinished file that %s is not gone on with", (_, damage) => {
    rmSync(cache, { recursive: true, force: true });
    keepUnfinished(gpu(), env, [{ choice: { ...product, families: ["register"] }, milliseconds: { register: 3 } }]);
    expect(readUnfinished(gpu(), env)).toHaveLength(1);
    const [name = ""] = readdirSync(cache);
    const text = readFileSync(join(cache, name), "utf8");
    expect(damage(text)).not.toBe(text);
    writeFileSync(join(cache, name), damage(text));
    expect(readUnfinished(gpu(), env)).toEqual([]);
  });

  test("stores nothing when it is interrupted before the first", async () => {
    rmSync(cache, { recursive: true, force: true });
    const { interrupted, io } = world();
    interrupted.abort();
    await expect(tune({}, io, shapes)).rejects.toThrow("nothing was stored");
    expect(existsSync(cache)).toBe(false);
  });
});

test("--tune takes no other words", async () => {
  const { code, stderr } = await run(["bench", "kernels", "--tune"], { env });
  expect(code).toBe(2);
  expect(stderr).toContain('--tune: it measures the matrix products only (found "kernels"). Leave it out.');
});
