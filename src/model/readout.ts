/**
 * @file Readouts: how the dense vectors that BERT gives every token become one vector per sequence. Three ways: the
 * [CLS] vector (with or without the pooler), all tokens (mean, max), or the last k layers by a formula (concatenate,
 * sum). A formula of your own is an object of five lines:
 *
 *     const clsAndMean: Readout = {
 *       name: "cls+mean",
 *       width: (C) => 2 * C,
 *       apply: (v) => ops.concat([v.cls(v.last(1)), v.mean(v.last(1))]),
 *     };
 */
import { ops, type Tensor } from "../autograd/index.ts";
import { InputError } from "../errors.ts";

/** What a readout may use. N tokens, B sequences, C channels. */
export interface Vectors {
  /** Output of the k-th layer from the end, [N, C]; k = 1 is the last layer, k = layers + 1 the embeddings. */
  last(k: number): Tensor;
  /** First token of every sequence: [N, C] → [B, C]. */
  cls(x: Tensor): Tensor;
  /** Mean over every sequence's tokens, [CLS] and [SEP] included: [N, C] → [B, C]. */
  mean(x: Tensor): Tensor;
  /** Largest value of every channel over the sequence: [N, C] → [B, C]. */
  max(x: Tensor): Tensor;
  /** BERT's pooler, tanh(W·x + b): [B, C] → [B, C]. Only where the checkpoint has one. */
  pooler(x: Tensor): Tensor;
}

export interface Readout {
  /** As on the command line. */
  readonly name: string;
  /** Channels of the result, for an encoder of `channels`. */
  width(channels: number, layers: number): number;
  /** True when the pooler's weights are needed. */
  readonly usesPooler?: boolean;
  /** How many of the last layers `apply` asks for (1 if not said): the others' outputs need not be kept. */
  readonly depth?: number;
  /** → [B, width]. */
  apply(vectors: Vectors): Tensor;
}

const BUILT_IN: Record<string, Readout> = {
  pooler: { name: "pooler", width: (c) => c, usesPooler: true, apply: (v) => v.pooler(v.cls(v.last(1))) },
  cls: { name: "cls", width: (c) => c, apply: (v) => v.cls(v.last(1)) },
  mean: { name: "mean", width: (c) => c, apply: (v) => v.mean(v.last(1)) },
  max: { name: "max", width: (c) => c, apply: (v) => v.max(v.last(1)) },
};

/** The names on offer, for help and errors. */
export const READOUTS = [...Object.keys(BUILT_IN), "last4-concat", "last4-sum"];

/**
 * A readout by name: pooler | cls | mean | max | lastK-concat | lastK-sum, where the last two take the [CLS] vector of
 * each of the last K layers, or with a suffix (`last4-concat-mean`) the mean or max over the tokens. Throws InputError.
 */
export function readoutNamed(name: string, layers: number): Readout {
  const known = BUILT_IN[name];
  if (known) return known;
  const match = /^last(\d+)-(concat|sum)(?:-(cls|mean|max))?$/.exec(name);
  if (!match)
    throw new InputError(
      `--readout ${name}: no such readout. Choose one of ${READOUTS.join(", ")} (any number for the 4).`,
    );
  const k = Number(match[1]);
  if (k < 1 || k > layers)
    throw new InputError(`--readout ${name}: this encoder has ${layers} layers. Choose last1 to last${layers}.`);
  const formula = match[2] as "concat" | "sum";
  const pick = (match[3] ?? "cls") as "cls" | "mean" | "max";
  return {
    name,
    depth: k,
    width: (c) => (formula === "concat" ? k * c : c),
    apply(v) {
      // From the k-th layer from the end up to the last, as the layers stand.
      const parts = Array.from({ length: k }, (_, i) => v[pick](v.last(k - i)));
      return formula === "concat" ? ops.concat(parts) : parts.reduce((a, b) => ops.add(a, b));
    },
  };
}
