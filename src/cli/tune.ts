/**
 * @file `bench --tune`: every family of matrix products that can run here, at the shapes of MiniLM and BERT-base, in turn.
 * A family whose result is not float64's is out; the order of the others by median time is stored (tuned.ts) and in force
 * from then on. A run that was begun before keeps its choices.
 */
import { DeviceError, InterruptedError } from "../errors.ts";
import type { AdapterReport, Gpu } from "../gpu/index.ts";
import { openGpu } from "../gpu/node.ts";
import { empty, fromHost, readArray } from "../kernels/array.ts";
import { batchedMatmul, type Layout } from "../kernels/matmul.ts";
import { type ProductSizes, preferred } from "../kernels/matmul-choice.ts";
import { ableFamilies, type Family } from "../kernels/matmul-families.ts";
import { Stream } from "../random.ts";
import { figure, table } from "./format.ts";
import type { Io } from "./io.ts";
import type { RawFlags } from "./options.ts";
import { Output } from "./output.ts";
import { keepUnfinished, type Measured, readUnfinished, storeTuned } from "./tuned.ts";

export interface Product extends ProductSizes {
  layout: Layout;
}

/** What one shape is measured with; the device, or a test's stand-in. */
export interface Contest {
  /** Runs the family once. What is wrong with its result, or undefined. */
  check(family: Family): Promise<string | undefined>;
  /** Milliseconds of one product, from `repeats` of them in a row. */
  time(family: Family, repeats: number): Promise<number>;
  dispose(): void;
}

/** `milliseconds`: medians; of the families that were left aside after one run, that run. */
export interface Outcome extends Measured {
  /** Families that computed something else, and what. */
  wrong: string[];
}

const ROUNDS = 9;
/** A family this many times slower than the fastest at its first run is not timed again. */
const HOPELESS = 2.5;
/** What is in the table stays, unless another is faster by more than noise: a choice that flips changes bits for nothing. */
const CLEARLY = 1.03;
/** One timing lasts this long at least: on a GPU a wait for its end costs a tenth of a millisecond. */
const TIMING_MS = 4;
const MOST_REPEATS = 1000;
/** Of one shape, after its first runs; below it there are nine rounds, above it fewer, three at least. */
const SHAPE_MS = 4000;

/**
 * y = x Wᵀ (NT), dx = dy W (NN) and dW = dyᵀ x (TN) of a linear layer, for a batch of short sentences and for one of 1,024
 * tokens; the classifier of 16 sentences; masked tokens against a vocabulary; products as small as attention's.
 */
export function tunedShapes(): Product[] {
  const linear = (tokens: number, from: number, to: number): Product[] => [
    { layout: "NT", G: 1, M: tokens, N: to, K: from },
    { layout: "NN", G: 1, M: tokens, N: from, K: to },
    { layout: "TN", G: 1, M: to, N: from, K: tokens },
  ];
  const layer = (tokens: number, channels: number): Product[] => [
    ...linear(tokens, channels, channels),
    ...linear(tokens, channels, 4 * channels),
    ...linear(tokens, 4 * channels, channels),
  ];
  const heads = (["NN", "NT", "TN"] as const).map((layout): Product => ({ layout, G: 96, M: 64, N: 32, K: 64 }));
  return [
    ...layer(208, 384),
    ...layer(1024, 384),
    ...layer(512, 768),
    ...linear(16, 384, 2),
    { layout: "NT", G: 1, M: 64, N: 30522, K: 384 },
    ...heads,
  ];
}

