/** @file What an operation makes for itself goes back to the pool, also where no scope sees to it: only its results stay. */
import { expect, test, vi } from "vitest";
import { Gpu, type PooledBuffer } from "../../src/gpu/index.ts";
import { arraysOf, CASES, inputMaker } from "./cases.ts";
import { gpuForTests } from "./harness.ts";

const gpu = gpuForTests();

test.each(Object.entries(CASES))("%s leaves its results and nothing else", (_, body) => {
  const g = gpu();
  const made: PooledBuffer[] = [];
  // Inputs and plans are uploaded; no operation writes to its own arrays from the host.
  const uploaded = new Set<PooledBuffer>();
  const allocate = vi.spyOn(g, "allocate").mockImplementation((...args) => {
    const buffer = Gpu.prototype.allocate.apply(g, args);
    made.push(buffer);
    return buffer;
  });
  const write = vi.spyOn(g, "write").mockImplementation((view, data) => {
    uploaded.add(view.buffer);
    Gpu.prototype.write.call(g, view, data);
  });
  const results = new Set(arraysOf(body(g, inputMaker(g))).map(({ buffer }) => buffer));
  allocate.mockRestore();
  write.mockRestore();
  const left = made.filter((buffer) => buffer.live);
  expect.soft(left.filter((buffer) => !results.has(buffer) && !uploaded.has(buffer)).length, "scratch left").toBe(0);
  for (const buffer of left) g.release(buffer);
});
