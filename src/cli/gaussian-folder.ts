/**
 * @file A Laplace approximation in `posterior/` of a run: the Gaussian around model.safetensors itself, for predictives that
 * need its covariance and not draws of it. gaussian.safetensors has the curvature as it was found, block by block (names:
 * BLOCK.PART, posterior/curvature.ts), in float64 where it is small, so that what is read again predicts to the last bit
 * as the run did; gaussian.json says what it is of, with the SHA-256 of that file and of the weights, and is written last.
 */
import { join } from "node:path";
import type { Slice, Theta } from "../autograd/index.ts";
import { fileExists, readText, sha256File, writeFileAtomic } from "../data/files.ts";
import { isObject, type JsonObject, parseJson } from "../data/json.ts";
import { inert } from "../data/text.ts";
import { InputError } from "../errors.ts";
import { safetensorsPieces, type TensorToWrite, type WideTensor } from "../model/safetensors.ts";
import { openSafetensors, type SafetensorsFile } from "../model/safetensors-file.ts";
import {
  type Block,
  curvatureOf,
  type Laplace,
  laplace,
  numbersOf,
  readSlices,
  type Structure,
} from "../posterior/index.ts";
import { LARGEST_PRECISION } from "../train/prior.ts";
import { LIKELIHOOD_TEMPERATURE, TEMPERATURE } from "./method-options.ts";
import { MEMBERS } from "./options.ts";
import { isHash, PosteriorWriter } from "./posterior-folder.ts";

/** gaussian.json. */
export interface GaussianRecord {
  format: 1;
  method: "laplace";
  predictive: "linearised" | "probit";
  /** S of `linearised`, and the seed of its draws. */
  draws: number;
  seed: number;
  structure: Structure;
  /** The only block is the layer that gives the logits. */
  lastLayer: boolean;
  temperature: number;
  likelihoodTemperature: number;
  /** Examples that the curvature is of. */
  n: number;
  /** By key, with each block's prior precision. */
  blocks: { slices: string[]; precision: number }[];
  /** Of gaussian.safetensors. */
  sha256: string;
  /** Of the model.safetensors that it lies around. */
  weights: string;
}

const [RECORD, NUMBERS] = ["gaussian.json", "gaussian.safetensors"];
const place = (run: string, name: string) => join(run, "posterior", name);

/** Writes the state in place of whatever posterior the run had. `weights`: the SHA-256 that model.safetensors will have. */
export function writeGaussian(
  run: string,
  { ggn, temperature, likelihoodTemperature, precisions, shapes }: Laplace,
  how: Pick<GaussianRecord, "predictive" | "draws" | "seed" | "weights">,
): void {
  const { weights, ...settings } = how;
  new PosteriorWriter(run, []); // removes what an earlier attempt has left
  const tensors = ggn.blocks.flatMap(({ curvature }, b): (TensorToWrite | WideTensor)[] => {
    const t = shapes[b];
    return Object.entries({ ...curvature.numbers(), ...(t ? { t } : {}) }).map(([part, data]) => {
      const [name, shape] = [`${b}.${part}`, [data.length]];
      return data instanceof Float64Array ? { name, shape, dtype: "F64", data } : { name, shape, dtype: "F32", data };
    });
  });
  writeFileAtomic(place(run, NUMBERS), safetensorsPieces(tensors));
  const record: GaussianRecord = {
    ...{ format: 1, method: "laplace", ...settings, structure: ggn.structure, lastLayer: ggn.lastLayer },
    ...{ temperature, likelihoodTemperature, n: ggn.n },
    blocks: ggn.blocks.map(({ slices }, b) => ({
      slices: slices.map(({ key }) => key),
      precision: precisions[b] as number,
    })),
    sha256: sha256File(place(run, NUMBERS)),
    weights,
  };
  writeFileAtomic(place(run, RECORD), `${JSON.stringify(record, null, 2)}\n`);
}

/** The record of a run's Gaussian, or undefined where it has none. InputError: it is broken. */
export function readGaussianRecord(run: string): GaussianRecord | undefined {
  const path = place(run, RECORD);
  if (!fileExists(path)) return undefined;
  const record = parseJson(readText(path, { maxBytes: 16 << 20 }), path);
  const wrong = wrongField(record);
  if (wrong === undefined) return record as unknown as GaussianRecord;
  throw new InputError(`${inert(path)}: ${wrong} is not what priorwork writes. Train again with --overwrite.`);
}

function wrongField(record: JsonObject): string | undefined {
  const above = (x: unknown) => typeof x === "number" && Number.isFinite(x) && x > 0;
  const within =
    ({ min, max }: { min: number; max: number }) =>
    (x: unknown) =>
      above(x) && Number(x) >= min && Number(x) <= max;
  const whole = (x: unknown) => Number.isSafeInteger(x) && Number(x) >= 0;
  const isBlock = (x: unknown) =>
    isObject(x) &&
    Array.isArray(x.slices) &&
    (x.slices.length === 1 || x.slices.length === 2) &&
    x.slices.every((key) => typeof key === "string") &&
    within({ min: 0, max: LARGEST_PRECISION })(x.precision);
  const kinds: Record<string, (x: unknown) => boolean> = {
    format: (x) => x === 1,
    method: (x) => x === "laplace",
    predictive: (x) => x === "linearised" || x === "probit",
    draws: (x) => whole(x) && above(x) && Number(x) <= MEMBERS.max,
    seed: whole,
    structure: (x) => x === "full" || x === "diagonal" || x === "kronecker",
    lastLayer: (x) => typeof x === "boolean",
    temperature: within(TEMPERATURE),
    likelihoodTemperature: within(LIKELIHOOD_TEMPERATURE),
    n: whole,
    blocks: (x) => Array.isArray(x) && x.length > 0 && x.every(isBlock),
    sha256: isHash,
    weights: isHash,
  };
  return Object.keys(kinds).find((key) => kinds[key]?.(Object.hasOwn(record, key) ? record[key] : undefined) !== true);
}

