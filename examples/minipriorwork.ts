/**
 * @file The library's twin: its Bayesian half on one page of plain float64, no GPU, with the library's names, for a model
 * of two parameters, p(y = 1 | x, θ) = σ(θ₁x + θ₂). Two parameters can be integrated by brute force, so the last row of
 * the table is the answer. The tests run the same scenario through twin and library. Run: npx tsx examples/minipriorwork.ts
 */
import { fileURLToPath } from "node:url";

export type Pair = readonly [number, number];
/** The symmetric matrix [[a, b], [b, c]] as [a, b, c]. */
export type Symmetric = readonly [number, number, number];
/** x [N], and labels y [N], 0 or 1. */
export type Data = { x: readonly number[]; y: readonly number[] };

/** Words of praise minus words of blame, and whether the author liked the film. */
export const FILMS: Data = {
  x: [-4, -3, -3, -2, -2, -1, -1, 0, 0, 1, 1, 2, 3, 3],
  y: [0, 0, 1, 0, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1],
};

const sigmoid = (z: number) => 1 / (1 + Math.exp(-z));
/** log(1 + eᶻ) without overflow. */
const softplus = (z: number) => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z)));
const logit = ([slope, offset]: Pair, x: number) => slope * x + offset;

// ---- prior: what was known before the data came, and how sure of it we are

/** N(μ, 1/τ) on both parameters. `logConstant`, ½ d log(τ/2π), is what `logPrior` leaves out and the evidence needs. */
export function gaussianPrior({ mean, precision }: { mean: Pair; precision: number }) {
  return { mu: mean, precision, logConstant: Math.log(precision / (2 * Math.PI)) };
}
export type Prior = ReturnType<typeof gaussianPrior>;

// ---- log p(X|θ) + log p(θ): what training climbs and what sampling explores

export type LogPosterior = ReturnType<typeof logPosterior>;

/** Likelihood + prior; τ = 0 is maximum likelihood. */
export function logPosterior(data: Data, prior: Prior) {
  const { mu, precision: tau } = prior;
  const N = data.y.length;
  const all = data.x.map((x, i) => [x, data.y[i] as number] as Pair);
  const delta = ([slope, offset]: Pair): Pair => [slope - mu[0], offset - mu[1]];
  return {
    prior,
    N,
    /** nll: the mean over X, in nats. logPrior: −½ τ ‖θ − μ‖². logJoint: −N·nll + logPrior. */
    terms(theta: Pair) {
      // −log p(y|x, θ) = log(1 + eᶻ) − yz
      const sum = all.reduce((s, [x, y]) => s + softplus(logit(theta, x)) - y * logit(theta, x), 0);
      const logPrior = -0.5 * tau * (delta(theta)[0] ** 2 + delta(theta)[1] ** 2);
      return { nll: sum / N, logPrior, logJoint: -sum + logPrior };
    },
    /** ∇ log p(θ, X) = Σ (y − p)·(x, 1) − τ(θ − μ). */
    gradient(theta: Pair): Pair {
      const [slope, offset] = delta(theta).map((d) => -tau * d) as [number, number];
      const errors = all.map(([x, y]) => y - sigmoid(logit(theta, x)));
      return [errors.reduce((s, e, i) => s + e * (data.x[i] as number), slope), errors.reduce((s, e) => s + e, offset)];
    },
    /** −∇∇ᵀ log p(θ, X) = Σ p(1 − p)·(x, 1)(x, 1)ᵀ + τI: the curvature of the NLL, and the prior's precision. */
    precision(theta: Pair): Symmetric {
      const weights = all.map(([x]) => sigmoid(logit(theta, x)) * sigmoid(-logit(theta, x)));
      const sum = (f: (x: number) => number) => weights.reduce((s, w, i) => s + w * f(data.x[i] as number), 0);
      return [sum((x) => x * x) + tau, sum((x) => x), sum(() => 1) + tau];
    },
  };
}

// ---- MAP: one θ

/** The maximum of log p(θ, X) by Newton's method; with τ = 0 that of the likelihood. */
export function fit(target: LogPosterior): Pair {
  let theta = target.prior.mu;
  for (let step = 0; step < 100; step++) {
    const [u, v] = times(inverse(target.precision(theta)), target.gradient(theta));
    theta = [theta[0] + u, theta[1] + v];
    if (Math.hypot(u, v) < 1e-12) return theta;
  }
  throw new Error("fit: Newton's method did not settle; separable data have no maximum without a prior");
}

