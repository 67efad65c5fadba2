/**
 * @file bench/gpu, which on a real GPU has one try: a quick run from the packed folder alone has every section; a part
 * that crashes or hangs costs nobody else anything; the stand-in for Vitest means what Vitest means, and knows all that
 * the carried tests use; and the judge says reached, missed, or why neither.
 */
import { execFile, execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { expect as carriedExpect, MATCHERS } from "../../bench/gpu/expect.ts";
import { judge, shareOf } from "../../bench/gpu/judge.ts";
import { carriedTests, pack } from "../../bench/gpu/pack.ts";
import type { Order } from "../../bench/gpu/parts.ts";
import { CUBE, FEED_FORWARD, FULL, PARTS, QUICK } from "../../bench/gpu/plan.ts";
import type { GpuRow, Message, Results } from "../../bench/gpu/results.ts";
import { type Limits, throughAll } from "../../bench/gpu/start.ts";
import * as carried from "../../bench/gpu/vitest.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "priorwork-gpu-bench-"));
afterAll(() => rmSync(folder, { recursive: true }));

const packed = join(folder, "packed");
beforeAll(async () => {
  await pack(packed);
  symlinkSync(join(ROOT, "node_modules"), join(folder, "node_modules"));
});

test("every carried test file loads from the packed folder", () => {
  const files = carriedTests().map((file) => pathToFileURL(join(packed, file.replace(/\.ts$/, ".js"))).href);
  const code = `for (const file of ${JSON.stringify(files)}) await import(file); console.log("loaded");`;
  const loaded = execFileSync(process.execPath, ["--input-type=module", "--eval", code], { encoding: "utf8" });
  expect(loaded).toBe("loaded\n");
});

test("a quick run from the packed folder, without tools or PyTorch, has every section", async () => {
  const out = join(folder, "out");
  const env = { ...process.env, PATH: "/nonexistent", PRIORWORK_PYTHON: "/nonexistent/python", OUT: out };
  const words = [join(packed, "bench/gpu/run.js"), "--quick", "--software", "--minutes", "5"];
  const { code, stdout } = await new Promise<{ code: unknown; stdout: string }>((resolve) =>
    execFile(process.execPath, words, { cwd: folder, env }, (error, stdout) =>
      resolve({ code: error ? error.code : 0, stdout }),
    ),
  );
  expect(code, stdout).toBe(0);
  const files = readdirSync(out).sort();
  expect(files.map((name) => name.slice(name.lastIndexOf(".")))).toEqual([".json", ".log", ".md"]);
  const results = JSON.parse(readFileSync(join(out, files[0] ?? ""), "utf8")) as Results;
  expect(results.rehearsal).toBe(true);
  for (const part of PARTS) expect(results.parts[part].status, part).toBe(part === "torch" ? "skipped" : "done");
  expect(results.parts.torch.reason).toContain("PRIORWORK_PYTHON");
  const facts = results.facts as { adapter: { kind: string }; versions: { webgpu: string } };
  expect(["software", "bundled"]).toContain(facts.adapter.kind);
  expect(facts.versions.webgpu).toMatch(/^\d+\./);
  expect(results.tests.passed).toBeGreaterThan(10);
  expect(results.tests.failed).toBe(0);
  expect(results.kernels.map(({ name }) => name)).toEqual(expect.arrayContaining(["matmul", "matmul.register", "add"]));
  for (const row of results.kernels.filter(({ name }) => name.startsWith("matmul")))
    expect(row.worstError).toBeLessThanOrEqual(1);
  expect(results.unguarded.length).toBe(2);
  expect(new Set(results.steps.map(({ name }) => name))).toEqual(
    new Set([
      "host.dispatch",
      "host.dispatch.rawDawn",
      "step.frozen",
      "step.headAlone",
      "step.inference",
      "step.backward",
      "step.MLE",
      "step.MAP",
    ]),
  );
  for (const { name, medianMs } of [...results.ceilings, ...results.kernels, ...results.steps])
    expect(medianMs, name).toBeGreaterThan(0);
  expect(results.judgement.length).toBe(5);
  expect(readFileSync(join(out, files[2] ?? ""), "utf8")).toContain("A rehearsal on a software adapter");
});

describe("a part that", () => {
  const order: Order = { part: "kernels", plan: QUICK, until: 0, begun: [], fatal: [] };
  /** How a part ends whose process runs these lines. */
  const endOf = (name: string, lines: string, changed: Partial<Limits> = {}) => {
    const script = join(folder, `${name}.mjs`);
    writeFileSync(script, lines);
    const heard: Message[] = [];
    const limits = { due: Date.now() + 20_000, silence: 15_000, ...changed };
    const ends = throughAll(script, order, process.env, limits, (message) => heard.push(message));
    return ends.then((all) => ({ ...all.at(-1), all, heard }));
  };
  const row = 'process.send({ kind: "failure", name: "x", error: "y" });';

  test("crashes leaves what it told, and how it ended", async () => {
    const end = await endOf("crash", `${row} console.error("last words"); process.kill(process.pid, "SIGSEGV");`);
    expect(end.error).toContain("SIGSEGV");
    expect(end.heard).toEqual([{ kind: "failure", name: "x", error: "y" }]);
  });

  test("hangs is ended when its time is over", async () => {
    const end = await endOf("hang", `${row} for (;;) {}`, { due: Date.now() + 5000 });
    expect(end.error).toContain("ran past its time");
  });

  test("dies or falls silent over a case goes on behind it", async () => {
    const lines = `
      process.once("message", ({ begun, fatal }) => {
        for (const name of ["first", "crash", "second", "hang", "third"]) {
          if (begun.includes(name)) continue;
          process.send({ kind: "begin", name });
          if (name === "crash") return process.send({}, () => process.kill(process.pid, "SIGKILL"));
          if (name === "hang") return setInterval(() => {}, 1000);
          process.send({ kind: "fact", name, value: fatal });
        }
        process.send({ kind: "end" }, () => process.disconnect());
      });`;
    const { all, heard } = await endOf("resume", lines, { silence: 6000 });
    expect(all.map(({ error }) => error?.split(" ").slice(0, 4).join(" "))).toEqual([
      "crash: ended early (SIGKILL):",
      "hang: said nothing for",
      undefined,
    ]);
    const third = heard.filter((message) => message.kind === "fact" && message.name === "third");
    expect(heard.filter(({ kind }) => kind === "fact").length, "each told once").toBe(3);
    expect(third).toEqual([{ kind: "fact", name: "third", value: ["crash", "hang"] }]);
  });

  test("leaves without a word has not done its work", async () => {
    expect((await endOf("leave", "process.exit(0);")).error).toContain("ended early (exit code 0)");
  });

  test("has said that it is done has done its work, though its process hangs", async () => {
    const end = await endOf("late", 'process.send({ kind: "end" }); setInterval(() => {}, 1000);');
    expect(end.error).toBeUndefined();
  });
});

describe("the stand-in for Vitest", () => {
  test("knows every matcher and every function that the carried tests use", () => {
    const sources = [...carriedTests(), "test/kernels/harness.ts"].map((file) =>
      readFileSync(join(ROOT, file), "utf8"),
    );
    const used = new Set(sources.flatMap((source) => [...source.matchAll(/\)\s*\.(to[A-Z]\w*)\(/g)].map((m) => m[1])));
    expect([...used].filter((name) => !Object.hasOwn(MATCHERS, name ?? ""))).toEqual([]);
    expect(used.size).toBeGreaterThan(8);
    const members = sources.flatMap((source) => [...source.matchAll(/\b(expect|test|describe|vi)\.(\w+)/g)]);
    const own = { ...carried, expect: carriedExpect } as unknown as Record<string, object>;
    expect(members.filter(([, whose, name]) => !(own[whose ?? ""] && (name ?? "") in own[whose ?? ""]!))).toEqual([]);
    const imports = sources.flatMap((source) => [...source.matchAll(/import \{([^}]*)\} from "vitest"/g)]);
    const names = imports.flatMap((match) => (match[1] ?? "").split(",").map((name) => name.trim()));
    expect(names.filter((name) => name && !(name in carried))).toEqual([]);
  });

  /** Both say the same of a value and what it is compared with. */
  const CASES: [string, unknown, unknown[]][] = [
    ["toBe", 0, [-0]],
    ["toBe", Number.NaN, [Number.NaN]],
    ["toEqual", { a: 1, b: undefined }, [{ a: 1 }]],
    ["toEqual", { a: 1 }, [{ a: 1, b: 2 }]],
    ["toEqual", [1, [2]], [[1, [2]]]],
    ["toEqual", [1, 2], [[1, 3]]],
    ["toEqual", Float32Array.of(1, Number.NaN), [Float32Array.of(1, Number.NaN)]],
    ["toEqual", Float32Array.of(0), [Float32Array.of(-0)]],
    ["toEqual", Float32Array.of(1), [[1]]],
    ["toEqual", Float32Array.of(1, 2), [Float32Array.of(1)]],
    ["toEqual", Float32Array.of(1), [Float32Array.of(1, 2)]],
    ["toEqual", undefined, [Float32Array.of(1)]],
    ["toEqual", new Set([1]), [new Set([2])]],
    ["toMatchObject", { a: 1, b: { c: 2, d: 3 } }, [{ b: { c: 2 } }]],
    ["toMatchObject", { a: 1 }, [{ b: 1 }]],
    ["toBeLessThan", Number.NaN, [1]],
    ["toBeLessThan", 0.5, [1]],
    ["toBeLessThanOrEqual", 1, [1]],
    ["toBeGreaterThan", 1, [1]],
    ["toBeCloseTo", 1.004, [1]],
    ["toBeCloseTo", 1.006, [1]],
    ["toThrow", () => {}, []],
    ["toThrow", raise, ["no such"]],
    ["toThrow", raise, ["such"]],
    ["toThrow", raise, [RangeError]],
    ["toThrow", raise, [TypeError]],
    ["toThrow", raise, [/su.h/]],
    ["toHaveLength", [1], [2]],
    ["toContain", [1, 2], [2]],
  ];
  test.each(CASES)("%s of %o: as Vitest", (name, actual, expected) => {
    type Any = (value: unknown) => Record<string, (...words: unknown[]) => void> & { not: Any };
    for (const negated of [false, true]) {
      const [theirs, ours] = [expect, carriedExpect].map((one) => {
        const made = (one as unknown as Any)(actual);
        const at = negated ? (made.not as unknown as ReturnType<Any>) : made;
        try {
          at[name]?.(...expected);
          return "holds";
        } catch {
          return "fails";
        }
      });
      expect(ours, negated ? "not" : "").toBe(theirs);
    }
  });

  test("gives the next test another device after a failed one", async () => {
    const calls: string[] = [];
    carried.beforeAll(() => calls.push("open"));
    carried.afterEach(() => calls.push("check"));
    carried.afterAll(() => calls.push("close"));
    carried.describe("suite", () => {
      carried.test("good", () => carriedExpect(1).toBe?.(1));
      carried.describe.each([[3, 4]])("of %i", (a: number, b: number) => {
        carried.test.each([[a, b]])("bad %i", (c: number, d: number) => carriedExpect(c).toBe?.(d));
      });
      carried.test("soft", { timeout: 5 }, () => {
        carriedExpect.soft(1).toBe?.(2);
        calls.push("goes on");
      });
    });
    carried.describe.skipIf(true)("left out", () => carried.test("never", () => calls.push("never")));
    carried.test("begun before", () => calls.push("begun before"));
    carried.test("cannot", (context: { skip(reason: string): void }) => context.skip("why"));
    carried.test("rejected", async () => {
      await carriedExpect(Promise.reject(new Error("why"))).rejects.toThrow?.("why");
    });
    const results: carried.TestResult[] = [];
    await carried.runCollected((result) => results.push(result), {
      until: Date.now() + 60_000,
      leaveOut: ["begun before"],
    });
    expect(results.map(({ name, status }) => [name, status])).toEqual([
      ["suite > good", "passed"],
      ["suite > of 3 > bad 3", "failed"],
      ["suite > soft", "failed"],
      ["left out > never", "skipped"],
      ["cannot", "skipped"],
      ["rejected", "passed"],
    ]);
    expect(results[1]?.error).toContain("3 toBe(4)");
    const again = ["close", "open"];
    expect(calls).toEqual(["open", "check", ...again, "goes on", "check", ...again, "check", "close"]);
  });
});

