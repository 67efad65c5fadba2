/** @file A model folder on disk as a checkpoint: config.json and model.safetensors. Touches Node through data/files. */
import { join } from "node:path";
import { fileExists, readText } from "../data/files.ts";
import { inert } from "../data/text.ts";
import { InputError } from "../errors.ts";
import type { Checkpoint } from "./load.ts";
import { openSafetensors } from "./safetensors-file.ts";

/** Larger than any config.json that describes a model. */
const LARGEST_CONFIG = 4 * 2 ** 20;

/**
 * Opens a folder; its header is checked whole, its tensors are read one at a time. `close` when done. Throws StorageError
 * where the system refuses, InputError where a file is missing or not what it should be.
 */
export function openFolder(folder: string): Checkpoint & { close(): void } {
  const config = readText(join(folder, "config.json"), { maxBytes: LARGEST_CONFIG, wanted: "a model's config.json" });
  const weights = join(folder, "model.safetensors");
  if (!fileExists(weights)) {
    const other = ["pytorch_model.bin", "model.safetensors.index.json", "tf_model.h5"].find((name) =>
      fileExists(join(folder, name)),
    );
    throw new InputError(
      `${inert(folder)}: no model.safetensors${other ? ` (found ${other})` : ""}. ${other ? "Convert the weights to one safetensors file (transformers: save_pretrained)." : "Is this a model folder?"}`,
    );
  }
  const file = openSafetensors(weights);
  return {
    name: folder,
    config,
    shapes: new Map([...file.tensors].map(([name, { shape }]) => [name, shape])),
    read: async (name) => file.float32(name),
    close: () => file.close(),
  };
}
