/**
 * @file Another mode of the same posterior: the model is loaded anew and trained as the run was, from another seed (its
 * head's start, the order of the data, dropout). It lives on the device only while it trains; what stays is its numbers.
 */

import type { Example } from "../data/batches.ts";
import { DivergedError, InterruptedError } from "../errors.ts";
import { readSlices, trainedSlices } from "../posterior/index.ts";
import { logPosterior, type Prior, Trainer } from "../train/index.ts";
import { fitOptions, priorOf } from "./classifier.ts";
import type { ModeContext } from "./phase.ts";
import type { LoadedClassifier } from "./source.ts";
import { phaseDiverged } from "./training.ts";

export interface ModeOptions {
  seed: number;
  /** On the progress bar, e.g. "member 2 of 5". */
  what: string;
  /** What to say after Ctrl-C. */
  ifInterrupted: string;
  /** Changes the objective before training: another prior mean, other weights of the examples. */
  perturb?:
    | ((model: LoadedClassifier, prior: Prior, data: readonly Example[]) => Promise<readonly Example[]>)
    | undefined;
}

/**
 * The numbers of the slices that train (`trainedSlices` of the run's model lists them), of the θ that `--select` would
 * take. InterruptedError after Ctrl-C; DivergedError.
 */
export async function anotherMode(context: ModeContext, mode: ModeOptions): Promise<Float32Array> {
  const { options, out } = context;
  const model = await context.reload(mode.seed);
  const { theta } = model;
  let prior: Prior | undefined;
  let trainer: Trainer | undefined;
  try {
    prior = priorOf(model, options);
    const data = (await mode.perturb?.(model, prior, context.data)) ?? context.data;
    const best = options.select === "best";
    const evaluates = (step: number) => typeof options.evaluate === "number" && step % options.evaluate === 0;
    trainer = new Trainer(logPosterior(model, prior, { N: context.data.length }), data, {
      ...fitOptions({ ...options, seed: mode.seed }),
      signal: out.io.signal,
      // What there is to warn of was said when the run began.
      warn: () => {},
      settle: (step) => best && evaluates(step),
    });
    const { steps } = trainer;
    const slices = trainedSlices(theta);
    let kept: { nll: number; values: Float32Array } | undefined;
    let bar = out.progress(mode.what, steps);
    for await (const { step, epoch, nll } of trainer.run()) {
      bar.update(step, `nll ${nll.toFixed(3)}`);
      const due = step === steps || evaluates(step) || (options.evaluate === "every" && Number.isInteger(epoch));
      if (!best || !due || step !== trainer.step || out.io.signal.aborted) continue;
      const dev = await context.measure(model, `${mode.what}: dev`);
      if (kept === undefined || dev.nll < kept.nll) kept = { nll: dev.nll, values: await readSlices(theta, slices) };
      if (step < steps) bar = out.progress(mode.what, steps);
    }
    if (out.io.signal.aborted) {
      throw new InterruptedError(`interrupted (${mode.what}, step ${trainer.step} of ${steps}). ${mode.ifInterrupted}`);
    }
    return kept?.values ?? (await readSlices(theta, slices));
  } catch (error) {
    // The error names a step, and a step of what is not to be guessed.
    if (error instanceof DivergedError) out.note(`what diverged is ${mode.what}, from seed ${mode.seed}`);
    throw phaseDiverged(error, mode.what, fitOptions(options));
  } finally {
    out.end();
    trainer?.dispose();
    prior?.dispose();
    model.dispose();
  }
}
