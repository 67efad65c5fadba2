/**
 * @file Packed batches: the tokens of all sequences one after the other, without padding, and where each sequence
 * starts. Padding SST-2 at batch 16 would cost 2.6 times the work; packed, there is no attention mask either. Here too:
 * the order of an epoch, and what pretraining draws (masked tokens, sentence pairs), each from a named random stream.
 */

import { Stream } from "../random.ts";

/** One sequence, special tokens included. */
export interface Example {
  ids: ArrayLike<number>;
  /** 0 for the first text, 1 for the second; as long as `ids`. */
  typeIds: ArrayLike<number>;
  label?: number;
  /** How often its likelihood counts: p(y|x, θ)^weight. Default 1. */
  weight?: number;
}

/** B sequences with N tokens in all; sequence b is rows `starts[b]` to `starts[b + 1]`. */
export interface PackedBatch {
  /** [N] */
  ids: Uint32Array<ArrayBuffer>;
  /** [N] */
  typeIds: Uint32Array<ArrayBuffer>;
  /** [N], counted from 0 in every sequence */
  positions: Uint32Array<ArrayBuffer>;
  /** [B + 1] */
  starts: Uint32Array<ArrayBuffer>;
  /** [B], if every example has one */
  labels?: Uint32Array<ArrayBuffer>;
  /** [B], if some example has one */
  weights?: Float32Array<ArrayBuffer>;
  /** N */
  tokens: number;
  /** B */
  sequences: number;
  /** T, the longest sequence */
  longest: number;
  /** Set: so many copies of one batch, one after the other, each for one rank-one member. */
  members?: number;
}

/** Examples in batches of `size`, the last of what is left, in the order given. */
export function packBatches(examples: readonly Example[], size: number): PackedBatch[] {
  const count = Math.ceil(examples.length / size);
  return Array.from({ length: count }, (_, i) => packBatch(examples.slice(i * size, (i + 1) * size)));
}

/** Packs examples in the order given. RangeError: no example, one without tokens, labels on some only. */
export function packBatch(examples: readonly Example[]): PackedBatch {
  const sequences = examples.length;
  if (sequences === 0) throw new RangeError("packBatch: a batch needs an example");
  const starts = new Uint32Array(sequences + 1);
  let longest = 0;
  let labelled = 0;
  examples.forEach(({ ids, typeIds, label }, b) => {
    if (ids.length === 0) throw new RangeError(`packBatch: example ${b} has no tokens`);
    if (typeIds.length !== ids.length) {
      throw new RangeError(`packBatch: example ${b} has ${ids.length} ids but ${typeIds.length} type ids`);
    }
    starts[b + 1] = (starts[b] ?? 0) + ids.length;
    longest = Math.max(longest, ids.length);
    if (label !== undefined) labelled++;
  });
  if (labelled > 0 && labelled < sequences) {
    throw new RangeError(`packBatch: ${labelled} of ${sequences} examples have a label (expected all or none)`);
  }
  const tokens = starts[sequences] ?? 0;
  const batch: PackedBatch = {
    ids: new Uint32Array(tokens),
    typeIds: new Uint32Array(tokens),
    positions: new Uint32Array(tokens),
    starts,
    tokens,
    sequences,
    longest,
  };
  examples.forEach(({ ids, typeIds }, b) => {
    const start = starts[b] ?? 0;
    batch.ids.set(ids, start);
    batch.typeIds.set(typeIds, start);
    for (let t = 0; t < ids.length; t++) batch.positions[start + t] = t;
  });
  if (labelled > 0) batch.labels = Uint32Array.from(examples, (example) => example.label ?? 0);
  if (examples.some(({ weight }) => weight !== undefined)) {
    batch.weights = Float32Array.from(examples, ({ weight }) => weight ?? 1);
  }
  return batch;
}

/** The batch S times over, as one batch of S·B sequences (copy s of sequence b is s·B + b): S members in one forward. */
export function repeatBatch(batch: PackedBatch, S: number): PackedBatch {
  const { tokens, sequences } = batch;
  const starts = new Uint32Array(S * sequences + 1);
  for (let s = 0; s < S; s++) {
    for (let b = 1; b <= sequences; b++) starts[s * sequences + b] = s * tokens + (batch.starts[b] ?? 0);
  }
  return {
    ids: repeated(batch.ids, S),
    typeIds: repeated(batch.typeIds, S),
    positions: repeated(batch.positions, S),
    starts,
    ...(batch.labels === undefined ? {} : { labels: repeated(batch.labels, S) }),
    ...(batch.weights === undefined ? {} : { weights: repeated(batch.weights, S) }),
    tokens: S * tokens,
    sequences: S * sequences,
    longest: batch.longest,
  };
}

function repeated<A extends Uint32Array<ArrayBuffer> | Float32Array<ArrayBuffer>>(a: A, S: number): A {
  const all = new (a.constructor as new (length: number) => A)(S * a.length);
  for (let s = 0; s < S; s++) all.set(a, s * a.length);
  return all;
}

