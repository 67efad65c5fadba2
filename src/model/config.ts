/**
 * @file `config.json` as Hugging Face's `BertConfig` has it. What this program computes otherwise or not at all is
 * refused by name: a model that loads and answers differently from the one it claims to be is worse than none.
 */

import { isObject, type JsonObject, parseJson, pythonJson } from "../data/json.ts";
import { inert, nearest, quote } from "../data/text.ts";
import { InputError } from "../errors.ts";

export type HiddenAct = "gelu" | "gelu_tanh" | "relu" | "silu" | "tanh";

/** The names Hugging Face knows (`ACT2FN`) for the five activations here. */
const ACTIVATIONS: Readonly<Record<string, HiddenAct>> = {
  gelu: "gelu",
  gelu_python: "gelu",
  gelu_new: "gelu_tanh",
  gelu_pytorch_tanh: "gelu_tanh",
  gelu_python_tanh: "gelu_tanh",
  gelu_fast: "gelu_tanh",
  gelu_accurate: "gelu_tanh",
  relu: "relu",
  silu: "silu",
  swish: "silu",
  tanh: "tanh",
};

export interface BertConfig {
  /** V */
  vocabSize: number;
  /** C */
  hiddenSize: number;
  layers: number;
  /** H; C is a multiple of it */
  heads: number;
  intermediateSize: number;
  /** The longest sequence the model can hold, special tokens included. */
  maxPositions: number;
  typeVocabSize: number;
  hiddenAct: HiddenAct;
  layerNormEps: number;
  hiddenDropout: number;
  attentionDropout: number;
  /** Dropout before the classifier; where the file says nothing or null, `hiddenDropout` is used. */
  classifierDropout?: number;
  /** Standard deviation of new weights. */
  initializerRange: number;
  /** Undefined where the file says null. */
  padTokenId?: number;
  /** False: the masked-language-model's decoder has weights of its own. */
  tieWordEmbeddings: boolean;
  /** The names of the labels in the order of their ids, if the file has `id2label`. */
  labels?: string[];
  /** The file as it is, for writing it again with changes. */
  raw: JsonObject;
}

/**
 * From the text of a config.json (or what it parses to). InputError: not JSON, a value of the wrong kind or size, a
 * field that asks for something this program doesn't do.
 */
export function parseBertConfig(json: string | JsonObject, name: string): BertConfig {
  const raw = typeof json === "string" ? parseJson(json, name) : json;
  const fields = new Fields(raw, name);
  refuseOthers(fields);
  const hiddenSize = fields.size("hidden_size", 768, 65_536);
  const heads = fields.size("num_attention_heads", 12, 65_536);
  if (hiddenSize % heads !== 0) {
    throw fields.error("hidden_size", `not a multiple of num_attention_heads, ${heads}`, "Correct one of them.");
  }
  const pad = fields.count("pad_token_id", 0, 16_777_216);
  const classifierDropout = fields.optionalShare("classifier_dropout");
  const labels = labelNames(fields);
  return {
    vocabSize: fields.size("vocab_size", 30_522, 16_777_216),
    hiddenSize,
    layers: fields.size("num_hidden_layers", 12, 1_000),
    heads,
    intermediateSize: fields.size("intermediate_size", 3_072, 1_048_576),
    maxPositions: fields.size("max_position_embeddings", 512, 1_048_576),
    typeVocabSize: fields.size("type_vocab_size", 2, 1_000),
    hiddenAct: hiddenAct(fields),
    layerNormEps: fields.layerNormEps(),
    hiddenDropout: fields.optionalShare("hidden_dropout_prob") ?? 0.1,
    attentionDropout: fields.optionalShare("attention_probs_dropout_prob") ?? 0.1,
    ...(classifierDropout === undefined ? {} : { classifierDropout }),
    initializerRange: fields.number("initializer_range", 0.02, (x) => x >= 0 && x <= 100, "a number from 0 to 100"),
    ...(pad === undefined ? {} : { padTokenId: pad }),
    tieWordEmbeddings: fields.flag("tie_word_embeddings", true),
    ...(labels === undefined ? {} : { labels }),
    raw,
  };
}

/** Reads fields of a config and words what is wrong with them. */
class Fields {
  readonly #raw: JsonObject;
  readonly #name: string;

  constructor(raw: JsonObject, name: string) {
    this.#raw = raw;
    this.#name = name;
  }

