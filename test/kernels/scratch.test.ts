/** @file What an operation makes for itself goes back to the pool, also where no scope sees to it: only its results stay. */
import { expect, test, vi } from "vitest";
import { Gpu, type PooledBuffer } from "../../src/gpu/index.ts";
import * as k from "../../src/kernels/index.ts";
import { gpuForTests } from "./harness.ts";

const gpu = gpuForTests();

/** Sizes at which every scratch array exists: many rows, rows for several threads, tokens for several jobs. */
const [N, C] = [200, 1024];

type Case = (g: Gpu, a: (...shape: number[]) => k.NdArray) => object;

const numbers = (g: Gpu, n: number, bound: number) =>
  k.fromHost(
    g,
    Uint32Array.from({ length: n }, (_, i) => i % bound),
  );

const CASES: Record<string, Case> = {
  columnSum: (g, a) => k.columnSum(g, a(N, C)),
  layerNorm: (g, a) => k.layerNorm(g, a(N, C), a(C), a(C), 1e-5),
  addLayerNorm: (g, a) => k.addLayerNorm(g, a(N, C), a(N, C), a(C), a(C), 1e-5),
  layerNormBackward: (g, a) => k.layerNormBackward(g, a(N, C), a(N, C), a(C), a(N, 2)),
  softmax: (g, a) => k.softmax(g, a(N, C)),
  "softmax of short rows": (g, a) => k.softmax(g, a(N, 3)),
  logSoftmaxBackward: (g, a) => k.logSoftmaxBackward(g, a(N, C), a(N, C)),
  "softmaxBackward of short rows": (g, a) => k.softmaxBackward(g, a(N, 3), a(N, 3)),
  crossEntropy: (g, a) => k.crossEntropy(g, a(N, C), numbers(g, N, C)),
  crossEntropyBackward: (g, a) => k.crossEntropyBackward(g, a(N, C), numbers(g, N, C), a(N), a(N)),
  attention: (g, a) => k.attention(g, a(N, 48), k.attentionPlan(g, Uint32Array.of(0, 150, N)), { heads: 2 }),
  attentionBackward: (g, a) => {
    const plan = k.attentionPlan(g, Uint32Array.of(0, 150, N));
    return k.attentionBackward(g, a(N, 48), a(N, 16), a(N, 2), a(N, 16), plan, { heads: 2 });
  },
  gatherBackward: (g, a) => {
    const plan = k.gatherPlan(
      g,
      Uint32Array.from({ length: N }, (_, i) => i % 2),
      2,
    );
    return k.gatherBackward(g, a(N, C), plan, [2, C]);
  },
  segmentMax: (g, a) => k.segmentMax(g, a(N, C), k.fromHost(g, Uint32Array.of(0, 10, N)), 2),
  gatherRows: (g, a) => k.gatherRows(g, a(N, C), numbers(g, 5, N)),
  concatColumns: (g, a) => k.concatColumns(g, [a(N, 3), a(N, 4)]),
  matmul: (g, a) => k.matmul(g, a(N, 8), a(16, 8), "NT", { bias: a(16), activation: "gelu" }),
  matmulWithPreactivation: (g, a) => k.matmulWithPreactivation(g, a(N, 8), a(16, 8), "NT", { activation: "gelu" }),
  sum: (g, a) => k.sum(g, a(1_000_000)),
  dot: (g, a) => k.dot(g, a(1_000_000), a(1_000_000)),
  unary: (g, a) => k.unary(g, "gelu", a(N, C)),
  binaryBackward: (g, a) => k.binaryBackward(g, "divide", a(N, C), a(N, C), a(N, C)),
  dropout: (g, a) => k.dropout(g, a(N, C), 0.1, [1, 2]),
};

function arraysOf(result: object): k.NdArray[] {
  return result instanceof k.NdArray ? [result] : Object.values(result);
}

test.each(Object.entries(CASES))("%s leaves its results and nothing else", (_, body) => {
  const g = gpu();
  const mine: k.NdArray[] = [];
  const made: PooledBuffer[] = [];
  // Inputs are allocated here, plans uploaded by the case itself: only `fromHost` writes.
  const allocate = vi.spyOn(g, "allocate").mockImplementation((...args) => {
    const buffer = Gpu.prototype.allocate.apply(g, args);
    made.push(buffer);
    return buffer;
  });
  const write = vi.spyOn(g, "write").mockImplementation((view, data) => {
    mine.push(view as k.NdArray);
    Gpu.prototype.write.call(g, view, data);
  });
  const results = arraysOf(
    body(g, (...shape) => {
      const array = k.empty(g, shape);
      k.fill(g, array, 1);
      mine.push(array);
      return array;
    }),
  );
  allocate.mockRestore();
  write.mockRestore();
  const left = made.filter((buffer) => buffer.live);
  expect.soft(left.length - mine.length, "buffers left").toBe(results.length);
  for (const buffer of left) g.release(buffer);
});
