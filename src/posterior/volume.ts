/**
 * @file MAP uses only distances; sampling uses volume. A Gaussian that is a fine penalty may hold hardly a draw that still
 * works: noise of a variance that no single weight minds, on millions of weights at once, leaves random features. How much
 * is left is measured, by the cosine between a sentence's vector at θ̂ and at a draw.
 */
import type { PackedBatch } from "../data/batches.ts";
import { InputError } from "../errors.ts";
import { type Draws, readSlices, type ThetaClassifier, writeSlices } from "./draws.ts";

/** Below this mean cosine, draws are of another network: on MiniLM τ = 10⁴ has .83, and τ = 10⁵ .98. */
export const LEAST_COSINE = 0.9;

/**
 * Mean cosine, over a batch's sequences and the first S draws, of the readout's vector at a draw and at θ as it is. 1
 * where only the head is drawn. θ is afterwards what it was. Throws InputError without a draw.
 */
export async function featureCosine(
  model: ThetaClassifier,
  draws: Draws,
  batch: PackedBatch,
  S = Math.min(4, draws.size),
): Promise<number> {
  if (S < 1) throw new InputError("cosine: no draw of θ.");
  const { engine, theta } = model;
  const { slices } = draws;
  if (slices.every(({ groups }) => groups[0] === "head")) return 1;
  const vectors = () => engine.evaluate(() => model.features(batch));
  const own = await readSlices(theta, slices);
  const clean = await vectors();
  let sum = 0;
  try {
    for (let s = 0; s < S; s++) {
      writeSlices(theta, slices, await draws.read(s));
      sum += meanCosine(clean, await vectors(), batch.sequences);
    }
  } finally {
    writeSlices(theta, slices, own);
  }
  return sum / S;
}

/** a, b [n, width]; a vector of zeros has cosine 0 with any other. */
function meanCosine(a: Float32Array, b: Float32Array, n: number): number {
  const width = a.length / n;
  let sum = 0;
  for (let row = 0; row < n; row++) {
    let [ab, aa, bb] = [0, 0, 0];
    for (let i = row * width; i < (row + 1) * width; i++) {
      ab += a[i]! * b[i]!;
      aa += a[i]! * a[i]!;
      bb += b[i]! * b[i]!;
    }
    sum += aa > 0 && bb > 0 ? ab / Math.sqrt(aa * bb) : 0;
  }
  return sum / n;
}

/** A line for the user where draws do not keep the features, else undefined; `cure` says what to do about it. */
export function volumeWarning(
  cosine: number,
  groups: readonly string[],
  cure = "Sample the head alone, raise the precision, or predict by the linearisation.",
): string | undefined {
  if (cosine >= LEAST_COSINE) return undefined;
  return (
    `draws of ${groups.join(", ")} do not keep the features (mean cosine ${cosine.toFixed(2)} to those at θ̂, expected ${LEAST_COSINE} or more): ` +
    `their precision is a fine penalty but no believable prior. ${cure}`
  );
}