describe("the judge", () => {
  const row = (name: string, shape: object, medianMs: number, more: Partial<GpuRow> = {}): GpuRow => ({
    name,
    shape: { ...shape } as Record<string, number>,
    dtype: "f32",
    medianMs,
    bestMs: medianMs,
    samples: 9,
    repeats: 1,
    ...more,
  });
  const part = (status: "done" | "incomplete") => ({ status, seconds: 1, failures: [] });
  const fast = (): Results => ({
    date: "",
    plan: "full",
    rehearsal: false,
    facts: { torch: { device: "cuda (H100)" } },
    parts: Object.fromEntries(PARTS.map((name) => [name, part("done")])) as unknown as Results["parts"],
    tests: { passed: 9, failed: 0, skipped: 0, files: {} },
    ceilings: [row("ceiling.multiplyAdd", {}, 1, { gflops: 50_000 }), row("ceiling.multiplyAdd", {}, 1, { gflops: 60_000 })], // biome-ignore format: two alike
    kernels: [
      row("matmul", CUBE, 6, { layout: "NN", gflops: 21_000 }),
      row("matmul.tile64", CUBE, 6, { layout: "NN", gflops: 24_000 }),
      row("matmul", FEED_FORWARD, 0.1, { layout: "NN", gflops: 12_000 }),
      row("matmul", FEED_FORWARD, 0.1, { layout: "TN", gflops: 1 }),
    ],
    unguarded: [row("matmul", CUBE, 6, { layout: "NN", gflops: 30_000 })],
    steps: [
      row("host.dispatch", { dispatches: 1000 }, 9, { dispatches: 1000 }),
      row("step.MLE", { tokens: 1024 }, 12, { dispatches: 300 }),
    ],
    torch: [
      { name: "step.train", mode: "tf32", shape: { tokens: 1024 }, medianMs: 1, bestMs: 1 },
      { name: "step.train", mode: "f32", shape: { tokens: 1024 }, medianMs: 6, bestMs: 5 },
    ],
    judgement: [],
  });
  const reached = (change: (results: Results) => void) => {
    const results = fast();
    change(results);
    return judge(results).map((verdict) => verdict.reached);
  };

  test("reaches at the bound and misses beyond it", () => {
    expect(reached(() => {})).toEqual([true, true, true, true, true]);
    const slower = reached((results) => {
      for (const one of [...results.kernels, ...results.steps]) {
        one.medianMs *= 1.2;
        if (one.gflops) one.gflops /= 1.2;
      }
      results.tests.failed = 1;
    });
    expect(slower).toEqual([false, false, false, false, false]);
  });

  test("does not take f16 for f32", () => {
    const half = { dtype: "f16", gflops: 500_000 };
    const { kernels, ceilings, ...rest } = fast();
    const results = {
      ...rest,
      kernels: [...kernels, row("matmul.matrix128", CUBE, 1, { layout: "NN", ...half })],
      ceilings: [...ceilings, row("ceiling.matrixMultiplyAdd", {}, 1, { ...half, gflops: 800_000 })],
    };
    expect(judge(results)).toEqual(judge(fast()));
    expect(shareOf(results, results.kernels.at(-1) as GpuRow)).toBe(0.625);
  });

  test("says what stands beside the number", () => {
    const [cube, , step, dispatch] = judge(fast()).map(({ measured }) => measured);
    expect(cube).toBe("35.0 % (21000 GFLOP/s), best family matmul.tile64 40.0 %, without robustness 50.0 %");
    expect(step).toBe("12 ms, PyTorch 6 ms: 2.00×");
    expect(dispatch).toBe("9.00 µs, step of 1024 tokens 40.00 µs (300 dispatches)");
  });

  test("gives no verdict on a software adapter, on PyTorch without a GPU, or on what was not measured", () => {
    const none = [undefined, undefined, undefined, undefined, undefined];
    expect(reached((results) => Object.assign(results, { rehearsal: true }))).toEqual(none);
    expect(reached((results) => Object.assign(results.facts, { torch: { device: "cpu (cpu)" } }))[2]).toBeUndefined();
    const empty = { kernels: [], steps: [], torch: [], ceilings: [], tests: { ...fast().tests, passed: 0 } };
    expect(reached((results) => Object.assign(results, empty))).toEqual(none);
    expect(reached((results) => Object.assign(results.parts, { ops: part("incomplete") }))[4]).toBeUndefined();
  });
});

test("the full plan ends within ten minutes, as bench/README.md says, and has what the judge asks for", () => {
  const text = readFileSync(join(ROOT, "bench/README.md"), "utf8");
  for (const part of PARTS) expect(text).toMatch(new RegExp(`^\\| \`${part}\` +\\| ${FULL.budget[part]} +\\|`, "m"));
  const seconds = Object.values(FULL.budget).reduce((a, b) => a + b, 0);
  expect(seconds).toBeLessThan(9 * 60);
  const products = FULL.products.filter(({ layouts }) => layouts.includes("NN")).map(({ sizes }) => sizes);
  expect(products).toContainEqual(CUBE);
  expect(products).toContainEqual(FEED_FORWARD);
  expect(FULL.batches.map((lengths) => lengths.reduce((a, b) => a + b))).toEqual([1024, 213]);
});

test("the pack replaces only what it has made", async () => {
  const other = join(folder, "other");
  const file = join(mkdtempSync(other), "mine");
  writeFileSync(file, "");
  await expect(pack(join(file, ".."))).rejects.toThrow("not packed before");
  expect(existsSync(file)).toBe(true);
});

function raise(): never {
  throw new TypeError("no such thing");
}
