/**
 * @file Writes documents of the default's pretraining corpus as text, a sentence a line: what `priorwork prior` and
 * `priorwork pretrain` read. Later documents than those the encoder was trained on are as good: none is seen twice.
 *   npx tsx examples/default/corpus.ts corpus.txt 1500
 */
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { storageError } from "../../src/data/files.ts";
import { InputError, PriorworkError } from "../../src/errors.ts";
import { Grammar } from "./grammar.ts";
import { corpusDocument } from "./make.ts";

/** The first documents of the corpus, an empty line between them. */
export function corpusText(documents: number): string {
  const grammar = new Grammar();
  const texts = Array.from({ length: documents }, (_, i) => corpusDocument(grammar, i).join("\n"));
  return `${texts.join("\n\n")}\n`;
}

/** InputError: no file, a number of documents that is none, or a file that is there. StorageError. */
function writeCorpus([path, documents = "1500", ...more]: readonly string[]): void {
  if (path === undefined || !/^[1-9]\d{0,5}$/.test(documents) || more.length > 0)
    throw new InputError("usage: npx tsx examples/default/corpus.ts FILE [DOCUMENTS]");
  try {
    writeFileSync(path, corpusText(Number(documents)), { flag: "wx" });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST")
      throw new InputError(`${path}: this exists already. Choose another name.`);
    throw storageError(path, "write", error);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    writeCorpus(process.argv.slice(2));
  } catch (error) {
    if (!(error instanceof PriorworkError)) throw error;
    console.error(error.message);
    process.exitCode = error.exitCode;
  }
}
