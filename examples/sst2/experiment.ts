/**
 * @file MiniLM on few sentences of SST-2, μ = pretrained: MLE, MAP over τ, a frozen encoder, and what many θ around each of
 * them are worth: accuracy, NLL, ECE with its floor, and whether uncertainty knows text messages from film reviews. What is
 * run stands in plan.json; rows, order and head start are those of PyTorch's runs, so that the single θ agree with them.
 *
 *   PRIORWORK_SHARED=DIR npx tsx examples/sst2/experiment.ts RESULTS.jsonl [n …]
 *
 * A line is one way to predict at one n and one seed. A run that was cut short goes on behind its last line; a training
 * all of whose lines are there is not made again. Some hours on two cores with lavapipe.
 */
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import type { Engine } from "../../src/autograd/index.ts";
import { type Example, packBatches } from "../../src/data/batches.ts";
import { loadTokenizer, readTable } from "../../src/data/load.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { openFolder } from "../../src/model/folder.ts";
import type { Checkpoint } from "../../src/model/load.ts";
import { parseSafetensors, toFloat32 } from "../../src/model/safetensors.ts";
import { open } from "../../src/open.ts";
import {
  fitTemperature,
  heldDraws,
  metricsOfPrediction,
  oodAuroc,
  type Posterior,
  pointEstimate,
  predictAll,
  readSlices,
  thetaMembers,
} from "../../src/posterior/index.ts";
import {
  adam,
  diagonalPrior,
  FisherCollector,
  type FisherNumbers,
  featureScores,
  fit,
  gaussianPrior,
  logPosterior,
} from "../../src/train/index.ts";
import { type Draws, fisherLaplace, READINGS, type Read, type Trained } from "../readings.ts";

interface Training {
  tau: number | "inf";
  /** Default: every n. */
  n?: number;
  dropout?: number;
  /** MAP under the precisions of the pretrained model's feature Fisher, times this, in place of τ. */
  fisher?: number;
  /** Share of the rows that a temperature is fitted on instead of trained. */
  hold?: number;
  /** Trainings from other heads and orders, whose probabilities are averaged. */
  members?: number;
  readings: string[];
}
interface Plan {
  epochs: Record<string, number>;
  seeds: number[];
  batch: number;
  maxLength: number;
  rates: { lr: number; headLr: number };
  headPrecision: number;
  /** The Fisher prior: precision = size·F + damping, F of the readout of as many texts without their labels. */
  fisher: FisherPrior;
  trainings: Training[];
  /** `fisher`: of all of θ. */
  draws: Draws & { fisher: number };
}
interface FisherPrior {
  texts: number;
  size: number;
  damping: number;
}
interface Rows {
  n: number;
  seed: number;
  rows_by_epoch: number[][];
}

const [results, ...sizes] = process.argv.slice(2);
if (!results) throw new Error("usage: experiment.ts RESULTS.jsonl [n …]");
const shared = process.env.PRIORWORK_SHARED ?? "../shared";
const MODEL = `${shared}/models/all-MiniLM-L6-v2`;
const plan = JSON.parse(readFileSync(new URL("plan.json", import.meta.url), "utf8")) as Plan;
const reference = JSON.parse(readFileSync(`${shared}/reference/sst2_few_plan.json`, "utf8")) as { runs: Rows[] };
const heads = parseSafetensors(readFileSync(`${shared}/reference/sst2_few_plan.safetensors`), "plan").tensors;
const done = new Set(
  existsSync(results)
    ? readFileSync(results, "utf8")
        .trimEnd()
        .split("\n")
        .map((line) => keyOf(JSON.parse(line) as Line))
    : [],
);

const tokenizer = loadTokenizer(MODEL);
const encode = (text: string, label?: number): Example => ({
  ...tokenizer.encode(text, undefined, { maxLength: plan.maxLength }),
  ...(label === undefined ? {} : { label }),
});
const table = (file: string) => readTable(`${shared}/data/${file}`, { needLabels: true });
const train = table("sst2/train.tsv");
const dev = table("sst2/dev.tsv");
const devExamples = dev.texts.map((text, i) => encode(text, Number(dev.labels?.[i])));
// Another domain: the first 300 text messages of a spam collection.
const foreign = readFileSync(`${shared}/data/sms_spam/SMSSpamCollection.tsv`, "utf8")
  .split("\n")
  .slice(0, 300)
  .map((line) => encode(line.split("\t")[1] ?? ""));

