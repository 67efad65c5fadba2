/**
 * @file The state of a training run: θ, the optimiser's vectors and the step, with the facts that a continuation must
 * agree on. Data order, dropout and schedule are functions of seed and step, so no more is needed to continue bit for
 * bit. As bytes it is a safetensors file, which can carry no code; where the file lies is the caller's business.
 */
import type { Theta } from "../autograd/index.ts";
import { inert } from "../data/text.ts";
import { InputError } from "../errors.ts";
import type { Gpu } from "../gpu/index.ts";
import { type LossScale, lossScaleWords, type NdArray, readArray } from "../kernels/index.ts";
import { parseSafetensors, toFloat32, writeSafetensors } from "../model/safetensors.ts";

export type Facts = Readonly<Record<string, string | number>>;

export interface TrainState {
  /** Steps taken. */
  step: number;
  /** Name and driver of the adapter that took them. */
  adapter: string;
  facts: Facts;
  /** θ with its padding, in the layout's order. */
  theta: Float32Array;
  /** The optimiser's vectors, by name. */
  vectors: Readonly<Record<string, Float32Array>>;
  /** Of a training in f16. */
  lossScale?: LossScale;
}

/** What a trainer's state is read from and written to. */
export interface StateParts {
  theta: Theta;
  vectors: ReadonlyMap<string, NdArray>;
  facts: Facts;
}

/** Reads the state from the device. */
export async function captureState({ theta, vectors, facts }: StateParts, step: number): Promise<TrainState> {
  const { gpu } = theta.engine;
  const values = await readArray(gpu, theta.values);
  const read: Record<string, Float32Array> = {};
  for (const [name, vector] of vectors) read[name] = await readArray(gpu, vector);
  return { step, adapter: adapterOf(gpu), facts: { ...facts, layout: layoutOf(theta) }, theta: values, vectors: read };
}

/** Writes a state to the device. Throws InputError, and writes nothing, if it is not of this run; returns notes. */
export function restoreState({ theta, vectors, facts }: StateParts, state: TrainState, steps: number): string[] {
  const mine: Facts = { ...facts, layout: layoutOf(theta) };
  const names = new Set([...Object.keys(mine), ...Object.keys(state.facts)]);
  for (const name of names) {
    const [here, there] = [mine[name] ?? "none", state.facts[name] ?? "none"];
    if (String(here) === String(there)) continue;
    throw new InputError(
      `resume: ${inert(name)} differs (the checkpoint has ${inert(String(there))}, this run ${inert(String(here))}). Use the flags, model and data it was started with, or start anew with --overwrite.`,
    );
  }
  const wrong = [...vectors.keys()].find((name) => state.vectors[name]?.length !== theta.layout.length);
  if (wrong !== undefined || state.theta.length !== theta.layout.length) {
    throw new InputError(`resume: the checkpoint's ${wrong ?? "theta"} has not the size of this model. Start anew.`);
  }
  if (!(Number.isSafeInteger(state.step) && state.step >= 0 && state.step <= steps)) {
    throw new InputError(`resume: the checkpoint is at step ${state.step} of a run of ${steps}. Start anew.`);
  }
  const { gpu } = theta.engine;
  gpu.write(theta.values, state.theta);
  for (const [name, vector] of vectors) gpu.write(vector, state.vectors[name] ?? new Float32Array(0));
  const adapter = adapterOf(gpu);
  if (adapter === state.adapter) return [];
  return [
    `the checkpoint was made on ${inert(state.adapter)}, this is ${adapter}: the run continues, but not bit for bit as it would have there`,
  ];
}

/** A state as the bytes of a safetensors file. */
export function serializeState({
  step,
  adapter,
  facts,
  theta,
  vectors,
  lossScale,
}: TrainState): Uint8Array<ArrayBuffer> {
  const tensors = [{ name: "theta", data: theta }].concat(
    Object.entries(vectors).map(([name, data]) => ({ name: `optimizer.${name}`, data })),
  );
  return writeSafetensors(
    tensors.map(({ name, data }) => ({ name, dtype: "F32" as const, shape: [data.length], data })),
    { priorwork: JSON.stringify({ version: 1, step, adapter, facts, lossScale }) },
  );
}

