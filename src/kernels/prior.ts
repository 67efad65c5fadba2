/**
 * @file The gradients of priors that are no isotropic Gaussian (that one is inside the update, update.ts): a pass that
 * writes total = g + r, r = −∇log p(θ)/N, and leaves the sums that log p(θ) and its share are made of. Whoever reads a
 * gradient then reads `total`, and a prior scale of 0. And the products of a parameter vector with k others, U, [k] of
 * θ's layout, that a part of rank k needs.
 */
import { f32, type Gpu, grid } from "../gpu/index.ts";
import { empty, type NdArray } from "./array.ts";
import { allLive, BLOCK, type BlockWindow, blockWindows, type Live } from "./live.ts";
import type { TermVectors } from "./terms.ts";
import { partialSums, slice, type Window, windows } from "./windows.ts";

/** vec4 per thread, as in shaders/prior.wgsl. */
const PER = 32;

/** The density of a stretch's elements. Of `s` and `b` the shader's header says what they are. */
export type PriorKind = (typeof FORMS)[number];

/** By their number in the shader. */
const FORMS = ["diagonal", "structured", "laplace", "student"] as const;

export interface PriorStretch extends Window {
  /** s of r: a/N, λ/N or (ν + 1)b/N. */
  readonly scale: number;
  /** Student-t: b = τ/ν. */
  readonly shape?: number | undefined;
}

export interface PriorVectors extends TermVectors {
  /** Is written: g + r. "structured" reads the part of r there that is not diagonal. */
  readonly total: NdArray;
  /** τ by element: "diagonal" and "structured". */
  readonly tau?: NdArray | undefined;
}

export interface PriorOptions {
  live?: Live | undefined;
  /** Bytes bound at once, at least a block; tests lower it. */
  window?: number | undefined;
}

/**
 * [R, 4], a row a stretch: Σg², Σr², Σe, 0, with e = rΔ, of "structured" only its diagonal's part, of a Student-t
 * log(1 + bΔ²); and total = g + r where the
 * stretches are live.
 */
export function priorGradient(
  gpu: Gpu,
  kind: PriorKind,
  { theta, mu, grad, total, tau }: PriorVectors,
  stretches: readonly PriorStretch[],
  { live: given, window }: PriorOptions = {},
): NdArray {
  const op = "priorGradient";
  const wantsTau = kind === "diagonal" || kind === "structured";
  if (wantsTau !== (tau !== undefined)) throw new RangeError(`${op}: ${kind} with${tau ? "" : "out"} a vector τ`);
  const vectors = [theta, mu, grad, total, ...(tau ? [tau] : [])];
  expectLengths(op, vectors, stretches);
  const live = given ?? allLive(gpu, theta.size);
  const rows = empty(gpu, [stretches.length, 4], "f32", op);
  for (const [row, { offset, length, scale, shape = 0 }] of stretches.entries()) {
    if (!(scale >= 0 && Number.isFinite(Math.fround(scale)) && shape >= 0 && Number.isFinite(Math.fround(shape))))
      throw new RangeError(`${op}: scale ${scale}, shape ${shape}; expected numbers from 0`);
    const parts = partialSums(gpu, op, 4, blockWindows(gpu, offset, length, window), {
      partials(piece, first, sums, grid) {
        const at = (vector: NdArray) => slice(vector, piece);
        gpu.dispatch({
          op,
          shader: "prior",
          entry: "gradient",
          constants: { FORM: FORMS.indexOf(kind) },
          bindings: [at(theta), at(mu), at(grad), live.words, at(total), sums, at(tau ?? mu)],
          params: [piece.length, piece.begin, piece.offset / BLOCK, first, f32(scale), f32(shape), 0, 0],
          grid,
          work: { bytes: 4 * (piece.length - piece.begin) * live.share * (kind === "structured" ? 6 : vectors.length) },
        });
      },
      fold: (count, sums, fewer, grid) => fold(gpu, op, count, sums, fewer, grid),
    });
    finish(gpu, op, parts, rows, row);
  }
  if (!given) gpu.release(live.words.buffer);
  return rows;
}

export interface WeightedStretch extends Window {
  readonly weight: number;
}

/** c = Σ over the stretches of weight · Uᵀ(x − y): [⌈k/4⌉, 4], zeros behind the k-th. y absent: Uᵀx. */
export function lowRankProject(
  gpu: Gpu,
  columns: readonly NdArray[],
  x: NdArray,
  y: NdArray | undefined,
  stretches: readonly WeightedStretch[],
  { live: given, window }: PriorOptions = {},
): NdArray {
  const op = "lowRankProject";
  expectLengths(op, [x, ...(y ? [y] : []), ...columns], stretches);
  const live = given ?? allLive(gpu, x.size);
  const zero = y ?? zeros(gpu, x.size, op);
  const pieces = stretches.flatMap(({ offset, length, weight }) =>
    blockWindows(gpu, offset, length, window).map((piece): BlockWindow & { weight: number } => ({ ...piece, weight })),
  );
  const c = empty(gpu, [Math.ceil(columns.length / 4), 4], "f32", op);
  for (const [four, group] of fours(columns).entries()) {
    const parts = partialSums(gpu, op, 4, pieces, {
      partials(piece, first, sums, grid) {
        const at = (vector: NdArray) => slice(vector, piece);
        const [u0, u1, u2, u3] = group.columns.map(at) as [NdArray, NdArray, NdArray, NdArray];
        gpu.dispatch({
          op,
          shader: "prior",
          entry: "project",
          bindings: [at(x), at(zero), u0, live.words, u1, sums, u2, u3],
          params: [piece.length, piece.begin, piece.offset / BLOCK, first, f32(piece.weight), 0, group.count, 0],
          grid,
          work: { bytes: 4 * (piece.length - piece.begin) * live.share * (2 + group.count) },
        });
      },
      fold: (count, sums, fewer, grid) => fold(gpu, op, count, sums, fewer, grid),
    });
    finish(gpu, op, parts, c, four);
  }
  if (!given) gpu.release(live.words.buffer);
  if (!y) gpu.release(zero.buffer);
  return c;
}

