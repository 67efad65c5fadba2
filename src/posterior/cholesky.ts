/** @file Symmetric matrices by their Cholesky factor, in float64: whether one is positive definite, solutions, least eigenvalue. */
import { CholeskyDecomposition, Matrix } from "ml-matrix";

/** max |Sᵢⱼ|; NaN where one is. */
export function largestOf(S: Matrix): number {
  let largest = 0;
  for (let r = 0; r < S.rows; r++)
    for (let c = 0; c < S.columns; c++) largest = Math.max(largest, Math.abs(S.get(r, c)));
  return largest;
}

/** L with LLᵀ = S, or undefined where S is not positive definite by more than rounding. */
export function choleskyOf(S: Matrix): Matrix | undefined {
  const decomposition = new CholeskyDecomposition(S);
  if (!decomposition.isPositiveDefinite()) return undefined;
  const L = decomposition.lowerTriangularMatrix;
  let largest = 0;
  let smallest = Number.POSITIVE_INFINITY;
  for (let i = 0; i < S.rows; i++) {
    largest = Math.max(largest, S.get(i, i));
    smallest = Math.min(smallest, L.get(i, i) ** 2);
  }
  return smallest > roundingOf(S.rows, largest) ? L : undefined;
}

/** What is left of a 0 after sums of n numbers of this size. */
export const roundingOf = (n: number, largest: number): number => 4 * n * Number.EPSILON * largest;

/** x ← L⁻¹x, where x is 0 before `from`. */
export function solveLower(L: Matrix, x: Float64Array, from = 0): Float64Array {
  for (let r = from; r < x.length; r++) {
    let sum = x[r]!;
    for (let c = from; c < r; c++) sum -= L.get(r, c) * x[c]!;
    x[r] = sum / L.get(r, r);
  }
  return x;
}

/** x ← L⁻ᵀx */
export function solveUpper(L: Matrix, x: Float64Array): Float64Array {
  for (let r = x.length - 1; r >= 0; r--) {
    const value = x[r]! / L.get(r, r);
    x[r] = value;
    for (let c = 0; c < r; c++) x[c] = x[c]! - L.get(r, c) * value;
  }
  return x;
}

/** Inverse iteration just below the spectrum: a few triangular solves, where all eigenvalues would take minutes. */
export function smallestEigenvalue(precision: Matrix): number {
  const n = precision.rows;
  const largest = largestOf(precision);
  if (largest === 0) return 0;
  // Of numbers near the smallest that there are, a share would be 0, and a shift by it none: so S has 1 as its largest.
  const S = new Matrix(n, n);
  for (let r = 0; r < n; r++) for (let c = 0; c < n; c++) S.set(r, c, precision.get(r, c) / largest);
  // At n the shifted S is positive definite whatever S is (Gershgorin), so the search ends.
  for (let shift = 1e-9 * n; ; shift *= 4) {
    const L = choleskyOf(Matrix.add(S, Matrix.eye(n, n, shift)));
    if (!L) continue;
    let v: Float64Array = Float64Array.from({ length: n }, (_, i) => 1 + (i % 7) / 7);
    let value = 0;
    for (let round = 0; round < 60; round++) {
      v = solveUpper(L, solveLower(L, v));
      const norm = Math.hypot(...v);
      v = v.map((x) => x / norm);
      value = rayleigh(S, v);
    }
    return largest * value;
  }
}

function rayleigh(S: Matrix, v: Float64Array): number {
  let sum = 0;
  for (let r = 0; r < v.length; r++) for (let c = 0; c < v.length; c++) sum += v[r]! * S.get(r, c) * v[c]!;
  return sum;
}