interface Line {
  n: number;
  seed: number;
  tau: number | "inf" | "fisher";
  reading: string;
  [metric: string]: number | string;
}
function nameOf({ tau, fisher }: Training): Line["tau"] {
  return fisher === undefined ? tau : "fisher";
}
function keyOf({ n, seed, tau, reading }: Line): string {
  return `${n} ${seed} ${tau} ${reading}`;
}

const engine = await open();
let known: Promise<FisherNumbers> | undefined;
// Seed by seed, so that a run that is cut short has whole seeds.
for (const seed of plan.seeds) {
  for (const [size, epochs] of Object.entries(plan.epochs)) {
    const n = Number(size);
    if (sizes.length > 0 && !sizes.includes(size)) continue;
    const rows = reference.runs.find((run) => run.n === n && run.seed === seed);
    if (!rows) throw new Error(`the plan of the reference has no n = ${n}, seed ${seed}`);
    for (const training of plan.trainings) {
      if (training.n !== undefined && training.n !== n) continue;
      const missing = training.readings.filter(
        (reading) => !done.has(keyOf({ n, seed, tau: nameOf(training), reading })),
      );
      if (missing.length > 0) await measure(engine, training, missing, rows, epochs);
    }
  }
}
engine.close();

/** One training and all that is read off it. */
async function measure(
  engine: Engine,
  training: Training,
  readings: string[],
  rows: Rows,
  epochs: number,
): Promise<void> {
  const { n, seed } = rows;
  const began = performance.now();
  const record = async (reading: string, posterior: Posterior, more: Record<string, number> = {}) => {
    const prediction = await predictAll(posterior, devExamples, { batch: 64 });
    const { accuracy, nll, ece, eceFloor, brier } = metricsOfPrediction(prediction, devExamples);
    const ood = oodAuroc(prediction, await predictAll(posterior, foreign, { batch: 64 }));
    const seconds = Math.round((performance.now() - began) / 1000);
    const line = { n, seed, tau: nameOf(training), reading, members: posterior.members, accuracy, nll, ece, eceFloor, brier, oodEpistemic: ood.epistemic, oodTotal: ood.total, ...more, seconds }; // biome-ignore format: one line of results
    appendFileSync(results as string, `${JSON.stringify(line)}\n`);
    process.stderr.write(`${JSON.stringify(line)}\n`);
  };
  const held = training.hold ? Math.round(n * training.hold) : 0;
  const trained = await trainOne(engine, training, rows, epochs, { held, member: 0 });
  try {
    for (const reading of readings) {
      if (reading === "point") await record(reading, pointEstimate(trained.model), { distance: trained.distance });
      else if (reading === "temperature") {
        const logits = async (examples: readonly Example[]) => {
          const { logits, K } = await predictAll(pointEstimate(trained.model), examples, { batch: 64 });
          return { logits, K, labels: Uint32Array.from(examples, ({ label }) => label ?? 0) };
        };
        const { T } = fitTemperature(await logits(trained.held));
        await record(reading, scaled(pointEstimate(trained.model), T), { temperature: T });
      } else if (reading === "ensemble") {
        const { theta } = trained.model;
        const slices = theta.layout.slices;
        const values = [await readSlices(theta, slices)];
        for (let member = 1; member < (training.members ?? 1); member++) {
          const other = await trainOne(engine, training, rows, epochs, { held, member });
          values.push(await readSlices(other.model.theta, slices));
          other.dispose();
        }
        await record(reading, thetaMembers(trained.model, heldDraws(slices, values)));
      } else if (reading === "ensembleEvidence") {
        const own = [];
        for (let member = 0; member < (training.members ?? 1); member++) {
          const one = member === 0 ? trained : await trainOne(engine, training, rows, epochs, { held, member });
          const recipe = { ...plan.rates, batch: plan.batch, seed: 100 * seed + member };
          const read = await READINGS.evidence(one, plan.draws, recipe);
          const dispose = () => (member === 0 ? read.dispose() : one.dispose());
          own.push({ ...read, dispose });
        }
        await record(reading, mixture(own.map(({ posterior }) => posterior)));
        for (const { dispose } of own) dispose();
      } else if (reading === "fisher") {
        await record(
          reading,
          await fisherLaplace(trained, (await sourceFisher()).diagonal, { S: plan.draws.fisher, seed }),
        );
      } else {
        const make = Object.hasOwn(READINGS, reading) ? READINGS[reading as keyof typeof READINGS] : undefined;
        if (!make) throw new Error(`plan.json: no reading is named ${reading}`);
        const recipe = { ...plan.rates, batch: plan.batch, seed };
        const { posterior, point, facts, dispose }: Read = await make(trained, plan.draws, recipe);
        const one = point && metricsOfPrediction(await predictAll(point, devExamples, { batch: 64 }), devExamples);
        await record(reading, posterior, {
          ...facts,
          ...(one ? { pointAccuracy: one.accuracy, pointNll: one.nll, pointEce: one.ece } : {}),
        });
        dispose();
      }
    }
  } finally {
    trained.dispose();
  }
}

