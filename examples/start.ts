/**
 * @file `npm start`: the main job on the embedded default. A tiny BERT that was pretrained on a little world's texts is
 * fine-tuned on a few dozen labelled sentences: from scratch, frozen, by MLE, by MAP, and by MAP with dropout members.
 * The grammar that wrote the sentences is known, so the table can end with p(y|x) itself: the Bayes-optimal classifier,
 * which no model beats in expectation.
 */
import { fileURLToPath } from "node:url";
import { plot } from "simple-ascii-chart";
import { table } from "../src/cli/format.ts";
import type { Example } from "../src/data/batches.ts";
import { labelSet } from "../src/data/labels.ts";
import { loadTokenizer, readTable } from "../src/data/load.ts";
import { BertForSequenceClassification } from "../src/model/bert.ts";
import { open } from "../src/open.ts";
import { dropoutMembers, metricsOfPrediction, pointEstimate, predictAll } from "../src/posterior/index.ts";
import { adam, fit, gaussianPrior, logPosterior } from "../src/train/index.ts";
import { bayesOptimal } from "./default/bayes.ts";
import { Grammar } from "./default/grammar.ts";

const folder = fileURLToPath(new URL("default", import.meta.url));
const MODEL = `${folder}/model`;
const SEED = 1;
const TAU = { encoder: 300, head: 1 };
const EPOCHS = 14;
const LEARNING_RATE = { lr: 5e-4, headLr: 5e-3 };

/** How each method sets τ, and how many members predict. */
const METHODS = [
  { name: "from scratch", encoder: 0, head: 0, members: 1, scratch: true },
  { name: "frozen encoder", encoder: Number.POSITIVE_INFINITY, head: TAU.head, members: 1 },
  { name: "MLE", encoder: 0, head: 0, members: 1 },
  { name: "MAP", ...TAU, members: 1 },
  // Differs from MAP in two things: dropout in training, and masks in prediction.
  { name: "MAP with dropout, 6 members", ...TAU, members: 6 },
];

const began = performance.now();
const engine = await open();
const tokenizer = loadTokenizer(MODEL);
const [train, dev] = ["train", "dev"].map((name) => readTable(`${folder}/${name}.tsv`, { needLabels: true }));
if (!train || !dev) throw new Error("the default's tables are missing: npm run make:default");
const { labels, ids } = labelSet([train, dev]);
const examplesOf = ({ texts }: typeof train, of: ArrayLike<number>): Example[] =>
  texts.map((text, i) => ({ ...tokenizer.encode(text), label: of[i] as number }));
const trainExamples = examplesOf(train, ids[0] as Uint32Array);
// The first 300 of the 400: a software adapter is to be done within two minutes.
const devExamples = examplesOf(dev, ids[1] as Uint32Array).slice(0, 300);

console.log(`
priorwork: fine-tuning as Bayesian inference.  log p(θ|X) = log p(X|θ) + log p(θ) − log p(X)

A tiny BERT has read about Lantern Quay, a little world whose grammar is known. Now it learns to tell whether a speaker
is pleased or displeased, from N = ${trainExamples.length} labelled sentences such as
${train.texts
  .slice(0, 3)
  .map((text, i) => `    ${train.labels?.[i]?.padEnd(10)}  ${text}`)
  .join("\n")}
and is asked about ${devExamples.length} others.
`);

