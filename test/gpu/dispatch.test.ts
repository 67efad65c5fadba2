import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { DeviceError } from "../../src/errors.ts";
import { f32, Gpu, grid, type View } from "../../src/gpu/index.ts";
import { openGpu, readShaders } from "../../src/gpu/node.ts";

/** Adds words to what is there: order and repetition show in the sum. */
const PROBE = `
struct P { factor: u32, add: u32, x: f32 }
var<immediate> p: P;
@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(1)
fn step(@builtin(workgroup_id) w: vec3u, @builtin(num_workgroups) g: vec3u) {
  let i = w.x + w.y * g.x;
  if (i >= arrayLength(&y)) { return; }
  y[i] = y[i] * p.factor + p.add + u32(p.x);
}
@group(0) @binding(0) var<storage, read> source: array<u32>;
@group(0) @binding(1) var<storage, read_write> goal: array<u32>;
@compute @workgroup_size(64)
fn copy(@builtin(global_invocation_id) id: vec3u) {
  if (id.x < p.add && p.factor == 1u && p.x == 0.0) { goal[id.x] = source[id.x]; }
}
`;

let gpu: Gpu;
beforeAll(async () => {
  const base = await openGpu();
  gpu = new Gpu(base.instance, base.device, base.adapter, new Map([...readShaders(), ["probe", PROBE]]));
});
afterAll(() => gpu.destroy());

const step = (view: View, factor: number, add: number, x = 0, size: readonly [number, number, number] = [1, 1, 1]) =>
  gpu.dispatch({ op: "probe.step", shader: "probe", entry: "step", bindings: [view], params: [factor, add, f32(x)], grid: size }); // biome-ignore format: one call

const copy = (from: View, to: View) =>
  gpu.dispatch({ op: "probe.copy", shader: "probe", entry: "copy", bindings: [from, to], params: [1, 4, f32(0)], grid: [1, 1, 1] }); // biome-ignore format: one call

function words(...values: number[]): View {
  const view = { buffer: gpu.allocate(256), byteOffset: 0, byteLength: values.length * 4 };
  gpu.write(view, Uint32Array.from(values));
  return view;
}

const read = async (view: View) => [...new Uint32Array(await gpu.read(view))];

describe("dispatches", () => {
  test("in one pass each see their own parameters, in order", async () => {
    await gpu.scope(() => {
      const y = words(1);
      gpu.counters.submits = 0;
      step(y, 10, 2);
      step(y, 10, 3);
      step(y, 10, 0, 4.5);
      const promise = read(y).then((found) => expect(found).toEqual([1234]));
      expect(gpu.counters.submits).toBe(1);
      return { promise };
    }).promise;
  });

  test("over grid(n) reach every workgroup beyond 65,535", async () => {
    await gpu.scope(() => {
      const n = 70_001;
      const y = { buffer: gpu.allocate(4 * n), byteOffset: 0, byteLength: 4 * n };
      gpu.clear(y);
      step(y, 1, 1, 0, grid(n));
      return { promise: read(y).then((found) => expect(found.every((value) => value === 1)).toBe(true)) };
    }).promise;
  });

  test("beyond the automatic flush still run in order", async () => {
    await gpu.scope(() => {
      const y = words(0);
      for (let i = 0; i < 2500; i++) step(y, 1, 1);
      return { promise: read(y).then((found) => expect(found).toEqual([2500])) };
    }).promise;
  });

  test("read a slice at its offset", async () => {
    await gpu.scope(() => {
      const buffer = gpu.allocate(1024);
      gpu.clear({ buffer, byteOffset: 0, byteLength: 1024 });
      const slice = { buffer, byteOffset: 512, byteLength: 4 };
      step(slice, 1, 9);
      const all = read({ buffer, byteOffset: 0, byteLength: 1024 });
      return { promise: all.then((found) => expect(found.flatMap((value, i) => (value ? [i, value] : []))).toEqual([128, 9])) }; // biome-ignore format: one thought
    }).promise;
  });
});

