/** @file The three structures of a curvature and their Gaussians, against Λ written out in full and inverted (checks 13, 14). */
import { determinant, inverse, Matrix } from "ml-matrix";
import { describe, expect, test } from "vitest";
import { InputError } from "../../src/errors.ts";
import {
  type BlockGaussian,
  curvatureOf,
  diagonalCurvature,
  fullCurvature,
  kroneckerCurvature,
  type LayerShape,
  numbersOf,
  parametersOf,
  placeOf,
  width,
} from "../../src/posterior/curvature.ts";
import { curvatureBytes, expectBuffers, expectRoom } from "../../src/posterior/room.ts";
import { randn } from "../kernels/harness.ts";

const SHAPE: LayerShape = { inputs: 3, outputs: 2, bias: true };
const P = parametersOf(SHAPE);

/** A random positive definite matrix. */
function definite(seed: number, n: number): Matrix {
  const R = new Matrix(n, n);
  randn(seed, n * n).forEach((x, i) => {
    R.set(Math.floor(i / n), i % n, x);
  });
  const S = R.mmul(R.transpose());
  return Matrix.add(S, S.transpose()).div(2);
}

/** (A ⊗ G)[(o, i), (q, j)] = G[o, q] A[i, j] in the block's order. */
function kroneckerProduct(A: Matrix, G: Matrix): Matrix {
  const H = new Matrix(P, P);
  for (let o = 0; o < SHAPE.outputs; o++)
    for (let i = 0; i < width(SHAPE); i++)
      for (let q = 0; q < SHAPE.outputs; q++)
        for (let j = 0; j < width(SHAPE); j++)
          H.set(placeOf(SHAPE, o, i), placeOf(SHAPE, q, j), G.get(o, q) * A.get(i, j));
  return H;
}

/** Everything that a Gaussian says, against Λ itself, inverted by elimination. */
function expectGaussian(gaussian: BlockGaussian, precision: Matrix): void {
  const near = (a: number, b: number) => expect(Math.abs(a - b)).toBeLessThan(1e-9 * (1 + Math.abs(b)));
  const covariance = inverse(precision);
  near(gaussian.logDet, Math.log(determinant(precision)));
  near(gaussian.traceInverse(), covariance.trace());
  // The draws of the unit vectors are the columns of a root R, RRᵀ = Λ⁻¹.
  const R = new Matrix(P, P);
  for (let c = 0; c < P; c++) {
    const column = gaussian.draw(Float64Array.from({ length: P }, (_, i) => (i === c ? 1 : 0)));
    column.forEach((value, r) => {
      R.set(r, c, value);
    });
  }
  const product = R.mmul(R.transpose());
  for (let r = 0; r < P; r++) for (let c = 0; c < P; c++) near(product.get(r, c), covariance.get(r, c));
  const g = randn(77, P);
  const solved = gaussian.solve(Float64Array.from(g));
  covariance
    .mmul(Matrix.columnVector([...g]))
    .to1DArray()
    .forEach((value, i) => {
      near(solved[i]!, value);
    });
  const x = [0.3, -1.2, 2];
  const found = gaussian.outputCovariance(x);
  for (let o = 0; o < 2; o++) {
    for (let q = 0; q < 2; q++) {
      let sum = 0;
      for (const [i, a] of [...x, 1].entries())
        for (const [j, b] of [...x, 1].entries())
          sum += a * b * covariance.get(placeOf(SHAPE, o, i), placeOf(SHAPE, q, j));
      near(found[o * 2 + q]!, sum);
    }
  }
}

const tau = 0.7;
const plus = (H: Matrix, scale: number) => Matrix.add(Matrix.mul(H, scale), Matrix.eye(P, P, tau));

