/**
 * @file The words of this bench: a task (inputs, what is computed, what it costs), the algebra in which a task's forward
 * pass is written once for every peer, and a peer. A peer that cannot do a task, or does it wrongly, throws `Refusal`.
 */

export interface Input {
  shape: readonly number[];
  data: Float32Array | Int32Array;
}

/** What is computed, for those who don't take it from the algebra (priorwork and PyTorch, each in its own words). */
export type Work =
  | { kind: "matmul"; layout: Layout }
  | { kind: "attention"; heads: number; lengths: readonly number[] }
  | { kind: "softmax" | "layerNorm" | "gelu" | "addRow" | "columnSum" }
  | { kind: "layer" | "inference"; heads: number; sequences: number; layers: number }
  | { kind: "train"; heads: number; layers: number; batches: readonly Batch[]; lr: number };

/** Of a training step. Peers that do not pack pad to the longest, and mask. */
export interface Batch {
  lengths: readonly number[];
  labels: readonly number[];
}

export type Layout = "NN" | "NT" | "TN";

/** The operations a forward pass needs. Leading axes of a product are a batch; a sum's second operand is broadcast. */
export interface Algebra<T> {
  matmul(a: T, b: T, layout?: Layout): T;
  add(a: T, b: T): T;
  scale(a: T, factor: number): T;
  /** Over the last axis. */
  softmax(a: T): T;
  /** Over the last axis, with the biased variance. */
  layerNorm(x: T, gamma: T, beta: T, eps: number): T;
  /** x·Φ(x), by erf. */
  gelu(x: T): T;
  reshape(a: T, shape: readonly number[]): T;
  permute(a: T, order: readonly number[]): T;
  /** Sum over axis 0. */
  columnSum(a: T): T;
  /** Mean over axis 1. */
  tokenMean(a: T): T;
  /** Rows of a table. */
  gather(table: T, ids: T): T;
  /** Mean of −log softmax(logits)[target] over the rows: a scalar. */
  crossEntropy(logits: T, oneHot: T): T;
}

export interface Task {
  name: string;
  layout?: Layout;
  shape: Record<string, number>;
  work: Work;
  /** Made when the task's turn comes. What belongs to batch i of a training run alone is named "…@i". */
  inputs(): Record<string, Input>;
  /** Of a training run: the loss of a batch, from the inputs that `inputsOf` gives for it. */
  forward<T>(algebra: Algebra<T>, x: Record<string, T>, batch?: number): T;
  /** Inputs whose gradient is wanted too; the upstream gradient is the input "dy". Results are called "d" + name. */
  gradients?: readonly string[];
  /** Weights: what a deployed model holds as constants, and what a training step updates. */
  weights?: readonly string[];
  /** Elements of the result "y" that count: an array of its size, 0 where anything may stand (padding). */
  counts?: Uint8Array;
  /** Floating-point operations, a multiply-add counting two; padding and what a kernel makes twice are not counted. */
  flops?: number;
  /** Least bytes moved. */
  bytes?: number;
}

/** A task on a peer's device. */
export interface Prepared {
  /** Does the task once and waits until its device has done it. */
  run(): Promise<void>;
  /** Results of the last run: "y" and "d…", or of training each batch's loss, "y@i", and each weight by its name. */
  read(names: readonly string[]): Promise<Record<string, ArrayLike<number>>>;
  dispose(): void | Promise<void>;
  /** By the largest number of the array, where its gradients are by a formula that is not quite the others'. */
  gradientTolerance?: number;
}

export interface Peer {
  readonly name: string;
  readonly version: string;
  /** "gpu": the adapter all share. */
  readonly where: "gpu" | "cpu";
  /** A program of its own, where the others are JavaScript. */
  readonly native?: boolean;
  prepare(task: Task, inputs: Record<string, Input>): Promise<Prepared>;
  close(): void | Promise<void>;
}

/** Says in a sentence why a peer has no number for a task. */
export class Refusal extends Error {
  override name = "Refusal";
}

export const ADAM = { beta1: 0.9, beta2: 0.999, eps: 1e-8 };

/** Names of the results of a task. */
export function resultNames(task: Task): string[] {
  if (task.work.kind === "train") return [...task.work.batches.map((_, i) => `y@${i}`), ...(task.weights ?? [])];
  return ["y", ...(task.gradients ?? []).map((name) => `d${name}`)];
}

/** What a training step on batch i works with: the inputs of that batch, by their plain names, and those of all. */
export function inputsOf<T>(x: Record<string, T>, batch: number): Record<string, T> {
  const found: Record<string, T> = {};
  for (const [name, value] of Object.entries(x)) {
    const [plain = name, of] = name.split("@");
    if (of === undefined || Number(of) === batch) found[plain] = value;
  }
  return found;
}

export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}
