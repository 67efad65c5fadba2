/**
 * @file Attention over packed sequences: every token attends to all tokens of its own sequence and to no other; no
 * padding, no mask, no array of size T × T. The sequences are cut into tiles of a few rows
 * on the host, once a batch.
 */
import { f32, type Gpu, grid, type Tile } from "../gpu/index.ts";
import { threefry2x32 } from "../random.ts";
import { empty, expectShape, fromHost, type NdArray } from "./array.ts";
import { dropoutThreshold } from "./dropout.ts";

/**
 * "tiled": 32 rows a workgroup in workgroup memory, for GPUs; "subgroup": four rows a lane of a subgroup of 4 or 8, heads up
 * to 64; "unrolled": the same written out for SwiftShader, a subgroup of 4 and heads of 16, 32, 48 or 64; "plain": a row a
 * thread, everywhere.
 */
export type AttentionFamily = "tiled" | "subgroup" | "unrolled" | "plain";

interface Family {
  shader: string;
  /** Rows of a tile for subgroups of this size; undefined where the family cannot run. */
  rows(lanes: number): number | undefined;
  /** Whether it takes heads of D channels, a multiple of 4 up to 128. */
  takes(d: number): boolean;
  tile(d: number, lanes: number): Tile;
}

/** Unrolled for 128 channels the kernels of subgroups compile for 20 s. */
const MAX_UNROLLED_HEAD = 64;
/** Channels of a block of the unrolled family. */
const BLOCK = 16;

const FAMILIES: Readonly<Record<AttentionFamily, Family>> = {
  tiled: { shader: "attention_tiled", rows: () => 32, takes: () => true, tile: (d) => ({ D4: d / 4 }) },
  subgroup: {
    shader: "attention_subgroup",
    rows: (lanes) => (lanes === 4 || lanes === 8 ? 4 * lanes : undefined),
    takes: (d) => d <= MAX_UNROLLED_HEAD,
    tile: (d, lanes) => ({ D4: d / 4, LANES: lanes }),
  },
  unrolled: {
    shader: "attention_unrolled",
    rows: (lanes) => (lanes === 4 ? 16 : undefined),
    takes: (d) => d <= MAX_UNROLLED_HEAD && d % BLOCK === 0,
    tile: (d) => ({ BLOCKS: d / BLOCK }),
  },
  plain: { shader: "attention", rows: () => PLAIN_ROWS, takes: () => true, tile: (d) => ({ D4: d / 4 }) },
};

const PLAIN_ROWS = 8;
const MAX_HEAD_SIZE = 128;
/** Rows of a sequence: the mask counts keys by fours in 16 bits; one more would run into the next head's numbers. */
const MAX_LENGTH = 4 * 65536;

export interface AttentionPlan {
  /** [B+1]: sequence b has the rows starts[b] … starts[b+1] − 1. */
  starts: Uint32Array;
  /** u32 [tiles, 4]: first row, end of the rows, first row of the sequence, end of the sequence. */
  tiles: NdArray;
  family: AttentionFamily;
  /** Number of tiles. */
  count: number;
  sequences: number;
  tokens: number;
  /** Σ T² over the sequences: what the work is proportional to. */
  pairs: number;
}

export interface AttentionOptions {
  heads: number;
  /** Factor of q·k; default 1/√D. */
  scale?: number;
  /** On the probabilities, after the softmax; `key` is two u32 words, a new pair for each use. */
  dropout?: { p: number; key: readonly [number, number] };
}

export interface AttentionResult {
  /** [N, C]. */
  y: NdArray;
  /** [N, H]: log Σ_j exp(scale · q·k_j), which the backward needs. */
  lse: NdArray;
}

/**
 * The tiles of a batch, uploaded; one plan serves all layers. It belongs to the open scope. `family` is a wish of tests
 * and benches: where another cannot run, the plain one does. Throws RangeError on starts that do not begin
 * with 0 or that fall, and on a sequence of more than 262,144 rows.
 */
