/**
 * @file Gaussians whose precision or covariance is diagonal plus a product of rank k, in float64 on the host: their
 * determinants and densities cost O(dk²) by Woodbury's identity and the determinant lemma, where a dense matrix would
 * take O(d³). With D = diag(d), U [d, k] and M = I + UᵀD⁻¹U [k, k]:
 *   (D + UUᵀ)⁻¹ = D⁻¹ − D⁻¹U M⁻¹ UᵀD⁻¹,   log |D + UUᵀ| = Σ log dᵢ + log |M|
 */
import { CholeskyDecomposition, Matrix } from "ml-matrix";
import { InputError } from "../errors.ts";

/** What D + UUᵀ is: the precision (as a Fisher information gives it) or the covariance (as SWAG gives it). */
export type LowRankForm = "precision" | "covariance";

/**
 * log N(Δ; 0, ·), nats, with its constant, for D = `diagonal` > 0 and U's columns. RangeError: a diagonal that is not
 * above 0.
 */
export function lowRankLogDensity(
  delta: ArrayLike<number>,
  diagonal: ArrayLike<number>,
  columns: readonly ArrayLike<number>[],
  form: LowRankForm,
): number {
  const size = delta.length;
  let [square, logDet] = [0, 0];
  for (let i = 0; i < size; i++) {
    const [x, d] = [delta[i] as number, diagonal[i] as number];
    if (!(d > 0)) throw new RangeError(`lowRankLogDensity: ${d} at ${i} (expected numbers above 0)`);
    square += form === "precision" ? d * x * x : (x * x) / d;
    logDet += Math.log(d);
  }
  const L = choleskyOf(addIdentity(gram(columns, diagonal)));
  logDet += 2 * logTrace(L);
  const c = columns.map((u) => {
    let sum = 0;
    for (let i = 0; i < size; i++)
      sum += ((u[i] as number) * (delta[i] as number)) / (form === "precision" ? 1 : (diagonal[i] as number));
    return sum;
  });
  if (form === "precision") square += c.reduce((sum, x) => sum + x * x, 0);
  else square -= solveLower(L, c).reduce((sum, x) => sum + x * x, 0);
  return -0.5 * (square + (form === "precision" ? -logDet : logDet) + size * Math.log(2 * Math.PI));
}

/** UᵀD⁻¹U, [k, k]. */
function gram(columns: readonly ArrayLike<number>[], diagonal: ArrayLike<number>): Matrix {
  const G = Matrix.zeros(columns.length, columns.length);
  addGram(G, columns, diagonal);
  return G;
}

/** G ← G + UᵀD⁻¹U over some elements. */
export function addGram(G: Matrix, columns: readonly ArrayLike<number>[], diagonal: ArrayLike<number>): void {
  for (const [a, u] of columns.entries()) {
    for (let b = 0; b <= a; b++) {
      const v = columns[b] as ArrayLike<number>;
      let sum = 0;
      for (let i = 0; i < diagonal.length; i++) sum += ((u[i] as number) * (v[i] as number)) / (diagonal[i] as number);
      G.set(a, b, G.get(a, b) + sum);
      if (a !== b) G.set(b, a, G.get(a, b));
    }
  }
}

/** I + sign·G. */
export function addIdentity(G: Matrix, sign: 1 | -1 = 1): Matrix {
  return Matrix.add(Matrix.eye(G.rows), Matrix.mul(G, sign));
}

/** log |S| of a symmetric S. InputError: it is not positive definite. */
export function logDeterminant(S: Matrix): number {
  return 2 * logTrace(choleskyOf(S));
}

/**
 * The precision of a covariance D + VVᵀ is D⁻¹ − WWᵀ with W = D⁻¹V L⁻ᵀ and LLᵀ = I + VᵀD⁻¹V; this gives L⁻¹, [k, k], so
 * that row i of W is L⁻¹ times row i of D⁻¹V.
 */
export function inverseFactor(G: Matrix): Matrix {
  const L = choleskyOf(addIdentity(G));
  const inverse = Matrix.zeros(L.rows, L.rows);
  for (let j = 0; j < L.rows; j++) {
    const column = solveLower(
      L,
      Array.from({ length: L.rows }, (_, i) => (i === j ? 1 : 0)),
    );
    for (const [i, x] of column.entries()) inverse.set(i, j, x);
  }
  return inverse;
}

function choleskyOf(S: Matrix): Matrix {
  if (S.rows === 0) return S;
  const decomposition = new CholeskyDecomposition(S);
  // I + UᵀD⁻¹U is, whatever U; but where its columns are as good as equal and large, rounding loses the I.
  if (!decomposition.isPositiveDefinite()) {
    throw new InputError("prior: its diagonal and factors are not positive definite in float64: the factors are too large and too much alike. Make them of more batches, or of a lower rank."); // biome-ignore format: one sentence
  }
  return decomposition.lowerTriangularMatrix;
}

/** ½ log |LLᵀ|. */
function logTrace(L: Matrix): number {
  let sum = 0;
  for (let i = 0; i < L.rows; i++) sum += Math.log(L.get(i, i));
  return sum;
}

/** L⁻¹b. */
function solveLower(L: Matrix, b: readonly number[]): number[] {
  const x: number[] = [];
  for (let i = 0; i < L.rows; i++) {
    let sum = b[i] as number;
    for (let j = 0; j < i; j++) sum -= L.get(i, j) * (x[j] as number);
    x.push(sum / L.get(i, i));
  }
  return x;
}
