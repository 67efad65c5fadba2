/**
 * @file The profile against dispatches that were counted by hand: none is missed, none is timed outside start and stop,
 * results are those without a profile, and the times add up. An adapter without timestamps is refused in a sentence.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { DeviceError } from "../../src/errors.ts";
import { Gpu, hasTimestamps, measureCeilings, Profile, type View } from "../../src/gpu/index.ts";
import { openGpu, readShaders } from "../../src/gpu/node.ts";
import { addInto, attention, attentionBackward, attentionPlan, empty, fill, gather, matmul, readArray } from "../../src/kernels/index.ts"; // biome-ignore format: one line

let gpu: Gpu;
beforeAll(async () => {
  gpu = await openGpu();
});
afterAll(() => gpu.destroy());

/** Some work of three operations, 7 dispatches; gives the product's first row. */
async function work(): Promise<number[]> {
  return [
    ...(await gpu.scope(() => {
      const [a, b, c] = [empty(gpu, [32, 64]), empty(gpu, [48, 64]), empty(gpu, [32, 64])];
      fill(gpu, a, 2);
      fill(gpu, b, 3);
      fill(gpu, c, 1);
      addInto(gpu, c, a);
      matmul(gpu, a, b, "NT");
      matmul(gpu, c, b, "NT");
      return { read: readArray(gpu, matmul(gpu, c, b, "NT")) };
    }).read),
  ].slice(0, 48);
}

/** The rows of a profile of what `body` records, by operation. */
async function profiled(body: () => void) {
  const profile = new Profile(gpu);
  gpu.scope(() => {
    profile.start();
    body();
    profile.stop();
  });
  const { kernels } = await profile.report();
  profile.dispose();
  return new Map(kernels.map((kernel) => [kernel.op, kernel]));
}

describe("a profile", () => {
  beforeEach((context) => {
    if (hasTimestamps(gpu)) return;
    console.warn(`SKIPPED: ${gpu.adapter.name} has no timestamps, so the profile is not tested on it`);
    context.skip();
  });

  test("times each dispatch between start and stop, and changes no result", async () => {
    const expected = await work();
    expect(expected).toEqual(new Array(48).fill(64 * 9));
    const profile = new Profile(gpu);
    profile.start();
    const before = gpu.counters.dispatches;
    expect(await work()).toEqual(expected);
    profile.stop();
    const first = gpu.counters.dispatches - before;
    await work();
    profile.start();
    await work();
    profile.stop();
    const { kernels, milliseconds, kernelMilliseconds } = await profile.report();
    profile.dispose();
    expect(first).toBe(7);
    const calls = Object.fromEntries(kernels.map(({ op, calls }) => [op, calls]));
    expect(calls).toEqual({ fill: 6, addInto: 2, "matmul.NT": 6 });
    // The driver's clock and ours are two, hence the twentieth of a millisecond.
    expect(kernelMilliseconds).toBeGreaterThan(0);
    expect(kernelMilliseconds).toBeLessThanOrEqual(milliseconds + 0.05);
    const sum = kernels.reduce((total, kernel) => total + kernel.milliseconds, 0);
    for (const kernel of kernels) expect(kernel.milliseconds).toBeGreaterThan(0);
    // Passes may overlap, so all of them together may take longer than the time in which one ran; never shorter.
    expect(sum).toBeGreaterThanOrEqual(kernelMilliseconds - 1e-6);
    const sorted = kernels.map((kernel) => kernel.milliseconds);
    expect(sorted).toEqual([...sorted].sort((a, b) => b - a));
  });

  test("survives more dispatches than one submit takes", async () => {
    const rows = await profiled(() => {
      const a = empty(gpu, [4]);
      for (let i = 0; i < 2500; i++) fill(gpu, a, 1);
    });
    expect(rows.get("fill")?.calls).toBe(2500);
  });

  test("counts the flops of products, and bytes once an array or as the kernel says", async () => {
    const starts = Uint32Array.of(0, 3, 8);
    const [heads, d, n] = [2, 4, 8];
    const rows = await profiled(() => {
      const [a, b] = [empty(gpu, [5, 6]), empty(gpu, [6, 7])];
      matmul(gpu, a, b, "NN");
      addInto(gpu, empty(gpu, [10]), empty(gpu, [10]));
      gather(gpu, empty(gpu, [100, 4]), empty(gpu, [3], "u32"));
      const [qkv, plan] = [empty(gpu, [n, 3 * heads * d]), attentionPlan(gpu, starts)];
      const { y, lse } = attention(gpu, qkv, plan, { heads });
      attentionBackward(gpu, qkv, y, lse, empty(gpu, [n, heads * d]), plan, { heads });
    });
    const product = 2 * (3 * 3 + 5 * 5) * heads * d;
    expect(rows.get("matmul.NN")).toMatchObject({ flops: 2 * 5 * 6 * 7, bytes: 4 * (30 + 42 + 35) });
    expect(rows.get("attention.forward")?.flops).toBe(2 * product);
    // One kernel, or two that both make the scores and dP again.
    const backward = ["backward", "backwardQuery", "backwardKey"].map((name) => rows.get(`attention.${name}`)?.flops);
    expect([
      [5 * product, undefined, undefined],
      [undefined, 3 * product, 4 * product],
    ]).toContainEqual(backward);
    // x once, the target read and written; of the table three rows, not a hundred.
    expect(rows.get("addInto")).toMatchObject({ flops: 0, bytes: 3 * 40 });
    expect(rows.get("gather.forward")?.bytes).toBe(4 * (3 + 3) * 4);
  });

  test("knows the ceilings, leaves no buffer alive and no timer set", async () => {
    const { gflops, gbps } = await measureCeilings(gpu);
    expect(gflops).toBeGreaterThan(0);
    expect(gbps).toBeGreaterThan(0);
    expect(Number.isFinite(gflops + gbps)).toBe(true);
    expect(gpu.stats.liveBuffers).toBe(0);
    expect(gpu.timer).toBeUndefined();
  });
});

test("an adapter without timestamps is refused by name", async () => {
  const features = gpu.adapter.features.filter((feature) => feature !== "timestamp-query");
  const without = new Gpu(gpu.instance, gpu.device, { ...gpu.adapter, features }, readShaders());
  expect(hasTimestamps(without)).toBe(false);
  expect(() => new Profile(without)).toThrow(DeviceError);
  expect(() => new Profile(without)).toThrow(`profile: ${gpu.adapter.name} has no timestamps`);
  const view: View = { buffer: without.allocate(4), byteOffset: 0, byteLength: 4 };
  without.release(view.buffer);
});
