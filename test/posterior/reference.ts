/** @file In float64: the Jacobian of any function of θ by central differences, and from it the dense GGN of its softmax. */
import { Matrix } from "ml-matrix";

/** ∂f/∂θ, [K, P]; the error is of the order 1e-9 for functions of order 1. */
export function jacobianOf(f: (theta: Float64Array) => ArrayLike<number>, theta: ArrayLike<number>, h = 1e-5): Matrix {
  const at = Float64Array.from(theta);
  const K = f(at).length;
  const J = new Matrix(K, at.length);
  for (let i = 0; i < at.length; i++) {
    const value = at[i]!;
    at[i] = value + h;
    const up = Float64Array.from(f(at));
    at[i] = value - h;
    const down = Float64Array.from(f(at));
    at[i] = value;
    for (let k = 0; k < K; k++) J.set(k, i, (up[k]! - down[k]!) / (2 * h));
  }
  return J;
}

export function softmaxOf(z: ArrayLike<number>): number[] {
  const most = Math.max(...Array.from(z));
  const e = Array.from(z, (value) => Math.exp(value - most));
  const total = e.reduce((a, b) => a + b, 0);
  return e.map((value) => value / total);
}

/** diag p − ppᵀ */
export function hessianOfSoftmax(logits: ArrayLike<number>): Matrix {
  const p = softmaxOf(logits);
  return new Matrix(p.map((a, i) => p.map((b, j) => (i === j ? a : 0) - a * b)));
}

/** Σₙ Jₙᵀ (diag pₙ − pₙpₙᵀ) Jₙ of n functions of θ, [P, P]. */
export function denseGgn(
  fs: readonly ((theta: Float64Array) => ArrayLike<number>)[],
  theta: ArrayLike<number>,
): Matrix {
  const H = new Matrix(theta.length, theta.length);
  for (const f of fs) {
    const J = jacobianOf(f, theta);
    H.add(
      J.transpose()
        .mmul(hessianOfSoftmax(f(Float64Array.from(theta))))
        .mmul(J),
    );
  }
  return H;
}
