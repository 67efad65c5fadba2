/**
 * @file Gradient check: the gradient that autograd gives against central differences of the same function. The upstream
 * gradient is random and not uniform, because a sum hides errors that cancel. Differences are taken of float32 results,
 * so the step is large and the tolerance is what float32 allows; each operation also has float64 references.
 */
import { Stream } from "../random.ts";
import type { Engine } from "./engine.ts";
import { multiply, sum } from "./ops.ts";
import type { Tensor } from "./tensor.ts";

export interface GradientCheck {
  /** For each input: max |analytic − numeric| / max(1, max |numeric|). */
  errors: number[];
}

/**
 * Checks `f` at `inputs` (shape and numbers each). `f` maps leaves to one tensor; it must be a pure function.
 * Costs two forward passes per input number: keep inputs small.
 */
export async function checkGradients(
  engine: Engine,
  f: (...leaves: Tensor[]) => Tensor,
  inputs: readonly { shape: readonly number[]; data: Float32Array }[],
  { seed = 0, h = 1e-2 } = {},
): Promise<GradientCheck> {
  let upstream: Float32Array | undefined;
  const upstreamFor = (y: Tensor): Tensor => {
    const stream = new Stream(seed, "gradient-check");
    upstream ??= Float32Array.from({ length: y.size }, () => stream.normal());
    return engine.tensor(upstream, y.shape);
  };

  const analytic = await Promise.all(
    engine.step(() => {
      const leaves = inputs.map(({ shape, data }) => engine.tensor(data, shape, { grad: true }));
      const y = f(...leaves);
      engine.backward(sum(multiply(y, upstreamFor(y))));
      return { reads: leaves.map((leaf) => engine.gpu.read(engine.gradientOf(leaf))) };
    }).reads,
  );

  // Σ y·dy is added up in float64 on the host: in float32 the differences would drown.
  const value = async (data: readonly Float32Array[]): Promise<number> => {
    const { read } = engine.step(() =>
      engine.noGrad(() => ({
        read: f(...inputs.map(({ shape }, i) => engine.tensor(data[i] as Float32Array, shape))).read(),
      })),
    );
    return (await read).reduce((total, y, i) => total + y * (upstream?.[i] as number), 0);
  };

  const errors: number[] = [];
  for (const [i, { data }] of inputs.entries()) {
    const gradient = new Float32Array(analytic[i] as ArrayBuffer);
    let worst = 0;
    let largest = 1;
    for (let j = 0; j < data.length; j++) {
      const shifted = (delta: number) =>
        inputs.map((input, at) => {
          if (at !== i) return input.data;
          const copy = input.data.slice();
          copy[j] = (copy[j] as number) + delta;
          return copy;
        });
      // Fourth order: 8(f(+h) − f(−h)) − (f(+2h) − f(−2h)), so that h can be large enough for float32.
      const [a, b, c, d] = [
        await value(shifted(h)),
        await value(shifted(-h)),
        await value(shifted(2 * h)),
        await value(shifted(-2 * h)),
      ];
      const numeric = (8 * (a - b) - (c - d)) / (12 * h);
      largest = Math.max(largest, Math.abs(numeric));
      const error = Math.abs((gradient[j] as number) - numeric);
      worst = Number.isNaN(error) ? Number.POSITIVE_INFINITY : Math.max(worst, error);
    }
    errors.push(worst / largest);
  }
  return { errors };
}
