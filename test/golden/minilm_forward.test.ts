/**
 * @file MiniLM against PyTorch, layer by layer. The tolerance of each tensor is ten times the distance between PyTorch's
 * float32 and float64 results: strict, and fair to another order of summation.
 */
import { describe, expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { hasMiniLM, MINILM, maxDifference, type Noise, named, Reference } from "./reference.ts";

const gpu = gpuForTests();

describe.skipIf(!hasMiniLM)(named("MiniLM forward", hasMiniLM), () => {
  test("every layer, the pooler and the sentence embedding agree with PyTorch", { timeout: 300_000 }, async () => {
    const reference = new Reference("minilm_forward");
    const floor = reference.info.f32_against_f64 as Record<string, Noise>;
    const engine = new Engine(gpu());
    const model = await BertForSequenceClassification.load(engine, MINILM, { labels: 2, readout: "pooler" });
    const batch = reference.batch(0, 8);
    const lengths = reference.info.lengths as number[];
    const three = lengths.slice(0, 3).reduce((a, b) => a + b, 0) * 384;

    const result = engine.step(() =>
      engine.noGrad(() => ({
        states: Promise.all(model.encoder.hiddenStates(batch).map((state) => state.read())),
        pooled: model.features(batch).read(),
      })),
    );
    const states = await result.states;
    const differences: Record<string, [number, number]> = {};
    const compare = (name: string, actual: ArrayLike<number>, expected: ArrayLike<number>) => {
      differences[name] = [maxDifference(actual, expected), 10 * (floor[name] as Noise).max_abs_diff];
    };
    compare("embedding_output", states[0] as Float32Array, reference.unpad("embedding_output", 8));
    for (let i = 0; i < 6; i++) {
      compare(
        `layer.${i}.hidden_state`,
        (states[i + 1] as Float32Array).subarray(0, three),
        reference.unpad(`layer.${i}.hidden_state`, 3),
      );
    }
    compare("last_hidden_state", states[6] as Float32Array, reference.unpad("last_hidden_state", 8));
    compare("pooler_output", await result.pooled, reference.floats("f64.pooler_output"));

    const mean = await BertForSequenceClassification.load(engine, MINILM, { labels: 2, readout: "mean" });
    const vectors = await engine.step(() => engine.noGrad(() => ({ read: mean.features(batch).read() }))).read;
    const normalised = Float64Array.from(vectors);
    for (let b = 0; b < 8; b++) {
      const row = normalised.subarray(b * 384, (b + 1) * 384);
      const norm = Math.sqrt(row.reduce((a, x) => a + x * x, 0));
      for (let i = 0; i < 384; i++) row[i] = (row[i] as number) / norm;
    }
    compare("sentence_embedding", normalised, reference.floats("f64.sentence_embedding"));
    model.dispose();
    mean.dispose();
    for (const [name, [difference, tolerance]] of Object.entries(differences)) {
      expect(difference, `${name}: max |difference|`).toBeLessThan(tolerance);
    }
  });
});
