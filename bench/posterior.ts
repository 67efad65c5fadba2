/**
 * @file What many θ cost over one, on a MiniLM-shaped BERT at SST-2's lengths: a step of SGLD, one of MAP with SWAG's point
 * collected after it, and a batch of the Fisher information, diagonal and of rank 4, each beside a MAP step; ten dropout
 * members beside one prediction, for one sentence and for a batch of 32.
 */
import { Engine, type Theta } from "../src/autograd/index.ts";
import { type Example, type PackedBatch, packBatch } from "../src/data/batches.ts";
import type { Gpu } from "../src/gpu/index.ts";
import { BertForSequenceClassification } from "../src/model/bert.ts";
import type { Checkpoint } from "../src/model/load.ts";
import { dropoutMembers, type Posterior, pointEstimate, predict, Swag, sgld } from "../src/posterior/index.ts";
import { Stream } from "../src/random.ts";
import { classifierScores, FisherCollector } from "../src/train/fisher.ts";
import type { Trainer } from "../src/train/fit.ts";
import type { BenchCase } from "./case.ts";
import { LENGTHS, MINILM, OPTIONS, seededCheckpoint, trainer } from "./step.ts";

const CONFIG = { ...MINILM, hidden_dropout_prob: 0.1, attention_probs_dropout_prob: 0.1 };
const MEMBERS = 10;

export function posteriorCases(gpu: Gpu): BenchCase[] {
  const engine = new Engine(gpu);
  const source = seededCheckpoint(CONFIG);
  const lengths = LENGTHS[1] ?? [];
  const stream = new Stream(1, "bench");
  const example = (length: number, i: number): Example => ({
    ids: Uint32Array.from({ length }, () => stream.integer(CONFIG.vocab_size)),
    typeIds: new Uint32Array(length),
    label: i % 2,
  });
  const examples = lengths.map(example);
  const tokens = lengths.reduce((a, b) => a + b, 0);
  const step = (name: string, body: ReturnType<typeof trainer>): BenchCase => ({
    name,
    turn: "posterior step",
    shape: { tokens },
    ...body,
  });
  let path: Swag | undefined;
  const collect = (training: Trainer, theta: Theta) => {
    path ??= new Swag(theta, 10);
    path.collect(() => training.visited());
  };
  const swag = trainer(engine, source, examples, 300, undefined, collect);
  const forget = async () => {
    path?.dispose();
    path = undefined;
    await swag.dispose?.();
  };
  return [
    step("posterior.step.MAP", trainer(engine, source, examples, 300)),
    step("posterior.step.SGLD", trainer(engine, source, examples, 300, sgld({ lr: 1e-6, N: examples.length }))),
    step("posterior.step.SWAG", { run: swag.run, dispose: forget }),
    step("posterior.step.Fisher", fisher(engine, source, examples, 0)),
    step("posterior.step.Fisher.rank4", fisher(engine, source, examples, 4)),
    ...[[13], [...lengths, ...lengths]].flatMap((batch) => {
      const packed = packBatch(batch.map(example));
      const shape = { sequences: packed.sequences, tokens: packed.tokens };
      const turn = `predict ${packed.sequences}`;
      const ask = (
        name: string,
        members: number,
        make: (model: BertForSequenceClassification) => Posterior,
      ): BenchCase => {
        let model: BertForSequenceClassification | undefined;
        return {
          ...{ name, turn, shape: { ...shape, members } },
          async run() {
            model ??= await BertForSequenceClassification.load(engine, source, OPTIONS);
            await predict(make(model), [packed]);
          },
          dispose: () => model?.dispose(),
        };
      };
      return [
        ask("posterior.predict", 1, pointEstimate),
        ask("posterior.predict.dropout", MEMBERS, (model) => dropoutMembers(model, { S: MEMBERS })),
      ];
    }),
  ];
}

/** Collects a batch's Fisher information at every `run`; every rank batches the columns are turned. */
function fisher(
  engine: Engine,
  source: Checkpoint,
  examples: Example[],
  rank: number,
): Pick<BenchCase, "run" | "dispose"> {
  const batch = packBatch(examples);
  let model: BertForSequenceClassification | undefined;
  let collector: FisherCollector<PackedBatch> | undefined;
  return {
    async run() {
      model ??= await BertForSequenceClassification.load(engine, source, OPTIONS);
      collector ??= new FisherCollector(classifierScores(model), { rank });
      await collector.add(batch);
    },
    dispose() {
      collector?.dispose();
      model?.dispose();
    },
  };
}
