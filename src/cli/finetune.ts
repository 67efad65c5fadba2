/**
 * @file `finetune`: from flags to a run folder. Everything that can be refused is refused before anything is written:
 * flags, tables, labels, model, prior; then the model is measured as loaded, trained, measured again and saved.
 */
import type { Engine, Theta } from "../autograd/index.ts";
import type { Example } from "../data/batches.ts";
import { sha256File } from "../data/files.ts";
import { labelSet } from "../data/labels.ts";
import { readTable } from "../data/load.ts";
import { count, type Table } from "../data/tables.ts";
import { inert, quoteList } from "../data/text.ts";
import { InputError } from "../errors.ts";
import { logPosterior } from "../train/index.ts";
import { fitOptions, loadFor, priorOf, startMembers } from "./classifier.ts";
import { withEngine } from "./device.ts";
import { metricsTable } from "./evaluate.ts";
import { examplesOf, lengthFor } from "./examples.ts";
import { duration } from "./format.ts";
import type { Io } from "./io.ts";
import { type EvaluateJson, measure, posteriorOf } from "./measure.ts";
import { optionRecord } from "./option-record.ts";
import { type FinetuneOptions, finetuneOptions, optionWarnings, type RawFlags } from "./options.ts";
import { Output } from "./output.ts";
import type { PhaseContext } from "./phase.ts";
import { checkPhase, hasPhase, posteriorPhase, temperatureSweep } from "./posterior-phase.ts";
import { priorFile } from "./prior-choice.ts";
import { checkPrior } from "./prior-file.ts";
import { strengthNames, strengthOf, strengthText } from "./prior-strength.ts";
import { StepProfile } from "./profile.ts";
import { checkOut, emptyOut, type RunRecord, readRun, writeRun } from "./run-folder.ts";
import { checkResume, newRecord, type RunInputs, resumeNotes, saveRun, takeUpChoices } from "./run-record.ts";
import { type Folder, hasHead, openModelFolder } from "./source.ts";
import { Training } from "./training.ts";

export async function finetune(raw: RawFlags, io: Io): Promise<void> {
  const options = finetuneOptions(raw);
  const out = new Output(io, options.json);
  const { resume, overwrite } = options;
  const inputs = [options.model, options.train, options.dev, priorFile(options.prior)].filter(
    (path) => path !== undefined,
  );
  checkOut(options.out, { resume, overwrite, inputs });
  for (const warning of optionWarnings(options)) out.warning(warning);
  const folder = openModelFolder("--model", options.model);
  try {
    const data = prepare(options, folder, out);
    const earlier = resume ? readRun(options.out) : undefined;
    if (earlier !== undefined) checkResume(earlier, optionRecord(options), data.inputs);
    const { dtype } = options;
    await withEngine(out, (engine) => train(engine, options, folder, data, earlier, out), { dtype });
  } finally {
    folder.checkpoint.close();
  }
}

interface Data {
  labels: string[];
  /** True: the checkpoint's head is for other labels and is left out. */
  newHead: boolean;
  train: Example[];
  dev: Example[] | undefined;
  inputs: RunInputs;
}

