/** @file What Dawn reports beside the call, or not at all, must end as a DeviceError before any number is believed. */
import { afterEach, describe, expect, test } from "vitest";
import { DeviceError } from "../../src/errors.ts";
import { Gpu, type View } from "../../src/gpu/index.ts";
import { openGpu, readShaders } from "../../src/gpu/node.ts";

const PROBES: [string, string][] = [
  [
    "good",
    `@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(1) fn main() { y[0] = y[0] + 1u; }`,
  ],
  [
    "bad",
    `// why
@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(1) fn main() {
  y[0] = missing + 1u;
}`,
  ],
  [
    "hungry",
    `struct P { a: u32, b: u32 }
var<immediate> p: P;
@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(1) fn main() { y[0] = p.a + p.b; }`,
  ],
];

let opened: Gpu[] = [];
afterEach(() => {
  for (const gpu of opened) gpu.destroy();
  opened = [];
});

/** A device of its own; `wrap` may stand between it and Gpu. */
async function open(wrap: (device: GPUDevice) => GPUDevice = (device) => device): Promise<Gpu> {
  const base = await openGpu();
  const gpu = new Gpu(base.instance, wrap(base.device), base.adapter, new Map([...readShaders(), ...PROBES]));
  opened.push(gpu);
  return gpu;
}

