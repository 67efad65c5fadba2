/** @file The search for the first operation to blame: it reads numbers, and nothing else, as numbers. */
import { expect, test } from "vitest";
import { Engine, ops } from "../../src/autograd/index.ts";
import { fromHost } from "../../src/kernels/index.ts";
import { firstBadOperation } from "../../src/train/diverged.ts";
import { gpuForTests } from "../kernels/harness.ts";

const gpu = gpuForTests();

test("finds the first operation with an infinity, and takes no index for a NaN", async () => {
  const engine = new Engine(gpu());
  const body = (factor: number) => () => {
    const logits = engine.tensor(new Float32Array(8).fill(1), [4, 2]);
    // "No label" has the bits of a NaN.
    const loss = ops.crossEntropy(logits, fromHost(engine.gpu, Uint32Array.of(0, 0xffffffff, 1, 0xffffffff)));
    ops.sum(ops.scale(loss, factor));
  };
  expect(await firstBadOperation(engine, body(2))).toBeUndefined();
  expect(await firstBadOperation(engine, body(Number.POSITIVE_INFINITY))).toMatch(/scale/);
});
