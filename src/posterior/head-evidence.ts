/**
 * @file The precision of the head's prior, learned: MacKay's fixed point for a linear head on the vectors that the encoder
 * makes. On fixed vectors the log-posterior of a linear head is concave, so Newton's method finds its
 * maximum, θ ← θ − Λ⁻¹∇ with Λ = τI + H, and MacKay's fixed point (evidence.ts) asks for that maximum at one τ after
 * another. One pass of the encoder; the rest is float64 on the host.
 *
 * Adding a vector to the rows of all K classes changes no probability. In coordinates Qθ, Q orthogonal with its last row
 * constant, that direction has H = 0 and stays at the prior's mean, so the work is on the K − 1 others.
 *
 * It is not quite the evidence's maximum: H falls where logits grow, which the fixed point leaves out, so it lies above, and on
 * vectors that explain nearly every label far above. The labels helped to make the vectors, unless the encoder was frozen:
 * this evidence compares precisions of the head, not encoders. (MacKay, "The evidence framework applied to classification networks", 1992.)
 */
import { type Example, type PackedBatch, packBatches } from "../data/batches.ts";
import { InputError } from "../errors.ts";
import { EVALUATION_BATCH } from "../train/evaluate.ts";
import type { LogPosterior } from "../train/objective.ts";
import { type BlockGaussian, type LayerShape, parametersOf, placeOf, width } from "./curvature.ts";
import { readSlices, writeSlices } from "./draws.ts";
import { type Evidence, logEvidence, maximiseEvidence } from "./evidence.ts";
import { expectLayer, LastLayerCurvature } from "./ggn-last.ts";
import { type LastLayer, type LogitModel, readLastLayer, slicesOf } from "./layers.ts";
import { expectRoom } from "./room.ts";

/** Newton steps at one τ, of which a handful do. */
const STEPS = 100;

/** Nats of the log-posterior that a step must promise to be worth taking. */
const ENOUGH = 1e-6;

/** Share of a Newton step below which there is nothing to be found along it but rounding. */
const LEAST_SHARE = 1e-9;

export interface HeadEvidence {
  /** τ: the fixed point, or where the search stood when it ended. */
  precision: number;
  /** log P(labels | vectors) at that τ, and what it is made of. */
  evidence: Evidence;
  rounds: number;
  /** False: the search ended before τ stood, as where the data ask for no distance from the prior's mean at all. */
  converged: boolean;
}

export interface HeadEvidenceOptions {
  /** τ to begin with. Default 1. */
  start?: number | undefined;
  /** τ that are tried at most; default 100. With 1 the evidence is of `start`. */
  rounds?: number | undefined;
  /** Most memory for H; default 100 MB. */
  maxBytes?: number | undefined;
  /** Hears how many of the batches of 32 the encoder has seen. */
  progress?: ((done: number) => void) | undefined;
}

/**
 * Finds the precision and leaves the last layer of θ at its maximum under it; the prior says the mean. Throws InputError: no data,
 * an example without a label, a last layer that is frozen, has something above it, or is too large for its H.
 */
export async function learnHeadPrecision(
  { model, prior }: { model: LogitModel<PackedBatch> } & Pick<LogPosterior<PackedBatch>, "prior">,
  data: readonly Example[],
  { start = 1, rounds: most = 100, maxBytes, progress }: HeadEvidenceOptions = {},
): Promise<HeadEvidence> {
  const inputs: Float32Array[] = [];
  let last: LastLayer | undefined;
  for (const [done, batch] of packBatches(data, EVALUATION_BATCH).entries()) {
    last = await readLastLayer(model, batch);
    if (last.jacobian) throw new InputError("head precision: the last layer's outputs are not the logits. Give a number."); // biome-ignore format: one sentence
    inputs.push(last.input);
    progress?.(done + 1);
  }
  if (!last) throw new InputError("head precision: no data to learn it from.");
  expectLayer(model, last, { structure: "diagonal" });
  const contrasts = new Contrasts(last.shape);
  expectRoom("full", [contrasts.shape], { maxBytes });
  const labels = data.map(({ label }, i) => label ?? missingLabel(i));
  const head: Head = { contrasts, inputs, labels };
  const slices = slicesOf(last);
  const mean = await readSlices(model.theta, slices, prior.mu);
  const mu = contrasts.of(mean);
  let theta = contrasts.of(await readSlices(model.theta, slices));
  const { evidence, precisions, rounds, converged } = await maximiseEvidence(
    async ({ head: tau = start }) => {
      const maximum = maximise(head, theta, mu, tau);
      theta = maximum.theta;
      return maximum.evidence;
    },
    { head: start },
    { rounds: most, tolerance: 1e-4 },
  );
  writeSlices(model.theta, slices, contrasts.back(theta, mean));
  return { precision: precisions.head ?? start, evidence, rounds, converged };
}

