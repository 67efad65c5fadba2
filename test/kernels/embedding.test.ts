import { describe, expect, test } from "vitest";
import { fromHost, NdArray } from "../../src/kernels/array.ts";
import {
  gather,
  gatherBackward,
  gatherBackwardReference,
  gatherPlan,
  gatherSum,
  gatherSumReference,
} from "../../src/kernels/embedding.ts";
import { Stream } from "../../src/random.ts";
import { expectClose, gpuForTests, numericGradient, randn, run } from "./harness.ts";

const gpu = gpuForTests();

function randomIds(seed: number, n: number, rows: number): Uint32Array {
  const stream = new Stream(seed, "ids");
  return Uint32Array.from({ length: n }, () => stream.integer(rows));
}

const SIZES = [
  [1, 1, 1],
  [5, 3, 7],
  [65, 11, 4],
  [70, 30, 20],
  [33, 257, 384],
  [7, 5, 1026],
  [200, 1, 8], // more tokens of one id than one thread sums
] as const;

describe("gather", () => {
  for (const [n, v, c] of SIZES) {
    test(`${n} ids into [${v}, ${c}]: one, two and three tables`, async () => {
      const g = gpu();
      const tables = [randn(1, v * c), randn(2, (v + 3) * c), randn(3, 2 * c)];
      const ids = [randomIds(4, n, v), randomIds(5, n, v + 3), randomIds(6, n, 2)];
      const outputs = await run(g, () => {
        const lookups = tables.map((table, j) => ({
          table: fromHost(g, table, [table.length / c, c]),
          ids: fromHost(g, ids[j] ?? []),
        }));
        return [
          gather(g, lookups[0]!.table, lookups[0]!.ids),
          gatherSum(g, lookups.slice(0, 1)),
          gatherSum(g, lookups.slice(0, 2)),
          gatherSum(g, lookups),
        ];
      });
      [1, 1, 2, 3].forEach((k, i) => {
        const lookups = tables.slice(0, k).map((table, j) => ({ table, ids: ids[j] ?? [] }));
        // A copy is exact; a sum of two or three is rounded once or twice.
        expectClose(outputs[i] ?? [], gatherSumReference(lookups, c), {
          rtol: k === 1 ? 0 : 1e-6,
          atol: 2e-7 * (k - 1),
        });
      });
    });
  }

  test("NaN and infinities are copied", async () => {
    const g = gpu();
    const [y] = await run(g, () => [
      gather(g, fromHost(g, [1, Number.NaN, Number.POSITIVE_INFINITY], [3, 1]), fromHost(g, Uint32Array.of(2, 1, 0))),
    ]);
    expect([...(y ?? [])]).toEqual([Number.POSITIVE_INFINITY, Number.NaN, 1]);
  });

  test("an id that a table has not gives a row of NaN, never old memory", async () => {
    const g = gpu();
    for (const c of [3, 4]) {
      const ids = [Uint32Array.of(0, 2, 1, 1), Uint32Array.of(2, 1, 3, 0), Uint32Array.of(0, 0, 0, 0xffffffff)];
      const tables = [randn(1, 2 * c), randn(2, 3 * c), randn(3, c)];
      const outputs = await run(g, () => {
        const lookups = tables.map((table, j) => ({
          table: fromHost(g, table, [table.length / c, c]),
          ids: fromHost(g, ids[j] ?? []),
        }));
        return [1, 2, 3].map((k) => gatherSum(g, lookups.slice(0, k)));
      });
      [1, 2, 3].forEach((k, i) => {
        const y = outputs[i] ?? new Float32Array();
        const lookups = tables.slice(0, k).map((table, j) => ({ table, ids: ids[j] ?? [] }));
        expectClose(y, gatherSumReference(lookups, c), { rtol: 1e-6, atol: 1e-6 });
        const bad = [0, 1, 2, 3].filter((n) => Number.isNaN(y[n * c]));
        expect(bad).toEqual([[1], [1, 2], [1, 2, 3]][i]);
      });
    }
  });

  test("ids that are no whole numbers are refused", () => {
    const g = gpu();
    g.scope(() => {
      const table = fromHost(g, [1, 2], [2, 1]);
      expect(() => gather(g, table, fromHost(g, [0, 1]))).toThrow("gather: ids holds f32, expected u32");
    });
  });

  test("tables of different widths are refused by name", () => {
    const g = gpu();
    g.scope(() => {
      const ids = fromHost(g, Uint32Array.of(0));
      const lookups = [3, 4].map((c) => ({ table: fromHost(g, randn(1, c), [1, c]), ids }));
      expect(() => gatherSum(g, lookups)).toThrow("gatherSum: table has shape [1 4], expected [V=1 C=3]");
    });
  });
});

