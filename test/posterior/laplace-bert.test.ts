/** @file Laplace's approximation on a BERT: which layers are found, what a pass costs, and that draws destroy features. */
import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { type Example, packBatch } from "../../src/data/batches.ts";
import { BertForSequenceClassification, type ClassifierOptions } from "../../src/model/bert.ts";
import { heldDraws, readSlices } from "../../src/posterior/draws.ts";
import { type GgnOptions, ggn } from "../../src/posterior/ggn.ts";
import { laplace, laplaceDraws, monteCarlo } from "../../src/posterior/laplace.ts";
import { linearised, probit } from "../../src/posterior/linearised.ts";
import { pointEstimate } from "../../src/posterior/members.ts";
import { predict } from "../../src/posterior/posterior.ts";
import { featureCosine } from "../../src/posterior/volume.ts";
import { gaussianPrior } from "../../src/train/prior.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";
import { tinyCheckpoint } from "../model/tiny.ts";

const gpu = gpuForTests();
const checkpoint = tinyCheckpoint({ layers: 2, hidden: 16 });
const EXAMPLES: Example[] = Array.from({ length: 7 }, (_, i) => ({
  ids: Uint32Array.from(randn(i, 2 + ((5 * i) % 9)), (x) => Math.floor(Math.abs(x) * 1000) % 40),
  typeIds: new Uint32Array(2 + ((5 * i) % 9)),
}));
const BATCHES = [packBatch(EXAMPLES.slice(0, 4)), packBatch(EXAMPLES.slice(4))];

async function withBert<T>(options: ClassifierOptions, body: (bert: BertForSequenceClassification) => Promise<T>) {
  const bert = await BertForSequenceClassification.load(new Engine(gpu()), checkpoint, { labels: 3, ...options });
  try {
    return await body(bert);
  } finally {
    bert.dispose();
  }
}

async function stateOf(bert: BertForSequenceClassification, options: GgnOptions, tau = 1) {
  const prior = gaussianPrior(bert, { encoder: { precision: tau }, head: { precision: tau } });
  const state = laplace(await ggn(bert, BATCHES, options), prior);
  prior.dispose();
  return state;
}

describe("layers", () => {
  test("the last one is the classifier, or what gives an MLP head's logits", async () => {
    for (const [head, keys, size] of [
      ["linear", ["classifier.weight", "classifier.bias"], 3 * 17],
      ["mlp:5", ["priorwork.head.output.weight", "priorwork.head.output.bias"], 3 * 6],
    ] as const) {
      await withBert({ head }, async (bert) => {
        const [block] = (await ggn(bert, BATCHES, { structure: "full" })).blocks;
        expect(block?.slices.map(({ key }) => key)).toEqual(keys);
        expect(block?.curvature.size).toBe(size);
      });
    }
  });

  test("of groups: every linear layer once, the rest named; the same bits where layers run again in the backward", async () => {
    const draws: Float32Array[] = [];
    for (const recompute of [false, true]) {
      await withBert({ recompute }, async (bert) => {
        const state = await stateOf(bert, { structure: "kronecker", groups: ["layer.1", "pooler", "head"] });
        const prefix = "bert.encoder.layer.1";
        expect(state.ggn.blocks.map(({ slices }) => slices[0]?.key)).toEqual([
          `${prefix}.attention.self.weight`,
          `${prefix}.attention.output.dense.weight`,
          `${prefix}.intermediate.dense.weight`,
          `${prefix}.output.dense.weight`,
          "bert.pooler.dense.weight",
          "classifier.weight",
        ]);
        expect(state.ggn.left.map(({ key }) => key.replace(`${prefix}.`, ""))).toEqual([
          "attention.output.LayerNorm.weight",
          "attention.output.LayerNorm.bias",
          "output.LayerNorm.weight",
          "output.LayerNorm.bias",
        ]);
        draws.push(await laplaceDraws(state, { S: 1, seed: 2 }).read(0));
      });
    }
    expect(draws[0]).toEqual(draws[1]);
  });

  test("a diagonal is one forward and one backward a batch", async () => {
    await withBert({}, async (bert) => {
      let passes = 0;
      const counting = {
        engine: bert.engine,
        theta: bert.theta,
        logits: (batch: (typeof BATCHES)[number]) => {
          passes++;
          return bert.logits(batch);
        },
      };
      const done: number[] = [];
      const options = {
        structure: "diagonal",
        groups: ["encoder", "head"],
        progress: (n: number) => done.push(n),
      } as const;
      const { blocks, n } = await ggn(counting, BATCHES, options);
      expect([passes, n, blocks.length]).toEqual([2, 7, bert.theta.layout.slices.length]);
      expect(done).toEqual([1, 2]);
    });
  });

  test("a diagonal's squares are added a run of slices at a time", async () => {
    await withBert({}, async (bert) => {
      const ops: string[] = [];
      bert.engine.gpu.afterDispatch = ({ op }) => void ops.push(op);
      try {
        // The head lies behind the pooler; layer 0 apart from both.
        await ggn(bert, BATCHES, { structure: "diagonal", groups: ["layer.0", "pooler", "head"] });
      } finally {
        bert.engine.gpu.afterDispatch = undefined;
      }
      expect(ops.filter((op) => op === "addSquares")).toHaveLength(2 * BATCHES.length);
    });
  });
});

