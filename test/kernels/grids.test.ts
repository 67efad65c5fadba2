/**
 * @file Above 65,535 workgroups a grid is split over x and y, which takes arrays of a size that no test has. So every
 * grid is split by force, over 2, 3 and 7 rows that come out even or not, and nothing may change: no bit of a result.
 */
import { expect, test, vi } from "vitest";
import { type Dispatch, Gpu } from "../../src/gpu/index.ts";
import { readShaders } from "../../src/gpu/node.ts";
import { readIndices } from "../../src/kernels/index.ts";
import { arraysOf, CASES, inputMaker } from "./cases.ts";
import { gpuForTests } from "./harness.ts";

const gpu = gpuForTests();
const split = new Set<string>();

/** The case's results, its grids split over `rows` rows. */
function resultsOf(body: (typeof CASES)[string], rows: number): Promise<Uint32Array[]> {
  const g = gpu();
  const spy = vi.spyOn(g, "dispatch").mockImplementation((d: Dispatch) => {
    const [x, y, z] = d.grid;
    const divided = rows > 1 && x > 1 && y === 1 && z === 1 && !d.shader.startsWith("matmul");
    if (divided) split.add(`${d.shader}.${d.entry}`);
    Gpu.prototype.dispatch.call(g, divided ? { ...d, grid: [Math.ceil(x / rows), rows, 1] } : d);
  });
  try {
    return Promise.all(
      g.scope(() => ({ reads: arraysOf(body(g, inputMaker(g))).map((array) => readIndices(g, array)) })).reads,
    );
  } finally {
    spy.mockRestore();
  }
}

function firstDifference(words: Uint32Array, whole: Uint32Array = new Uint32Array()): number {
  if (words.length !== whole.length) return Math.min(words.length, whole.length);
  for (let j = 0; j < words.length; j++) if (words[j] !== whole[j]) return j;
  return -1;
}

test.each(Object.entries(CASES))("%s gives the same bits over any split", async (_, body) => {
  const whole = await resultsOf(body, 1);
  for (const rows of [2, 3, 7]) {
    for (const [i, words] of (await resultsOf(body, rows)).entries()) {
      expect(firstDifference(words, whole[i]), `result ${i}, first word that differs over ${rows} rows`).toBe(-1);
    }
  }
});

test("every entry point that numbers its workgroups has been split", () => {
  const lanes = gpu().adapter.subgroupSize;
  const narrow = lanes === 4 || lanes === 8;
  // The first is the bench's, the second asks for its grid's height, which is a size of what it writes.
  const unused = ["ceiling", "matmul_pack"]
    .concat(narrow ? [] : ["attention_subgroup", "layernorm_subgroup", "softmax_rows"])
    .concat(lanes === 4 ? [] : ["attention_unrolled"]);
  // Chosen on a system's software adapter only.
  const whole = gpu().adapter.kind === "software" ? [] : ["colsum.whole"];
  const entries = [...readShaders()]
    .filter(([shader]) => !unused.includes(shader))
    .flatMap(([shader, source]) =>
      [...source.matchAll(/^fn (\w+)\(.*num_workgroups/gm)].map((match) => `${shader}.${match[1]}`),
    )
    .filter((entry) => !whole.includes(entry));
  expect([...split].sort()).toEqual(entries.sort());
});
