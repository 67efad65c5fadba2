/** @file How strong the prior was, as a run with a Gaussian posterior reports it: in run.json, in the JSON and in a line a group. */
import type { Slice } from "../autograd/index.ts";
import { packBatches } from "../data/batches.ts";
import { InterruptedError } from "../errors.ts";
import { namedBy } from "../posterior/evidence.ts";
import { type Laplace, type PriorStrength, priorStrength } from "../posterior/index.ts";
import { figure } from "./format.ts";
import type { PhaseContext } from "./phase.ts";

/** Sequences that go through the model at once. */
const BATCH = 32;

/** Share by which a precision may differ and still be called the same. */
const NEAR = 0.05;

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

/**
 * What each of the numbers is of: the prior's group where the Gaussian is over that, else the part of it that was `asked`
 * for (undefined: the last layer), as "layer.1 (prior of encoder)".
 */
export function strengthNames(
  { target: { model, prior } }: Pick<PhaseContext, "target">,
  { ggn, precisions }: Laplace,
  found: readonly PriorStrength[],
  asked: readonly string[] | undefined,
): string[] {
  const { theta } = model;
  const inside = ggn.blocks.map(({ slices: [slice] }) => slice as Slice); // a block lies in one group
  const covered = new Set(ggn.blocks.flatMap(({ slices }) => slices));
  return found.map(({ group, precision }) => {
    const own = inside.filter((slice, b) => precisions[b] === precision && namedBy(prior, slice) === group);
    const outside = theta.layout.slices.some(
      (slice) => namedBy(prior, slice) === group && !theta.isFrozen(slice) && !covered.has(slice),
    );
    const nameOf = ({ groups }: Slice) => groups.findLast((name) => name === group || asked?.includes(name)) ?? group;
    const names = asked ? [...new Set(own.map(nameOf))] : [outside ? "the last layer" : group];
    return names.length === 1 && names[0] === group ? group : `${names.join(", ")} (prior of ${group})`;
  });
}

/** A line a group; `names` says what each is of. */
export function strengthText(found: readonly PriorStrength[], names: readonly string[]): string {
  return found
    .map(
      (one, i) =>
        `${names[i] ?? one.group}, prior precision ${figure(one.precision)}: the data determine ${figure(one.determined)} of ${one.size.toLocaleString("en")} parameters ` +
        `and moved the posterior ${figure(one.kl)} nats from the prior; ${placeText(one)}`,
    )
    .join("\n");
}

/** Where θ lies, and which precision would hold it there. */
function placeText({ precision, effectivePrecision, distance }: PriorStrength): string {
  if (effectivePrecision === undefined) return "θ is the prior mean";
  const place = `θ lies ${figure(distance)} from the prior mean, where`;
  if (effectivePrecision <= 0) return `${place} the likelihood itself pulls it back`;
  const ratio = effectivePrecision / precision;
  if (Math.abs(ratio - 1) < NEAR) return `${place} this prior holds it`;
  const why =
    ratio > 1
      ? `more than ${figure(precision)}: training ended before the maximum, or a weight decay held θ too`
      : `less than ${figure(precision)}: θ is beyond the maximum`;
  return `${place} a prior precision of ${figure(effectivePrecision)} would hold it (${why})`;
}
