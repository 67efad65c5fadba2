/**
 * @file BERT's parts over the algebra: attention as product + softmax + product, an encoder layer, the classifier's loss,
 * the embeddings. x is [B·T, C] or [B, T, C] flattened to rows; weights are [in, out] here, so that every peer multiplies
 * in its natural layout (priorwork and PyTorch keep them as [out, in], as checkpoints do).
 */
import type { Algebra, Input } from "./peer.ts";

export const EPS = 1e-12;

/** One encoder layer's weights: name → shape. C channels, F of the feed-forward layer. */
export function layerShapes(prefix: string, c: number, f: number): Record<string, readonly number[]> {
  const dense = (name: string, input: number, out: number) => ({
    [`${prefix}${name}.w`]: [input, out],
    [`${prefix}${name}.b`]: [out],
  });
  const norm = (name: string) => ({ [`${prefix}${name}.gamma`]: [c], [`${prefix}${name}.beta`]: [c] });
  return {
    ...dense("query", c, c),
    ...dense("key", c, c),
    ...dense("value", c, c),
    ...dense("out", c, c),
    ...norm("norm1"),
    ...dense("up", c, f),
    ...dense("down", f, c),
    ...norm("norm2"),
  };
}

/** q, k, v [G, T, D], mask [G, 1, T] to be added to the scores → [G, T, D]. */
export function attend<T>(a: Algebra<T>, q: T, k: T, v: T, d: number, mask?: T): T {
  const scores = a.scale(a.matmul(q, k, "NT"), 1 / Math.sqrt(d)); // [G, T, T]
  return a.matmul(a.softmax(mask === undefined ? scores : a.add(scores, mask)), v);
}

/** x [B·T, C], mask [B·H, 1, T] to be added to the scores → [B·T, C]. */
export function encoderLayer<T>(
  a: Algebra<T>,
  x: T,
  p: (name: string) => T,
  { b, t, c, heads }: { b: number; t: number; c: number; heads: number },
  mask?: T,
): T {
  const d = c / heads;
  const linear = (y: T, name: string) => a.add(a.matmul(y, p(`${name}.w`)), p(`${name}.b`));
  const split = (name: string) =>
    a.reshape(a.permute(a.reshape(linear(x, name), [b, t, heads, d]), [0, 2, 1, 3]), [b * heads, t, d]);
  const context = attend(a, split("query"), split("key"), split("value"), d, mask); // [B·H, T, D]
  const joined = a.reshape(a.permute(a.reshape(context, [b, heads, t, d]), [0, 2, 1, 3]), [b * t, c]);
  const attended = a.layerNorm(a.add(linear(joined, "out"), x), p("norm1.gamma"), p("norm1.beta"), EPS);
  const hidden = a.gelu(linear(attended, "up")); // [B·T, F]
  return a.layerNorm(a.add(linear(hidden, "down"), attended), p("norm2.gamma"), p("norm2.beta"), EPS);
}

/** Layers one after the other. x has their weights and, where there is padding, the mask. */
export function encoder<T>(
  a: Algebra<T>,
  x: Record<string, T>,
  start: T,
  sizes: { b: number; t: number; c: number; heads: number },
  layers: number,
): T {
  let y = start;
  for (let i = 0; i < layers; i++) y = encoderLayer(a, y, (name) => x[`${i}.${name}`] as T, sizes, x.mask);
  return y;
}

/** Normal numbers; weights are small, scales of layer norms near 1. */
export function fill(
  shapes: Record<string, readonly number[]>,
  normal: () => number,
  deviation = 0.06,
): Record<string, Input> {
  const inputs: Record<string, Input> = {};
  for (const [name, shape] of Object.entries(shapes)) {
    const [centre, width] = name.endsWith("gamma") ? [1, 0.1] : name.endsWith(".w") ? [0, deviation] : [0, 0.1];
    const size = shape.reduce((a, b) => a * b, 1);
    inputs[name] = { shape, data: Float32Array.from({ length: size }, () => centre + width * normal()) };
  }
  return inputs;
}
