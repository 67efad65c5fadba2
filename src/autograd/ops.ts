/**
 * @file Every differentiable operation with all its gradients side by side: the forward kernel, then a rule that says
 * what each input's gradient is. dy is the gradient of the output; `d.accept(make)` asks for a contribution only if it
 * is needed, and lets a kernel write straight into the gradient vector where the input is a parameter.
 * Shapes: N tokens, C channels, B sequences, K classes.
 */

import type { NdArray } from "../kernels/index.ts";
import * as k from "../kernels/index.ts";
import type { Sink } from "./tape.ts";
import type { Tensor } from "./tensor.ts";

const arrays = (ts: readonly Tensor[]): NdArray[] => ts.map((t) => t.array);

// ---- linear algebra

/** a·b by layout: NN [M,K][K,N], NT [M,K][N,K], TN [K,M][K,N] → [M,N]. */
export function matmul(a: Tensor, b: Tensor, layout: k.Layout = "NN"): Tensor {
  const { gpu } = a.engine;
  const [A, B] = [a.array, b.array];
  return a.engine.record("matmul", [a, b], k.matmul(gpu, A, B, layout), (dy, [da, db]) => {
    // y = AB: dA = dy·Bᵀ, dB = Aᵀ·dy; the other layouts transpose what they transpose.
    if (layout === "NN") {
      da!.accept((into) => k.matmul(gpu, dy, B, "NT", at(into)));
      db!.accept((into) => k.matmul(gpu, A, dy, "TN", at(into)));
    } else if (layout === "NT") {
      da!.accept((into) => k.matmul(gpu, dy, B, "NN", at(into)));
      db!.accept((into) => k.matmul(gpu, dy, A, "TN", at(into)));
    } else {
      da!.accept((into) => k.matmul(gpu, B, dy, "NT", at(into)));
      db!.accept((into) => k.matmul(gpu, A, dy, "NN", at(into)));
    }
  });
}

export interface LinearOptions {
  bias?: Tensor;
  activation?: "gelu" | "gelu_tanh" | "relu" | "silu" | "tanh";
  /** [N, out], added last. */
  residual?: Tensor;
}

/**
 * act(x·Wᵀ + b) + residual in one kernel: x [N, in], W [out, in] (as checkpoints keep it), b [out] → [N, out]. With an
 * activation, the value before it is kept for the backward.
 */
export function linear(x: Tensor, weight: Tensor, { bias, activation, residual }: LinearOptions = {}): Tensor {
  const { engine } = x;
  const { gpu } = engine;
  const [X, W] = [x.array, weight.array];
  const options = {
    ...(bias ? { bias: bias.array } : {}),
    ...(residual ? { residual: residual.array } : {}),
  };
  const inputs = [x, weight, ...(bias ? [bias] : []), ...(residual ? [residual] : [])];
  let y: NdArray;
  let u: NdArray | undefined;
  if (activation && engine.records(inputs)) {
    ({ y, u } = k.matmulWithPreactivation(gpu, X, W, "NT", { ...options, activation }));
  } else {
    y = k.matmul(gpu, X, W, "NT", activation ? { ...options, activation } : options);
  }
  engine.linearWatch?.forward?.({ input: X, weight: W, bias: bias?.array, output: y });
  return engine.record(
    "linear",
    inputs,
    y,
    (dy, sinks) => {
      const [dx, dw] = sinks as [Sink, Sink];
      const db = bias ? (sinks[2] as Sink) : undefined;
      if (residual) (sinks.at(-1) as Sink).pass(dy);
      const du = activation && u ? k.unaryBackward(gpu, activation, u, dy) : dy;
      engine.linearWatch?.backward?.({ input: X, weight: W, gradient: du });
      dx.accept((into) => k.matmul(gpu, du, W, "NN", at(into)));
      dw.accept((into) => k.matmul(gpu, du, X, "TN", at(into)));
      db?.accept((into) => k.columnSum(gpu, du, into));
      if (du !== dy) gpu.releaseScoped(du.buffer);
    },
    u ? [u] : [],
    [X, W, ...(u ? [u] : [])],
  );
}