export function attentionPlan(gpu: Gpu, starts: Uint32Array, family = familyOf(gpu)): AttentionPlan {
  const fitting = FAMILIES[family].rows(gpu.adapter.subgroupSize);
  const most = fitting ?? PLAIN_ROWS;
  const tiles: number[] = [];
  let pairs = 0;
  for (let b = 0; b + 1 < starts.length; b++) {
    const [first, end] = [starts[b] ?? 0, starts[b + 1] ?? 0];
    if (end < first) throw new RangeError(`attentionPlan: starts fall from ${first} to ${end} at sequence ${b}`);
    pairs += (end - first) ** 2;
    if (end - first > MAX_LENGTH) {
      throw new RangeError(`attentionPlan: sequence ${b} has ${end - first} rows; at most ${MAX_LENGTH}`);
    }
    for (let row = first; row < end; row += most) tiles.push(row, Math.min(row + most, end), first, end);
  }
  if (starts[0] !== 0) throw new RangeError(`attentionPlan: starts begin with ${starts[0]}, expected 0`);
  const count = tiles.length / 4;
  return {
    starts,
    tiles: fromHost(gpu, Uint32Array.from(tiles), [count, 4]),
    family: fitting === undefined ? "plain" : family,
    count,
    sequences: starts.length - 1,
    tokens: starts.at(-1) ?? 0,
    pairs,
  };
}

/**
 * y[n] = Σ_j P[n, j] v[j] over the rows j of n's sequence, P = softmax(scale · q kᵀ), for each head; qkv [N, 3C] holds
 * q | k | v, each [N, C] with the heads side by side. Throws RangeError unless the head size D = C/H is a multiple of 4
 * up to 128.
 */
export function attention(gpu: Gpu, qkv: NdArray, plan: AttentionPlan, options: AttentionOptions): AttentionResult {
  const sizes = headSizes("attention", qkv, plan, options);
  const y = empty(gpu, [plan.tokens, sizes.c], "f32", "attention");
  const lse = empty(gpu, [plan.tokens, options.heads], "f32", "attention");
  withPlan(gpu, plan, sizes.d, (fit) => {
    if (fit.count > 0) launch(gpu, "forward", [qkv, fit.tiles, y, lse], fit, options, sizes.d);
  });
  return { y, lse };
}

/** dqkv [N, 3C] from the forward's inputs and outputs and dy [N, C]; `options` as in the forward, dropout's key too. */
export function attentionBackward(
  gpu: Gpu,
  qkv: NdArray,
  y: NdArray,
  lse: NdArray,
  dy: NdArray,
  plan: AttentionPlan,
  options: AttentionOptions,
): NdArray {
  const op = "attentionBackward";
  const { c, d } = headSizes(op, qkv, plan, options);
  const dims: Record<string, number> = { N: plan.tokens, C: c, H: options.heads };
  expectShape(op, "y", y, "N C", dims);
  expectShape(op, "lse", lse, "N H", dims);
  expectShape(op, "dy", dy, "N C", dims);
  const dqkv = empty(gpu, qkv.shape, "f32", op);
  if (plan.count === 0) return dqkv;
  withPlan(gpu, plan, d, (fit) => {
    if (fit.family === "subgroup") {
      launch(gpu, "backward", [qkv, fit.tiles, y, lse, dy, dqkv], fit, options, d);
      return;
    }
    const delta = empty(gpu, lse.shape, "f32", op);
    launch(gpu, "backwardQuery", [qkv, fit.tiles, y, lse, dy, delta, dqkv], fit, options, d);
    launch(gpu, "backwardKey", [qkv, fit.tiles, delta, lse, dy, dqkv], fit, options, d);
    gpu.release(delta.buffer);
  });
  return dqkv;
}

/** The plan, or the plain family's for a head that is none for the plan's. */
function withPlan(gpu: Gpu, plan: AttentionPlan, d: number, body: (plan: AttentionPlan) => void): void {
  if (FAMILIES[plan.family].takes(d)) {
    body(plan);
    return;
  }
  const plain = attentionPlan(gpu, plan.starts, "plain");
  body(plain);
  gpu.release(plain.tiles.buffer);
}

function headSizes(
  op: string,
  qkv: NdArray,
  plan: AttentionPlan,
  { heads }: AttentionOptions,
): { c: number; d: number } {
  const c = (qkv.shape[1] ?? 0) / 3;
  expectShape(op, "qkv", qkv, "N 3C", { N: plan.tokens, "3C": 3 * Math.round(c) });
  const d = c / heads;
  if (d % 4 !== 0 || d < 4 || d > MAX_HEAD_SIZE) {
    throw new RangeError(
      `${op}: ${c} channels in ${heads} heads give a head size of ${d}; it must be a multiple of 4 up to ${MAX_HEAD_SIZE}`,
    );
  }
  return { c, d };
}

/**
 * Products of T × T × D that each kernel does: q kᵀ and P v forward; backward q kᵀ and dy vᵀ anew, then dQ, or dK and dV, or
 * all three (`backward`, of the subgroup family).
 */
const PRODUCTS = { forward: 2, backwardQuery: 3, backwardKey: 4, backward: 5 } as const;

