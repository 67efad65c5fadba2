/**
 * @file Members that are values of θ: an ensemble's end points, a sampler's draws. A draw covers some slices of θ; the
 * rest is the model's own. Where only the head is drawn, an encoder pass serves all members.
 */
import type { Slice, Tensor, Theta } from "../autograd/index.ts";
import type { PackedBatch } from "../data/batches.ts";
import { InputError } from "../errors.ts";
import { NdArray, readArray } from "../kernels/index.ts";
import type { DropoutKeys } from "../model/bert.ts";
import { type Classifier, joined } from "../train/evaluate.ts";
import type { Posterior } from "./posterior.ts";

/** S values of some slices of θ. They may lie on disk: one is asked for at a time. */
export interface Draws {
  readonly size: number;
  /** What a draw covers, in θ's order. */
  readonly slices: readonly Slice[];
  /** Draw s: the slices' numbers one after the other, without padding. */
  read(s: number): Promise<Float32Array> | Float32Array;
}

/** A classifier whose vectors and head can be asked apart, over a θ that can be written. */
export interface ThetaClassifier extends Classifier {
  readonly theta: Theta;
  features(batch: PackedBatch, dropout?: DropoutKeys): Tensor;
  classify(features: Tensor, dropout?: DropoutKeys): Tensor;
}

/** Draws that are held in memory. RangeError: one that has not the slices' size. */
export function heldDraws(slices: readonly Slice[], values: readonly Float32Array[]): Draws {
  const size = slices.reduce((sum, slice) => sum + slice.size, 0);
  const wrong = values.findIndex((value) => value.length !== size);
  if (wrong >= 0) {
    throw new RangeError(`draws: draw ${wrong} has ${values[wrong]?.length} numbers, its slices have ${size}`);
  }
  return { size: values.length, slices, read: (s) => values[s] as Float32Array };
}

/** Size of part `i` when `total` is split evenly; the first `total % parts` parts get one more. */
export function shareOf(total: number, parts: number, i: number): number {
  return Math.floor(total / parts) + (i < total % parts ? 1 : 0);
}

/**
 * `count` of some draws, by number: from each chain (or mode) in turn as long as it has some, and spread over it, so that a
 * few are of every chain, however short one is. `chains`: which chain each draw is of; all of one where that is not known.
 */
export function spreadOver(chains: readonly (number | undefined)[], count: number): number[] {
  const members = new Map<number | undefined, number[]>();
  for (const [s, chain] of chains.entries()) members.set(chain, [...(members.get(chain) ?? []), s]);
  const groups = [...members.values()];
  const shares = groups.map(() => 0);
  for (let taken = 0; taken < Math.min(count, chains.length); ) {
    for (const [g, group] of groups.entries()) {
      if (taken === count || (shares[g] ?? 0) === group.length) continue;
      shares[g] = (shares[g] ?? 0) + 1;
      taken++;
    }
  }
  return groups
    .flatMap((group, g) => {
      const share = shares[g] ?? 0;
      return Array.from({ length: share }, (_, s) => group[Math.floor((s * group.length) / share)] as number);
    })
    .sort((a, b) => a - b);
}

/** The slices that train: those that are not frozen. */
export function trainedSlices(theta: Theta): Slice[] {
  return theta.layout.slices.filter((slice) => !theta.isFrozen(slice));
}

/** The numbers that θ, or another vector of its layout, has in some slices, as a draw has them. */
export async function readSlices(theta: Theta, slices: readonly Slice[], vector = theta.values): Promise<Float32Array> {
  const { gpu } = theta.engine;
  const parts = slices.map((slice) => readArray(gpu, new NdArray(vector.buffer, 4 * slice.offset, [slice.size])));
  return joined(await Promise.all(parts));
}

/** Writes a draw where `readSlices` reads it. */
export function writeSlices(theta: Theta, slices: readonly Slice[], values: Float32Array, vector = theta.values): void {
  let at = 0;
  for (const { offset, size } of slices) {
    theta.engine.gpu.write(new NdArray(vector.buffer, 4 * offset, [size]), values.subarray(at, at + size));
    at += size;
  }
}

/**
 * The average over draws of θ, each without dropout. θ is the draws' while `logits` runs and what it was afterwards.
 * Throws InputError where there is no draw.
 */
export function thetaMembers(model: ThetaClassifier, draws: Draws): Posterior {
  const { engine, theta } = model;
  const { size: S, slices } = draws;
  if (S < 1) throw new InputError("members: 0 (expected at least one draw of θ).");
  const headOnly = slices.every(({ groups }) => groups[0] === "head");
  const logitsOf = (batch: PackedBatch, features?: Tensor) =>
    engine.evaluate(() => (features ? model.classify(features) : model.logits(batch)));

  return {
    members: S,
    async logits(batches, progress) {
      const own = await readSlices(theta, slices);
      const members: Float32Array[][] = Array.from({ length: S }, () => []);
      let done = 0;
      // A batch of a member at a time: what is recorded and not yet run holds memory.
      const ask = async (s: number, batch: PackedBatch, features?: Tensor) => {
        members[s]?.push(await logitsOf(batch, features));
        progress?.(++done / (S * batches.length));
      };
      try {
        if (headOnly) {
          // Heads are small: all of them wait on the host while one batch's vectors are on the device.
          const heads: Float32Array[] = [];
          for (let s = 0; s < S; s++) heads.push(await draws.read(s));
          for (const batch of batches) {
            const features = engine.step(() => engine.noGrad(() => model.features(batch).keep()));
            try {
              for (const [s, head] of heads.entries()) {
                writeSlices(theta, slices, head);
                await ask(s, batch, features);
              }
            } finally {
              features.dispose();
            }
          }
        } else {
          for (let s = 0; s < S; s++) {
            writeSlices(theta, slices, await draws.read(s));
            for (const batch of batches) await ask(s, batch);
          }
        }
        return members.map(joined);
      } finally {
        writeSlices(theta, slices, own);
      }
    },
  };
}
