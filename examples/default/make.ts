/**
 * @file `npm run make:default`: makes everything in this folder that is data, from one seed. The word pieces, the model's
 * config, 64 labelled sentences to fine-tune on and 400 to measure on (with their exact posteriors), and the pretrained
 * weights. The corpus that the weights are pretrained on is generated in memory and never stored.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Stream } from "../../src/random.ts";
import { bayesOptimal } from "./bayes.ts";
import { Grammar, LABELS, type Labelled } from "./grammar.ts";
import { pretrain } from "./pretrain.ts";
import { buildVocabulary } from "./vocabulary.ts";

/** Of 1 to 4 the one whose drawn labels are the most typical: the best possible scores on them as it does on average. */
export const SEED = 4;
export const TRAIN = 64;
export const DEV = 400;
export const DOCUMENTS = 80_000;

/** A Hugging Face BertConfig: 2 layers × 64 channels, 4 heads of 16. */
export function modelConfig(vocabularySize: number) {
  return {
    architectures: ["BertForPreTraining"],
    model_type: "bert",
    vocab_size: vocabularySize,
    hidden_size: 64,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    intermediate_size: 128,
    hidden_act: "gelu",
    hidden_dropout_prob: 0.1,
    attention_probs_dropout_prob: 0.1,
    max_position_embeddings: 64,
    type_vocab_size: 2,
    initializer_range: 0.12, // about 1/√64; BERT's 0.02 is for 768 channels
    layer_norm_eps: 1e-12,
    pad_token_id: 0,
    position_embedding_type: "absolute",
  };
}

export interface DevRow extends Labelled {
  /** [P(displeased | text), P(pleased | text)] */
  readonly p: readonly [number, number];
}

/** The labelled sentences: drawn one by one from the grammar; none of dev's is among train's. */
export function labelledSets(grammar: Grammar, seed = SEED): { train: Labelled[]; dev: DevRow[] } {
  const train = grammar.sampleLabelled(new Stream(seed, "default.train"), TRAIN);
  const seen = new Set(train.map((r) => r.text));
  const fresh = grammar.sampleLabelled(new Stream(seed, "default.dev"), 2 * DEV).filter((r) => !seen.has(r.text));
  return { train, dev: fresh.slice(0, DEV).map((r) => ({ ...r, p: grammar.exactPosterior(r.text) })) };
}

/** Document i of the corpus: a pure function of the seed and i, so that no epoch needs it stored. */
export function corpusDocument(grammar: Grammar, i: number, seed = SEED): string[] {
  return grammar.sampleDocument(new Stream(seed, "default.corpus", i)).sentences;
}

export function trainTable(rows: readonly Labelled[]): string {
  return `sentence\tlabel\n${rows.map((r) => `${r.text}\t${LABELS[r.label]}\n`).join("")}`;
}

/** The column p is the exact P(pleased | sentence), written so that it reads back as the same f64. */
export function devTable(rows: readonly DevRow[]): string {
  return `sentence\tlabel\tp\n${rows.map((r) => `${r.text}\t${LABELS[r.label]}\t${r.p[1]}\n`).join("")}`;
}

/** How the encoder is pretrained: about 12,500 steps, a quarter of an hour on lavapipe. */
const PRETRAINING = { epochs: 1, batch: 32, lr: 2e-3, seed: SEED };

/** Writes the tables, the vocabulary and the config; with `weights`, pretrains the model as well. */
export async function make(folder: string, { weights = true } = {}): Promise<void> {
  const grammar = new Grammar();
  const vocabulary = buildVocabulary(grammar);
  const { train, dev } = labelledSets(grammar);
  mkdirSync(`${folder}/model`, { recursive: true });
  const write = (name: string, text: string) => {
    writeFileSync(`${folder}/${name}`, text);
    console.log(`${name}: ${Buffer.byteLength(text)} bytes`);
  };
  write("model/vocab.txt", `${vocabulary.join("\n")}\n`);
  write("model/config.json", `${JSON.stringify(modelConfig(vocabulary.length), null, 2)}\n`);
  write("train.tsv", trainTable(train));
  write("dev.tsv", devTable(dev));
  const best = bayesOptimal(dev);
  const show = (s: { accuracy: number; nll: number; ece: number; brier: number }) =>
    `accuracy ${s.accuracy.toFixed(3)}  NLL ${s.nll.toFixed(3)}  ECE ${s.ece.toFixed(3)}  Brier ${s.brier.toFixed(3)}`;
  console.log(`best possible on dev:    ${show(best)}\nbest possible, expected: ${show(best.expected)}`);
  if (!weights) return;
  const documents = Array.from({ length: DOCUMENTS }, (_, i) => corpusDocument(grammar, i));
  await pretrain({ documents, folder: `${folder}/model`, ...PRETRAINING });
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  await make(fileURLToPath(new URL(".", import.meta.url)).replace(/[\\/]$/, ""));
