/**
 * @file The device as everything above sees it: buffers from a pool, dispatches recorded into one encoder and one pass,
 * a submit when a value is wanted. Knows nothing of tensors. Dawn reports most failures beside the call that caused
 * them and then carries on with old values, so nothing read back here is believed before three things hold: no error
 * scope caught anything, the device is not lost, and the counter that the submit's last dispatch writes has the number
 * of that submit.
 */
import { DeviceError } from "../errors.ts";
import { bindingSize, type Dispatch, expectLive, pipelineKey, roomOf, type View } from "./dispatch.ts";
import { BufferPool, firstLine, PooledBuffer, type PoolStats, STORAGE } from "./pool.ts";
import type { Profile } from "./profile.ts";
import { formatCompilation, type ShaderSources, withTile } from "./shaders.ts";

/** The sizes of what a matrix unit multiplies at once: an M × K by a K × N. */
export interface MatrixUnit {
  readonly M: number;
  readonly N: number;
  readonly K: number;
}

export interface AdapterReport {
  /** As the driver names it. */
  name: string;
  kind: "hardware" | "software" | "bundled";
  driver: string;
  features: string[];
  limits: Record<string, number>;
  /** 0 where the adapter has no subgroups. */
  subgroupSize: number;
  /** The unit that multiplies f16 and sums in f32 ("tensor cores"); absent where there is none that a shader can use. */
  matrixUnit?: MatrixUnit;
}

interface Pipeline {
  readonly id: number;
  readonly raw: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
}

/** Dispatches recorded before a submit happens by itself, so that the GPU starts early and memory of Dawn's stays small. */
export const FLUSH_AFTER = 1024;
const MAX_BIND_GROUPS = 8192;

export class Gpu {
  readonly adapter: AdapterReport;
  readonly device: GPUDevice;
  readonly #pool: BufferPool;
  readonly #sources: ShaderSources;
  /** What `create()` returned: garbage-collected before `destroy()`, it takes the whole process with it. */
  readonly instance: unknown;
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  #dispatches = 0;
  /** Operations in the open encoder, for errors. */
  #recorded = new Set<string>();
  #submits = 0;
  #pipelines = new Map<string, Pipeline>();
  #bindGroups = new Map<string, GPUBindGroup>();
  #scopes: Set<PooledBuffer>[] = [];
  #fatal: DeviceError | undefined;
  #pending = new Set<Promise<void>>();
  #ticket: PooledBuffer;
  #words = new Uint32Array(16);
  /** Called after every dispatch; the hunt for the first non-finite output and DEBUG=2 use it. */
  afterDispatch: ((dispatch: Dispatch) => void) | undefined;
  /** Called with the text of every pipeline that is compiled. */
  afterCompile: ((dispatch: Dispatch, wgsl: string) => void) | undefined;
  /** Told of every wait for the GPU; node.ts sets it where waiting itself has a price. */
  onWait: ((wait: Promise<unknown>) => void) | undefined;
  /** Times every dispatch, in a pass of its own: only passes are timed. Changed by its `start` and `stop`. */
  timer: Profile | undefined;
  /** Since the last `resetCounters`: dispatches recorded and submits made. */
  readonly counters = { dispatches: 0, submits: 0 };