function launch(
  gpu: Gpu,
  entry: keyof typeof PRODUCTS,
  bindings: NdArray[],
  plan: AttentionPlan,
  { heads, scale, dropout }: AttentionOptions,
  d: number,
): void {
  const threshold = dropoutThreshold(dropout?.p ?? 0);
  const [k0, k1] = dropout?.key ?? [0, 0];
  const pairs = plan.count * heads;
  const family = FAMILIES[plan.family];
  const { kind, subgroupSize } = gpu.adapter;
  const plain = plan.family === "plain";
  // SwiftShader hands out workgroups to its cores: small ones keep both busy.
  const threads = kind === "bundled" ? 16 : 64;
  const unrolled = kind === "software" ? 0 : 1;
  // A tile's results are made by as many workgroups as there are 64 channels.
  const parts = plan.family === "tiled" ? Math.ceil(d / 64) : 1;
  gpu.dispatch({
    op: `attention.${entry}`,
    shader: family.shader,
    entry,
    constants: { dropout: threshold < 65536 ? 1 : 0, ...(plain ? { THREADS: threads, unrolled } : {}) },
    tile: family.tile(d, subgroupSize),
    bindings,
    params: [pairs, heads, f32(scale ?? 1 / Math.sqrt(d)), threshold, f32(65536 / threshold), d / 4, k0, k1],
    grid: grid(plain ? Math.ceil((pairs * PLAIN_ROWS) / threads) : pairs * parts),
    work: { flops: 2 * PRODUCTS[entry] * plan.pairs * heads * d },
  });
}

/**
 * Forward / backward in GFLOP/s of the algorithm on two busy cores (processor time, bench/attention.ts):
 *   lavapipe     12 × 32, N 512, T 64: subgroup 28 / 28, plain 1.3 / 1.7 (at N 1,024)
 *   SwiftShader  12 × 32, N 512, T 64: unrolled 4.1 / 3.5, plain 0.8 / 0.6, subgroup 0.9 / 0.7; N 213, T 3 to 29: unrolled
 *                1.7 / 1.4, plain 0.7 / 0.4
 * Unmeasured on GPUs. What their compilers make of it: `npm run bench:compilers`.
 */
function familyOf(gpu: Gpu): AttentionFamily {
  const { kind } = gpu.adapter;
  return kind === "software" ? "subgroup" : kind === "bundled" ? "unrolled" : "tiled";
}

/** The definition, in float64, with the device's dropout mask: y [N, C]. */
export function attentionReference(
  qkv: ArrayLike<number>,
  starts: ArrayLike<number>,
  { heads, scale, dropout }: AttentionOptions,
): Float64Array {
  const tokens = starts[starts.length - 1] ?? 0;
  const c = qkv.length / tokens / 3;
  const d = c / heads;
  const at = (row: number, part: number, h: number, i: number) => qkv[row * 3 * c + part * c + h * d + i] as number;
  const y = new Float64Array(tokens * c);
  for (let b = 0; b + 1 < starts.length; b++) {
    const [first, end] = [starts[b] ?? 0, starts[b + 1] ?? 0];
    for (let h = 0; h < heads; h++) {
      for (let n = first; n < end; n++) {
        const scores = Array.from({ length: end - first }, (_, j) => {
          let s = 0;
          for (let i = 0; i < d; i++) s += at(n, 0, h, i) * at(first + j, 1, h, i);
          return s * (scale ?? 1 / Math.sqrt(d));
        });
        const max = Math.max(...scores);
        const weights = scores.map((s) => Math.exp(s - max));
        const total = weights.reduce((a, w) => a + w, 0);
        for (let j = 0; j < weights.length; j++) {
          const keep = dropout ? attentionMask(dropout.p, dropout.key, n, h, j) : 1;
          const w = ((weights[j] as number) / total) * keep;
          for (let i = 0; i < d; i++) y[n * c + h * d + i]! += w * at(first + j, 2, h, i);
        }
      }
    }
  }
  return y;
}

/** What dropout multiplies the probability of (query row n of the batch, head h, key position j) with: 0 or 1/keep. */
export function attentionMask(p: number, key: readonly [number, number], n: number, h: number, j: number): number {
  const threshold = dropoutThreshold(p);
  const word = threefry2x32(key[0], key[1], n, h * 65536 + Math.floor(j / 4))[j % 4 < 2 ? 0 : 1];
  const lane = j % 2 === 0 ? word & 0xffff : word >>> 16;
  return lane < threshold ? 65536 / threshold : 0;
}