function missingLabel(i: number): never {
  throw new InputError(`head precision: example ${i + 1} has no label. Give it one.`);
}

/** A head in the coordinates Qθ without the last: K − 1 contrasts of the classes, orthonormal (Helmert's). */
class Contrasts {
  /** Of the whole head. */
  readonly full: LayerShape;
  /** Of the contrasts. */
  readonly shape: LayerShape;
  /** Q without its last row, [K − 1, K] */
  readonly rows: readonly Float64Array[];
  /** ∂ logit k / ∂ contrast o = Q[o, k], of each example of a batch: K arrays [batch, K − 1]. */
  readonly jacobian: Float32Array[];

  constructor(full: LayerShape) {
    const K = full.outputs;
    this.full = full;
    this.shape = { ...full, outputs: K - 1 };
    this.rows = Array.from(
      { length: K - 1 },
      (_, o) =>
      Float64Array.from({ length: K }, (_, k) => (k > o + 1 ? 0 : (k <= o ? 1 : -(o + 1)) / Math.sqrt((o + 1) * (o + 2)))), // biome-ignore format: one row
    );
    this.jacobian = Array.from({ length: K }, (_, k) =>
      Float32Array.from({ length: EVALUATION_BATCH * (K - 1) }, (_, j) => this.rows[j % (K - 1)]![k]!),
    );
  }

  /** Of numbers of the whole head. */
  of(theta: ArrayLike<number>): Float64Array {
    const found = new Float64Array(parametersOf(this.shape));
    for (const [o, row] of this.rows.entries()) {
      for (let i = 0; i < width(this.shape); i++) {
        found[placeOf(this.shape, o, i)] = row.reduce((sum, q, k) => sum + q * theta[placeOf(this.full, k, i)]!, 0);
      }
    }
    return found;
  }

  /** The whole head with these contrasts, in the direction that they leave open as `mean` is. */
  back(theta: Float64Array, mean: ArrayLike<number>): Float32Array {
    const found = new Float32Array(parametersOf(this.full));
    const K = this.full.outputs;
    for (let i = 0; i < width(this.full); i++) {
      let level = 0;
      for (let k = 0; k < K; k++) level += mean[placeOf(this.full, k, i)]! / K;
      for (let k = 0; k < K; k++) {
        const own = this.rows.reduce((sum, row, o) => sum + row[k]! * theta[placeOf(this.shape, o, i)]!, 0);
        found[placeOf(this.full, k, i)] = level + own;
      }
    }
    return found;
  }
}

/** The head's data: its inputs, batch by batch [n, inputs], and a label for every row. */
interface Head {
  contrasts: Contrasts;
  inputs: readonly Float32Array[];
  labels: readonly number[];
}

