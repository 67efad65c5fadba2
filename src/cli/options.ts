/**
 * @file What `finetune` is asked for: flags as text to options with their defaults, and the contradictions between
 * flags. Pure, so that every sentence of it is tested without a model. What needs the model or the data (a layer that
 * is not there, an unknown label) is checked by whoever reads those.
 */
import { basename } from "node:path";
import type { Dtype } from "../autograd/index.ts";
import { count } from "../data/tables.ts";
import { InputError } from "../errors.ts";
import { type HeadSpec, WIDEST_HEAD } from "../model/bert.ts";
import { READOUTS } from "../model/readout.ts";
import { type MethodOptions, methodOptions } from "./method-options.ts";
import { checkPriorMethod, priorFile } from "./prior-choice.ts";
import {
  choiceValue,
  numberValue,
  type Precisions,
  precisionText,
  precisionValue,
  refuse,
  SHORTEST_TEXT,
  wholeValue,
} from "./values.ts";

/** Flags as the argument parser leaves them: text where a value was given, true or false where none is taken. */
export type RawFlags = Readonly<Record<string, string | boolean | readonly string[] | undefined>>;

export const METHODS = [
  "mle",
  "map",
  "frozen",
  "scratch",
  "dropout",
  "sgld",
  "sghmc",
  "swag",
  "ensemble",
  "rank-one",
  "laplace",
] as const;
export type Method = (typeof METHODS)[number];
const TASKS = ["classify"] as const;
const LATER_TASKS = ["tokens", "regress", "regression", "pairs", "rank", "qa", "choice", "multilabel", "similarity"];

/** Where a table keeps what; as `TableOptions` of data. */
export interface ColumnOptions {
  textColumn: string | undefined;
  pairColumn: string | undefined;
  labelColumn: string | undefined;
  header: boolean;
}

/** How texts longer than the model are met. */
export interface LengthOptions {
  /** Word pieces with the special tokens; undefined: what the model holds. */
  maxLength: number | undefined;
  onLong: "truncate" | "refuse";
}

/** What every command that trains is asked for. */
export interface TrainingOptions {
  warmup: number;
  schedule: "linear" | "cosine" | "constant";
  /** undefined: as config.json says. */
  dropout: number | undefined;
  seed: number;
  /** What matrix products of training steps round their factors to. */
  dtype: Dtype;
  /** Run layers again in the backward: less memory, the same bits. */
  recompute: boolean;
  resume: boolean;
  overwrite: boolean;
  /** Show which kernels the time goes to. */
  profile: boolean;
  json: boolean;
}

export interface FinetuneOptions extends LengthOptions, MethodOptions, TrainingOptions {
  model: string;
  train: string;
  dev: string | undefined;
  columns: ColumnOptions;
  task: "classify";
  method: Method;
  /** As typed: a family or a file; undefined: isotropic Gaussians. */
  prior: string | undefined;
  /** By group; what a group does not name has 0. Of what a prior file covers, a factor on its precisions. */
  precisions: Precisions;
  /** undefined: what the checkpoint says, else the pooler where it has one. */
  readout: string | undefined;
  head: HeadSpec | undefined;
  epochs: number;
  batch: number;
  accumulate: number;
  lr: number;
  headLr: number;
  clip: number | undefined;
  optimizer: "adam" | "adamw" | "sgd";
  weightDecay: number;
  /** p of a weight's swap for its pretrained value, in each step. */
  mixout: number | undefined;
  /** R-Drop's α, a regulariser. */
  rDrop: number | undefined;
  shuffle: boolean;
  /** Sub-models that predict. */
  members: number;
  /** Evaluate on dev after every epoch, after the last step, or every K steps too. */
  evaluate: "every" | "last" | number;
  select: "last" | "best";
  out: string;
}