describe("gatherBackward", () => {
  for (const [n, v, c] of SIZES) {
    test(`${n} ids into [${v}, ${c}]: written, then accumulated`, async () => {
      const g = gpu();
      const ids = randomIds(7, n, v);
      const dy = randn(8, n * c);
      const before = randn(9, v * c);
      const [written, added] = await run(g, () => {
        const plan = gatherPlan(g, ids, v);
        const array = fromHost(g, before, [v, c]);
        const d = fromHost(g, dy, [n, c]);
        return [gatherBackward(g, d, plan, [v, c]), gatherBackward(g, d, plan, [v, c], { array, accumulate: true })];
      });
      const expected = gatherBackwardReference(dy, ids, v, c);
      expectClose(written ?? [], expected, { rtol: 1e-6, atol: 1e-5 });
      expectClose(added ?? [], expected.map((d, i) => d + (before[i] ?? 0)), { rtol: 1e-6, atol: 1e-5 }); // biome-ignore format: one thought
    });
  }

  test("it is the gradient of gather", () => {
    const [n, v, c] = [9, 4, 3];
    const ids = randomIds(10, n, v);
    const dy = randn(11, n * c);
    const numeric = numericGradient((table) => gatherSumReference([{ table, ids }], c), randn(12, v * c), dy);
    expectClose(gatherBackwardReference(dy, ids, v, c), numeric, { rtol: 1e-6, atol: 1e-6 });
  });

  // The type table: nearly every token has id 0. 64 is what one thread sums; 65 and 129 begin another chunk.
  for (const n of [64, 65, 129, 1000]) {
    test(`${n} tokens of one id, into a slice, the other rows zeroed`, async () => {
      const g = gpu();
      const c = 12;
      const ids = new Uint32Array(n + 2);
      ids[1] = 2;
      ids[n] = 2;
      const dy = randn(13, (n + 2) * c);
      const [all] = await run(g, () => {
        const around = fromHost(g, randn(14, 64 + 3 * c + 64));
        const array = new NdArray(around.buffer, 256, [3, c]);
        gatherBackward(g, fromHost(g, dy, [n + 2, c]), gatherPlan(g, ids, 3), [3, c], { array, accumulate: false });
        return [around];
      });
      const untouched = randn(14, 64 + 3 * c + 64);
      expectClose(all?.subarray(64, 64 + 3 * c) ?? [], gatherBackwardReference(dy, ids, 3, c), {
        rtol: 1e-5,
        atol: 1e-5,
      });
      expect(all?.subarray(0, 64)).toEqual(untouched.subarray(0, 64));
      expect(all?.subarray(64 + 3 * c)).toEqual(untouched.subarray(64 + 3 * c));
    });
  }

  test("the same bits every time", async () => {
    const g = gpu();
    const ids = randomIds(15, 400, 3);
    const dy = randn(16, 400 * 5);
    const once = () =>
      run(g, () => [gatherBackward(g, fromHost(g, dy, [400, 5]), gatherPlan(g, ids, 3), [3, 5])]).then(([d]) => d);
    expect(await once()).toEqual(await once());
  });

  test("an id that the table has not is refused on the host", () => {
    expect(() => gatherPlan(gpu(), Uint32Array.of(0, 5), 5)).toThrow("gatherPlan: id 5, but the table has 5 rows");
  });
});