/** The families at one shape, fastest first. DeviceError: all are wrong. */
export async function tuneShape(
  adapter: Pick<AdapterReport, "kind" | "subgroupSize" | "limits">,
  product: Product,
  contest: Contest,
): Promise<Outcome> {
  const wrong: string[] = [];
  const first = new Map<Family, number>();
  for (const family of ableFamilies(adapter, product.layout, product)) {
    const problem = await contest.check(family);
    if (problem === undefined) first.set(family, await contest.time(family, 1));
    else wrong.push(`${family}: ${problem}`);
  }
  const quickest = Math.min(...first.values());
  if (first.size === 0) throw new DeviceError(`bench --tune: no kernel is right at ${text(product)}: ${wrong[0]}`);
  const field = [...first].filter(([, ms]) => ms <= HOPELESS * quickest).map(([family]) => family);
  // One run is mostly waiting where a product takes microseconds: more of them at once, until a timing lasts.
  const [swiftest] = [...first].filter(([, ms]) => ms === quickest).map(([family]) => family);
  let repeats = 1;
  for (let ms = quickest; swiftest && repeats < MOST_REPEATS && repeats * ms < TIMING_MS; ) {
    repeats = Math.min(MOST_REPEATS, 4 * repeats);
    ms = await contest.time(swiftest, repeats);
  }
  const round = field.reduce((sum, family) => sum + repeats * (first.get(family) ?? 0), 0);
  const rounds = Math.min(ROUNDS, Math.max(3, Math.floor(SHAPE_MS / round)));
  const times = new Map(field.map((family): [Family, number[]] => [family, []]));
  for (let i = 0; i < rounds; i++) {
    for (const family of field) times.get(family)?.push(await contest.time(family, repeats));
  }
  const medians = new Map([...first, ...[...times].map(([family, ms]): [Family, number] => [family, median(ms)])]);
  const best = Math.min(...field.map((family) => medians.get(family) ?? Number.NaN));
  const home = preferred(adapter, product.layout, product).find((family) => field.includes(family));
  const key = (family: Family) => {
    const ms = medians.get(family) ?? Number.NaN;
    if (!field.includes(family)) return Number.MAX_SAFE_INTEGER + ms; // never before one that was timed
    return family === home && ms <= CLEARLY * best ? 0 : ms;
  };
  const families = [...first.keys()].sort((a, b) => key(a) - key(b));
  return { choice: { ...product, families }, milliseconds: Object.fromEntries(medians), wrong };
}

function median(samples: readonly number[]): number {
  return samples.toSorted((a, b) => a - b)[(samples.length - 1) >> 1] ?? Number.NaN;
}

function text({ layout, G, M, N, K }: Product): string {
  return `${layout} ${G > 1 ? `G${G} ` : ""}M${M} N${N} K${K}`;
}

/** The rows that are compared with float64, over all of M and with the first and the last; all columns of each. */
const CHECKED_ROWS = 48;

/** A shape on the device. Of a batch the last product is checked. */
export function contestOn(gpu: Gpu, product: Product): Contest {
  const { layout, G, M, N, K } = product;
  const random = new Stream(0, "tune");
  // A prime number of values, so that no row repeats another.
  const pool = Float32Array.from({ length: 65_537 }, () => 2 * random.uniform() - 1);
  const operand = (n: number) => Float32Array.from({ length: n }, (_, i) => pool[i % pool.length] as number);
  const a = operand(G * M * K);
  const b = operand(G * K * N).reverse();
  const onDevice = [
    fromHost(gpu, a, layout === "TN" ? [G, K, M] : [G, M, K]),
    fromHost(gpu, b, layout === "NT" ? [G, N, K] : [G, K, N]),
    empty(gpu, [G, M, N], "f32", "tune"),
  ] as const;
  const [x, y, c] = onDevice;
  const into = { array: c, accumulate: false };
  const multiply = (family: Family) => batchedMatmul(gpu, x, y, layout, { into, family });
  let expected: Rows | undefined;
  return {
    check: async (family) => {
      // What another family left there is right.
      gpu.clear({ buffer: c.buffer, byteOffset: c.byteOffset, byteLength: c.byteLength });
      multiply(family);
      const found = await readArray(gpu, c);
      expected ??= someRows(a.subarray((G - 1) * M * K), b.subarray((G - 1) * K * N), product);
      return wrongElement(found.subarray((G - 1) * M * N), expected, N);
    },
    time: async (family, repeats) => {
      await gpu.settle();
      const start = performance.now();
      for (let i = 0; i < repeats; i++) multiply(family);
      await gpu.settle();
      return (performance.now() - start) / repeats;
    },
    dispose: () => {
      for (const { buffer } of onDevice) gpu.release(buffer);
      gpu.trim();
    },
  };
}

/** Rows of a product in float64, and how far rounding may carry each element: (K + 2)·2⁻²⁴·Σ|a||b|. */
interface Rows {
  rows: number[];
  exact: Float64Array;
  bound: Float64Array;
}

