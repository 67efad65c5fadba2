/**
 * @file H, the curvature of the summed NLL over a block of θ, in three structures, and the Gaussian that each makes with
 * a prior: precision Λ = τI + sH, s the inverse of the likelihood's temperature (or τ·diag t + sH, for a prior that is no
 * isotropic Gaussian). All on the host in float64: what is held here decides about log |Λ| and about square roots of nearly
 * singular matrices. H is found once; τ and s come after it.
 *   full       H itself; Λ = LLᵀ by Cholesky
 *   diagonal   its diagonal
 *   kronecker  A ⊗ G for a linear layer, A of its inputs, G of its outputs' gradients; by the eigenvectors of both,
 *              Λ⁻¹ = (U_A ⊗ U_G) diag(1 / (τ + s·aᵢgⱼ)) (U_A ⊗ U_G)ᵀ, so that τ is added without an approximation
 *              (Ritter, Botev and Barber, "A scalable Laplace approximation for neural networks", 2018).
 * A block's numbers stand as in θ: a layer's weight [out, in] row by row, then its bias [out].
 */
import { EigenvalueDecomposition, Matrix } from "ml-matrix";
import { InputError } from "../errors.ts";
import { choleskyOf, largestOf, roundingOf, smallestEigenvalue, solveLower, solveUpper } from "./cholesky.ts";

export type Structure = "full" | "diagonal" | "kronecker";

/** A linear layer, seen as W̃x̃ with x̃ = (x, 1) where it has a bias. */
export interface LayerShape {
  inputs: number;
  outputs: number;
  bias: boolean;
}

/** Length of x̃. */
export const width = ({ inputs, bias }: LayerShape): number => inputs + (bias ? 1 : 0);
export const parametersOf = (shape: LayerShape): number => shape.outputs * width(shape);

/** Where W̃[o, i] stands in the block. */
export function placeOf({ inputs, outputs }: LayerShape, o: number, i: number): number {
  return i < inputs ? o * inputs + i : outputs * inputs + o;
}

/** N(θ̂, Λ⁻¹) over a block. */
export interface BlockGaussian {
  /** log |Λ| */
  readonly logDet: number;
  /** Σ tᵢ (Λ⁻¹)ᵢᵢ, [size]; tr Λ⁻¹ without t. */
  traceInverse(t?: Float64Array): number;
  /** A square root of Λ⁻¹ times z: z ~ N(0, I) gives a draw's distance from θ̂. z, result [size]. */
  draw(z: Float64Array): Float64Array;
  /** Λ⁻¹g; g, result [size]. */
  solve(g: Float64Array): Float64Array;
  /** Covariance of W̃x̃ under the Gaussian, [out, out]; x [in]. Of a linear layer only. */
  outputCovariance(x: ArrayLike<number>): Float64Array;
}

export interface Curvature {
  readonly size: number;
  /**
   * The Gaussian of Λ = τ·diag t + sH; without t, [size], of τI + sH. Throws InputError, in the name of `group`: an H that
   * is not symmetric (where, by how much) or not finite, a Λ that overflows or is not positive definite (its smallest
   * eigenvalue), a t where the structure cannot take one.
   */
  gaussian(tau: number, scale: number, group: string, t?: Float64Array): BlockGaussian;
  /** What it is made of, by name: `curvatureOf` makes it again. Matrices row by row. */
  numbers(): CurvatureNumbers;
}

/** H of `full`, h of `diagonal`; of `kronecker` the eigenvalues and eigenvectors of A (inputs) and G (outputs). */
export type CurvatureNumbers = Readonly<Record<string, Float32Array | Float64Array>>;

/** The names of a structure's numbers and how many there are of each. */
export function numbersOf(structure: Structure, size: number, shape?: LayerShape): Readonly<Record<string, number>> {
  if (structure === "full") return { H: size * size };
  if (structure === "diagonal") return { h: size };
  const [m, outputs] = shape ? [width(shape), shape.outputs] : [0, 0];
  return {
    "inputs.values": m,
    "inputs.vectors": m * m,
    "outputs.values": outputs,
    "outputs.vectors": outputs * outputs,
  };
}

