/**
 * @file Embedding tables: rows by number (`gather`), BERT's sum of three tables in one pass (`gatherSum`), and the
 * gradient as sums in an order that the host decides (`GatherPlan`), so that it has the same bits in every run. Shapes:
 * table [V, C], ids u32 [N] → [N, C]. The device cannot complain of an id ≥ V: its row becomes NaN.
 */
import { type Gpu, grid } from "../gpu/index.ts";
import { empty, expectIndex, expectShape, fromHost, type Into, NAN_BITS, type NdArray, target } from "./array.ts";

export interface Lookup {
  /** [V, C] */
  readonly table: NdArray;
  /** u32 [N] */
  readonly ids: NdArray;
}

/** y[n] = table[ids[n]], [N, C]. An id ≥ V gives a row of NaN. */
export function gather(gpu: Gpu, table: NdArray, ids: NdArray): NdArray {
  return lookUp(gpu, "gather", [{ table, ids }]);
}

/** y[n] = Σ_j table_j[ids_j[n]], [N, C], for one to three tables; NaN as in `gather`. */
export function gatherSum(gpu: Gpu, lookups: readonly Lookup[]): NdArray {
  return lookUp(gpu, "gatherSum", lookups);
}

const ENTRIES = ["gather", "gatherSum2", "gatherSum3"];

function lookUp(gpu: Gpu, op: string, lookups: readonly Lookup[]): NdArray {
  const [first, ...others] = lookups;
  const entry = ENTRIES[others.length];
  if (!first || !entry) throw new RangeError(`${op}: ${lookups.length} tables; one to three`);
  const dims: Record<string, number> = {};
  for (const { table, ids } of lookups) {
    expectShape(op, "table", table, "V C", { ...(dims.C === undefined ? {} : { C: dims.C }) });
    dims.C = table.shape[1] ?? 0;
    expectShape(op, "ids", ids, "N", dims);
    expectIndex(op, "ids", ids);
  }
  const n = first.ids.size;
  const c = dims.C ?? 0;
  const y = empty(gpu, [n, c], "f32", op);
  const bindings = [first.ids, first.table, y, ...others.flatMap(({ table, ids }) => [ids, table])];
  launch(gpu, `${op}.forward`, entry, bindings, n, c, lookups.length * n, {
    bounds: lookups.map(({ table }) => table.shape[0] ?? 0),
  });
  return y;
}

/**
 * The tokens of every distinct id, in order, as jobs for the device: `direct` jobs sum tokens into their row of the
 * table's gradient; an id with more than CHUNK tokens has `chunks` jobs, each summing CHUNK of them into a row of a
 * scratch array, and one of the `combined` jobs, which sums those.
 */
export interface GatherPlan {
  /** u32: (begin, end, row) per job, then the lists that begin and end point into. */
  readonly jobs: NdArray;
  readonly direct: number;
  readonly chunks: number;
  readonly combined: number;
  /** The distinct ids, ascending. */
  readonly distinct: readonly number[];
  /** N and V. */
  readonly tokens: number;
  readonly rows: number;
}

/** Tokens that one thread adds one after another, at most. */
const CHUNK = 64;

/** Sorts ids [N] (stably, all below `rows`) and uploads the plan; it serves any number of backward passes. */
export function gatherPlan(gpu: Gpu, ids: Uint32Array, rows: number): GatherPlan {
  // Counting sort: where each id's tokens begin, then every token to its place.
  const begins = new Uint32Array(rows + 1);
  for (const id of ids) {
    if (id >= rows) throw new RangeError(`gatherPlan: id ${id}, but the table has ${rows} rows`);
    begins[id + 1] = (begins[id + 1] ?? 0) + 1;
  }
  for (let id = 0; id < rows; id++) begins[id + 1] = (begins[id + 1] ?? 0) + (begins[id] ?? 0);
  const next = begins.slice();
  const order = new Uint32Array(ids.length);
  ids.forEach((id, token) => {
    order[next[id] ?? 0] = token;
    next[id] = (next[id] ?? 0) + 1;
  });

  const direct: number[] = [];
  const chunks: number[] = [];
  const combined: number[] = [];
  const distinct: number[] = [];
  for (let id = 0; id < rows; id++) {
    const begin = begins[id] ?? 0;
    const end = begins[id + 1] ?? 0;
    if (end === begin) continue;
    distinct.push(id);
    if (end - begin <= CHUNK) {
      direct.push(begin, end, id);
      continue;
    }
    const firstChunk = chunks.length / 3;
    for (let at = begin; at < end; at += CHUNK) chunks.push(at, Math.min(at + CHUNK, end), chunks.length / 3);
    // A combining job lists scratch rows, numbers that stand behind the tokens' list.
    combined.push(ids.length + firstChunk, ids.length + chunks.length / 3, id);
  }
  const words = [...direct, ...chunks, ...combined];
  const lists = words.length;
  for (let i = 0; i < lists; i += 3) {
    words[i] = (words[i] ?? 0) + lists;
    words[i + 1] = (words[i + 1] ?? 0) + lists;
  }
  for (const token of order) words.push(token);
  for (let i = 0; i < chunks.length / 3; i++) words.push(i);
  return {
    jobs: fromHost(gpu, Uint32Array.from(words)),
    direct: direct.length / 3,
    chunks: chunks.length / 3,
    combined: combined.length / 3,
    distinct,
    tokens: ids.length,
    rows,
  };
}

