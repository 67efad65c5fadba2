/** @file The plan of a run: which epoch and which place in it a step has. */
import { expect, test } from "vitest";
import { Plan } from "../../src/train/source.ts";

const source = (lengths: readonly number[]) => ({
  length: lengths.length,
  lengths,
  batch: (rows: readonly number[]) => rows,
});

test.each([
  ["a fixed number of examples", 3],
  ["a token budget, whose epochs differ in length", { tokens: 12 }],
  ["all of the data", 7],
])("a step of %s is in the epoch that a count from the start finds", (_, batch) => {
  const plan = new Plan(source([3, 9, 4, 1, 7, 2, 5]), { epochs: 6, batch, seed: 2 });
  let step = 0;
  for (let epoch = 0; epoch < 6; epoch++) {
    const { steps } = plan.epoch(epoch);
    for (const index of steps.keys()) {
      const found = plan.locate(++step);
      expect([found.plan.epoch, found.index, found.last]).toEqual([epoch, index, index === steps.length - 1]);
      expect(found.plan.steps).toEqual(steps);
    }
  }
  expect(step).toBe(plan.steps);
  for (const outside of [0, step + 1, Number.NaN]) expect(() => plan.locate(outside)).toThrow(RangeError);
});
