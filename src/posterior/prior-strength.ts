/**
 * @file How strong the prior really was, asked of a Gaussian posterior N(θ̂, T·Λ⁻¹), group by group:
 *   KL to the prior N(μ, (τ diag t)⁻¹) = ½ (T·τ Σ tᵢ(Λ⁻¹)ᵢᵢ + τ Σ tᵢΔᵢ² − d − d log T + log |Λ| − Σ log τtᵢ),  Δ = θ̂ − μ,
 * what the data taught, in nats, 0 where they say nothing (it leaves out what blocks know of each other); and
 *   effective τ = −⟨∇ Σ NLL(θ̂), Δ⟩ / Σ tᵢΔᵢ²,
 * the precision of which θ̂ is the mode along Δ: at a maximum of the posterior ∇ Σ NLL = −τ diag(t)Δ, and it is τ itself. Above
 * τ the training ended before it got there, as if it had had a stronger prior; below, something else was weaker than asked.
 * Under AdamW's decay w alone it is N·w·√v̂, averaged by Δ²: a precision that the gradient's noise has set.
 */
import type { Slice } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import { accumulateGradient, type LogPosterior } from "../train/objective.ts";
import { readSlices } from "./draws.ts";
import { type EvidenceGroup, effectiveParameters, evidenceGroups } from "./evidence.ts";
import type { Laplace } from "./laplace.ts";
import { holdOthers } from "./layers.ts";

/** One group of parameters that the Gaussian is over. */
export interface PriorStrength {
  group: string;
  /** τ as asked for; of precisions τ·tᵢ the strength. */
  precision: number;
  /** See above; absent where θ̂ = μ. */
  effectivePrecision?: number;
  /** d */
  size: number;
  /** d − τ tr Λ⁻¹: how many parameters the data determine. */
  determined: number;
  /** ‖θ̂ − μ‖; of precisions τ·tᵢ √Σ tᵢΔᵢ². */
  distance: number;
  /** Nats. */
  kl: number;
}

/** KL(N(θ̂, T·Λ⁻¹) ‖ prior) of a group; `logDet` is its log |Λ|. RangeError: a flat prior, from which there is no distance. */
export function klToPrior(group: EvidenceGroup, logDet: number, temperature = 1): number {
  const { precision: tau, size: d, squaredDistance, traceInverse, logShape = 0 } = group;
  if (!(tau > 0)) throw new RangeError(`klToPrior: a prior of precision ${tau}`);
  const spread = temperature * tau * traceInverse - d - d * Math.log(temperature);
  const kl = 0.5 * (spread + tau * squaredDistance + logDet - d * Math.log(tau) - logShape);
  return Math.max(0, kl); // of nearly equal terms rounding may leave less than 0
}

/**
 * Of every group in the approximation; the batches hold the training data, all N terms. One forward pass, and a backward
 * into those groups alone; `progress` hears how many batches are done. Throws InputError: a precision of 0, another number of terms.
 */
export async function priorStrength<B>(
  target: LogPosterior<B>,
  state: Laplace,
  batches: readonly B[],
  { progress }: { progress?: ((done: number) => void) | undefined } = {},
): Promise<PriorStrength[]> {
  const { theta } = target.model;
  const groups = await evidenceGroups(target, state);
  const blocks = state.ggn.blocks.map(({ slices }) => slices);
  const gradients = await summedGradients(target, batches, blocks, progress);
  const found: PriorStrength[] = [];
  for (const { blocks: own, ...group } of groups) {
    let pull = 0;
    for (const b of own) {
      const mu = await readSlices(theta, blocks[b] ?? [], target.prior.mu);
      const g = gradients[b];
      pull -= (state.ggn.center[b] as Float32Array).reduce((sum, x, i) => sum + (g?.[i] ?? 0) * (x - (mu[i] ?? 0)), 0);
    }
    const logDet = own.reduce((sum, b) => sum + (state.gaussians[b]?.logDet ?? 0), 0);
    const { squaredDistance } = group;
    found.push({
      group: group.group,
      precision: group.precision,
      ...(squaredDistance > 0 ? { effectivePrecision: pull / squaredDistance } : {}),
      size: group.size,
      determined: effectiveParameters(group),
      distance: Math.sqrt(squaredDistance),
      kl: klToPrior(group, logDet, state.temperature),
    });
  }
  return found;
}

/** ∇ Σ NLL at θ, without dropout, of each block's slices; the others are frozen meanwhile. */
async function summedGradients<B>(
  target: LogPosterior<B>,
  batches: readonly B[],
  blocks: readonly (readonly Slice[])[],
  progress?: (done: number) => void,
): Promise<Float32Array[]> {
  const { model, N } = target;
  const { theta } = model;
  const release = holdOthers(theta, blocks.flat());
  try {
    const terms = await addGradients(target, batches, progress);
    if (terms !== N) throw new InputError(`prior strength: the data hold ${terms} terms, the log-posterior says N = ${N}.`); // biome-ignore format: one sentence
    return await Promise.all(blocks.map((slices) => readSlices(theta, slices, theta.gradient())));
  } finally {
    release();
  }
}

/** Adds up the batches' gradients in θ's gradient vector; gives the number of terms. */
async function addGradients<B>(
  target: LogPosterior<B>,
  batches: readonly B[],
  progress?: (done: number) => void,
): Promise<number> {
  const { engine, theta } = target.model;
  let terms = 0;
  theta.zeroGradient();
  for (const [b, batch] of batches.entries()) {
    const { count, done } = engine.step(() => {
      const { loss, count } = accumulateGradient(target, batch, 1);
      return { count, done: loss.item() };
    });
    await done;
    terms += count;
    progress?.(b + 1);
  }
  return terms;
}
