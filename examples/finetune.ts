/**
 * @file Fine-tuning on tables of your own, by the library instead of the command line. Columns `sentence` and `label`,
 * separated by a tab; any folder with a BERT (config.json, model.safetensors, tokenizer files).
 * Run: npx tsx examples/finetune.ts [TRAIN.tsv DEV.tsv [MODEL-FOLDER]]; without arguments it takes the embedded default.
 */
import { fileURLToPath } from "node:url";
import {
  adam,
  BertForSequenceClassification,
  fit,
  gaussianPrior,
  labelSet,
  loadTokenizer,
  logPosterior,
  metricsOfPrediction,
  open,
  pointEstimate,
  predictAll,
  readTable,
} from "priorwork";

const here = fileURLToPath(new URL("default", import.meta.url));
const [path = `${here}/train.tsv`, devPath = `${here}/dev.tsv`, folder = `${here}/model`] = process.argv.slice(2);
const BATCH = 16;

// The data, and the model that will read them.
const tables = [path, devPath].map((file) => readTable(file, { needLabels: true }));
const { labels, ids } = labelSet(tables);
const engine = await open();
const bert = await BertForSequenceClassification.load(engine, folder, { labels });
const tokenizer = loadTokenizer(folder);
const { maxPositions: maxLength } = bert.config;
const [train = [], dev = []] = tables.map(({ texts }, t) =>
  texts.map((text, i) => ({ ...tokenizer.encode(text, undefined, { maxLength }), label: ids[t]?.[i] ?? 0 })),
);

// What it knows, how sure of it we are, and the sum that training climbs: log p(X|θ) + log p(θ).
const prior = gaussianPrior(bert, { encoder: { mean: "pretrained", precision: 300 }, head: { mean: 0, precision: 1 } });
const target = logPosterior(bert, prior, { N: train.length });

// Three times through the data; where they are few more often, since what trains is steps: a hundred of them.
const steps = Math.ceil(train.length / BATCH);
const epochs = Math.max(3, Math.ceil(100 / steps));
const optimizer = adam({ lr: 5e-5, headLr: 1e-3 }); // the encoder's, and the new head's

// A report of each epoch's last step.
for await (const { step, nll, logPrior, logJoint, priorShare } of fit(target, train, {
  optimizer,
  epochs,
  batch: BATCH,
}))
  if (step % steps === 0)
    console.log(
      `step ${step}  nll ${nll.toFixed(4)}  log p(θ) ${logPrior.toFixed(4)}  log p(X|θ) + log p(θ) ${logJoint.toFixed(3)}  priorShare ${priorShare.toFixed(4)}`,
    );

// What it says of sentences that it has not seen.
const prediction = await predictAll(pointEstimate(bert), dev);
const { accuracy, nll } = metricsOfPrediction(prediction, dev);
const counts = labels.map((_, k) => dev.filter(({ label }) => label === k).length);
console.log(`\n${dev.length} other sentences: accuracy ${accuracy.toFixed(3)}, nll ${nll.toFixed(4)} nats`);
const most = Math.max(...counts);
console.log(`(always "${labels[counts.indexOf(most)]}": ${(most / dev.length).toFixed(3)})`);
for (const [i, text] of (tables[1]?.texts ?? []).slice(0, 3).entries()) {
  const p = labels.map((label, k) => `${label} ${Math.exp(prediction.logMean[i * labels.length + k] ?? 0).toFixed(2)}`);
  console.log(`${p.join(", ")}: ${text}`);
}
engine.close();
