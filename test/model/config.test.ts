/** @file config.json: Hugging Face's fields and names, each unsupported one refused by name, and writing for Python. */

import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { InputError } from "../../src/errors.ts";
import { parseBertConfig, serialiseConfig } from "../../src/model/config.ts";
import { needs, shared } from "../data/shared.ts";

const parse = (fields: object) => parseBertConfig(JSON.stringify(fields), "config.json");
const says = (fields: object, message: string) => {
  expect(() => parse(fields)).toThrow(InputError);
  expect(() => parse(fields)).toThrow(`config.json: ${message}`);
};

describe("reading", () => {
  it("takes BERT-base's defaults where a field is absent", () => {
    const { raw, ...config } = parse({});
    expect(config).toEqual({
      vocabSize: 30522,
      hiddenSize: 768,
      layers: 12,
      heads: 12,
      intermediateSize: 3072,
      maxPositions: 512,
      typeVocabSize: 2,
      hiddenAct: "gelu",
      layerNormEps: 1e-12,
      hiddenDropout: 0.1,
      attentionDropout: 0.1,
      initializerRange: 0.02,
      padTokenId: 0,
      tieWordEmbeddings: true,
    });
    expect(raw).toEqual({});
  });

  it("takes every field that is there", () => {
    const config = parse({
      vocab_size: 100,
      hidden_size: 64,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      intermediate_size: 99,
      max_position_embeddings: 40,
      type_vocab_size: 1,
      layer_norm_eps: 1e-5,
      hidden_dropout_prob: 0,
      attention_probs_dropout_prob: 0.2,
      classifier_dropout: 0.3,
      initializer_range: 0.5,
      pad_token_id: null,
      tie_word_embeddings: false,
      id2label: { "1": "pos", "0": "neg" },
      model_type: "bert",
      architectures: ["BertForSequenceClassification"],
      pruned_heads: {},
      is_decoder: false,
      problem_type: null,
    });
    const { raw: _, ...rest } = config;
    expect(rest).toEqual({
      vocabSize: 100,
      hiddenSize: 64,
      layers: 2,
      heads: 4,
      intermediateSize: 99,
      maxPositions: 40,
      typeVocabSize: 1,
      hiddenAct: "gelu",
      layerNormEps: 1e-5,
      hiddenDropout: 0,
      attentionDropout: 0.2,
      classifierDropout: 0.3,
      initializerRange: 0.5,
      tieWordEmbeddings: false,
      labels: ["neg", "pos"],
    });
    expect("classifierDropout" in parse({ classifier_dropout: null })).toBe(false);
  });

  it.each([
    ["gelu", "gelu"],
    ["gelu_python", "gelu"],
    ["gelu_new", "gelu_tanh"],
    ["gelu_pytorch_tanh", "gelu_tanh"],
    ["relu", "relu"],
    ["swish", "silu"],
    ["silu", "silu"],
    ["tanh", "tanh"],
  ])("hidden_act %s is %s", (name, act) => expect(parse({ hidden_act: name }).hiddenAct).toBe(act));
});

