/**
 * @file Predictions and metrics for the commands that need them: which members a run predicts with, progress while they
 * do, and the keys of `evaluate`'s JSON.
 */
import { valueFor } from "../autograd/index.ts";
import type { Example } from "../data/batches.ts";
import { inert } from "../data/text.ts";
import { InputError, InterruptedError } from "../errors.ts";
import type { BertForSequenceClassification } from "../model/bert.ts";
import {
  dropoutMembers,
  type Interval,
  metricsOfPrediction,
  type Posterior,
  type Prediction,
  pointEstimate,
  predictAll,
  rankOneMembers,
} from "../posterior/index.ts";
import type { Metrics } from "../train/index.ts";
import { DEFAULT_MEMBERS, MANY, MEMBERS, type RawFlags, textFlag } from "./options.ts";
import type { Output } from "./output.ts";
import type { RunRecord } from "./run-folder.ts";
import { storedPosterior } from "./stored-posterior.ts";
import { type Precisions, precisionValue, refuse, wholeValue } from "./values.ts";

/** `evaluate`'s JSON. */
export interface EvaluateJson {
  [key: string]: unknown;
  task: "classify";
  n: number;
  members: number;
  accuracy: number;
  nll: number;
  brier: number;
  ece: number;
  eceFloor: number;
}

/** What is said of calibration, of predictions as they are or at a temperature. */
export interface Calibration extends Pick<Metrics, "accuracy" | "nll" | "brier" | "ece" | "eceFloor"> {
  /** Bootstrap, nominally 95 %. */
  eceInterval: Interval;
  /** What a calibrated model's ECE stays below in 95 of 100 label sets. */
  eceFloor95: number;
  /** Area under risk against coverage. */
  aurc: number;
}

/** What `evaluate` says beyond the metrics that a run keeps. */
export interface Evaluated extends EvaluateJson, Pick<Calibration, "eceInterval" | "eceFloor95" | "aurc"> {
  oodAuroc?: { epistemic: number; total: number };
  temperature?: number;
  /** At that temperature. */
  scaled?: Calibration;
}

export const PREDICT_BATCH = 32;

/** Methods whose runs predict with the members in posterior/. */
const KEEPS_MEMBERS: readonly string[] = MANY.filter((method) => method !== "dropout");

/** Sequences at once, for the commands that only predict. */
export function batchOption(raw: RawFlags): number {
  return wholeValue("--batch", textFlag(raw, "batch") ?? String(PREDICT_BATCH), { min: 1, max: 65_535, example: "32" });
}

/** S masks of θ for a dropout run, a rank-one model's members; θ itself, without dropout, for any other and for S = 1. */
export function posteriorOf(
  model: BertForSequenceClassification,
  method: string,
  members: number,
  seed: number,
): Posterior {
  if (model.rankOne) return rankOneMembers(model);
  return method === "dropout" && members > 1 ? dropoutMembers(model, { S: members, seed }) : pointEstimate(model);
}

/**
 * How a folder predicts: as its run.json says, one member where there is none. InputError: more members than it has, none
 * where its method keeps some, or another method's.
 */
export async function posteriorOfRun(
  model: BertForSequenceClassification,
  { path, run }: { path: string; run: RunRecord | undefined },
  asked: number | undefined,
): Promise<Posterior> {
  const method = typeof run?.options.method === "string" ? run.options.method : "map";
  const stored = await storedPosterior(path, model, { members: asked, method: run && method });
  if (stored) return stored;
  if (KEEPS_MEMBERS.includes(method)) {
    throw new InputError(
      `--run ${inert(path)}: a run of --method ${method} without its members (nothing whole in posterior/): model.safetensors alone would answer as another method's. Restore the folder, draw anew with --resume, or train again.`,
    );
  }
  if (method !== "dropout") {
    if (asked !== undefined && asked > 1) {
      const what = `this run keeps one θ, and members come from --method ${MANY.slice(0, -1).join(", ")} or ${MANY.at(-1)}`;
      refuse("--members", String(asked), what, "Leave the flag out, or fine-tune with one of them.");
    }
    return pointEstimate(model);
  }
  const trained = String(run?.options.members ?? DEFAULT_MEMBERS);
  const members = asked ?? wholeValue("run.json: members", trained, MEMBERS);
  // Frozen layers had no dropout in training and get none now.
  const text = run?.options.priorPrecision;
  const precisions: Precisions = typeof text === "string" ? precisionValue("run.json: priorPrecision", text) : {};
  model.theta.freeze((slice) => valueFor(slice, precisions) === Number.POSITIVE_INFINITY);
  return posteriorOf(model, method, members, run?.seed ?? 0);
}

export interface PredictionOptions {
  what: string;
  out: Output;
  batch?: number;
  /** What to say after Ctrl-C. */
  ifInterrupted?: string;
}

/** Predicts all examples, with progress; ends with InterruptedError after Ctrl-C. */
export async function predictions(
  posterior: Posterior,
  examples: readonly Example[],
  { what, out, batch = PREDICT_BATCH, ifInterrupted = "Nothing was written." }: PredictionOptions,
): Promise<Prediction> {
  if (examples.length === 0) throw new InputError(`${what}: no examples.`);
  const bar = out.progress(what, examples.length);
  try {
    return await predictAll(posterior, examples, {
      batch,
      onProgress: (done) => {
        bar.update(done);
        if (out.io.signal.aborted)
          throw new InterruptedError(
            `interrupted (${what}, ${Math.floor(done)} of ${examples.length}). ${ifInterrupted}`,
          );
      },
    });
  } finally {
    out.end();
  }
}

/** InputError: an answer that is no finite number, which has no label, no order and no calibration. */
export function checkFinite(flag: string, { logMean, logits, K }: Prediction): void {
  const at = logMean.findIndex((logp, i) => Number.isNaN(logp) || !Number.isFinite(logits[i]));
  if (at < 0) return;
  throw new InputError(
    `${flag}: its answer to text ${Math.floor(at / K) + 1} is not a number (its weights are too large for f32). Use another checkpoint.`,
  );
}

/** Metrics of a posterior on labelled examples. */
export async function measure(
  posterior: Posterior,
  examples: readonly Example[],
  options: PredictionOptions,
): Promise<EvaluateJson> {
  return metricsJson(await predictions(posterior, examples, options), examples);
}

/** Metrics of predictions that are there already. */
export function metricsJson(prediction: Prediction, examples: readonly Example[]): EvaluateJson {
  const { n, accuracy, nll, brier, ece, eceFloor } = metricsOfPrediction(prediction, examples);
  return { task: "classify", n, members: prediction.members, accuracy, nll, brier, ece, eceFloor };
}
