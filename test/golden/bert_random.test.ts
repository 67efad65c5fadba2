/**
 * @file A small random BERT (peaked attention, LayerNorms away from 1) against PyTorch: the pretraining loss, every
 * prediction at masked positions, and the gradient of every parameter.
 */
import { describe, expect, test } from "vitest";
import { Engine, ops } from "../../src/autograd/index.ts";
import { readArray } from "../../src/kernels/index.ts";
import type { Checkpoint } from "../../src/model/load.ts";
import { BertForPreTraining } from "../../src/model/pretraining.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { hasShared, maxDifference, type Noise, named, Reference } from "./reference.ts";

const gpu = gpuForTests();

/** The reference's weights as a checkpoint. */
export function randomBert(reference: Reference): Checkpoint {
  const names = Object.keys(reference.info.tensors).filter((name) => name.startsWith("weight."));
  return {
    name: "bert_random",
    config: reference.info.config,
    shapes: new Map(names.map((name) => [name.slice("weight.".length), reference.shape(name)])),
    read: async (name) => reference.floats(`weight.${name}`),
  };
}

describe.skipIf(!hasShared)(named("random BERT, pretraining heads", hasShared), () => {
  test("loss, predictions and every gradient agree with PyTorch", async () => {
    const reference = new Reference("bert_random");
    const floor = reference.info.f32_against_f64 as Record<string, Noise>;
    const lengths = reference.info.lengths as number[];
    const engine = new Engine(gpu());
    const model = await BertForPreTraining.load(engine, randomBert(reference));
    expect(model.report.missing).toEqual([]);

    const labels = reference.ints("mlm_labels");
    const maskedRows: number[] = [];
    const maskedTargets: number[] = [];
    const padded: number[] = [];
    let row = 0;
    for (const [b, length] of lengths.entries()) {
      for (let t = 0; t < length; t++, row++) {
        const label = labels[b * 40 + t] as number;
        if (label === -100) continue;
        maskedRows.push(row);
        maskedTargets.push(label);
        padded.push(b * 40 + t);
      }
    }
    const batch = {
      ...reference.batch(0, 6),
      maskedRows: Uint32Array.from(maskedRows),
      maskedTargets: Uint32Array.from(maskedTargets),
      nextSentence: Uint32Array.from(reference.ints("nsp_labels")),
    };
    const reads = engine.step(() => {
      const { nlls, mlm, nsp, predictions, relationship } = model.loss(batch);
      const early = {
        mlm: mlm.item(),
        nsp: nsp && ops.mean(nsp).item(),
        whole: ops.mean(nlls).item(),
        predictions: predictions.read(),
        relationship: relationship?.read(),
      };
      engine.backward(ops.mean(nlls));
      return { ...early, gradient: readArray(engine.gpu, model.theta.gradient()) };
    });

    const loss = reference.info.loss.f64;
    // Two losses of about 5 and 1 nats in float32.
    expect(Math.abs((await reads.mlm) - loss.mlm)).toBeLessThan(5e-6);
    expect(Math.abs(((await reads.nsp) ?? Number.NaN) - loss.nsp)).toBeLessThan(5e-6);
    expect(Math.abs((await reads.whole) - loss.mlm - loss.nsp)).toBeLessThan(5e-6);
    const all = reference.floats("prediction_logits");
    const expected = padded.flatMap((position) => [...all.subarray(position * 120, (position + 1) * 120)]);
    expect(maxDifference(await reads.predictions, expected)).toBeLessThan(
      10 * (floor.prediction_logits as Noise).max_abs_diff,
    );
    expect(maxDifference((await reads.relationship) ?? [], reference.floats("seq_relationship_logits"))).toBeLessThan(
      10 * (floor.seq_relationship_logits as Noise).max_abs_diff,
    );

    const gradient = await reads.gradient;
    const wrong: string[] = [];
    for (const name of model.theta.layout.names) {
      const { offset, size } = model.theta.layout.parameter(name);
      const truth = reference.floats(`grad.${name}`);
      const difference = maxDifference(gradient.subarray(offset, offset + size), truth);
      // A key's bias has no gradient in exact arithmetic: what PyTorch's float32 leaves there by chance is no floor, so
      // no tolerance is below the rounding of a gradient of size 1.
      const tolerance = Math.max(10 * (floor[`grad.${name}`] as Noise).max_abs_diff, 1e-6);
      if (!(difference < tolerance)) wrong.push(`${name}: ${difference} (tolerance ${tolerance})`);
    }
    expect(wrong).toEqual([]);
    model.dispose();
  });
});
