/**
 * @file Storage buffers, recycled. GPU buffers that JavaScript drops are not freed in time, and creating them is slow,
 * so every buffer comes from here and goes back here by an explicit release. Sizes are rounded up to classes (sixteen to
 * a power of two, so that little is wasted) and whole buffers are handed out: WebGPU forbids one dispatch to read one
 * range of a buffer and write another, so an arena would not do. Every batch has another number of tokens, and so other
 * classes: the pool would end up with a set of buffers for each if it did not take larger ones and let old ones go.
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
  /** The size class of what it was handed out for: less than `bytes` where a larger buffer served. */
  asked: number;
  /** When it came back, counted in releases. */
  idleSince = 0;

  constructor(id: number, raw: GPUBuffer, bytes: number) {
    this.id = id;
    this.raw = raw;
    this.bytes = bytes;
    this.asked = bytes;
  }
}

export interface PoolStats {
  /** Buffers handed out and not yet released, and the bytes they were asked for (in size classes). */
  liveBuffers: number;
  liveBytes: number;
  /** Bytes of buffers that wait to be handed out again. */
  idleBytes: number;
  /** Bytes of all buffers that exist. */
  heldBytes: number;
  /** The largest `liveBytes` and `heldBytes` since the pool was made or `resetPeak` was called. */
  peakLiveBytes: number;
  peakHeldBytes: number;
}

/**
 * What may exist, in units of the most that was ever live at once; beyond it idle buffers are destroyed. And how much
 * larger than what is asked for an idle buffer may be that serves it. In a training step's requests (MiniLM, 200 to
 * 1,600 tokens at random, 127 requests a step) a hold of 1.1 makes 15 new buffers a step with a stretch of 2, 4 with 3,
 * and 5 with 4, when large buffers go to small requests and are missed.
 */
const HOLD = 1.1;
const STRETCH = 3;
/** The steps between classes end here: θ's vectors, hundreds of MB each, are rounded by no more. */
const WIDEST = 2 ** 20;

/** The smallest class ≥ `bytes`: sixteen to a power of two, multiples of 256, at most 1 MiB apart. */
export function sizeClass(bytes: number): number {
  const power = 2 ** Math.floor(Math.log2(Math.max(1, bytes - 1)));
  const unit = Math.min(WIDEST, Math.max(256, power / 16));
  return Math.max(1, Math.ceil(bytes / unit)) * unit;
}

export class BufferPool {
  readonly #device: GPUDevice;
  readonly #maxBytes: number;
  /** By `bytes`; of a list, which is never empty, the last came back last. */
  readonly #idle = new Map<number, PooledBuffer[]>();
  readonly stats: PoolStats = {
    liveBuffers: 0,
    liveBytes: 0,
    idleBytes: 0,
    heldBytes: 0,
    peakLiveBytes: 0,
    peakHeldBytes: 0,
  };
  /** As `peakLiveBytes`, but nobody resets it. */
  #most = 0;
  #nextId = 0;
  #releases = 0;

  constructor(device: GPUDevice, maxBytes: number) {
    this.#device = device;
    this.#maxBytes = maxBytes;
  }

