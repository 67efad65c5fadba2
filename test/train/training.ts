/** @file One training run of a toy model from start to end, with its reports and its weights before and after. */
import { Engine } from "../../src/autograd/index.ts";
import type { Gpu } from "../../src/gpu/index.ts";
import { type FitOptions, type StepReport, Trainer } from "../../src/train/fit.ts";
import { logPosterior } from "../../src/train/objective.ts";
import { type GaussianPriorSpec, gaussianPrior } from "../../src/train/prior.ts";
import { type Rows, rowSource, type Toy } from "./toys.ts";

/** Trains a toy and hands what is asked back; everything is given up at the end. */
export async function trainOn(
  gpu: Gpu,
  make: (engine: Engine) => Toy,
  data: Rows,
  spec: GaussianPriorSpec,
  options: Omit<FitOptions, "warn"> & { N?: number; warn?: FitOptions["warn"] },
): Promise<{ reports: StepReport[]; get(name: string): Float32Array; start(name: string): Float32Array }> {
  const model = make(new Engine(gpu));
  const names = model.theta.layout.names;
  const read = async () => new Map(await Promise.all(names.map(async (n) => [n, await model.theta.get(n)] as const)));
  const before = await read();
  const prior = gaussianPrior(model, spec);
  const trainer = new Trainer(logPosterior(model, prior, { N: options.N ?? data.y.length }), rowSource(data), options);
  const reports: StepReport[] = [];
  try {
    for await (const report of trainer.run()) reports.push(report);
    const after = await read();
    return { reports, get: (n) => after.get(n) as Float32Array, start: (n) => before.get(n) as Float32Array };
  } finally {
    trainer.dispose();
    prior.dispose();
    model.dispose();
  }
}

/** Options for full-batch steps at a constant rate. */
export const full = (n: number, steps: number) => ({
  batch: n,
  epochs: steps,
  schedule: "constant" as const,
  warmup: 0,
});
