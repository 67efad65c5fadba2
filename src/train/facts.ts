/** @file The facts of a run that a continuation must agree on, or else it would be another run (checkpoint.ts compares them). */
import type { Gpu } from "../gpu/index.ts";
import type { NdArray } from "../kernels/index.ts";
import { fingerprint } from "./checkpoint.ts";
import type { FitOptions } from "./fit-options.ts";
import type { LogPosterior } from "./objective.ts";

export class RunFacts<B> {
  readonly #target: LogPosterior<B>;
  readonly #options: FitOptions;
  readonly #examples: number;
  readonly #more: Readonly<Record<string, string | number>> | undefined;
  /** They do not change while a run lasts, and are passes over θ. */
  #mean: string | undefined;
  #density: string | undefined;

  /** `more`: what else there is to agree on. */
  constructor(
    target: LogPosterior<B>,
    options: FitOptions,
    examples: number,
    more: Readonly<Record<string, string | number>> | undefined,
  ) {
    this.#target = target;
    this.#options = options;
    this.#examples = examples;
    this.#more = more;
  }

  async read(): Promise<Record<string, string | number>> {
    const { model, prior, N } = this.#target;
    const { batch, accumulate = 1, seed = 0, order, shuffle = true, clip = "none", dropout = true, mixout = 0, optimizer, ...options } = this.#options; // biome-ignore format: one line
    const { gpu } = model.engine;
    this.#mean ??= await fingerprint(gpu, prior.mu);
    this.#density ??=
      prior.density && [prior.density.name, ...(await fingerprints(gpu, prior.density.vectors))].join(", ");
    const facts: Record<string, string | number> = {
      N,
      examples: this.#examples,
      epochs: options.epochs,
      batch: typeof batch === "number" ? batch : `${batch.tokens} tokens`,
      accumulate,
      seed,
      order: order ? "given" : shuffle ? "shuffled" : "as stored",
      schedule: options.schedule ?? "linear",
      warmup: options.warmup ?? 0.1,
      clip,
      dropout: dropout ? "on" : "off",
      ...optimizer.facts,
      ...this.#more,
      "prior mean": this.#mean,
    };
    if (mixout > 0) facts.mixout = mixout;
    if (options.rDrop) facts["R-Drop"] = options.rDrop;
    if (this.#density !== undefined) facts["prior density"] = this.#density;
    for (const [group, tau] of Object.entries(prior.precisions)) facts[`prior precision of ${group}`] = `${tau}`;
    return facts;
  }
}

async function fingerprints(gpu: Gpu, vectors: readonly NdArray[]): Promise<string[]> {
  const found = [];
  for (const vector of vectors) found.push(await fingerprint(gpu, vector));
  return found;
}
