/** @file Laplace's memory, known before anything is allocated; what does not fit is refused with what would. */
import { type Slice, tensorNames } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import { bytesText } from "../train/vector-room.ts";
import { type LayerShape, parametersOf, type Structure, width } from "./curvature.ts";

/** Bytes that a structure holds at its largest, factorisation included. */
export function curvatureBytes(structure: Structure, layers: readonly LayerShape[]): number {
  return layers.reduce((sum, shape) => {
    const [P, m, outputs] = [parametersOf(shape), width(shape), shape.outputs];
    // full: H, Λ, L in float64. kronecker: the factors, their eigenvectors, and the solver's copies; Λ's eigenvalues.
    if (structure === "full") return sum + 24 * P * P;
    return sum + (structure === "diagonal" ? 4 * P : 24 * (m * m + outputs * outputs) + 8 * P);
  }, 0);
}

const MAX_BYTES = 100e6;

/** The curvature would take more memory than it may. Who set `maxBytes` may add how. */
export class CurvatureRoomError extends InputError {}

/** The bytes; throws CurvatureRoomError, before anything is allocated, where they are more than `maxBytes`, and says what fits. */
export function expectRoom(
  structure: Structure,
  layers: readonly LayerShape[],
  { maxBytes = MAX_BYTES }: { maxBytes?: number | undefined },
): number {
  const bytes = curvatureBytes(structure, layers);
  if (bytes <= maxBytes) return bytes;
  const parameters = layers.reduce((sum, shape) => sum + parametersOf(shape), 0);
  const fitting = (["kronecker", "diagonal"] as const)
    .filter((other) => other !== structure && curvatureBytes(other, layers) <= maxBytes)
    .map((other) => `${other} (${bytesText(curvatureBytes(other, layers))})`);
  const instead = fitting.length > 0 ? `What fits: ${fitting.join(", ")}` : "Choose fewer groups";
  throw new CurvatureRoomError(
    `laplace: ${structure} over ${parameters.toLocaleString("en")} parameters takes ${bytesText(bytes)} (at most ${bytesText(maxBytes)}). ${instead}; or raise the limit.`,
  );
}

/**
 * Throws InputError where K rows of a block's Jacobian are more than `most` bytes, what a kernel can be given at once.
 */
export function expectBuffers(
  most: number,
  blocks: readonly { slices: readonly Pick<Slice, "parameters">[]; size: number }[],
  K: number,
): void {
  for (const { slices, size } of blocks) {
    const [first] = slices;
    const bytes = 4 * K * size;
    if (bytes <= most) continue;
    throw new InputError(
      `laplace: the Jacobian of ${K} logits in ${first && tensorNames(first)} takes ${bytesText(bytes)} (at most ${bytesText(most)} on this device). Leave its group out.`,
    );
  }
}
