/**
 * @file What is compared: products, attention at full length and at SST-2's lengths, the memory-bound kernels, an encoder
 * layer, a training step, inference; at MiniLM's sizes (384 channels, 12 heads, 6 layers).
 */
import { Stream } from "../../src/random.ts";
import { attend, EPS, encoder, encoderLayer, fill, layerShapes } from "./model.ts";
import { type Algebra, type Input, type Layout, sizeOf, type Task } from "./peer.ts";

const [B, T, C, F, HEADS, LAYERS] = [8, 64, 384, 1536, 12, 6];
const SIZES = { b: B, t: T, c: C, heads: HEADS };
const TOKENS = B * T;

/** 16 sentences as SST-2 has them: 213 tokens where padding to the longest makes 464. */
const SST2 = [3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 20, 23, 25, 29];

/** Multiply-adds ·2 of a layer forward: its products with weights, and the scores' two. */
const LAYER_FLOPS = 2 * TOKENS * (4 * C * C + 2 * C * F) + 4 * B * T * T * C;

type Shapes = Record<string, readonly number[]>;

function normals(name: string, shapes: Shapes): Record<string, Input> {
  const stream = new Stream(7, name);
  return fill(shapes, () => stream.normal());
}

function product(layout: Layout, M: number, N: number, K: number): Task {
  const shapes = { a: layout === "TN" ? [K, M] : [M, K], b: layout === "NT" ? [N, K] : [K, N] };
  return {
    name: "matmul",
    layout,
    shape: { M, K, N },
    work: { kind: "matmul", layout },
    inputs: () => normals("matmul", shapes),
    forward: (a, x) => a.matmul(get(x, "a"), get(x, "b"), layout),
    flops: 2 * M * N * K,
  };
}

/** Sequences of one length, or of several that the peers pad and mask. */
function attention(lengths: readonly number[], backward: boolean): Task {
  const longest = Math.max(...lengths);
  const d = C / HEADS;
  const groups = lengths.length * HEADS;
  const ragged = lengths.some((length) => length !== longest);
  const lengthOf = (g: number) => lengths[Math.floor(g / HEADS)] ?? 0;
  const shape = [groups, longest, d];
  const counts = Uint8Array.from({ length: sizeOf(shape) }, (_, i) =>
    Math.floor(i / d) % longest < lengthOf(Math.floor(i / d / longest)) ? 1 : 0,
  );
  const squares = lengths.reduce((sum, t) => sum + 4 * t * t * C, 0);
  return {
    name: `attention${ragged ? ".sst2" : ""}${backward ? ".forward+backward" : ""}`,
    shape: { B: lengths.length, H: HEADS, T: longest, D: d, N: lengths.reduce((a, b) => a + b, 0) },
    work: { kind: "attention", heads: HEADS, lengths },
    inputs: () => {
      const inputs = normals("attention", { q: shape, k: shape, v: shape, ...(backward ? { dy: shape } : {}) });
      for (const name of ["q", "k", "v"]) {
        const { data } = inputs[name] as Input;
        for (let i = 0; i < data.length; i++) data[i] = 10 * (data[i] ?? 0); // from deviation .1 to 1
      }
      if (ragged) {
        const mask = Float32Array.from({ length: groups * longest }, (_, i) =>
          i % longest < lengthOf(Math.floor(i / longest)) ? 0 : -1e4,
        );
        inputs.mask = { shape: [groups, 1, longest], data: mask };
        inputs.dy?.data.forEach((value, i, data) => {
          data[i] = counts[i] ? value : 0; // no gradient comes to padding
        });
      }
      return inputs;
    },
    forward: (a, x) => attend(a, get(x, "q"), get(x, "k"), get(x, "v"), d, x.mask),
    ...(backward ? { gradients: ["q", "k", "v"] } : {}),
    counts,
    flops: squares * (backward ? 3 : 1),
  };
}

/** A kernel over [N, C]: how many times its arrays are read or written at least. */
function rows(
  kind: "softmax" | "layerNorm" | "gelu" | "addRow" | "columnSum",
  [n, c]: readonly [number, number],
  passes: number,
  more: Shapes,
  forward: Task["forward"],
  gradients?: readonly string[],
): Task {
  const shapes: Shapes = { x: [n, c], ...more, ...(gradients ? { dy: [n, c] } : {}) };
  return {
    name: `${kind}${gradients ? ".forward+backward" : ""}`,
    shape: { N: n, C: c },
    work: { kind },
    inputs: () => {
      const inputs = normals(kind, shapes);
      const { data } = inputs.x as Input;
      for (let i = 0; i < data.length; i++) data[i] = 20 * (data[i] ?? 0); // deviation 2
      return inputs;
    },
    forward,
    weights: Object.keys(more),
    ...(gradients ? { gradients } : {}),
    bytes: 4 * passes * n * c,
  };
}

