/** @file What a bench body is: a thing with a name that can be run once on the GPU. Knows no runner. */

/** Bytes on the device at the largest moment of a run. */
export interface MemoryFigures {
  predictedBytes: number;
  /** Of all buffers that existed. */
  peakBytes: number;
  /** The bound that it is held to, but for a tenth. */
  allowedBytes: number;
}

export interface BenchCase {
  /** E.g. "matmul", "attention.backward". */
  name: string;
  /** NN, NT or TN, for products. */
  layout?: string;
  shape: Record<string, number>;
  dtype?: "f32" | "f16";
  /** Records the work on the GPU once, or does and awaits it; the runner waits for the GPU after it. */
  run(): void | Promise<void>;
  /** Frees what the case holds. */
  dispose?(): void | Promise<void>;
  /** Floating-point operations of one run, a multiply-add counting two. */
  flops?: number;
  /** Least bytes that one run must move. */
  bytes?: number;
  /** Cases with the same word here are compared with each other: they run in turn, a round each. */
  turn?: string;
  /** Timed rounds of cases in turn, where nine would take minutes. */
  rounds?: number;
  /** Runs once and tells the memory. */
  memory?(): Promise<MemoryFigures>;
}