/** The order of n examples in an epoch (counted from 0): the stream (seed, "order", epoch), or file order. */
export function epochOrder(n: number, seed: number, epoch: number, shuffle = true): Uint32Array {
  return shuffle ? new Stream(seed, "order", epoch).shuffle(n) : Uint32Array.from({ length: n }, (_, i) => i);
}

/** A fixed number of sequences, or as many as fit in K tokens (one at least) for sequences of these `lengths`. */
export type BatchSize = number | { tokens: number; lengths: ArrayLike<number> };

/** An epoch cut into batches of example numbers, in `order`; the last may be short. */
export function batchesOfEpoch(n: number, size: BatchSize, order: ArrayLike<number>): number[][] {
  if (order.length !== n) throw new RangeError(`batchesOfEpoch: an order of ${order.length} for ${n} examples`);
  const limit = typeof size === "number" ? size : size.tokens;
  if (!Number.isSafeInteger(limit) || limit < 1) throw new RangeError(`batchesOfEpoch: a batch of ${limit}`);
  const batches: number[][] = [];
  let filled = Number.POSITIVE_INFINITY; // the first example opens the first batch
  for (let k = 0; k < n; k++) {
    const example = order[k] ?? 0;
    const cost = typeof size === "number" ? 1 : (size.lengths[example] ?? 0);
    if (filled + cost > limit) {
      batches.push([]);
      filled = 0;
    }
    batches.at(-1)?.push(example);
    filled += cost;
  }
  return batches;
}

/** What the masked-language-model loss needs: the ids as the model sees them, and what stood at the chosen rows. */
export interface MaskedTokens {
  /** [N] */
  ids: Uint32Array<ArrayBuffer>;
  /** [M] rows of the batch, ascending */
  positions: Uint32Array<ArrayBuffer>;
  /** [M] the true ids there */
  targets: Uint32Array<ArrayBuffer>;
}

export interface MaskOptions {
  stream: Stream;
  /** The share of tokens that is chosen; default .15. */
  rate?: number;
  vocabSize: number;
  maskId: number;
  /** Never chosen: [CLS], [SEP], [PAD]. */
  specialIds: ArrayLike<number>;
}

/**
 * BERT's masking (Devlin et al. 2019, §3.1): of the tokens that are no special ones 15 % are chosen; of these 80 %
 * become [MASK], 10 % a token drawn from the whole vocabulary, 10 % stay. At least one is chosen, since a mean over
 * none is not a number. RangeError: the batch holds special tokens only.
 */
export function maskTokens(batch: PackedBatch, options: MaskOptions): MaskedTokens {
  const { stream, rate = 0.15, vocabSize, maskId } = options;
  const special = new Set(Array.from(options.specialIds));
  const ids = batch.ids.slice();
  const eligible: number[] = [];
  const chosen: number[] = [];
  for (let i = 0; i < ids.length; i++) {
    if (special.has(ids[i] ?? 0)) continue;
    eligible.push(i);
    if (stream.uniform() < rate) chosen.push(i);
  }
  if (eligible.length === 0) throw new RangeError("maskTokens: the batch holds special tokens only");
  if (chosen.length === 0) chosen.push(eligible[stream.integer(eligible.length)] ?? 0);
  const positions = Uint32Array.from(chosen);
  const targets = Uint32Array.from(chosen, (i) => ids[i] ?? 0);
  for (const i of chosen) {
    const u = stream.uniform();
    if (u < 0.8) ids[i] = maskId;
    else if (u < 0.9) ids[i] = stream.integer(vocabSize);
  }
  return { ids, positions, targets };
}

/** Two sentences for next-sentence prediction; label 0: the second followed the first, 1: it did not (as in BERT). */
export interface SentencePair {
  first: string;
  second: string;
  label: 0 | 1;
}

/**
 * Every sentence that has a successor, in random order, half of them with it (label 0; the odd one too) and half with
 * a sentence of another document (label 1). RangeError: fewer than two documents with a sentence.
 */
export function nspPairs(documents: readonly (readonly string[])[], stream: Stream): SentencePair[] {
  const filled = documents.filter((sentences) => sentences.length > 0);
  if (filled.length < 2) throw new RangeError(`nspPairs: ${filled.length} documents (expected two or more)`);
  const places = filled.flatMap((sentences, d) => sentences.slice(1).map((_, s) => ({ d, s })));
  const pairs: SentencePair[] = [];
  const order = stream.shuffle(places.length);
  for (let k = 0; k < order.length; k++) {
    const { d, s } = places[order[k] ?? 0] ?? { d: 0, s: 0 };
    const here = filled[d] ?? [];
    const first = here[s] ?? "";
    if (k % 2 === 0) {
      pairs.push({ first, second: here[s + 1] ?? "", label: 0 });
      continue;
    }
    // Skipping d by shifting those after it: uniform over the other documents without drawing twice.
    const drawn = stream.integer(filled.length - 1);
    const there = filled[drawn < d ? drawn : drawn + 1] ?? [];
    pairs.push({ first, second: there[stream.integer(there.length)] ?? "", label: 1 });
  }
  return pairs;
}
