/**
 * @file What is measured of attention over packed sequences: MiniLM's heads at a batch of SST-2 and at full length,
 * larger heads, the embedded default's. The flops are the algorithm's: two products forward, five backward (scores made
 * again included), T² each and sequence; what a kernel makes once more is not counted.
 */
import type { Gpu } from "../src/gpu/index.ts";
import { fromHost, type NdArray } from "../src/kernels/array.ts";
import {
  type AttentionFamily,
  type AttentionOptions,
  type AttentionPlan,
  attention,
  attentionBackward,
  attentionPlan,
} from "../src/kernels/attention.ts";
import { Stream } from "../src/random.ts";
import type { BenchCase } from "./case.ts";

/** Lengths as of 16 short sentences: 5 to 23 tokens. */
const SHORT = Array.from({ length: 16 }, (_, i) => 5 + ((i * 7) % 19));

/** heads, head size, lengths. */
const SHAPES: readonly (readonly [number, number, readonly number[]])[] = [
  [12, 32, SHORT],
  [12, 32, Array(16).fill(64)],
  [8, 64, Array(8).fill(64)],
  [12, 64, [512]],
  [4, 16, SHORT],
];

interface Made {
  qkv: NdArray;
  dy: NdArray;
  plan: AttentionPlan;
  y: NdArray;
  lse: NdArray;
}

export function cases(gpu: Gpu): BenchCase[] {
  const lanes = gpu.adapter.subgroupSize;
  const families: AttentionFamily[] = [
    ...(lanes === 4 ? (["unrolled"] as const) : []),
    ...(lanes === 4 || lanes === 8 ? (["subgroup"] as const) : []),
    "tiled",
    "plain",
  ];
  return SHAPES.flatMap(([heads, d, lengths]) => {
    const c = heads * d;
    const starts = Uint32Array.from([0, ...lengths]);
    for (let b = 1; b < starts.length; b++) starts[b] = (starts[b] ?? 0) + (starts[b - 1] ?? 0);
    const n = starts.at(-1) ?? 0;
    const product = lengths.reduce((sum, t) => sum + 2 * t * t * c, 0);
    const shape = { H: heads, D: d, N: n, T: Math.max(...lengths), B: lengths.length };
    const make = (options: AttentionOptions, family?: AttentionFamily): Made => {
      const stream = new Stream(0, "bench attention", n, c);
      const normals = (size: number) => Float32Array.from({ length: size }, () => stream.normal());
      const qkv = fromHost(gpu, normals(n * 3 * c), [n, 3 * c]);
      const dy = fromHost(gpu, normals(n * c), [n, c]);
      const plan = attentionPlan(gpu, starts, family);
      return { qkv, dy, plan, ...attention(gpu, qkv, plan, options) };
    };
    const one = (
      name: string,
      flops: number,
      family: AttentionFamily | undefined,
      options: AttentionOptions,
      body: (made: Made) => unknown,
    ): BenchCase => {
      let made: Made | undefined;
      return {
        name,
        shape,
        flops,
        run() {
          // Outside a scope, so that the inputs outlive the run.
          made ??= make(options, family);
          gpu.scope(() => body(made as Made));
        },
        dispose() {
          if (made) for (const a of [made.qkv, made.dy, made.plan.tiles, made.y, made.lse]) gpu.release(a.buffer);
          made = undefined;
        },
      };
    };
    const both = (suffix: string, options: AttentionOptions, family?: AttentionFamily): BenchCase[] => [
      one(`attention${suffix}`, 2 * product, family, options, ({ qkv, plan }) => attention(gpu, qkv, plan, options)),
      one(`attention.backward${suffix}`, 5 * product, family, options, ({ qkv, y, lse, dy, plan }) =>
        attentionBackward(gpu, qkv, y, lse, dy, plan, options),
      ),
    ];
    return [
      ...families.flatMap((family) => both(` ${family}`, { heads }, family)),
      ...both(" dropout", { heads, dropout: { p: 0.1, key: [1, 2] } }),
    ];
  });
}
