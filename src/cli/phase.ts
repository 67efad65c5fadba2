/** @file What a phase is given: a trained run's model, its objective, its data, and how the run makes models. */
import type { Example, PackedBatch } from "../data/batches.ts";
import type { Ggn, Swag } from "../posterior/index.ts";
import type { LogPosterior } from "../train/index.ts";
import type { FinetuneOptions } from "./options.ts";
import type { Output } from "./output.ts";
import type { LoadedClassifier } from "./source.ts";

/** How a run makes and judges a model. */
export interface ModeContext {
  /** The model as the run began it, but from this seed. */
  reload(seed: number): Promise<LoadedClassifier>;
  data: readonly Example[];
  /** NLL on dev, for `--select best`. */
  measure(model: LoadedClassifier, what: string): Promise<{ nll: number }>;
  options: FinetuneOptions;
  out: Output;
}

export interface PhaseContext extends ModeContext {
  /** The run's own model, at its mode. */
  model: LoadedClassifier;
  target: LogPosterior<PackedBatch>;
  /** Where several temperatures are drawn: what does not depend on them, found by the first and kept. */
  found?: { curvature?: Ggn; swag?: Swag } | undefined;
}

/** What is there before anything is trained. */
export type PhasePlan = Omit<PhaseContext, "reload" | "measure">;