/**
 * dtable [V, C] from dy [N, C]: row v is Σ dy[n] over the tokens n with id v, in the plan's order; rows without a token
 * are 0 (or left alone when `into` accumulates). Where `into` says which rows are not 0 already, only those are cleared.
 */
export function gatherBackward(
  gpu: Gpu,
  dy: NdArray,
  plan: GatherPlan,
  shape: readonly [number, number],
  into?: Into,
): NdArray {
  const op = "gather.backward";
  expectShape(op, "dy", dy, "N C", { N: plan.tokens, C: shape[1] });
  if (shape[0] !== plan.rows)
    throw new RangeError(`${op}: the plan is for ${plan.rows} rows, the table has ${shape[0]}`);
  const { array, accumulate } = target(gpu, op, shape, into);
  const c = shape[1];
  if (!accumulate && !into?.stale) gpu.clear(array);
  // A job with an empty list: its row becomes the sum of nothing.
  const stale = accumulate ? [] : (into?.stale ?? []);
  if (stale.length > 0) {
    const empty = fromHost(gpu, Uint32Array.from(stale.flatMap((row) => [0, 0, row])));
    launch(gpu, op, "sumRows", [empty, dy, array], stale.length, c, 0);
    gpu.release(empty.buffer);
  }
  const { direct, chunks, combined } = plan;
  if (direct > 0) launch(gpu, op, "sumRows", [plan.jobs, dy, array], direct, c, plan.tokens, { accumulate });
  if (chunks > 0) {
    const scratch = empty(gpu, [chunks, c], "f32", op);
    launch(gpu, op, "sumRows", [plan.jobs, dy, scratch], chunks, c, plan.tokens, { job: direct });
    launch(gpu, op, "sumRows", [plan.jobs, scratch, array], combined, c, chunks, { job: direct + chunks, accumulate });
    gpu.release(scratch.buffer);
  }
  return array;
}

/** Channels that are a multiple of 4 go as vec4. `read`: rows read, for the profile; `job`: the first; `bounds`: rows of the tables. */
function launch(
  gpu: Gpu,
  op: string,
  entry: string,
  bindings: NdArray[],
  rows: number,
  c: number,
  read: number,
  { job = 0, accumulate = false, bounds = [] }: { job?: number; accumulate?: boolean; bounds?: readonly number[] } = {},
): void {
  const vector = c % 4 === 0;
  const columns = vector ? c / 4 : c;
  // A gathering thread copies eight columns; a summing one has loads enough with one.
  const strips = entry === "sumRows" ? columns : Math.ceil(columns / 8);
  gpu.dispatch({
    op,
    shader: "embedding",
    entry,
    tile: { T: vector ? "vec4f" : "f32" },
    bindings,
    params: [rows, columns, strips, job, accumulate ? 1 : 0, NAN_BITS, ...[0, 1, 2].map((i) => bounds[i] ?? 0)],
    grid: grid(Math.ceil((rows * strips) / 64)),
    work: { bytes: 4 * (read + rows) * c },
  });
}

/** The definition, in float64. */
export function gatherSumReference(
  lookups: readonly { table: ArrayLike<number>; ids: ArrayLike<number> }[],
  c: number,
): Float64Array {
  const n = lookups[0]?.ids.length ?? 0;
  const y = new Float64Array(n * c);
  for (const { table, ids } of lookups) {
    for (let i = 0; i < y.length; i++)
      y[i] = (y[i] ?? 0) + (table[(ids[Math.floor(i / c)] ?? 0) * c + (i % c)] ?? Number.NaN);
  }
  return y;
}

/** Σ of dy over the tokens of each id, in float64, [rows, C]. */
export function gatherBackwardReference(
  dy: ArrayLike<number>,
  ids: ArrayLike<number>,
  rows: number,
  c: number,
): Float64Array {
  const dtable = new Float64Array(rows * c);
  for (let i = 0; i < dy.length; i++) {
    const at = (ids[Math.floor(i / c)] ?? 0) * c + (i % c);
    dtable[at] = (dtable[at] ?? 0) + (dy[i] ?? 0);
  }
  return dtable;
}
