/** @file What `pretrain` is asked for: flags as text to options with their defaults, as options.ts does for `finetune`. */
import type { Dtype } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import { lengthOptions, type RawFlags, RESUME_OVERWRITE, rate, required, textFlag } from "./options.ts";
import { choiceValue, numberValue, wholeValue } from "./values.ts";

export interface PretrainOptions {
  text: string;
  model: string | undefined;
  config: string | undefined;
  epochs: number;
  batch: number;
  lr: number;
  warmup: number;
  schedule: "linear" | "cosine" | "constant";
  dropout: number | undefined;
  maxLength: number | undefined;
  seed: number;
  out: string;
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

/** All of `pretrain`'s flags. */
export function pretrainOptions(raw: RawFlags): PretrainOptions {
  const value = (key: string, otherwise: string) => textFlag(raw, key) ?? otherwise;
  const text = required(raw, "text", "--text", "FILE");
  const out = required(raw, "out", "--out", "DIR");
  const [model, config, dropout] = [textFlag(raw, "model"), textFlag(raw, "config"), textFlag(raw, "dropout")];
  if ((model === undefined) === (config === undefined)) {
    throw new InputError(
      model === undefined
        ? "--model: missing (expected --model DIR to go on from, or --config FILE to start at random). Add one of them."
        : "--model: contradicts --config. Go on from a model with one, or start at random with the other.",
    );
  }
  if (raw.resume === true && raw.overwrite === true) throw new InputError(RESUME_OVERWRITE);
  return {
    text,
    model,
    config,
    epochs: wholeValue("--epochs", value("epochs", "1"), { min: 0, max: 1_000_000, example: "1" }),
    batch: wholeValue("--batch", value("batch", "32"), { min: 1, max: 65_535, example: "32" }),
    lr: rate("--lr", value("lr", "1e-4"), "1e-4"),
    warmup: numberValue("--warmup", value("warmup", ".1"), { min: 0, max: 1, below: true, example: "0.1" }),
    schedule: choiceValue("--schedule", value("schedule", "linear"), ["linear", "cosine", "constant"]),
    dropout:
      dropout === undefined
        ? undefined
        : numberValue("--dropout", dropout, { min: 0, max: 1, below: true, example: "0.1" }),
    maxLength: lengthOptions(raw).maxLength,
    seed: wholeValue("--seed", value("seed", "0"), { min: 0, example: "1" }),
    out,
    dtype: choiceValue("--dtype", value("dtype", "f32"), ["f32", "f16"]),
    recompute: raw.recompute === true,
    resume: raw.resume === true,
    overwrite: raw.overwrite === true,
    profile: raw.profile === true,
    json: raw.json === true,
  };
}
