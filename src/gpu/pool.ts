/**
 * @file Storage buffers, recycled. GPU buffers that JavaScript drops are not freed in time, and creating them is slow,
 * so every buffer comes from here and goes back here by an explicit release. Sizes are rounded up to classes (four to
 * a power of two, so at most a quarter is wasted) and whole buffers are handed out: WebGPU forbids one dispatch to read
 * one range of a buffer and write another, so an arena would not do.
 */
import { DeviceError } from "../errors.ts";

/** STORAGE | COPY_SRC | COPY_DST, spelt as numbers because a page and Node keep the names in different places. */
export const STORAGE = 0x80 | 0x04 | 0x08;

export class PooledBuffer {
  /** Stable identity for caches. */
  readonly id: number;
  readonly raw: GPUBuffer;
  /** Bytes allocated: the size class, not what was asked for. */
  readonly bytes: number;
  /** The command encoder that last used this buffer; an upload must not overtake it. */
  usedBy = -1;
  /** True between `allocate` and `release`. */
  live = true;

  constructor(id: number, raw: GPUBuffer, bytes: number) {
    this.id = id;
    this.raw = raw;
    this.bytes = bytes;
  }
}

export interface PoolStats {
  /** Buffers handed out and not yet released. */
  liveBuffers: number;
  liveBytes: number;
  /** Bytes of buffers that wait to be handed out again. */
  idleBytes: number;
  /** The largest `liveBytes` since the pool was made or `resetPeak` was called. */
  peakLiveBytes: number;
}

/** The smallest class ≥ `bytes`: 256·{1, 1.25, 1.5, 1.75}·2^k, each a multiple of 256 above 1 KiB and of 64 below. */
export function sizeClass(bytes: number): number {
  if (bytes <= 256) return 256;
  const power = 2 ** Math.floor(Math.log2(bytes - 1));
  for (const quarter of [1.25, 1.5, 1.75]) if (bytes <= power * quarter) return power * quarter;
  return power * 2;
}

export class BufferPool {
  readonly #device: GPUDevice;
  readonly #maxBytes: number;
  readonly #idle = new Map<number, PooledBuffer[]>();
  readonly stats: PoolStats = { liveBuffers: 0, liveBytes: 0, idleBytes: 0, peakLiveBytes: 0 };
  #nextId = 0;

  constructor(device: GPUDevice, maxBytes: number) {
    this.#device = device;
    this.#maxBytes = maxBytes;
  }

  /**
   * A buffer of at least `bytes` bytes with undefined contents. Throws DeviceError above the adapter's limit; whether
   * the device had room is known later only: `verdicts` gets promises of an error or nothing.
   */
  allocate(
    bytes: number,
    operation: string,
    verdicts: (verdict: Promise<DeviceError | undefined>) => void,
  ): PooledBuffer {
    const wanted = sizeClass(bytes);
    // Near the limit the class may be too large although the request is not.
    const size = wanted <= this.#maxBytes ? wanted : Math.ceil(bytes / 256) * 256;
    if (size > this.#maxBytes) {
      throw new DeviceError(
        `${operation}: a buffer of ${bytes} bytes is larger than this adapter allows (${this.#maxBytes}). Use a smaller batch or a smaller model.`,
        operation,
      );
    }
    let buffer = this.#idle.get(size)?.pop();
    if (buffer) {
      this.stats.idleBytes -= size;
      buffer.live = true;
    } else {
      this.#device.pushErrorScope("out-of-memory");
      this.#device.pushErrorScope("validation");
      const raw = this.#device.createBuffer({ label: `pool ${size}`, size, usage: STORAGE });
      const inUse = this.stats.liveBytes;
      for (const _ of ["validation", "out-of-memory"]) {
        verdicts(
          this.#device
            .popErrorScope()
            .then((error) =>
              error
                ? new DeviceError(
                    `${operation}: the device has no room for ${size} bytes more (${inUse} in use): ${firstLine(error.message)}. Use a smaller batch, a shorter --max-length, or another adapter.`,
                    operation,
                  )
                : undefined,
            ),
        );
      }
      buffer = new PooledBuffer(this.#nextId++, raw, size);
    }
    this.stats.liveBuffers++;
    this.stats.liveBytes += size;
    this.stats.peakLiveBytes = Math.max(this.stats.peakLiveBytes, this.stats.liveBytes);
    return buffer;
  }

  /** Back to the pool. Commands already recorded may still use it: those recorded later run later. */
  release(buffer: PooledBuffer): void {
    if (!buffer.live) throw new Error(`buffer ${buffer.id} is released twice`);
    buffer.live = false;
    this.stats.liveBuffers--;
    this.stats.liveBytes -= buffer.bytes;
    this.stats.idleBytes += buffer.bytes;
    const list = this.#idle.get(buffer.bytes);
    if (list) list.push(buffer);
    else this.#idle.set(buffer.bytes, [buffer]);
  }

  /** Destroys idle buffers; the caller has submitted everything that uses them. Returns their ids. */
  trim(): number[] {
    const ids: number[] = [];
    for (const list of this.#idle.values()) {
      for (const buffer of list) {
        buffer.raw.destroy();
        ids.push(buffer.id);
      }
    }
    this.#idle.clear();
    this.stats.idleBytes = 0;
    return ids;
  }

  resetPeak(): void {
    this.stats.peakLiveBytes = this.stats.liveBytes;
  }
}

export function firstLine(text: string): string {
  return text.split("\n", 1)[0]?.trim() ?? "";
}