describe("Λ = τI + sH (checks 13 and 14)", () => {
  for (const scale of [1, 0.25]) {
    test(`full, s = ${scale}`, () => {
      const H = definite(1, P);
      expectGaussian(fullCurvature(H, SHAPE).gaussian(tau, scale, "head"), plus(H, scale));
    });

    test(`diagonal, s = ${scale}`, () => {
      const h = Float64Array.from(randn(2, P), Math.abs);
      const H = Matrix.diag([...h]);
      expectGaussian(diagonalCurvature(h, SHAPE).gaussian(tau, scale, "head"), plus(H, scale));
    });

    test(`kronecker, s = ${scale}: τ is added exactly`, () => {
      const [A, G] = [definite(3, width(SHAPE)), definite(4, SHAPE.outputs)];
      const H = kroneckerProduct(A, G);
      const gaussian = kroneckerCurvature(A, G, SHAPE).gaussian(tau, scale, "head");
      expectGaussian(gaussian, plus(H, scale));
    });
  }

  test("a curvature made again from its numbers is the same to the last bit", () => {
    const [A, G] = [definite(3, width(SHAPE)), definite(4, SHAPE.outputs)];
    const z = Float64Array.from(randn(8, P));
    const x = randn(9, SHAPE.inputs);
    for (const [structure, made] of [
      ["full", fullCurvature(definite(1, P), SHAPE)],
      ["diagonal", diagonalCurvature(Float32Array.from(randn(2, P), Math.abs), SHAPE)],
      ["kronecker", kroneckerCurvature(A, G, SHAPE)],
    ] as const) {
      const numbers = made.numbers();
      const lengths = Object.entries(numbers).map(([name, values]) => [name, values.length]);
      expect(Object.fromEntries(lengths)).toEqual(numbersOf(structure, P, SHAPE));
      const [a, b] = [made, curvatureOf(structure, numbers, SHAPE)].map((one) => one.gaussian(tau, 0.5, "head"));
      expect(b?.logDet).toBe(a?.logDet);
      expect(b?.draw(z)).toEqual(a?.draw(z));
      expect(b?.outputCovariance(x)).toEqual(a?.outputCovariance(x));
    }
  });

  test("a precision for every parameter: full and diagonal take it, Kronecker factors do not", () => {
    const H = definite(1, P);
    const h = Float64Array.from(randn(2, P), Math.abs);
    const t = Float64Array.from(randn(6, P), (x) => x * x + 0.1);
    const prior = Matrix.mul(Matrix.diag([...t]), tau);
    const full = fullCurvature(H, SHAPE).gaussian(tau, 0.5, "head", t);
    expectGaussian(full, Matrix.add(prior, Matrix.mul(H, 0.5)));
    const diagonal = diagonalCurvature(h, SHAPE).gaussian(tau, 0.5, "head", t);
    expectGaussian(diagonal, Matrix.add(prior, Matrix.mul(Matrix.diag([...h]), 0.5)));
    const inverted = inverse(Matrix.add(prior, Matrix.mul(H, 0.5)));
    const weighted = t.reduce((sum, ti, i) => sum + ti * inverted.get(i, i), 0);
    expect(full.traceInverse(t)).toBeCloseTo(weighted, 9);
    expect(diagonal.traceInverse(t)).toBeCloseTo(
      t.reduce((sum, ti, i) => sum + ti / (tau * ti + 0.5 * h[i]!), 0),
      9,
    );
    const kronecker = kroneckerCurvature(definite(3, width(SHAPE)), definite(4, SHAPE.outputs), SHAPE);
    expect(() => kronecker.gaussian(tau, 1, "layer.2", t)).toThrow(
      /prior of layer\.2 has a precision for every parameter/,
    );
  });

  test("a singular H is made definite by any τ > 0", () => {
    const v = Matrix.columnVector([1, -1, 0, 2, 0, 0, 1, 0]);
    const H = v.mmul(v.transpose());
    expect(fullCurvature(H).gaussian(1e-3, 1, "head").logDet).toBeCloseTo(7 * Math.log(1e-3) + Math.log(7.001), 9);
  });
});

