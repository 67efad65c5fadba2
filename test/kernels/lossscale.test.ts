/** @file Loss scaling on the device: division by S to the bit, and the rule by which S changes and a verdict is taken back. */
import { describe, expect, test } from "vitest";
import { fromHost, readIndices } from "../../src/kernels/array.ts";
import {
  createLossScale,
  LARGEST_SCALE,
  type LossScale,
  lossScaleWords,
  lossSeed,
  parseLossScale,
  settleScale,
  unscale,
} from "../../src/kernels/lossscale.ts";

import { STATUS } from "../../src/kernels/terms.ts";
import { gpuForTests, randn, run } from "./harness.ts";

const gpu = gpuForTests();
const start = (change: Partial<LossScale> = {}): LossScale => ({
  scale: 4096,
  good: 0,
  skipped: 0,
  last: 0,
  ...change,
});

describe("unscale", () => {
  test.each([1, 2, 4096, LARGEST_SCALE])(
    "divides by %i to the bit, in the stretches and nowhere else",
    async (scale) => {
      const g = gpu();
      const length = 8192 * 3;
      const grad = randn(1, length, 1e-3);
      grad[64] = 1e-20;
      grad[128] = -3e30;
      grad[192] = Number.NEGATIVE_INFINITY;
      const stretches = [
        { offset: 64, length: 8192, priorScale: 0 },
        { offset: 8192 + 640, length: 64, priorScale: 0 },
      ];
      for (const window of [undefined, 4 * 8192]) {
        const [y] = await run(g, () => {
          const array = fromHost(g, grad);
          unscale(g, array, stretches, createLossScale(g, start({ scale })), { window });
          return [array];
        });
        const inside = (i: number) => stretches.some(({ offset, length }) => i >= offset && i < offset + length);
        expect(y).toEqual(grad.map((x, i) => (inside(i) ? x / scale : x)));
      }
    },
  );

  test("passes over what is not live", async () => {
    const g = gpu();
    const [y] = await run(g, () => {
      const array = fromHost(g, new Float32Array(8192).fill(8));
      // The second chunk of 256 alone.
      const live = { words: fromHost(g, Uint32Array.of(2)), share: 1 / 32 };
      unscale(g, array, [{ offset: 0, length: 8192, priorScale: 0 }], createLossScale(g, start({ scale: 4 })), {
        live,
      });
      return [array];
    });
    expect(y).toEqual(Float32Array.from({ length: 8192 }, (_, i) => (i >= 256 && i < 512 ? 2 : 8)));
  });

  test("the seed is S", async () => {
    const g = gpu();
    expect(await run(g, () => [lossSeed(g, createLossScale(g, start({ scale: 1024 })))])).toEqual([
      Float32Array.of(1024),
    ]);
  });
});

describe("settleScale", () => {
  /** State and status after a step that began with these. */
  async function settled(state: LossScale, bad: number, losses: number[] = [0.5]) {
    const g = gpu();
    const { scale, status } = g.scope(() => {
      const [scale, status] = [createLossScale(g, state), fromHost(g, new Uint32Array(16))];
      const words = new Uint32Array(16);
      words[STATUS.bad] = bad;
      g.write(status, words);
      settleScale(g, scale, status, fromHost(g, losses), { step: 7, interval: 3 });
      return { scale: readIndices(g, scale), status: readIndices(g, status) };
    });
    const words = await status;
    return { state: parseLossScale(await scale), bad: words[STATUS.bad], step: words[STATUS.step] };
  }

  test("counts good steps and doubles S after as many as were asked for, up to the largest", async () => {
    expect(await settled(start({ good: 1 }), 0)).toEqual({ state: start({ good: 2 }), bad: 0, step: 0 });
    expect((await settled(start({ good: 2 }), 0)).state).toEqual(start({ scale: 8192 }));
    expect((await settled(start({ good: 2, scale: LARGEST_SCALE }), 0)).state).toEqual(start({ scale: LARGEST_SCALE }));
  });

  test("halves S where the gradient was bad, takes the verdict back and counts the step", async () => {
    expect(await settled(start({ good: 2, skipped: 4, last: 2 }), 1)).toEqual({
      state: start({ scale: 2048, skipped: 5, last: 7 }),
      bad: 0,
      step: 7,
    });
  });

  test("leaves the verdict where S is at its least, or the loss itself is bad, and then changes nothing any more", async () => {
    const least = start({ scale: 1 });
    expect(await settled(least, 1)).toEqual({ state: least, bad: 3, step: 0 });
    for (const loss of [Number.NaN, Number.NEGATIVE_INFINITY]) {
      expect(await settled(start(), 1, [1, loss])).toEqual({ state: start(), bad: 3, step: 0 });
    }
    expect(await settled(start(), 3)).toEqual({ state: start(), bad: 3, step: 0 });
  });
});

test("a scale is a power of two within its limits", () => {
  for (const scale of [0, -2, 3, 0.5, 2 ** 25, Number.NaN, Number.POSITIVE_INFINITY]) {
    expect(() => lossScaleWords(start({ scale }))).toThrow(/loss scale: .* is no power of two from 1 to 16777216/);
  }
  const state = start({ scale: 2 ** 20, good: 3, skipped: 2, last: 9 });
  expect(parseLossScale(lossScaleWords(state))).toEqual(state);
});
