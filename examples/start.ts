/**
 * @file `npm start`: the main job on the embedded default. A tiny BERT that was pretrained on a little world's texts is
 * fine-tuned on a few dozen labelled sentences: from scratch, frozen, by MLE and by MAP; then many θ around MAP are
 * averaged. The grammar that wrote the sentences is known, so the table can end with p(y|x) itself: the Bayes-optimal
 * classifier, which no model beats in expectation. 80 columns.
 */
import { fileURLToPath } from "node:url";
import { plot } from "simple-ascii-chart";
import { table } from "../src/cli/format.ts";
import type { Example } from "../src/data/batches.ts";
import { labelSet } from "../src/data/labels.ts";
import { loadTokenizer, readTable } from "../src/data/load.ts";
import { BertForSequenceClassification } from "../src/model/bert.ts";
import { open } from "../src/open.ts";
import {
  metricsOfPrediction,
  type Posterior,
  type Prediction,
  pointEstimate,
  predictAll,
} from "../src/posterior/index.ts";
import { adam, fit, gaussianPrior, logPosterior } from "../src/train/index.ts";
import { bayesOptimal } from "./default/bayes.ts";
import { Grammar } from "./default/grammar.ts";
import { type Distance, divergences, mean, verdict } from "./divergence.ts";
import { type Draws, READINGS } from "./readings.ts";

const folder = fileURLToPath(new URL("default", import.meta.url));
const MODEL = `${folder}/model`;
const SEED = 1;
const TAU = { encoder: 300, head: 1 };
const EPOCHS = 14;
const BATCH = 16;
const RATES = { lr: 5e-4, headLr: 5e-3 };
/** Few and short: a software adapter is to be done within a minute. */
const DRAWS: Draws = {
  dropout: 6,
  laplace: 64,
  swag: { draws: 8, points: 8 },
  sghmc: { chains: 4, draws: 8 },
};

const began = performance.now();
const engine = await open();
const tokenizer = loadTokenizer(MODEL);
const [train, dev] = ["train", "dev"].map((name) => readTable(`${folder}/${name}.tsv`, { needLabels: true }));
if (!train || !dev) throw new Error("the default's tables are missing: npm run make:default");
const { labels, ids } = labelSet([train, dev]); // in the order of their words, as the grammar has them
const examplesOf = ({ texts }: typeof train, of: ArrayLike<number>): Example[] =>
  texts.map((text, i) => ({ ...tokenizer.encode(text), label: of[i] as number }));
const data = examplesOf(train, ids[0] as Uint32Array);
const others = examplesOf(dev, ids[1] as Uint32Array).slice(0, 300); // of 400, to be quick
const grammar = new Grammar();
const exact = dev.texts.slice(0, others.length).map((text) => grammar.exactPosterior(text));

const short = labels.map((label) => train.texts.find((text, i) => train.labels?.[i] === label && text.length <= 62));
console.log(`
priorwork: fine-tuning as Bayesian inference

    log p(θ|X) = log p(X|θ) + log p(θ) − log p(X)

A tiny BERT has read about Lantern Quay, a little world whose grammar is known.
Now it learns to tell pleased speakers from displeased ones: ${data.length} sentences have
labels (some of them misheard), such as

${labels.map((label, k) => `    ${label.padEnd(10)}  ${short[k]}`).join("\n")}

and it is asked about ${others.length} others.
`);

const rows: string[][] = [];

/** Asks about the other sentences: a row of the table. `start`: when the method began, ms. */
async function ask(
  name: string,
  posterior: Posterior,
  start: number,
  moved = "",
): Promise<Distance & Prediction & { accuracy: number }> {
  const prediction = await predictAll(posterior, others, { batch: 50 });
  const { accuracy, nll, ece } = metricsOfPrediction(prediction, others);
  const kl = divergences(exact, prediction.logMean);
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  const figures = [accuracy, nll, ece, mean(kl)].map((x) => x.toFixed(3));
  rows.push([`  ${name}`, String(posterior.members), ...figures, moved, seconds]);
  process.stderr.write(`note: ${name}, ${seconds} s\n`);
  return { name, kl, accuracy, ...prediction };
}

const heading = (text: string) => rows.push([text, ...Array<string>(7).fill("")]);

