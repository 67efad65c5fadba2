/** @file The tasks of a whole model: an encoder layer, inference, training; and what they share with the others. */
import { Stream } from "../../src/random.ts";
import { EPS, encoder, encoderLayer, fill, layerShapes } from "./model.ts";
import { type Algebra, type Batch, type Input, sizeOf, type Task } from "./peer.ts";
import { tokensOf } from "./sst2.ts";

export type Shapes = Record<string, readonly number[]>;

/** B sequences of T tokens, C channels, F of the feed-forward layer. */
export interface Size {
  B: number;
  T: number;
  C: number;
  F: number;
  HEADS: number;
  LAYERS: number;
  VOCABULARY: number;
}

export function normals(name: string, shapes: Shapes): Record<string, Input> {
  const stream = new Stream(7, name);
  return fill(shapes, () => stream.normal());
}

export function get<A>(x: Record<string, A>, name: string): A {
  const found = x[name];
  if (found === undefined) throw new Error(`no input ${name}`);
  return found;
}

/** Of a layer forward: its products with weights, and the scores' two. A multiply-add counts two. */
function layerFlops({ C, F }: Size, lengths: readonly number[]): number {
  return lengths.reduce((sum, t) => sum + 2 * t * (4 * C * C + 2 * C * F) + 4 * t * t * C, 0);
}

export function layer(size: Size, backward: boolean): Task {
  const { B, T, C, F, HEADS } = size;
  const weights = layerShapes("", C, F);
  const shapes = { x: [B * T, C], ...weights, ...(backward ? { dy: [B * T, C] } : {}) };
  return {
    name: `layer${backward ? ".forward+backward" : ""}`,
    shape: { B, T, C },
    work: { kind: "layer", heads: HEADS, sequences: B, layers: 1 },
    inputs: () => normals("layer", shapes),
    forward: (a, x) => encoderLayer(a, get(x, "x"), (name) => get(x, name), { b: B, t: T, c: C, heads: HEADS }),
    weights: Object.keys(weights),
    ...(backward ? { gradients: ["x", ...Object.keys(weights)] } : {}),
    flops: (backward ? 3 : 1) * layerFlops(size, Array(B).fill(T)),
  };
}

function layersOf({ C, F, LAYERS }: Size): Shapes {
  return Object.assign({}, ...Array.from({ length: LAYERS }, (_, i) => layerShapes(`${i}.`, C, F)));
}

export function inference(size: Size): Task {
  const { B, T, C, HEADS, LAYERS, VOCABULARY } = size;
  const tables: Shapes = { "words.w": [VOCABULARY, C], "positions.w": [T, C], "types.w": [2, C] };
  const weights: Shapes = { ...tables, "norm.gamma": [C], "norm.beta": [C], ...layersOf(size) };
  return {
    name: "inference",
    shape: { B, T, C, layers: LAYERS },
    work: { kind: "inference", heads: HEADS, sequences: B, layers: LAYERS },
    inputs: () => {
      const stream = new Stream(7, "ids");
      const ids = (id: (i: number) => number) => ({ shape: [B * T], data: Int32Array.from({ length: B * T }, (_, i) => id(i)) }); // biome-ignore format: one row
      return {
        ...normals("inference", weights),
        ids: ids(() => stream.integer(VOCABULARY)),
        positionIds: ids((i) => i % T),
        typeIds: ids(() => 0),
      };
    },
    forward: <A>(a: Algebra<A>, x: Record<string, A>) => {
      const of = (table: string, ids: string) => a.gather(get(x, table), get(x, ids));
      const sum = a.add(a.add(of("words.w", "ids"), of("positions.w", "positionIds")), of("types.w", "typeIds"));
      const start = a.layerNorm(sum, get(x, "norm.gamma"), get(x, "norm.beta"), EPS);
      return a.tokenMean(a.reshape(encoder(a, x, start, { b: B, t: T, c: C, heads: HEADS }, LAYERS), [B, T, C]));
    },
    weights: Object.keys(weights),
    flops: LAYERS * layerFlops(size, Array(B).fill(T)),
  };
}

