/**
 * @file Small models whose posteriors are known: linear regression (a Gaussian mean is one with x = 1), softmax
 * regression, and a two-layer net with an encoder and a head. Written with the engine's own operations.
 */
import { type Engine, Layout, ops, type Tensor, Theta } from "../../src/autograd/index.ts";
import { fromHost } from "../../src/kernels/index.ts";
import { Stream } from "../../src/random.ts";
import type { Likelihood } from "../../src/train/objective.ts";
import type { Source } from "../../src/train/source.ts";

export interface Rows {
  /** [n, d] */
  x: Float32Array;
  /** [n] */
  y: Float32Array;
  d: number;
}

export type Toy = Likelihood<Rows> & { theta: Theta; dispose(): void };

/** Rows of a data set as a training source. */
export function rowSource({ x, y, d }: Rows): Source<Rows> {
  return {
    length: y.length,
    batch: (rows) => ({
      x: Float32Array.from(rows.flatMap((row) => [...x.subarray(row * d, (row + 1) * d)])),
      y: Float32Array.from(rows, (row) => y[row] as number),
      d,
    }),
  };
}

/** y = xθ + noise of variance σ²; NLL (y − xθ)²/2σ² without its constant. θ starts at `start` (0 if not given). */
export function linearRegression(engine: Engine, d: number, sigma2: number, start?: Float32Array): Toy {
  const theta = new Theta(
    engine,
    new Layout([{ key: "w", parameters: [{ name: "w", shape: [1, d] }], groups: ["encoder"] }]),
  );
  if (start) theta.set("w", start);
  return {
    engine,
    theta,
    loss({ x, y }) {
      const n = y.length;
      const mean = ops.linear(engine.tensor(x, [n, d]), theta.tensor("w")); // [n, 1]
      const error = ops.subtract(mean, engine.tensor(y, [n, 1]));
      return { nlls: ops.reshape(ops.scale(ops.multiply(error, error), 0.5 / sigma2), [n]), count: n };
    },
    dispose: () => theta.dispose(),
  };
}

/**
 * R linear regressions on the same rows, each with weights of its own [R, d], as one model: a step moves them all, and what
 * is drawn at random for a weight is drawn R times. Its loss is the sum of theirs. Each starts at `start`.
 */
export function regressions(engine: Engine, R: number, sigma2: number, start: readonly number[]): Toy {
  const d = start.length;
  const theta = new Theta(
    engine,
    new Layout([{ key: "w", parameters: [{ name: "w", shape: [R, d] }], groups: ["encoder"] }]),
  );
  const everywhere = Float32Array.from({ length: R * d }, (_, i) => start[i % d]!);
  theta.set("w", everywhere);
  return {
    engine,
    theta,
    loss({ x, y }) {
      const n = y.length;
      const mean = ops.linear(engine.tensor(x, [n, d]), theta.tensor("w")); // [n, R]
      const targets = Float32Array.from({ length: n * R }, (_, i) => y[Math.floor(i / R)]!);
      const error = ops.subtract(mean, engine.tensor(targets, [n, R]));
      return { nlls: ops.reshape(ops.scale(ops.multiply(error, error), 0.5 / sigma2), [n * R]), count: n };
    },
    dispose: () => theta.dispose(),
  };
}

/** p(y = 1|x, θ) = σ(wᵀx): the logits of the two classes are 0 and wᵀx. w starts at `start` (0 if not given). */
export function logistic(engine: Engine, d: number, start?: Float32Array): Toy & { logits(rows: Rows): Tensor } {
  const theta = new Theta(
    engine,
    new Layout([{ key: "w", parameters: [{ name: "w", shape: [1, d] }], groups: ["encoder"] }]),
  );
  if (start) theta.set("w", start);
  const logits = ({ x, y }: Rows) => {
    const n = y.length;
    const z = ops.linear(engine.tensor(x, [n, d]), theta.tensor("w")); // [n, 1]
    return ops.concat([engine.tensor(new Float32Array(n), [n, 1]), z]); // [n, 2]
  };
  return {
    engine,
    theta,
    logits,
    loss(rows) {
      const targets = fromHost(engine.gpu, Uint32Array.from(rows.y));
      return { nlls: ops.crossEntropy(logits(rows), targets), count: rows.y.length };
    },
    dispose: () => theta.dispose(),
  };
}

