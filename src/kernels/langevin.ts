/**
 * @file Steps of Langevin samplers over stretches of the parameter vector, and standard normals that are a function of
 * (key, element). Like the optimisers' updates (update.ts) they have the prior's gradient inside and obey `status`; unlike
 * them they take no clip factor, since a shortened gradient would be that of another posterior.
 */
import { f32, type Gpu, grid } from "../gpu/index.ts";
import { threefry2x32 } from "../random.ts";
import { empty, type NdArray } from "./array.ts";
import { expectStretches, type Stretch, type TermVectors } from "./terms.ts";
import { slice, type Window, windows } from "./windows.ts";

/** vec4 per thread, as in shaders/langevin.wgsl. */
const PER = 16;

export interface LangevinVectors extends TermVectors {
  /** SGHMC's velocity u; zeros, or a resampled one, before step 1. Absent: SGLD. */
  readonly velocity?: NdArray | undefined;
}

export interface LangevinOptions {
  /** h > 0. */
  lr: number;
  /** t = T/N ≥ 0: the temperature on the scale of J, the mean over N terms. */
  temperature: number;
  /** α of SGHMC, 0 … 1. */
  friction?: number | undefined;
  /** True: SGHMC's u is drawn anew from N(0, h·t), and takes half a kick. At t = 0, where nothing is drawn, u goes on. */
  resample?: boolean | undefined;
  /** A new one each step. */
  key: readonly [number, number];
  /** Counted from 1. */
  step: number;
  /** As in AdamOptions. */
  last: boolean;
  /** The real numbers of the stretch, in order: what lies between them is padding, and is left alone. */
  real: readonly Window[];
  /** Bytes bound at once; tests lower it. */
  window?: number | undefined;
}

/**
 * SGLD: θ ← θ − h·∇J + √(2ht)·z. SGHMC: u ← (1 − α)u − h·∇J + √(2αht)·z, θ ← θ + u; where u is drawn anew
 * u ← √(ht)·z − ½h·∇J. RangeError: an option out of range.
 * (Welling and Teh, "Bayesian learning via stochastic gradient Langevin dynamics", 2011; Chen, Fox and Guestrin,
 * "Stochastic gradient Hamiltonian Monte Carlo", 2014, with their noise estimate 0.)
 */
export function langevinUpdate(
  gpu: Gpu,
  vectors: LangevinVectors,
  stretch: Stretch,
  status: NdArray,
  { lr, temperature, friction = 1, resample = false, key, step, last, real, window }: LangevinOptions,
): void {
  const op = "langevinUpdate";
  expectStretches(op, vectors, [stretch]);
  if (!(lr > 0 && Number.isFinite(lr))) throw new RangeError(`${op}: a step of ${lr}; expected a number above 0`);
  if (!(temperature >= 0 && Number.isFinite(temperature)))
    throw new RangeError(`${op}: temperature ${temperature}; expected a number from 0`);
  if (!(friction > 0 && friction <= 1)) throw new RangeError(`${op}: friction ${friction}; expected 0 < α ≤ 1`);
  const { theta, grad, mu, velocity } = vectors;
  const noise = Math.sqrt(2 * (velocity ? friction : 1) * lr * temperature);
  const start = resample ? Math.sqrt(lr * temperature) : 0;
  const pieces = real.flatMap(({ offset, length }) => {
    if (offset % 4 !== 0 || offset < stretch.offset || offset + length > stretch.offset + stretch.length)
      throw new RangeError(`${op}: numbers ${offset} + ${length} are not in the stretch`);
    return windows(gpu, offset, length, window);
  });
  pieces.forEach((piece, i) => {
    const { offset, length } = piece;
    const bindings = [grad, mu, theta, ...(velocity ? [velocity] : [])].map((vector) => slice(vector, piece));
    const counted = last && i === pieces.length - 1 ? step : 0;
    const words = [stretch.priorScale, lr, noise, friction, start].map(f32);
    gpu.dispatch({
      op,
      shader: "langevin",
      entry: velocity ? "sghmc" : "sgld",
      bindings: [status, ...bindings],
      params: [length, offset / 4, counted, ...words, ...key],
      grid: grid(Math.ceil(length / (4 * 64 * PER))),
      work: { bytes: 4 * length * (velocity ? 6 : 4) },
    });
  });
}

/** scale·z, z standard normal, of any shape: the same for the same key. */
export function normal(gpu: Gpu, shape: readonly number[], key: readonly [number, number], scale = 1): NdArray {
  const y = empty(gpu, shape, "f32", "normal");
  gpu.dispatch({
    op: "normal",
    shader: "langevin",
    entry: "fill",
    bindings: [y],
    params: [y.size, 0, 0, 0, 0, f32(scale), 0, 0, ...key],
    grid: grid(Math.ceil(y.size / (4 * 64 * PER))),
    work: { bytes: 4 * y.size },
  });
  return y;
}

/** The word from which element i of a vector takes its normal. */
export function normalWord(key: readonly [number, number], i: number): number {
  return threefry2x32(key[0], key[1], Math.floor(i / 4), (i % 4) >> 1)[i % 2] as number;
}

/** One step in float64, in place; `z(i)` is the normal of element i. */
export function langevinReference(
  state: { theta: Float64Array; velocity?: Float64Array | undefined },
  grad: ArrayLike<number>,
  mu: ArrayLike<number>,
  stretch: Stretch,
  { lr, temperature, friction = 1, resample = false, real }: LangevinOptions,
  z: (i: number) => number,
): void {
  const { theta, velocity } = state;
  for (const { offset, length } of real) {
    for (let i = offset; i < offset + length; i++) {
      const gradient = (grad[i] ?? 0) + stretch.priorScale * ((theta[i] ?? 0) - (mu[i] ?? 0));
      if (!velocity) {
        theta[i] = (theta[i] ?? 0) - lr * gradient + Math.sqrt(2 * lr * temperature) * z(i);
        continue;
      }
      velocity[i] =
        resample && temperature > 0
          ? Math.sqrt(lr * temperature) * z(i) - 0.5 * lr * gradient
          : (1 - friction) * (velocity[i] ?? 0) - lr * gradient + Math.sqrt(2 * friction * lr * temperature) * z(i);
      theta[i] = (theta[i] ?? 0) + (velocity[i] ?? 0);
    }
  }
}