describe("refusing", () => {
  it("what is not a config", () => {
    expect(() => parseBertConfig("{", "config.json")).toThrow("config.json: not valid JSON");
    expect(() => parseBertConfig("", "config.json")).toThrow("config.json: the file is empty");
    expect(() => parseBertConfig("3", "config.json")).toThrow("config.json: not a JSON object");
    expect(() => parseBertConfig('{"hidden_size": 64,\n"hidden_size": 128}', "config.json")).toThrow(
      'config.json: the key "hidden_size" stands twice (line 2)',
    );
    expect(() => parseBertConfig(`{"a": [${"[],".repeat(600_000)}1]}`, "config.json")).toThrow(
      "brackets (expected at most",
    );
  });

  it.each<[object, string]>([
    [{ model_type: "roberta" }, 'model_type is "roberta" (expected "bert"). This is not supported'],
    [{ architectures: ["RobertaModel"] }, 'architectures is ["RobertaModel"] (expected a BERT'],
    [{ position_embedding_type: "relative_key" }, 'position_embedding_type is "relative_key" (expected "absolute")'],
    [{ is_decoder: true }, "is_decoder is true (expected false)"],
    [{ add_cross_attention: true }, "add_cross_attention is true"],
    [{ is_encoder_decoder: true }, "is_encoder_decoder is true"],
    [{ quantization_config: { bits: 8 } }, 'quantization_config is {"bits":8} (expected none)'],
    [{ pruned_heads: { "0": [1] } }, 'pruned_heads is {"0":[1]}'],
    [{ auto_map: { AutoModel: "m.M" } }, "auto_map is "],
    [{ problem_type: "regression" }, 'problem_type is "regression"'],
    [{ embedding_size: 128 }, "embedding_size is 128 (expected hidden_size)"],
    [{ hidden_size: 770 }, "hidden_size is 770 (not a multiple of num_attention_heads, 12). Correct one of them."],
    [{ hidden_act: "gelu_nw" }, 'hidden_act is "gelu_nw" (expected one of gelu, '],
    [{ hidden_act: "quick_gelu" }, 'hidden_act is "quick_gelu"'],
    [{ hidden_act: "toString" }, 'hidden_act is "toString"'],
    [{ hidden_act: 3 }, "hidden_act is 3"],
    [{ hidden_size: "768" }, 'hidden_size is "768" (expected a whole number from 1 to 65536). Correct it.'],
    [{ hidden_size: null }, "hidden_size is null (expected a whole number"],
    [{ vocab_size: 0 }, "vocab_size is 0 (expected a whole number from 1"],
    [{ vocab_size: 1e12 }, "vocab_size is 1000000000000"],
    [{ num_hidden_layers: -1 }, "num_hidden_layers is -1"],
    [{ num_hidden_layers: 2.5 }, "num_hidden_layers is 2.5"],
    [{ max_position_embeddings: 1e9 }, "max_position_embeddings is 1000000000"],
    [{ layer_norm_eps: 0 }, "layer_norm_eps is 0 (expected a number from 1e-38 to 1)"],
    [{ layer_norm_eps: "1e-12" }, 'layer_norm_eps is "1e-12"'],
    [{ hidden_dropout_prob: 1 }, "hidden_dropout_prob is 1 (expected a number from 0, below 1)"],
    [{ classifier_dropout: -0.1 }, "classifier_dropout is -0.1"],
    [{ pad_token_id: -1 }, "pad_token_id is -1"],
    [{ tie_word_embeddings: 1 }, "tie_word_embeddings is 1 (expected true or false)"],
    [{ id2label: ["a"] }, 'id2label is ["a"] (expected an object'],
    [
      { id2label: { "0": "a", "2": "b" } },
      'id2label is {"0":"a","2":"b"} (expected a name for each id from 0 to 1; 1 has none)',
    ],
    [{ id2label: { "0": "a", "1": "a" } }, 'id2label is {"0":"a","1":"a"} ("a" has two ids)'],
    [{ id2label: { "0": "a", "1": "b" }, num_labels: 3 }, "num_labels is 3 (id2label has 2 names)"],
  ])("%j", (fields, message) => says(fields, message));
});

describe("writing", () => {
  it("writes floats as floats and whole numbers as whole numbers, at any depth", () => {
    const text = serialiseConfig({
      layer_norm_eps: 1e-12,
      hidden_dropout_prob: 0,
      classifier_dropout: null,
      initializer_range: 1,
      attention_probs_dropout_prob: 0.1,
      hidden_size: 64,
      id2label: { "0": 'a"b' },
      architectures: ["BertModel"],
      priorwork: { readout: "mean", temperature: 2, head: [] },
      absent: undefined,
    });
    expect(text).toBe(`{
  "layer_norm_eps": 1e-12,
  "hidden_dropout_prob": 0.0,
  "classifier_dropout": null,
  "initializer_range": 1.0,
  "attention_probs_dropout_prob": 0.1,
  "hidden_size": 64,
  "id2label": {
    "0": "a\\"b"
  },
  "architectures": [
    "BertModel"
  ],
  "priorwork": {
    "readout": "mean",
    "temperature": 2.0,
    "head": []
  }
}
`);
    expect(() => serialiseConfig({ hidden_size: Number.NaN })).toThrow("hidden_size: NaN cannot be written as JSON");
  });

  it("keeps a config that was read", () => {
    const raw = { hidden_size: 24, num_attention_heads: 2, hidden_dropout_prob: 0, note: ["x", { y: null }] };
    expect(parseBertConfig(serialiseConfig(parse(raw).raw), "config.json").raw).toEqual(raw);
  });
});

const real = needs("models/all-MiniLM-L6-v2/config.json", "data/vocab/bert-base-chinese/bert_config.json");
describe.skipIf(real.skip)(real.named("real configs"), () => {
  it("MiniLM's and Chinese BERT's, which has no model_type", () => {
    const read = (path: string) => parseBertConfig(readFileSync(shared(path), "utf8"), path);
    const { layers, hiddenSize, heads, layerNormEps } = read("models/all-MiniLM-L6-v2/config.json");
    expect([layers, hiddenSize, heads, layerNormEps]).toEqual([6, 384, 12, 1e-12]);
    expect(read("data/vocab/bert-base-chinese/bert_config.json").vocabSize).toBe(21128);
  });
});