/** Tables to examples, and what the run remembers of its inputs. */
function prepare(options: FinetuneOptions, folder: Folder, out: Output): Data {
  const read = (path: string) => readTable(path, { ...options.columns, needLabels: true });
  const train = read(options.train);
  const dev = options.dev === undefined ? undefined : read(options.dev);
  if (dev !== undefined && (dev.pairs === undefined) !== (train.pairs === undefined)) {
    const [one, two] = train.pairs === undefined ? [train, dev] : [dev, train];
    throw new InputError(
      `--dev: ${inert(two.path)} has pairs of texts, ${inert(one.path)} has single ones. Name the columns with --text-column and --pair-column.`,
    );
  }
  const tables = dev === undefined ? [train] : [train, dev];
  const { known, newHead } = headLabels(folder, labelSet([train]).labels, options);
  const { labels, ids } = labelSet(tables, known);
  if (newHead)
    out.note(`the checkpoint's head is for other labels (${quoteList(folder.config.labels ?? [])}) and is left out`);
  const maxLength = lengthFor(options.maxLength, folder.config);
  const weights = sha256File(`${folder.path}/model.safetensors`);
  const file = priorFile(options.prior);
  const encode = (table: Table, i: number) =>
    examplesOf(table, folder.tokenizer, folder.config, { maxLength, onLong: options.onLong }, out, ids[i]);
  const remember = (table: Table) => ({
    file: table.path,
    sha256: sha256File(table.path),
    rows: table.texts.length,
    columns: table.used,
  });
  return {
    labels,
    newHead,
    train: encode(train, 0),
    dev: dev === undefined ? undefined : encode(dev, 1),
    inputs: {
      train: remember(train),
      dev: dev === undefined ? null : remember(dev),
      weights,
      prior: file === undefined ? undefined : checkPrior(file, folder.config, weights),
      maxLength,
    },
  };
}

/**
 * A head that comes with the checkpoint is knowledge about its labels. If the table has those same labels, their order
 * is the checkpoint's; if it has others, the head would be an accident and is left out.
 */
function headLabels(
  folder: Folder,
  words: string[],
  { method }: FinetuneOptions,
): { known: string[] | undefined; newHead: boolean } {
  if (!hasHead(folder) || method === "scratch") return { known: undefined, newHead: false };
  const theirs = folder.config.labels ?? ["LABEL_0", "LABEL_1"];
  const unnamed = theirs.every((label, k) => label === `LABEL_${k}`) && words.every((word, k) => word === String(k));
  if (unnamed && theirs.length === words.length) return { known: undefined, newHead: false };
  const same = theirs.length === words.length && words.every((word) => theirs.includes(word));
  return same ? { known: theirs, newHead: false } : { known: undefined, newHead: true };
}

const RESUME = "Run the same command with --resume to go on.";

