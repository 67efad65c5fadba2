/**
 * @file `npm run make:picture`: how near each method comes to the exact p(y|x) of the grammar, with 4 to 512 labelled
 * sentences. Every line of picture.jsonl is one method at one size and one seed; a run that was cut short goes on where it
 * was. Then docs/posterior.svg is drawn from the lines. About ten minutes on lavapipe.
 */
import { appendFileSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { loadTokenizer } from "../../src/data/load.ts";
import { open } from "../../src/open.ts";
import { Stream } from "../../src/random.ts";
import { Grammar, LABELS } from "../default/grammar.ts";
import { divergences, mean } from "../divergence.ts";
import { type Point, picture } from "./draw.ts";
import { predictions } from "./methods.ts";

const at = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const MODEL = at("../default/model");
const LINES = at("picture.jsonl");
export const SIZES = [4, 8, 16, 32, 64, 128, 256, 512];
export const SEEDS = [0, 1, 2];
const DEV = 300;
/** Labels in the order of their words, as `labelSet` sorts them: the grammar's own order. */
const labels = [...LABELS];

const done: Point[] = existsSync(LINES)
  ? readFileSync(LINES, "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as Point)
  : [];
const engine = await open();
const grammar = new Grammar();
const tokenizer = loadTokenizer(MODEL);
const sentences = (stream: Stream, n: number) =>
  grammar.sampleLabelled(stream, n).map(({ text, label }) => ({ ...tokenizer.encode(text), text, label }));
const dev = sentences(new Stream(0, "picture.dev"), DEV);
const exact = dev.map(({ text }) => grammar.exactPosterior(text));

for (const seed of SEEDS) {
  // The smaller sets are the beginnings of the larger ones.
  const all = sentences(new Stream(seed, "picture.train"), Math.max(...SIZES));
  for (const n of SIZES) {
    const wanted = (method: string) => !done.some((p) => p.method === method && p.n === n && p.seed === seed);
    const setting = { engine, model: MODEL, labels, train: all.slice(0, n), dev, seed };
    for await (const { method, logMean } of predictions(setting, wanted)) {
      const point = { method, n, seed, kl: mean(divergences(exact, logMean)) };
      done.push(point);
      appendFileSync(LINES, `${JSON.stringify(point)}\n`);
      process.stderr.write(`${n} sentences, seed ${seed}, ${method}: ${point.kl.toFixed(3)}\n`);
    }
  }
}
const about = [
  `Mean over ${DEV} sentences whose p(y|x) the grammar knows; a dot is one of ${SEEDS.length} seeds, a line their mean.`,
  "MLE, MAP and frozen predict with one θ, the others average several. Nothing is tuned.",
];
writeFileSync(at("../../docs/posterior.svg"), await picture(done, about));
engine.close();
