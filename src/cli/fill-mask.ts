/** @file `fill-mask`: the tokens that fit where a text has [MASK], by the masked-language-model head. */
import { packBatch } from "../data/batches.ts";
import { inert } from "../data/text.ts";
import { InputError } from "../errors.ts";
import { hasParameter } from "../model/load.ts";
import { BertForPreTraining } from "../model/pretraining.ts";
import { logSoftmaxRows } from "../train/index.ts";
import { withEngine } from "./device.ts";
import { checkVocabulary, lengthFor } from "./examples.ts";
import { table } from "./format.ts";
import type { Io } from "./io.ts";
import { type RawFlags, required, textFlag } from "./options.ts";
import { Output } from "./output.ts";
import { adjusted, openModelFolder } from "./source.ts";
import { wholeValue } from "./values.ts";

interface Guess {
  token: string;
  id: number;
  logProbability: number;
}

export async function fillMask(text: string, raw: RawFlags, io: Io): Promise<void> {
  const folderPath = required(raw, "model", "--model", "DIR");
  const top = wholeValue("--top", textFlag(raw, "top") ?? "5", { min: 1, max: 10_000_000, example: "5" });
  const out = new Output(io, raw.json === true);
  const folder = openModelFolder("--model", folderPath);
  const { checkpoint, config, tokenizer } = folder;
  try {
    if (!hasParameter(checkpoint, "cls.predictions.transform.dense.weight")) {
      throw new InputError(
        `--model ${inert(folderPath)}: no masked-language-model head (missing cls.predictions). Name a pretrained BERT, or one that priorwork pretrain wrote.`,
      );
    }
    checkVocabulary(tokenizer, config);
    const maxLength = lengthFor(undefined, config);
    const { ids, typeIds, truncated } = tokenizer.encode(text, undefined, { maxLength });
    const rows = Uint32Array.from(ids.flatMap((id, i) => (id === tokenizer.mask ? [i] : [])));
    if (rows.length === 0) {
      const where = truncated ? ` among its first ${maxLength} word pieces` : "";
      throw new InputError(`fill-mask: no [MASK] in the text${where}. Write [MASK] where a token is to be found.`);
    }
    if (truncated) out.note(`the text was cut to ${maxLength} word pieces, which is all that the model holds`);
    const packed = packBatch([{ ids, typeIds }]);
    const guesses = await withEngine(out, async (engine) => {
      const nextSentence = hasParameter(checkpoint, "cls.seq_relationship.weight");
      const model = await BertForPreTraining.load(engine, adjusted(folder, {}), { nextSentence });
      const { read } = engine.step(() =>
        engine.noGrad(() => {
          const states = model.encoder.states(model.encoder.upload(packed), undefined, 1);
          const last = states.at(-1);
          if (last === undefined) throw new Error("fill-mask: no layer");
          return { read: model.predictions(last, rows).read() }; // [M, V]
        }),
      );
      const { logp, K } = logSoftmaxRows(await read, config.vocabSize);
      return [...rows].map((_, m) => best(logp.subarray(m * K, (m + 1) * K), top, (id) => tokenizer.token(id) ?? ""));
    });
    if (out.json) out.document(guesses);
    else out.text(guessesText(guesses));
  } finally {
    checkpoint.close();
  }
}

function best(logp: Float64Array, top: number, token: (id: number) => string): Guess[] {
  const order = [...logp.keys()].sort((a, b) => (logp[b] ?? 0) - (logp[a] ?? 0) || a - b);
  return order.slice(0, top).map((id) => ({ token: token(id), id, logProbability: logp[id] ?? 0 }));
}

function guessesText(guesses: readonly (readonly Guess[])[]): string {
  return guesses
    .map((mask, i) => {
      const rows = mask.map(({ token, logProbability }) => [token, Math.exp(logProbability).toFixed(4)]);
      const heading = guesses.length > 1 ? `[MASK] ${i + 1}` : "[MASK]";
      return table([heading, "probability"], rows);
    })
    .join("\n\n");
}
