/** @file H of the last layer, exact and in float64 on the host: its Jacobian is its input. The formulas: ggn.ts. */
import { Matrix } from "ml-matrix";
import { InputError } from "../errors.ts";
import {
  type Curvature,
  diagonalCurvature,
  fullCurvature,
  kroneckerCurvature,
  type LayerShape,
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
  let sums: { H: LastLayerCurvature; layer: LastLayer } | undefined;
  for (const [done, batch] of batches.entries()) {
    const layer = await readLastLayer(model, batch);
    if (!sums) {
      expectLayer(model, layer, options);
      sums = { H: new LastLayerCurvature(structure, layer.shape), layer };
    }
    sums.H.add(layer);
    progress?.(done + 1);
  }
  const { H, layer } = sums as NonNullable<typeof sums>;
  const slices = slicesOf(layer);
  const center = [await readSlices(model.theta, slices)];
  const blocks = [{ slices, curvature: H.curvature(), layer: layer.shape }];
  return { structure, blocks, center, n: H.examples, lastLayer: true, left: [] };
}

/** What is known of some examples' last layer: its inputs, logits, and how those hang on its outputs. */
export type Activations = Pick<LastLayer, "n" | "K" | "input" | "logits" | "jacobian">;

/** H of a last layer, added up example by example. */
export class LastLayerCurvature {
  readonly #structure: Structure;
  readonly #shape: LayerShape;
  /** full: H. diagonal: its diagonal as one row. kronecker: G in H's place. */
  readonly #H: Float64Array[];
  readonly #A: Float64Array[];
  #examples = 0;

  constructor(structure: Structure, shape: LayerShape) {
    this.#structure = structure;
    this.#shape = shape;
    const m = width(shape);
    const rows = structure === "full" ? parametersOf(shape) : structure === "diagonal" ? 1 : shape.outputs;
    this.#H = zeros(rows, structure === "diagonal" ? parametersOf(shape) : rows);
    this.#A = zeros(structure === "kronecker" ? m : 0, m);
  }

  get examples(): number {
    return this.#examples;
  }

  add(seen: Activations): void {
    const shaped = { ...seen, shape: this.#shape };
    for (let row = 0; row < seen.n; row++) addExample(this.#structure, this.#H, this.#A, shaped, row);
    this.#examples += seen.n;
  }

  curvature(): Curvature {
    const [structure, H, shape] = [this.#structure, this.#H, this.#shape];
    if (structure === "full") return fullCurvature(symmetric(H), shape);
    if (structure === "diagonal") return diagonalCurvature(Float32Array.from(H[0]!), shape);
    return kroneckerCurvature(symmetric(this.#A).div(this.#examples), symmetric(H), shape);
  }
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

type ShapedActivations = Activations & { shape: LayerShape };

/** Adds one example's (J_outᵀ (diag p − ppᵀ) J_out) ⊗ x̃x̃ᵀ, as far as the structure keeps it; lower triangles. */
function addExample(
  structure: Structure,
  H: Float64Array[],
  A: Float64Array[],
  seen: ShapedActivations,
  row: number,
): void {
  const { shape } = seen;
  const { inputs, outputs } = shape;
  const x = new Float64Array(width(shape)).fill(1);
  x.set(seen.input.subarray(row * inputs, (row + 1) * inputs));
  const M = outputHessian(seen, row);
  for (let o = 0; o < outputs; o++) {
    if (structure === "full") {
      for (let i = 0; i < x.length; i++) addRow(H[placeOf(shape, o, i)]!, shape, M.subarray(o * outputs), o, i, x);
    } else if (structure === "diagonal") {
      for (let i = 0; i < x.length; i++) H[0]![placeOf(shape, o, i)]! += M[o * outputs + o]! * x[i]! ** 2;
    } else {
      for (let q = 0; q <= o; q++) H[o]![q]! += M[o * outputs + q]!;
    }
  }
  for (let i = 0; i < A.length; i++) for (let j = 0; j <= i; j++) A[i]![j]! += x[i]! * x[j]!;
}

/** Of a full H the row of W̃[o, i], up to its diagonal; `weights`: of output o with every other. The biases are H's last rows. */
function addRow(
  row: Float64Array,
  { inputs, outputs }: LayerShape,
  weights: Float64Array,
  o: number,
  i: number,
  x: Float64Array,
): void {
  const ofBias = i === inputs;
  for (let q = 0; q < (ofBias ? outputs : o + 1); q++) {
    const factor = weights[q]! * x[i]!;
    const end = q < o || ofBias ? inputs : i + 1;
    for (let j = 0; j < end; j++) row[q * inputs + j]! += factor * x[j]!;
    if (ofBias && q <= o) row[outputs * inputs + q]! += factor;
  }
}

/** J_outᵀ (diag p − ppᵀ) J_out of one example, [out, out]. */
function outputHessian({ logits, jacobian, shape: { outputs }, K }: ShapedActivations, row: number): Float64Array {
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
