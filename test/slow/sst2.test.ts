/**
 * @file A real fine-tuning, played back from PyTorch's plan: MiniLM on 64 sentences of SST-2 with the same rows, order and
 * head start, by MAP and by MLE. Tolerances: first-epoch training loss 1 %, final accuracy .015, NLL .03 (MLE: 10 %, since
 * its NLL grows with overfitting). Minutes on lavapipe: PRIORWORK_SLOW=1.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { loadTokenizer, readTable } from "../../src/data/load.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { parseSafetensors, toFloat32 } from "../../src/model/safetensors.ts";
import { adam, evaluate, fit, gaussianPrior, logPosterior } from "../../src/train/index.ts";
import { hasMiniLM, MINILM, named, SHARED } from "../golden/reference.ts";
import { gpuForTests } from "../kernels/harness.ts";

const asked = process.env.PRIORWORK_SLOW === "1";
const gpu = gpuForTests();

interface Run {
  n: number;
  seed: number;
  rows_by_epoch: number[][];
}
interface Result {
  n: number;
  seed: number;
  method: string;
  tau: number | null;
  accuracy: number;
  nll: number;
  ece: number;
  train_nll_by_epoch: number[];
  pretrained_distance: number;
}

describe.skipIf(!hasMiniLM || !asked)(
  asked ? named("SST-2, 64 sentences", hasMiniLM) : "SST-2 — SKIPPED: PRIORWORK_SLOW is not 1",
  () => {
    const reference = join(SHARED, "reference");
    const read = (name: string) => readFileSync(join(reference, name), "utf8");

    for (const [method, tau, nllTolerance] of [
      ["map", 100, (_: number) => 0.03],
      ["mle", 0, (nll: number) => 0.1 * nll],
    ] as const) {
      test(`${method} is what PyTorch gets`, { timeout: 900_000 }, async () => {
        const plan = (JSON.parse(read("sst2_few_plan.json")).runs as Run[]).find(
          ({ n, seed }) => n === 64 && seed === 0,
        ) as Run;
        const theirs = read("sst2_few_results.jsonl")
          .trim()
          .split("\n")
          .map((line) => JSON.parse(line) as Result)
          .find((r) => r.n === 64 && r.seed === 0 && r.method === method && (r.tau ?? 0) === tau) as Result;
        const heads = parseSafetensors(
          new Uint8Array(readFileSync(join(reference, "sst2_few_plan.safetensors"))),
          "plan",
        ).tensors;

        const tokenizer = loadTokenizer(MINILM);
        const examplesOf = (file: string, rows?: readonly number[]) => {
          const { texts, labels = [] } = readTable(join(SHARED, "data/sst2", file), { needLabels: true });
          return (rows ?? texts.map((_, i) => i)).map((i) => ({
            ...tokenizer.encode(texts[i] as string, undefined, { maxLength: 64 }),
            label: Number(labels[i]),
          }));
        };
        const rows = plan.rows_by_epoch[0] as number[];
        const train = examplesOf("train.tsv", rows);
        const engine = new Engine(gpu());
        const model = await BertForSequenceClassification.load(engine, MINILM, { labels: 2, readout: "mean" });
        const head = heads.get("seed.0.classifier.weight");
        if (!head) throw new Error("the plan has no head");
        model.theta.set("priorwork.head.weight", toFloat32(head));
        const prior = gaussianPrior(model, { encoder: { precision: tau }, head: { precision: tau > 0 ? 1 : 0 } });
        const target = logPosterior(model, prior, { N: 64 });
        const place = new Map(rows.map((row, i) => [row, i]));
        const steps = fit(target, train, {
          optimizer: adam({ lr: 5e-5, headLr: 1e-3 }),
          epochs: 20,
          batch: 16,
          dropout: false,
          order: (epoch) => (plan.rows_by_epoch[epoch] as number[]).map((row) => place.get(row) as number),
        });
        let first = 0;
        let share = 0;
        let distance = 0;
        for await (const step of steps) {
          if (step.step <= 4) first += step.nll / 4;
          share = Math.max(share, step.priorShare);
          distance = step.distance;
        }
        const { metrics } = await evaluate(model, examplesOf("dev.tsv"), { batch: 64 });
        console.log(
          `${method}: accuracy ${metrics.accuracy.toFixed(4)} (PyTorch ${theirs.accuracy.toFixed(4)}), NLL ${metrics.nll.toFixed(4)} (${theirs.nll.toFixed(4)}), ECE ${metrics.ece.toFixed(4)} (${theirs.ece.toFixed(4)}), first epoch ${first.toFixed(4)} (${theirs.train_nll_by_epoch[0]}), distance ${distance.toFixed(4)} (${theirs.pretrained_distance.toFixed(4)}), largest priorShare ${share.toFixed(3)}`,
        );
        prior.dispose();
        model.dispose();
        expect(Math.abs(first / (theirs.train_nll_by_epoch[0] as number) - 1)).toBeLessThan(0.01);
        expect(Math.abs(metrics.accuracy - theirs.accuracy)).toBeLessThan(0.015);
        expect(Math.abs(metrics.nll - theirs.nll)).toBeLessThan(nllTolerance(theirs.nll));
        expect(share > 0).toBe(tau > 0);
      });
    }
  },
);