describe("what is refused", () => {
  const v = Matrix.columnVector([1, -1, 0, 2, 0, 0, 1, 0]);
  const rankOne = v.mmul(v.transpose());

  test("a precision that is not positive definite: the group, its smallest eigenvalue, what to do", () => {
    expect(() => fullCurvature(rankOne).gaussian(0, 1, "head")).toThrow(
      /precision of head is not positive definite \(smallest eigenvalue -?\d.*e-\d\d?.*, prior precision 0\)\. Give head a prior precision above 0/,
    );
    const indefinite = Matrix.add(rankOne, Matrix.eye(P, P, -2));
    // v is an eigenvector of 7 − 2, all else −2; with τ = ½ that is −1.5.
    expect(() => fullCurvature(indefinite).gaussian(0.5, 1, "layer.3")).toThrow(
      /of layer\.3 .*smallest eigenvalue -1\.50, prior precision 0\.5\)\. Give layer\.3 a higher/,
    );
    expect(() => diagonalCurvature(Float64Array.of(2, 0, 1)).gaussian(0, 1, "head")).toThrow(
      /smallest eigenvalue 0\.00/,
    );
    const A = v.subMatrix(0, 3, 0, 0).mmul(v.subMatrix(0, 3, 0, 0).transpose());
    expect(() => kroneckerCurvature(A, definite(4, 2), SHAPE).gaussian(0, 1, "head")).toThrow(/not positive definite/);
    expect(kroneckerCurvature(A, definite(4, 2), SHAPE).gaussian(0.1, 1, "head").logDet).toBeGreaterThan(-25);
  });

  test("an H that is not symmetric: the group, the place, by how much", () => {
    const H = definite(3, P);
    H.set(5, 2, H.get(5, 2) + 0.25);
    H.set(7, 0, H.get(7, 0) - 0.5);
    const [a, b] = [H.get(7, 0), H.get(0, 7)];
    expect(() => fullCurvature(H).gaussian(1, 1, "layer.3")).toThrow(
      new InputError(
        `laplace: the curvature of layer.3 is not symmetric: row 7, column 0 (counted from 0) has ${a}, row 0, column 7 has ${b}, which are ${b - a} apart. Take (H + Hᵀ)/2 if that is rounding.`,
      ),
    );
    // Made again from numbers, too: those of a file.
    const numbers = { H: Float64Array.from(H.to1DArray()) };
    expect(() => curvatureOf("full", numbers, SHAPE).gaussian(1, 1, "head")).toThrow(/of head is not symmetric: row 7/);
    H.set(0, 7, Number.NaN);
    expect(() => fullCurvature(H).gaussian(1, 1, "head")).toThrow(
      "laplace: the curvature of head has NaN in row 0, column 7 (counted from 0; expected finite numbers).",
    );
  });

  test("numbers near the ends of float64: Λ overflows, or is as small as can be and still has its eigenvalue", () => {
    const overflow = /precision of head is not finite \(prior precision 1, the likelihood 1e\+300 times\)/;
    const large = Matrix.mul(rankOne, 1e10);
    expect(() => fullCurvature(large).gaussian(1, 1e300, "head")).toThrow(overflow);
    expect(() => diagonalCurvature(Float64Array.of(1, 1e10)).gaussian(1, 1e300, "head")).toThrow(overflow);
    const [A, G] = [definite(2, 4), definite(4, 2)].map((S) => Matrix.mul(S, 1e5)) as [Matrix, Matrix];
    expect(() => kroneckerCurvature(A, G, SHAPE).gaussian(1, 1e300, "head")).toThrow(overflow);
    // Its search for a shift began at 0, and never left it.
    const indefinite = Matrix.add(rankOne, Matrix.eye(P, P, -2));
    expect(() => fullCurvature(indefinite).gaussian(0, 1e-318, "head")).toThrow(/smallest eigenvalue -2\.00e-318/);
    expect(() => fullCurvature(Matrix.mul(rankOne, 0)).gaussian(0, 1, "head")).toThrow(/smallest eigenvalue 0\.00/);
  });

  test("what would not fit, with what would: 150 classes take under 100 MB, but not in full", () => {
    const many = [{ inputs: 384, outputs: 150, bias: true }];
    expect(curvatureBytes("kronecker", many)).toBeLessThan(100e6);
    expect(curvatureBytes("diagonal", many)).toBeLessThan(100e6);
    expect(() => expectRoom("kronecker", many, {})).not.toThrow();
    expect(() => expectRoom("full", many, {})).toThrow(
      "laplace: full over 57,750 parameters takes 80 GB (at most 100 MB). What fits: kronecker (4.6 MB), diagonal (0.23 MB); or raise the limit.",
    );
    expect(() => expectRoom("diagonal", many, { maxBytes: 1e5 })).toThrow(/Choose fewer groups; or raise the limit/);
    const table = { name: "bert.embeddings.word_embeddings.weight", shape: [30_522, 384], offset: 0, size: 11_720_448 };
    const blocks = [{ slices: [{ parameters: [table] }], size: 11_720_448 }];
    expect(() => expectBuffers(134_217_728, blocks, 2)).not.toThrow();
    expect(() => expectBuffers(134_217_728, blocks, 3)).toThrow(
      "laplace: the Jacobian of 3 logits in bert.embeddings.word_embeddings.weight takes 141 MB (at most 134 MB on this device). Leave its group out.",
    );
    // Two classes on MiniLM: what the default is made for.
    expect(curvatureBytes("full", [{ inputs: 384, outputs: 2, bias: true }])).toBeLessThan(15e6);
  });
});
