/**
 * @file The Hugging Face part of a run folder: config.json, model.safetensors, tokenizer files. With the pooler and a
 * linear head it is a BertForSequenceClassification that `transformers` opens unchanged; with any other readout or head
 * it says `BertModel` and keeps the head under names of its own, so that it never loads and answers differently.
 */
import { createHash } from "node:crypto";
import { join } from "node:path";
import type { Theta } from "../autograd/index.ts";
import { fileExists, readBytes, writeFileAtomic } from "../data/files.ts";
import type { JsonObject } from "../data/json.ts";
import type { BertForSequenceClassification } from "../model/bert.ts";
import { serialiseConfig } from "../model/config.ts";
import { exportTensors } from "../model/load.ts";
import type { BertForPreTraining } from "../model/pretraining.ts";
import { safetensorsPieces, type TensorToWrite } from "../model/safetensors.ts";

export const WEIGHTS = "model.safetensors";
const TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"];
const LARGEST_TOKENIZER_FILE = 64 * 2 ** 20;

/** True where the model is one that `transformers` has: pooler and a linear head. */
export function isPlain({ readout, head }: Pick<BertForSequenceClassification, "readout" | "head">): boolean {
  return readout.name === "pooler" && head === "linear";
}

/** config.json of a classifier: what came with the checkpoint, with its task's labels and what it is now. */
export function classifierConfig(model: BertForSequenceClassification): JsonObject {
  const plain = isPlain(model);
  return {
    ...inherited(model.config.raw),
    architectures: [plain ? "BertForSequenceClassification" : "BertModel"],
    id2label: Object.fromEntries(model.labels.map((label, id) => [String(id), label])),
    label2id: Object.fromEntries(model.labels.map((label, id) => [label, id])),
    problem_type: "single_label_classification",
    ...(plain ? {} : { priorwork: { readout: model.readout.name, head: model.head } }),
  };
}

/** config.json of a pretrained model. */
export function pretrainingConfig(model: BertForPreTraining): JsonObject {
  return { ...inherited(model.config.raw), architectures: ["BertForPreTraining"] };
}

/** What stays true of a checkpoint's config once the weights have changed. */
function inherited(raw: JsonObject): JsonObject {
  const { _name_or_path, id2label, label2id, num_labels, problem_type, priorwork, torch_dtype, dtype, ...rest } = raw;
  return { ...rest, model_type: "bert", dtype: "float32" };
}

/** Writes weights, config and tokenizer; the weights first, so that a folder with a config has its weights. */
export async function writeModelFolder(
  out: string,
  model: BertForSequenceClassification | BertForPreTraining,
  config: JsonObject,
  tokenizerFrom: string,
): Promise<void> {
  writeFileAtomic(join(out, WEIGHTS), await weightsOf(model.theta));
  copyTokenizer(tokenizerFrom, out);
  writeFileAtomic(join(out, "config.json"), serialiseConfig(config));
}

/** What model.safetensors holds of θ as it is. */
async function weightsOf(theta: Theta): Promise<Iterable<Uint8Array>> {
  const tensors: TensorToWrite[] = [];
  for await (const { name, shape, data } of exportTensors(theta)) tensors.push({ name, dtype: "F32", shape, data });
  return safetensorsPieces(tensors);
}

/** SHA-256 of the model.safetensors that `writeModelFolder` would write of θ as it is. */
export async function weightsHash(theta: Theta): Promise<string> {
  const hash = createHash("sha256");
  for (const piece of await weightsOf(theta)) hash.update(piece);
  return hash.digest("hex");
}

/** Tokenizer files byte for byte, those that are there. */
function copyTokenizer(from: string, out: string): void {
  for (const name of TOKENIZER_FILES) {
    const path = join(from, name);
    if (fileExists(path)) writeFileAtomic(join(out, name), readBytes(path, { maxBytes: LARGEST_TOKENIZER_FILE }));
  }
}