  constructor(instance: unknown, device: GPUDevice, adapter: AdapterReport, sources: ShaderSources) {
    this.instance = instance;
    this.device = device;
    this.adapter = adapter;
    this.#sources = sources;
    this.#pool = new BufferPool(device, device.limits.maxBufferSize);
    device.addEventListener("uncapturederror", (event) => {
      this.#fail(new DeviceError(`WebGPU: ${(event as GPUUncapturedErrorEvent).error.message}`));
    });
    // Also where the device was destroyed behind our back; our own `destroy` has said so before.
    device.lost.then((info) => {
      this.#fail(
        new DeviceError(
          `the device was lost (${firstLine(info.message) || info.reason}). Start again, or choose another adapter with PRIORWORK_ADAPTER.`,
        ),
      );
    });
    this.#ticket = new PooledBuffer(-1, device.createBuffer({ label: "ticket", size: 256, usage: STORAGE }), 256);
  }

  get stats(): Readonly<PoolStats> {
    return this.#pool.stats;
  }

  resetPeak(): void {
    this.#pool.resetPeak();
  }

  /** A shader's text. */
  source(shader: string): string {
    const text = this.#sources.get(shader);
    if (text === undefined) throw new Error(`shaders/${shader}.wgsl does not exist`);
    return text;
  }

  // ---- memory

  /**
   * A buffer of at least `bytes` (and 16) bytes, contents undefined; it belongs to the innermost open scope, if any.
   * `lasting`: it will be in use for long, so none that is larger than need be. `upload`: it is about to be written by the
   * host, which takes no flush then.
   */
  allocate(bytes: number, operation = "allocate", { lasting = false, upload = false } = {}): PooledBuffer {
    this.check();
    const buffer = this.#pool.allocate(
      Math.max(16, bytes),
      operation,
      (verdict) => this.#await(verdict.then((error) => error && this.#fail(error))),
      this.#submits,
      { upload, ...(lasting ? { stretch: 1 } : {}) },
    );
    this.#scopes.at(-1)?.add(buffer);
    return buffer;
  }

  release(buffer: PooledBuffer): void {
    this.keep(buffer);
    this.#pool.release(buffer);
  }

  /** Releases a buffer early if it belongs to an open scope; one that was kept is left alone. */
  releaseScoped(buffer: PooledBuffer): void {
    if (this.#scopes.some((scope) => scope.has(buffer))) this.release(buffer);
  }

  /** Takes a buffer out of every scope: from now on it lives until somebody releases it. */
  keep(buffer: PooledBuffer): void {
    for (const scope of this.#scopes) scope.delete(buffer);
  }

  /** Hands a buffer of the innermost scope to the scope around it (into the caller's hands where there is none). */
  promote(buffer: PooledBuffer): void {
    if (this.#scopes.at(-1)?.delete(buffer)) this.#scopes.at(-2)?.add(buffer);
  }

  /** Hands everything in the innermost scope to the scope around it. */
  promoteAll(): void {
    const inner = this.#scopes.at(-1);
    for (const buffer of inner ?? []) this.#scopes.at(-2)?.add(buffer);
    inner?.clear();
  }

  /** Runs `body`; buffers allocated in it and not kept go back to the pool when it ends. Synchronous by design. */
  scope<T>(body: () => T): T {
    const owned = new Set<PooledBuffer>();
    this.#scopes.push(owned);
    try {
      const result = body();
      if (result instanceof Promise) {
        throw new TypeError("a scope is synchronous: its function returned a Promise, which would outlive its buffers");
      }
      return result;
    } finally {
      this.#scopes.pop();
      for (const buffer of owned) this.#pool.release(buffer);
    }
  }

  /** Frees what the pool holds idle. */
  trim(): void {
    this.flush();
    if (this.#pool.trim().length > 0) this.#bindGroups.clear();
  }

  // ---- recording

  dispatch(d: Dispatch): void {
    this.check();
    const limit = this.device.limits.maxComputeWorkgroupsPerDimension;
    if (d.grid.some((n) => n < 1 || n > limit || !Number.isInteger(n))) {
      throw new DeviceError(
        `${d.op}: ${d.grid.join("×")} workgroups; each dimension must be within 1 … ${limit}.`,
        d.op,
      );
    }
    if (d.params.length > 16) throw new DeviceError(`${d.op}: ${d.params.length} parameter words; at most 16.`, d.op);
    for (const view of d.bindings) expectLive(view, d.op, "a binding");
    const pipeline = this.#pipeline(d);
    const group = this.#bindGroupOf(pipeline, d.bindings, d.op);
    const timestampWrites = this.timer?.begin(d);
    const pass = this.#begin(timestampWrites && { timestampWrites });
    for (const view of d.bindings) view.buffer.usedBy = this.#submits;
    this.#recorded.add(d.op);
    pass.setPipeline(pipeline.raw);
    pass.setBindGroup(0, group);
    if (d.params.length > 0) {
      for (let i = 0; i < d.params.length; i++) this.#words[i] = d.params[i] as number;
      pass.setImmediates(0, this.#words.subarray(0, d.params.length));
    }
    pass.dispatchWorkgroups(d.grid[0], d.grid[1], d.grid[2]);
    if (timestampWrites) this.#endPass();
    this.counters.dispatches++;
    this.afterDispatch?.(d);
    if (++this.#dispatches >= FLUSH_AFTER) this.flush();
  }

  /** Copies `from.byteLength` bytes from one buffer to another. Throws RangeError where `to` has not the room. */
  copy(from: View, to: View): void {
    expectLive(from, "copy", "source");
    expectLive(to, "copy", "target");
    if (from.buffer === to.buffer) throw new DeviceError("copy: source and target are one buffer.", "copy");
    if (from.byteLength > roomOf(to)) throw new RangeError(`copy: ${from.byteLength} bytes into ${roomOf(to)}`);
    this.#copyEncoder(from, to).copyBufferToBuffer(
      from.buffer.raw,
      from.byteOffset,
      to.buffer.raw,
      to.byteOffset,
      pad4(from.byteLength),
    );
  }

  /** Zero bytes. */
  clear(view: View): void {
    expectLive(view, "clear", "target");
    this.#copyEncoder(view).clearBuffer(view.buffer.raw, view.byteOffset, pad4(view.byteLength));
  }

  /** Uploads to the start of the view, after everything that was recorded before. Byte length: a multiple of 4. */
  write(view: View, data: Float32Array | Uint32Array | Uint8Array): void {
    this.check();
    expectLive(view, "write", "target");
    if (data.byteLength > roomOf(view)) throw new RangeError(`write: ${data.byteLength} bytes into ${roomOf(view)}`);
    if (data.byteLength % 4) throw new RangeError(`write: ${data.byteLength} bytes; a multiple of 4 is expected`);
    // queue.writeBuffer overtakes an encoder that is still open.
    if (view.buffer.usedBy === this.#submits) this.flush();
    this.device.queue.writeBuffer(
      view.buffer.raw,
      view.byteOffset,
      data.buffer as ArrayBuffer,
      data.byteOffset,
      data.byteLength,
    );
  }

  /** Submits what is recorded; returns at once. Failures surface at the next `check`, `read` or `settle`. */
  flush(): void {
    if (!this.#encoder) return;
    const encoder = this.#encoder;
    this.#submits++;
    const pipeline = this.#pipeline({
      op: "gpu.ticket",
      shader: "ticket",
      entry: "write",
      bindings: [],
      params: [],
      grid: [1, 1, 1],
    });
    const pass = this.#pass ?? encoder.beginComputePass();
    pass.setPipeline(pipeline.raw);
    pass.setBindGroup(
      0,
      this.#bindGroupOf(pipeline, [{ buffer: this.#ticket, byteOffset: 0, byteLength: 4 }], "gpu.ticket"),
    );
    this.#words[0] = this.#submits;
    pass.setImmediates(0, this.#words.subarray(0, 1));
    pass.dispatchWorkgroups(1);
    pass.end();
    const collect = this.timer?.end(encoder);
    this.#encoder = this.#pass = undefined;
    this.#dispatches = 0;
    this.counters.submits++;
    const recorded = [...this.#recorded];
    this.#recorded.clear();
    this.#guarded("submit", () => this.device.queue.submit([encoder.finish()]), recorded);
    // Bind groups of what this destroys stay in their cache: ids are not used again, so nobody meets them.
    this.#pool.shrink(this.#submits);
    collect?.();
  }

  /**
   * The view's bytes once everything recorded so far has run. Throws DeviceError if any of it did not happen.
   */
  async read(view: View): Promise<ArrayBuffer> {
    this.check();
    expectLive(view, "read", "source");
    this.flush();
    const expected = this.#submits;
    const bytes = pad4(view.byteLength);
    // The ticket travels in the same copy, so that value and proof are of one moment.
    const staging = this.device.createBuffer({ label: "read", size: bytes + 4, usage: 0x01 | 0x08 });
    const encoder = this.device.createCommandEncoder();
    if (bytes > 0) encoder.copyBufferToBuffer(view.buffer.raw, view.byteOffset, staging, 0, bytes);
    encoder.copyBufferToBuffer(this.#ticket.raw, 0, staging, bytes, 4);
    this.#guarded("read", () => this.device.queue.submit([encoder.finish()]));
    try {
      const mapping = staging.mapAsync(0x01);
      this.onWait?.(mapping);
      await mapping;
      await Promise.all(this.#pending);
      this.check();
      const mapped = staging.getMappedRange();
      const ticket = new Uint32Array(mapped.slice(bytes))[0] as number;
      if (ticket < expected) {
        throw new DeviceError(
          `the GPU dropped submit ${expected} (its counter says ${ticket}): nothing computed in it happened.`,
        );
      }
      return mapped.slice(0, view.byteLength);
    } catch (error) {
      this.check();
      if (error instanceof DeviceError) throw error;
      throw new DeviceError(`reading from the device failed: ${firstLine(String(error))}`, "read", { cause: error });
    } finally {
      staging.destroy();
    }
  }

  /** Waits for the GPU and throws if anything recorded so far failed. */
  async settle(): Promise<void> {
    await this.read({ buffer: this.#ticket, byteOffset: 0, byteLength: 4 });
  }

  /** Throws what went wrong, if anything did. Asked before a loss, a weight or a checkpoint is believed. */
  check(): void {
    if (this.#fatal) throw this.#fatal;
  }

  /** Ends the device. Nothing of it may be used afterwards. */
  destroy(): void {
    this.#fatal ??= new DeviceError("this device was closed");
    this.device.destroy();
    this.#pipelines.clear();
    this.#bindGroups.clear();
  }

  // ---- inside

  #fail(error: DeviceError): void {
    this.#fatal ??= error;
  }

  /** Runs `body` inside a validation scope whose verdict is awaited before anything is believed. */
  #guarded(operation: string, body: () => void, recorded: readonly string[] = []): void {
    this.device.pushErrorScope("validation");
    try {
      body();
    } finally {
      // Dawn says which command of the encoder it was, not whose; the operations recorded narrow it down.
      const among = recorded.length > 0 ? ` Operations in it: ${recorded.join(", ")}.` : "";
      this.#await(
        this.device.popErrorScope().then((error) => {
          if (error) this.#fail(new DeviceError(`${operation}: ${error.message.trim()}${among}`, operation));
        }),
      );
    }
  }

  #await(promise: Promise<void>): void {
    const settled = promise.catch(() => {}).finally(() => this.#pending.delete(settled));
    this.#pending.add(settled);
  }

  #open(): GPUCommandEncoder {
    this.#encoder ??= this.device.createCommandEncoder();
    return this.#encoder;
  }

  #begin(descriptor?: GPUComputePassDescriptor): GPUComputePassEncoder {
    this.#pass ??= this.#open().beginComputePass(descriptor);
    return this.#pass;
  }

  #endPass(): void {
    this.#pass?.end();
    this.#pass = undefined;
  }

  #copyEncoder(...views: View[]): GPUCommandEncoder {
    this.check();
    const encoder = this.#open();
    this.#endPass();
    for (const view of views) view.buffer.usedBy = this.#submits;
    return encoder;
  }

  #pipeline(d: Dispatch): Pipeline {
    const key = pipelineKey(d);
    const known = this.#pipelines.get(key);
    if (known) return known;
    const source = withTile(this.source(d.shader), d.tile ?? {}, d.shader);
    this.afterCompile?.(d, source);
    this.device.pushErrorScope("validation");
    const module = this.device.createShaderModule({ label: d.shader, code: source });
    const raw = this.device.createComputePipeline({
      label: d.op,
      layout: "auto",
      compute: { module, entryPoint: d.entry, ...(d.constants ? { constants: { ...d.constants } } : {}) },
    });
    const layout = raw.getBindGroupLayout(0);
    this.#await(
      this.device.popErrorScope().then(async (error) => {
        if (!error) return;
        const say = (shown: string) =>
          new DeviceError(`${d.op}: shaders/${d.shader}.wgsl does not compile\n${shown}`, d.op);
        // At once, ahead of what else fails because of it; with numbered lines when they have come.
        const first = say(error.message);
        this.#fail(first);
        const shown = formatCompilation(source, (await module.getCompilationInfo()).messages);
        if (shown && this.#fatal === first) this.#fatal = say(shown);
      }),
    );
    const pipeline = { id: this.#pipelines.size, raw, layout };
    this.#pipelines.set(key, pipeline);
    return pipeline;
  }

  #bindGroupOf(pipeline: Pipeline, views: readonly View[], op: string): GPUBindGroup {
    let key = `${pipeline.id}`;
    const limit = this.device.limits.maxStorageBufferBindingSize;
    for (const v of views) key += `|${v.buffer.id},${v.byteOffset},${bindingSize(v, limit)}`;
    const known = this.#bindGroups.get(key);
    if (known) return known;
    const entries = views.map((view, binding) => {
      const size = bindingSize(view, limit);
      if (size > limit) {
        throw new DeviceError(
          `${op}: binding ${binding} has ${size} bytes; this adapter binds at most ${limit}. Use a smaller batch, a shorter --max-length, or another adapter.`,
          op,
        );
      }
      return { binding, resource: { buffer: view.buffer.raw, offset: view.byteOffset, size } };
    });
    let group: GPUBindGroup | undefined;
    this.#guarded(op, () => {
      group = this.device.createBindGroup({ label: op, layout: pipeline.layout, entries });
    });
    if (this.#bindGroups.size >= MAX_BIND_GROUPS) this.#bindGroups.clear();
    this.#bindGroups.set(key, group as unknown as GPUBindGroup);
    return group as unknown as GPUBindGroup;
  }
}

function pad4(bytes: number): number {
  return Math.ceil(bytes / 4) * 4;
}