// ---- many θ: draws, each with its weight

export type Draw = { theta: Pair; weight: number };

/** Σ wf(θ) / Σ w: every answer of Bayes is an expectation. */
export function expectation(draws: readonly Draw[], f: (theta: Pair) => number): number {
  return draws.reduce((s, { theta, weight }) => s + weight * f(theta), 0) / draws.reduce((s, d) => s + d.weight, 0);
}

/** p(y = 1 | x): the average of the draws' probabilities, never of their logits. */
export function predict(draws: readonly Draw[], x: number): number {
  return expectation(draws, (theta) => sigmoid(logit(theta, x)));
}

/** Mean and standard deviation of both parameters. */
export function moments(draws: readonly Draw[]) {
  const mean = ([0, 1] as const).map((k) => expectation(draws, (theta) => theta[k]));
  const variance = ([0, 1] as const).map((k) => expectation(draws, (theta) => (theta[k] - (mean[k] as number)) ** 2));
  return { mean: mean as unknown as Pair, deviation: variance.map(Math.sqrt) as unknown as Pair };
}

// ---- SGLD: θ that wanders, and is most often where p(θ|X) is large

export type SgldOptions = { lr: number; steps: number; burnIn?: number; temperature?: number; seed?: number };

/**
 * θ ← θ − h∇J + √(2hT/N)·z with J = −(1/N) log p(θ, X) and z ~ N(0, I) (Welling and Teh 2011). All N examples make a
 * step here; with fewer their noise adds to z's.
 */
export function sgld(
  target: LogPosterior,
  { lr, steps, burnIn = 1000, temperature = 1, seed = 1 }: SgldOptions,
): Draw[] {
  const { N } = target;
  const normal = normals(seed);
  const noise = Math.sqrt((2 * lr * temperature) / N);
  const draws: Draw[] = [];
  let theta = fit(target);
  for (let step = 0; step < steps; step++) {
    const [u, v] = target.gradient(theta);
    theta = [theta[0] + (lr / N) * u + noise * normal(), theta[1] + (lr / N) * v + noise * normal()];
    if (step >= burnIn) draws.push({ theta, weight: 1 });
  }
  return draws;
}

// ---- Laplace: a Gaussian where the posterior is highest

/** N(θ̂, Λ⁻¹) with θ̂ the MAP and Λ = H + τI. */
export function laplace(target: LogPosterior) {
  const mean = fit(target);
  const precision = target.precision(mean);
  return { mean, precision, covariance: inverse(precision) };
}
export type Laplace = ReturnType<typeof laplace>;

/** p(y = 1 | x): the logit is N(m, v), and E σ(z) ≈ σ(m / √(1 + πv/8)) (Spiegelhalter and Lauritzen 1990). */
export function probit({ mean, covariance: [a, b, c] }: Laplace, x: number): number {
  const v = a * x * x + 2 * b * x + c;
  return sigmoid(logit(mean, x) / Math.sqrt(1 + (Math.PI / 8) * v));
}

// ---- evidence: how well prior and model together explain the data

/** log P(X) ≈ log p(X|θ̂) + log p(θ̂) + ½ d log 2π − ½ log |Λ| */
export function evidence({ terms, prior }: LogPosterior, { mean, precision }: Laplace): number {
  return terms(mean).logJoint + prior.logConstant + Math.log(2 * Math.PI) - 0.5 * Math.log(det(precision));
}

/** The τ that the evidence likes best: τ ← (d − τ tr Λ⁻¹) / ‖θ̂ − μ‖², θ̂ found anew each time (MacKay 1992). */
export function precisionByEvidence(data: Data, mean: Pair): number {
  let tau = 1;
  for (let round = 0; round < 200; round++) {
    const { mean: mode, covariance } = laplace(logPosterior(data, gaussianPrior({ mean, precision: tau })));
    const squaredDistance = (mode[0] - mean[0]) ** 2 + (mode[1] - mean[1]) ** 2;
    tau = (2 - tau * (covariance[0] + covariance[2])) / squaredDistance;
  }
  return tau;
}