/** The state in a file's bytes. `name`: for messages. Throws InputError for anything but what `serializeState` wrote. */
export function parseState(bytes: Uint8Array, name: string): TrainState {
  const { metadata, tensors } = parseSafetensors(bytes, name);
  const fail = (what: string): never => {
    throw new InputError(`${inert(name)}: ${what}. Resume from another checkpoint.`);
  };
  let about: unknown;
  try {
    about = JSON.parse(metadata.get("priorwork") ?? "");
  } catch {
    return fail("not a training state of priorwork (its metadata has no readable entry priorwork)");
  }
  const { version, step, adapter, facts, lossScale } = (about ?? {}) as Partial<Record<string, unknown>>;
  if (version !== 1) return fail(`a training state of version ${inert(String(version))} (expected 1)`);
  if (!Number.isSafeInteger(step) || typeof adapter !== "string" || typeof facts !== "object" || facts === null) {
    return fail("a training state without its step, adapter or facts");
  }
  const known: Record<string, string | number> = {};
  for (const [key, value] of Object.entries(facts)) {
    if (typeof value !== "string" && typeof value !== "number") return fail(`fact ${inert(key)} is no text or number`);
    known[key] = value;
  }
  const vectors: Record<string, Float32Array> = {};
  let theta: Float32Array | undefined;
  for (const [key, tensor] of tensors) {
    const data = toFloat32(tensor, key);
    const bad = data.findIndex((x) => !Number.isFinite(x));
    if (bad >= 0) return fail(`tensor ${inert(key)} has ${data[bad]} at position ${bad} (expected finite numbers)`);
    if (key === "theta") theta = data;
    else if (key.startsWith("optimizer.")) vectors[key.slice("optimizer.".length)] = data;
    else return fail(`a tensor ${inert(key)} that no training state has`);
  }
  if (!theta) return fail("a training state without θ");
  const state = { step: step as number, adapter, facts: known, theta, vectors };
  if (lossScale === undefined) return state;
  if (!isLossScale(lossScale)) return fail("a loss scale that no training has");
  return { ...state, lossScale };
}

function isLossScale(value: unknown): value is LossScale {
  const { scale, good, skipped, last } = (value ?? {}) as Partial<Record<string, unknown>>;
  if (typeof scale !== "number" || ![good, skipped, last].every((n) => Number.isSafeInteger(n) && (n as number) >= 0))
    return false;
  try {
    lossScaleWords(value as LossScale);
  } catch {
    return false;
  }
  return true;
}

/** FNV-1a hash of a vector's bits, in hexadecimal. */
export async function fingerprint(gpu: Gpu, vector: NdArray): Promise<string> {
  return fnv1a(new Uint32Array(await gpu.read(vector)));
}

/** FNV-1a over bytes or words: enough to notice other ones, no protection against forgery. */
function fnv1a(values: Uint8Array | Uint32Array): string {
  let hash = 0x811c9dc5;
  for (const value of values) hash = Math.imul(hash ^ value, 0x01000193);
  return (hash >>> 0).toString(16).padStart(8, "0");
}

function adapterOf({ adapter }: Gpu): string {
  return `${adapter.name} (${adapter.driver})`;
}

/** Names, sizes and places of all parameters, as a number that changes when one of them does. */
function layoutOf(theta: Theta): string {
  const { slices, parameterCount } = theta.layout;
  const lines = slices.flatMap(({ parameters }) => parameters.map((p) => `${p.name} ${p.offset} ${p.shape}\n`));
  return `${parameterCount} parameters, ${fnv1a(new TextEncoder().encode(lines.join("")))}`;
}