describe("predictions", () => {
  for (const structure of ["diagonal", "kronecker"] as const) {
    test(`a stiff prior leaves the point estimate: ${structure} of all groups`, async () => {
      await withBert({}, async (bert) => {
        const state = await stateOf(bert, { structure, groups: ["encoder", "head"] }, 1e12);
        const point = await predict(pointEstimate(bert), BATCHES);
        for (const posterior of [probit(bert, state), linearised(bert, state, { S: 3 })]) {
          const found = await predict(posterior, BATCHES);
          // One sequence at a time instead of four: float32's rounding, and √(J·J/τ) of 1e-4.
          found.logMean.forEach((logp, i) => {
            expect(Math.abs(logp - point.logMean[i]!)).toBeLessThan(2e-3);
          });
        }
      });
    });
  }

  test("a loose one leaves less confidence, by the linearisation, than the point estimate has", async () => {
    await withBert({}, async (bert) => {
      // A fresh head says next to nothing; this one is sure of itself.
      bert.theta.set("classifier.weight", randn(7, 3 * 16, 1.5));
      const state = await stateOf(bert, { structure: "kronecker", groups: ["encoder", "head"] }, 20);
      const point = await predict(pointEstimate(bert), BATCHES);
      const found = await predict(linearised(bert, state, { S: 200 }), BATCHES);
      expect(found.epistemic.every((mi) => mi > 0.01)).toBe(true);
      expect(mean(found.total)).toBeGreaterThan(mean(point.total));
    });
  });
});

describe("volume", () => {
  test("noise on all weights takes the features with it; on the head none; θ is left as it was", async () => {
    await withBert({}, async (bert) => {
      const slices = bert.theta.layout.slices;
      const own = await readSlices(bert.theta, slices);
      const [first = BATCHES[0]!] = BATCHES;
      const noisy = (scale: number) => {
        const noise = randn(5, own.length, scale);
        return featureCosine(bert, heldDraws(slices, [own.map((x, i) => x + noise[i]!)]), first);
      };
      expect(await noisy(0)).toBeCloseTo(1, 6);
      const cosines = [await noisy(0.01), await noisy(0.1), await noisy(1)];
      expect(cosines[0]).toBeGreaterThan(0.99);
      expect(cosines[1]).toBeLessThan(cosines[0]!);
      expect(cosines[2]).toBeLessThan(0.8);
      expect(await readSlices(bert.theta, slices)).toEqual(own);
      const head = slices.filter(({ groups }) => groups[0] === "head");
      expect(await featureCosine(bert, heldDraws(head, [new Float32Array(3 * 17)]), first)).toBe(1);
      await expect(featureCosine(bert, heldDraws(slices, []), first)).rejects.toThrow(/no draw/);
    });
  });

  test("Monte Carlo over an encoder warns once; over the head, or a stiff prior, it does not", async () => {
    await withBert({}, async (bert) => {
      const warnings = async (options: GgnOptions, tau: number) => {
        const lines: string[] = [];
        const state = await stateOf(bert, options, tau);
        const posterior = monteCarlo(bert, state, { S: 2, warn: (line) => lines.push(line) });
        await posterior.logits(BATCHES);
        await posterior.logits(BATCHES);
        return lines;
      };
      const all = { structure: "diagonal", groups: ["encoder", "head"] } as const;
      expect(await warnings(all, 1)).toEqual([
        expect.stringMatching(
          /^draws of embeddings, layer\.0, layer\.1, pooler, head do not keep the features .mean cosine /,
        ),
      ]);
      expect(await warnings(all, 1e8)).toEqual([]);
      expect(await warnings({ structure: "full" }, 0.01)).toEqual([]);
    });
  });
});

function mean(values: ArrayLike<number>): number {
  return Array.from(values).reduce((sum, x) => sum + x, 0) / values.length;
}
