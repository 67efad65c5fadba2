/**
 * @file Pretrains the default's encoder, MLM + NSP, on documents that the grammar writes: what a big BERT learns from
 * books, this one learns from Lantern Quay. A quarter of an hour on lavapipe.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { readText } from "../../src/data/files.ts";
import { parseJson } from "../../src/data/json.ts";
import { BertTokenizer } from "../../src/data/tokenizer.ts";
import { exportTensors } from "../../src/model/load.ts";
import { BertForPreTraining } from "../../src/model/pretraining.ts";
import { type TensorToWrite, writeSafetensors } from "../../src/model/safetensors.ts";
import { open } from "../../src/open.ts";
import { adam, fit, gaussianPrior, logPosterior, pretrainingSource } from "../../src/train/index.ts";

export interface PretrainOptions {
  /** The corpus. */
  documents: readonly (readonly string[])[];
  /** Has vocab.txt and config.json; model.safetensors is written beside them. */
  folder: string;
  epochs: number;
  batch: number;
  lr: number;
  seed: number;
}

export async function pretrain({ documents, folder, epochs, batch, lr, seed }: PretrainOptions): Promise<void> {
  const engine = await open();
  const name = join(folder, "config.json");
  const config = parseJson(readText(name), name) as Record<string, never>;
  const tokenizer = BertTokenizer.from({ vocab: { name: "vocab.txt", text: readText(join(folder, "vocab.txt")) } });
  // Nothing is loaded: pretraining starts at random, and its own prior is flat.
  const empty = { name, config, shapes: new Map<string, number[]>(), read: async () => new Float32Array() };
  const model = await BertForPreTraining.load(engine, empty, { scratch: true, seed });
  const source = pretrainingSource(documents, tokenizer, { maxLength: 64, seed });
  const prior = gaussianPrior(model, { encoder: { precision: 0 }, head: { precision: 0 } });
  const target = logPosterior(model, prior, { N: source.length });
  const steps = Math.ceil(source.length / batch) * epochs;
  let sum = 0;
  // No dropout here: 64 channels have no capacity to spare, and no document is seen twice.
  for await (const { step, nll } of fit(target, source, {
    optimizer: adam({ lr }),
    epochs,
    batch,
    seed,
    clip: 1,
    warmup: 0.04,
    dropout: false,
  })) {
    sum += nll;
    if (step % 100 !== 0 && step !== steps) continue;
    console.log(`step ${step} of ${steps}: MLM + NSP ${(sum / (step % 100 || 100)).toFixed(3)} nats`);
    sum = 0;
  }
  const tensors: TensorToWrite[] = [];
  for await (const tensor of exportTensors(model.theta)) tensors.push({ ...tensor, dtype: "F32" });
  writeFileSync(join(folder, "model.safetensors"), writeSafetensors(tensors));
  prior.dispose();
  model.dispose();
  engine.close();
}