export const DEFAULT_PRECISIONS: Readonly<Precisions> = { encoder: 300, head: 1 };
/** With a prior file, which has precisions of its own for the encoder. */
export const FILE_PRECISIONS: Readonly<Precisions> = { encoder: 1, head: 1 };
/** Mixout is a prior of the encoder already. */
export const MIXOUT_PRECISIONS: Readonly<Precisions> = { encoder: 0, head: 1 };
export const DEFAULT_MEMBERS = 16;
/** Members that are draws of a text's logits alone cost next to nothing. */
const DEFAULT_LOGIT_DRAWS = 64;
/** Where each member is a training of its own. */
const DEFAULT_TRAINED: Readonly<Partial<Record<Method, number>>> = { ensemble: 5, "rank-one": 4 };
/** Methods that predict with many sub-models. */
export const MANY: readonly Method[] = ["dropout", "sgld", "sghmc", "swag", "ensemble", "rank-one", "laplace"];
export const MEMBERS = { min: 1, max: 4096, example: "16" };

/** The text of a flag, or undefined. */
export function textFlag(raw: RawFlags, key: string): string | undefined {
  const value = raw[key];
  return typeof value === "string" ? value : undefined;
}

/** The text of a flag that must be there. */
export function required(raw: RawFlags, key: string, flag: string, what: string): string {
  const value = textFlag(raw, key);
  if (value === undefined) throw new InputError(`${flag}: missing (expected ${what}). Add ${flag} ${what}.`);
  if (value.trim() === "") refuse(flag, value, `empty (expected ${what})`, "Give a path.");
  return value;
}

export function columnOptions(raw: RawFlags): ColumnOptions {
  return {
    textColumn: textFlag(raw, "textColumn"),
    pairColumn: textFlag(raw, "pairColumn"),
    labelColumn: textFlag(raw, "labelColumn"),
    header: raw.header !== false,
  };
}

export function lengthOptions(raw: RawFlags): LengthOptions {
  const text = textFlag(raw, "maxLength");
  return {
    maxLength:
      text === undefined ? undefined : wholeValue("--max-length", text, { min: SHORTEST_TEXT, example: "128" }),
    onLong: choiceValue("--on-long", textFlag(raw, "onLong") ?? "truncate", ["truncate", "refuse"]),
  };
}

/** Members of a prediction: undefined where the flag is absent. */
export function membersOption(raw: RawFlags): number | undefined {
  const text = textFlag(raw, "members");
  return text === undefined ? undefined : wholeValue("--members", text, MEMBERS);
}

/** A readout's name; whether the encoder has that many layers is known later. */
export function readoutOption(text: string): string {
  if (READOUTS.includes(text) || /^last[1-9]\d{0,3}-(concat|sum)(-(cls|mean|max))?$/.test(text)) return text;
  if (/^last\d+-mix$/.test(text)) {
    refuse("--readout", text, "learned layer weights are not yet in this version", `Choose ${READOUTS.join(", ")}.`);
  }
  return choiceValue("--readout", text, READOUTS);
}

export function headOption(text: string): HeadSpec {
  if (text === "linear") return text;
  const hidden = /^mlp:([1-9]\d*)$/.exec(text)?.[1];
  const advice = "Give, say, --head mlp:128 for 128 hidden channels.";
  if (hidden === undefined) refuse("--head", text, "unknown (expected linear or mlp:H)", advice);
  if (Number(hidden) > WIDEST_HEAD) refuse("--head", text, `out of range (expected H ≤ ${WIDEST_HEAD})`, advice);
  return `mlp:${Number(hidden)}`;
}

/** InputError: a value that is not one. */
export function trainingOptions(raw: RawFlags): TrainingOptions {
  const value = (key: string, otherwise: string) => textFlag(raw, key) ?? otherwise;
  const dropout = textFlag(raw, "dropout");
  return {
    warmup: numberValue("--warmup", value("warmup", ".1"), { min: 0, max: 1, below: true, example: "0.1" }),
    schedule: choiceValue("--schedule", value("schedule", "linear"), ["linear", "cosine", "constant"]),
    dropout:
      dropout === undefined
        ? undefined
        : numberValue("--dropout", dropout, { min: 0, max: 1, below: true, example: "0.1" }),
    seed: wholeValue("--seed", value("seed", "0"), { min: 0, example: "1" }),
    dtype: choiceValue("--dtype", value("dtype", "f32"), ["f32", "f16"]),
    recompute: raw.recompute === true,
    resume: raw.resume === true,
    overwrite: raw.overwrite === true,
    profile: raw.profile === true,
    json: raw.json === true,
  };
}