/** The device with some members replaced. */
function replaced(device: GPUDevice, members: Partial<Record<keyof GPUDevice, unknown>>): GPUDevice {
  return new Proxy(device, {
    get(target, name) {
      if (name in members) return members[name as keyof GPUDevice];
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

function word(gpu: Gpu, value: number): View {
  const view = { buffer: gpu.allocate(4), byteOffset: 0, byteLength: 4 };
  gpu.write(view, Uint32Array.of(value));
  return view;
}

const add = (gpu: Gpu, view: View, shader = "good", params: number[] = []) =>
  gpu.dispatch({ op: `probe.${shader}`, shader, entry: "main", bindings: [view], params, grid: [1, 1, 1] });

/** What `promise` fails with; a value is a failure of the test. */
async function failure(promise: Promise<unknown>): Promise<DeviceError> {
  try {
    const value = await promise;
    return expect.fail(`gave ${value} instead of an error`);
  } catch (error) {
    expect(error).toBeInstanceOf(DeviceError);
    return error as DeviceError;
  }
}

test("a shader that does not compile: operation, file, numbered lines, and the message beneath its line", async () => {
  const gpu = await open();
  const y = word(gpu, 41);
  add(gpu, y, "bad");
  const error = await failure(gpu.read(y));
  expect(error.operation).toBe("probe.bad");
  expect(error.exitCode).toBe(3);
  const lines = error.message.split("\n");
  expect(lines[0]).toBe("probe.bad: shaders/bad.wgsl does not compile");
  expect(lines).toContain("    4 |   y[0] = missing + 1u;");
  expect(lines.find((line) => line.includes("^"))).toMatch(/^ {6}\| {10}\^ unresolved value 'missing'/);
  // And it stays: the same read later does not give the old 41.
  expect(await failure(gpu.read(y))).toBe(error);
  expect(() => gpu.allocate(4)).toThrow(error);
});

test("a file that does not exist and an entry point that does not are named", async () => {
  const gpu = await open();
  const y = word(gpu, 1);
  expect(() => add(gpu, y, "absent")).toThrow("shaders/absent.wgsl does not exist");
  gpu.dispatch({ op: "probe.entry", shader: "good", entry: "nowhere", bindings: [y], params: [], grid: [1, 1, 1] });
  expect((await failure(gpu.read(y))).message).toMatch(/probe\.entry.*\n?.*nowhere/);
});

test("a command that only the encoder refuses loses its submit, and the error lists the operations in it", async () => {
  const gpu = await open();
  const y = word(gpu, 1);
  add(gpu, y);
  add(gpu, y, "hungry", [1]);
  const error = await failure(gpu.read(y));
  expect(error.operation).toBe("submit");
  expect(error.message).toContain("immediate data");
  expect(error.message).toContain("Operations in it: probe.good, probe.hungry.");
});

test("what Dawn only reports as an event, here a write beyond a buffer's end, stops the next read", async () => {
  const gpu = await open();
  const y = word(gpu, 1);
  gpu.device.queue.writeBuffer(y.buffer.raw, 0, new Uint32Array(1024));
  expect((await failure(gpu.read(y))).message).toMatch(/^WebGPU: .*does not fit/);
});

describe("a device that is gone", () => {
  test("closed by us: every call says so", async () => {
    const gpu = await open();
    const y = word(gpu, 1);
    gpu.destroy();
    for (const attempt of [() => add(gpu, y), () => gpu.write(y, Uint32Array.of(1)), () => gpu.allocate(4)]) {
      expect(attempt).toThrow("this device was closed");
    }
    expect((await failure(gpu.read(y))).message).toBe("this device was closed");
  });

  test("destroyed behind our back: nothing read is an old value", async () => {
    const gpu = await open();
    const y = word(gpu, 7);
    await gpu.settle();
    gpu.device.destroy();
    const error = await failure(gpu.read(y));
    expect(error.message).toMatch(/the device was lost/);
    expect(() => add(gpu, y)).toThrow(DeviceError);
    await failure(gpu.read(y));
    await failure(gpu.settle());
  });

  test("while work is recorded: the read fails", async () => {
    const gpu = await open();
    const y = word(gpu, 7);
    add(gpu, y);
    gpu.device.destroy();
    await failure(gpu.read(y));
  });

  test("lost by the driver: the reason and what to do", async () => {
    let lose: (info: { reason: string; message: string }) => void = () => {};
    const lost = new Promise((resolve) => {
      lose = resolve;
    });
    const gpu = await open((device) => replaced(device, { lost }));
    const y = word(gpu, 7);
    expect([...new Uint32Array(await gpu.read(y))]).toEqual([7]);
    lose({ reason: "unknown", message: "VK_ERROR_DEVICE_LOST\nmore" });
    await lost;
    const error = await failure(gpu.read(y));
    expect(error.message).toBe(
      "the device was lost (VK_ERROR_DEVICE_LOST). Start again, or choose another adapter with PRIORWORK_ADAPTER.",
    );
    expect(() => gpu.check()).toThrow(error);
  });
});

describe("a device that has no room", () => {
  /** Says "out of memory" for the buffers above `room` bytes. */
  function poor(device: GPUDevice, room: number): GPUDevice {
    const scopes: { filter: string; hit: boolean }[] = [];
    return replaced(device, {
      pushErrorScope: (filter: GPUErrorFilter) => {
        scopes.push({ filter, hit: false });
        device.pushErrorScope(filter);
      },
      popErrorScope: () => {
        const scope = scopes.pop();
        const real = device.popErrorScope();
        return scope?.hit ? real.then(() => ({ message: "VK_ERROR_OUT_OF_DEVICE_MEMORY\nat …" })) : real;
      },
      createBuffer: (descriptor: GPUBufferDescriptor) => {
        const scope = scopes.findLast((s) => s.filter === "out-of-memory");
        if (scope && descriptor.size > room) scope.hit = true;
        return device.createBuffer(descriptor);
      },
    });
  }

  test("the error names the operation and the sizes, and comes before anything read", async () => {
    const gpu = await open((device) => poor(device, 1 << 20));
    const y = word(gpu, 7);
    expect([...new Uint32Array(await gpu.read(y))]).toEqual([7]);
    gpu.allocate(1 << 21, "matmul");
    const error = await failure(gpu.read(y));
    expect(error.operation).toBe("matmul");
    expect(error.message).toBe(
      "matmul: the device has no room for 2097152 bytes more (256 in use): VK_ERROR_OUT_OF_DEVICE_MEMORY. Use a smaller batch, a shorter --max-length, or another adapter.",
    );
  });
});

test("a submit that silently does nothing is noticed by its counter", async () => {
  const gpu = await open((device) => {
    const queue = new Proxy(device.queue, {
      get(target, name) {
        // Swallows every submit but those of reads, which only copy.
        if (name === "submit" && swallow) {
          return (buffers: GPUCommandBuffer[]) => {
            if (skipped++ > 0) target.submit(buffers);
          };
        }
        const value = Reflect.get(target, name, target);
        return typeof value === "function" ? value.bind(target) : value;
      },
    });
    return replaced(device, { queue });
  });
  let swallow = false;
  let skipped = 0;
  const y = word(gpu, 7);
  add(gpu, y);
  expect([...new Uint32Array(await gpu.read(y))]).toEqual([8]);
  swallow = true;
  add(gpu, y);
  expect((await failure(gpu.read(y))).message).toBe(
    "the GPU dropped submit 2 (its counter says 1): nothing computed in it happened.",
  );
});
