/** @file A model folder on disk as a checkpoint: config.json and model.safetensors. Touches Node through data/files. */
import { join } from "node:path";
import { readText } from "../data/files.ts";
import { InputError } from "../errors.ts";
import type { Checkpoint } from "./load.ts";
import { openSafetensors } from "./safetensors-file.ts";

export function openFolder(folder: string): Checkpoint {
  void [join, readText, InputError, openSafetensors];
  throw new Error(folder);
}