  /** Undefined where the key is absent; keys of Object.prototype are no fields. */
  get(key: string): unknown {
    return Object.hasOwn(this.#raw, key) ? this.#raw[key] : undefined;
  }

  error(key: string, found: string, todo: string): InputError {
    return new InputError(`${inert(this.#name)}: ${key} is ${shown(this.get(key))} (${found}). ${todo}`);
  }

  unsupported(key: string, expected: string): InputError {
    return this.error(key, `expected ${expected}`, "This is not supported; use a plain BERT.");
  }

  number(key: string, otherwise: number, good: (x: number) => boolean, expected: string): number {
    const value = this.get(key);
    if (value === undefined) return otherwise;
    if (typeof value === "number" && good(value)) return value;
    throw this.error(key, `expected ${expected}`, "Correct it.");
  }

  size(key: string, otherwise: number, most: number): number {
    const good = (x: number) => Number.isInteger(x) && x >= 1 && x <= most;
    return this.number(key, otherwise, good, `a whole number from 1 to ${most}`);
  }

  /** A whole number from 0; undefined for null. */
  count(key: string, otherwise: number, most: number): number | undefined {
    if (this.get(key) === null) return undefined;
    const good = (x: number) => Number.isInteger(x) && x >= 0 && x <= most;
    return this.number(key, otherwise, good, `a whole number from 0 to ${most}`);
  }

  /** A dropout probability; undefined where absent or null. */
  optionalShare(key: string): number | undefined {
    const value = this.get(key);
    if (value === undefined || value === null) return undefined;
    return this.number(key, 0, (x) => x >= 0 && x < 1, "a number from 0, below 1");
  }

  layerNormEps(): number {
    // Below 1e-38 it is 0 in f32: then a row of equal values divides by 0.
    return this.number("layer_norm_eps", 1e-12, (x) => x >= 1e-38 && x <= 1, "a number from 1e-38 to 1");
  }

  flag(key: string, otherwise: boolean): boolean {
    const value = this.get(key);
    if (value === undefined || value === null) return otherwise;
    if (typeof value === "boolean") return value;
    throw this.error(key, "expected true or false", "Correct it.");
  }
}

function shown(value: unknown): string {
  return typeof value === "string" ? quote(value) : inert((JSON.stringify(value) ?? "missing").slice(0, 60));
}

function refuseOthers(fields: Fields): void {
  const absent = (key: string) => {
    const value = fields.get(key);
    const empty = isObject(value) && Object.keys(value).length === 0;
    return value === undefined || value === null || value === false || empty;
  };
  const is = (key: string, ...values: unknown[]) => values.includes(fields.get(key) ?? null);

  if (!is("model_type", null, "bert")) throw fields.unsupported("model_type", '"bert"');
  if (!is("position_embedding_type", null, "absolute"))
    throw fields.unsupported("position_embedding_type", '"absolute"');
  if (!is("problem_type", null, "single_label_classification")) {
    throw fields.unsupported("problem_type", '"single_label_classification"');
  }
  if (!is("embedding_size", null, fields.get("hidden_size"))) throw fields.unsupported("embedding_size", "hidden_size");
  for (const key of ["is_decoder", "add_cross_attention", "is_encoder_decoder"]) {
    if (!absent(key)) throw fields.unsupported(key, "false");
  }
  for (const key of ["quantization_config", "pruned_heads", "auto_map", "adapters"]) {
    if (!absent(key)) throw fields.unsupported(key, "none");
  }
  const architectures = fields.get("architectures");
  if (architectures === undefined || architectures === null) return;
  if (!Array.isArray(architectures) || !architectures.every((a) => typeof a === "string" && a.startsWith("Bert"))) {
    throw fields.unsupported("architectures", 'a BERT, as ["BertModel"]');
  }
}

function hiddenAct(fields: Fields): HiddenAct {
  const value = fields.get("hidden_act") ?? "gelu";
  const known = Object.keys(ACTIVATIONS);
  if (typeof value === "string" && Object.hasOwn(ACTIVATIONS, value)) return ACTIVATIONS[value] ?? "gelu";
  const near = typeof value === "string" ? nearest(value, known) : undefined;
  const hint = near === undefined ? "This is not supported." : `Did you mean ${quote(near)}?`;
  throw fields.error("hidden_act", `expected one of ${known.join(", ")}`, hint);
}

/** `id2label` as a list, every id from 0 named once. */
function labelNames(fields: Fields): string[] | undefined {
  const value = fields.get("id2label");
  if (value === undefined || value === null) return undefined;
  if (!isObject(value)) throw fields.error("id2label", "expected an object of ids and names", "Correct it.");
  const labels: string[] = [];
  const ids = Object.keys(value);
  for (let id = 0; id < ids.length; id++) {
    const label = Object.hasOwn(value, String(id)) ? value[String(id)] : undefined;
    if (typeof label !== "string") {
      throw fields.error(
        "id2label",
        `expected a name for each id from 0 to ${ids.length - 1}; ${id} has none`,
        "Correct it.",
      );
    }
    if (labels.includes(label)) throw fields.error("id2label", `${quote(label)} has two ids`, "Rename one of them.");
    labels.push(label);
  }
  const count = fields.get("num_labels");
  if (count !== undefined && count !== null && count !== labels.length) {
    throw fields.error("num_labels", `id2label has ${labels.length} names`, "Correct one of them.");
  }
  return labels.length === 0 ? undefined : labels;
}

/** Fields that `transformers` checks to be floats: 0 and 1 are refused there, 0.0 and 1.0 taken. */
const FLOATS: ReadonlySet<string> = new Set([
  "layer_norm_eps",
  "hidden_dropout_prob",
  "attention_probs_dropout_prob",
  "classifier_dropout",
  "initializer_range",
  "temperature",
  "top_p",
  "typical_p",
  "repetition_penalty",
  "length_penalty",
  "diversity_penalty",
]);

/** The text of a config.json that Python reads: floats with a point or an exponent, whole numbers without. */
export function serialiseConfig(config: JsonObject): string {
  return pythonJson(config, FLOATS);
}
