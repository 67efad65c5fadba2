/**
 * @file H of chosen groups of θ, from backward passes of random (or, for Kronecker factors, every class's) seeds on the
 * device. The formulas: ggn.ts.
 */
import { Matrix } from "ml-matrix";
import type { Slice, Theta } from "../autograd/index.ts";
import { InputError } from "../errors.ts";
import type { Gpu } from "../gpu/index.ts";
import {
  addSquares,
  binary,
  columnSum,
  empty,
  fill,
  fromHost,
  matmul,
  type NdArray,
  readArray,
  softmax,
  unary,
} from "../kernels/index.ts";
import { joinWindows, slice, type Window } from "../kernels/windows.ts";
import { Stream } from "../random.ts";
import { expectGroups } from "../train/prior.ts";
import { diagonalCurvature, kroneckerCurvature, width } from "./curvature.ts";
import { readSlices } from "./draws.ts";
import type { Block, Ggn, GgnOptions } from "./ggn.ts";
import {
  holdOthers,
  isSlice,
  type LinearLayer,
  type LogitModel,
  layersOf,
  slicesOf,
  type UsedLayers,
  watching,
} from "./layers.ts";
import { expectRoom } from "./room.ts";

/** H over the batches; see `ggn`. */
export async function groupsGgn<B>(
  model: LogitModel<B>,
  batches: readonly B[],
  options: GgnOptions & { groups: readonly string[] },
): Promise<Ggn> {
  const { theta, engine } = model;
  const { structure, draws, seed = 0, progress } = options;
  if (draws !== undefined && !(Number.isSafeInteger(draws) && draws >= 1)) {
    throw new InputError(`laplace: ${draws} draws (expected a whole number from 1).`);
  }
  const { covered, linears, left, K = 1 } = planGroups(model, batches[0] as B, options);
  const sums = structure === "diagonal" ? new DiagonalSums(theta, covered) : new KroneckerSums(theta, linears);
  const everyClass = draws === undefined && structure === "kronecker";
  const passes = draws ?? (everyClass ? K : 1);
  let examples = 0;
  const release = holdOthers(theta, covered);
  try {
    for (const [index, batch] of batches.entries()) {
      for (let pass = 0; pass < passes; pass++) {
        const signs = new Stream(seed, "laplace signs", index, pass);
        const sign = everyClass ? (k: number) => (k === pass ? 1 : 0) : () => (signs.uniform() < 0.5 ? -1 : 1);
        const n = engine.step(() => {
          theta.zeroGradient();
          const logits = model.logits(batch);
          const [n = 0, K = 0] = logits.shape;
          const epsilon = Float32Array.from({ length: n * K }, (_, i) => sign(i % K));
          const v = fisherSeed(engine.gpu, logits.array, fromHost(engine.gpu, epsilon, [n, K]));
          const backward = (layer: WatchedLayer) => sums.layer(layer, pass === 0);
          watching(engine, { backward }, () => engine.backward(logits, v));
          sums.gradient();
          return n;
        });
        if (pass === 0) examples += n;
        // A pass at a time: what is recorded and not yet run holds memory.
        await engine.gpu.settle();
      }
      progress?.(index + 1);
    }
    const blocks = await sums.blocks(everyClass ? 1 : passes);
    const center = await Promise.all(blocks.map(({ slices }) => readSlices(theta, slices)));
    return { structure, blocks, center, n: examples, lastLayer: false, left };
  } finally {
    release();
    sums.dispose();
  }
}

/** What a structure covers of some groups. */
export interface GroupsPlan {
  /** Slices that have a curvature, in θ's order. */
  covered: readonly Slice[];
  /** Those that stay at θ̂. */
  left: readonly Slice[];
  /** kronecker: the layers, each a block. */
  linears: readonly LinearLayer[];
  /** Number of classes; undefined for diagonal, which runs no forward pass here. */
  K: number | undefined;
  /** Parameters with a curvature, and its memory on the host. */
  parameters: number;
  bytes: number;
}

/**
 * Throws InputError: an unknown group, nothing that learns in them, no room. Nothing is allocated. `used`: the model's
 * layers, where a forward has told them before.
 */
export function planGroups<B>(
  model: LogitModel<B>,
  batch: B,
  { structure, groups, maxBytes }: Pick<GgnOptions, "structure" | "maxBytes"> & { groups: readonly string[] },
  used?: UsedLayers,
): GroupsPlan {
  const { theta } = model;
  expectGroups("laplace", theta, groups);
  const chosen = theta.layout.slices.filter(
    (slice) => !theta.isFrozen(slice) && slice.groups.some((group) => groups.includes(group)),
  );
  // A diagonal needs no layers, and so no forward of its own: it takes one pass over the data.
  const found = structure === "diagonal" ? undefined : (used ?? layersOf(model, batch));
  const linears = (found?.layers ?? [])
    .filter(({ weight }) => chosen.includes(weight))
    .map((l) =>
      !l.bias || chosen.includes(l.bias) ? l : { ...l, bias: undefined, shape: { ...l.shape, bias: false } },
    );
  const covered =
    structure === "diagonal" ? chosen : chosen.filter((s) => linears.some((l) => l.weight === s || l.bias === s));
  if (covered.length === 0) {
    const what = structure === "diagonal" ? "nothing" : "no linear layer";
    throw new InputError(`laplace: in ${groups.join(", ")} ${what} learns. Choose groups of finite precision.`);
  }
  const flat = ({ size }: Slice) => ({ inputs: size, outputs: 1, bias: false });
  const shapes = structure === "diagonal" ? covered.map(flat) : linears.map(({ shape }) => shape);
  return {
    covered,
    left: chosen.filter((slice) => !covered.includes(slice)),
    linears,
    K: found?.K,
    parameters: covered.reduce((sum, { size }) => sum + size, 0),
    bytes: expectRoom(structure, shapes, { maxBytes }),
  };
}

