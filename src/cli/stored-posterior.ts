/** @file What a run has in `posterior/`, as that which predicts: members that are values of θ, or a Gaussian around it. */
import { join } from "node:path";
import { inert, quote } from "../data/text.ts";
import { InputError } from "../errors.ts";
import type { BertForSequenceClassification } from "../model/bert.ts";
import { linearised, type Posterior, probit, thetaMembers } from "../posterior/index.ts";
import { readGaussian, readGaussianRecord } from "./gaussian-folder.ts";
import { checkWeights, readPosterior, storedDraws } from "./posterior-folder.ts";

/**
 * The run's posterior, or its first `members`; undefined where it keeps none. The model is at the run's mode, and
 * model.safetensors is there unless the run is `unsaved`. InputError: more members than it has, files that are not what
 * the run wrote, or of another method than `method`.
 */
export async function storedPosterior(
  run: string,
  model: BertForSequenceClassification,
  {
    members,
    unsaved = false,
    method,
  }: { members?: number | undefined; unsaved?: boolean; method?: string | undefined } = {},
): Promise<Posterior | undefined> {
  const stored = readPosterior(run);
  if (stored) {
    checkMethod(run, "posterior.json", stored.method, method);
    const { weights } = stored;
    if (weights && !unsaved)
      checkWeights(run, { weights, manifest: "posterior.json", what: "the run's members belong to" });
    return thetaMembers(model, storedDraws(run, stored, model.theta, members));
  }
  const record = readGaussianRecord(run);
  if (record === undefined) return undefined;
  checkMethod(run, "gaussian.json", record.method, method);
  const { predictive, draws, seed } = record;
  const held = predictive === "probit" ? 1 : draws;
  if (members !== undefined && members > held) {
    throw new InputError(
      `--members ${members}: more than the run predicts with (${held}, --predictive ${predictive}). Ask for fewer, or leave the flag out.`,
    );
  }
  if (!unsaved)
    checkWeights(run, { weights: record.weights, manifest: "gaussian.json", what: "the run's Gaussian lies around" });
  const state = await readGaussian(run, record, model.theta);
  return predictive === "probit" ? probit(model, state) : linearised(model, state, { S: members ?? held, seed });
}

function checkMethod(run: string, manifest: string, found: string, expected: string | undefined): void {
  if (expected === undefined || found === expected) return;
  throw new InputError(
    `${inert(join(run, "posterior", manifest))}: of method ${quote(found, 100)} (run.json says ${inert(expected)}). Restore the folder, or train again with --overwrite.`,
  );
}
