/**
 * @file Whether chains have mixed and what their draws are worth: split R̂ and effective sample size after Vehtari, Gelman,
 * Simpson, Carpenter and Bürkner ("Rank-normalization, folding, and localization: an improved R̂", 2021), float64. They
 * are asked of functionals (log-likelihood, log-prior, distances, logits of fixed sentences): a chain of 22 million traces
 * says less than five numbers that matter.
 */
import { InputError } from "../errors.ts";
import { erf } from "../kernels/erf.ts";

/** One functional's values, chain by chain; all chains of one length ≥ 4. */
export type Chains = readonly (readonly number[])[];

export interface Diagnosis {
  /** Mean over all draws. */
  mean: number;
  /** Standard deviation over all draws. */
  sd: number;
  /** Draws of an independent sample that would know as well where the distribution lies (`effectiveSampleSize`). */
  ess: number;
  /** Standard error of the mean: sd over the root of the mean's own sample size (`meanSampleSize`). */
  mcse: number;
  /** The larger of the rank-normalised split R̂ and that of the folded draws; undefined for one chain. */
  rhat: number | undefined;
}

/** All of it for one functional. RangeError: chains of unequal length, or too short. */
export function diagnose(chains: Chains): Diagnosis {
  check(chains);
  const all = chains.flat();
  const mean = average(all);
  const sd = Math.sqrt(variance(all));
  const [ess, own] = [effectiveSampleSize(chains), meanSampleSize(chains)];
  return { mean, sd, ess, mcse: sd / Math.sqrt(own), rhat: chains.length > 1 ? splitRhat(chains) : undefined };
}

/**
 * max(R̂ of rank-normalised halves, R̂ of the same folded about the median): near 1 where chains agree in place and in
 * spread; above 1.01 run longer. Constant draws give NaN. Throws InputError for one chain: its halves may agree on the
 * one mode that it has seen.
 */
export function splitRhat(chains: Chains): number {
  check(chains);
  if (chains.length < 2) {
    throw new InputError(
      "R-hat: one chain (expected two or more). A chain cannot be compared with itself: add chains.",
    );
  }
  const halves = split(chains);
  const middle = median(halves.flat());
  const folded = halves.map((half) => half.map((x) => Math.abs(x - middle)));
  return Math.max(rhat(rankNormalised(halves)), rhat(rankNormalised(folded)));
}

/** Gelman and Rubin's √(var⁺/W) of the chains as they are. */
export function rhat(chains: Chains): number {
  const n = chains[0]?.length ?? 0;
  const within = average(chains.map(variance));
  const between = chains.length > 1 ? n * variance(chains.map(average)) : 0;
  return Math.sqrt((n - 1) / n + between / (n * within));
}

/** Bulk effective sample size, of the ranks: it knows no units, and a heavy tail does not hide that chains mix. */
export function effectiveSampleSize(chains: Chains): number {
  check(chains);
  return sampleSize(rankNormalised(split(chains)));
}

/** Draws of an independent sample that would know the mean as well: of the values themselves. */
export function meanSampleSize(chains: Chains): number {
  check(chains);
  return sampleSize(split(chains));
}

/**
 * mn/τ of split chains, τ = −1 + 2Σ(ρ₂ₖ + ρ₂ₖ₊₁) over Geyer's initial monotone sequence (1992); at most mn·log₁₀(mn), which
 * only antithetic chains reach. Constant draws give NaN.
 */
function sampleSize(halves: Chains): number {
  const [m, n] = [halves.length, halves[0]?.length ?? 0];
  const covariances = halves.map(autocovariance);
  const within = average(covariances.map((c) => ((c[0] as number) * n) / (n - 1)));
  const plus = ((n - 1) / n) * within + (m > 1 ? variance(halves.map(average)) : 0);
  const rho = (t: number) => 1 - (within - average(covariances.map((c) => c[t] as number)) / ((n - 1) / n)) / plus;
  let tau = -1;
  let least = Number.POSITIVE_INFINITY;
  for (let t = 0; t + 1 < n; t += 2) {
    const pair = (t === 0 ? 1 : rho(t)) + rho(t + 1);
    if (!(pair > 0)) break;
    least = Math.min(least, pair);
    tau += 2 * least;
  }
  const draws = m * n;
  // Of a few antithetic draws the sum may fall to 0 and below, which is no length of time.
  return plus > 0 ? draws / Math.max(tau, 1 / Math.log10(draws)) : Number.NaN;
}

/** Halves of chains; of an odd length the middle draw belongs to neither. */
function split(chains: Chains): number[][] {
  return chains.flatMap((chain) => {
    const half = Math.floor(chain.length / 2);
    return [chain.slice(0, half), chain.slice(chain.length - half)];
  });
}

/** Φ⁻¹((rank − 3/8)/(S + 1/4)), ties at their mean rank: draws of any distribution become normal scores. */
function rankNormalised(chains: Chains): number[][] {
  const all = chains.flatMap((chain, c) => chain.map((x, i) => ({ x, c, i })));
  all.sort((a, b) => a.x - b.x);
  const scores = chains.map((chain) => chain.map(() => 0));
  for (let from = 0; from < all.length; ) {
    let to = from + 1;
    while (to < all.length && all[to]?.x === all[from]?.x) to++;
    const rank = (from + 1 + to) / 2;
    const score = normalQuantile((rank - 0.375) / (all.length + 0.25));
    for (const { c, i } of all.slice(from, to)) (scores[c] as number[])[i] = score;
    from = to;
  }
  return scores;
}

/** Φ⁻¹ by bisection: Φ is known to 1e-15, and a diagnosis is no inner loop. */
function normalQuantile(p: number): number {
  let [low, high] = [-9, 9];
  while (high - low > 1e-12) {
    const middle = (low + high) / 2;
    if (0.5 * (1 + erf(middle / Math.SQRT2)) < p) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

/** (1/n) Σ (xᵢ − x̄)(xᵢ₊ₜ − x̄) for every lag. */
function autocovariance(chain: readonly number[]): number[] {
  const n = chain.length;
  const mean = average(chain);
  return chain.map((_, t) => {
    let sum = 0;
    for (let i = 0; i + t < n; i++) sum += ((chain[i] as number) - mean) * ((chain[i + t] as number) - mean);
    return sum / n;
  });
}

function check(chains: Chains): void {
  const n = chains[0]?.length ?? 0;
  if (n < 4 || chains.some((chain) => chain.length !== n)) {
    throw new RangeError(
      `diagnostics: chains of ${chains.map((c) => c.length).join(", ")} draws; expected one length ≥ 4`,
    );
  }
}

const average = (x: readonly number[]) => x.reduce((sum, v) => sum + v, 0) / x.length;

function variance(x: readonly number[]): number {
  const mean = average(x);
  return x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / (x.length - 1);
}

function median(x: readonly number[]): number {
  const sorted = [...x].sort((a, b) => a - b);
  const half = Math.floor(sorted.length / 2);
  return sorted.length % 2 ? (sorted[half] as number) : ((sorted[half - 1] as number) + (sorted[half] as number)) / 2;
}
