/** @file H of the last layer, exact and in float64 on the host: its Jacobian is its input. The formulas: ggn.ts. */
import { Matrix } from "ml-matrix";
import { InputError } from "../errors.ts";
import {
  diagonalCurvature,
  fullCurvature,
  kroneckerCurvature,
  parametersOf,
  placeOf,
  type Structure,
  width,
} from "./curvature.ts";
import { readSlices } from "./draws.ts";
import type { Ggn, GgnOptions } from "./ggn.ts";
import { type LastLayer, type LinearLayer, type LogitModel, readLastLayer, slicesOf } from "./layers.ts";
import { expectRoom } from "./room.ts";

/** H over the batches; see `ggn`. */
export async function lastLayerGgn<B>(model: LogitModel<B>, batches: readonly B[], options: GgnOptions): Promise<Ggn> {
  const { structure, progress } = options;
  let sums: { H: Float64Array[]; A: Float64Array[]; layer: LastLayer } | undefined;
  let examples = 0;
  for (const [done, batch] of batches.entries()) {
    const layer = await readLastLayer(model, batch);
    const { shape } = layer;
    if (!sums) {
      expectLayer(model, layer, options);
      const m = width(shape);
      // full: H. diagonal: its diagonal as one row. kronecker: G in H's place.
      const rows = structure === "full" ? parametersOf(shape) : structure === "diagonal" ? 1 : shape.outputs;
      const columns = structure === "diagonal" ? parametersOf(shape) : rows;
      sums = { H: zeros(rows, columns), A: zeros(structure === "kronecker" ? m : 0, m), layer };
    }
    for (let row = 0; row < layer.n; row++) addExample(structure, sums.H, sums.A, layer, row);
    examples += layer.n;
    progress?.(done + 1);
  }
  const { H, A, layer } = sums as NonNullable<typeof sums>;
  const { shape } = layer;
  const curvature =
    structure === "full"
      ? fullCurvature(symmetric(H), shape)
      : structure === "diagonal"
        ? diagonalCurvature(Float32Array.from(H[0]!), shape)
        : kroneckerCurvature(symmetric(A).div(examples), symmetric(H), shape);
  const slices = slicesOf(layer);
  const center = [await readSlices(model.theta, slices)];
  return { structure, blocks: [{ slices, curvature, layer: shape }], center, n: examples, lastLayer: true, left: [] };
}

/** The bytes of its H; throws InputError: the layer is frozen, or its H has no room. */
export function expectLayer<B>(
  { theta }: Pick<LogitModel<B>, "theta">,
  { weight, shape }: LinearLayer,
  { structure, maxBytes }: Pick<GgnOptions, "structure" | "maxBytes">,
): number {
  if (theta.isFrozen(weight)) {
    throw new InputError(`laplace: the last layer (${weight.key}) is frozen. Choose groups that learn.`);
  }
  return expectRoom(structure, [shape], { maxBytes });
}

/** Adds one example's (J_outᵀ (diag p − ppᵀ) J_out) ⊗ x̃x̃ᵀ, as far as the structure keeps it; lower triangles. */
function addExample(structure: Structure, H: Float64Array[], A: Float64Array[], layer: LastLayer, row: number): void {
  const { shape } = layer;
  const { inputs, outputs } = shape;
  const m = width(shape);
  const x = new Float64Array(m).fill(1);
  for (let i = 0; i < inputs; i++) x[i] = layer.input[row * inputs + i]!;
  const M = outputHessian(layer, row);
  for (let o = 0; o < outputs; o++) {
    if (structure === "diagonal") {
      for (let i = 0; i < m; i++) H[0]![placeOf(shape, o, i)]! += M[o * outputs + o]! * x[i]! ** 2;
      continue;
    }
    for (let q = 0; q < outputs; q++) {
      const weight = M[o * outputs + q]!;
      if (structure === "kronecker") {
        if (q <= o) H[o]![q]! += weight;
        continue;
      }
      for (let i = 0; i < m; i++) {
        const [r, factor] = [placeOf(shape, o, i), weight * x[i]!];
        for (let j = 0; j < m; j++) {
          const c = placeOf(shape, q, j);
          if (c <= r) H[r]![c]! += factor * x[j]!;
        }
      }
    }
  }
  for (let i = 0; i < A.length; i++) for (let j = 0; j <= i; j++) A[i]![j]! += x[i]! * x[j]!;
}

/** J_outᵀ (diag p − ppᵀ) J_out of one example, [out, out]. */
function outputHessian({ logits, jacobian, shape: { outputs }, K }: LastLayer, row: number): Float64Array {
  const z = logits.subarray(row * K, (row + 1) * K);
  const most = z.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const e = Float64Array.from(z, (value) => Math.exp(value - most));
  const total = e.reduce((a, b) => a + b, 0);
  const p = e.map((value) => value / total);
  const M = new Float64Array(outputs * outputs);
  for (let k = 0; k < K; k++) {
    // √p_k (e_k − p), through the Jacobian
    const v = p.map((pl, l) => Math.sqrt(p[k]!) * ((l === k ? 1 : 0) - pl));
    const g = jacobian
      ? Float64Array.from({ length: outputs }, (_, o) =>
          v.reduce((s, vl, l) => s + vl * jacobian[l]![row * outputs + o]!, 0),
        )
      : v;
    for (let o = 0; o < outputs; o++) for (let q = 0; q < outputs; q++) M[o * outputs + q]! += g[o]! * g[q]!;
  }
  return M;
}

function zeros(rows: number, columns: number): Float64Array[] {
  return Array.from({ length: rows }, () => new Float64Array(columns));
}

/** A symmetric matrix from its lower triangle. */
function symmetric(rows: Float64Array[]): Matrix {
  for (let r = 0; r < rows.length; r++) for (let c = 0; c < r; c++) rows[c]![r] = rows[r]![c]!;
  return new Matrix(rows as unknown as number[][]);
}