/** Softmax attention of every token over its own sequence: qkv [N, 3C] → [N, C]. No mask: `plan` lists the sequences. */
export function attention(qkv: Tensor, plan: k.AttentionPlan, options: k.AttentionOptions): Tensor {
  const { gpu } = qkv.engine;
  const { y, lse } = k.attention(gpu, qkv.array, plan, options);
  return qkv.engine.record(
    "attention",
    [qkv],
    y,
    (dy, [dqkv]) => dqkv!.accept(() => k.attentionBackward(gpu, qkv.array, y, lse, dy, plan, options)),
    [lse],
  );
}

// ---- normalisation and probabilities

/** γ ⊙ (x − mean)/√(var + eps) + β over the last axis: x [N, C]. */
export function layerNorm(x: Tensor, gamma: Tensor, beta: Tensor, eps: number): Tensor {
  const { gpu } = x.engine;
  const { y, stats } = k.layerNorm(gpu, x.array, gamma.array, beta.array, eps);
  return x.engine.record(
    "layerNorm",
    [x, gamma, beta],
    y,
    (dy, sinks) => {
      const [dx, dgamma, dbeta] = sinks as [Sink, Sink, Sink];
      const d = k.layerNormBackward(gpu, dy, x.array, gamma.array, stats, { gamma: dgamma.into(), beta: dbeta.into() });
      dx.give(d.dx);
      dgamma.give(d.dgamma);
      dbeta.give(d.dbeta);
    },
    [stats],
    [x.array, gamma.array, stats],
  );
}

/** layerNorm(x + residual), all [N, C], in one kernel; the sum is kept for the backward, which gives both the same. */
export function addLayerNorm(x: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, eps: number): Tensor {
  const { gpu } = x.engine;
  const { y, stats, sum } = k.addLayerNorm(gpu, x.array, residual.array, gamma.array, beta.array, eps);
  return x.engine.record(
    "addLayerNorm",
    [x, residual, gamma, beta],
    y,
    (dy, sinks) => {
      const [dx, dresidual, dgamma, dbeta] = sinks as [Sink, Sink, Sink, Sink];
      const d = k.layerNormBackward(gpu, dy, sum, gamma.array, stats, { gamma: dgamma.into(), beta: dbeta.into() });
      dx.pass(d.dx);
      dresidual.pass(d.dx);
      dgamma.give(d.dgamma);
      dbeta.give(d.dbeta);
    },
    [stats, sum],
    [sum, gamma.array, stats],
  );
}

/** Softmax over the last axis: [N, C] → [N, C]. */
export function softmax(x: Tensor): Tensor {
  const { gpu } = x.engine;
  const y = k.softmax(gpu, x.array);
  return x.engine.record("softmax", [x], y, (dy, [dx]) => dx!.accept(() => k.softmaxBackward(gpu, y, dy)));
}

/** log softmax over the last axis: [N, C] → [N, C], nats. */
export function logSoftmax(x: Tensor): Tensor {
  const { gpu } = x.engine;
  const y = k.logSoftmax(gpu, x.array);
  return x.engine.record("logSoftmax", [x], y, (dy, [dx]) => dx!.accept(() => k.logSoftmaxBackward(gpu, y, dy)));
}

/** −log softmax(logits)[target], row by row: logits [B, K], targets u32 [B] → [B], nats. */
export function crossEntropy(logits: Tensor, targets: NdArray): Tensor {
  const { gpu } = logits.engine;
  const { loss, lse } = k.crossEntropy(gpu, logits.array, targets);
  return logits.engine.record(
    "crossEntropy",
    [logits],
    loss,
    (dloss, [dlogits]) => dlogits!.accept(() => k.crossEntropyBackward(gpu, logits.array, targets, lse, dloss)),
    [lse],
  );
}

// ---- element by element

/** f(x) for a function of the elementwise table. */
export function unary(op: k.UnaryOp, x: Tensor): Tensor {
  const { gpu } = x.engine;
  return x.engine.record(op, [x], k.unary(gpu, op, x.array), (dy, [dx]) =>
    dx!.accept(() => k.unaryBackward(gpu, op, x.array, dy)),
  );
}

