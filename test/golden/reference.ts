/**
 * @file The PyTorch reference files, found through PRIORWORK_SHARED (default ../shared). They are not part of the
 * repository; without them the golden tests are skipped, and say so.
 */
import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { type PackedBatch, packBatch } from "../../src/data/batches.ts";
import { parseSafetensors, toFloat32 } from "../../src/model/safetensors.ts";

export const SHARED = resolve(
  process.env.PRIORWORK_SHARED ?? fileURLToPath(new URL("../../../shared", import.meta.url)),
);
export const MINILM = join(SHARED, "models/all-MiniLM-L6-v2");
export const hasShared = existsSync(join(SHARED, "reference"));
export const hasMiniLM = hasShared && existsSync(MINILM);

/** Says loudly that a suite is skipped, in its name. */
export const named = (title: string, present: boolean) =>
  present ? title : `${title} — SKIPPED: no reference files at PRIORWORK_SHARED or ../shared`;

/** How far PyTorch's own float32 is from its float64: the floor that no float32 engine can be asked to beat. */
export interface Noise {
  max_abs_diff: number;
  rms_diff: number;
  max_abs: number;
  rms: number;
}

export class Reference {
  // biome-ignore lint/suspicious/noExplicitAny: the JSON's shape differs from file to file; each test knows its own.
  readonly info: any;
  readonly #tensors: ReturnType<typeof parseSafetensors>["tensors"];

  constructor(name: string) {
    const path = join(SHARED, "reference", name);
    this.info = JSON.parse(readFileSync(`${path}.json`, "utf8"));
    this.#tensors = parseSafetensors(new Uint8Array(readFileSync(`${path}.safetensors`)), name).tensors;
  }

  shape(name: string): readonly number[] {
    return this.#tensor(name).shape;
  }

  floats(name: string): Float32Array {
    return toFloat32(this.#tensor(name));
  }

  /** A float64 tensor with all its digits. */
  doubles(name: string): Float64Array {
    return new Float64Array(this.#tensor(name).bytes.slice().buffer);
  }

  ints(name: string): Int32Array {
    const { bytes } = this.#tensor(name);
    return new Int32Array(bytes.slice().buffer);
  }

  /** The padded `input_ids`, `attention_mask`, `token_type_ids` of rows `from` to `to`, packed. */
  batch(from: number, to: number, labels?: ArrayLike<number>): PackedBatch {
    const t = this.shape("input_ids").at(-1) as number;
    const [ids, mask, types] = [this.ints("input_ids"), this.ints("attention_mask"), this.ints("token_type_ids")];
    const examples = [];
    for (let b = from; b < to; b++) {
      const length = mask.subarray(b * t, (b + 1) * t).reduce((a, m) => a + m, 0);
      examples.push({
        ids: ids.subarray(b * t, b * t + length),
        typeIds: types.subarray(b * t, b * t + length),
        ...(labels ? { label: labels[b] as number } : {}),
      });
    }
    return packBatch(examples);
  }

  /** The rows at real tokens of sequences 0 … count−1 of a padded [B, T, C] tensor. */
  unpad(name: string, count: number): Float32Array {
    const [, t, c] = this.shape(name) as [number, number, number];
    const mask = this.ints("attention_mask");
    const data = this.floats(name);
    const kept: number[] = [];
    for (let row = 0; row < count * t; row++)
      if (mask[row]) for (let i = 0; i < c; i++) kept.push(data[row * c + i] as number);
    return Float32Array.from(kept);
  }

  #tensor(name: string) {
    const tensor = this.#tensors.get(name);
    if (!tensor) throw new Error(`the reference has no tensor ${name}`);
    return tensor;
  }
}

/** Largest |a − b|; NaN counts as infinite. */
export function maxDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) throw new Error(`${a.length} numbers against ${b.length}`);
  let worst = 0;
  for (let i = 0; i < a.length; i++) {
    const d = Math.abs((a[i] as number) - (b[i] as number));
    worst = Number.isNaN(d) ? Number.POSITIVE_INFINITY : Math.max(worst, d);
  }
  return worst;
}