/** The curvature that has these numbers, to the last bit. Of kronecker `shape` must be there. */
export function curvatureOf(structure: Structure, numbers: CurvatureNumbers, shape?: LayerShape): Curvature {
  const square = (name: string) => {
    const values = numbers[name] as Float64Array;
    const n = Math.sqrt(values.length);
    return Matrix.from1DArray(n, n, values as unknown as number[]);
  };
  if (structure === "full") return fullCurvature(square("H"), shape);
  if (structure === "diagonal") return diagonalCurvature(numbers.h as Float64Array, shape);
  const spectrum = (name: string) => ({
    values: Array.from(numbers[`${name}.values`] as Float64Array),
    vectors: square(`${name}.vectors`),
  });
  return kroneckerOf(spectrum("inputs"), spectrum("outputs"), expectLayer(shape));
}

// ---- full

/** H [P, P], of a layer if `outputCovariance` is wanted. */
export function fullCurvature(H: Matrix, shape?: LayerShape): Curvature {
  const P = H.rows;
  return {
    size: P,
    numbers: () => ({ H: Float64Array.from(H.to1DArray()) }),
    gaussian(tau, scale, group, t) {
      expectSymmetric(H, group);
      const precision = Matrix.mul(H, scale);
      for (let i = 0; i < P; i++) precision.set(i, i, precision.get(i, i) + tau * (t?.[i] ?? 1));
      if (!(largestOf(precision) < Number.POSITIVE_INFINITY)) throw overflows(group, tau, scale);
      const L = choleskyOf(precision);
      if (!L) throw notPositiveDefinite(group, tau, smallestEigenvalue(precision));
      let logDet = 0;
      for (let i = 0; i < P; i++) logDet += 2 * Math.log(L.get(i, i));
      return {
        logDet,
        traceInverse(t) {
          // Λ⁻¹ = L⁻ᵀL⁻¹: element c of its diagonal is the square of L⁻¹'s column c.
          let trace = 0;
          for (let c = 0; c < P; c++) {
            const column = new Float64Array(P);
            column[c] = 1;
            solveLower(L, column, c);
            for (let r = c; r < P; r++) trace += column[r]! ** 2 * (t?.[c] ?? 1);
          }
          return trace;
        },
        draw: (z) => solveUpper(L, Float64Array.from(z)),
        solve: (g) => solveUpper(L, solveLower(L, Float64Array.from(g))),
        outputCovariance(x) {
          const layer = expectLayer(shape);
          const roots = Array.from({ length: layer.outputs }, (_, o) => {
            const column = new Float64Array(P);
            for (let i = 0; i < width(layer); i++) column[placeOf(layer, o, i)] = i < layer.inputs ? x[i]! : 1;
            return solveLower(L, column, o * layer.inputs);
          });
          return gram(roots);
        },
      };
    },
  };
}

/** Throws InputError where H is not its own transpose, or has a number that is not finite. */
function expectSymmetric(H: Matrix, group: string): void {
  const place = (r: number, c: number) => `row ${r}, column ${c}`;
  let most = 0;
  let worst = "";
  for (let r = 0; r < H.rows; r++) {
    for (let c = 0; c <= r; c++) {
      const [a, b] = [H.get(r, c), H.get(c, r)];
      if (!Number.isFinite(a) || !Number.isFinite(b)) {
        const [bad, at] = Number.isFinite(a) ? [b, place(c, r)] : [a, place(r, c)];
        throw new InputError(
          `laplace: the curvature of ${group} has ${bad} in ${at} (counted from 0; expected finite numbers). Look for it in the gradients.`,
        );
      }
      if (!(Math.abs(a - b) > most)) continue;
      most = Math.abs(a - b);
      worst = `${place(r, c)} (counted from 0) has ${a}, ${place(c, r)} has ${b}, which are ${most} apart`;
    }
  }
  if (most === 0) return;
  throw new InputError(
    `laplace: the curvature of ${group} is not symmetric: ${worst}. Take (H + Hᵀ)/2 if that is rounding.`,
  );
}

// ---- diagonal

/**
 * The diagonal of H, [size]; of a layer if `outputCovariance` is wanted. Of an encoder these are millions of numbers: they
 * may be float32, as the device sums them, and Λ is never written down.
 */