export const gelu = (x: Tensor): Tensor => unary("gelu", x);
export const tanh = (x: Tensor): Tensor => unary("tanh", x);
export const relu = (x: Tensor): Tensor => unary("relu", x);
export const silu = (x: Tensor): Tensor => unary("silu", x);

/** a + b, same shape. */
export function add(a: Tensor, b: Tensor): Tensor {
  return a.engine.record("add", [a, b], k.binary(a.engine.gpu, "add", a.array, b.array), (dy, [da, db]) => {
    da!.pass(dy);
    db!.pass(dy);
  });
}

/** a − b, same shape. */
export function subtract(a: Tensor, b: Tensor): Tensor {
  const { gpu } = a.engine;
  return a.engine.record("subtract", [a, b], k.binary(gpu, "subtract", a.array, b.array), (dy, [da, db]) => {
    da!.pass(dy);
    db!.accept(() => k.unary(gpu, "negate", dy));
  });
}

/** a ⊙ b, same shape. */
export function multiply(a: Tensor, b: Tensor): Tensor {
  const { gpu } = a.engine;
  return a.engine.record("multiply", [a, b], k.binary(gpu, "multiply", a.array, b.array), (dy, [da, db]) => {
    da!.accept(() => k.binary(gpu, "multiply", dy, b.array));
    db!.accept(() => k.binary(gpu, "multiply", dy, a.array));
  });
}

/** a / b, same shape. */
export function divide(a: Tensor, b: Tensor): Tensor {
  const { gpu } = a.engine;
  return a.engine.record("divide", [a, b], k.binary(gpu, "divide", a.array, b.array), (dy, sinks) => {
    const { da, db } = k.binaryBackward(gpu, "divide", a.array, b.array, dy);
    sinks[0]!.give(da);
    sinks[1]!.give(db);
  });
}

/** alpha·x + shift. */
export function scale(x: Tensor, alpha: number, shift = 0): Tensor {
  const { gpu } = x.engine;
  return x.engine.record("scale", [x], k.scale(gpu, x.array, alpha, shift), (dy, [dx]) =>
    dx!.accept(() => k.scale(gpu, dy, alpha)),
  );
}

/** Σ alpha·x → [1], by a fixed tree. */
export function sum(x: Tensor, alpha = 1): Tensor {
  const { gpu } = x.engine;
  return x.engine.record("sum", [x], k.sum(gpu, x.array, alpha), (dy, [dx]) =>
    dx!.accept(() => k.broadcastScalar(gpu, dy, x.shape, alpha)),
  );
}

/** Mean → [1]. */
export const mean = (x: Tensor): Tensor => sum(x, 1 / x.size);

/** x·mask/(1 − p); the mask is a function of key and element, so the backward makes it again. */
export function dropout(x: Tensor, p: number, key: readonly [number, number]): Tensor {
  if (p === 0) return x;
  const { gpu } = x.engine;
  return x.engine.record(
    "dropout",
    [x],
    k.dropout(gpu, x.array, p, key),
    (dy, [dx]) => dx!.accept(() => k.dropout(gpu, dy, p, key)),
    [],
    [],
  );
}

/** The same numbers under another shape; no work. */
export function reshape(x: Tensor, shape: readonly number[]): Tensor {
  return x.engine.record("reshape", [x], x.array.reshape(shape), (dy, [dx]) => dx!.pass(dy.reshape(x.shape)));
}

// ---- rows and sequences

/** One row of `table` [V, C] for each id (u32 [N], on the host) → [N, C]. */
export const embedding = (table: Tensor, ids: Uint32Array): Tensor => embeddingSum([{ table, ids }]);

/**
 * Σ of one to three embeddings in one kernel, as BERT adds word + position + type → [N, C]. The gradient of a row adds
 * up its tokens in an order fixed on the host, so that it has the same bits every time.
 */
