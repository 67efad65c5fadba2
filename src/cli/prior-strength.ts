/** @file How strong the prior was, as a run with a Gaussian posterior reports it: in run.json, in the JSON and in a line a group. */
import { packBatches } from "../data/batches.ts";
import { InterruptedError } from "../errors.ts";
import { type Laplace, type PriorStrength, priorStrength } from "../posterior/index.ts";
import { figure } from "./format.ts";
import type { PhaseContext } from "./posterior-phase.ts";

/** Sequences that go through the model at once. */
const BATCH = 32;

/** One more pass over the training table, for the gradient of its likelihood at θ̂. InterruptedError after Ctrl-C. */
export function strengthOf({ target, data, out }: PhaseContext, state: Laplace): Promise<PriorStrength[]> {
  const batches = packBatches(data, BATCH);
  const bar = out.progress("the prior's strength", batches.length);
  const progress = (done: number) => {
    bar.update(done);
    if (out.io.signal.aborted)
      throw new InterruptedError("interrupted (the prior's strength). Run the same command with --resume to go on.");
  };
  return priorStrength(target, state, batches, { progress }).finally(() => out.end());
}

/** A line a group. */
export function strengthText(found: readonly PriorStrength[]): string {
  return found
    .map(({ group, precision, effectivePrecision, size, determined, distance, kl }) => {
      const effective = effectivePrecision === undefined ? "" : ` (θ is the mode of ${figure(effectivePrecision)})`;
      return `prior of ${group}: precision ${figure(precision)}${effective}; the data taught ${figure(kl)} nats, determine ${figure(determined)} of ${size} parameters, distance ${figure(distance)}`;
    })
    .join("\n");
}