/**
 * Training steps of Adam, one on each batch. Where its lengths differ, x is padded to the longest, the scores of padding
 * are masked and the mean leaves it out.
 */
export function train(size: Size, name: string, batches: readonly Batch[]): Task {
  const { C, HEADS, LAYERS } = size;
  const weights: Shapes = { ...layersOf(size), "head.w": [C, 2], "head.b": [2] };
  const sizes = batches.map(({ lengths }) => ({ b: lengths.length, t: Math.max(...lengths), c: C, heads: HEADS }));
  const total = (of: (lengths: readonly number[]) => number) =>
    batches.reduce((sum, { lengths }) => sum + of(lengths), 0);
  const [packed, padded] = [total((lengths) => tokensOf(lengths).packed), total((lengths) => tokensOf(lengths).padded)];
  const { b = 0, t = 0 } = sizes[0] ?? {};
  return {
    name,
    shape:
      packed === padded
        ? { B: b, T: t, C, layers: LAYERS }
        : { batches: batches.length, B: b, N: packed, padded, C, layers: LAYERS },
    work: { kind: "train", heads: HEADS, layers: LAYERS, batches, lr: 1e-5 },
    inputs: () => {
      const inputs = normals("train", weights);
      for (const [i, { lengths, labels }] of batches.entries()) {
        const { b, t } = sizes[i] ?? { b: 0, t: 0 };
        const own = (name: string, shape: number[], at: (index: number) => number) => {
          inputs[`${name}@${i}`] = { shape, data: Float32Array.from({ length: sizeOf(shape) }, (_, k) => at(k)) };
        };
        const stream = new Stream(7, "train", i);
        own("x", [b * t, C], () => 0.1 * stream.normal());
        own("oneHot", [b, 2], (k) => Number(labels[k >> 1] === k % 2));
        if (lengths.every((length) => length === t)) continue;
        const { mask, pool } = padding(lengths, HEADS);
        Object.assign(inputs, { [`mask@${i}`]: mask, [`pool@${i}`]: pool });
      }
      return inputs;
    },
    forward: <A>(a: Algebra<A>, x: Record<string, A>, batch = 0) => {
      const { b, t } = sizes[batch] ?? { b: 0, t: 0 };
      const tokens = a.reshape(encoder(a, x, get(x, "x"), { b, t, c: C, heads: HEADS }, LAYERS), [b, t, C]);
      const y = x.pool === undefined ? a.tokenMean(tokens) : a.reshape(a.matmul(x.pool, tokens), [b, C]);
      return a.crossEntropy(a.add(a.matmul(y, get(x, "head.w")), get(x, "head.b")), get(x, "oneHot"));
    },
    weights: Object.keys(weights),
    flops: 3 * LAYERS * total((lengths) => layerFlops(size, lengths)),
  };
}

/** What hides padding: mask [B·H, 1, T], −1e4 there; pool [B, 1, T], the weights of a mean over the rest. */
export function padding(lengths: readonly number[], heads: number): { mask: Input; pool: Input } {
  const t = Math.max(...lengths);
  const input = (copies: number, at: (length: number, index: number) => number): Input => {
    const rows = lengths.flatMap((length) => Array.from({ length: copies * t }, (_, k) => at(length, k % t)));
    return { shape: [copies * lengths.length, 1, t], data: Float32Array.from(rows) };
  };
  return {
    mask: input(heads, (length, k) => (k < length ? 0 : -1e4)),
    pool: input(1, (length, k) => (k < length ? 1 / length : 0)),
  };
}

/** Labels in turn. */
export function batch(lengths: readonly number[]): Batch {
  return { lengths, labels: lengths.map((_, i) => i % 2) };
}
