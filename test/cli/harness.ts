/**
 * @file What the command line's tests share: a tiny random BERT in a folder, tables, and a command run in this process
 * with its output kept, on the device that tests share unless the command is about opening one.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { vi } from "vitest";
import type { Io } from "../../src/cli/io.ts";
import { main } from "../../src/cli/main.ts";
import { Gpu, type PooledBuffer } from "../../src/gpu/index.ts";
import * as node from "../../src/gpu/node.ts";
import { choicesInForce, useChoices } from "../../src/kernels/matmul-choice.ts";
import { type TensorToWrite, writeSafetensors } from "../../src/model/safetensors.ts";
import { Stream } from "../../src/random.ts";
import { sharedGpu } from "../kernels/harness.ts";

const WORDS = ["good", "fine", "great", "bad", "poor", "awful", "film", "plot", "the", "a", "is", "was", "not", "very"];
const VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ...WORDS, "##s", ".", "<", ">"];
const [C, F, LAYERS, POSITIONS] = [16, 32, 2, 24];

export const CONFIG = {
  architectures: ["BertModel"],
  model_type: "bert",
  vocab_size: VOCABULARY.length,
  hidden_size: C,
  num_hidden_layers: LAYERS,
  num_attention_heads: 2,
  intermediate_size: F,
  max_position_embeddings: POSITIONS,
  type_vocab_size: 2,
  hidden_act: "gelu",
  layer_norm_eps: 1e-12,
  hidden_dropout_prob: 0,
  attention_probs_dropout_prob: 0,
  initializer_range: 0.02,
};

/** The tensors of a tiny BERT with its pooler, random but always the same; with `mlm` the masked-language-model head. */
export function tinyTensors({ mlm = false } = {}): TensorToWrite[] {
  const stream = new Stream(7, "tiny");
  const tensors: TensorToWrite[] = [];
  const add = (name: string, ...shape: number[]) => {
    const centre = name.endsWith("LayerNorm.weight") ? 1 : 0;
    const data = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => centre + 0.2 * stream.normal());
    tensors.push({ name, dtype: "F32", shape, data });
  };
  const dense = (name: string, out: number, input: number) => {
    add(`${name}.weight`, out, input);
    add(`${name}.bias`, out);
  };
  const norm = (name: string) => {
    add(`${name}.LayerNorm.weight`, C);
    add(`${name}.LayerNorm.bias`, C);
  };
  add("bert.embeddings.word_embeddings.weight", VOCABULARY.length, C);
  add("bert.embeddings.position_embeddings.weight", POSITIONS, C);
  add("bert.embeddings.token_type_embeddings.weight", 2, C);
  norm("bert.embeddings");
  for (let i = 0; i < LAYERS; i++) {
    const layer = `bert.encoder.layer.${i}`;
    for (const part of ["query", "key", "value"]) dense(`${layer}.attention.self.${part}`, C, C);
    dense(`${layer}.attention.output.dense`, C, C);
    norm(`${layer}.attention.output`);
    dense(`${layer}.intermediate.dense`, F, C);
    dense(`${layer}.output.dense`, C, F);
    norm(`${layer}.output`);
  }
  dense("bert.pooler.dense", C, C);
  if (mlm) {
    dense("cls.predictions.transform.dense", C, C);
    norm("cls.predictions.transform");
    add("cls.predictions.bias", VOCABULARY.length);
  }
  return tensors;
}

/** Writes a model folder with the config's changes; returns its path. */
export function writeModel(folder: string, { config = {}, tensors = tinyTensors() } = {}): string {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...CONFIG, ...config }));
  writeFileSync(join(folder, "vocab.txt"), `${VOCABULARY.join("\n")}\n`);
  writeFileSync(join(folder, "model.safetensors"), writeSafetensors(tensors));
  return folder;
}

/** A table of `n` sentences whose label is one of two words; the same for the same seed. */
export function writeRows(path: string, n: number, seed: number): string {
  const stream = new Stream(seed, "rows");
  const rows = Array.from({ length: n }, (_, i) => {
    const good = i % 2 === 0;
    const word = WORDS[(good ? 0 : 3) + stream.integer(3)];
    const filler = Array.from({ length: 1 + stream.integer(6) }, () => WORDS[6 + stream.integer(8)]).join(" ");
    return `${filler} ${word} .\t${good ? "pos" : "neg"}`;
  });
  writeFileSync(path, `sentence\tlabel\n${rows.join("\n")}\n`);
  return path;
}

export interface Ran {
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs a command line in this process. `interrupt`: called with each piece of stderr and with the way to Ctrl-C. */
export async function run(
  argv: readonly string[],
  options: { env?: Record<string, string>; onStderr?: (text: string, interrupt: () => void) => void } = {},
): Promise<Ran> {
  const interrupted = new AbortController();
  let [stdout, stderr] = ["", ""];
  let ticks = 0;
  const io: Io = {
    stdout: { write: (text) => (stdout += text) },
    stderr: {
      write: (text) => {
        stderr += text;
        options.onStderr?.(text, () => interrupted.abort());
      },
    },
    // Whatever this machine was tuned to is not what the tests are about.
    env: { PRIORWORK_ADAPTER: process.env.PRIORWORK_ADAPTER, PRIORWORK_TUNED: "0", ...options.env },
    signal: interrupted.signal,
    // A clock on which every look takes 20 s: each step is worth a line, each epoch's end a checkpoint.
    now: () => 20_000 * ticks++,
  };
  const code = await onSharedDevice(io, () => main(argv, io));
  return { code, stdout, stderr };
}

/**
 * Runs a command on the device that tests share, and leaves that as it was found: a command may leave its buffers to the
 * end of its device. Doctor's way of opening one is its subject, and DEBUG shows what is compiled: those open their own.
 */
export async function onSharedDevice<T>({ env }: Io, body: () => Promise<T>): Promise<T> {
  if (env.DEBUG || env.PRIORWORK_ADAPTER !== process.env.PRIORWORK_ADAPTER) return body();
  const gpu = await sharedGpu();
  const choices = choicesInForce(gpu);
  useChoices(gpu, undefined);
  const made: PooledBuffer[] = [];
  const { openGpu } = node;
  const spies = [
    vi.spyOn(node, "openGpu").mockImplementation(async (options) => (options?.onAttempt ? openGpu(options) : gpu)),
    vi.spyOn(gpu, "destroy").mockImplementation(() => {}),
    vi.spyOn(gpu, "allocate").mockImplementation((...args) => {
      const buffer = Gpu.prototype.allocate.apply(gpu, args);
      made.push(buffer);
      return buffer;
    }),
  ];
  try {
    return await body();
  } finally {
    for (const spy of spies) spy.mockRestore();
    useChoices(gpu, choices);
    for (const buffer of made) if (buffer.live) gpu.release(buffer);
  }
}
