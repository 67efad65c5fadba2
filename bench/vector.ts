/**
 * @file What is measured of the passes over θ at MiniLM's 22.7 M parameters (the prior's terms, the optimisers, sums),
 * and of the kernels at both ends of the model: embeddings and readouts. `bytes` is the least traffic.
 */
import type { Gpu } from "../src/gpu/index.ts";
import { fromHost, type NdArray } from "../src/kernels/array.ts";
import { gatherBackward, gatherPlan, gatherSum } from "../src/kernels/embedding.ts";
import { type Live, LiveChunks } from "../src/kernels/live.ts";
import { dot, sumOfSquares } from "../src/kernels/reduce.ts";
import { segmentMax, segmentMean, segmentMeanBackward } from "../src/kernels/segment.ts";
import { createStatus, vectorTerms } from "../src/kernels/terms.ts";
import { adamUpdate, sgdUpdate } from "../src/kernels/update.ts";
import { Stream } from "../src/random.ts";
import type { BenchCase } from "./case.ts";
import { memoryBound } from "./elementwise.ts";

/** all-MiniLM-L6-v2, rounded up to slices of 64; its word table comes first. */
const THETA = 22_713_344;
const WORDS = { rows: 30_522, channels: 384 };
/** Distinct words of 256 sentences of SST-2, about. */
const HELD = 1500;

export function cases(gpu: Gpu, n = THETA): BenchCase[] {
  const stretch = { offset: 0, length: n, priorScale: 1e-3 };
  const vectors = (name: string, passes: number, held: number, body: (arrays: NdArray[], status: NdArray) => unknown) =>
    memoryBound(gpu, name, { P: n }, passes * n, new Array(held).fill([n]), (arrays) =>
      body(arrays, createStatus(gpu)),
    );
  // The inputs have both signs, a second moment too: its roots are NaN, which cost what numbers cost.
  const adam = { lr: 1e-9, beta1: 0.9, beta2: 0.999, eps: 1e-8, step: 7, last: true, decay: 0 };
  const chunks = heldWords(n);
  const resting = (
    name: string,
    passes: number,
    held: number,
    body: (arrays: NdArray[], status: NdArray, live: Live) => unknown,
  ) =>
    memoryBound(gpu, name, { P: n, words: HELD }, passes * n * chunks.share, new Array(held).fill([n]), (arrays) =>
      body(arrays, createStatus(gpu), chunks.upload(gpu)),
    );
  return [
    resting("vectorTerms", 3, 3, ([theta, grad, mu], status, live) =>
      vectorTerms(gpu, { theta: theta!, grad: grad!, mu: mu! }, [stretch], status, { clip: 1, live }),
    ),
    resting("adamUpdate", 8, 5, ([theta, grad, mu, m, v], status, live) =>
      adamUpdate(gpu, { theta: theta!, grad: grad!, mu: mu!, m: m!, v: v! }, stretch, status, { ...adam, live }),
    ),
    vectors("vectorTerms", 3, 3, ([theta, grad, mu], status) =>
      vectorTerms(gpu, { theta: theta!, grad: grad!, mu: mu! }, [stretch], status, { clip: 1 }),
    ),
    vectors("adamUpdate", 8, 5, ([theta, grad, mu, m, v], status) =>
      adamUpdate(gpu, { theta: theta!, grad: grad!, mu: mu!, m: m!, v: v! }, stretch, status, adam),
    ),
    vectors(
      "sgdUpdate",
      6,
      4,
      ([theta, grad, mu, momentum], status) =>
      sgdUpdate(gpu, { theta: theta!, grad: grad!, mu: mu!, momentum: momentum! }, stretch, status, { ...adam, momentum: 0.9 }), // biome-ignore format: one call
    ),
    vectors("sumOfSquares", 1, 1, ([x]) => sumOfSquares(gpu, x!)),
    vectors("dot", 2, 2, ([a, b]) => dot(gpu, a!, b!)),
    ...ends(gpu, 1024, 16, 30_522, 384),
  ];
}

/** All of θ but the rows of words that no batch has held. */
function heldWords(n: number): LiveChunks {
  const { rows, channels } = WORDS;
  const chunks = new LiveChunks(n);
  chunks.add(Math.min(n, rows * channels), n);
  for (let i = 0; i < HELD; i++) {
    const row = (7919 * i) % rows;
    if ((row + 1) * channels <= n) chunks.add(row * channels, (row + 1) * channels);
  }
  return chunks;
}

/** Embeddings and readouts of b sequences, n tokens in all. */
function ends(gpu: Gpu, n: number, b: number, v: number, c: number): BenchCase[] {
  const shape = { N: n, V: v, C: c };
  const stream = new Stream(1, "bench");
  const words = Uint32Array.from({ length: n }, () => stream.integer(v));
  const positions = Uint32Array.from({ length: n }, (_, i) => i % (n / b));
  const types = new Uint32Array(n);
  const tables = [
    [v, c],
    [512, c],
    [2, c],
  ];
  const starts = () =>
    fromHost(
      gpu,
      Uint32Array.from({ length: b + 1 }, (_, i) => (i * n) / b),
    );
  // In a fresh array every row is written; in the gradient vector those of the step before are cleared. The plan is made
  // anew, as in a step.
  const backward = (name: string, ids: Uint32Array, rows: number) =>
    memoryBound(gpu, name, { N: n, V: rows, C: c }, (n + rows) * c, [[n, c]], ([dy]) =>
      gatherBackward(gpu, dy!, gatherPlan(gpu, ids, rows), [rows, c]),
    );
  const stale = Array.from(new Set(words), (id) => (id + 1) % v);
  const inPlace = memoryBound(
    gpu,
    "gather.backward.inPlace",
    shape,
    3 * n * c,
    [
      [n, c],
      [v, c],
    ],
    ([dy, array]) =>
      gatherBackward(gpu, dy!, gatherPlan(gpu, words, v), [v, c], { array: array!, accumulate: false, stale }),
  );
  return [
    memoryBound(gpu, "gatherSum", shape, 4 * n * c, tables, (held) =>
      gatherSum(
        gpu,
        [words, positions, types].map((ids, i) => ({ table: held[i]!, ids: fromHost(gpu, ids) })),
      ),
    ),
    backward("gather.backward", words, v),
    inPlace,
    backward("gather.backward", positions, 512),
    backward("gather.backward", types, 2),
    memoryBound(gpu, "segmentMean", { N: n, B: b, C: c }, n * c, [[n, c]], ([x]) => segmentMean(gpu, x!, starts(), b)),
    memoryBound(gpu, "segmentMean.backward", { N: n, B: b, C: c }, n * c, [[b, c]], ([dy]) =>
      segmentMeanBackward(gpu, dy!, starts(), n),
    ),
    memoryBound(gpu, "segmentMax", { N: n, B: b, C: c }, n * c, [[n, c]], ([x]) => segmentMax(gpu, x!, starts(), b)),
  ];
}