// ---- the answer, by brute force

/** p(θ, X) on a grid of ±12 of Laplace's standard deviations: draws with their weights, and log P(X). */
export function quadrature(target: LogPosterior, points = 300): { draws: Draw[]; evidence: number } {
  const { mean, covariance } = laplace(target);
  const step: Pair = [(24 * Math.sqrt(covariance[0])) / points, (24 * Math.sqrt(covariance[2])) / points];
  const peak = target.terms(mean).logJoint;
  const draws = Array.from({ length: (points + 1) ** 2 }, (_, cell) => {
    const [i, j] = [cell % (points + 1), Math.floor(cell / (points + 1))];
    const theta: Pair = [mean[0] + (i - points / 2) * step[0], mean[1] + (j - points / 2) * step[1]];
    return { theta, weight: Math.exp(target.terms(theta).logJoint - peak) };
  });
  const volume = draws.reduce((sum, { weight }) => sum + weight, 0) * step[0] * step[1];
  return { draws, evidence: peak + target.prior.logConstant + Math.log(volume) };
}

// ---- two by two, and random numbers

const det = ([a, b, c]: Symmetric) => a * c - b * b;
const times = ([a, b, c]: Symmetric, [u, v]: Pair): Pair => [a * u + b * v, b * u + c * v];
const inverse = (m: Symmetric): Symmetric => [m[2] / det(m), -m[1] / det(m), m[0] / det(m)];

/** Normals by Box and Muller, from Marsaglia's xorshift. */
function normals(seed: number): () => number {
  let state = (seed * 0x9e3779b9) >>> 0 || 1;
  const uniform = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state = (state ^ (state << 5)) >>> 0;
    return state / 2 ** 32;
  };
  return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
}

// ---- the table

/** Before any film: praise means praise (slope 1), neither side is favoured (offset 0); each ± 1. */
export const PRIOR = { mean: [1, 0] as Pair, precision: 1 };

/** A method's θ, p(y = 1) of a film that is praised and one that is blamed, and log P(X). */
export type Row = { name: string; mean: Pair; deviation?: Pair; p: Pair; evidence?: number };

/** All methods on the same data. */
export function scenario(): Row[] {
  const target = logPosterior(FILMS, gaussianPrior(PRIOR));
  const both = (p: (x: number) => number): Pair => [p(2), p(-4)];
  const point = (name: string, mean: Pair): Row => ({ name, mean, p: both((x) => sigmoid(logit(mean, x))) });
  const average = (name: string, draws: readonly Draw[]) => {
    return { name, ...moments(draws), p: both((x) => predict(draws, x)) };
  };
  const gauss = laplace(target);
  const deviation: Pair = [Math.sqrt(gauss.covariance[0]), Math.sqrt(gauss.covariance[2])];
  const answer = quadrature(target);
  return [
    point("MLE", fit(logPosterior(FILMS, { ...target.prior, precision: 0 }))),
    point("MAP", gauss.mean),
    { ...point("Laplace", gauss.mean), deviation, p: both((x) => probit(gauss, x)), evidence: evidence(target, gauss) },
    average("SGLD", sgld(target, { lr: 0.05, steps: 400_000 })),
    { ...average("quadrature", answer.draws), evidence: answer.evidence },
  ];
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  console.log(`p(y = 1 | x, θ) = σ(slope · x + offset), ${FILMS.y.length} films, θ ~ N((1, 0), 1)\n`);
  console.log("            slope          offset         p(1 | +2)  p(1 | −4)  log P(X)");
  for (const { name, mean, deviation, p, evidence } of scenario()) {
    const spread = deviation?.map((sd) => ` ± ${sd.toFixed(3)}`);
    const theta = mean.map((t, k) => `${t.toFixed(3)}${spread?.[k] ?? ""}`.padEnd(15)).join("");
    const cells = `${theta}${p.map((q) => q.toFixed(3).padEnd(11)).join("")}${evidence?.toFixed(3) ?? ""}`;
    console.log(`${name.padEnd(12)}${cells}`.trimEnd());
  }
  console.log(
    `\nThe evidence would choose a precision of ${precisionByEvidence(FILMS, PRIOR.mean).toFixed(1)} instead of 1.`,
  );
}