/** All of `finetune`'s flags. InputError: a value that is not one, a flag that is missing, flags that contradict. */
export function finetuneOptions(raw: RawFlags): FinetuneOptions {
  const value = (key: string, otherwise: string) => textFlag(raw, key) ?? otherwise;
  const model = required(raw, "model", "--model", "DIR");
  const train = required(raw, "train", "--train", "FILE");
  const method = choiceValue("--method", value("method", "map"), METHODS);
  const given = textFlag(raw, "priorPrecision");
  const prior = textFlag(raw, "prior");
  checkPriorMethod(prior, method);
  const mixout = mixoutOption(raw, method);
  const optimizer = choiceValue("--optimizer", value("optimizer", "adam"), ["adam", "adamw", "sgd"]);
  const select = choiceValue("--select", value("select", "last"), ["last", "best"]);
  const readout = textFlag(raw, "readout");
  const head = textFlag(raw, "head");
  const clip = textFlag(raw, "clip");
  const dev = textFlag(raw, "dev");
  const members = membersOption(raw) ?? membersFor(method, raw);
  const options: FinetuneOptions = {
    model,
    train,
    dev,
    columns: columnOptions(raw),
    task: choiceValue("--task", value("task", "classify"), TASKS, LATER_TASKS),
    method,
    prior,
    precisions: precisionsFor(
      method,
      given === undefined ? undefined : precisionValue("--prior-precision", given),
      mixout ? MIXOUT_PRECISIONS : priorFile(prior) === undefined ? DEFAULT_PRECISIONS : FILE_PRECISIONS,
    ),
    readout: readout === undefined ? undefined : readoutOption(readout),
    head: head === undefined ? undefined : headOption(head),
    epochs: wholeValue("--epochs", value("epochs", "3"), { min: 0, max: 1_000_000, example: "3" }),
    batch: wholeValue("--batch", value("batch", "16"), { min: 1, max: 65_535, example: "16" }),
    accumulate: wholeValue("--accumulate", value("accumulate", "1"), { min: 1, max: 65_535, example: "2" }),
    lr: rate("--lr", value("lr", "5e-5"), "5e-5"),
    headLr: rate("--head-lr", value("headLr", "1e-3"), "1e-3"),
    clip: clip === undefined ? undefined : numberValue("--clip", clip, { min: 0, above: true, example: "1" }),
    optimizer,
    weightDecay: numberValue("--weight-decay", value("weightDecay", optimizer === "adamw" ? ".01" : "0"), {
      min: 0,
      example: "0.01",
    }),
    mixout,
    rDrop: rDropOption(raw, method),
    ...lengthOptions(raw),
    shuffle: raw.shuffle !== false,
    members,
    ...methodOptions(raw, method, members),
    evaluate: evaluateOption(textFlag(raw, "evaluate") ?? (select === "best" ? "every" : "last")),
    select,
    out: textFlag(raw, "out") ?? `runs/${stem(train)}-${method}`,
    ...trainingOptions(raw),
  };
  for (const [flag, path] of [
    ["--out", options.out],
    ["--dev", dev ?? "none"],
  ] as const) {
    if (path.trim() === "") refuse(flag, path, "empty (expected a path)", "Give one, or leave the flag out.");
  }
  contradictions(options, raw);
  return options;
}

function membersFor(method: Method, raw: RawFlags): number {
  if (!MANY.includes(method) || raw.predictive === "probit") return 1;
  if (method === "laplace" && raw.predictive !== "mc") return DEFAULT_LOGIT_DRAWS;
  return DEFAULT_TRAINED[method] ?? DEFAULT_MEMBERS;
}

export const RESUME_OVERWRITE =
  "--resume: contradicts --overwrite. Continue the run with one, or replace it with the other.";

