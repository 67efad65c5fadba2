/**
 * @file What a peer must pass before it is timed: its results are the float64 reference's, and when it says that it is
 * done, it is done. A peer that fails is refused with a sentence, and has no number.
 */
import { milliseconds } from "../rounds.ts";
import { type Input, type Prepared, Refusal, resultNames, type Task } from "./peer.ts";

/** Of the largest magnitude in an array; float32 gives some 1e-6. */
const TOLERANCE = 2e-4;
/** A training step's weights: how many may have moved by more than a tenth of lr otherwise than the reference's. */
const STRAYS = 0.02;

/** Milliseconds of the quickest run. */
export async function check(
  task: Task,
  inputs: Record<string, Input>,
  prepared: Prepared,
  expected: Record<string, Float64Array>,
): Promise<number> {
  await prepared.run();
  const names = resultNames(task);
  const results = await prepared.read(names);
  for (const name of names) {
    const [found, wanted] = [results[name], expected[name]];
    if (!wanted || found?.length !== wanted.length) {
      throw new Refusal(`its ${name} has ${found?.length ?? "no"} numbers where ${wanted?.length} are expected`);
    }
    if (task.work.kind === "train" && !name.startsWith("y@")) {
      // Softmax does not see the key's bias: its gradient is rounding, and Adam's step the sign of that.
      if (!name.endsWith("key.b")) moved(name, found, wanted, inputs[name] as Input, task.work.lr);
    } else if (name.startsWith("d")) close(name, found, wanted, prepared.gradientTolerance ?? TOLERANCE);
    else close(name, found, wanted, TOLERANCE, task.counts);
  }
  return waits(prepared, names.at(-1) ?? "y");
}

function close(
  name: string,
  found: ArrayLike<number>,
  wanted: Float64Array,
  tolerance: number,
  counts?: Uint8Array,
): void {
  const scale = wanted.reduce((most, x) => Math.max(most, Math.abs(x)), 1e-3);
  for (let i = 0; i < wanted.length; i++) {
    if (counts && !counts[i]) continue;
    const [x, y] = [found[i] ?? Number.NaN, wanted[i] ?? Number.NaN];
    if (!(Math.abs(x - y) <= tolerance * scale)) {
      throw new Refusal(
        `its result is wrong: ${name}[${i}] is ${x}, in float64 ${y} (largest ${scale.toPrecision(3)})`,
      );
    }
  }
}

function moved(name: string, found: ArrayLike<number>, wanted: Float64Array, { data }: Input, lr: number): void {
  let strays = 0;
  for (let i = 0; i < wanted.length; i++) {
    const [x, y, start] = [found[i] ?? Number.NaN, wanted[i] ?? Number.NaN, data[i] ?? Number.NaN];
    // Rounding of a weight near 1 is not a stray.
    if (!(Math.abs(x - y) <= 0.1 * lr + 1e-6 * Math.abs(start))) strays++;
  }
  if (strays > Math.max(1, STRAYS * wanted.length)) {
    throw new Refusal(`its training step is wrong: ${strays} of ${wanted.length} numbers of ${name} moved otherwise`);
  }
}

/** On a busy machine one read may be late by chance; one that has to wait for its run is late every time. */
const [FEWEST, MOST] = [2, 12];
/** Milliseconds of a run beside which chance is nothing: once is enough. */
const LONG = 1000;
/** Milliseconds that a timer or a collection of garbage may take; a run that matters takes longer. */
const SLACK = 5;

/**
 * Reading straight after a run that has really ended costs the read-back alone, and reading again costs the same. If the
 * quickest first read costs as much more as half the quickest run, the run had not ended.
 */
async function waits(prepared: Prepared, name: string): Promise<number> {
  const read = () => prepared.read([name]);
  let [run, first, second] = [1, 1, 1].map(() => Number.POSITIVE_INFINITY) as [number, number, number];
  for (let i = 1; i <= MOST; i++) {
    run = Math.min(run, await milliseconds(() => prepared.run()));
    first = Math.min(first, await milliseconds(read));
    second = Math.min(second, await milliseconds(read));
    if ((i >= FEWEST || run > LONG) && (first <= 2 * second + SLACK || first - second <= run / 2)) return run;
  }
  const ms = (x: number) => `${x.toFixed(1)} ms`;
  throw new Refusal(
    `it says that it is done after ${ms(run)}, but its result takes ${ms(first)} to arrive, and ${ms(second)} a second time`,
  );
}