/** θ̂ of one τ by Newton's method from `start`, and the evidence there; θ and μ as contrasts. */
function maximise(
  head: Head,
  start: Float64Array,
  mu: Float64Array,
  tau: number,
): { theta: Float64Array; evidence: Evidence } {
  const at = (theta: Float64Array) => {
    const found = likelihood(head, theta);
    return { theta, ...found, objective: found.nll + 0.5 * tau * squaredDistance(theta, mu) };
  };
  let here = at(start);
  let gaussian = curvatureOf(head, here.logits).gaussian(tau, 1, "head");
  for (let step = 0; step < STEPS; step++) {
    const gradient = here.gradient.map((g, i) => g + tau * (here.theta[i]! - mu[i]!));
    const towards = gaussian.solve(gradient);
    const slope = gradient.reduce((sum, g, i) => sum + g * towards[i]!, 0);
    if (!(slope / 2 > ENOUGH)) break;
    // The objective is convex: some share of the step lowers it, and from near the maximum the whole of it does.
    let share = 1;
    const along = () => at(here.theta.map((x, i) => x - share * towards[i]!));
    let next = along();
    while (!(next.objective < here.objective - 1e-4 * share * slope) && share > LEAST_SHARE) {
      share /= 2;
      next = along();
    }
    if (share <= LEAST_SHARE) break;
    here = next;
    gaussian = curvatureOf(head, here.logits).gaussian(tau, 1, "head");
  }
  return { theta: here.theta, evidence: evidenceAt(head, here.nll, squaredDistance(here.theta, mu), tau, gaussian) };
}

/** The direction that the contrasts leave open has the prior's precision, and no distance. */
function evidenceAt(
  { contrasts: { full } }: Head,
  nll: number,
  squaredDistance: number,
  precision: number,
  { logDet, traceInverse }: BlockGaussian,
): Evidence {
  const open = width(full);
  const size = parametersOf(full);
  const group = { group: "head", precision, size, squaredDistance, traceInverse: traceInverse() + open / precision };
  return { logEvidence: logEvidence(nll, logDet + open * Math.log(precision), [group]), nll, groups: [group] };
}

const squaredDistance = (theta: Float64Array, mu: Float64Array) =>
  theta.reduce((sum, x, i) => sum + (x - mu[i]!) ** 2, 0);

/** Σ NLL of the labels, its gradient in the contrasts, and the logits of every batch [n, K], each text's up to a constant. */
function likelihood({ contrasts: { full, shape, rows }, inputs, labels }: Head, theta: Float64Array) {
  const [K, m, C] = [full.outputs, width(shape), shape.inputs];
  const gradient = new Float64Array(theta.length);
  const logits: Float32Array[] = [];
  const x = new Float64Array(m).fill(1);
  let nll = 0;
  let example = 0;
  for (const input of inputs) {
    const own = new Float32Array((input.length / C) * K);
    for (let row = 0; row < input.length / C; row++, example++) {
      x.set(input.subarray(row * C, (row + 1) * C));
      const outputs = rows.map((_, o) => x.reduce((sum, value, i) => sum + value * theta[placeOf(shape, o, i)]!, 0));
      const z = Float64Array.from({ length: K }, (_, k) => rows.reduce((sum, q, o) => sum + q[k]! * outputs[o]!, 0));
      own.set(z, row * K);
      const most = z.reduce((a, b) => Math.max(a, b));
      const logSum = most + Math.log(z.reduce((sum, value) => sum + Math.exp(value - most), 0));
      const label = labels[example]!;
      nll += logSum - z[label]!;
      const errors = z.map((value, k) => Math.exp(value - logSum) - (k === label ? 1 : 0));
      for (const [o, q] of rows.entries()) {
        const error = q.reduce((sum, value, k) => sum + value * errors[k]!, 0);
        for (let i = 0; i < m; i++) gradient[placeOf(shape, o, i)]! += error * x[i]!;
      }
    }
    logits.push(own);
  }
  return { nll, gradient, logits };
}

/** H in the contrasts. */
function curvatureOf({ contrasts: { full, shape, jacobian }, inputs }: Head, logits: readonly Float32Array[]) {
  const H = new LastLayerCurvature("full", shape);
  for (const [b, input] of inputs.entries()) {
    const n = input.length / shape.inputs;
    H.add({ n, K: full.outputs, input, logits: logits[b]!, jacobian });
  }
  return H.curvature();
}
