/**
 * @file The Fisher information of a source task, F = E Σ ∇log p(ŷ|x, θ) ∇log p(ŷ|x, θ)ᵀ per likelihood term, as what that
 * task knew of θ: a posterior N(θ̂, (N·F + δI)⁻¹) of the source is the prior of what follows. ŷ is drawn from the model, not
 * taken from the data: only then are the scores of a batch independent with mean 0, so that one backward pass a batch gives
 *   E[(Σ_b g_b)²] = Σ_b E[g_b²]     element by element;
 * with the data's labels the cross terms stay, and at a good fit everything would be 0. A draw has the noise of χ²₁, so many
 * batches are taken. A part of rank k is what the k largest directions of the batches' scores hold.
 * (Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017; Kunstner, Balles and Hennig,
 * "Limitations of the empirical Fisher approximation", 2019; Mishkin et al., "SLANG", 2018, for diagonal plus rank k.)
 */
import { EigenvalueDecomposition, Matrix } from "ml-matrix";
import { type Engine, ops, Tensor, type Theta } from "../autograd/index.ts";
import type { PackedBatch } from "../data/batches.ts";
import { InputError } from "../errors.ts";
import type { Gpu } from "../gpu/index.ts";
import { addSquares, categorical, empty, fromHost, lowRankCombine, lowRankProject, type NdArray, normal, readArray } from "../kernels/index.ts"; // biome-ignore format: one line
import { slice, windows } from "../kernels/windows.ts";
import type { BertForPreTraining, PretrainingBatch } from "../model/pretraining.ts";
import { streamKey } from "../random.ts";
import type { LowRankNumbers } from "./shaped-priors.ts";
import { expectVectorRoom, type VectorPlan } from "./vector-room.ts";

/** A model that can label for itself. */
export interface Scores<B> {
  readonly engine: Engine;
  readonly theta: Theta;
  /** −Σ log p(ŷ|x, θ) over a batch, [1], ŷ drawn from the model by `key`, and how many likelihood terms. In `engine.step`. */
  draw(batch: B, key: readonly [number, number]): { loss: Tensor; count: number };
}

/** Labels of a classifier: a term an example. */
export function classifierScores<B>(model: {
  readonly engine: Engine;
  readonly theta: Theta;
  logits(batch: B): Tensor;
}): Scores<B> {
  return {
    engine: model.engine,
    theta: model.theta,
    draw(batch, key) {
      const logits = model.logits(batch);
      return { loss: drawn(model.engine.gpu, logits, key), count: logits.shape[0] ?? 0 };
    },
  };
}

/**
 * Masked tokens, and where the batch has pairs whether the second sentence followed: a term a sequence, with all of its
 * tokens in it (their sum, where the pretraining loss has a mean).
 */
export function pretrainingScores(model: BertForPreTraining): Scores<PretrainingBatch> {
  const { engine, theta } = model;
  return {
    engine,
    theta,
    draw(batch, key) {
      const { predictions, relationship, count } = model.loss(batch);
      const tokens = drawn(engine.gpu, predictions, streamKey(0, "tokens", ...key));
      if (!relationship) return { loss: tokens, count };
      return { loss: ops.add(tokens, drawn(engine.gpu, relationship, streamKey(0, "pairs", ...key))), count };
    },
  };
}

/** A model that has vectors, such as a classifier of which only the readout is meant. */
export interface FeatureModel<B = PackedBatch> {
  readonly engine: Engine;
  readonly theta: Theta;
  /** → [B, width] */
  features(batch: B): Tensor;
}

/**
 * For a checkpoint without a pretraining head: the information about v ~ N(readout(x; θ), σ²I), JᵀJ/σ², a term a text. Its
 * score is Jᵀε/σ with ε ~ N(0, I), one backward of εᵀ·readout. How far a weight may move before the vectors do.
 */
export function featureScores<B>(model: FeatureModel<B>, { sigma = 1 }: { sigma?: number } = {}): Scores<B> {
  if (!(sigma > 0 && Number.isFinite(sigma))) throw new InputError(`sigma: ${sigma} (expected a number above 0).`);
  const { engine, theta } = model;
  return {
    engine,
    theta,
    draw(batch, key) {
      const features = model.features(batch);
      const noise = new Tensor(engine, normal(engine.gpu, features.shape, key, 1 / sigma));
      return { loss: ops.sum(ops.multiply(features, noise)), count: features.shape[0] ?? 0 };
    },
  };
}