  /**
   * A buffer of at least `bytes` bytes with undefined contents. Throws DeviceError above the adapter's limit; whether
   * the device had room is known later only: `verdicts` gets promises of an error or nothing. `encoder` is the one that
   * is open: what it has used is not destroyed to make room. `stretch`: how many times as large a buffer may serve.
   * `upload`: the host will write to it, so it is none that `encoder` uses, whose commands would have to go first.
   */
  allocate(
    bytes: number,
    operation: string,
    verdicts: (verdict: Promise<DeviceError | undefined>) => void,
    encoder: number,
    { stretch = STRETCH, upload = false }: { stretch?: number; upload?: boolean } = {},
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
    const { stats } = this;
    const inUse = stats.liveBytes;
    stats.liveBuffers++;
    stats.liveBytes += size;
    stats.peakLiveBytes = Math.max(stats.peakLiveBytes, stats.liveBytes);
    this.#most = Math.max(this.#most, stats.liveBytes);
    const idle = this.#takeIdle(size, stretch, upload ? encoder : undefined);
    if (idle) {
      stats.idleBytes -= idle.bytes;
      idle.live = true;
      idle.asked = size;
      return idle;
    }
    this.shrink(encoder, size);
    this.#device.pushErrorScope("out-of-memory");
    this.#device.pushErrorScope("validation");
    const raw = this.#device.createBuffer({ label: `pool ${size}`, size, usage: STORAGE });
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
    stats.heldBytes += size;
    stats.peakHeldBytes = Math.max(stats.peakHeldBytes, stats.heldBytes);
    return new PooledBuffer(this.#nextId++, raw, size);
  }

  /** An idle buffer of this size, or else the smallest of up to `stretch` times as much; none that `encoder` uses. */
  #takeIdle(size: number, stretch: number, encoder: number | undefined): PooledBuffer | undefined {
    const free = (list: PooledBuffer[] | undefined) =>
      list?.findLastIndex((buffer) => encoder === undefined || buffer.usedBy !== encoder) ?? -1;
    let best = free(this.#idle.get(size)) >= 0 ? size : Number.POSITIVE_INFINITY;
    if (best !== size) {
      for (const [bytes, list] of this.#idle) if (bytes > size && bytes < best && free(list) >= 0) best = bytes;
    }
    const list = best <= stretch * size ? this.#idle.get(best) : undefined;
    const [buffer] = list?.splice(free(list), 1) ?? [];
    if (list?.length === 0) this.#idle.delete(best);
    return buffer;
  }

  /** Back to the pool. Commands already recorded may still use it: those recorded later run later. */
  release(buffer: PooledBuffer): void {
    if (!buffer.live) throw new Error(`buffer ${buffer.id} is released twice`);
    buffer.live = false;
    buffer.idleSince = this.#releases++;
    this.stats.liveBuffers--;
    this.stats.liveBytes -= buffer.asked;
    this.stats.idleBytes += buffer.bytes;
    const list = this.#idle.get(buffer.bytes);
    if (list) list.push(buffer);
    else this.#idle.set(buffer.bytes, [buffer]);
  }

  /**
   * While more is held, with `room` bytes to come, than `HOLD` times the most that was ever live: destroys the idle
   * buffer that has been unused longest. What `encoder`, which is not submitted yet, has used stays.
   */
  shrink(encoder: number, room = 0): void {
    while (this.stats.heldBytes + room > HOLD * this.#most) {
      let oldest: PooledBuffer | undefined;
      for (const list of this.#idle.values()) {
        const first = list.find((buffer) => buffer.usedBy !== encoder);
        if (first && first.idleSince < (oldest?.idleSince ?? Number.POSITIVE_INFINITY)) oldest = first;
      }
      if (!oldest) return;
      const list = this.#idle.get(oldest.bytes) ?? [];
      list.splice(list.indexOf(oldest), 1);
      if (list.length === 0) this.#idle.delete(oldest.bytes);
      this.#destroy(oldest);
    }
  }

  #destroy(buffer: PooledBuffer): void {
    buffer.raw.destroy();
    this.stats.idleBytes -= buffer.bytes;
    this.stats.heldBytes -= buffer.bytes;
  }

  /** Destroys idle buffers; the caller has submitted everything that uses them. Returns their ids. */
  trim(): number[] {
    const ids: number[] = [];
    for (const list of this.#idle.values()) {
      for (const buffer of list) {
        this.#destroy(buffer);
        ids.push(buffer.id);
      }
    }
    this.#idle.clear();
    return ids;
  }

  resetPeak(): void {
    this.stats.peakLiveBytes = this.stats.liveBytes;
    this.stats.peakHeldBytes = this.stats.heldBytes;
  }
}

export function firstLine(text: string): string {
  return text.split("\n", 1)[0]?.trim() ?? "";
}
