/**
 * @file The ways to predict that the picture compares, each from the same trained models: MLE and MAP by the same steps,
 * and the posterior methods around MAP's θ. Nothing is tuned per size or per method.
 */
import type { Engine } from "../../src/autograd/index.ts";
import type { Example } from "../../src/data/batches.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import {
  dropoutMembers,
  heldDraws,
  type Posterior,
  pointEstimate,
  predictAll,
  readSlices,
  thetaMembers,
} from "../../src/posterior/index.ts";
import { adam, fit, gaussianPrior, logPosterior } from "../../src/train/index.ts";
import { type Draws, READINGS } from "../readings.ts";

export interface Setting {
  engine: Engine;
  model: string;
  labels: readonly string[];
  train: readonly Example[];
  dev: readonly Example[];
  seed: number;
}

const RATES = { lr: 5e-4, headLr: 5e-3 };
const TAU = { encoder: 300, head: 1 };
const BATCH = 16;
/** Dropout members. */
const MASKS = 16;
/** Steps of a training: fourteen epochs, and enough of them where an epoch is one step. */
const epochsFor = (n: number) => Math.max(14, Math.ceil(60 / Math.ceil(n / BATCH)));

/** A trained model, its target, and the way to be rid of it. */
async function train({ engine, model: folder, labels, train, seed }: Setting, tau: typeof TAU, dropout: boolean) {
  const model = await BertForSequenceClassification.load(engine, folder, { labels, seed });
  const prior = gaussianPrior(model, { encoder: { precision: tau.encoder }, head: { precision: tau.head } });
  const target = logPosterior(model, prior, { N: train.length });
  const options = { optimizer: adam(RATES), epochs: epochsFor(train.length), batch: BATCH, seed, dropout };
  for await (const _ of fit(target, train, { ...options, warn: () => {} }));
  const dispose = () => {
    prior.dispose();
    model.dispose();
  };
  return { model, target, dispose };
}

/** In the order in which `predictions` gives them. */
export const METHODS = [
  "frozen encoder",
  "MLE",
  "dropout members",
  "MAP",
  "Laplace, head",
  "SGHMC, head",
  "SWAG",
  "five MAPs",
] as const;
export type Method = (typeof METHODS)[number];

/** Log-probabilities of dev, [n·K], of each method that is wanted. */
export async function* predictions(
  setting: Setting,
  wanted: (method: Method) => boolean,
): AsyncGenerator<{ method: Method; logMean: Float64Array }> {
  const { train: data, dev, seed } = setting;
  const ask = async (method: Method, posterior: Posterior) => {
    const { logMean } = await predictAll(posterior, dev, { batch: 64 });
    return { method, logMean };
  };
  const single = async (method: Method, tau: typeof TAU, dropout = false) => {
    const { model, dispose } = await train(setting, tau, dropout);
    const answer = await ask(method, dropout ? dropoutMembers(model, { S: MASKS, seed }) : pointEstimate(model));
    dispose();
    return answer;
  };
  if (wanted("frozen encoder")) yield await single("frozen encoder", { ...TAU, encoder: Number.POSITIVE_INFINITY });
  if (wanted("MLE")) yield await single("MLE", { encoder: 0, head: 0 });
  if (wanted("dropout members")) yield await single("dropout members", TAU, true);
  if (!METHODS.slice(3).some(wanted)) return;

  const trained = { ...(await train(setting, TAU, false)), data };
  const { model, dispose } = trained;
  if (wanted("MAP")) yield await ask("MAP", pointEstimate(model));
  for (const [method, reading] of [
    ["Laplace, head", "laplace"],
    ["SGHMC, head", "sghmc"],
    ["SWAG", "swag"],
  ] as const) {
    if (!wanted(method)) continue;
    const found = await READINGS[reading](trained, DRAWS, { ...RATES, batch: BATCH, seed });
    yield await ask(method, found.posterior);
    found.dispose();
  }

  if (wanted("five MAPs")) {
    // From five seeds: the first is the one at hand.
    const slices = model.theta.layout.slices;
    const modes = [await readSlices(model.theta, slices)];
    for (let s = 1; s < 5; s++) {
      const other = await train({ ...setting, seed: seed + 100 * s }, TAU, false);
      modes.push(await readSlices(other.model.theta, slices));
      other.dispose();
    }
    yield await ask("five MAPs", thetaMembers(model, heldDraws(slices, modes)));
  }
  dispose();
}

const DRAWS: Draws = {
  dropout: MASKS,
  laplace: 64,
  swag: { draws: 16, points: 20 },
  sghmc: { chains: 4, draws: 16 },
};
