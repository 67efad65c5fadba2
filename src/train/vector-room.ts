/**
 * @file Device memory of vectors of θ's length, known before any is allocated. One vector is no question: θ is one itself,
 * within what the device allows one buffer. How much the device has in all WebGPU does not tell, so a caller who knows it
 * says so (`maxBytes`), and what would not fit is refused with the rank that would.
 */
import type { Theta } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import { sizeClass } from "../gpu/index.ts";

/** Vectors that something is going to hold at once, as its rank decides; the gradient comes on top where there is none yet. */
export interface VectorPlan {
  /** For sentences. */
  what: string;
  rank: number;
  vectors(rank: number): number;
}

/** Bytes that the plan takes on the device. */
export function vectorBytes(theta: Sized, plan: VectorPlan): number {
  return count(theta, plan) * sizeClass(4 * theta.layout.length);
}

type Sized = Pick<Theta, "layout" | "engine" | "hasGradient">;

function count({ hasGradient }: Sized, { rank, vectors }: VectorPlan): number {
  return vectors(rank) + (hasGradient ? 0 : 1);
}

/** "SWAG: 13 vectors of θ's length, 1.2 GB of device memory, beside 450 MB in use" */
export function vectorText(theta: Sized, plan: VectorPlan): string {
  const { liveBytes } = theta.engine.gpu.stats;
  return `${plan.what}: ${count(theta, plan)} vectors of θ's length, ${bytesText(vectorBytes(theta, plan))} of device memory, beside ${bytesText(liveBytes)} in use`;
}

/**
 * Throws InputError where the plan and what is in use now would take more than `maxBytes`; it says which rank fits. A
 * step's activations come on top. Without `maxBytes` nothing is refused; one that is no number from 0 is.
 */
export function expectVectorRoom(theta: Sized, plan: VectorPlan, maxBytes: number | undefined): void {
  if (maxBytes !== undefined && !(maxBytes >= 0))
    throw new InputError(`${plan.what}: at most ${maxBytes} bytes (expected a number from 0).`);
  const inUse = theta.engine.gpu.stats.liveBytes;
  const fits = (rank: number) =>
    inUse + vectorBytes(theta, { ...plan, rank }) <= (maxBytes ?? Number.POSITIVE_INFINITY);
  if (fits(plan.rank)) return;
  let [none, rank] = [-1, plan.rank];
  while (rank - none > 1) {
    const middle = Math.floor((none + rank) / 2);
    if (fits(middle)) none = middle;
    else rank = middle;
  }
  const cure =
    none < 0
      ? "No rank fits: take a smaller model, or another adapter"
      : `A rank of ${none} fits (${bytesText(vectorBytes(theta, { ...plan, rank: none }))}): ask for no more`;
  throw new InputError(`${vectorText(theta, plan)} (at most ${bytesText(maxBytes ?? 0)} in all). ${cure}.`);
}

/** As people read it: 3.6 MB, 14 MB, 1.2 GB. */
export function bytesText(bytes: number): string {
  const [unit, size] = bytes < 1e9 ? ["MB", 1e6] : ["GB", 1e9];
  const value = bytes / size;
  return `${value < 10 ? value.toPrecision(2) : Math.round(value)} ${unit}`;
}
