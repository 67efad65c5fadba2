/**
 * @file Every operation once, at sizes at which all its dispatches happen and take several workgroups: for tests of what
 * all operations have in common.
 */
import type { Gpu } from "../../src/gpu/index.ts";
import * as k from "../../src/kernels/index.ts";

/** Makes an input of this shape. */
type Input = (...shape: number[]) => k.NdArray;

/** Many rows, and rows long enough for several threads. */
const [N, C] = [200, 1024];
/** Long enough for partial sums to be folded before they are finished. */
const LONG = 1_000_000;
const STRETCH = { offset: 0, length: LONG, priorScale: 0.1 };

const numbers = (g: Gpu, n: number, bound: number) =>
  k.fromHost(
    g,
    Uint32Array.from({ length: n }, (_, i) => (7 * i) % bound),
  );
const lookups = (g: Gpu, a: Input, tables: number) =>
  Array.from({ length: tables }, (_, j) => ({ table: a(9 + j, C), ids: numbers(g, N, 9 + j) }));
const vectors = (a: Input) => ({ theta: a(LONG), grad: a(LONG), mu: a(LONG) });
const step = { lr: 0.1, step: 1, last: true, decay: 0.01 };
const noisy = { lr: 0.1, temperature: 0.5, key: [5, 6] as const, step: 1, last: true, real: [STRETCH] };