export function diagonalCurvature(h: Float32Array | Float64Array, shape?: LayerShape): Curvature {
  return {
    size: h.length,
    numbers: () => ({ h }),
    gaussian(tau, scale, group, t) {
      const lambda = (i: number) => tau * (t?.[i] ?? 1) + scale * h[i]!;
      const sum = (f: (i: number) => number) => {
        let total = 0;
        for (let i = 0; i < h.length; i++) total += f(i);
        return total;
      };
      let [smallest, largest] = [Number.POSITIVE_INFINITY, 0];
      for (let i = 0; i < h.length; i++) {
        smallest = Math.min(smallest, lambda(i));
        largest = Math.max(largest, lambda(i));
      }
      if (!(largest < Number.POSITIVE_INFINITY)) throw overflows(group, tau, scale);
      if (!(smallest > 0)) throw notPositiveDefinite(group, tau, smallest);
      return {
        logDet: sum((i) => Math.log(lambda(i))),
        traceInverse: (t) => sum((i) => (t?.[i] ?? 1) / lambda(i)),
        draw: (z) => z.map((value, i) => value / Math.sqrt(lambda(i))),
        solve: (g) => g.map((value, i) => value / lambda(i)),
        outputCovariance(x) {
          const layer = expectLayer(shape);
          const { inputs, outputs } = layer;
          const covariance = new Float64Array(outputs * outputs);
          for (let o = 0; o < outputs; o++) {
            for (let i = 0; i < width(layer); i++) {
              covariance[o * outputs + o]! += (i < inputs ? x[i]! ** 2 : 1) / lambda(placeOf(layer, o, i));
            }
          }
          return covariance;
        },
      };
    },
  };
}

// ---- kronecker

/** Λ's factors for a layer, for work that is done elsewhere. */
export interface KroneckerGaussian extends BlockGaussian {
  /** [out, out], columns are G's eigenvectors */
  readonly outputs: Matrix;
  /** [in (+1), in (+1)], columns are A's eigenvectors */
  readonly inputs: Matrix;
  /** τ + s·aᵢgⱼ, [out, in (+1)] */
  readonly eigenvalues: Float64Array;
}

export interface KroneckerCurvature extends Curvature {
  gaussian(tau: number, scale: number, group: string, t?: Float64Array): KroneckerGaussian;
}

/** H = A ⊗ G: A [in (+1), in (+1)], G [out, out], symmetric. Eigenvalues that rounding left below 0 count as 0. */
export function kroneckerCurvature(A: Matrix, G: Matrix, shape: LayerShape): KroneckerCurvature {
  return kroneckerOf(eigen(A), eigen(G), shape);
}

interface Spectrum {
  values: number[];
  /** Columns are eigenvectors. */
  vectors: Matrix;
}

