/**
 * @file Deep ensembles (Lakshminarayanan, Pritzel and Blundell 2017): S models trained apart, member s as a run of seed
 * `seed + s` would be (head start, order, dropout), one on the device at a time. Anchored, each member's objective is
 * perturbed as well (anchored.ts), which is what makes them draws of the posterior rather than S times its mode.
 */
import type { Example, PackedBatch } from "../data/batches.ts";
import { type FitOptions, fit } from "../train/fit.ts";
import type { LogPosterior } from "../train/objective.ts";
import { type Source, whole } from "../train/source.ts";
import { anchoredSlices, drawAnchor, type MemberName } from "./anchored.ts";
import { type Draws, heldDraws, readSlices, trainedSlices } from "./draws.ts";

type Data<B> = Source<B> | (PackedBatch extends B ? readonly Example[] : never);

/** A model about to be trained. */
export interface Subject<B> {
  target: LogPosterior<B>;
  data: Data<B>;
  dispose(): void;
}

export interface EnsembleOptions<B> {
  /** S */
  members: number;
  /** How each is trained; its seed is the first member's. */
  fit: FitOptions;
  anchored?:
    | {
        /** Groups whose centre is drawn from the prior; default: the head. The others keep their mean. */
        groups?: readonly string[] | undefined;
        /** The data with the likelihood's noise: `weighExamples` for classes, targets plus noise for numbers. */
        perturb: (data: Data<B>, name: MemberName) => Data<B>;
      }
    | undefined;
}

/**
 * Trains S members and keeps what of θ is trained. `make` gives each a fresh model, prior and data from its seed; it is
 * disposed of when its numbers have been read. Throws InputError (see `Trainer`, `anchoredSlices`), DivergedError.
 */
export async function ensemble<B = PackedBatch>(
  make: (seed: number) => Promise<Subject<B>> | Subject<B>,
  { members, fit: options, anchored }: EnsembleOptions<B>,
): Promise<Draws> {
  whole("members", members, 1);
  const values: Float32Array[] = [];
  let slices: Draws["slices"] = [];
  const first = options.seed ?? 0;
  for (let s = 0; s < members; s++) {
    const seed = first + s;
    const subject = await make(seed);
    try {
      const { target } = subject;
      const name = { seed: first, member: s };
      if (anchored) await drawAnchor(target, anchoredSlices(target, anchored.groups ?? ["head"]), name);
      const data = anchored ? anchored.perturb(subject.data, name) : subject.data;
      for await (const _ of fit(target, data, { ...options, seed })); // reports are not kept
      slices = trainedSlices(target.model.theta);
      values.push(await readSlices(target.model.theta, slices));
    } finally {
      subject.dispose();
    }
  }
  return heldDraws(slices, values);
}
