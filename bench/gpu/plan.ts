/**
 * @file What a run measures and how long each part may take: the full plan for a GPU, a rehearsal of it, and `--quick`,
 * which has every part at sizes that a software adapter gets through in seconds. PyTorch is given the same shapes.
 */
import type { Layout, MatmulSizes } from "../../src/kernels/matmul.ts";
import { LENGTHS, MINILM } from "../step.ts";

/** In this order: what a GPU that goes away after five minutes should have told by then comes first. */
export const PARTS = ["adapter", "ops", "ceilings", "kernels", "steps", "torch", "unguarded"] as const;
export type Part = (typeof PARTS)[number];

export interface Plan {
  name: "full" | "rehearsal" | "quick";
  /** Seconds. What a part leaves over, the later ones may use. */
  budget: Readonly<Record<Part, number>>;
  /** Seconds that one case or test may take, compilation included, before its process is ended and the next goes on. */
  patience: number;
  /** Carried test files, by a part of their path; the longest first, since they run side by side. */
  tests: readonly string[];
  products: readonly { sizes: MatmulSizes; layouts: readonly Layout[] }[];
  /** Whole kernels beside the products: their benches' own shapes, or one small elementwise case. */
  kernels: "all" | "few";
  /** Configuration in Hugging Face's names, and the batches: lengths of their sequences. */
  model: Readonly<Record<string, string | number>>;
  batches: readonly (readonly number[])[];
  /** Timed rounds of each case, of which the median counts, and the milliseconds that a round is made to last. */
  rounds: number;
  round: number;
}

const ALL: readonly Layout[] = ["NN", "NT", "TN"];

/** The shapes that the judgement asks for, by name. */
export const CUBE: MatmulSizes = { M: 4096, N: 4096, K: 4096 };
export const FEED_FORWARD: MatmulSizes = { M: 1024, N: 1536, K: 384 };

export const FULL: Plan = {
  name: "full",
  budget: { adapter: 40, ops: 140, ceilings: 20, kernels: 120, steps: 70, torch: 80, unguarded: 60 },
  patience: 40,
  tests: ["kernels/matmul", "kernels/attention", "golden/bert_random", "kernels/", "autograd/"],
  products: [
    { sizes: CUBE, layouts: ["NN", "NT", "TN"] },
    { sizes: FEED_FORWARD, layouts: ALL },
    { sizes: { M: 1024, N: 384, K: 1536 }, layouts: ALL },
    { sizes: { M: 213, N: 1536, K: 384 }, layouts: ALL },
    { sizes: { M: 1024, N: 1024, K: 1024 }, layouts: ["NN"] },
    { sizes: { M: 4096, N: 3072, K: 768 }, layouts: ["NN"] },
  ],
  kernels: "all",
  model: MINILM,
  batches: LENGTHS,
  rounds: 9,
  round: 20,
};

/** All of it on a software adapter, but the products that would take it minutes each. */
export const REHEARSAL: Plan = {
  ...FULL,
  name: "rehearsal",
  products: FULL.products.filter(({ sizes: { M, N, K } }) => M * N * K <= 2 ** 30),
  rounds: 3,
  patience: 300,
};

export const QUICK: Plan = {
  name: "quick",
  budget: { adapter: 20, ops: 40, ceilings: 10, kernels: 20, steps: 30, torch: 40, unguarded: 20 },
  patience: 60,
  tests: ["kernels/rows"],
  products: [{ sizes: { M: 64, N: 64, K: 64 }, layouts: ["NN", "NT"] }],
  kernels: "few",
  model: {
    ...MINILM,
    vocab_size: 100,
    hidden_size: 32,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    intermediate_size: 64,
  },
  batches: [
    [5, 3],
    [4, 1],
  ],
  rounds: 3,
  round: 1,
};
