/**
 * @file Writes documents of the default's pretraining corpus as text, a sentence a line: what `priorwork prior` and
 * `priorwork pretrain` read. Later documents than those the encoder was trained on are as good: none is seen twice.
 *   npx tsx examples/default/corpus.ts corpus.txt 1500
 */
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Grammar } from "./grammar.ts";
import { corpusDocument } from "./make.ts";

/** The first documents of the corpus, an empty line between them. */
export function corpusText(documents: number): string {
  const grammar = new Grammar();
  const texts = Array.from({ length: documents }, (_, i) => corpusDocument(grammar, i).join("\n"));
  return `${texts.join("\n\n")}\n`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [path = "corpus.txt", documents = "1500"] = process.argv.slice(2);
  writeFileSync(path, corpusText(Number(documents)), { flag: "wx" });
}