/** −Σ log p of classes that the logits themselves draw. */
function drawn(gpu: Gpu, logits: Tensor, key: readonly [number, number]): Tensor {
  return ops.sum(ops.crossEntropy(logits, categorical(gpu, logits.array, key)));
}

/** N·F + damping, by parameter. */
export interface FisherNumbers extends LowRankNumbers {
  readonly form: "precision";
  readonly diagonal: Map<string, Float32Array>;
  readonly factors: Map<string, Float32Array>;
}

/** Numbers of the vectors that are turned at once: 4 MB a column. */
const TURNED = 1 << 20;

/** What a collector will hold. */
export function fisherVectors(rank: number): VectorPlan {
  return { what: "Fisher information", rank, vectors: (rank) => 1 + 2 * rank };
}

/** Gathers a Fisher information batch by batch. Holds 1 + 2·rank vectors of θ's layout; dispose of it. */
export class FisherCollector<B> {
  readonly #scores: Scores<B>;
  readonly #rank: number;
  readonly #seed: number;
  /** Σ over batches of (Σ g)². */
  readonly #squares: NdArray;
  /** The k best directions so far, then the batches' scores since. */
  readonly #columns: NdArray[] = [];
  #filled = 0;
  #batches = 0;
  #terms = 0;
  #adding = false;

  /** Throws InputError unless rank is a whole number from 0, and where its vectors would leave no room within `maxBytes`. */
  constructor(
    scores: Scores<B>,
    { rank = 0, seed = 0, maxBytes }: { rank?: number; seed?: number; maxBytes?: number | undefined } = {},
  ) {
    if (!Number.isSafeInteger(rank) || rank < 0)
      throw new InputError(`rank: ${rank} (expected a whole number from 0).`);
    expectVectorRoom(scores.theta, fisherVectors(rank), maxBytes);
    this.#scores = scores;
    this.#rank = rank;
    this.#seed = seed;
    this.#squares = scores.theta.vector();
    for (let j = 0; j < 2 * rank; j++) this.#columns.push(scores.theta.vector());
  }

  /** Likelihood terms seen. */
  get terms(): number {
    return this.#terms;
  }

  get batches(): number {
    return this.#batches;
  }

