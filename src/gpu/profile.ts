/**
 * @file Where the device's time goes, kernel by kernel. WebGPU writes timestamps only where a pass begins and ends, so
 * while a profile runs every dispatch has a pass of its own; that costs a little, and what is timed is the kernel with
 * the start and end of its pass. Copies and clears run outside passes: they count as time outside the kernels.
 */
import { DeviceError } from "../errors.ts";
import { type Ceilings, copies, multiplyAdd } from "./ceilings.ts";
import type { Dispatch } from "./dispatch.ts";
import { FLUSH_AFTER, type Gpu } from "./gpu.ts";
import { boundBytes } from "./trace.ts";

/** All dispatches of one operation. */
export interface KernelTime {
  op: string;
  calls: number;
  milliseconds: number;
  /** Of the quickest call, over the call's flops or bytes: the rate that was reached at best. */
  best: { gflops: number; gbps: number };
  /** 0 where the kernel does not say. */
  flops: number;
  /** Of the arrays that were bound, each once, unless the kernel says what it moves. */
  bytes: number;
}

export interface ProfileReport {
  /** Wall time between `start` and `stop`. */
  milliseconds: number;
  /** Of it, the time in which some kernel ran. */
  kernelMilliseconds: number;
  /** The costliest first. */
  kernels: KernelTime[];
}

interface Call {
  op: string;
  flops: number;
  bytes: number;
}

/** Has this device timestamps? */
export function hasTimestamps({ adapter }: Gpu): boolean {
  return adapter.features.includes("timestamp-query");
}

/**
 * Times every dispatch between `start` and `stop`, as often as one likes; `report` adds all up. To be started and
 * stopped while nothing is on its way (after `settle` or `read`), so that wall time and kernel time are of the same
 * work. Throws DeviceError where the adapter has no timestamps.
 */
export class Profile {
  readonly #gpu: Gpu;
  readonly #queries: GPUQuerySet;
  readonly #resolved: GPUBuffer;
  /** What is recorded in the open encoder: call i has the queries 2i and 2i + 1. */
  #calls: Call[] = [];
  readonly #kernels = new Map<string, KernelTime>();
  /** Ends when all that was submitted has been read back, in order. */
  #read: Promise<unknown> = Promise.resolve();
  #failure: unknown;
  #startedAt: number | undefined;
  #wall = 0;
  #busy = 0;
  #lastEnd = 0n;

  constructor(gpu: Gpu) {
    if (!hasTimestamps(gpu)) {
      throw new DeviceError(`profile: ${gpu.adapter.name} has no timestamps (feature timestamp-query).`, "profile");
    }
    this.#gpu = gpu;
    const count = 2 * FLUSH_AFTER;
    this.#queries = gpu.device.createQuerySet({ label: "profile", type: "timestamp", count });
    // QUERY_RESOLVE | COPY_SRC
    this.#resolved = gpu.device.createBuffer({ label: "profile", size: 8 * count, usage: 0x200 | 0x04 });
  }

  start(): void {
    this.#gpu.flush();
    this.#gpu.timer = this;
    this.#startedAt = performance.now();
  }

  stop(): void {
    this.#gpu.flush();
    this.#gpu.timer = undefined;
    this.#wall += performance.now() - (this.#startedAt ?? performance.now());
    this.#startedAt = undefined;
  }

  /** For the device: the queries of the next dispatch's pass. */
  begin({ op, work, bindings }: Dispatch): GPUComputePassTimestampWrites {
    const at = 2 * this.#calls.length;
    this.#calls.push({ op, flops: work?.flops ?? 0, bytes: work?.bytes ?? boundBytes(bindings) });
    return { querySet: this.#queries, beginningOfPassWriteIndex: at, endOfPassWriteIndex: at + 1 };
  }

  /** For the device, before a submit; gives what is to be called after it. */
  end(encoder: GPUCommandEncoder): () => void {
    const calls = this.#calls;
    if (calls.length === 0) return () => {};
    this.#calls = [];
    const size = 16 * calls.length;
    // MAP_READ | COPY_DST
    const staging = this.#gpu.device.createBuffer({ label: "profile", size, usage: 0x01 | 0x08 });
    encoder.resolveQuerySet(this.#queries, 0, 2 * calls.length, this.#resolved, 0);
    encoder.copyBufferToBuffer(this.#resolved, 0, staging, 0, size);
    return () => {
      this.#read = Promise.all([this.#read, staging.mapAsync(0x01)])
        .then(() => this.#add(calls, new BigUint64Array(staging.getMappedRange())))
        .catch((error: unknown) => {
          this.#failure ??= error;
        })
        .finally(() => staging.destroy());
    };
  }

  /** Everything timed so far. DeviceError: the device failed meanwhile. */
  async report(): Promise<ProfileReport> {
    await this.#read;
    this.#gpu.check();
    if (this.#failure !== undefined) {
      throw new DeviceError(`profile: the timestamps cannot be read: ${this.#failure}`, "profile");
    }
    const kernels = [...this.#kernels.values()].sort((a, b) => b.milliseconds - a.milliseconds);
    return { milliseconds: this.#wall, kernelMilliseconds: this.#busy, kernels };
  }

  /** After `stop` and `report`. */
  dispose(): void {
    this.#queries.destroy();
    this.#resolved.destroy();
  }

  /** `times` are nanoseconds, begin and end of each call. */
  #add(calls: readonly Call[], times: BigUint64Array): void {
    for (const [i, { op, flops, bytes }] of calls.entries()) {
      const begin = times[2 * i] ?? 0n;
      const end = times[2 * i + 1] ?? 0n;
      // A driver may run independent passes side by side: what overlaps is busy once.
      const from = begin > this.#lastEnd ? begin : this.#lastEnd;
      if (end > from) {
        this.#busy += Number(end - from) / 1e6;
        this.#lastEnd = end;
      }
      const milliseconds = end > begin ? Number(end - begin) / 1e6 : 0;
      let kernel = this.#kernels.get(op);
      if (kernel === undefined) {
        kernel = { op, calls: 0, milliseconds: 0, best: { gflops: 0, gbps: 0 }, flops: 0, bytes: 0 };
        this.#kernels.set(op, kernel);
      }
      kernel.calls++;
      kernel.milliseconds += milliseconds;
      kernel.flops += flops;
      kernel.bytes += bytes;
      if (milliseconds > 0) {
        kernel.best.gflops = Math.max(kernel.best.gflops, flops / milliseconds / 1e6);
        kernel.best.gbps = Math.max(kernel.best.gbps, bytes / milliseconds / 1e6);
      }
    }
  }
}

/** The ceilings by the profile's own clock: each run once to warm up, then the best of three. */
export async function measureCeilings(gpu: Gpu): Promise<Ceilings> {
  const profile = new Profile(gpu);
  const ceilings: Ceilings = { gflops: 0, gbps: 0 };
  try {
    for (const make of [() => [multiplyAdd(gpu)], () => copies(gpu)]) {
      for (const ceiling of make()) {
        ceiling.run();
        await gpu.settle();
        profile.start();
        for (let i = 0; i < 3; i++) ceiling.run();
        await gpu.settle();
        profile.stop();
        ceiling.dispose();
      }
    }
    for (const { op, best } of (await profile.report()).kernels) {
      if (op === "ceiling.multiplyAdd") ceilings.gflops = best.gflops;
      else ceilings.gbps = Math.max(ceilings.gbps, best.gbps);
    }
  } finally {
    profile.dispose();
    gpu.trim();
  }
  return ceilings;
}
