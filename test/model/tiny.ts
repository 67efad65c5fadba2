/** @file A tiny BERT with random weights, as a checkpoint in memory. */
import { sizeOf } from "../../src/kernels/array.ts";
import { encoderSlices } from "../../src/model/bert.ts";
import { parseBertConfig } from "../../src/model/config.ts";
import type { Checkpoint } from "../../src/model/load.ts";
import { randn } from "../kernels/harness.ts";

export function tinyCheckpoint({ layers = 2, hidden = 16, heads = 2, vocabulary = 40, dropout = 0 } = {}): Checkpoint {
  const config = {
    model_type: "bert",
    vocab_size: vocabulary,
    hidden_size: hidden,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    intermediate_size: 2 * hidden,
    max_position_embeddings: 32,
    type_vocab_size: 2,
    hidden_act: "gelu",
    layer_norm_eps: 1e-12,
    hidden_dropout_prob: dropout,
    attention_probs_dropout_prob: dropout,
  };
  const parameters = encoderSlices(parseBertConfig(config, "tiny"), true).flatMap((slice) => slice.parameters);
  const tensors = new Map(
    parameters.map(({ name, shape }, i) => {
      const data = randn(100 + i, sizeOf(shape), 0.3);
      return [name, name.endsWith("LayerNorm.weight") ? data.map((x) => 1 + x) : data];
    }),
  );
  return {
    name: "tiny",
    config,
    shapes: new Map(parameters.map(({ name, shape }) => [name, shape])),
    read: async (name) => tensors.get(name) as Float32Array,
  };
}