describe("order", () => {
  test("an upload waits for what was recorded before it", async () => {
    await gpu.scope(() => {
      const [source, before, after] = [words(1, 1, 1, 1), words(0, 0, 0, 0), words(0, 0, 0, 0)];
      copy(source, before);
      gpu.write(source, Uint32Array.of(2, 2, 2, 2));
      copy(source, after);
      const found = Promise.all([read(before), read(after)]);
      return { promise: found.then((both) => expect(both).toEqual([[1, 1, 1, 1], [2, 2, 2, 2]])) }; // biome-ignore format: two rows
    }).promise;
  });

  test("an upload into a buffer that came back from the pool does not reach its former user", async () => {
    await gpu.scope(() => {
      const target = words(0, 0, 0, 0);
      const first = words(5, 6, 7, 8);
      copy(first, target);
      gpu.release(first.buffer);
      const second = words(1, 2, 3, 4);
      expect(second.buffer).toBe(first.buffer);
      return { promise: read(target).then((found) => expect(found).toEqual([5, 6, 7, 8])) };
    }).promise;
  });

  test("copies and clears keep their place among dispatches", async () => {
    await gpu.scope(() => {
      const [a, b] = [words(1, 1), words(9, 9)];
      step(a, 1, 1);
      gpu.copy(a, b);
      gpu.clear(a);
      step(a, 1, 5);
      const found = Promise.all([read(a), read(b)]);
      return { promise: found.then((both) => expect(both).toEqual([[5, 0], [2, 1]])) }; // biome-ignore format: two rows
    }).promise;
  });
});

describe("a dispatch is refused at once, by the name of its operation, and the device lives on", () => {
  test("with 65,536 workgroups in a dimension, or none, or half a one", () => {
    gpu.scope(() => {
      const y = words(0);
      for (const size of [65536, 0, 1.5]) {
        const attempt = () => step(y, 1, 1, 0, [size, 1, 1]);
        expect(attempt).toThrow(DeviceError);
        expect(attempt).toThrow(`probe.step: ${size}×1×1 workgroups; each dimension must be within 1 … 65535`);
      }
    });
  });

  test("with more than 16 parameters", () => {
    gpu.scope(() => {
      const attempt = () =>
        gpu.dispatch({
          op: "probe.many",
          shader: "probe",
          entry: "step",
          bindings: [words(0)],
          params: new Array<number>(17).fill(0),
          grid: [1, 1, 1],
        });
      expect(attempt).toThrow("probe.many: 17 parameter words; at most 16.");
    });
  });

  test("with a released buffer, also one that it has used before", () => {
    gpu.scope(() => {
      const y = words(0);
      step(y, 1, 1);
      gpu.release(y.buffer);
      expect(() => step(y, 1, 1)).toThrow("probe.step: a binding was released before it was used");
      expect(() => gpu.clear(y)).toThrow("clear: target was released");
      expect(() => gpu.write(y, Uint32Array.of(1))).toThrow("write: target was released");
      const [target, other] = [words(0), words(0)];
      gpu.release(other.buffer);
      expect(() => gpu.copy(other, target)).toThrow("copy: source was released");
      expect(() => gpu.copy(target, other)).toThrow("copy: target was released");
      expect(() => gpu.copy(target, target)).toThrow("copy: source and target are one buffer");
    });
  });

  test("with a binding larger than the adapter binds", () => {
    gpu.scope(() => {
      const most = gpu.device.limits.maxStorageBufferBindingSize;
      if (most + 256 > gpu.device.limits.maxBufferSize) return;
      const y = { buffer: gpu.allocate(most + 256), byteOffset: 0, byteLength: most + 256 };
      expect(() => step(y, 1, 1)).toThrow(
        `this adapter binds at most ${most}. Use a smaller batch, a shorter --max-length, or another adapter.`,
      );
    });
    gpu.trim();
  });

  test("and what was recorded around it happens", async () => {
    await gpu.scope(() => {
      const y = words(1);
      step(y, 10, 2);
      expect(() => step(y, 1, 1, 0, [0, 1, 1])).toThrow(DeviceError);
      step(y, 10, 3);
      return { promise: read(y).then((found) => expect(found).toEqual([123])) };
    }).promise;
  });

  test("an upload larger than its view is refused", () => {
    gpu.scope(() => {
      const y = words(1);
      expect(() => gpu.write(y, Uint32Array.of(1, 2))).toThrow("write: 8 bytes into 4");
      const beyond = { buffer: y.buffer, byteOffset: 0, byteLength: 4096 };
      expect(() => gpu.write(beyond, new Uint32Array(1024))).toThrow("write: 4096 bytes into 256");
    });
  });

  test("an upload of a part of a word is refused", () => {
    gpu.scope(() => {
      expect(() => gpu.write(words(1, 2), new Uint8Array(5))).toThrow("write: 5 bytes; a multiple of 4 is expected");
    });
  });

  test("a copy larger than its target is refused, and what lies behind the target stays", async () => {
    await gpu.scope(() => {
      const [from, to] = [words(1, 2), words(3, 4)];
      expect(() => gpu.copy(from, { ...to, byteLength: 4 })).toThrow("copy: 8 bytes into 4");
      const end = { buffer: to.buffer, byteOffset: to.buffer.bytes - 4, byteLength: 8 };
      expect(() => gpu.copy(from, end)).toThrow("copy: 8 bytes into 4");
      return { promise: read(to).then((found) => expect(found).toEqual([3, 4])) };
    }).promise;
  });
});
