/**
 * @file From the options of `finetune` to what it trains: the model with its head, the prior around it, and what the
 * trainer is told. A method that trains more than one model makes each of them here, from its own seed.
 */
import type { Engine } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import { BertForSequenceClassification } from "../model/bert.ts";
import { MEMBERS_GROUP, memberPrecision, spreadMembers } from "../model/rank-one.ts";
import {
  adam,
  adamW,
  type FitOptions,
  gaussianPrior,
  laplacePrior,
  type Optimizer,
  type Prior,
  sgd,
  studentTPrior,
} from "../train/index.ts";
import type { FinetuneOptions } from "./options.ts";
import type { Output } from "./output.ts";
import { priorChoice } from "./prior-choice.ts";
import { loadPrior } from "./prior-file.ts";
import { adjusted, type Folder, type LoadedClassifier, report } from "./source.ts";

/** What the table's labels ask of the head. */
export interface HeadNeeds {
  labels: readonly string[];
  /** True: the checkpoint's head is for other labels and is left out. */
  newHead: boolean;
}

/** The model as a run begins with it. `out` hears what loading has to say; left out where that was said before. */
export async function loadFor(
  engine: Engine,
  options: FinetuneOptions,
  folder: Folder,
  { labels, newHead }: HeadNeeds,
  out?: Output,
): Promise<LoadedClassifier> {
  const checkpoint = adjusted(folder, { dropout: options.dropout, newHead });
  const model = await BertForSequenceClassification.load(engine, checkpoint, {
    labels,
    seed: options.seed,
    scratch: options.method === "scratch",
    recompute: options.recompute,
    ...(options.rankOne ? { rankOne: { members: options.members, layers: options.rankOne.layers } } : {}),
    ...(options.readout === undefined ? {} : { readout: options.readout }),
    ...(options.head === undefined ? {} : { head: options.head }),
  });
  if (out) report(model.report, out);
  if (options.readout === undefined && model.readout.name !== "pooler") {
    const why = folder.storedReadout === undefined ? "the checkpoint has no pooler" : "as config.json says";
    out?.note(`readout ${model.readout.name}: ${why}`);
  }
  const { hiddenDropout, attentionDropout, classifierDropout } = model.config;
  const dropless = hiddenDropout === 0 && attentionDropout === 0 && !classifierDropout;
  if (options.method === "dropout" && dropless) {
    throw new InputError(
      "--method dropout: config.json has no dropout, so all members would be the same. Give, say, --dropout 0.1.",
    );
  }
  if (options.rDrop && dropless) {
    throw new InputError(
      `--r-drop ${options.rDrop}: config.json has no dropout, so both passes would be the same. Give, say, --dropout 0.1, or leave it out.`,
    );
  }
  return model;
}

/** The prior around a model as it was loaded. Groups at precision inf are frozen in it from here on. */
export function priorOf(model: LoadedClassifier, { prior, precisions, rankOne, members }: FinetuneOptions): Prior {
  const spec = Object.fromEntries(Object.entries(precisions).map(([group, precision]) => [group, { precision }]));
  if (rankOne) spec[MEMBERS_GROUP] = { precision: memberPrecision(rankOne.precision, members) };
  const choice = priorChoice(prior);
  switch (choice.family) {
    case "gaussian":
      return gaussianPrior(model, spec);
    case "laplace":
      return laplacePrior(model, spec);
    case "student-t":
      return studentTPrior(model, spec, choice);
    case "file":
      return loadPrior(choice.path, model, spec);
    default:
      return choice satisfies never;
  }
}

/** Rank-one members to their start, where the run has them: once the prior, whose mean is 1, is made. */
export function startMembers({ theta }: LoadedClassifier, { rankOne, seed }: FinetuneOptions): void {
  if (rankOne) spreadMembers(theta, { precision: rankOne.precision, seed });
}

/** Only what training needs: `dropout` is a probability there and a switch here. */
export function fitOptions(options: FinetuneOptions): FitOptions {
  const { epochs, batch, accumulate, seed, shuffle, warmup, schedule, clip, mixout, rDrop } = options;
  const optimizer = optimizerOf(options);
  return { epochs, batch, accumulate, seed, shuffle, warmup, schedule, clip, mixout, rDrop, optimizer };
}

function optimizerOf({ optimizer, lr, headLr, weightDecay, rankOne }: FinetuneOptions): Optimizer {
  // The members' vectors are new, as the head is, and learn as fast.
  const rates = { lr, headLr, ...(rankOne ? { lrs: { [MEMBERS_GROUP]: headLr } } : {}) };
  switch (optimizer) {
    case "adam":
      return adam(rates);
    case "adamw":
      return adamW({ ...rates, decay: weightDecay });
    case "sgd":
      return sgd(rates);
    default:
      return optimizer satisfies never;
  }
}