/** Trains from the pretrained weights μ, or from a random start. */
async function trained(tau: typeof TAU, { scratch = false, dropout = false } = {}) {
  const model = await BertForSequenceClassification.load(engine, MODEL, { labels, seed: SEED, scratch });
  const prior = gaussianPrior(model, { encoder: { precision: tau.encoder }, head: { precision: tau.head } });
  const target = logPosterior(model, prior, { N: data.length });
  const settings = { optimizer: adam(RATES), epochs: EPOCHS, batch: BATCH, seed: SEED, dropout };
  const shares: number[] = [];
  let moved = "";
  for await (const step of fit(target, data, settings)) {
    shares.push(step.priorShare);
    moved = step.distance.toFixed(2);
  }
  const dispose = () => {
    prior.dispose();
    model.dispose();
  };
  return { model, target, data, shares, moved, dispose };
}

heading("one θ");
const single: Distance[] = [];
for (const { name, tau, scratch } of [
  { name: "from scratch", tau: { encoder: 0, head: 0 }, scratch: true },
  { name: "frozen encoder", tau: { ...TAU, encoder: Number.POSITIVE_INFINITY } },
  { name: "MLE", tau: { encoder: 0, head: 0 } },
]) {
  const start = performance.now();
  const { model, moved, dispose } = await trained(tau, { scratch: scratch ?? false });
  single.push(await ask(name, pointEstimate(model), start, moved));
  dispose();
}
let start = performance.now();
const map = await trained(TAU);
const one = await ask("MAP", pointEstimate(map.model), start, map.moved);

heading("many θ");
const averages: Distance[] = [];
const recipe = { ...RATES, batch: BATCH, seed: SEED };
for (const [name, reading] of [
  ["Laplace on the head", "laplace"],
  ["SGHMC on the head", "sghmc"],
  ["SWAG", "swag"],
] as const) {
  start = performance.now();
  const { posterior, dispose } = await READINGS[reading](map, DRAWS, recipe);
  averages.push(await ask(name, posterior, start));
  dispose();
}
map.dispose();
start = performance.now();
const masked = await trained(TAU, { dropout: true });
const { posterior: masks } = await READINGS.dropout(masked, DRAWS, recipe);
const doubts = await ask("dropout masks", masks, start, masked.moved);
averages.push(doubts);
masked.dispose();
engine.close();

heading("the truth");
const best = bayesOptimal(exact.map((p, i) => ({ p, label: others[i]?.label as number })));
rows.push(["  p(y|x) itself", "", ...[best.accuracy, best.nll, best.ece, 0].map((x) => x.toFixed(3)), "", ""]);

/** Mean epistemic entropy of the sentences whose answer is right, or wrong. */
function disputed({ logMean, epistemic }: Prediction, right: boolean): string {
  const answer = (i: number) => ((logMean[2 * i] as number) > (logMean[2 * i + 1] as number) ? 0 : 1);
  return mean(epistemic.filter((_, i) => (answer(i) === others[i]?.label) === right)).toFixed(3);
}

/** Four batches make an epoch; their noise would hide the curve. */
const batches = map.shares.length / EPOCHS;
const byEpoch = Array.from({ length: EPOCHS }, (_, e): [number, number] => [
  e + 1,
  map.shares.slice(e * batches, (e + 1) * batches).reduce((sum, s) => sum + s, 0) / batches,
]);
console.log(`
priorShare, the prior's part of MAP's gradient, by epoch: near 0 where training
begins (the encoder is at μ, only the new head is not); as θ leaves μ, the prior
pulls back.
${plot(byEpoch, { width: 70, height: 6, yRange: [0, 0.5], customYAxisTicks: [0, 0.25, 0.5] })}
${table(["", "members", "accuracy", "NLL", "ECE", "KL", "‖θ − μ‖", "seconds"], rows)}

‖θ − μ‖: how far the encoder went from what it knew (from scratch: from random).
Laplace, SGHMC and SWAG start at MAP's θ, their seconds come on top of MAP's.
One seed: a standard error of MAP's accuracy is ${Math.sqrt((one.accuracy * (1 - one.accuracy)) / others.length).toFixed(3)}.
The masks disagree by ${disputed(doubts, true)} nats where they are right, by ${disputed(doubts, false)} where wrong.

${verdict(one, averages, single)}

SGHMC and SWAG walk on from where MAP's training stopped, before the maximum of
log p(θ|X). To stop early is a prior too, and they leave it behind.

Try next, with these files or your own (a tab between sentence and label):

    npx priorwork finetune --model examples/default/model \\
        --train examples/default/train.tsv --dev examples/default/dev.tsv \\
        --prior-precision encoder=${TAU.encoder},head=${TAU.head} --epochs ${EPOCHS} \\
        --lr ${RATES.lr} --head-lr ${RATES.headLr} --out runs/first
    npx priorwork predict --run runs/first \\
        --text "The oven is hardly dull, and the baker hums."
    npx priorwork doctor

${((performance.now() - began) / 1000).toFixed(0)} seconds in all on ${engine.gpu.adapter.name}.`);
