/**
 * @file R-Drop (Liang et al., "R-Drop: regularized dropout for neural networks", 2021): a batch goes through the model
 * twice in one pass, under two dropout masks, and predictions p₁ and p₂ that differ cost something:
 *   ½(−log p₁(y) − log p₂(y)) + (α/2)·D,     D = ½(KL(p₁‖p₂) + KL(p₂‖p₁))
 * The paper's loss is the *sum* of both NLLs + α·D. Half of it stands here, so that the likelihood counts once beside the
 * prior, and α is the paper's. (The authors' short recipe has the mean of the NLLs + α·D: its α is half of this one.)
 *
 * Weights of examples (an anchored member's) are the likelihood's and not D's.
 *
 * A regulariser, not a prior: D is about predictions at the data's x, not about θ; it grows with N as the likelihood does;
 * exp(−N·α/2·D) is no density of θ that could be drawn from or have an evidence. So logPrior and logJoint leave it out.
 */
import { ops, Tensor } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import { empty, fromHost, type NdArray } from "../kernels/index.ts";
import type { DropoutKeys } from "../model/bert.ts";
import type { Likelihood, LogPosterior, NllTerm } from "./objective.ts";

/** Throws InputError: α out of range, or a likelihood without two passes. */
export function checkRDrop<B>(alpha: number, model: Likelihood<B>): void {
  if (!(alpha >= 0 && Number.isFinite(alpha))) {
    throw new InputError(`r-drop: ${alpha} (expected a number from 0). 0 is none.`);
  }
  if (alpha > 0 && !model.twice) {
    throw new InputError("r-drop: this model cannot run a batch twice in one pass. Leave it out.");
  }
}

/**
 * What of KL(p₁‖p₂) + KL(p₂‖p₁) belongs to each class, (p₁ − p₂)(log p₁ − log p₂) ≥ 0: logits [2B, K], of which the second
 * half repeats the first under other masks → [B, K].
 */
export function symmetricKl(logits: Tensor): Tensor {
  const { engine } = logits;
  const B = (logits.shape[0] as number) / 2;
  const half = (from: number) =>
    fromHost(
      engine.gpu,
      Uint32Array.from({ length: B }, (_, b) => from + b),
    );
  const [first, second] = [ops.rows(logits, half(0)), ops.rows(logits, half(B))]; // [B, K] each
  const probability = ops.subtract(ops.softmax(first), ops.softmax(second));
  return ops.multiply(probability, ops.subtract(ops.logSoftmax(first), ops.logSoftmax(second)));
}

/**
 * As `accumulateGradient`, of J with the regulariser: `loss` is the NLL term alone, the mean of both passes, and
 * `divergence` Σ D / average, [1], without α. Inside `engine.step`.
 */
export function accumulateRDrop<B>(
  { model }: LogPosterior<B>,
  batch: B,
  { average, alpha, dropout, seed }: { average: number; alpha: number; dropout?: DropoutKeys | undefined; seed?: NdArray | undefined }, // biome-ignore format: one line
): NllTerm {
  if (!model.twice) throw new Error("r-drop: a likelihood without `twice`");
  const { nlls, logits, count } = model.twice(batch, dropout);
  const loss = ops.sum(nlls, 0.5 / average);
  const divergence = ops.sum(symmetricKl(logits), 0.5 / average);
  const total = ops.add(loss, ops.scale(divergence, alpha / 2));
  // The backward frees what lies on its way.
  const term = { loss: copyOf(loss), count, divergence: copyOf(divergence) };
  model.engine.backward(total, seed);
  return term;
}

function copyOf({ engine, array }: Tensor): Tensor {
  const copy = empty(engine.gpu, array.shape, "f32", "rdrop");
  engine.gpu.copy(array, copy);
  return new Tensor(engine, copy);
}
