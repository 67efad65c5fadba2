/**
 * @file Pretraining data: documents of sentences become pairs (half of them true neighbours) with masked tokens, anew in
 * every epoch (Devlin et al. 2019, §3.1). What is drawn depends only on seed, epoch and step, so a resumed run sees what
 * the uninterrupted one would have seen.
 */
import { maskTokens, nspPairs, packBatch, type SentencePair } from "../data/batches.ts";
import type { BertTokenizer } from "../data/tokenizer.ts";
import type { PretrainingBatch } from "../model/pretraining.ts";
import { Stream } from "../random.ts";
import type { Source } from "./source.ts";

export interface PretrainingOptions {
  seed?: number;
  /** Tokens of a pair, special ones included; longer pairs are cut. */
  maxLength: number;
  /** False: single sentences, no next-sentence task. */
  nextSentence?: boolean;
  /** Masked tokens that become a random one draw it from ids below this; default: the tokenizer's. */
  vocabSize?: number;
}

/**
 * A source of masked pairs (or single sentences), for `BertForPreTraining`. Its length is the number of likelihood terms,
 * a pair (or sentence) each, and so N. RangeError: fewer than two documents where pairs are asked for.
 */
export function pretrainingSource(
  documents: readonly (readonly string[])[],
  tokenizer: BertTokenizer,
  { seed = 0, maxLength, nextSentence = true, vocabSize = tokenizer.vocabSize }: PretrainingOptions,
): Source<PretrainingBatch> {
  const sentences = documents.flat();
  const drawn: { epoch: number; pairs: SentencePair[] } = { epoch: -1, pairs: [] };
  const pairsOf = (epoch: number): SentencePair[] => {
    if (drawn.epoch !== epoch)
      Object.assign(drawn, { epoch, pairs: nspPairs(documents, new Stream(seed, "nsp", epoch)) });
    return drawn.pairs;
  };
  const { cls, sep, pad, mask } = tokenizer;
  return {
    length: nextSentence ? pairsOf(0).length : sentences.length,
    batch(rows, { epoch, step, micro }) {
      const pairs = nextSentence ? pairsOf(epoch) : undefined;
      const packed = packBatch(
        rows.map((row) => {
          const pair = pairs?.[row];
          return pair
            ? tokenizer.encode(pair.first, pair.second, { maxLength })
            : tokenizer.encode(sentences[row] ?? "", undefined, { maxLength });
        }),
      );
      const stream = new Stream(seed, "mask", step, micro);
      const masked = maskTokens(packed, { stream, vocabSize, maskId: mask, specialIds: [cls, sep, pad] });
      return {
        ...packed,
        ids: masked.ids,
        maskedRows: masked.positions,
        maskedTargets: masked.targets,
        ...(pairs ? { nextSentence: Uint32Array.from(rows, (row) => pairs[row]?.label ?? 0) } : {}),
      };
    },
  };
}