/** v = Σ_k ε_k √p_k (e_k − p), row by row: logits, ε, result [n, K]. */
function fisherSeed(gpu: Gpu, logits: NdArray, epsilon: NdArray): NdArray {
  const K = logits.shape[1] as number;
  const p = softmax(gpu, logits);
  const root = binary(gpu, "multiply", unary(gpu, "sqrt", p), epsilon);
  const ones = empty(gpu, [K, K]);
  fill(gpu, ones, 1);
  const total = matmul(gpu, root, ones, "NN"); // [n, K], a row's sum in every column
  return binary(gpu, "subtract", root, binary(gpu, "multiply", p, total));
}

interface WatchedLayer {
  input: NdArray;
  weight: NdArray;
  gradient: NdArray;
}

/** What passes add up on the device; kept until `dispose`. */
interface Sums {
  /** In the backward of a layer; `first`: the batch's first pass. */
  layer(layer: WatchedLayer, first: boolean): void;
  /** After the backward. */
  gradient(): void;
  blocks(passes: number): Promise<Block[]>;
  dispose(): void;
}

/** Σ g², slice by slice. */
class DiagonalSums implements Sums {
  readonly #theta: Theta;
  readonly #slices: readonly Slice[];
  /** The slices, with their padding: neighbours are one. */
  readonly #runs: readonly Window[];
  readonly #sum: NdArray;

  constructor(theta: Theta, slices: readonly Slice[]) {
    this.#theta = theta;
    this.#slices = slices;
    this.#runs = joinWindows(slices.map(({ offset, stride: length }) => ({ offset, length })));
    this.#sum = theta.vector();
  }

  layer(): void {}

  gradient(): void {
    const { gpu } = this.#theta.engine;
    const gradient = this.#theta.gradient();
    // The padding's gradient is 0.
    for (const run of this.#runs) addSquares(gpu, slice(gradient, run), slice(this.#sum, run), 1);
  }

  async blocks(passes: number): Promise<Block[]> {
    return Promise.all(
      this.#slices.map(async (slice) => {
        const sum = await readSlices(this.#theta, [slice], this.#sum);
        return { slices: [slice], curvature: diagonalCurvature(sum.map((h) => h / passes)) };
      }),
    );
  }

  dispose(): void {
    this.#theta.release(this.#sum);
  }
}

interface Factors {
  /** Σ xxᵀ [in, in] */
  xx: NdArray;
  /** Σ x [in] */
  x: NdArray;
  /** Σ ggᵀ [out, out] */
  gg: NdArray;
  /** Rows seen. */
  rows: number;
}

/** Σ xxᵀ and Σ ggᵀ, layer by layer. */
class KroneckerSums implements Sums {
  readonly #theta: Theta;
  readonly #layers: readonly LinearLayer[];
  readonly #factors: Factors[];

  constructor(theta: Theta, layers: readonly LinearLayer[]) {
    const { gpu } = theta.engine;
    this.#theta = theta;
    this.#layers = layers;
    const kept = (shape: number[]) => {
      const array = empty(gpu, shape, "f32", "laplace");
      gpu.keep(array.buffer);
      gpu.clear(array);
      return array;
    };
    this.#factors = layers.map(({ shape: { inputs, outputs } }) => ({
      xx: kept([inputs, inputs]),
      x: kept([inputs]),
      gg: kept([outputs, outputs]),
      rows: 0,
    }));
  }

  layer({ input, weight, gradient }: WatchedLayer, first: boolean): void {
    const { gpu } = this.#theta.engine;
    const index = this.#layers.findIndex((layer) => isSlice(this.#theta, layer.weight, weight));
    const factors = this.#factors[index];
    if (!factors) return;
    matmul(gpu, gradient, gradient, "TN", { into: { array: factors.gg, accumulate: true } });
    if (!first) return;
    matmul(gpu, input, input, "TN", { into: { array: factors.xx, accumulate: true } });
    columnSum(gpu, input, { array: factors.x, accumulate: true });
    factors.rows += input.shape[0] ?? 0;
  }

  gradient(): void {}

  async blocks(passes: number): Promise<Block[]> {
    const { gpu } = this.#theta.engine;
    return Promise.all(
      this.#layers.map(async (layer, index) => {
        const { shape } = layer;
        const { xx, x, gg, rows } = this.#factors[index] as Factors;
        const [inputs, sum, outputs] = await Promise.all([xx, x, gg].map((array) => readArray(gpu, array)));
        const m = width(shape);
        const A = symmetric(m, (r, c) => {
          if (r === shape.inputs) return c === shape.inputs ? 1 : (sum?.[c] ?? 0) / rows;
          return (inputs?.[r * shape.inputs + c] ?? 0) / rows;
        });
        const G = symmetric(shape.outputs, (r, c) => (outputs?.[r * shape.outputs + c] ?? 0) / passes);
        return { slices: slicesOf(layer), curvature: kroneckerCurvature(A, G, shape), layer: shape };
      }),
    );
  }

  dispose(): void {
    const { gpu } = this.#theta.engine;
    for (const { xx, x, gg } of this.#factors) for (const { buffer } of [xx, x, gg]) gpu.release(buffer);
  }
}

/** From the lower triangle, c ≤ r. */
function symmetric(n: number, at: (r: number, c: number) => number): Matrix {
  const S = new Matrix(n, n);
  for (let r = 0; r < n; r++) {
    for (let c = 0; c <= r; c++) {
      S.set(r, c, at(r, c));
      S.set(c, r, at(r, c));
    }
  }
  return S;
}
