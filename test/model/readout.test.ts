/** @file Readouts (check 16). Others in the batch change nothing, k = 1 is the last layer, every layer used gets a gradient. */
import { describe, expect, test } from "vitest";
import { Engine, ops } from "../../src/autograd/index.ts";
import { packBatch } from "../../src/data/batches.ts";
import { readArray } from "../../src/kernels/index.ts";
import { BertForSequenceClassification } from "../../src/model/bert.ts";
import { type Readout, readoutNamed } from "../../src/model/readout.ts";
import { gpuForTests, randn } from "../kernels/harness.ts";
import { tinyCheckpoint } from "./tiny.ts";

const gpu = gpuForTests();
const LAYERS = 3;
const C = 16;

const sequence = (seed: number, length: number) => ({
  ids: Uint32Array.from(randn(seed, length), (x) => Math.floor(Math.abs(x) * 1000) % 40),
  typeIds: new Uint32Array(length),
});
const a = sequence(1, 7);
const b = sequence(2, 3);
const c = sequence(3, 11);

async function features(readout: string | Readout, sequences: (typeof a)[]): Promise<Float32Array> {
  const engine = new Engine(gpu());
  const model = await BertForSequenceClassification.load(engine, tinyCheckpoint({ layers: LAYERS, hidden: C }), {
    readout,
  });
  try {
    const { read } = engine.step(() => engine.noGrad(() => ({ read: model.features(packBatch(sequences)).read() })));
    return await read;
  } finally {
    model.dispose();
  }
}

describe("readouts", () => {
  for (const name of [
    "pooler",
    "cls",
    "mean",
    "max",
    "last2-concat",
    "last3-sum",
    "last2-concat-mean",
    "last2-sum-max",
  ]) {
    test(`${name}: the other sequences of the batch change nothing`, async () => {
      const together = await features(name, [b, a, c]);
      const alone = await features(name, [a]);
      expect(together.length).toBe(3 * alone.length);
      expect([...together.subarray(alone.length, 2 * alone.length)]).toEqual([...alone]);
    });
  }

  test("last1-concat and last1-sum are the last layer's [CLS]", async () => {
    const cls = await features("cls", [a, b]);
    expect([...(await features("last1-concat", [a, b]))]).toEqual([...cls]);
    expect([...(await features("last1-sum", [a, b]))]).toEqual([...cls]);
  });

  test("last2-concat ends with the last layer, last2-sum adds both", async () => {
    const cls = await features("cls", [a]);
    const both = await features("last2-concat", [a]);
    const sum = await features("last2-sum", [a]);
    expect([...both.subarray(C)]).toEqual([...cls]);
    expect([...sum]).toEqual([...both.subarray(0, C)].map((x, i) => Math.fround(x + (cls[i] as number))));
  });

  test("a formula of one's own", async () => {
    const clsAndMean: Readout = {
      name: "cls+mean",
      width: (channels) => 2 * channels,
      apply: (v) => ops.concat([v.cls(v.last(1)), v.mean(v.last(1))]),
    };
    const expected = [...(await features("cls", [a])), ...(await features("mean", [a]))];
    expect([...(await features(clsAndMean, [a]))]).toEqual(expected);
  });

  test("asking for a layer that was not kept says so", async () => {
    const deep: Readout = { name: "deep", width: (channels) => channels, apply: (v) => v.cls(v.last(2)) };
    await expect(features(deep, [a])).rejects.toThrow("was not kept");
  });

  test("the gradient reaches every layer that is used, and only what lies below it", async () => {
    const engine = new Engine(gpu());
    // Only the second layer from the end is read: the last layer must get no gradient.
    const second: Readout = {
      name: "second",
      depth: 2,
      width: (channels) => channels,
      apply: (v) => v.mean(v.last(2)),
    };
    const reached: Record<string, boolean[]> = {};
    for (const readout of ["last3-concat", second]) {
      const model = await BertForSequenceClassification.load(engine, tinyCheckpoint({ layers: LAYERS, hidden: C }), {
        readout,
      });
      const { gradient } = engine.step(() => {
        const batch = packBatch([
          { ...a, label: 0 },
          { ...b, label: 1 },
        ]);
        engine.backward(ops.sum(model.loss(batch).nlls));
        return { gradient: readArray(engine.gpu, model.theta.gradient()) };
      });
      const numbers = await gradient;
      reached[typeof readout === "string" ? readout : readout.name] = Array.from({ length: LAYERS }, (_, i) => {
        const { offset, size } = model.theta.layout.parameter(`bert.encoder.layer.${i}.output.dense.weight`);
        return numbers.subarray(offset, offset + size).some((g) => g !== 0);
      });
      model.dispose();
    }
    expect(reached).toEqual({ "last3-concat": [true, true, true], second: [true, true, false] });
  });

  test("names that do not exist are refused with what there is", () => {
    expect(() => readoutNamed("middle", 6)).toThrow("Choose one of pooler, cls, mean, max, last4-concat, last4-sum");
    expect(() => readoutNamed("last7-sum", 6)).toThrow("this encoder has 6 layers");
    expect(() => readoutNamed("last0-sum", 6)).toThrow("last1 to last6");
  });
});
