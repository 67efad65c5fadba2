/**
 * @file From a table to what a model takes: word pieces within the model's length, label ids. Texts that are too long
 * are counted, or refused by file and line.
 */
import type { Example } from "../data/batches.ts";
import { count, type Table } from "../data/tables.ts";
import { inert } from "../data/text.ts";
import type { BertTokenizer } from "../data/tokenizer.ts";
import { InputError } from "../errors.ts";
import type { BertConfig } from "../model/config.ts";
import type { LengthOptions } from "./options.ts";
import type { Output } from "./output.ts";

/** Texts with where they came from; a table is one. */
export type Texts = Pick<Table, "path" | "texts" | "lineNumbers"> & { pairs?: readonly string[] | undefined };

/** Texts that were typed, for messages like those of a table. */
export function typedTexts(texts: readonly string[]): Texts {
  const blank = texts.findIndex((text) => text.trim() === "");
  if (blank >= 0) throw new InputError('--text "": empty (expected a text). Give one.');
  return { path: "--text", texts: [...texts], lineNumbers: texts.map((_, i) => i + 1) };
}

/** [CLS], a word piece, [SEP]. */
const SHORTEST = 3;
/** [CLS], a word piece, [SEP], a word piece, [SEP]. */
export const SHORTEST_PAIR = 5;

/** InputError: ids of the tokenizer for which the model has no embedding. */
export function checkVocabulary(tokenizer: BertTokenizer, config: BertConfig): void {
  if (tokenizer.vocabSize <= config.vocabSize) return;
  throw new InputError(
    `tokenizer: its highest id is ${tokenizer.vocabSize - 1} (config.json says vocab_size ${config.vocabSize}). Tokenizer and model are not of the same BERT.`,
  );
}

/** The longest sequence in word pieces: as asked, at most what the model holds. InputError: more than that. */
export function lengthFor(asked: number | undefined, config: BertConfig): number {
  if (config.maxPositions < SHORTEST) {
    throw new InputError(
      `config.json: max_position_embeddings is ${config.maxPositions} (expected ${SHORTEST} or more: [CLS], a word piece, [SEP]). Use another model.`,
    );
  }
  if (asked !== undefined && asked > config.maxPositions) {
    throw new InputError(
      `--max-length ${asked}: longer than the model holds (max_position_embeddings is ${config.maxPositions}). Give ${config.maxPositions} or less.`,
    );
  }
  return asked ?? config.maxPositions;
}

/** Every text as an example, with `labels[i]` where there are some. Says how many were cut. */
export function examplesOf(
  texts: Texts,
  tokenizer: BertTokenizer,
  config: BertConfig,
  { maxLength, onLong }: { maxLength: number; onLong: LengthOptions["onLong"] },
  out: Output,
  labels?: ArrayLike<number>,
): Example[] {
  checkVocabulary(tokenizer, config);
  if (texts.pairs !== undefined && maxLength < SHORTEST_PAIR) {
    throw new InputError(
      `--max-length ${maxLength}: too short for pairs of texts (expected ${SHORTEST_PAIR} or more: three special tokens, a word piece each). Give more.`,
    );
  }
  if (texts.pairs !== undefined && config.typeVocabSize < 2) {
    throw new InputError(
      `${inert(texts.path)}: pairs of texts (the model has type_vocab_size ${config.typeVocabSize}, pairs need 2). Use another model.`,
    );
  }
  let long = 0;
  const examples = texts.texts.map((text, i): Example => {
    const { ids, typeIds, truncated } = tokenizer.encode(text, texts.pairs?.[i], { maxLength });
    if (truncated) {
      long++;
      if (onLong === "refuse") {
        throw new InputError(
          `${inert(texts.path)}:${texts.lineNumbers[i]}: longer than ${maxLength} word pieces. Shorten it, raise --max-length, or use --on-long truncate.`,
        );
      }
    }
    const label = labels?.[i];
    return label === undefined ? { ids, typeIds } : { ids, typeIds, label };
  });
  if (long > 0) {
    out.note(`${texts.path}: ${count(long, "text")} of ${examples.length} cut to ${maxLength} word pieces`);
  }
  return examples;
}
