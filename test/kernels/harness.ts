/**
 * @file What kernel tests share: one device, random inputs with a name, comparison that shows the worst element, numeric
 * gradients, and the check that a test leaves no live buffer behind.
 */
import { afterEach, beforeAll, expect } from "vitest";
import type { Gpu } from "../../src/gpu/index.ts";
import { openGpu, readShaders } from "../../src/gpu/node.ts";
import { type NdArray, readArray } from "../../src/kernels/array.ts";
import { Stream } from "../../src/random.ts";

let shared: Gpu | undefined;

/**
 * The device of all test files of a process. Compiling is half of what tests take on a software adapter, and a device
 * compiles a pipeline once. It comes without idle buffers or peaks; one that failed is closed and another opened.
 */
export async function sharedGpu(): Promise<Gpu> {
  try {
    shared?.trim();
    await shared?.settle();
  } catch {
    close();
  }
  shared ??= watched(await openGpu());
  shared.resetPeak();
  return shared;
}

/**
 * A dispatch must set all words that its shader declares. Dawn refuses it too, but only where no dispatch before it in the
 * same pass has set more of them, so that a step that is timed or looked into fails where a plain one does not.
 */
function watched(gpu: Gpu): Gpu {
  const words = new Map([...readShaders()].map(([name, text]) => [name, wordsOf(text)]));
  const dispatch = gpu.dispatch.bind(gpu);
  gpu.dispatch = (d) => {
    if (d.params.length > 0) expect(d.params.length, `${d.op}: words given to ${d.shader}.wgsl`).toBeGreaterThanOrEqual(words.get(d.shader) ?? 0); // biome-ignore format: one sentence
    dispatch(d);
  };
  return gpu;
}

/** How many 4-byte words the members of `p` take, by WGSL's rules of layout. */
function wordsOf(wgsl: string): number {
  const type = /var<immediate> p: (\w+);/.exec(wgsl)?.[1];
  const members = new RegExp(`^struct ${type} \\{([^}]*)\\}`, "m").exec(wgsl)?.[1] ?? "";
  let words = 0;
  for (const [, lanes = "1"] of members.matchAll(/: *(?:vec(\d)[uif]|[uif]32)/g)) {
    const align = lanes === "3" ? 4 : Number(lanes);
    words = Math.ceil(words / align) * align + Number(lanes);
  }
  return words;
}

function close(): void {
  shared?.destroy();
  shared = undefined;
}
process.once("exit", close);

/** Call at the top of a test file; the getter gives the device once tests run. */
export function gpuForTests(): () => Gpu {
  let gpu: Gpu | undefined;
  beforeAll(async () => {
    // What a failed test of another file left is not this file's.
    if (shared && shared.stats.liveBuffers > 0) close();
    gpu = await sharedGpu();
  });
  afterEach(async () => {
    if (!gpu) return;
    await gpu.settle();
    expect(gpu.stats.liveBuffers, "live buffers after the test").toBe(0);
  });
  return () => {
    if (!gpu) throw new Error("no device yet: use it inside a test");
    return gpu;
  };
}

/** Runs `body` in a scope and reads the arrays it returns. */
export function run(gpu: Gpu, body: () => NdArray[]): Promise<Float32Array[]> {
  // The reads are submitted before the scope ends, so its buffers may be reused at once.
  return Promise.all(gpu.scope(() => ({ reads: body().map((array) => readArray(gpu, array)) })).reads);
}

/** n standard normals, the same for the same seed. */
export function randn(seed: number, n: number, scale = 1): Float32Array {
  const stream = new Stream(seed, "test");
  return Float32Array.from({ length: n }, () => scale * stream.normal());
}

export interface Tolerance {
  rtol?: number;
  atol?: number;
}

/** |actual − expected| ≤ atol + rtol·|expected| everywhere; NaN equals NaN, and an infinity itself. */
export function expectClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { rtol = 1e-5, atol = 1e-6 }: Tolerance = {},
): void {
  expect(actual.length, "length").toBe(expected.length);
  let worst = 0;
  let at = -1;
  for (let i = 0; i < expected.length; i++) {
    const a = actual[i] as number;
    const e = expected[i] as number;
    if (Object.is(a, e) || a === e || (Number.isNaN(a) && Number.isNaN(e))) continue;
    const error = Math.abs(a - e) / (atol + rtol * Math.abs(e));
    if (!(error <= worst)) {
      worst = Number.isNaN(error) ? Number.POSITIVE_INFINITY : error;
      at = i;
    }
  }
  if (worst > 1) {
    expect.fail(
      `element ${at}: ${actual[at]} instead of ${expected[at]} (${worst.toPrecision(3)}× the tolerance; rtol ${rtol}, atol ${atol})`,
    );
  }
}

/** d/dx of Σ dy·f(x) by central differences in float64. */
export function numericGradient(
  f: (x: Float64Array) => ArrayLike<number>,
  x: ArrayLike<number>,
  dy: ArrayLike<number>,
  h = 1e-5,
): Float64Array {
  const at = Float64Array.from(x);
  const weighted = () => {
    const y = f(at);
    let sum = 0;
    for (let i = 0; i < y.length; i++) sum += (y[i] as number) * (dy[i] as number);
    return sum;
  };
  return Float64Array.from(at, (value, i) => {
    at[i] = value + h;
    const up = weighted();
    at[i] = value - h;
    const down = weighted();
    at[i] = value;
    return (up - down) / (2 * h);
  });
}
