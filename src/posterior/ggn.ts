/**
 * @file H, the curvature of the summed NLL at θ̂, found in one pass over the data. For a softmax over K classes the
 * generalised Gauss-Newton matrix is the Fisher information, and it needs no labels:
 *   H = Σₙ Jₙᵀ (diag pₙ − pₙpₙᵀ) Jₙ,   diag p − ppᵀ = Σ_k p_k (e_k − p)(e_k − p)ᵀ,   Jₙ = ∂ logits / ∂θ  [K, P].
 * (The empirical Fisher, with the data's labels, is another matrix: at a good fit it is 0.)
 * Last layer: J is the layer's input, so H is exact, in float64 on the host. Groups, as chosen: a backward of the seed
 * v = Σ_k ε_k √p_k (e_k − p), E vvᵀ = diag p − ppᵀ, whose squares (diagonal) or outer products (kronecker) add up to H.
 * Kronecker factors are Martens and Grosse's ("Optimizing neural networks with Kronecker-factored approximate curvature",
 * 2015) in the form that Eschenhagen et al. (2023) call "expand": each of a layer's R rows (tokens) counts as if it were
 * an example, A = (1/R) Σ x̃x̃ᵀ and G = Σ ggᵀ; the products of two different tokens of a sentence are left out.
 */
import type { Slice } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import type { Curvature, LayerShape, Structure } from "./curvature.ts";
import { groupsGgn } from "./ggn-groups.ts";
import { lastLayerGgn } from "./ggn-last.ts";
import type { LogitModel } from "./layers.ts";

/** Slices of θ that have one H. */
export interface Block {
  /** In θ's order: of a layer its weight, then its bias. */
  readonly slices: readonly Slice[];
  readonly curvature: Curvature;
  /** Of a linear layer. */
  readonly layer?: LayerShape;
}

/** H, block by block, and where it was taken. */
export interface Ggn {
  readonly structure: Structure;
  readonly blocks: readonly Block[];
  /** θ̂ of every block, as `readSlices` gives it. */
  readonly center: readonly Float32Array[];
  /** Examples seen. */
  readonly n: number;
  /** True when the only block is the layer that gives the logits: its linearisation is exact. */
  readonly lastLayer: boolean;
  /** Slices of the groups asked for that stay at θ̂: a Kronecker factor is of a linear layer only. */
  readonly left: readonly Slice[];
}

export interface GgnOptions {
  structure: Structure;
  /** Default: the last layer alone. `full` knows no other. */
  groups?: readonly string[] | undefined;
  /** Backward passes a batch, with signs ε at random. Default: diagonal 1, kronecker one for each class, which is exact. */
  draws?: number | undefined;
  seed?: number | undefined;
  /** Most memory for H on the host; default 100 MB. What is needed is computed before anything is allocated. */
  maxBytes?: number | undefined;
  /** Hears how many batches are done. */
  progress?: ((done: number) => void) | undefined;
}

export const FULL_GROUPS =
  "laplace: a full covariance is of the last layer only. Leave the groups out, or ask for diagonal or kronecker.";

/**
 * H over the batches, without dropout. Throws InputError: memory that H's structure would not fit in (and what would), an
 * unknown group, groups with `full`, nothing that learns in the groups, no batch.
 */
export async function ggn<B>(model: LogitModel<B>, batches: readonly B[], options: GgnOptions): Promise<Ggn> {
  if (batches.length === 0) throw new InputError("laplace: no data to take the curvature from.");
  const { structure, groups } = options;
  if (!groups) return lastLayerGgn(model, batches, options);
  if (structure === "full") {
    throw new InputError(FULL_GROUPS);
  }
  return groupsGgn(model, batches, { ...options, groups });
}
