/**
 * @file Layer normalisation over the last axis (Ba, Kiros, Hinton, "Layer Normalization", 2016).
 * Shapes: x [N, C], gamma and beta [C] → y [N, C]. The row statistics are kept for the backward.
 */
import { f32, type Gpu, grid } from "../gpu/index.ts";
import { empty, expectShape, type NdArray } from "./array.ts";

export interface LayerNormResult {
  y: NdArray;
  /** [N, 2]: mean and 1/√(variance + eps) of each row. */
  stats: NdArray;
}

/** y = gamma ⊙ (x − mean)·rstd + beta, row by row, with the biased variance. */
export function layerNorm(gpu: Gpu, x: NdArray, gamma: NdArray, beta: NdArray, eps: number): LayerNormResult {
  const dims: Record<string, number> = {};
  expectShape("layerNorm", "x", x, "N C", dims);
  expectShape("layerNorm", "gamma", gamma, "C", dims);
  expectShape("layerNorm", "beta", beta, "C", dims);
  const [rows, c] = x.shape as [number, number];
  const y = empty(gpu, x.shape, "f32", "layerNorm");
  const stats = empty(gpu, [rows, 2], "f32", "layerNorm");
  gpu.dispatch({
    op: "layerNorm.forward",
    shader: "layernorm",
    entry: "forward",
    bindings: [x, gamma, beta, y, stats],
    params: [rows, c, f32(eps), 0],
    grid: grid(Math.ceil(rows / 64)),
  });
  return { y, stats };
}

/** The definition, in float64. */
export function layerNormReference(
  x: ArrayLike<number>,
  gamma: ArrayLike<number>,
  beta: ArrayLike<number>,
  eps: number,
): Float64Array {
  const c = gamma.length;
  const y = new Float64Array(x.length);
  for (let row = 0; row < x.length / c; row++) {
    const values = Array.from({ length: c }, (_, i) => x[row * c + i] as number);
    const mean = values.reduce((a, b) => a + b, 0) / c;
    const variance = values.reduce((a, b) => a + (b - mean) ** 2, 0) / c;
    for (let i = 0; i < c; i++) {
      y[row * c + i] =
        (gamma[i] as number) * (((values[i] as number) - mean) / Math.sqrt(variance + eps)) + (beta[i] as number);
    }
  }
  return y;
}
