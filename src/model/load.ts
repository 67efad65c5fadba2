/**
 * @file From a checkpoint's tensors to θ and back. Names are Hugging Face's; a file of a bare encoder has them without
 * the `bert.` prefix, and files of BERT's first years call a LayerNorm's weight gamma and its bias beta. A missing head
 * is a new head, said aloud; a missing encoder tensor is an error, never a random start that nobody asked for.
 */
import type { Slice, Theta } from "../autograd/index.ts";
import type { JsonObject } from "../data/json.ts";
import { inert } from "../data/text.ts";
import { InputError } from "../errors.ts";
import { Stream } from "../random.ts";
import type { BertConfig } from "./config.ts";
import { MEMBERS_GROUP } from "./rank-one.ts";
import { firstNonFinite } from "./safetensors.ts";

/** What loading needs of a checkpoint, wherever it comes from. */
export interface Checkpoint {
  /** For messages: the folder or file. */
  readonly name: string;
  /** config.json, as text or parsed. */
  readonly config: string | JsonObject;
  /** Every tensor's shape, by name. */
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** One tensor's numbers as float32. */
  read(name: string): Promise<Float32Array>;
  /** Lets go of the file, where there is one. */
  close?(): void;
}

export interface LoadReport {
  /** Tensors taken from the checkpoint. */
  loaded: number;
  /** Parameters that the checkpoint lacks and that got a random start. */
  missing: string[];
  /** Tensors of the checkpoint that this model has no use for. */
  unexpected: string[];
  /** Lines for the user, e.g. that the head is new. */
  notes: string[];
}

/** Buffers, and copies of tied weights, that checkpoints carry and that say nothing new. */
const REDUNDANT = /(^|\.)(position_ids|predictions\.decoder\.(weight|bias))$/;

/** The names under which a parameter may stand in a checkpoint, best first. */
function spellings(name: string): string[] {
  const bare = name.startsWith("bert.") ? [name, name.slice("bert.".length)] : [name];
  const old = bare
    .filter((n) => n.includes("LayerNorm."))
    .map((n) => n.replace(/LayerNorm\.weight$/, "LayerNorm.gamma").replace(/LayerNorm\.bias$/, "LayerNorm.beta"));
  return [...bare, ...old];
}

/** Whether the checkpoint has this parameter under any spelling. */
export function hasParameter(checkpoint: Checkpoint, name: string): boolean {
  return spellings(name).some((n) => checkpoint.shapes.has(n));
}

/**
 * The sizes that config.json gives against those of the weights, before anything is allocated for them: a config of a few
 * bytes could ask for terabytes. What is missing altogether is `fillTheta`'s to say. Throws InputError.
 */
export function checkSizes({ name, shapes }: Pick<Checkpoint, "name" | "shapes">, config: BertConfig): void {
  const { vocabSize: V, hiddenSize: C, intermediateSize: F, maxPositions, typeVocabSize, layers } = config;
  const expected: [string, number[]][] = [
    ["bert.embeddings.word_embeddings.weight", [V, C]],
    ["bert.embeddings.position_embeddings.weight", [maxPositions, C]],
    ["bert.embeddings.token_type_embeddings.weight", [typeVocabSize, C]],
    ["bert.encoder.layer.0.intermediate.dense.weight", [F, C]],
  ];
  for (const [parameter, shape] of expected) {
    const found = spellings(parameter).find((n) => shapes.has(n));
    const theirs = shapes.get(found ?? "") ?? shape;
    if (found !== undefined && String(theirs) !== String(shape)) throw otherShape(name, found, theirs, shape);
  }
  const last = `encoder.layer.${layers - 1}.`;
  const numbers = [...shapes.keys()].map((n) => Number(/(?:^|\.)encoder\.layer\.(\d{1,6})\./.exec(n)?.[1] ?? -1));
  const most = 1 + numbers.reduce((a, b) => Math.max(a, b), -1);
  if (most > 0 && ![...shapes.keys()].some((n) => n.includes(last))) {
    throw new InputError(
      `${inert(name)}: the weights have ${most} layers (config.json says num_hidden_layers ${layers}). The weights and config.json are not of the same model.`,
    );
  }
}

function otherShape(name: string, tensor: string, found: readonly number[], expected: readonly number[]): InputError {
  return new InputError(
    `${inert(name)}: tensor ${tensor} has shape [${found}] (config.json says [${expected}]). The weights and config.json are not of the same model.`,
  );
}

/**
 * Fills θ from a checkpoint. Parameters of the group `head` that it lacks (or has in another shape, for another number
 * of labels) get a random start and are named in `newParameters`. Throws InputError: an encoder tensor is missing or has
 * another shape than the config says, a number is not finite.
 */
