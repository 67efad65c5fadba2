/** @file Rests while the GPU is waited for: one in each turn of the event loop, none afterwards. */
import { expect, test } from "vitest";
import { openGpu } from "../../src/gpu/node.ts";
import { restBetweenTurns } from "../../src/gpu/wait.ts";

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

/** A promise with its two ends. */
function open() {
  let [resolve, reject] = [() => {}, (_: Error) => {}];
  const promise = new Promise<void>((yes, no) => {
    [resolve, reject] = [yes, no];
  });
  return { promise, resolve, reject };
}

async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await turn();
}

test("one rest a turn while anything is waited for, also after a failure", async () => {
  let rests = 0;
  const waits = restBetweenTurns(() => {
    rests++;
  });
  const first = open();
  const second = open();
  waits(first.promise);
  waits(second.promise);
  await turns(10);
  expect(rests).toBeGreaterThan(5);
  expect(rests, "two waits do not rest twice").toBeLessThanOrEqual(11);

  first.resolve();
  await turns(10);
  expect(rests, "the other is still open").toBeGreaterThan(12);

  second.reject(new Error("the device was lost"));
  await second.promise.catch(() => {});
  await turns(2);
  const before = rests;
  await turns(10);
  expect(rests, "nothing is open").toBe(before);

  const third = open();
  waits(third.promise);
  await turns(3);
  expect(rests, "it begins again").toBeGreaterThan(before);
  third.resolve();
  await turns(2);
});

test("a software adapter is waited for with rests, a GPU without", async () => {
  const gpu = await openGpu();
  expect(gpu.onWait !== undefined).toBe(gpu.adapter.kind !== "hardware");
  const waits: Promise<unknown>[] = [];
  gpu.onWait = (wait) => {
    waits.push(wait);
  };
  await gpu.settle();
  expect(waits).toHaveLength(1);
  await expect(waits[0]).resolves.toBeUndefined();
  gpu.destroy();
});
