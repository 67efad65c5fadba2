/**
 * @file What is compared: products, attention at full length and at SST-2's lengths, the memory-bound kernels, an encoder
 * layer, inference, a training step, steps of an epoch of SST-2; at MiniLM's sizes (384 channels, 12 heads, 6 layers).
 */
import { attend, EPS } from "./model.ts";
import { batch, get, inference, layer, normals, type Shapes, type Size, train } from "./model-tasks.ts";
import { type Input, type Layout, sizeOf, type Task } from "./peer.ts";
import { typicalBatches } from "./sst2.ts";

/** MiniLM's, 8 sequences of 64 tokens. */
const FULL: Size = { B: 8, T: 64, C: 384, F: 1536, HEADS: 12, LAYERS: 6, VOCABULARY: 30_522 };
/** For a rehearsal. */
const SMALL: Size = { B: 2, T: 16, C: 64, F: 128, HEADS: 2, LAYERS: 2, VOCABULARY: 100 };

/** 16 sentences as SST-2 has them: 213 tokens where padding to the longest makes 464. */
const SST2 = [3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 20, 23, 25, 29];

/** Of the 4,209 in an epoch of SST-2: 640 tokens and 1,696 with padding; the epoch has 639 and 1,692 for every three. */
const EPOCH_BATCHES = 3;

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
function attention({ C, HEADS }: Size, lengths: readonly number[], backward: boolean): Task {
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

export function tasks({ small = false } = {}): Task[] {
  const size = small ? SMALL : FULL;
  const { B, T, C, F } = size;
  const n = 2 * B * T;
  const full = Array(B).fill(T) as number[];
  const norm = { gamma: [C], beta: [C] };
  const normed: Task["forward"] = (a, x) => a.layerNorm(get(x, "x"), get(x, "gamma"), get(x, "beta"), EPS);
  return [
    product("NN", n, F, C),
    product("NT", n, F, C),
    product("TN", n, F, C),
    product("NN", n, n, n),
    attention(size, full, false),
    attention(size, full, true),
    attention(size, SST2, false),
    attention(size, SST2, true),
    rows("softmax", [n, C], 2, {}, (a, x) => a.softmax(get(x, "x"))),
    rows("layerNorm", [n, C], 2, norm, normed),
    rows("layerNorm", [n, C], 5, norm, normed, ["x", "gamma", "beta"]),
    rows("gelu", [n, F], 2, {}, (a, x) => a.gelu(get(x, "x"))),
    rows("addRow", [n, F], 2, { row: [F] }, (a, x) => a.add(get(x, "x"), get(x, "row"))),
    rows("columnSum", [n, F], 1, {}, (a, x) => a.columnSum(get(x, "x"))),
    layer(size, false),
    layer(size, true),
    inference(size),
    train(size, "train", [batch(full)]),
    train(size, "train.sst2", typicalBatches(16, EPOCH_BATCHES).map(batch)),
  ];
}