function kroneckerOf(byInput: Spectrum, byOutput: Spectrum, shape: LayerShape): KroneckerCurvature {
  const m = width(shape);
  const { outputs } = shape;
  return {
    size: parametersOf(shape),
    numbers: () => ({
      "inputs.values": Float64Array.from(byInput.values),
      "inputs.vectors": Float64Array.from(byInput.vectors.to1DArray()),
      "outputs.values": Float64Array.from(byOutput.values),
      "outputs.vectors": Float64Array.from(byOutput.vectors.to1DArray()),
    }),
    gaussian(tau, scale, group, t) {
      if (t) throw noShapes(group);
      const eigenvalues = new Float64Array(outputs * m);
      for (let j = 0; j < outputs; j++) {
        for (let i = 0; i < m; i++) eigenvalues[j * m + i] = tau + scale * byInput.values[i]! * byOutput.values[j]!;
      }
      const [smallest, largest] = eigenvalues.reduce(
        ([low, high], value) => [Math.min(low, value), Math.max(high, value)] as [number, number],
        [Number.POSITIVE_INFINITY, 0] as [number, number],
      );
      if (!(largest < Number.POSITIVE_INFINITY)) throw overflows(group, tau, scale);
      if (!(smallest > roundingOf(m + outputs, largest))) throw notPositiveDefinite(group, tau, smallest);
      /** A vector of the layer as rows, [out, in (+1)]. */
      const rowsOf = (vector: ArrayLike<number>) => {
        const rows = new Matrix(outputs, m);
        for (let o = 0; o < outputs; o++) for (let i = 0; i < m; i++) rows.set(o, i, vector[placeOf(shape, o, i)]!);
        return rows;
      };
      /** Rows along the eigenvectors, each element through `f` with its eigenvalue, as a vector of the layer. */
      const fromSpectrum = (rows: Matrix, f: (x: number, eigenvalue: number) => number) => {
        for (let j = 0; j < outputs; j++)
          for (let i = 0; i < m; i++) rows.set(j, i, f(rows.get(j, i), eigenvalues[j * m + i]!));
        const W = byOutput.vectors.mmul(rows).mmul(byInput.vectors.transpose());
        const vector = new Float64Array(outputs * m);
        for (let o = 0; o < outputs; o++) for (let i = 0; i < m; i++) vector[placeOf(shape, o, i)] = W.get(o, i);
        return vector;
      };
      return {
        outputs: byOutput.vectors,
        inputs: byInput.vectors,
        eigenvalues,
        logDet: eigenvalues.reduce((sum, value) => sum + Math.log(value), 0),
        traceInverse: () => eigenvalues.reduce((sum, value) => sum + 1 / value, 0),
        draw: (z) => fromSpectrum(rowsOf(z), (x, eigenvalue) => x / Math.sqrt(eigenvalue)),
        solve(g) {
          const along = byOutput.vectors.transpose().mmul(rowsOf(g)).mmul(byInput.vectors);
          return fromSpectrum(along, (x, eigenvalue) => x / eigenvalue);
        },
        outputCovariance(x) {
          const rotated = new Float64Array(m); // U_Aᵀx̃
          for (let r = 0; r < m; r++) {
            const value = r < shape.inputs ? x[r]! : 1;
            for (let i = 0; i < m; i++) rotated[i]! += byInput.vectors.get(r, i) * value;
          }
          const roots = Array.from({ length: outputs }, () => new Float64Array(outputs)); // rows of U_G diag(√variance)
          for (let j = 0; j < outputs; j++) {
            let variance = 0;
            for (let i = 0; i < m; i++) variance += rotated[i]! ** 2 / eigenvalues[j * m + i]!;
            for (let o = 0; o < outputs; o++) roots[o]![j] = byOutput.vectors.get(o, j) * Math.sqrt(variance);
          }
          return gram(roots);
        },
      };
    },
  };
}

function eigen(S: Matrix): Spectrum {
  const { realEigenvalues, eigenvectorMatrix } = new EigenvalueDecomposition(S, { assumeSymmetric: true });
  return { values: realEigenvalues.map((value) => Math.max(0, value)), vectors: eigenvectorMatrix };
}

// ---- of all structures

/** rows·rowsᵀ, [n, n] */
function gram(rows: readonly Float64Array[]): Float64Array {
  const n = rows.length;
  const products = new Float64Array(n * n);
  for (let a = 0; a < n; a++) {
    for (let b = 0; b <= a; b++) {
      let sum = 0;
      for (let i = 0; i < rows[a]!.length; i++) sum += rows[a]![i]! * rows[b]![i]!;
      products[a * n + b] = sum;
      products[b * n + a] = sum;
    }
  }
  return products;
}

function expectLayer(shape: LayerShape | undefined): LayerShape {
  if (!shape) throw new Error("laplace: this block is not a linear layer");
  return shape;
}

/** What a Kronecker block says to a prior with a precision for every parameter. */
export function noShapes(group: string): InputError {
  return new InputError(
    `laplace: the prior of ${group} has a precision for every parameter, which Kronecker factors cannot take. Use diagonal.`,
  );
}

function overflows(group: string, tau: number, scale: number): InputError {
  return new InputError(
    `laplace: the posterior precision of ${group} is not finite (prior precision ${tau}, the likelihood ${scale} times). Take both nearer to 1.`,
  );
}

function notPositiveDefinite(group: string, tau: number, smallest: number): InputError {
  const found = `smallest eigenvalue ${smallest.toPrecision(3)}, prior precision ${tau}`;
  const cure =
    tau > 0 ? "a higher prior precision" : "a prior precision above 0: the likelihood alone leaves directions free";
  return new InputError(
    `laplace: the posterior precision of ${group} is not positive definite (${found}). Give ${group} ${cure}.`,
  );
}