const grammar = new Grammar();
const exact = dev.texts.slice(0, devExamples.length).map((text) => grammar.exactPosterior(text));
const rows: string[][] = [];
let shares: number[] = [];
let mapAccuracy = Number.NaN;
let disagreement = "";
for (const method of METHODS) {
  const start = performance.now();
  const model = await BertForSequenceClassification.load(engine, MODEL, {
    labels,
    seed: SEED,
    scratch: method.scratch ?? false,
  });
  const prior = gaussianPrior(model, { encoder: { precision: method.encoder }, head: { precision: method.head } });
  const target = logPosterior(model, prior, { N: trainExamples.length });
  const settings = {
    optimizer: adam(LEARNING_RATE),
    epochs: EPOCHS,
    batch: 16,
    seed: SEED,
    dropout: method.members > 1,
  };
  const share: number[] = [];
  let distance = 0;
  for await (const step of fit(target, trainExamples, settings)) {
    share.push(step.priorShare);
    distance = step.distance;
  }
  const posterior =
    method.members > 1 ? dropoutMembers(model, { S: method.members, seed: SEED }) : pointEstimate(model);
  const prediction = await predictAll(posterior, devExamples, { batch: 50 });
  const { accuracy, nll, ece } = metricsOfPrediction(prediction, devExamples);
  const trainable = model.theta.layout.slices
    .filter((s) => !model.theta.isFrozen(s))
    .reduce((sum, s) => sum + s.size, 0);
  // How far the predictions are from p(y|x): mean KL(p(y|x) ‖ model), nats a sentence.
  const kl =
    exact.reduce(
      (sum, p, i) =>
        sum + p.reduce((a, q, k) => a + q * (Math.log(q) - (prediction.logMean[2 * i + labelOf(k)] as number)), 0),
      0,
    ) / exact.length;
  rows.push([
    method.name,
    accuracy.toFixed(3),
    nll.toFixed(3),
    ece.toFixed(3),
    kl.toFixed(3),
    distance.toFixed(2),
    String(trainable),
    ((performance.now() - start) / 1000).toFixed(1),
  ]);
  process.stderr.write(`note: ${method.name} done\n`);
  if (method.name === "MAP") [shares, mapAccuracy] = [share, accuracy];
  if (method.members > 1) {
    const answer = (i: number) =>
      (prediction.logMean[2 * i] as number) > (prediction.logMean[2 * i + 1] as number) ? 0 : 1;
    const meanWhere = (correct: boolean) => {
      const found = prediction.epistemic.filter((_, i) => (answer(i) === devExamples[i]?.label) === correct);
      return (found.reduce((sum, mi) => sum + mi, 0) / found.length).toFixed(3);
    };
    disagreement = `The ${method.members} members' epistemic entropy is ${meanWhere(true)} nats a sentence where they are right, ${meanWhere(false)} where they are wrong.`;
  }
  prior.dispose();
  model.dispose();
}

/** The grammar numbers its moods; the table's labels are sorted words. */
function labelOf(mood: number): number {
  return labels.indexOf(["displeased", "pleased"][mood] as string);
}

/** Four batches make an epoch; their noise would hide the curve. */
const batches = shares.length / EPOCHS;
const byEpoch = Array.from({ length: EPOCHS }, (_, e): [number, number] => [
  e + 1,
  shares.slice(e * batches, (e + 1) * batches).reduce((sum, s) => sum + s, 0) / batches,
]);

const standardError = Math.sqrt((mapAccuracy * (1 - mapAccuracy)) / devExamples.length);
const best = bayesOptimal(exact.map((p, i) => ({ p, label: dev.labels?.[i] === "pleased" ? 1 : 0 })));
rows.push([
  "Bayes-optimal p(y|x)",
  best.accuracy.toFixed(3),
  best.nll.toFixed(3),
  best.ece.toFixed(3),
  "0.000",
  "",
  "",
  "",
]);
console.log(table(["method", "accuracy", "NLL", "ECE", "KL", "‖θ − μ‖, encoder", "trainable", "seconds"], rows));
console.log(`
The last line is the grammar's own p(y|x), which no model beats in expectation; KL is the mean divergence from it, nats.
‖θ − μ‖: how far the encoder moved from what it knew (from scratch: from its random start). One seed; a standard error of
MAP's accuracy is ${standardError.toFixed(3)}. MLE is sure of itself and often wrong (NLL); the prior keeps what pretraining knew (MAP).
${disagreement}

priorShare, the prior's part of MAP's gradient, mean of each epoch. At the first step it is near 0 (the encoder is at μ, only
the new head is not); as θ leaves μ, the prior pulls back:
${plot(byEpoch, { width: 71, height: 8, yRange: [0, 0.5], customYAxisTicks: [0, 0.1, 0.2, 0.3, 0.4, 0.5], xLabel: "epoch" })}
Try next, with these files or your own (a table has the columns sentence and label, separated by a tab):
    npx priorwork finetune --model examples/default/model --train examples/default/train.tsv --dev examples/default/dev.tsv \\
        --prior-precision encoder=${TAU.encoder},head=${TAU.head} --epochs ${EPOCHS} --lr ${LEARNING_RATE.lr} --head-lr ${LEARNING_RATE.headLr} --out runs/first
    npx priorwork predict --run runs/first --text "The oven is hardly dull, and the baker hums."
    npx priorwork doctor
${((performance.now() - began) / 1000).toFixed(0)} seconds in all on ${engine.gpu.adapter.name}.`);
engine.close();
