/**
 * @file What a run remembers: run.json from the command, the model and the machine; whether a command may continue it;
 * and the folder as it is when the run is done.
 */
import { basename, join } from "node:path";
import { sha256, writeFileAtomic } from "../data/files.ts";
import { isObject, type JsonObject } from "../data/json.ts";
import { inert } from "../data/text.ts";
import { InputError } from "../errors.ts";
import type { Gpu } from "../gpu/index.ts";
import { readShaders } from "../gpu/node.ts";
import { choicesInForce, chooseMatmul, chosenFamilies, parseChoices, useChoices } from "../kernels/matmul-choice.ts";
import type { BertForSequenceClassification } from "../model/bert.ts";
import { modelCard } from "./card.ts";
import type { EvaluateJson } from "./measure.ts";
import { classifierConfig, isPlain, writeModelFolder } from "./model-folder.ts";
import { differingFlags, withoutDraws } from "./option-record.ts";
import type { FinetuneOptions } from "./options.ts";
import { adapterText } from "./output.ts";
import { objectiveFormula } from "./prior-choice.ts";
import type { PriorRecord } from "./prior-file.ts";
import { type DataRecord, type RunRecord, type Stage, writeRun } from "./run-folder.ts";
import type { Folder } from "./source.ts";
import { precisionText } from "./values.ts";
import { versions } from "./version.ts";

/** The files a run reads, by content. */
export interface RunInputs {
  train: DataRecord;
  dev: DataRecord | null;
  /** SHA-256 of the model's weights. */
  weights: string;
  /** What a prior file says of itself. */
  prior?: PriorRecord | undefined;
  maxLength: number;
}

/** run.json at the start of a run. */
export function newRecord(
  options: FinetuneOptions,
  flags: JsonObject,
  folder: Folder,
  model: BertForSequenceClassification,
  inputs: RunInputs,
  gpu: Gpu,
  before: EvaluateJson,
): RunRecord {
  const { train, dev, weights, maxLength } = inputs;
  const precision = precisionText(options.precisions);
  return {
    format: 1,
    command: "finetune",
    finished: false,
    versions: versions(),
    adapter: gpu.adapter,
    kernels: kernelChoices(gpu),
    seed: options.seed,
    options: flags,
    data: { train, dev },
    objective: {
      task: options.task,
      method: options.method,
      formula: objectiveFormula(options.prior),
      N: train.rows,
      precision,
      mean: isFlat(options) ? "none" : "pretrained, new parameters 0",
      ...(options.mixout ? { mixout: options.mixout } : {}),
      ...(options.rDrop ? { rDrop: options.rDrop } : {}),
      ...(inputs.prior ? { prior: { ...inputs.prior } } : {}),
      readout: model.readout.name,
      head: model.head,
    },
    model: { source: options.model, weights, labels: [...model.labels], maxLength },
    lineage: lineageOf(options, folder, inputs, precision),
    before,
    steps: 0,
    seconds: 0,
  };
}

/** The chain of posteriors: that of the model it starts from, and this stage. */
function lineageOf(options: FinetuneOptions, folder: Folder, inputs: RunInputs, precision: string): Stage[] {
  const { train, weights, prior } = inputs;
  const scratch = options.method === "scratch";
  const pretraining: Stage = { stage: "pretraining", domain: null, task: "unknown", method: "unknown", prior: null };
  const stage: Stage = {
    stage: "task",
    domain: { file: train.file, sha256: train.sha256, size: train.rows },
    task: options.task,
    method: options.method,
    prior: isFlat(options)
      ? null
      : {
          mean: options.model,
          sha256: weights,
          precision,
          ...(options.prior === undefined ? {} : { family: options.prior }),
          ...(prior ? { file: { sha256: prior.sha256, source: prior.source, text: prior.text.sha256 } } : {}),
        },
  };
  return scratch ? [stage] : [...(folder.run?.lineage ?? [pretraining]), stage];
}

/** No group has a prior: then nothing has a prior mean either. */
function isFlat({ precisions }: FinetuneOptions): boolean {
  return Object.values(precisions).every((precision) => precision === 0);
}

/**
 * What decides the order of sums: the shaders by hash, the choices that a tuning put in force (null: the built-in table
 * decides), and for people the matrix product of each layout at a layer's shape.
 */
export function kernelChoices(gpu: Gpu): JsonObject {
  const sizes = { M: 1024, N: 384, K: 384 };
  const matmul = Object.fromEntries(
    (["NN", "NT", "TN"] as const).map((layout) => {
      const families = chosenFamilies(gpu, layout, { G: 1, ...sizes });
      const { shader, entry, tile } = chooseMatmul(gpu.adapter, layout, sizes, families);
      return [layout, { shader, entry, tile }];
    }),
  );
  const sources = [...readShaders()].map(([name, text]) => `${name}\n${text}`).join("\n");
  return { matmul, tuned: choicesInForce(gpu) ?? null, shaders: sha256(sources) };
}