/** Name → what it does; it returns its results, among them what it changed in place. */
export const CASES: Record<string, (g: Gpu, a: Input) => k.NdArray | Record<string, k.NdArray>> = {
  columnSum: (g, a) => k.columnSum(g, a(N, 1020)),
  "columnSum of many columns": (g, a) => k.columnSum(g, a(N, C)),
  "layerNorm, plain": (g, a) => ({ ...k.layerNorm(g, a(N, C), a(C), a(C), 1e-5, "plain") }),
  "layerNorm, workgroup": (g, a) => ({ ...k.layerNorm(g, a(N, C), a(C), a(C), 1e-5, "workgroup") }),
  "layerNorm, subgroup": (g, a) => ({ ...k.layerNorm(g, a(N, C), a(C), a(C), 1e-5, "subgroup") }),
  "addLayerNorm, plain": (g, a) => ({ ...k.addLayerNorm(g, a(N, C), a(N, C), a(C), a(C), 1e-5, "plain") }),
  "addLayerNorm, workgroup": (g, a) => ({ ...k.addLayerNorm(g, a(N, C), a(N, C), a(C), a(C), 1e-5, "workgroup") }),
  "addLayerNorm, subgroup": (g, a) => ({ ...k.addLayerNorm(g, a(N, C), a(N, C), a(C), a(C), 1e-5, "subgroup") }),
  "layerNormBackward, plain": (g, a) => k.layerNormBackward(g, a(N, C), a(N, C), a(C), a(N, 2), {}, "plain"),
  "layerNormBackward, workgroup": (g, a) => k.layerNormBackward(g, a(N, C), a(N, C), a(C), a(N, 2), {}, "workgroup"),
  "layerNormBackward, subgroup": (g, a) => k.layerNormBackward(g, a(N, C), a(N, C), a(C), a(N, 2), {}, "subgroup"),
  "softmax, passes": (g, a) => k.softmax(g, a(N, C), "passes"),
  "softmax, resident": (g, a) => k.softmax(g, a(N, 64), "resident"),
  "softmax of long rows, resident": (g, a) => k.softmax(g, a(N, 384), "resident"),
  "softmaxBackward, resident": (g, a) => k.softmaxBackward(g, a(N, 64), a(N, 64), "resident"),
  "softmaxBackward of long rows, resident": (g, a) => k.softmaxBackward(g, a(N, 384), a(N, 384), "resident"),
  "softmax of short rows": (g, a) => k.softmax(g, a(N * C, 3)),
  "logSoftmaxBackward, passes": (g, a) => k.logSoftmaxBackward(g, a(N, C), a(N, C), "passes"),
  "softmaxBackward of short rows": (g, a) => k.softmaxBackward(g, a(N * C, 3), a(N * C, 3)),
  crossEntropy: (g, a) => ({ ...k.crossEntropy(g, a(N, C), numbers(g, N, C)) }),
  crossEntropyBackward: (g, a) => k.crossEntropyBackward(g, a(N, C), numbers(g, N, C), a(N), a(N)),
  gather: (g, a) => k.gather(g, a(9, C), numbers(g, N, 9)),
  "gatherSum of two": (g, a) => k.gatherSum(g, lookups(g, a, 2)),
  "gatherSum of three": (g, a) => k.gatherSum(g, lookups(g, a, 3)),
  gatherBackward: (g, a) => {
    const ids = Uint32Array.from({ length: N }, (_, i) => i % 2); // more of one than a thread sums
    return k.gatherBackward(g, a(N, C), k.gatherPlan(g, ids, 2), [2, C]);
  },
  segmentMean: (g, a) => k.segmentMean(g, a(N, C), k.fromHost(g, Uint32Array.of(0, 10, N)), 2),
  segmentMeanBackward: (g, a) => k.segmentMeanBackward(g, a(2, C), k.fromHost(g, Uint32Array.of(0, 10, N)), N),
  segmentMax: (g, a) => ({ ...k.segmentMax(g, a(N, C), k.fromHost(g, Uint32Array.of(0, 10, N)), 2) }),
  segmentMaxBackward: (g, a) => k.segmentMaxBackward(g, a(2, C), numbers(g, 2 * C, N).reshape([2, C]), N),
  gatherRows: (g, a) => k.gatherRows(g, a(N, C), numbers(g, 50, N)),
  scatterRows: (g, a) => k.scatterRows(g, a(50, C), numbers(g, 50, N), N),
  concatColumns: (g, a) => k.concatColumns(g, [a(N, 301), a(N, 4)]),
  sliceColumns: (g, a) => k.sliceColumns(g, a(N, C), 3, 500),
  matmul: (g, a) => k.matmul(g, a(N, 8), a(16, 8), "NT", { bias: a(16), activation: "gelu" }),
  matmulWithPreactivation: (g, a) => k.matmulWithPreactivation(g, a(N, 8), a(16, 8), "NT", { activation: "gelu" }),
  sum: (g, a) => k.sum(g, a(LONG)),
  dot: (g, a) => k.dot(g, a(LONG), a(LONG)),
  unary: (g, a) => k.unary(g, "gelu", a(N, C)),
  unaryBackward: (g, a) => k.unaryBackward(g, "gelu", a(N, C), a(N, C)),
  binary: (g, a) => k.binary(g, "divide", a(N, C), a(N, C)),
  binaryBackward: (g, a) => k.binaryBackward(g, "multiply", a(N, C), a(N, C), a(N, C)),
  scale: (g, a) => k.scale(g, a(N, C), 0.3, 1),
  addRow: (g, a) => k.addRow(g, a(N, C), a(C)),
  "addRow of odd width": (g, a) => k.addRow(g, a(N, 301), a(301)),
  broadcastScalar: (g, a) => k.broadcastScalar(g, a(1), [N, C], 2),
  addInto: (g, a) => {
    const target = a(N, C);
    k.addInto(g, target, a(N, C), 0.5);
    return target;
  },
  fill: (g) => {
    const target = k.empty(g, [N, C]);
    k.fill(g, target, 3);
    return target;
  },
  dropout: (g, a) => k.dropout(g, a(N, C), 0.1, [1, 2]),
  vectorTerms: (g, a) => {
    const status = k.createStatus(g);
    return { terms: k.vectorTerms(g, vectors(a), [STRETCH], status, { clip: 1 }), status };
  },
  adamUpdate: (g, a) => {
    const [status, all] = [k.createStatus(g), { ...vectors(a), m: a(LONG), v: k.unary(g, "square", a(LONG)) }];
    k.adamUpdate(g, all, STRETCH, status, { ...step, beta1: 0.9, beta2: 0.99, eps: 1e-8 });
    return { status, theta: all.theta, m: all.m, v: all.v };
  },
  sgdUpdate: (g, a) => {
    const [status, all] = [k.createStatus(g), vectors(a)];
    k.sgdUpdate(g, all, STRETCH, status, { ...step, momentum: 0 });
    return { status, theta: all.theta };
  },
  "sgdUpdate with momentum": (g, a) => {
    const [status, all] = [k.createStatus(g), { ...vectors(a), momentum: a(LONG) }];
    k.sgdUpdate(g, all, STRETCH, status, { ...step, momentum: 0.9 });
    return { status, theta: all.theta, momentum: all.momentum };
  },
  normal: (g) => k.normal(g, [N, C], [5, 6]),
  categorical: (g, a) => k.categorical(g, a(N, C), [5, 6]),
  addSquares: (g, a) => {
    const sum = a(LONG);
    k.addSquares(g, a(LONG), sum, 0.5);
    return sum;
  },
  lowRank: (g, a) => {
    const [columns, out] = [Array.from({ length: 5 }, () => a(LONG)), a(LONG)];
    const whole = [{ offset: 0, length: LONG, weight: 0.5 }];
    const c = k.lowRankProject(g, columns, a(LONG), a(LONG), whole);
    k.lowRankCombine(g, columns, c, out, whole);
    return { c, out };
  },
  mixout: (g, a) => {
    const [theta, grad] = [a(LONG), a(LONG)];
    const options = { p: 0.3, key: [5, 6] as const };
    k.mixoutWeights(g, theta, a(LONG), [STRETCH], options);
    k.mixoutGradient(g, grad, [STRETCH], options);
    return { theta, grad };
  },
  "langevinUpdate, SGLD": (g, a) => {
    const [status, all] = [k.createStatus(g), vectors(a)];
    k.langevinUpdate(g, all, STRETCH, status, noisy);
    return { status, theta: all.theta };
  },
  "langevinUpdate, SGHMC": (g, a) => {
    const [status, all] = [k.createStatus(g), { ...vectors(a), velocity: a(LONG) }];
    k.langevinUpdate(g, all, STRETCH, status, { ...noisy, friction: 0.1 });
    return { status, theta: all.theta, velocity: all.velocity };
  },
  rowScale: (g, a) => k.rowScale(g, a(N, C), a(4, C)),
  rowScaleBackward: (g, a) => k.rowScaleBackward(g, a(N, C), a(N, C), 4),
  unscale: (g, a) => {
    const grad = a(LONG);
    k.unscale(g, grad, [STRETCH], k.createLossScale(g, { scale: 8, good: 0, skipped: 0, last: 0 }));
    return grad;
  },
  swagCollect: (g, a) => {
    const [moments, deviation] = [{ mean: a(LONG), m2: a(LONG) }, k.empty(g, [LONG])];
    k.swagCollect(g, a(LONG), moments, deviation, 3);
    return { ...moments, deviation };
  },
  swagDraw: (g, a) => {
    const drawn = k.empty(g, [LONG]);
    const m2 = k.unary(g, "square", a(LONG));
    const gaussian = { mean: a(LONG), m2, points: 4, deviations: [a(LONG), a(LONG)] };
    k.swagDraw(g, gaussian, drawn, { key: [7, 8], weights: [0.5, -1] });
    return { drawn, m2 };
  },
};

