/**
 * @file Predictions of a Laplace approximation from the model's linearisation at θ̂: f(x, θ) ≈ f(x, θ̂) + J(x)(θ − θ̂) is
 * the model that the GGN is the exact Hessian of (Immer, Korzepa and Bauer, "Improving predictions of Bayesian neural
 * nets via local linearization", 2021). Its logits are Gaussian,
 *   f ~ N(f(x, θ̂), T·J Λ⁻¹ Jᵀ)   [K], [K, K],
 * and of the last layer this is no approximation: the logits are linear in it. What remains is E softmax(f), by draws of
 * f (`linearised`) or in closed form (`probit`).
 */
import type { PackedBatch } from "../data/batches.ts";
import { Stream } from "../random.ts";
import { covarianceOfGroups } from "./jacobian.ts";
import { type DrawOptions, expectDraws, type Laplace } from "./laplace.ts";
import { type LastLayer, type LogitModel, readLastLayer } from "./layers.ts";
import type { Posterior } from "./posterior.ts";

/** Gaussian logits of n examples. */
export interface GaussianLogits {
  n: number;
  K: number;
  /** f(x, θ̂), [n, K] */
  mean: Float64Array;
  /** [n, K, K]; `temperature` is in it. */
  covariance: Float64Array;
}

/** The logits' distribution for a batch. θ is θ̂. Groups' Jacobians take K backward passes for every example. */
export async function gaussianLogits(
  model: LogitModel<PackedBatch>,
  state: Laplace,
  batch: PackedBatch,
): Promise<GaussianLogits> {
  const { ggn, temperature } = state;
  const found = ggn.lastLayer
    ? covarianceOfLastLayer(await readLastLayer(model, batch), state)
    : await covarianceOfGroups(model, state, batch);
  return { ...found, covariance: found.covariance.map((c) => temperature * c) };
}

/** J_out C J_outᵀ with C the covariance of the last layer's outputs, example by example. */
export function covarianceOfLastLayer(layer: LastLayer, { gaussians }: Laplace): GaussianLogits {
  const { n, K, input, logits, jacobian, shape } = layer;
  const { inputs, outputs } = shape;
  const covariance = new Float64Array(n * K * K);
  for (let row = 0; row < n; row++) {
    const C = gaussians[0]?.outputCovariance(input.subarray(row * inputs, (row + 1) * inputs)) ?? new Float64Array();
    const J = (k: number, o: number) => (jacobian ? jacobian[k]![row * outputs + o]! : k === o ? 1 : 0);
    for (let k = 0; k < K; k++) {
      for (let l = 0; l < K; l++) {
        let sum = 0;
        if (!jacobian) sum = C[k * K + l]!;
        else
          for (let o = 0; o < outputs; o++)
            for (let q = 0; q < outputs; q++) sum += J(k, o) * C[o * outputs + q]! * J(l, q);
        covariance[(row * K + k) * K + l] = sum;
      }
    }
  }
  return { n, K, mean: Float64Array.from(logits), covariance };
}

/**
 * S draws of every example's logits, in pairs f(x, θ̂) ± Lz: of an even S what is odd in z averages out exactly, and of two classes the
 * mean of a pair prefers the one that θ̂ prefers, as the integral does. The draws of different examples are independent, since
 * only each one's own average is asked for; how the texts are batched changes none. Throws InputError unless S is a whole number ≥ 1.
 */
export function linearised(model: LogitModel<PackedBatch>, state: Laplace, { S, seed = 0 }: DrawOptions): Posterior {
  expectDraws(S);
  return fromGaussianLogits(model, state, S, ({ n, K, mean, covariance }, members, from) => {
    for (let row = 0; row < n; row++) {
      const L = rootOf(covariance.subarray(row * K * K, (row + 1) * K * K), K);
      // By a text's place among all, in blocks of 32: not by its place in a batch, which may be of any size.
      const stream = new Stream(seed, "laplace logits", (from + row) >>> 5, (from + row) & 31);
      let z: number[] = [];
      for (const [s, member] of members.entries()) {
        z = s % 2 === 0 ? Array.from({ length: K }, () => stream.normal()) : z.map((x) => -x);
        for (let k = 0; k < K; k++) {
          let f = mean[row * K + k]!;
          for (let j = 0; j <= k; j++) f += L[k * K + j]! * z[j]!;
          member[(from + row) * K + k] = f;
        }
      }
    }
  });
}