/** K classes: encoder W₁ [h, d] and tanh, dropout p on it, head W₂ [K, h], b₂ [K]. */
export function twoLayers(
  engine: Engine,
  { d, h, K, p = 0, seed = 1 }: { d: number; h: number; K: number; p?: number; seed?: number },
): Toy & { logits(rows: Rows): Tensor; newParameters: Set<string> } {
  const theta = new Theta(
    engine,
    new Layout([
      { key: "w1", parameters: [{ name: "w1", shape: [h, d] }], groups: ["encoder", "layer.0"] },
      { key: "b1", parameters: [{ name: "b1", shape: [h] }], groups: ["encoder", "layer.1"] },
      { key: "w2", parameters: [{ name: "w2", shape: [K, h] }], groups: ["head"] },
      { key: "b2", parameters: [{ name: "b2", shape: [K] }], groups: ["head"] },
    ]),
  );
  const stream = new Stream(seed, "toy weights");
  theta.set(
    "w1",
    Float32Array.from({ length: h * d }, () => stream.normal() / Math.sqrt(d)),
  );
  theta.set(
    "b1",
    Float32Array.from({ length: h }, () => 0.1 * stream.normal()),
  );
  theta.set(
    "w2",
    Float32Array.from({ length: K * h }, () => 0.1 * stream.normal()),
  );
  const logits = ({ x, y }: Rows, keys?: (site: number) => readonly [number, number]) => {
    const n = y.length;
    const u = ops.linear(engine.tensor(x, [n, d]), theta.tensor("w1"), {
      bias: theta.tensor("b1"),
      activation: "tanh",
    }); // [n, h]
    const v = keys ? ops.dropout(u, p, keys(0)) : u;
    return ops.linear(v, theta.tensor("w2"), { bias: theta.tensor("b2") }); // [n, K]
  };
  return {
    engine,
    theta,
    newParameters: new Set(["w2", "b2"]),
    logits,
    loss(rows, keys) {
      const targets = fromHost(engine.gpu, Uint32Array.from(rows.y));
      return { nlls: ops.crossEntropy(logits(rows, keys), targets), count: rows.y.length };
    },
    dispose: () => theta.dispose(),
  };
}

/** n rows of standard normals and labels below K that depend on them. */
export function classes(n: number, d: number, K: number, seed = 3): Rows {
  const stream = new Stream(seed, "toy classes");
  const x = Float32Array.from({ length: n * d }, () => stream.normal());
  const y = Float32Array.from({ length: n }, (_, i) => {
    const score = Math.abs((x[i * d] as number) + 0.3 * stream.normal());
    return Math.min(K - 1, Math.floor(score * 2));
  });
  return { x, y, d };
}

/** n rows of standard normals, y = x·truth + σ·noise. */
export function regression(n: number, truth: readonly number[], sigma: number, seed = 4): Rows {
  const stream = new Stream(seed, "toy regression");
  const d = truth.length;
  const x = Float32Array.from({ length: n * d }, () => stream.normal());
  const y = Float32Array.from({ length: n }, (_, i) => {
    const mean = truth.reduce((sum, t, j) => sum + t * (x[i * d + j] as number), 0);
    return mean + sigma * stream.normal();
  });
  return { x, y, d };
}

/** Solves A·z = b in float64 (Gaussian elimination with pivots); A is [d][d]. */
export function solve(A: readonly (readonly number[])[], b: readonly number[]): number[] {
  const d = b.length;
  const m = A.map((row, i) => [...row, b[i] as number]);
  for (let c = 0; c < d; c++) {
    let best = c;
    for (let r = c + 1; r < d; r++) if (Math.abs(m[r]![c]!) > Math.abs(m[best]![c]!)) best = r;
    [m[c], m[best]] = [m[best]!, m[c]!];
    for (let r = 0; r < d; r++) {
      if (r === c) continue;
      const f = m[r]![c]! / m[c]![c]!;
      for (let k = c; k <= d; k++) m[r]![k]! -= f * m[c]![k]!;
    }
  }
  return m.map((row, i) => row[d]! / row[i]!);
}

/** MAP of linear regression in float64: (XᵀX/σ² + τI) θ = Xᵀy/σ² + τμ. */
export function regressionMap({ x, y, d }: Rows, sigma2: number, tau: number, mu: readonly number[]): number[] {
  const A = Array.from({ length: d }, (_, i) => Array.from({ length: d }, (_, j) => (i === j ? tau : 0)));
  const b = mu.map((m) => tau * m);
  for (let r = 0; r < y.length; r++) {
    for (let i = 0; i < d; i++) {
      b[i]! += (x[r * d + i]! * y[r]!) / sigma2;
      for (let j = 0; j < d; j++) A[i]![j]! += (x[r * d + i]! * x[r * d + j]!) / sigma2;
    }
  }
  return solve(A, b);
}

export function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i]! - b[i]!) ** 2;
  return Math.sqrt(sum);
}