for (const kind of ["diagonal", "structured", "laplace", "student"] as const) {
  CASES[`priorGradient, ${kind}`] = (g, a) => {
    const tau = kind === "diagonal" || kind === "structured" ? { tau: a(LONG) } : {};
    const all = { ...vectors(a), total: a(LONG), ...tau };
    const rows = k.priorGradient(g, kind, all, [{ ...STRETCH, scale: 0.1, shape: 2 }]);
    return { rows, total: all.total };
  };
}

for (const family of ["tiled", "subgroup", "unrolled", "plain"] as const) {
  const plan = (g: Gpu) => k.attentionPlan(g, Uint32Array.of(0, 150, N), family);
  const options = { heads: 2, dropout: { p: 0.1, key: [3, 4] as const } };
  CASES[`attention, ${family}`] = (g, a) => ({ ...k.attention(g, a(N, 96), plan(g), options) });
  CASES[`attentionBackward, ${family}`] = (g, a) =>
    k.attentionBackward(g, a(N, 96), a(N, 32), a(N, 2), a(N, 32), plan(g), options);
}

/** The arrays of what a case returns. */
export function arraysOf(result: k.NdArray | Record<string, k.NdArray>): k.NdArray[] {
  return result instanceof k.NdArray ? [result] : Object.values(result);
}

/** Inputs in (−1, 1), the same for each new maker. */
export function inputMaker(gpu: Gpu, made: (array: k.NdArray) => void = () => {}): Input {
  let next = 1;
  return (...shape) => {
    // A million numbers for most cases, in a loop since `from` with a function takes ten times as long.
    const values = new Float32Array(k.sizeOf(shape));
    for (let i = 0; i < values.length; i++) {
      next = (Math.imul(next, 1664525) + 1013904223) | 0;
      values[i] = next / 2 ** 31;
    }
    const array = k.fromHost(gpu, values, shape);
    made(array);
    return array;
  };
}