function layer(backward: boolean): Task {
  const weights = layerShapes("", C, F);
  const shapes = { x: [TOKENS, C], ...weights, ...(backward ? { dy: [TOKENS, C] } : {}) };
  return {
    name: `layer${backward ? ".forward+backward" : ""}`,
    shape: { B, T, C },
    work: { kind: "layer", heads: HEADS, sequences: B, layers: 1 },
    inputs: () => normals("layer", shapes),
    forward: (a, x) => encoderLayer(a, get(x, "x"), (name) => get(x, name), SIZES),
    weights: Object.keys(weights),
    ...(backward ? { gradients: ["x", ...Object.keys(weights)] } : {}),
    flops: LAYER_FLOPS * (backward ? 3 : 1),
  };
}

function layersOf(count: number): Shapes {
  return Object.assign({}, ...Array.from({ length: count }, (_, i) => layerShapes(`${i}.`, C, F)));
}

function train(): Task {
  const weights: Shapes = { ...layersOf(LAYERS), "head.w": [C, 2], "head.b": [2] };
  const labels = Array.from({ length: B }, (_, i) => i % 2);
  return {
    name: "train",
    shape: { B, T, C, layers: LAYERS },
    work: { kind: "train", heads: HEADS, sequences: B, layers: LAYERS, labels, lr: 1e-5 },
    inputs: () => ({
      ...normals("train", { x: [TOKENS, C], ...weights }),
      oneHot: { shape: [B, 2], data: Float32Array.from({ length: 2 * B }, (_, i) => Number(labels[i >> 1] === i % 2)) },
    }),
    forward: (a, x) => {
      const y = a.tokenMean(a.reshape(encoder(a, x, get(x, "x"), SIZES, LAYERS), [B, T, C])); // [B, C]
      return a.crossEntropy(a.add(a.matmul(y, get(x, "head.w")), get(x, "head.b")), get(x, "oneHot"));
    },
    weights: Object.keys(weights),
    flops: 3 * LAYERS * LAYER_FLOPS,
  };
}

function inference(): Task {
  const tables: Shapes = { "words.w": [30_522, C], "positions.w": [T, C], "types.w": [2, C] };
  const weights: Shapes = { ...tables, "norm.gamma": [C], "norm.beta": [C], ...layersOf(LAYERS) };
  return {
    name: "inference",
    shape: { B, T, C, layers: LAYERS },
    work: { kind: "inference", heads: HEADS, sequences: B, layers: LAYERS },
    inputs: () => {
      const stream = new Stream(7, "ids");
      const ids = (id: (i: number) => number) => ({ shape: [TOKENS], data: Int32Array.from({ length: TOKENS }, (_, i) => id(i)) }); // biome-ignore format: one row
      return {
        ...normals("inference", weights),
        ids: ids(() => stream.integer(30_522)),
        positionIds: ids((i) => i % T),
        typeIds: ids(() => 0),
      };
    },
    forward: <A>(a: Algebra<A>, x: Record<string, A>) => {
      const of = (table: string, ids: string) => a.gather(get(x, table), get(x, ids));
      const sum = a.add(a.add(of("words.w", "ids"), of("positions.w", "positionIds")), of("types.w", "typeIds"));
      const start = a.layerNorm(sum, get(x, "norm.gamma"), get(x, "norm.beta"), EPS);
      return a.tokenMean(a.reshape(encoder(a, x, start, SIZES, LAYERS), [B, T, C]));
    },
    weights: Object.keys(weights),
    flops: LAYERS * LAYER_FLOPS,
  };
}

function get<A>(x: Record<string, A>, name: string): A {
  const found = x[name];
  if (found === undefined) throw new Error(`no input ${name}`);
  return found;
}

export function tasks(): Task[] {
  const full = Array(B).fill(T) as number[];
  const norm = { gamma: [C], beta: [C] };
  return [
    product("NN", 1024, F, C),
    product("NT", 1024, F, C),
    product("TN", 1024, F, C),
    product("NN", 1024, 1024, 1024),
    attention(full, false),
    attention(full, true),
    attention(SST2, false),
    attention(SST2, true),
    rows("softmax", [1024, C], 2, {}, (a, x) => a.softmax(get(x, "x"))),
    rows("layerNorm", [1024, C], 2, norm, (a, x) => a.layerNorm(get(x, "x"), get(x, "gamma"), get(x, "beta"), EPS)),
    rows("layerNorm", [1024, C], 5, norm, (a, x) => a.layerNorm(get(x, "x"), get(x, "gamma"), get(x, "beta"), EPS), [
      "x",
      "gamma",
      "beta",
    ]),
    rows("gelu", [1024, F], 2, {}, (a, x) => a.gelu(get(x, "x"))),
    rows("addRow", [1024, F], 2, { row: [F] }, (a, x) => a.add(get(x, "x"), get(x, "row"))),
    rows("columnSum", [1024, F], 1, {}, (a, x) => a.columnSum(get(x, "x"))),
    layer(false),
    layer(true),
    inference(),
    train(),
  ];
}
