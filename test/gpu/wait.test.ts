/** @file Rests while the GPU is waited for: one in each turn of the event loop, none afterwards. */
import { expect, test } from "vitest";
import { openGpu } from "../../src/gpu/node.ts";
import { restAfter, restBetweenTurns } from "../../src/gpu/wait.ts";

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

test("rests grow with the wait, between bounds, and begin short again with each wait", async () => {
  expect([0, 0.8, 8, 16, 1e6].map(restAfter)).toEqual([0.05, 0.05, 0.5, 1, 1]);
  const waited: number[] = [];
  const waits = restBetweenTurns((ms) => {
    waited.push(ms);
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2);
  });
  const [first, second] = [open(), open()];
  waits(first.promise);
  await turns(5);
  expect(waited.at(-1), "four rests of 2 ms at least").toBeGreaterThan(6);
  waits(second.promise);
  const before = waited.length;
  await turns(1);
  expect(waited[before]).toBeLessThan(waited[before - 1] ?? 0);
  first.resolve();
  second.resolve();
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
