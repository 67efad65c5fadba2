/**
 * @file The heads that BERT was pretrained with (Devlin et al. 2019, §3.1; names as in Hugging Face's
 * `BertForPreTraining`): masked tokens, and whether the second sentence followed the first.
 */
import { type Engine, ops, type SliceSpec, type Tensor, type Theta } from "../autograd/index.ts";
import type { PackedBatch } from "../data/batches.ts";
import { InputError } from "../errors.ts";
import { fromHost } from "../kernels/index.ts";
import { BertEncoder, type DropoutKeys, start, withCheckpoint } from "./bert.ts";
import type { BertConfig } from "./config.ts";
import { type Checkpoint, checkSizes, type LoadReport } from "./load.ts";

/** A packed batch of sentence pairs with masked tokens. */
export interface PretrainingBatch extends PackedBatch {
  /** Rows whose token is to be predicted, u32 [M]. */
  maskedRows: Uint32Array;
  /** The tokens that stood there, u32 [M]. */
  maskedTargets: Uint32Array;
  /** 0: the second sentence followed the first; 1: it did not. u32 [B]. */
  nextSentence?: Uint32Array;
}

/** Slices of the pretraining heads; the decoder's weight is the word embeddings themselves. */
export function pretrainingSlices(config: BertConfig, nextSentence: boolean): SliceSpec[] {
  const { hiddenSize: c, vocabSize } = config;
  const one = (name: string, shape: number[]): SliceSpec => ({
    key: name,
    parameters: [{ name, shape }],
    groups: ["head"],
  });
  return [
    one("cls.predictions.transform.dense.weight", [c, c]),
    one("cls.predictions.transform.dense.bias", [c]),
    one("cls.predictions.transform.LayerNorm.weight", [c]),
    one("cls.predictions.transform.LayerNorm.bias", [c]),
    one("cls.predictions.bias", [vocabSize]),
    ...(nextSentence ? [one("cls.seq_relationship.weight", [2, c]), one("cls.seq_relationship.bias", [2])] : []),
  ];
}

/** Masked-language-model and next-sentence heads, as BERT was pretrained. */
export class BertForPreTraining {
  readonly encoder: BertEncoder;
  readonly newParameters = new Set<string>();
  readonly hasNextSentence: boolean;

  constructor(engine: Engine, config: BertConfig, { nextSentence = true } = {}) {
    this.hasNextSentence = nextSentence;
    this.encoder = new BertEncoder(engine, config, pretrainingSlices(config, nextSentence), nextSentence);
  }

  /** As `BertForSequenceClassification.load`; heads that the checkpoint lacks are new. */
  static async load(
    engine: Engine,
    source: string | Checkpoint,
    { nextSentence = true, seed = 0, scratch = false, recompute = false } = {},
  ): Promise<BertForPreTraining & { report: LoadReport }> {
    return withCheckpoint(source, async (checkpoint, config) => {
      if (!config.tieWordEmbeddings) {
        throw new InputError(
          `${checkpoint.name}: tie_word_embeddings is false (expected true). The decoder of the masked-language-model head is the word embeddings here; use a checkpoint that ties them.`,
        );
      }
      if (!scratch) checkSizes(checkpoint, config);
      const model = new BertForPreTraining(engine, config, { nextSentence });
      model.encoder.recompute = recompute;
      return start(model, checkpoint, { seed, scratch });
    });
  }

  get engine(): Engine {
    return this.encoder.engine;
  }

  get theta(): Theta {
    return this.encoder.theta;
  }

  get config(): BertConfig {
    return this.encoder.config;
  }

  /** Scores of the whole vocabulary at some rows: x [N, C], rows u32 [M] → [M, V]. */
  predictions(x: Tensor, maskedRows: Uint32Array): Tensor {
    const p = (name: string) => this.theta.tensor(`cls.predictions.${name}`);
    const masked = ops.rows(x, fromHost(this.engine.gpu, maskedRows)); // [M, C]
    const transformed = ops.linear(masked, p("transform.dense.weight"), {
      bias: p("transform.dense.bias"),
      activation: this.config.hiddenAct,
    });
    const normalised = ops.layerNorm(
      transformed,
      p("transform.LayerNorm.weight"),
      p("transform.LayerNorm.bias"),
      this.config.layerNormEps,
    );
    return ops.linear(normalised, this.theta.tensor("bert.embeddings.word_embeddings.weight"), { bias: p("bias") });
  }

  /**
   * NLLs in nats, [B], a likelihood term a sequence (a pair of sentences, or a sentence). A term is the mean NLL over all
   * masked tokens of the batch (`mlm`, [1]) plus the pair's own next-sentence NLL (`nsp`, [B]): their mean over the batch
   * is BERT's pretraining loss, mean MLM + mean NSP, and every masked token of a batch has the same weight.
   */
  loss(
    batch: PretrainingBatch,
    keys?: DropoutKeys,
  ): {
    nlls: Tensor;
    count: number;
    mlm: Tensor;
    nsp: Tensor | undefined;
    predictions: Tensor;
    relationship: Tensor | undefined;
  } {
    const { encoder, engine, theta } = this;
    const count = batch.sequences;
    const device = encoder.upload(batch);
    const x = encoder.states(device, keys, 1).at(-1) as Tensor;
    const predictions = this.predictions(x, batch.maskedRows);
    const mlm = ops.mean(ops.crossEntropy(predictions, fromHost(engine.gpu, batch.maskedTargets)));
    const ones = engine.tensor(new Float32Array(count).fill(1), [count, 1]);
    /** [1] → [B], `nsp` added. */
    const spread = (nsp?: Tensor) => {
      const residual = nsp && ops.reshape(nsp, [count, 1]);
      return ops.reshape(ops.linear(ones, ops.reshape(mlm, [1, 1]), residual ? { residual } : {}), [count]);
    };
    if (!this.hasNextSentence || !batch.nextSentence)
      return { nlls: spread(), count, mlm, nsp: undefined, predictions, relationship: undefined };
    const pooled = encoder.pooler(ops.rows(x, device.first));
    const relationship = ops.linear(pooled, theta.tensor("cls.seq_relationship.weight"), {
      bias: theta.tensor("cls.seq_relationship.bias"),
    });
    const nsp = ops.crossEntropy(relationship, fromHost(engine.gpu, batch.nextSentence)); // [B]
    return { nlls: spread(nsp), count, mlm, nsp, predictions, relationship };
  }

  dispose(): void {
    this.theta.dispose();
  }
}
