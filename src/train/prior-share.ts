/**
 * @file A prior that was asked for and never had a say: its gradient was 0 in every step, since θ never left its mean. The
 * run was maximum likelihood without the user's knowing, so it fails. At step 1 θ = μ always: one step is too few to tell.
 */
import { type Theta, tensorNames } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import type { Stretch } from "./objective.ts";

export class PriorShares {
  /** Each stretch apart: a new head starts away from its mean and would hide an encoder that never moves. */
  readonly #idle: Set<Stretch>;
  readonly #stretches: readonly Stretch[];
  #steps = 0;

  constructor(stretches: readonly Stretch[]) {
    this.#stretches = stretches;
    this.#idle = new Set(stretches.filter(({ precision }) => precision > 0));
  }

  /** A step's sums, as `combineTerms` takes them; of steps that happened. */
  add(sums: ArrayLike<number>, rows: ArrayLike<number>): void {
    this.#steps++;
    let row = 0;
    for (const [r, stretch] of this.#stretches.entries()) {
      const pull = stretch.density ? rows[4 * row++ + 1] : sums[4 * r + 1];
      if ((pull ?? 0) !== 0) this.#idle.delete(stretch);
    }
  }

  /** Throws InputError where a stretch's prior pulled in none of the steps. */
  expectSome({ layout }: Theta): void {
    const [still] = this.#idle;
    if (still === undefined || this.#steps < 2) return;
    const first = layout.slices.find(({ offset }) => offset === still.offset);
    throw new InputError(
      `prior: its share of the gradient was 0 in every step in ${first?.groups[0]} (from ${first && tensorNames(first)}) although a precision of ${still.precision} was asked for. ` +
        "θ never left the prior's mean there: raise its learning rate or train longer; or give it precision 0, which is maximum likelihood.",
    );
  }
}