export function embeddingSum(lookups: readonly { table: Tensor; ids: Uint32Array }[]): Tensor {
  const tables = lookups.map(({ table }) => table);
  const { engine } = tables[0] as Tensor;
  const { gpu } = engine;
  const ids = lookups.map((lookup) => k.fromHost(gpu, lookup.ids));
  const plans = lookups.map(({ table, ids }) =>
    engine.records([table]) ? k.gatherPlan(gpu, ids, table.shape[0] as number) : undefined,
  );
  const y = k.gatherSum(
    gpu,
    tables.map((table, i) => ({ table: table.array, ids: ids[i] as NdArray })),
  );
  return engine.record("embeddingSum", tables, y, (dy, sinks) => {
    for (const [i, table] of tables.entries()) {
      const plan = plans[i] as k.GatherPlan;
      sinks[i]!.accept((into) => k.gatherBackward(gpu, dy, plan, table.shape as [number, number], into), plan.distinct);
    }
  });
}

/** Rows of x [N, C] at `index` (u32 [M], distinct) → [M, C]. */
export function rows(x: Tensor, index: NdArray): Tensor {
  const { gpu } = x.engine;
  return x.engine.record("rows", [x], k.gatherRows(gpu, x.array, index), (dy, [dx]) =>
    dx!.accept(() => k.scatterRows(gpu, dy, index, x.shape[0] as number)),
  );
}

/** All rows S times over, x [B, C] → [S·B, C]; each row's gradient is the sum over its copies, in their order. */
export function repeatRows(x: Tensor, S: number): Tensor {
  const { gpu } = x.engine;
  const [B, C] = x.shape as [number, number];
  const index = k.fromHost(
    gpu,
    Uint32Array.from({ length: S * B }, (_, i) => i % B),
  );
  return x.engine.record("repeatRows", [x], k.gatherRows(gpu, x.array, index), (dy, [dx]) =>
    dx!.accept(() => k.columnSum(gpu, dy.reshape([S, B * C])).reshape([B, C])),
  );
}

/** Row i of segment m times v[m]: x [S·n, C] in S segments of n rows, v [S, C] → [S·n, C]. */
export function rowScale(x: Tensor, v: Tensor): Tensor {
  const { gpu } = x.engine;
  const [X, V] = [x.array, v.array];
  return x.engine.record("rowScale", [x, v], k.rowScale(gpu, X, V), (dy, [dx, dv]) => {
    dx!.accept(() => k.rowScale(gpu, dy, V));
    dv!.accept((into) => k.rowScaleBackward(gpu, dy, X, V.shape[0] as number, into));
  });
}

/** Mean over each sequence: x [N, C], starts u32 [B+1] → [B, C]. */
export function segmentMean(x: Tensor, starts: NdArray): Tensor {
  const { gpu } = x.engine;
  const b = starts.size - 1;
  return x.engine.record("segmentMean", [x], k.segmentMean(gpu, x.array, starts, b), (dy, [dx]) =>
    dx!.accept(() => k.segmentMeanBackward(gpu, dy, starts, x.shape[0] as number)),
  );
}

/** Maximum over each sequence, channel by channel: x [N, C], starts u32 [B+1] → [B, C]. */
export function segmentMax(x: Tensor, starts: NdArray): Tensor {
  const { gpu } = x.engine;
  const { y, argmax } = k.segmentMax(gpu, x.array, starts, starts.size - 1);
  return x.engine.record(
    "segmentMax",
    [x],
    y,
    (dy, [dx]) => dx!.accept(() => k.segmentMaxBackward(gpu, dy, argmax, x.shape[0] as number)),
    [argmax],
  );
}

/** Columns side by side: [N, C₁], [N, C₂], … → [N, ΣC]. */
export function concat(parts: readonly Tensor[]): Tensor {
  const { engine } = parts[0] as Tensor;
  return engine.record("concat", parts, k.concatColumns(engine.gpu, arrays(parts)), (dy, sinks) => {
    let from = 0;
    for (const [i, part] of parts.entries()) {
      const start = from;
      const width = part.shape[1] as number;
      sinks[i]!.accept(() => k.sliceColumns(engine.gpu, dy, start, width));
      from += width;
    }
  });
}

function at(into: k.Into | undefined): { into: k.Into } | Record<string, never> {
  return into ? { into } : {};
}
