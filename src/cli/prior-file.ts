/**
 * @file A prior on disk: one safetensors file. `precision.<parameter>` has the shape of the parameter, τᵢ ≥ 0; where the
 * rank k is above 0, `factors.<parameter>` is [k, …shape], and the precision is diag τ + UUᵀ. Names are the checkpoint's.
 * The mean is the model that the prior was made of, which the metadata names by the SHA-256 of its weights. One key of the
 * metadata, `priorwork`, is JSON: see `PriorFacts`. Tensors are read when they are asked for.
 */
import { sha256File, writeFileAtomic } from "../data/files.ts";
import { isObject } from "../data/json.ts";
import { inert, quote } from "../data/text.ts";
import { InputError } from "../errors.ts";
import { encoderSlices } from "../model/bert.ts";
import type { BertConfig } from "../model/config.ts";
import { safetensorsPieces, type TensorToWrite } from "../model/safetensors.ts";
import { openSafetensors, type SafetensorsFile } from "../model/safetensors-file.ts";
import {
  diagonalPrior,
  type FisherNumbers,
  type GaussianPriorSpec,
  lowRankPrior,
  type ParameterNumbers,
  type Prior,
} from "../train/index.ts";
import type { PriorSubject } from "../train/prior.ts";
import { isHash } from "./posterior-folder.ts";

/** What a prior says of itself. */
export interface PriorFacts {
  /** Columns of U. */
  rank: number;
  /** SHA-256 of the weights of the model that it was made of: its mean. */
  model: string;
  /** What the Fisher information is of. */
  source: string;
  /** τ = N·F + damping, with F the information of a term. */
  N: number;
  damping: number;
  /** Likelihood terms, and batches, that F is the mean of. */
  terms: number;
  batches: number;
  seed: number;
  text: { file: string; sha256: string; size: number };
}

/** The facts, and where they are from. */
export interface PriorRecord extends PriorFacts {
  file: string;
  sha256: string;
}

const AGAIN = "Make it again with priorwork prior.";

/** Writes a prior. The numbers' parameters are written in the order of `shapes`, all of which they have. */
export function writePrior(
  path: string,
  numbers: FisherNumbers,
  shapes: ReadonlyMap<string, readonly number[]>,
  facts: PriorFacts,
): void {
  const tensors: TensorToWrite[] = [];
  const add = (name: string, shape: readonly number[], data: Float32Array | undefined) =>
    tensors.push({ name, dtype: "F32", shape, data: data ?? new Float32Array(0) });
  for (const [name, shape] of shapes) add(`precision.${name}`, shape, numbers.diagonal.get(name));
  if (numbers.rank > 0)
    for (const [name, shape] of shapes) add(`factors.${name}`, [numbers.rank, ...shape], numbers.factors.get(name));
  const metadata = { format: "pt", priorwork: JSON.stringify({ kind: "prior", version: 1, ...facts }) };
  writeFileAtomic(path, safetensorsPieces(tensors, metadata));
}

/**
 * Reads what a prior says of itself, and whether it is one for this model: of this architecture, around these weights.
 * Throws InputError: no prior, another architecture (the first tensor that differs is named), another model's weights.
 */
export function checkPrior(path: string, config: BertConfig, weights: string): PriorRecord {
  const file = openSafetensors(path);
  try {
    const facts = factsOf(file, path);
    checkArchitecture(file, path, config, facts.rank);
    if (facts.model !== weights) {
      throw new InputError(
        `--prior ${inert(path)}: its mean is another model (weights of SHA-256 ${facts.model.slice(0, 12)}…, --model has ${weights.slice(0, 12)}…). Make one of this model with priorwork prior.`,
      );
    }
    return { file: path, sha256: sha256File(path), ...facts };
  } finally {
    file.close();
  }
}

/** The prior around a model, with the strengths and precisions of `spec`. InputError: a number that cannot be. */
export function loadPrior(path: string, subject: PriorSubject, spec: GaussianPriorSpec): Prior {
  const file = openSafetensors(path);
  try {
    const { rank } = factsOf(file, path);
    const part = (what: string): ParameterNumbers => ({
      has: (name) => file.tensors.has(`${what}.${name}`),
      get: (name) => file.float32(`${what}.${name}`),
    });
    const diagonal = part("precision");
    return rank === 0
      ? diagonalPrior(subject, spec, diagonal)
      : lowRankPrior(subject, spec, { form: "precision", diagonal, rank, factors: part("factors") });
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    throw new InputError(error.message.replace(/^prior: /, `--prior ${inert(path)}: `));
  } finally {
    file.close();
  }
}

function factsOf(file: SafetensorsFile, path: string): PriorFacts {
  const text = file.metadata.get("priorwork");
  if (text === undefined) {
    throw new InputError(`--prior ${inert(path)}: not a prior of priorwork (its metadata has no entry priorwork). ${AGAIN}`); // biome-ignore format: one sentence
  }
  let about: unknown;
  try {
    about = JSON.parse(text);
  } catch {
    about = undefined;
  }
  if (!isObject(about) || about.kind !== "prior" || about.version !== 1) {
    throw new InputError(
      `--prior ${inert(path)}: not a prior of version 1 (its metadata says something else). ${AGAIN}`,
    );
  }
  const { rank, model, source, N, damping, terms, batches, seed, text: from } = about;
  const whole = (x: unknown) => Number.isSafeInteger(x) && (x as number) >= 0;
  const above = (x: unknown) => Number.isFinite(x) && (x as number) > 0;
  const numbers = [rank, terms, batches, seed].every(whole) && [N, damping].every(above);
  const texts = isObject(from) && typeof from.file === "string" && isHash(from.sha256) && whole(from.size);
  if (!numbers || !isHash(model) || typeof source !== "string" || !texts) {
    throw new InputError(`--prior ${inert(path)}: its metadata lack what a prior says of itself (rank, model, source, N > 0, damping > 0, text). ${AGAIN}`); // biome-ignore format: one sentence
  }
  const { file: name, sha256, size } = from as unknown as PriorFacts["text"];
  return { rank, model, source, N, damping, terms, batches, seed, text: { file: name, sha256, size } } as PriorFacts;
}

/** Every parameter of the encoder must be there in its shape, and nothing else. */
function checkArchitecture(file: SafetensorsFile, path: string, config: BertConfig, rank: number): void {
  const differs = (tensor: string, found: string, expected: string): never => {
    throw new InputError(
      `--prior ${inert(path)}: a prior of another architecture: tensor ${quote(tensor, 100)} ${found} (expected ${expected}). Make one of this model with priorwork prior.`,
    );
  };
  const names = new Set<string>();
  const expect = (tensor: string, shape: readonly number[], optional: boolean) => {
    names.add(tensor);
    const found = file.tensors.get(tensor);
    if (found === undefined) {
      if (!optional) differs(tensor, "is missing", `shape [${shape}]`);
    } else if (String(found.shape) !== String(shape)) {
      differs(tensor, `has shape [${found.shape}]`, `[${shape}]`);
    }
  };
  const parameters = encoderSlices(config, true).flatMap((slice) => slice.parameters);
  for (const [what, lead] of [["precision", []], ...(rank > 0 ? [["factors", [rank]]] : [])] as [string, number[]][]) {
    // A checkpoint may lack the pooler; whether the readout needs it is found when the prior is made.
    for (const { name, shape } of parameters)
      expect(`${what}.${name}`, [...lead, ...shape], name.startsWith("bert.pooler."));
  }
  const more = [...file.tensors.keys()].find((tensor) => !names.has(tensor));
  if (more !== undefined) differs(more, "is one that the model has not", "none of that name");
}