/** A learning rate. 0 is refused: a run that learns nothing is asked for in another way, or is a slip. */
export function rate(flag: string, text: string, example: string): number {
  if (/^[+-]?0*\.?0*(e[+-]?\d+)?$/i.test(text) && /0/.test(text)) {
    const advice =
      flag === "--lr"
        ? "To keep the encoder as it is: --method frozen. To evaluate without training: --epochs 0."
        : "To keep the head as it is: --prior-precision head=inf. To evaluate without training: --epochs 0.";
    refuse(flag, text, "nothing would be learned (expected a number > 0)", advice);
  }
  return numberValue(flag, text, { min: 0, above: true, max: 1e9, example });
}

/** undefined where the flag is absent. InputError: the encoder has no pretrained values, or does not train. */
function mixoutOption(raw: RawFlags, method: Method): number | undefined {
  const text = textFlag(raw, "mixout");
  if (text === undefined) return undefined;
  const p = numberValue("--mixout", text, { min: 0, max: 1, below: true, example: "0.5" });
  if (p > 0 && method === "scratch")
    refuse("--mixout", text, "--method scratch has no pretrained values to swap for", "Leave it out, or choose --method mle."); // biome-ignore format: one sentence
  if (p > 0 && method === "frozen")
    refuse("--mixout", text, "--method frozen holds the encoder", "Leave it out, or choose --method mle.");
  return p;
}

/** undefined where the flag is absent. InputError: every pass would be the same, or there is more than one model. */
function rDropOption(raw: RawFlags, method: Method): number | undefined {
  const text = textFlag(raw, "rDrop");
  if (text === undefined) return undefined;
  const alpha = numberValue("--r-drop", text, { min: 0, max: 1e6, example: "1" });
  if (alpha > 0 && method === "rank-one")
    refuse("--r-drop", text, "--method rank-one shares a batch out among its members already", "Leave it out.");
  if (alpha > 0 && Number(textFlag(raw, "dropout") ?? 1) === 0)
    refuse(
      "--r-drop",
      text,
      "compares two dropout masks (found --dropout 0)",
      "Leave it out, or give, say, --dropout 0.1.",
    );
  return alpha;
}

function evaluateOption(text: string): "every" | "last" | number {
  if (/^[+-]?\d/.test(text)) return wholeValue("--evaluate", text, { min: 1, example: "100" });
  return choiceValue<"every" | "last">("--evaluate", text, ["every", "last"]);
}

/** The precisions of a method, with those that were asked for; an InputError where the two contradict. */
export function precisionsFor(
  method: Method,
  given: Precisions | undefined,
  defaults: Readonly<Precisions> = DEFAULT_PRECISIONS,
): Precisions {
  const contradict = (group: string, needs: string, advice: string): never =>
    refuse("--prior-precision", precisionText({ [group]: given?.[group] ?? 0 }), `--method ${method} ${needs}`, advice);
  switch (method) {
    case "mle":
    case "scratch":
      for (const [group, precision] of Object.entries(given ?? {})) {
        if (precision === 0) continue;
        const why = method === "mle" ? "has no prior (every precision is 0)" : "starts at random and has no prior";
        contradict(group, why, "Leave the flag out, or choose --method map.");
      }
      return { encoder: 0, head: 0, ...given };
    case "frozen":
      for (const [group, precision] of Object.entries(given ?? {})) {
        if (group === "head" || precision === Number.POSITIVE_INFINITY) continue;
        contradict(group, "holds the encoder (encoder=inf)", "Leave it out, or choose --method map.");
      }
      return { ...defaults, ...given, encoder: Number.POSITIVE_INFINITY };
    case "map":
    case "dropout":
    case "sgld":
    case "sghmc":
    case "swag":
    case "ensemble":
    case "rank-one":
    case "laplace":
      return { ...defaults, ...given };
    default:
      return method satisfies never;
  }
}

