import { describe, test } from "vitest";
import { fromHost } from "../../src/kernels/array.ts";
import { layerNorm, layerNormReference } from "../../src/kernels/layernorm.ts";
import { expectClose, gpuForTests, randn, run } from "./harness.ts";

const gpu = gpuForTests();

describe("layerNorm", () => {
  for (const [n, c] of [
    [1, 1],
    [1, 7],
    [3, 64],
    [65, 48],
    [5, 1000],
  ] as const) {
    test(`[${n}, ${c}] agrees with float64`, async () => {
      const g = gpu();
      const x = randn(1, n * c);
      const gamma = randn(2, c);
      const beta = randn(3, c);
      const [y] = await run(g, () => [
        layerNorm(g, fromHost(g, x, [n, c]), fromHost(g, gamma), fromHost(g, beta), 1e-5).y,
      ]);
      expectClose(y ?? [], layerNormReference(x, gamma, beta, 1e-5), { rtol: 1e-5, atol: 1e-5 });
    });
  }
});
