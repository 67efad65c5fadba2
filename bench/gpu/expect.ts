/**
 * @file `expect` for the carried tests, with Vitest's meaning: the matchers that they use and their neighbours. A matcher
 * that is not here is a test that fails and names it; test/bench/gpu.test.ts finds that out before a GPU does.
 */
import { inspect, isDeepStrictEqual } from "node:util";

/** Soft expectations that failed: the test goes on, and fails when it ends. */
export const expectation: { failed: Error[] } = { failed: [] };

type Check = (actual: unknown, ...expected: never[]) => boolean;

const size = (x: unknown) => x as number;
const lengthOf = (x: unknown) => (x as { length: number }).length;

export const MATCHERS: Record<string, Check> = {
  toBe: (a, e: unknown) => Object.is(a, e),
  toEqual: (a, e: unknown) => equal(a, e),
  toStrictEqual: (a, e: unknown) => isDeepStrictEqual(a, e),
  toMatchObject: (a, e: unknown) => within(a, e),
  toBeLessThan: (a, e: number) => size(a) < e,
  toBeLessThanOrEqual: (a, e: number) => size(a) <= e,
  toBeGreaterThan: (a, e: number) => size(a) > e,
  toBeGreaterThanOrEqual: (a, e: number) => size(a) >= e,
  toBeCloseTo: (a, e: number, digits = 2 as never) => a === e || Math.abs(size(a) - e) < 10 ** -digits / 2,
  toBeNaN: (a) => Number.isNaN(a),
  toBeNull: (a) => a === null,
  toBeUndefined: (a) => a === undefined,
  toBeDefined: (a) => a !== undefined,
  toBeTruthy: (a) => Boolean(a),
  toBeFalsy: (a) => !a,
  toBeInstanceOf: (a, e: new () => unknown) => a instanceof e,
  toHaveLength: (a, e: number) => lengthOf(a) === e,
  toHaveProperty: (a, e: string) => e in (a as object),
  toContain: (a, e: unknown) => (typeof a === "string" ? a.includes(e as string) : [...(a as unknown[])].includes(e)),
  toContainEqual: (a, e: unknown) => [...(a as unknown[])].some((one) => equal(one, e)),
  toMatch: (a, e: string | RegExp) => (typeof e === "string" ? (a as string).includes(e) : e.test(a as string)),
  toThrow: (a, e?: string | RegExp | (new () => Error)) => {
    try {
      (a as () => unknown)();
    } catch (error) {
      return threw(error, e);
    }
    return false;
  },
};

/** Every matcher gives undefined, or a promise of it where it stands behind `rejects` or `resolves`. */
type Expectation = Record<string, (...expected: unknown[]) => undefined> & { not: Expectation };
type Later = Record<string, (...expected: unknown[]) => Promise<void>>;

function matchers(actual: unknown, message: string | undefined, negated: boolean, soft: boolean): Expectation {
  const found: Record<string, unknown> = {};
  for (const [name, check] of Object.entries(MATCHERS)) {
    found[name] = (...expected: never[]) => {
      if (check(actual, ...expected) !== negated) return;
      const [shown, wanted] = [brief(actual), expected.map(brief).join(", ")];
      const error = new Error(`${message ? `${message}: ` : ""}${shown} ${negated ? "not." : ""}${name}(${wanted})`);
      if (!soft) throw error;
      expectation.failed.push(error);
    };
  }
  if (!negated) Object.defineProperty(found, "not", { get: () => matchers(actual, message, true, soft) });
  return found as Expectation;
}

/** Awaits first: what a promise gave, or what it was rejected with. */
function later(actual: unknown, message: string | undefined, rejected: boolean): Later {
  const found: Later = {};
  for (const name of Object.keys(MATCHERS)) {
    found[name] = async (...expected) => {
      const [ok, value] = await Promise.resolve(typeof actual === "function" ? actual() : actual).then(
        (given) => [true, given] as const,
        (error: unknown) => [false, error] as const,
      );
      if (ok === rejected)
        throw new Error(`${message ?? "promise"}: ${ok ? "resolved" : "rejected"} with ${brief(value)}`);
      const seen = rejected && name === "toThrow" ? () => raise(value) : value;
      matchers(seen, message, false, false)[name]?.(...expected);
    };
  }
  return found;
}

export const expect = Object.assign(
  (actual: unknown, message?: string) =>
    Object.assign(matchers(actual, message, false, false), {
      rejects: later(actual, message, true),
      resolves: later(actual, message, false),
    }),
  {
    soft: (actual: unknown, message?: string) => matchers(actual, message, false, true),
    fail: (message: string): never => {
      throw new Error(message);
    },
  },
);

function raise(error: unknown): never {
  throw error;
}

function threw(error: unknown, wanted: string | RegExp | (new () => Error) | undefined): boolean {
  if (typeof wanted === "function") return error instanceof wanted;
  const message = error instanceof Error ? error.message : String(error);
  if (wanted === undefined) return true;
  return typeof wanted === "string" ? message.includes(wanted) : wanted.test(message);
}

const kind = (x: unknown) => Object.prototype.toString.call(x);

/** Deep equality that takes a property that is undefined for one that is not there. */
function equal(a: unknown, b: unknown): boolean {
  if (Object.is(a, b)) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null || kind(a) !== kind(b)) return false;
  if (Array.isArray(a) || ArrayBuffer.isView(a)) {
    const [x, y] = [a, b] as unknown as [ArrayLike<unknown>, ArrayLike<unknown>];
    return x.length === y.length && Array.prototype.every.call(x, (value, i) => equal(value, y[i]));
  }
  if (kind(a) !== "[object Object]") return isDeepStrictEqual(a, b);
  return within(a, b) && within(b, a);
}

/** Whether `a` has all that `b` has. */
function within(a: unknown, b: unknown): boolean {
  if (typeof b !== "object" || b === null || kind(b) !== "[object Object]") return equal(a, b);
  const [x, y] = [a, b] as Record<string, unknown>[];
  return Object.keys(b).every((key) => (x?.[key] === undefined ? y?.[key] === undefined : within(x[key], y?.[key])));
}

function brief(value: unknown): string {
  return inspect(value, { maxArrayLength: 8, maxStringLength: 300, breakLength: Number.POSITIVE_INFINITY }).slice(
    0,
    500,
  );
}
