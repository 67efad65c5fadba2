import { describe, expect, test } from "vitest";
import { DeviceError } from "../../src/errors.ts";
import { type PooledBuffer, sizeClass } from "../../src/gpu/index.ts";
import { BufferPool } from "../../src/gpu/pool.ts";
import { Stream } from "../../src/random.ts";
import { gpuForTests } from "../kernels/harness.ts";

const gpu = gpuForTests();

describe("sizeClass", () => {
  test("holds the request, wastes at most a sixteenth or 255 bytes, never more than 1 MiB, and is a class of itself", () => {
    for (const n of [
      1,
      255,
      256,
      257,
      320,
      321,
      1023,
      1024,
      1025,
      5000,
      65537,
      2 ** 27,
      2 ** 27 + 1,
      3 * 2 ** 30 + 1,
    ]) {
      const size = sizeClass(n);
      expect(size, `${n}`).toBeGreaterThanOrEqual(n);
      expect(size - n, `${n}`).toBeLessThan(Math.min(2 ** 20, Math.max(256, n / 16)));
      expect(sizeClass(size)).toBe(size);
      expect(size % 256).toBe(0);
    }
  });

  test("there are sixteen classes to a power of two", () => {
    const classes = new Set(Array.from({ length: 65536 }, (_, i) => sizeClass(65537 + i)));
    expect([...classes]).toEqual(Array.from({ length: 16 }, (_, i) => 65536 + 4096 * (i + 1)));
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
    expect(g.stats.peakHeldBytes).toBeGreaterThanOrEqual(2 << 20);
    g.resetPeak();
    expect(g.stats).toMatchObject({ peakLiveBytes: 0, peakHeldBytes: g.stats.heldBytes });
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

/** A device that only counts: bytes of the buffers that exist, the most there ever were, how many were made. */
function countingDevice() {
  const count = { bytes: 0, most: 0, made: 0 };
  const device = {
    pushErrorScope: () => {},
    popErrorScope: () => Promise.resolve(null),
    createBuffer: ({ size }: GPUBufferDescriptor) => {
      count.made++;
      count.bytes += size;
      count.most = Math.max(count.most, count.bytes);
      return {
        destroy: () => {
          count.bytes -= size;
        },
      };
    },
  };
  return { count, pool: new BufferPool(device as unknown as GPUDevice, 2 ** 32) };
}

/** A training step in outline: what the forward keeps grows, the backward gives it back; `n` tokens. */
function step(pool: BufferPool, n: number, encoder: number): void {
  const allocate = (bytes: number) => {
    const buffer = pool.allocate(bytes, "test", () => {}, encoder);
    buffer.usedBy = encoder;
    return buffer;
  };
  const kept: PooledBuffer[] = [];
  for (let layer = 0; layer < 4; layer++) {
    for (const width of [384, 1152, 12, 384, 384, 1536, 1536, 384, 2]) kept.push(allocate(4 * n * width));
    const brief = allocate(4 * n * 1536);
    pool.release(brief);
  }
  for (let buffer = kept.pop(); buffer; buffer = kept.pop()) {
    const gradient = allocate(buffer.bytes);
    pool.release(buffer);
    pool.release(gradient);
  }
}

describe("what the pool holds", () => {
  test("stays within a tenth of the peak of what was in use, however the batches vary", () => {
    const { count, pool } = countingDevice();
    const sizes = new Stream(1, "batches");
    for (let encoder = 0; encoder < 300; encoder++) {
      step(pool, 200 + sizes.integer(1400), encoder);
      pool.shrink(encoder + 1);
      expect(pool.stats.heldBytes).toBe(count.bytes);
      expect(pool.stats.idleBytes).toBe(count.bytes);
    }
    expect(pool.stats.liveBytes).toBe(0);
    expect(count.most).toBe(pool.stats.peakHeldBytes);
    expect(count.bytes).toBeLessThanOrEqual(1.1 * pool.stats.peakLiveBytes);
    // Within a step what the open encoder has used cannot go, so a moment may be above.
    expect(count.most).toBeLessThan(1.2 * pool.stats.peakLiveBytes);
  });

  test("equal steps make no buffer after the first, and batches that vary few", () => {
    const equal = countingDevice();
    for (let encoder = 0; encoder < 20; encoder++) {
      step(equal.pool, 777, encoder);
      equal.pool.shrink(encoder + 1);
      if (encoder === 0) equal.count.made = 0;
    }
    expect(equal.count.made).toBe(0);
    const varied = countingDevice();
    const sizes = new Stream(2, "batches");
    for (let encoder = 0; encoder < 300; encoder++) {
      step(varied.pool, 600 + sizes.integer(400), encoder);
      varied.pool.shrink(encoder + 1);
    }
    expect(varied.count.made / 300).toBeLessThan(8); // of 81 that a step asks for
  });

  test("a miss takes the smallest idle buffer of up to thrice the size, and counts what was asked for", () => {
    const { count, pool } = countingDevice();
    const take = (bytes: number) => pool.allocate(bytes, "test", () => {}, 0);
    const [a, b, c] = [take(8192), take(2560), take(2048)];
    for (const buffer of [a, b, c]) pool.release(buffer);
    const first = take(1200); // of class 1280
    expect(first).toBe(c);
    expect(pool.stats).toMatchObject({ liveBytes: 1280, idleBytes: 8192 + 2560, heldBytes: 8192 + 2560 + 2048 });
    const second = take(1200);
    expect(second).toBe(b);
    expect(take(1200)).not.toBe(a);
    expect(count.made).toBe(4);
    pool.release(first);
    pool.release(second);
    expect(pool.stats).toMatchObject({ liveBytes: 1280, liveBuffers: 1 });
  });

  test("what lasts gets no buffer that is larger than need be", () => {
    const { pool } = countingDevice();
    const [more, large] = [8192, 2560].map((bytes) => pool.allocate(bytes, "test", () => {}, 0)) as [
      PooledBuffer,
      PooledBuffer,
    ];
    pool.release(more);
    pool.release(large);
    expect(pool.allocate(1200, "vector", () => {}, 0, { stretch: 1 }).bytes).toBe(1280);
    expect(pool.allocate(2500, "vector", () => {}, 0, { stretch: 1 })).toBe(large);
  });

  test("what has been unused longest goes first, and never what the open encoder has used", () => {
    const { count, pool } = countingDevice();
    const sizes = [65536, 81920, 98304, 114688, 131072]; // each too large for the buffers before it
    const buffers = sizes.map((bytes) => {
      const buffer = pool.allocate(bytes, "test", () => {}, 6);
      buffer.usedBy = 6;
      pool.release(buffer);
      return buffer;
    });
    expect(count.bytes).toBe(491520); // nothing could go, although only 131,072 were ever in use at once
    for (const [i, buffer] of buffers.entries()) if (i !== 1) buffer.usedBy = 5;
    const more = pool.allocate(196608, "test", () => {}, 6); // 216,268 may exist from now on
    expect(count.bytes).toBe(81920 + 196608);
    pool.release(more);
    expect(pool.stats).toMatchObject({ heldBytes: count.bytes, idleBytes: count.bytes });
    expect(pool.allocate(81920, "test", () => {}, 6)).toBe(buffers[1]);
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
