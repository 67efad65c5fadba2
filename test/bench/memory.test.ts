/**
 * @file The account of docs/memory.md holds: a step takes what it predicts, and no more than five vectors and 20·C numbers
 * a token and layer allow. On shapes small enough for a test, the terms in MiniLM's proportions (θ as large as a few
 * hundred tokens' values).
 */
import { describe, expect, test } from "vitest";
import { account, allowance, BERT_BASE, Steps, total } from "../../bench/memory.ts";
import { MINILM } from "../../bench/step.ts";
import { Engine } from "../../src/autograd/index.ts";
import { gpuForTests } from "../kernels/harness.ts";

const gpu = gpuForTests();
const SMALL = { ...MINILM, vocab_size: 500, hidden_size: 96, num_attention_heads: 4, intermediate_size: 384 };

describe("a training step", () => {
  test.each([
    [6, 213, 0.1],
    [6, 1000, 0.1],
    [6, 1000, 0],
    [3, 641, 0.1],
  ])("of %i layers and %i tokens, dropout %f, takes what the account says", async (layers, tokens, dropout) => {
    const config = { ...SMALL, num_hidden_layers: layers };
    const steps = new Steps(new Engine(gpu()), config, tokens, dropout);
    for (const recompute of [false, true]) {
      const { predictedBytes, peakBytes, allowedBytes } = await steps.memory(recompute);
      const { peakLiveBytes } = gpu().stats;
      // Above: the rounding to classes (at most 1/16), token ids, partial sums, a few buffers of 256 bytes.
      expect(peakLiveBytes / predictedBytes).toBeGreaterThan(1);
      expect(peakLiveBytes / predictedBytes).toBeLessThan(1.08);
      // What exists and is not in use: buffers of other sizes, which cannot go before the step is submitted. 1.1 until a
      // product added its gradient in place: C a token less are in use since then, and as many exist.
      expect(peakBytes).toBeLessThan(1.11 * peakLiveBytes);
      expect(peakBytes).toBeLessThan(1.1 * allowedBytes);
    }
    await steps.dispose();
  });

  test("whose layers are run again keeps a fifth of their values", async () => {
    const steps = new Steps(new Engine(gpu()), { ...SMALL, num_hidden_layers: 12 }, 500);
    const peaks: number[] = [];
    for (const recompute of [false, true]) {
      await steps.memory(recompute);
      peaks.push(gpu().stats.peakLiveBytes - gpu().stats.liveBytes);
    }
    await steps.dispose();
    expect(peaks[1]).toBeLessThan(0.2 * (peaks[0] as number));
  });
});

test("BERT-base at 512 tokens has room in 4 GB, by the account", () => {
  // Embeddings, 12 layers of 12·768² weights and 13·768 biases and norms, a head of 2 labels.
  const [c, parameters] = [768, 108_893_186];
  const terms = account(BERT_BASE, { parameters, tokens: 512 });
  expect(total(terms)).toBeLessThan(allowance(BERT_BASE, parameters, 512));
  expect(total(terms)).toBeLessThan(4e9 / 1.1);
  expect(terms.layersBelow).toBe(11 * 4 * 512 * (16 * c + 12 + 4));
  expect(account(BERT_BASE, { parameters, tokens: 512, recompute: true }).layersBelow).toBe(11 * 4 * 512 * c);
});
