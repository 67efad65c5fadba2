/**
 * @file Fine-tuning on a table of your own, by the library instead of the command line. Columns `sentence` and `label`,
 * separated by a tab; any folder with a BERT (config.json, model.safetensors, tokenizer files).
 * Run: npx tsx examples/finetune.ts [TABLE.tsv [MODEL-FOLDER]]; without arguments it takes the embedded default.
 */
import { fileURLToPath } from "node:url";
import {
  adam,
  BertForSequenceClassification,
  evaluate,
  fit,
  gaussianPrior,
  labelSet,
  loadTokenizer,
  logPosterior,
  open,
  readTable,
} from "priorwork";

const here = fileURLToPath(new URL("default", import.meta.url));
const [path = `${here}/train.tsv`, folder = `${here}/model`] = process.argv.slice(2);

// The data, and the model that will read it.
const table = readTable(path, { needLabels: true });
const { labels, ids } = labelSet([table]);
const engine = await open();
const bert = await BertForSequenceClassification.load(engine, folder, { labels });
const tokenizer = loadTokenizer(folder);
const pieces = (text: string) => tokenizer.encode(text, undefined, { maxLength: bert.config.maxPositions });
const train = table.texts.map((text, i) => ({ ...pieces(text), label: ids[0]?.[i] ?? 0 }));

// What it knows, how sure of it we are, and the sum that training climbs: log p(X|θ) + log p(θ).
const prior = gaussianPrior(bert, { encoder: { mean: "pretrained", precision: 300 }, head: { mean: 0, precision: 1 } });
const target = logPosterior(bert, prior, { N: train.length });

for await (const step of fit(target, train, { optimizer: adam({ lr: 5e-5, headLr: 1e-3 }), epochs: 3, batch: 16 })) {
  const { nll, logPrior, logJoint, priorShare } = step;
  console.log(
    `step ${step.step}  nll ${nll.toFixed(4)}  log p(θ) ${logPrior.toFixed(4)}  log p(X|θ) + log p(θ) ${logJoint.toFixed(3)}  priorShare ${priorShare.toFixed(4)}`,
  );
}

const { metrics } = await evaluate(bert, train);
console.log(`on its own training table: accuracy ${metrics.accuracy.toFixed(3)}, nll ${metrics.nll.toFixed(4)}`);
engine.close();