/** out ← weight · U c on each stretch where it is live; `add`: to what is there. c as `lowRankProject` gives it. */
export function lowRankCombine(
  gpu: Gpu,
  columns: readonly NdArray[],
  c: NdArray,
  out: NdArray,
  stretches: readonly WeightedStretch[],
  { live: given, window, add = false }: PriorOptions & { add?: boolean | undefined } = {},
): void {
  const op = "lowRankCombine";
  expectLengths(op, [out, ...columns], stretches);
  const live = given ?? allLive(gpu, out.size);
  for (const { offset, length, weight } of stretches) {
    for (const piece of blockWindows(gpu, offset, length, window)) {
      for (const [four, { columns: group, count }] of fours(columns).entries()) {
        const at = (vector: NdArray) => slice(vector, piece);
        const [u0, u1, u2, u3] = group.map(at) as [NdArray, NdArray, NdArray, NdArray];
        gpu.dispatch({
          op,
          shader: "prior",
          entry: "combine",
          bindings: [c, at(out), u0, live.words, u1, u2, u3],
          params: [piece.length, piece.begin, piece.offset / BLOCK, four, f32(weight), 0, count, four === 0 && !add ? 1 : 0], // biome-ignore format: the shader's order
          grid: grid(Math.ceil(piece.length / BLOCK)),
          work: { bytes: 4 * (piece.length - piece.begin) * live.share * (2 + count) },
        });
      }
    }
  }
  if (!given) gpu.release(live.words.buffer);
}

/** out ← out + weight · x², element by element. */
export function addSquares(gpu: Gpu, x: NdArray, out: NdArray, weight: number, window?: number): void {
  const op = "addSquares";
  expectLengths(op, [x, out], []);
  for (const piece of windows(gpu, 0, x.size, window)) {
    gpu.dispatch({
      op,
      shader: "prior",
      entry: "squares",
      bindings: [slice(x, piece), slice(out, piece)],
      params: [piece.length, 0, 0, 0, f32(weight), 0, 0, 0],
      grid: grid(Math.ceil(piece.length / (4 * 64 * PER))),
      work: { bytes: 4 * 3 * piece.length },
    });
  }
}

/** Columns four at a time; the last four are filled with one that does not count. */
function fours(columns: readonly NdArray[]): { columns: NdArray[]; count: number }[] {
  return Array.from({ length: Math.ceil(columns.length / 4) }, (_, i) => {
    const group = columns.slice(4 * i, 4 * i + 4);
    const [filler] = group;
    return { columns: Array.from({ length: 4 }, (_, j) => group[j] ?? (filler as NdArray)), count: group.length };
  });
}

function fold(
  gpu: Gpu,
  op: string,
  count: number,
  sums: NdArray,
  fewer: NdArray,
  grid: readonly [number, number, number],
) {
  gpu.dispatch({ op, shader: "terms", entry: "fold", bindings: [sums, fewer], params: [count, 0, 0, 0, 0, 0, 0, 0], grid }); // biome-ignore format: one call
}

/** Partial sums to one row; they are released. */
function finish(gpu: Gpu, op: string, parts: NdArray, rows: NdArray, row: number): void {
  const [count = 0] = parts.shape;
  gpu.dispatch({
    op,
    shader: "prior",
    entry: "finish",
    bindings: [parts, rows],
    params: [count, 0, 0, row, 0, 0, 0, 0],
    grid: [1, 1, 1],
  });
  gpu.release(parts.buffer);
}

function zeros(gpu: Gpu, length: number, op: string): NdArray {
  const vector = empty(gpu, [length], "f32", op);
  gpu.clear(vector);
  return vector;
}

function expectLengths(op: string, vectors: readonly NdArray[], stretches: readonly Window[]): void {
  const length = vectors[0]?.size ?? 0;
  const other = vectors.find(({ size }) => size !== length || size % 64 !== 0);
  if (other)
    throw new RangeError(`${op}: vectors of ${length} and ${other.size}; all have one length, a multiple of 64`);
  for (const { offset, length: n } of stretches) {
    if (offset < 0 || offset % 64 !== 0 || n < 64 || n % 64 !== 0 || offset + n > length)
      throw new RangeError(`${op}: stretch ${offset} + ${n} is not within ${length} elements in multiples of 64`);
  }
}

/** r and e of one element in float64; `rest` is the part of r that is not diagonal, as in "structured". */
export function priorReference(
  kind: PriorKind,
  delta: number,
  { scale, shape = 0 }: Pick<PriorStretch, "scale" | "shape">,
  { tau = 0, rest = 0 }: { tau?: number; rest?: number } = {},
): { r: number; e: number } {
  const { r, e } = ((): { r: number; e?: number } => {
    switch (kind) {
      case "diagonal":
        return { r: scale * tau * delta };
      case "structured":
        return { r: scale * tau * delta + rest, e: scale * tau * delta * delta };
      case "laplace":
        return { r: scale * Math.sign(delta) };
      case "student":
        return { r: (scale * delta) / (1 + shape * delta * delta), e: Math.log1p(shape * delta * delta) };
      default:
        return kind satisfies never;
    }
  })();
  return { r, e: e ?? r * delta };
}