/**
 * Puts the choices in force that the run was begun with, whatever this machine was tuned to since: equal choices give
 * equal bits. Remarks where that cannot be, or where it changes what was in force.
 */
export function takeUpChoices(gpu: Gpu, earlier: RunRecord): string[] {
  const { name, driver } = gpu.adapter;
  const { adapter, kernels } = earlier;
  if (adapter.name !== name || adapter.driver !== driver) {
    return [
      `the run was begun on ${adapterText(adapter)}, this is ${adapterText(gpu.adapter)}: it may not continue bit for bit`,
    ];
  }
  const theirs = isObject(kernels) && Array.isArray(kernels.tuned) ? kernels.tuned : undefined;
  const before = JSON.stringify(choicesInForce(gpu));
  try {
    useChoices(gpu, theirs && parseChoices(theirs));
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    return [`run.json: its kernel choices cannot be taken up (${error.message}): it may not continue bit for bit`];
  }
  if (JSON.stringify(choicesInForce(gpu)) === before) return [];
  return [`matrix products as when the run was begun: ${theirs ? "tuned" : "the built-in choice"}`];
}

/**
 * InputError: the command is another than the run's, or a file has changed since. Until a run is finished, what is read only
 * once θ is trained may be another: no number of the run comes from it yet, and a sampler's step may have been too large.
 */
export function checkResume(earlier: RunRecord, flags: JsonObject, inputs: RunInputs): void {
  const differing = earlier.finished
    ? differingFlags(earlier.options, flags)
    : differingFlags(withoutDraws(earlier.options), withoutDraws(flags));
  if (differing !== undefined) {
    throw new InputError(
      `--resume: the flags are not those of the run (${differing}). Give the same flags, or start anew with --overwrite.`,
    );
  }
  const changed = (what: string, file: string, before: string | undefined, now: string | undefined) => {
    if (before === now) return;
    throw new InputError(
      `--resume: ${what} ${inert(file)} has changed since the run began (its SHA-256 differs). Restore it, or start anew with --overwrite.`,
    );
  };
  changed("--train", inputs.train.file, earlier.data.train.sha256, inputs.train.sha256);
  changed("--dev", inputs.dev?.file ?? "", earlier.data.dev?.sha256, inputs.dev?.sha256);
  changed("--model", earlier.model.source, earlier.model.weights, inputs.weights);
  const prior = isObject(earlier.objective.prior) ? String(earlier.objective.prior.sha256) : undefined;
  changed("--prior", inputs.prior?.file ?? "", prior, inputs.prior?.sha256);
}

/** What is to be said of a run that may go on (`checkResume`): also why it may not be the uninterrupted run bit for bit. */
export function resumeNotes(earlier: RunRecord, flags: JsonObject, gpu: Gpu): string[] {
  const differing = differingFlags(earlier.options, flags);
  const notes = differing === undefined ? [] : [`other flags for what follows training: ${differing}`];
  const compare = (what: string, then: unknown, now: unknown) => {
    if (JSON.stringify(then) === JSON.stringify(now)) return;
    notes.push(`the run was begun with other ${what}: it may not continue bit for bit`);
  };
  compare("versions of priorwork, Node or Dawn", earlier.versions, versions());
  compare("kernels", earlier.kernels, kernelChoices(gpu));
  return notes;
}

/** Writes everything that a finished run has besides its checkpoints; run.json, which says "finished", last. */
export async function saveRun(run: {
  folder: string;
  record: RunRecord;
  model: BertForSequenceClassification;
  source: Folder;
  metrics: EvaluateJson;
  options: FinetuneOptions;
}): Promise<void> {
  const { folder, record, model, source, metrics, options } = run;
  writeFileAtomic(join(folder, "metrics.json"), `${JSON.stringify(metrics, null, 2)}\n`);
  await writeModelFolder(folder, model, classifierConfig(model), source.path);
  const card = modelCard({
    name: basename(folder),
    labels: model.labels,
    readout: model.readout.name,
    head: model.head,
    options,
    precision: precisionText(options.precisions),
    source: options.model,
    train: { file: basename(options.train), rows: record.data.train.rows },
    steps: record.steps,
    adapter: adapterText(record.adapter),
    version: record.versions.priorwork,
    maxLength: record.model.maxLength,
    plain: isPlain(model),
    metrics,
    measuredOn: basename(options.dev ?? options.train),
    selectedOnDev: options.select === "best",
  });
  writeFileAtomic(join(folder, "README.md"), card);
  writeRun(folder, record);
}
