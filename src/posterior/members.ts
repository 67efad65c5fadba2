/**
 * @file One θ, and the many small models inside it. Dropout members: the batch is repeated S times, each copy has its own
 * mask, and all S go through the model as one packed batch: one forward, one submit (Gal and Ghahramani, "Dropout as a
 * Bayesian approximation", 2016).
 */
import { repeatBatch } from "../data/batches.ts";
import { InputError } from "../errors.ts";
import { streamKey } from "../random.ts";
import { type Classifier, joined, logitsOfBatches } from "../train/evaluate.ts";
import type { Posterior } from "./posterior.ts";

/** One θ, no dropout: what MLE and MAP predict with. */
export function pointEstimate(model: Classifier): Posterior {
  return {
    members: 1,
    async logits(batches, progress) {
      return [await logitsOfBatches(model, batches, (done) => progress?.(done / batches.length))];
    },
  };
}

export interface DropoutMembersOptions {
  /** S ≥ 1 */
  S: number;
  seed?: number;
  /**
   * Most tokens in one pass; default 8,192. Where S copies of a batch hold more, its members come in several passes
   * (and their masks are drawn anew for each: the same limit gives the same masks).
   */
  maxTokens?: number;
}

/** S dropout masks of one θ. Throws InputError unless S is a whole number ≥ 1. */
export function dropoutMembers(model: Classifier, { S, seed = 0, maxTokens = 8192 }: DropoutMembersOptions): Posterior {
  if (!Number.isSafeInteger(S) || S < 1) throw new InputError(`members: ${S} (expected a whole number from 1).`);
  const { engine } = model;
  return {
    members: S,
    async logits(batches, progress) {
      const members: Float32Array[][] = Array.from({ length: S }, () => []);
      for (const [index, batch] of batches.entries()) {
        const most = Math.max(1, Math.floor(maxTokens / batch.tokens));
        const passes: Promise<Float32Array>[] = [];
        for (let first = 0; first < S; first += most) {
          const packed = repeatBatch(batch, Math.min(most, S - first));
          // A mask is a function of key and element: the copies differ because their elements do.
          const keys = (site: number) => streamKey(seed, "members", index, first, site);
          const read = engine.evaluate(() => model.logits(packed, keys));
          read.catch(() => {}); // awaited below
          passes.push(read);
        }
        // Copy c of a pass is its rows c·B … (c + 1)·B: the passes, one after the other, are the members.
        const flat = joined(await Promise.all(passes));
        const size = flat.length / S; // B·K
        for (const [s, member] of members.entries()) member.push(flat.subarray(s * size, (s + 1) * size));
        progress?.((index + 1) / batches.length);
      }
      return members.map(joined);
    },
  };
}