  /** One forward and backward pass. Throws InputError where the log-likelihood is not finite; Error while another is under way. */
  async add(batch: B): Promise<void> {
    // Key and column are named by the count of batches, which goes up at the end.
    if (this.#adding) throw new Error("add: a batch is under way; await it first");
    this.#adding = true;
    try {
      await this.#add(batch);
    } finally {
      this.#adding = false;
    }
  }

  async #add(batch: B): Promise<void> {
    const { engine, theta } = this.#scores;
    const key = streamKey(this.#seed, "fisher", this.#batches);
    const { done, count } = engine.step(() => {
      theta.zeroGradient();
      const { loss, count } = this.#scores.draw(batch, key);
      engine.backward(loss);
      const gradient = theta.gradient();
      addSquares(engine.gpu, gradient, this.#squares, 1);
      const column = this.#columns[this.#filled];
      if (column) engine.gpu.copy(gradient, column);
      return { done: loss.item(), count };
    });
    const loss = await done;
    if (!Number.isFinite(loss)) throw new InputError(`fisher: the log-likelihood of batch ${this.#batches + 1} is ${loss}. The model is damaged.`); // biome-ignore format: one sentence
    this.#batches++;
    this.#terms += count;
    if (this.#rank > 0 && ++this.#filled === this.#columns.length) await this.#turn();
  }

  /**
   * Columns become the k largest principal directions of what they hold: with the Gram matrix SᵀS = VΛVᵀ, S·V's first k.
   * The others' part stays in the diagonal.
   */
  async #turn(): Promise<void> {
    const { engine, theta } = this.#scores;
    const { gpu } = engine;
    const held = this.#columns.slice(0, this.#filled);
    const all = [{ offset: 0, length: theta.layout.length, weight: 1 }];
    const rows = await engine.step(() => ({
      read: Promise.all(held.map((column) => readArray(gpu, lowRankProject(gpu, held, column, undefined, all)))),
    })).read;
    const bad = rows.findIndex((row) => row.some((x) => !Number.isFinite(x)));
    if (bad >= 0) throw notFinite(`the score of batch ${this.#batches - held.length + bad + 1} or of one before it`);
    const G = new Matrix(held.map((_, i) => held.map((_, j) => ((rows[i]?.[j] ?? 0) + (rows[j]?.[i] ?? 0)) / 2)));
    const { eigenvectorMatrix: V, realEigenvalues } = new EigenvalueDecomposition(G, { assumeSymmetric: true });
    const kept = Math.min(this.#rank, held.length);
    const order = realEigenvalues
      .map((value, index) => ({ value, index }))
      .sort((a, b) => b.value - a.value || a.index - b.index)
      .slice(0, kept);
    for (const window of windows(gpu, 0, theta.layout.length, 4 * TURNED)) {
      engine.step(() => {
        const pieces = held.map((column) => slice(column, window));
        const turned = order.map(({ index }) => {
          const c = new Float32Array(4 * Math.ceil(held.length / 4));
          for (let i = 0; i < held.length; i++) c[i] = V.get(i, index);
          const out = empty(gpu, [window.length], "f32", "fisher.turn");
          const whole = [{ offset: 0, length: window.length, weight: 1 }];
          lowRankCombine(gpu, pieces, fromHost(gpu, c, [c.length / 4, 4]), out, whole);
          return out;
        });
        for (const [j, out] of turned.entries()) gpu.copy(out, pieces[j] as NdArray);
      });
    }
    this.#filled = kept;
  }

  /**
   * N·F + damping, as a prior's numbers: the precision of what N terms like these would leave behind on a start of
   * precision `damping`. With a rank the diagonal is what UUᵀ leaves of it, so that the whole keeps N·F's diagonal. Only
   * the parameters that `wanted` names. Throws InputError: no batch, N or damping out of range, an information that is not
   * finite.
   */
  async numbers(
    { N, damping }: { N: number; damping: number },
    wanted: (name: string) => boolean = () => true,
  ): Promise<FisherNumbers> {
    if (this.#adding) throw new Error("numbers: a batch is under way; await it first");
    if (this.#terms === 0) throw new InputError("fisher: no batch was seen. Give it a text.");
    if (!(N > 0 && Number.isFinite(N))) throw new InputError(`fisher: N is ${N} (expected a number above 0).`);
    if (!(damping >= 0 && Number.isFinite(damping))) throw new InputError(`fisher: damping is ${damping} (expected a number from 0).`); // biome-ignore format: one sentence
    if (this.#rank > 0 && this.#filled > this.#rank) await this.#turn();
    const { theta } = this.#scores;
    const rank = Math.min(this.#rank, this.#filled);
    const scale = N / this.#terms;
    const [diagonal, factors] = [new Map<string, Float32Array>(), new Map<string, Float32Array>()];
    for (const slice of theta.layout.slices) {
      for (const { name, size } of slice.parameters) {
        if (!wanted(name)) continue;
        const values = (await theta.get(name, this.#squares)).map((x) => scale * x);
        const U = new Float32Array(rank * size);
        for (let j = 0; j < rank; j++) {
          const column = await theta.get(name, this.#columns[j]);
          for (let i = 0; i < size; i++) {
            const u = Math.sqrt(scale) * (column[i] ?? 0);
            U[j * size + i] = u;
            values[i] = (values[i] ?? 0) - u * u;
          }
        }
        // Math.max below would hand a NaN on.
        const bad = values.findIndex((x) => !Number.isFinite(x));
        if (bad >= 0) throw notFinite(`the information of ${name} at position ${bad} (${values[bad]})`);
        // What rounding leaves below 0 is 0.
        diagonal.set(
          name,
          values.map((x) => Math.max(0, x) + damping),
        );
        if (rank > 0) factors.set(name, U);
      }
    }
    return { form: "precision", diagonal, rank, factors };
  }

  dispose(): void {
    const { theta } = this.#scores;
    for (const vector of [this.#squares, ...this.#columns]) theta.release(vector);
  }
}

function notFinite(what: string): InputError {
  return new InputError(`fisher: ${what} is not finite: a gradient left f32. The model is damaged, or its logits are too large.`); // biome-ignore format: one sentence
}