async function train(
  engine: Engine,
  options: FinetuneOptions,
  folder: Folder,
  data: Data,
  earlier: RunRecord | undefined,
  out: Output,
): Promise<void> {
  if (earlier !== undefined) for (const note of takeUpChoices(engine.gpu, earlier)) out.note(note);
  const reload = (seed: number, out?: Output) => loadFor(engine, { ...options, seed }, folder, data, out);
  const model = await reload(options.seed, out);
  const prior = priorOf(model, options);
  startMembers(model, options);
  const trainable = trainableParameters(model.theta);
  const examples = data.dev ?? data.train;
  const measureOf = (of: typeof model, what: string, ifInterrupted = RESUME): Promise<EvaluateJson> => {
    const posterior = posteriorOf(of, options.method, options.members, options.seed);
    return measure(posterior, examples, { what, out, ifInterrupted });
  };
  const measureOn = (what: string, ifInterrupted?: string) => measureOf(model, what, ifInterrupted);
  const profile = options.profile ? await StepProfile.begin(engine.gpu, out) : undefined;
  const target = logPosterior(model, prior, { N: data.train.length });
  checkPhase({ model, target, data: data.train, options, out });
  const training = new Training(target, data.train, {
    folder: options.out,
    out,
    fit: fitOptions(options),
    measure: data.dev === undefined ? undefined : (what) => measureOn(what),
    evaluate: options.evaluate,
    keepBest: options.select === "best",
    profile,
  });
  if (data.dev === undefined) out.note("no --dev: before and metrics are of the training table itself");

  const before =
    (earlier?.before as EvaluateJson | null | undefined) ??
    (await measureOn("before training", earlier ? RESUME : "Nothing was written."));
  let record: RunRecord;
  if (earlier === undefined) {
    record = newRecord(options, optionRecord(options), folder, model, data.inputs, engine.gpu, before);
    emptyOut(options.out);
    writeRun(options.out, record);
  } else {
    const flags = optionRecord(options);
    for (const note of resumeNotes(earlier, flags, engine.gpu)) out.note(note);
    record = { ...earlier, options: flags, before, finished: false };
    await training.resume();
  }
  await training.run();
  const profiled = await profile?.finish(options.out);

  let at = training.evaluations.at(-1);
  if (options.select === "best" && training.trainer.steps > 0) {
    at = training.restoreBest();
    out.note(`step ${at.step} was best on dev and is saved; its dev numbers were selected on the same examples`);
  }
  // What the optimiser kept is not needed any more, and the phase may train a model of its own.
  training.dispose();
  const phase: PhaseContext = {
    model,
    target,
    data: data.train,
    options,
    out,
    reload,
    measure: measureOf,
    found: options.sweep && {},
  };
  // What the phase begins with is to remove the members that made a finished run whole; its flags may be other ones now.
  if (earlier && hasPhase(options)) writeRun(options.out, record);
  const begun = out.io.now();
  const temperatures = await temperatureSweep(phase, (posterior, what) =>
    measure(posterior, examples, { what, out, ifInterrupted: RESUME }),
  );
  const made = await posteriorPhase(phase);
  phase.found?.swag?.dispose();
  const strength = made?.laplace && (await strengthOf(phase, made.laplace));
  const posteriorSeconds = (out.io.now() - begun) / 1000;
  const after = "after training";
  const measured = made
    ? await measure(made.posterior, examples, { what: after, out, ifInterrupted: RESUME })
    : data.dev !== undefined && at !== undefined
      ? withoutPlace(at)
      : await measureOn(after);
  const metrics = options.select === "best" ? { ...measured, selectedOnDev: true } : measured;
  const more = { ...(strength ? { priorStrength: strength } : {}), ...(temperatures ? { temperatures } : {}) };
  const saved = {
    ...record,
    finished: true,
    steps: training.trainer.steps,
    seconds: training.seconds,
    ...(made ? { posteriorSeconds } : {}),
    evaluations: training.evaluations,
    ...more,
  };
  await saveRun({ folder: options.out, record: saved, model, source: folder, metrics, options });
  const result = {
    run: options.out,
    method: options.method,
    steps: saved.steps,
    seconds: saved.seconds,
    ...(made ? { posteriorSeconds } : {}),
    trainableParameters: trainable,
    before,
    metrics,
    ...more,
  };
  if (out.json) out.document(profiled ? { ...result, profile: profiled } : result);
  else {
    const lines = metricsTable([
      ["before", before],
      ["after", measured],
      ...(temperatures ?? []).flatMap((row): [string, EvaluateJson][] =>
        "diverged" in row ? [] : [[`T = ${row.temperature}`, row as EvaluateJson]],
      ),
    ]);
    const posterior = made ? `, posterior in ${duration(posteriorSeconds)}` : "";
    out.text(
      `${lines}\n\n${count(saved.steps, "step")} in ${duration(saved.seconds)}${posterior}, ${trainable.toLocaleString("en")} trainable parameters`,
    );
    if (strength && made?.laplace)
      out.text(strengthText(strength, strengthNames(phase, made.laplace, strength, options.laplace?.groups)));
    out.text(`run: ${options.out}\nnext: priorwork predict --run ${options.out} --text "…"`);
  }
  // The run is whole as far as it goes; that it does not go all the way is how the command ends.
  if (made?.diverged) throw made.diverged;
}

function trainableParameters(theta: Theta): number {
  return theta.layout.slices.reduce((sum, slice) => sum + (theta.isFrozen(slice) ? 0 : slice.size), 0);
}

function withoutPlace({ step: _, epoch: __, ...metrics }: Record<string, unknown>): EvaluateJson {
  return metrics as EvaluateJson;
}