export async function fillTheta(
  theta: Theta,
  checkpoint: Checkpoint,
  newParameters: Set<string>,
  { seed = 0, initializerRange = 0.02 } = {},
): Promise<LoadReport> {
  const report: LoadReport = { loaded: 0, missing: [], unexpected: [], notes: [] };
  const used = new Set<string>();
  const fresh: { name: string; slice: Slice }[] = [];
  const absent: string[] = [];
  for (const slice of ownSlices(theta)) {
    const isHead = slice.groups[0] === "head";
    for (const { name, shape } of slice.parameters) {
      const found = spellings(name).find((n) => checkpoint.shapes.has(n));
      const theirs = found === undefined ? undefined : (checkpoint.shapes.get(found) as readonly number[]);
      const fits = theirs?.length === shape.length && theirs.every((n, i) => n === shape[i]);
      if (found !== undefined && fits) {
        used.add(found);
        const data = await checkpoint.read(found);
        const bad = firstNonFinite(data);
        if (bad >= 0) {
          throw new InputError(
            `${inert(checkpoint.name)}: tensor ${found} has ${data[bad]} at position ${bad} (expected finite numbers). The file is damaged or its training diverged; use another checkpoint.`,
          );
        }
        theta.set(name, data);
        report.loaded++;
      } else if (found !== undefined && !isHead) {
        throw otherShape(checkpoint.name, found, theirs ?? [], shape);
      } else if (isHead) {
        if (found !== undefined) {
          used.add(found);
          report.notes.push(
            `the checkpoint's ${found} has shape [${theirs}], this task needs [${shape}]: a new head is started`,
          );
        }
        fresh.push({ name, slice });
      } else {
        absent.push(name);
      }
    }
  }
  if (absent.length > 0) {
    const shown = absent.slice(0, 3).join(", ") + (absent.length > 3 ? ` and ${absent.length - 3} more` : "");
    throw new InputError(
      `${inert(checkpoint.name)}: ${absent.length} encoder tensors are missing (${shown}). Is this a BERT checkpoint? If its pooler is missing, choose --readout cls or mean.`,
    );
  }
  if (fresh.length > 0) {
    // A head is new as a whole: half a head of another task would be no knowledge.
    for (const { name } of fresh) newParameters.add(name);
    report.missing = fresh.map(({ name }) => name);
    report.notes.push(`new head: ${report.missing.join(", ")} start at random`);
    initialize(
      theta,
      fresh.map(({ name }) => name),
      seed,
      "head",
      initializerRange,
    );
  }
  report.unexpected = [...checkpoint.shapes.keys()].filter((name) => !used.has(name) && !REDUNDANT.test(name));
  return report;
}

/** A random start for all of θ, as BERT's own: normal(0, range); biases 0; LayerNorm weights 1. */
export function randomStart(
  theta: Theta,
  newParameters: Set<string>,
  { seed = 0, initializerRange = 0.02 } = {},
): LoadReport {
  const names = ownSlices(theta).flatMap(({ parameters }) => parameters.map(({ name }) => name));
  initialize(theta, names, seed, "start", initializerRange);
  for (const name of names) newParameters.add(name);
  return { loaded: 0, missing: names, unexpected: [], notes: ["everything starts at random"] };
}

function initialize(theta: Theta, names: readonly string[], seed: number, purpose: string, range: number): void {
  for (const [i, name] of names.entries()) {
    const { size } = theta.layout.parameter(name);
    const data = new Float32Array(size);
    if (/LayerNorm\.weight$/.test(name)) {
      data.fill(1);
    } else if (!name.endsWith("bias")) {
      const stream = new Stream(seed, purpose, i);
      for (let j = 0; j < size; j++) data[j] = range * stream.normal();
    }
    theta.set(name, data);
  }
}

export interface NamedTensor {
  name: string;
  shape: readonly number[];
  data: Float32Array;
}

/** Slices of the model itself: the vectors of rank-one members are no part of a checkpoint. */
function ownSlices({ layout }: Theta): Slice[] {
  return layout.slices.filter(({ groups }) => groups[0] !== MEMBERS_GROUP);
}

/** Every parameter under its name, read from θ (or from another vector of its layout). */
export async function* exportTensors(theta: Theta, vector = theta.values): AsyncGenerator<NamedTensor> {
  for (const slice of ownSlices(theta)) {
    for (const { name, shape } of slice.parameters) yield { name, shape, data: await theta.get(name, vector) };
  }
}
