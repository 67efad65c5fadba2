/**
 * @file Training a head on an encoder at rest: where everything below the readout is frozen (τ = ∞), an example's vector is
 * the same in every epoch, so it is computed once and kept on the device. A step is then a gather and the head. The head's
 * dropout is drawn as ever, and a packed batch's sequences do not see each other: the result is that of the long way.
 */
import type { Engine, Theta } from "../autograd/index.ts";
import { ops, Tensor } from "../autograd/index.ts";
import { type Example, packBatch } from "../data/batches.ts";
import { empty, fromHost, NdArray } from "../kernels/index.ts";
import { BertForSequenceClassification, type DropoutKeys, expectOneModel } from "../model/bert.ts";
import { MEMBERS_GROUP } from "../model/rank-one.ts";
import type { Likelihood } from "./objective.ts";
import type { Source } from "./source.ts";

/** Rows of the data, by their number. */
export interface FeatureBatch {
  rows: readonly number[];
  tokens: number;
}

/** Sequences that go through the encoder at once. */
const CHUNK = 32;

/** The likelihood of a head alone, and its data: n vectors [n, width] in place of n texts. */
export class FrozenFeatures implements Likelihood<FeatureBatch>, Source<FeatureBatch> {
  readonly lengths: readonly number[];
  readonly #model: BertForSequenceClassification;
  readonly #examples: readonly Example[];
  readonly #weighted: boolean;
  #features: NdArray | undefined;

  constructor(model: BertForSequenceClassification, examples: readonly Example[]) {
    this.#model = model;
    this.#examples = examples;
    this.#weighted = examples.some(({ weight }) => weight !== undefined);
    this.lengths = examples.map(({ ids }) => ids.length);
  }

  get engine(): Engine {
    return this.#model.engine;
  }

  get theta(): Theta {
    return this.#model.theta;
  }

  get length(): number {
    return this.#examples.length;
  }

  batch(rows: readonly number[]): FeatureBatch {
    return { rows, tokens: rows.reduce((sum, row) => sum + (this.lengths[row] ?? 0), 0) };
  }

  loss({ rows }: FeatureBatch, dropout?: DropoutKeys): { nlls: Tensor; count: number } {
    // A copy for each rank-one member: the vectors are the same, the heads are not.
    const S = this.#model.rankOne?.members;
    const logits = this.#model.classify(this.#copies(rows, S ?? 1), dropout, S); // [B, K] or [S·B, K]
    return { nlls: this.#nllsOf(logits, rows), count: rows.length };
  }

  twice({ rows }: FeatureBatch, dropout?: DropoutKeys): { nlls: Tensor; logits: Tensor; count: number } {
    expectOneModel(this.#model);
    const logits = this.#model.classify(this.#copies(rows, 2), dropout); // [2B, K]
    return { nlls: this.#nllsOf(logits, [...rows, ...rows]), logits, count: rows.length };
  }

  /** The rows' vectors S times over, [S·B, width]. */
  #copies(rows: readonly number[], S: number): Tensor {
    this.#features ??= this.#compute();
    const index = Uint32Array.from({ length: S * rows.length }, (_, i) => rows[i % rows.length] ?? 0);
    return ops.rows(new Tensor(this.engine, this.#features), fromHost(this.engine.gpu, index));
  }

  #nllsOf(logits: Tensor, rows: readonly number[]): Tensor {
    const labels = Uint32Array.from(rows, (row) => this.#examples[row]?.label as number);
    const weights = this.#weighted ? Float32Array.from(rows, (row) => this.#examples[row]?.weight ?? 1) : undefined;
    return this.#model.nllsOf(logits, labels, weights);
  }

  dispose(): void {
    if (this.#features) this.engine.gpu.release(this.#features.buffer);
    this.#features = undefined;
  }

  #compute(): NdArray {
    const { gpu } = this.engine;
    let all: NdArray | undefined;
    try {
      for (let from = 0; from < this.length; from += CHUNK) {
        const examples = this.#examples.slice(from, from + CHUNK);
        gpu.scope(() => {
          const { array } = this.engine.noGrad(() => this.#model.features(packBatch(examples)));
          const width = array.shape[1] as number;
          if (!all) {
            all = empty(gpu, [this.length, width], "f32", "frozen.features");
            gpu.keep(all.buffer);
          }
          gpu.copy(array, new NdArray(all.buffer, from * width * 4, [examples.length, width]));
        });
      }
    } catch (error) {
      if (all) gpu.release(all.buffer);
      throw error;
    }
    return all as NdArray;
  }
}

/** A likelihood and the source of its batches; dispose of it. */
export type FrozenLikelihood<B> = Likelihood<B> & Source<B> & Pick<FrozenFeatures, "dispose">;

/**
 * `data` as vectors, where that is the same thing: examples of a classifier of which nothing but the head learns, if the
 * device holds all their vectors in one buffer. What a batch is stays between the likelihood and the source that it is.
 */
export function frozenFeatures<B>(model: object, data: unknown): FrozenLikelihood<B> | undefined {
  if (!(model instanceof BertForSequenceClassification) || !Array.isArray(data)) return undefined;
  if (data.some((example: Example) => example.label === undefined)) return undefined;
  const { theta } = model;
  const learns = (group: string | undefined) =>
    group === "head" || (group === MEMBERS_GROUP && model.rankOne?.layers !== "all");
  if (!theta.layout.slices.every((slice) => learns(slice.groups[0]) || theta.isFrozen(slice))) return undefined;
  if (!featuresFit(model, data.length)) return undefined;
  return new FrozenFeatures(model, data as Example[]) as unknown as FrozenLikelihood<B>;
}

/** Whether the device holds the vectors of n examples in one buffer. */
export function featuresFit({ config, readout, engine }: BertForSequenceClassification, n: number): boolean {
  const { maxBufferSize, maxStorageBufferBindingSize } = engine.gpu.device.limits;
  return (
    4 * n * readout.width(config.hiddenSize, config.layers) <= Math.min(maxBufferSize, maxStorageBufferBindingSize)
  );
}
