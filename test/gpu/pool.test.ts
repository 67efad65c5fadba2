import { describe, expect, test } from "vitest";
import { DeviceError } from "../../src/errors.ts";
import { sizeClass } from "../../src/gpu/index.ts";
import { gpuForTests } from "../kernels/harness.ts";

const gpu = gpuForTests();

describe("sizeClass", () => {
  test("holds the request, wastes at most a quarter, and is a class of itself", () => {
    for (const n of [1, 255, 256, 257, 320, 321, 1023, 1024, 1025, 5000, 65537, 2 ** 27, 2 ** 27 + 1, 3 * 2 ** 30]) {
      const size = sizeClass(n);
      expect(size, `${n}`).toBeGreaterThanOrEqual(n);
      if (n > 256) expect(size / n, `${n}`).toBeLessThanOrEqual(1.25);
      expect(sizeClass(size)).toBe(size);
      expect(size % 64).toBe(0);
    }
  });

  test("there are four classes to a power of two", () => {
    const classes = new Set(Array.from({ length: 1024 }, (_, i) => sizeClass(1025 + i)));
    expect([...classes]).toEqual([1280, 1536, 1792, 2048]);
  });
});

describe("the pool", () => {
  test("counts what is handed out and hands out again what came back", () => {
    const g = gpu();
    const before = { ...g.stats };
    const a = g.allocate(5000);
    expect(a.bytes).toBe(5120);
    expect(g.stats.liveBuffers).toBe(before.liveBuffers + 1);
    expect(g.stats.liveBytes).toBe(before.liveBytes + 5120);
    g.release(a);
    expect(g.stats.liveBytes).toBe(before.liveBytes);
    const idle = g.stats.idleBytes;
    const b = g.allocate(4700);
    expect(b).toBe(a);
    expect(g.stats.idleBytes).toBe(idle - 5120);
    g.release(b);
  });

  test("another class is another buffer", () => {
    const g = gpu();
    const a = g.allocate(5000);
    g.release(a);
    const b = g.allocate(6000);
    expect(b).not.toBe(a);
    g.release(b);
  });

  test("remembers its peak until told not to", () => {
    const g = gpu();
    g.resetPeak();
    const buffers = [g.allocate(1 << 20), g.allocate(1 << 20)];
    for (const buffer of buffers) g.release(buffer);
    expect(g.stats.peakLiveBytes).toBe(2 << 20);
    g.resetPeak();
    expect(g.stats.peakLiveBytes).toBe(0);
  });

  test("refuses a second release", () => {
    const g = gpu();
    const a = g.allocate(16);
    g.release(a);
    expect(() => g.release(a)).toThrow(`buffer ${a.id} is released twice`);
  });

  test("trim gives the idle bytes back, and what comes after works", async () => {
    const g = gpu();
    g.release(g.allocate(1 << 16));
    expect(g.stats.idleBytes).toBeGreaterThan(0);
    g.trim();
    expect(g.stats.idleBytes).toBe(0);
    const a = g.allocate(16);
    g.write({ buffer: a, byteOffset: 0, byteLength: 4 }, Uint32Array.of(7));
    expect(new Uint32Array(await g.read({ buffer: a, byteOffset: 0, byteLength: 4 }))).toEqual(Uint32Array.of(7));
    g.release(a);
  });

  test("refuses a buffer larger than the adapter's limit, by name", () => {
    const g = gpu();
    const most = g.device.limits.maxBufferSize;
    const attempt = () => g.allocate(most + 1, "theta");
    expect(attempt).toThrow(DeviceError);
    expect(attempt).toThrow(`theta: a buffer of ${most + 1} bytes is larger than this adapter allows (${most})`);
  });
});

describe("a scope", () => {
  test("gives back what was made in it, also when it throws", () => {
    const g = gpu();
    g.scope(() => {
      g.allocate(16);
      g.allocate(16);
      expect(g.stats.liveBuffers).toBe(2);
    });
    expect(g.stats.liveBuffers).toBe(0);
    expect(() =>
      g.scope(() => {
        g.allocate(16);
        throw new Error("inside");
      }),
    ).toThrow("inside");
    expect(g.stats.liveBuffers).toBe(0);
  });

  test("leaves alone what was kept, and what was released by hand", () => {
    const g = gpu();
    const kept = g.scope(() => {
      g.release(g.allocate(16));
      const buffer = g.allocate(64);
      g.keep(buffer);
      return buffer;
    });
    expect(kept.live).toBe(true);
    g.release(kept);
  });

  test("promote hands a buffer to the scope around it, and from the outermost to the caller", () => {
    const g = gpu();
    g.scope(() => {
      const inner = g.scope(() => {
        const buffer = g.allocate(16);
        g.promote(buffer);
        return buffer;
      });
      expect(inner.live).toBe(true);
    });
    expect(g.stats.liveBuffers).toBe(0);
    const mine = g.scope(() => {
      const buffer = g.allocate(16);
      g.promote(buffer);
      return buffer;
    });
    expect(mine.live).toBe(true);
    g.release(mine);
  });

  test("promoteAll hands over everything of the inner scope", () => {
    const g = gpu();
    g.scope(() => {
      g.scope(() => {
        g.allocate(16);
        g.allocate(16);
        g.promoteAll();
      });
      expect(g.stats.liveBuffers).toBe(2);
    });
    expect(g.stats.liveBuffers).toBe(0);
  });

  test("keep reaches through nested scopes", () => {
    const g = gpu();
    const kept = g.scope(() => {
      const buffer = g.allocate(16);
      g.scope(() => g.keep(buffer));
      return buffer;
    });
    expect(kept.live).toBe(true);
    g.release(kept);
  });

  test("refuses a Promise and leaks nothing then", async () => {
    const g = gpu();
    expect(() => g.scope(async () => g.allocate(16))).toThrow("a scope is synchronous");
    expect(g.stats.liveBuffers).toBe(0);
  });
});
