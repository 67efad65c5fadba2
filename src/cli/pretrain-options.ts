/** @file What `pretrain` is asked for: flags as text to options with their defaults, as options.ts does for `finetune`. */
import { InputError } from "../errors.ts";
import {
  lengthOptions,
  type RawFlags,
  RESUME_OVERWRITE,
  rate,
  required,
  type TrainingOptions,
  textFlag,
  trainingOptions,
} from "./options.ts";
import { wholeValue } from "./values.ts";

export interface PretrainOptions extends TrainingOptions {
  text: string;
  model: string | undefined;
  config: string | undefined;
  epochs: number;
  batch: number;
  lr: number;
  maxLength: number | undefined;
  out: string;
}

/** All of `pretrain`'s flags. */
export function pretrainOptions(raw: RawFlags): PretrainOptions {
  const value = (key: string, otherwise: string) => textFlag(raw, key) ?? otherwise;
  const text = required(raw, "text", "--text", "FILE");
  const out = required(raw, "out", "--out", "DIR");
  const [model, config] = [textFlag(raw, "model"), textFlag(raw, "config")];
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
    maxLength: lengthOptions(raw).maxLength,
    out,
    ...trainingOptions(raw),
  };
}
