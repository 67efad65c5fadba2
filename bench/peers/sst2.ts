/**
 * @file SST-2's sentence lengths, and batches that stand for an epoch of them. Lengths only: the sentences are in no file
 * of this repository.
 */
import { batchesOfEpoch, epochOrder } from "../../src/data/batches.ts";

/**
 * How many of the 67,349 sentences of GLUE's `train.tsv` have 3, 4, … 66 tokens: word pieces of bert-base-uncased's
 * vocabulary, [CLS] and [SEP].
 */
export const SENTENCES: readonly number[] = [
  1978, 5322, 6065, 5345, 4749, 4155, 3713, 3267, 2947, 2650, 2413, 2138, 1950, 1777, 1661, 1515, 1373, 1285, 1132,
  1106, 1046, 909, 820, 806, 733, 692, 628, 538, 491, 442, 448, 400, 337, 304, 286, 242, 195, 203, 192, 155, 148, 130,
  89, 82, 85, 73, 55, 42, 50, 40, 36, 19, 21, 22, 15, 8, 6, 3, 2, 5, 5, 1, 2, 2,
];
const SHORTEST = 3;

/** Sequence lengths of every whole batch of `size`, of an epoch in shuffled order. */
export function epoch(size: number): number[][] {
  const lengths = SENTENCES.flatMap((count, i) => Array<number>(count).fill(SHORTEST + i));
  const batches = batchesOfEpoch(lengths.length, size, epochOrder(lengths.length, 0, 0));
  return batches
    .filter((batch) => batch.length === size)
    .map((batch) => batch.map((sentence) => lengths[sentence] ?? 0));
}

/** Tokens of a batch, and with the padding that makes all as long as its longest. */
export function tokensOf(lengths: readonly number[]): { packed: number; padded: number } {
  return { packed: lengths.reduce((a, b) => a + b, 0), padded: lengths.length * Math.max(...lengths) };
}

/**
 * `count` batches that stand for the epoch: its batches in the order of their longest sentence, cut into `count` equal
 * parts, and of each part the batch that is nearest to the part's mean, in its tokens and in its padded tokens.
 */
export function typicalBatches(size: number, count: number): number[][] {
  const all = epoch(size)
    .map((lengths) => ({ lengths, ...tokensOf(lengths) }))
    .sort((a, b) => a.padded - b.padded || a.packed - b.packed);
  return Array.from({ length: count }, (_, part) => {
    const some = all.slice(Math.floor((part * all.length) / count), Math.floor(((part + 1) * all.length) / count));
    const mean = (key: "packed" | "padded") => some.reduce((sum, batch) => sum + batch[key], 0) / some.length;
    const [packed, padded] = [mean("packed"), mean("padded")];
    const off = (batch: (typeof some)[number]) => Math.hypot(batch.packed / packed - 1, batch.padded / padded - 1);
    return some.reduce((best, batch) => (off(batch) < off(best) ? batch : best)).lengths;
  });
}
