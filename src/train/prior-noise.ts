/**
 * @file Draws of a prior, θ − μ, in float64 on the host: what anchored ensembles move their centres by. A stream per slice,
 * so that a slice's numbers do not depend on which others are drawn, but for a coupled prior, where they are meant to.
 */
import { EigenvalueDecomposition, Matrix } from "ml-matrix";
import type { Slice, Theta } from "../autograd/index.ts";
import { NdArray, readArray } from "../kernels/index.ts";
import type { Stream } from "../random.ts";
import { addGram } from "./lowrank.ts";
import type { Prior } from "./prior.ts";

/**
 * θ − μ of some slices, one after the other, each with 0 < `prior.precision` < ∞: a draw of the prior given that the other
 * slices lie at their means. `stream` names each slice's numbers.
 */
export async function priorNoise(
  prior: Prior,
  theta: Theta,
  slices: readonly Slice[],
  stream: (slice: Slice) => Stream,
): Promise<Float32Array> {
  const { density } = prior;
  const covered = slices.filter((slice) => density?.covers(slice));
  const shaped = density && covered.length > 0 ? await density.noise(theta, covered, stream) : [];
  const noise = new Float32Array(slices.reduce((sum, { size }) => sum + size, 0));
  let at = 0;
  for (const slice of slices) {
    const own = shaped[covered.indexOf(slice)];
    if (own) noise.set(own, at);
    else {
      const [normals, sigma] = [stream(slice), 1 / Math.sqrt(prior.precision(slice))];
      for (let i = 0; i < slice.size; i++) noise[at + i] = sigma * normals.normal();
    }
    at += slice.size;
  }
  return noise;
}

/** A vector's numbers in each of some slices. */
export function readParts(theta: Theta, vector: NdArray, slices: readonly Slice[]): Promise<Float32Array[]> {
  return Promise.all(
    slices.map(({ offset, size }) => readArray(theta.engine.gpu, new NdArray(vector.buffer, 4 * offset, [size]))),
  );
}

/**
 * P^−½ z for P = D + sign·UUᵀ over all of the slices together: with A = D^−½U and AᵀA = QΛQᵀ,
 *   P^−½ z ~ D^−½ (I + sign·AAᵀ)^−½ z = D^−½ (z + A Q diag(((1 + sign·λ)^−½ − 1)/λ) QᵀAᵀ z).
 */
export function coupledNormals(
  D: readonly ArrayLike<number>[],
  columns: readonly (readonly ArrayLike<number>[])[],
  sign: 1 | -1,
  z: readonly Float64Array[],
): Float64Array[] {
  const k = columns.length;
  const G = Matrix.zeros(k, k);
  const projected = new Array<number>(k).fill(0);
  for (const [s, d] of D.entries()) {
    const parts = columns.map((column) => column[s] as ArrayLike<number>);
    addGram(G, parts, d);
    for (const [j, u] of parts.entries())
      for (let i = 0; i < d.length; i++)
        projected[j] = (projected[j] ?? 0) + ((u[i] as number) / Math.sqrt(d[i] as number)) * ((z[s] as Float64Array)[i] as number); // biome-ignore format: one sum
  }
  const c = new Array<number>(k).fill(0);
  if (k > 0) {
    const { eigenvectorMatrix: Q, realEigenvalues } = new EigenvalueDecomposition(G, { assumeSymmetric: true });
    for (const [q, value] of realEigenvalues.entries()) {
      const lambda = Math.max(0, value);
      const factor = lambda > 1e-12 ? ((1 + sign * lambda) ** -0.5 - 1) / lambda : -sign / 2;
      let along = 0;
      for (let j = 0; j < k; j++) along += Q.get(j, q) * (projected[j] as number);
      for (let j = 0; j < k; j++) c[j] = (c[j] as number) + factor * along * Q.get(j, q);
    }
  }
  return D.map((d, s) =>
    (z[s] as Float64Array).map((x, i) => {
      const root = Math.sqrt(d[i] as number);
      let sum = x;
      for (let j = 0; j < k; j++) sum += ((columns[j]?.[s]?.[i] as number) / root) * (c[j] as number);
      return sum / root;
    }),
  );
}

/** A draw of Γ(shape, 1), shape ≥ ½ (Marsaglia and Tsang, "A simple method for generating gamma variables", 2000). */
export function gamma(stream: Stream, shape: number): number {
  if (shape < 1) return gamma(stream, shape + 1) * (1 - stream.uniform()) ** (1 / shape);
  const d = shape - 1 / 3;
  const c = 1 / Math.sqrt(9 * d);
  for (;;) {
    const x = stream.normal();
    const v = (1 + c * x) ** 3;
    if (v > 0 && Math.log(1 - stream.uniform()) < 0.5 * x * x + d - d * v + d * Math.log(v)) return d * v;
  }
}