function someRows(a: Float32Array, b: Float32Array, { layout, M, N, K }: Product): Rows {
  const count = Math.min(M, CHECKED_ROWS);
  const rows = Array.from({ length: count }, (_, r) => (count === 1 ? 0 : Math.round((r * (M - 1)) / (count - 1))));
  const [exact, bound] = [new Float64Array(count * N), new Float64Array(count * N)];
  const [aRow, aK] = layout === "TN" ? [1, M] : [K, 1];
  const [bK, bCol] = layout === "NT" ? [1, K] : [N, 1];
  for (const [r, i] of rows.entries()) {
    for (let j = 0; j < N; j++) {
      let [sum, size] = [0, 0];
      for (let k = 0; k < K; k++) {
        const term = (a[i * aRow + k * aK] as number) * (b[k * bK + j * bCol] as number);
        sum += term;
        size += Math.abs(term);
      }
      exact[r * N + j] = sum;
      bound[r * N + j] = (K + 2) * 2 ** -24 * size;
    }
  }
  return { rows, exact, bound };
}

function wrongElement(c: Float32Array, { rows, exact, bound }: Rows, N: number): string | undefined {
  for (const [r, i] of rows.entries()) {
    for (let j = 0; j < N; j++) {
      const [found, right] = [c[i * N + j] as number, exact[r * N + j] as number];
      if (!(Math.abs(found - right) <= (bound[r * N + j] as number))) return `[${i}, ${j}] is ${found}, not ${right}`;
    }
  }
  return undefined;
}

/** `shapes`: for tests. */
export async function tune(raw: RawFlags, io: Io, shapes = tunedShapes()): Promise<void> {
  const out = new Output(io, raw.json === true);
  const gpu = await openGpu({ adapter: io.env.PRIORWORK_ADAPTER });
  try {
    out.adapter(gpu.adapter);
    // One that ended early is gone on with: on a software adapter all shapes take many minutes.
    const found = new Map(readUnfinished(gpu, io.env).map((one) => [text(one.choice), one]));
    if (found.size > 0)
      out.note(`goes on with a tuning that ended early; ${found.size} of ${shapes.length} shapes are there`);
    const bar = out.progress("tuning", shapes.length);
    for (const [i, product] of shapes.entries()) {
      if (io.signal.aborted) {
        const left = found.size > 0 ? `${found.size} of ${shapes.length} shapes are kept` : "nothing was stored";
        throw new InterruptedError(`interrupted: ${left}. Run it again.`);
      }
      if (!found.has(text(product))) {
        found.set(text(product), await measured(gpu, product, out));
        keepUnfinished(gpu, io.env, [...found.values()]);
      }
      bar.update(i + 1, text(product));
    }
    const outcomes = shapes.map((product) => found.get(text(product)) as Measured);
    out.end();
    const file = storeTuned(
      gpu,
      io.env,
      outcomes.map(({ choice }) => choice),
    );
    out.text(report(outcomes));
    out.text(`\nstored: ${file}`);
    if (out.json) {
      const choices = outcomes.map(({ choice, milliseconds }) => ({ ...choice, milliseconds }));
      out.document({ adapter: gpu.adapter, file, choices });
    }
    out.note("in force from now on; PRIORWORK_TUNED=0 takes the built-in choices instead");
  } finally {
    out.end();
    gpu.destroy();
  }
}

async function measured(gpu: Gpu, product: Product, out: Output): Promise<Outcome> {
  const contest = contestOn(gpu, product);
  try {
    const outcome = await tuneShape(gpu.adapter, product, contest);
    for (const line of outcome.wrong) out.warning(`${text(product)}: ${line}; it is left out`);
    return outcome;
  } finally {
    contest.dispose();
  }
}

/** A line a shape: the GFLOP/s of each family that was timed, the chosen one first. */
function report(outcomes: readonly Measured[]): string {
  const rows = outcomes.map(({ choice, milliseconds }) => {
    const { layout, G, M, N, K, families } = choice;
    const rate = (family: Family) => figure((2 * G * M * N * K) / (milliseconds[family] ?? Number.NaN) / 1e6);
    const [first, ...rest] = families;
    const shape = [layout, G, M, N, K].map(String);
    return [...shape, first ?? "", first ? rate(first) : "", rest.map((f) => `${f} ${rate(f)}`).join(", ")];
  });
  return table(["layout", "G", "M", "N", "K", "chosen", "GFLOP/s", "others"], rows);
}