async function load(engine: Engine, dropout: number, seed: number): Promise<BertForSequenceClassification> {
  const folder = openFolder(MODEL);
  const config = {
    ...JSON.parse(String(folder.config)),
    hidden_dropout_prob: dropout,
    attention_probs_dropout_prob: dropout,
  };
  const checkpoint: Checkpoint = { name: MODEL, config, shapes: folder.shapes, read: (name) => folder.read(name) };
  const model = await BertForSequenceClassification.load(engine, checkpoint, { labels: 2, readout: "mean", seed });
  folder.close();
  return model;
}

/** What the pretrained model's vectors hold fast, from sentences without their labels; found once. */
function sourceFisher(): Promise<FisherNumbers> {
  known ??= (async () => {
    const { texts, size: N, damping } = plan.fisher;
    const model = await load(engine, 0, 0);
    const fisher = new FisherCollector(featureScores(model));
    for (const batch of packBatches(train.texts.slice(0, texts).map((text) => encode(text)), plan.batch)) await fisher.add(batch); // biome-ignore format: one loop
    const numbers = await fisher.numbers({ N, damping }, (name) => name.startsWith("bert."));
    fisher.dispose();
    model.dispose();
    return numbers;
  })();
  return known;
}

/** `member` 0 has the reference's head and order; the others have seeds of their own. */
async function trainOne(
  engine: Engine,
  { tau, fisher, dropout = 0 }: Training,
  { seed, rows_by_epoch }: Rows,
  epochs: number,
  { held, member }: { held: number; member: number },
): Promise<Trained & { held: Example[]; distance: number; dispose(): void }> {
  const model = await load(engine, dropout, 100 * seed + member);
  const start = heads.get(`seed.${seed}.classifier.weight`);
  if (member === 0 && start) model.theta.set("priorwork.head.weight", toFloat32(start));
  const own = rows_by_epoch[0] ?? [];
  const kept = own.slice(0, own.length - held);
  const examples = (rows: readonly number[]) =>
    rows.map((row) => encode(train.texts[row] as string, Number(train.labels?.[row])));
  const data = examples(kept);
  const place = new Map(kept.map((row, i) => [row, i]));
  const encoder = tau === "inf" ? Number.POSITIVE_INFINITY : tau;
  const head = { precision: fisher !== undefined || encoder > 0 ? plan.headPrecision : 0 };
  const prior =
    fisher === undefined
      ? gaussianPrior(model, { encoder: { precision: encoder }, head })
      : diagonalPrior(model, { encoder: { precision: fisher }, head }, (await sourceFisher()).diagonal);
  const target = logPosterior(model, prior, { N: data.length });
  const order = (epoch: number) => (rows_by_epoch[epoch] ?? []).flatMap((row) => place.get(row) ?? []);
  let distance = 0;
  for await (const step of fit(target, data, {
    optimizer: adam(plan.rates),
    epochs,
    batch: plan.batch,
    seed: 100 * seed + member,
    ...(member === 0 ? { order } : {}),
    warn: () => {},
  }))
    distance = step.distance;
  return {
    model,
    target,
    data,
    held: examples(own.slice(own.length - held)),
    distance,
    dispose() {
      prior.dispose();
      model.dispose();
    },
  };
}

/** The members of all of them. */
function mixture(posteriors: readonly Posterior[]): Posterior {
  return {
    members: posteriors.reduce((sum, { members }) => sum + members, 0),
    async logits(batches) {
      const found: Float32Array[] = [];
      for (const posterior of posteriors) found.push(...(await posterior.logits(batches)));
      return found;
    },
  };
}

/** A posterior whose members' logits are divided by T. */
function scaled(posterior: Posterior, T: number): Posterior {
  return {
    members: posterior.members,
    async logits(batches, progress) {
      return (await posterior.logits(batches, progress)).map((logits) => logits.map((x) => x / T));
    },
  };
}
