/**
 * @file What the carried test files import in place of Vitest: the part of its interface that they use, and a runner that
 * outlives a lost device. The pack puts it there (`alias`); nothing else imports it. After a failed test the file's hooks
 * close the device and open another, so that one kernel that does not compile fails its own tests and no others.
 */
import { format, inspect } from "node:util";
import { expectation } from "./expect.ts";

export { expect } from "./expect.ts";

type Body = (...row: never[]) => unknown;
type Hook = () => unknown;

/** What a test gets of Vitest's context: the way to say that it cannot be run here. */
interface Context {
  skip(reason?: string): never;
}
class Skipped extends Error {}
const context: Context = {
  skip(reason) {
    throw new Skipped(reason);
  },
};

/** What became of one test. `error` has a message, and where it was thrown. */
export interface TestResult {
  name: string;
  status: "passed" | "failed" | "skipped";
  milliseconds: number;
  error?: string;
}

const tests: { name: string; skip: boolean; body: (context: Context) => unknown }[] = [];
const hooks = { beforeAll: [] as Hook[], beforeEach: [] as Hook[], afterEach: [] as Hook[], afterAll: [] as Hook[] };
const open: { name: string; skip: boolean }[] = [];

const hook = (kind: keyof typeof hooks) => (body: Hook) => {
  // One rule for all hooks keeps the runner short: whoever needs another sees this when the pack is tried.
  if (open.length > 0) throw new Error(`${kind} inside describe: the carried tests may have hooks of a file only`);
  hooks[kind].push(body);
};
export const beforeAll = hook("beforeAll");
export const beforeEach = hook("beforeEach");
export const afterEach = hook("afterEach");
export const afterAll = hook("afterAll");

function suite(name: string, skip: boolean, body: Hook): void {
  open.push({ name, skip });
  body();
  open.pop();
}
export const describe = Object.assign((name: string, body: Hook) => suite(name, false, body), {
  skip: (name: string, body: Hook) => suite(name, true, body),
  skipIf: (condition: unknown) => (name: string, body: Hook) => suite(name, Boolean(condition), body),
  runIf: (condition: unknown) => (name: string, body: Hook) => suite(name, !condition, body),
  each: (table: readonly unknown[]) => (name: string, body: Body) => {
    for (const [title, row] of rowsOf(table, name)) suite(title, false, () => body(...row));
  },
});

/** Each row of a table with its title: `%s`, `%i` … stand for its first values. */
function rowsOf(table: readonly unknown[], name: string): [string, never[]][] {
  const places = name.match(/%[sdifjoO]/g)?.length ?? 0;
  return table.map((item) => {
    const row = Array.isArray(item) ? item : [item];
    return [format(name, ...row.slice(0, places)), row as never[]];
  });
}

/** `test(name, body)`, `test(name, options, body)`: there is no time limit here but that of the whole part. */
function add(skip: boolean, name: string, ...rest: unknown[]): void {
  const body = rest.find((value) => typeof value === "function") as (context: Context) => unknown;
  tests.push({
    name: [...open.map((one) => one.name), name].join(" > "),
    skip: skip || open.some((one) => one.skip),
    body,
  });
}
export const test = Object.assign((name: string, ...rest: unknown[]) => add(false, name, ...rest), {
  skip: (name: string, ...rest: unknown[]) => add(true, name, ...rest),
  skipIf:
    (condition: unknown) =>
    (name: string, ...rest: unknown[]) =>
      add(Boolean(condition), name, ...rest),
  runIf:
    (condition: unknown) =>
    (name: string, ...rest: unknown[]) =>
      add(!condition, name, ...rest),
  each:
    (table: readonly unknown[]) =>
    (name: string, ...rest: unknown[]) => {
      const body = rest.find((value) => typeof value === "function") as Body;
      for (const [title, row] of rowsOf(table, name)) add(false, title, () => body(...row));
    },
  /** The row as one argument, and the test's context behind it. */
  for:
    <T>(table: readonly T[]) =>
    (name: string, ...rest: unknown[]) => {
      const body = rest.find((value) => typeof value === "function") as (item: T, context: Context) => unknown;
      for (const [i, [title]] of rowsOf(table, name).entries())
        add(false, title, (context: Context) => body(table[i] as T, context));
    },
});
export const it = test;

/** Replaces a method of an object until `mockRestore`. */
export const vi = {
  spyOn(target: object, name: string) {
    const methods = target as Record<string, unknown>;
    const own = Object.getOwnPropertyDescriptor(target, name);
    const spy = {
      mockImplementation(body: (...args: never[]) => unknown) {
        methods[name] = body;
        return spy;
      },
      mockRestore() {
        if (own) Object.defineProperty(target, name, own);
        else delete methods[name];
      },
    };
    return spy;
  },
};

export interface RunOptions {
  /** As Date.now: no test is begun after it; those that are left are not reported. */
  until: number;
  /** Called before each test. */
  begin?: (name: string) => void;
  /** Tests that an earlier process has begun. */
  leaveOut?: readonly string[];
}

/** Runs what the files imported so far have collected. */
export async function runCollected(
  report: (result: TestResult) => void,
  { until, begin = () => {}, leaveOut = [] }: RunOptions,
): Promise<void> {
  const begun = new Set(leaveOut);
  await all(hooks.beforeAll);
  for (const { name, skip, body } of tests) {
    if (begun.has(name)) continue;
    if (Date.now() > until) break;
    begin(name);
    if (skip) {
      report({ name, status: "skipped", milliseconds: 0 });
      continue;
    }
    const start = performance.now();
    let error: unknown;
    let failed = false;
    const before = expectation.failed.length;
    try {
      await all(hooks.beforeEach);
      await body(context);
      await all(hooks.afterEach);
      if (expectation.failed.length > before) throw expectation.failed.at(-1);
    } catch (thrown) {
      if (thrown instanceof Skipped) {
        report({ name, status: "skipped", milliseconds: 0 });
        continue;
      }
      failed = true;
      error = thrown;
    }
    const milliseconds = Math.round(performance.now() - start);
    report({ name, status: failed ? "failed" : "passed", milliseconds, ...(failed ? { error: told(error) } : {}) });
    if (failed) {
      await all(hooks.afterAll).catch(() => {});
      await all(hooks.beforeAll);
    }
  }
  await all(hooks.afterAll);
}

async function all(list: readonly Hook[]): Promise<void> {
  for (const one of list) await one();
}

function told(error: unknown): string {
  if (!(error instanceof Error)) return inspect(error);
  const at = error.stack?.split("\n").find((line) => /\.test\.js/.test(line));
  return `${error.name}: ${error.message}${at ? ` (${at.trim()})` : ""}`.slice(0, 2000);
}
