/** @file The rungs of docs/matmul.md: `ladder` compares each with float64 before it hands out anything to time. */
import { expect, test } from "vitest";
import { ladder } from "../../bench/ladder.ts";
import { gpuForTests } from "../kernels/harness.ts";

const gpu = gpuForTests();

test("every rung computes the product, and all run in one turn", async () => {
  const bodies = await ladder(gpu());
  const lanes = gpu().adapter.subgroupSize;
  expect(bodies.map(({ name }) => name)).toEqual([
    "ladder.1-naive",
    "ladder.2-vectors",
    "ladder.3-registers",
    "ladder.4-taller",
    "ladder.5-workgroup",
    ...(lanes === 4 || lanes === 8 ? ["ladder.6-subgroup", "ladder.7-strip"] : []),
    "ladder.8-library",
  ]);
  expect(new Set(bodies.map(({ turn }) => turn)).size).toBe(1);
});