/**
 * The state around θ as it is. InputError: a file that is not the one written, a slice that the model has not, numbers of
 * other sizes than its slices' or that are not finite.
 */
export async function readGaussian(run: string, record: GaussianRecord, theta: Theta): Promise<Laplace> {
  const path = place(run, NUMBERS);
  if (!fileExists(path) || sha256File(path) !== record.sha256) {
    throw new InputError(
      `${inert(path)}: not what the run wrote (its SHA-256 differs from gaussian.json's). Restore it, or train again.`,
    );
  }
  const { structure, lastLayer, n, temperature, likelihoodTemperature } = record;
  const precisions = new Map<Slice, number>();
  const file = openSafetensors(path);
  try {
    const shapes: (Float64Array | undefined)[] = [];
    const blocks = record.blocks.map(({ slices: keys, precision }, b): Block => {
      const slices = keys.map((key) => sliceOf(theta, key, run));
      for (const slice of slices) precisions.set(slice, precision);
      const [{ shape: [outputs = 0, inputs = 0] }] = slices as [Slice]; // biome-ignore format: one pattern
      if (!fits(record, slices)) {
        throw new InputError(
          `${inert(place(run, RECORD))}: ${inert(keys.join(", "))}: no block of ${structure}${lastLayer ? ", the last layer" : ""}. Train again.`,
        );
      }
      const layer = structure === "diagonal" && !lastLayer ? undefined : { inputs, outputs, bias: slices.length > 1 };
      const size = slices.reduce((sum, slice) => sum + slice.size, 0);
      const numbers = Object.entries(numbersOf(structure, size, layer)).map(
        ([part, count]) => [part, numbersIn(file, `${b}.${part}`, count)] as const,
      );
      const t = file.tensors.has(`${b}.t`) ? numbersIn(file, `${b}.t`, size) : undefined;
      shapes.push(t && Float64Array.from(t));
      const curvature = curvatureOf(structure, Object.fromEntries(numbers), layer);
      return layer ? { slices, curvature, layer } : { slices, curvature };
    });
    const center = await Promise.all(blocks.map(({ slices }) => readSlices(theta, slices)));
    const ggn = { structure, blocks, center, n, lastLayer, left: [] };
    const prior = { precision: (slice: Slice) => precisions.get(slice) ?? 0, density: undefined };
    return laplace(ggn, prior, { temperature, likelihoodTemperature, shapes });
  } catch (error) {
    // What the library advises is for those who train; here the numbers of a file are wrong.
    if (!(error instanceof InputError) || !error.message.startsWith("laplace: ")) throw error;
    const found = error.message.slice("laplace: ".length).replace(/\. .*$/s, "");
    throw new InputError(`${inert(path)}: ${found}. Restore it, or train again.`);
  } finally {
    file.close();
  }
}

/** Whether these slices can be a block: a weight [out, in] with its bias or none, once; of a diagonal any one slice. */
function fits({ structure, lastLayer, blocks }: GaussianRecord, slices: readonly Slice[]): boolean {
  const keys = blocks.flatMap((block) => block.slices);
  if (new Set(keys).size < keys.length) return false;
  const [weight, bias] = slices;
  if (structure === "diagonal" && !lastLayer) return bias === undefined;
  if (structure === "full" && !lastLayer) return false;
  if (lastLayer && (blocks.length > 1 || weight?.groups[0] !== "head")) return false;
  return weight?.shape.length === 2 && (bias === undefined || String(bias.shape) === String([weight.shape[0]]));
}

function sliceOf({ layout }: Theta, key: string, run: string): Slice {
  const found = layout.slices.find((slice) => slice.key === key);
  if (found) return found;
  throw new InputError(
    `${inert(place(run, RECORD))}: the model has no tensor ${inert(String(key).slice(0, 100))}. Is this the run that it was written for?`,
  );
}

function numbersIn(file: SafetensorsFile, name: string, count: number): Float32Array | Float64Array {
  if (!file.tensors.has(name)) throw new InputError(`${inert(file.path)}: no tensor ${name}. Train again.`);
  const { dtype, bytes } = file.read(name);
  const whole = bytes.slice().buffer;
  const values = dtype === "F64" ? new Float64Array(whole) : file.float32(name);
  if (values.length === count && values.every(Number.isFinite)) return values;
  const found = values.length === count ? "numbers that are not finite" : `${values.length} numbers`;
  throw new InputError(`${inert(file.path)}: ${name} has ${found} (expected ${count}, finite). Train again.`);
}