function contradictions(options: FinetuneOptions, raw: RawFlags): void {
  const { method, optimizer, select, evaluate, dev, members, dropout } = options;
  if (options.resume && options.overwrite) {
    throw new InputError(RESUME_OVERWRITE);
  }
  if (textFlag(raw, "weightDecay") !== undefined && options.weightDecay > 0 && optimizer !== "adamw") {
    refuse(
      "--weight-decay",
      String(raw.weightDecay),
      `decoupled decay belongs to AdamW (found --optimizer ${optimizer})`,
      "Add --optimizer adamw, or state the prior with --prior-precision.",
    );
  }
  if (select === "best" && dev === undefined) {
    refuse("--select", "best", "nothing to select on (found no --dev)", "Add --dev FILE, or use --select last.");
  }
  if (select === "best" && evaluate === "last") {
    refuse("--select", "best", "contradicts --evaluate last", "Use --evaluate every, or a number of steps.");
  }
  if (textFlag(raw, "evaluate") !== undefined && evaluate !== "last" && dev === undefined) {
    refuse("--evaluate", String(evaluate), "nothing to evaluate on (found no --dev)", "Add --dev FILE.");
  }
  if (!MANY.includes(method) && members > 1) {
    const what = `--method ${method} keeps one θ, and members come from --method ${MANY.join(", ")}`;
    refuse("--members", String(members), what, "Leave the flag out, or choose one of them.");
  }
  const { cycles, chains = 1 } = options.sampler ?? {};
  const { modes = 1 } = options.swag ?? {};
  for (const [flag, what, sharing] of [
    ["--chains", "chains", chains],
    ["--modes", "modes", modes],
  ] as const) {
    if (sharing <= members) continue;
    const found = `more ${what} than the draws that they share (found --members ${members})`;
    refuse(flag, String(sharing), found, `Take at most ${members}, or --members ${sharing}.`);
  }
  const draws = Math.floor(members / chains);
  if (cycles !== undefined && cycles > draws) {
    const what = `more cycles than each chain has draws (found --members ${members}, by ${count(chains, "chain")})`;
    refuse("--cycles", String(cycles), what, `Take at most ${draws}, or --members ${cycles * chains}.`);
  }
  if (options.laplace?.predictive === "probit" && members > 1) {
    const advice = "Leave the flag out, or choose --predictive linearised.";
    refuse("--members", String(members), "--predictive probit is one member, in closed form", advice);
  }
  if (method === "rank-one" && members < 2) {
    refuse("--members", String(members), "a rank-one ensemble has two or more", "Give, say, --members 4.");
  }
  if (method === "dropout" && dropout === 0) {
    refuse("--dropout", "0", "--method dropout draws its members by dropout", "Give, say, --dropout 0.1.");
  }
}

/** What `warning:` lines say about options that are allowed together but seldom meant. */
export function optionWarnings(options: FinetuneOptions): string[] {
  const { method, precisions, rDrop } = options;
  const values = Object.values(precisions);
  const warnings = [];
  if ((method === "map" || MANY.includes(method)) && values.every((precision) => precision === 0)) {
    const so = method === "map" ? "this is --method mle" : "there is no prior";
    warnings.push(`--prior-precision ${precisionText(precisions)}: every precision is 0, so ${so}`);
  }
  const remark = rDropRemark(method);
  if (rDrop && remark !== undefined) warnings.push(`--r-drop ${rDrop}: a regulariser, not a prior, ${remark}`);
  return warnings;
}

/** What R-Drop makes of a method that speaks of the posterior. */
function rDropRemark(method: Method): string | undefined {
  switch (method) {
    case "laplace":
      return "so the Gaussian stands around a θ that is not the posterior's mode";
    case "sgld":
    case "sghmc":
      return "so the chains draw without it, and what they do not sample stays at a θ that is not the posterior's mode";
    case "swag":
      return "so the path, and the Gaussian of it, are of another objective than the posterior's";
    default:
      return undefined;
  }
}

/** The name of a file without folder and extension, for a folder's name. */
function stem(path: string): string {
  const name = basename(path).replace(/\.[^.]*$/, "");
  return /^[\w.-]{1,80}$/.test(name) ? name : "run";
}