/**
 * One member whose softmax approximates E softmax(f): each logit is taken against the mean of the others and shrunk by
 * the variance of that contrast,
 *   c_k = f_k − mean_{l≠k} f_l,   logit_k = ((K − 1)/K) E c_k / √(1 + (π/8) Var c_k).
 * For K = 2 this is E σ(f₁ − f₀) of Spiegelhalter and Lauritzen (1990) and MacKay (1992). For more classes it is the
 * usual scaling by each class's own variance, but for the contrast: softmax does not know a shift that all logits share,
 * while their variances do (and the prior alone bounds it). It knows no mutual information: `linearised` does.
 */
export function probit(model: LogitModel<PackedBatch>, state: Laplace): Posterior {
  return fromGaussianLogits(model, state, 1, (logits, [member], from) => {
    member?.set(probitLogits(logits), from * logits.K);
  });
}

/** `probit`'s logits, [n, K]. */
export function probitLogits({ n, K, mean, covariance }: GaussianLogits): Float64Array {
  const shrunk = new Float64Array(n * K);
  // c_k = Σ_l w_l f_l with w_k = 1 and −1/(K − 1) elsewhere
  const weight = (k: number, l: number) => (k === l ? 1 : -1 / (K - 1));
  for (let row = 0; row < n; row++) {
    for (let k = 0; k < K; k++) {
      let contrast = 0;
      let variance = 0;
      for (let l = 0; l < K; l++) {
        contrast += weight(k, l) * mean[row * K + l]!;
        for (let m = 0; m < K; m++) variance += weight(k, l) * weight(k, m) * covariance[(row * K + l) * K + m]!;
      }
      shrunk[row * K + k] = (((K - 1) / K) * contrast) / Math.sqrt(1 + (Math.PI / 8) * Math.max(0, variance));
    }
  }
  return shrunk;
}

type Fill = (logits: GaussianLogits, members: Float32Array[], from: number) => void;

function fromGaussianLogits(model: LogitModel<PackedBatch>, state: Laplace, S: number, fill: Fill): Posterior {
  return {
    members: S,
    async logits(batches, progress) {
      const n = batches.reduce((sum, batch) => sum + batch.sequences, 0);
      let members: Float32Array[] = [];
      let from = 0;
      for (const [index, batch] of batches.entries()) {
        const found = await gaussianLogits(model, state, batch);
        if (index === 0) members = Array.from({ length: S }, () => new Float32Array(n * found.K));
        fill(found, members, from);
        from += found.n;
        progress?.((index + 1) / batches.length);
      }
      return members;
    },
  };
}

/** Lower-triangular L with LLᵀ = C for a C that may be singular: a direction without variance gets 0. */
function rootOf(C: Float64Array, K: number): Float64Array {
  const L = new Float64Array(K * K);
  let largest = 0;
  for (let k = 0; k < K; k++) largest = Math.max(largest, C[k * K + k]!);
  for (let c = 0; c < K; c++) {
    for (let r = c; r < K; r++) {
      let sum = C[r * K + c]!;
      for (let j = 0; j < c; j++) sum -= L[r * K + j]! * L[c * K + j]!;
      if (r === c) L[c * K + c] = sum > 1e-12 * largest ? Math.sqrt(sum) : 0;
      else L[r * K + c] = L[c * K + c]! > 0 ? sum / L[c * K + c]! : 0;
    }
  }
  return L;
}
