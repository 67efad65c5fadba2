/**
 * @file The engine: a device, a tape, and the scopes that say how long values live. `step` is a synchronous scope: what
 * is made in it goes back to the pool when it ends, unless kept. Operations run in the order written and record their
 * gradients' rules, as in PyTorch; nothing is traced or compiled, so the chain rule stays visible.
 */
import type { Gpu } from "../gpu/index.ts";
import { empty, fromHost, type NdArray, sizeOf } from "../kernels/array.ts";
import { halfProducts } from "../kernels/matmul-choice.ts";
import { type Rule, type TapeNode, walkBack } from "./tape.ts";
import { type GradientSlot, Tensor } from "./tensor.ts";

/**
 * What someone who watches linear layers, x·Wᵀ + b, is told: arrays that are valid during the call, and may be somebody
 * else's later. A curvature of W is made of what goes in and of the gradient of what comes out (posterior/ggn.ts).
 */
export interface LinearWatch {
  /** As it runs: input [N, in], weight [out, in], bias [out], result [N, out] (after activation and residual). */
  forward?(layer: { input: NdArray; weight: NdArray; bias: NdArray | undefined; output: NdArray }): void;
  /** In the backward: input [N, in], and the gradient [N, out] of x·Wᵀ + b, before an activation. */
  backward?(layer: { input: NdArray; weight: NdArray; gradient: NdArray }): void;
}

/** f16: matrix products of training steps round their factors to it. Sums, θ, moments and everything else stay in f32. */
export type Dtype = "f32" | "f16";

export class Engine {
  readonly gpu: Gpu;
  readonly dtype: Dtype;
  /** Told of every `linear` while it is set. */
  linearWatch: LinearWatch | undefined;
  #tape: TapeNode[] = [];
  #recording = true;

  /** f16 is for devices that `checkHalf` has passed (`open` asks it); a product that no matrix unit takes stays in f32. */
  constructor(gpu: Gpu, { dtype = "f32" }: { dtype?: Dtype | undefined } = {}) {
    this.gpu = gpu;
    this.dtype = dtype;
  }

  /**
   * A value from the host's numbers. With `grad`, a leaf that collects its gradient: read it with `gradientOf` after
   * `backward`. Inside `step` it lives as long as the step; outside, until `dispose`.
   */
  tensor(
    data: Float32Array | readonly number[],
    shape: readonly number[] = [data.length],
    options: { grad?: boolean } = {},
  ): Tensor {
    const array = fromHost(this.gpu, data, shape, "f32");
    return options.grad ? new Tensor(this, array, true, new OwnSlot(this.gpu, shape)) : new Tensor(this, array);
  }

  /** The gradient that `backward` left at a leaf made with `{ grad: true }`; zeros if none reached it. */
  gradientOf(leaf: Tensor): NdArray {
    if (!(leaf.slot instanceof OwnSlot)) throw new TypeError("gradientOf: not a leaf made with { grad: true }");
    return leaf.slot.value();
  }

  /** Runs one step. Its values go back to the pool when it ends; a function that returns a Promise is an error. */
  step<T>(body: () => T): T {
    if (this.#tape.length > 0) throw new Error("step: another step is still open");
    try {
      return this.gpu.scope(body);
    } finally {
      this.#tape = [];
    }
  }

  /** Runs `body` without recording gradients. */
  noGrad<T>(body: () => T): T {
    return this.#record(false, body);
  }

  /** The numbers of what `body` computes, in a step of its own and without gradients. */
  evaluate(body: () => Tensor): Promise<Float32Array> {
    // A step returns no promise, which would outlive its buffers; a read has taken what it needs.
    return this.step(() => this.noGrad(() => ({ read: body().read() }))).read;
  }

  /** Runs `body`, the forward and backward of a training step, with products of the engine's dtype. */
  inDtype<T>(body: () => T): T {
    return this.dtype === "f16" ? halfProducts(this.gpu, body) : body();
  }

  #record<T>(recording: boolean, body: () => T): T {
    const before = this.#recording;
    this.#recording = recording;
    try {
      return body();
    } finally {
      this.#recording = before;
    }
  }

  /** Whether an operation on these values is recorded: what only its backward needs is not made otherwise. */
  records(inputs: readonly Tensor[]): boolean {
    return this.#recording && inputs.some((input) => input.requiresGrad);
  }

  /**
   * Frees what `body` made, except what it returns, as far as no gradient needs it. A layer of an evaluation, or of a
   * frozen encoder, leaves only its result behind; a layer that learns also what its rules read.
   */
  tidy(body: () => Tensor): Tensor {
    const from = this.#tape.length;
    return this.gpu.scope(() => {
      let result: Tensor;
      try {
        result = body();
      } catch (error) {
        // What was recorded is of buffers that go back to the pool now.
        this.#tape.length = from;
        throw error;
      }
      if (!result.requiresGrad) {
        this.#tape.length = from;
        this.gpu.promote(result.array.buffer);
        return result;
      }
      const nodes = this.#tape.slice(from);
      const needed = new Set([result.array, ...nodes.flatMap(({ reads }) => reads)].map(({ buffer }) => buffer));
      for (const node of nodes) {
        for (const { buffer } of node.owned) if (!needed.has(buffer)) this.gpu.releaseScoped(buffer);
        node.owned = node.owned.filter(({ buffer }) => needed.has(buffer));
      }
      this.gpu.promoteAll();
      return result;
    });
  }

  /**
   * `body()`, of which only the result is kept: the backward runs `body` again for the values that its rules read (Chen
   * et al., "Training Deep Nets with Sublinear Memory Cost", 2016). The walk then goes over the same nodes in the same
   * order as if they had been kept, so gradients have the same bits. `inputs` are the values that `body` takes from
   * around it, θ apart; it must give the same result each time (dropout does: its masks are functions of their keys).
   */
  recompute(inputs: readonly Tensor[], body: () => Tensor): Tensor {
    const output = this.gpu.scope(() => {
      const { output } = this.#aside(body);
      this.gpu.promote(output.array.buffer);
      return output;
    });
    if (!output.requiresGrad || inputs.includes(output)) return output;
    const reads = inputs.map(({ array }) => array);
    const owned = reads.some(({ buffer }) => buffer === output.array.buffer) ? [] : [output.array];
    const again = () => this.#record(true, () => this.#aside(body));
    this.#tape.push({ op: "recompute", inputs, output, owned, reads, rule: undefined, again });
    return output;
  }

  /** Runs `body` with a tape of its own. */
  #aside(body: () => Tensor): { nodes: readonly TapeNode[]; output: Tensor } {
    const outer = this.#tape;
    this.#tape = [];
    try {
      return { output: this.tidy(body), nodes: this.#tape };
    } finally {
      this.#tape = outer;
    }
  }

  /**
   * Records one operation: `array` is its result, `saved` further arrays it made and its rule needs. The rule may be
   * left out; a gradient asked through it is then an error, never zeros. `reads`: which of the inputs' arrays, the
   * result and `saved` the rule reads, all unless said: `tidy` frees what nobody reads.
   */
  record(
    op: string,
    inputs: readonly Tensor[],
    array: NdArray,
    rule: Rule | undefined,
    saved: readonly NdArray[] = [],
    reads: readonly NdArray[] = [...inputs.map((input) => input.array), array, ...saved],
  ): Tensor {
    const requiresGrad = this.records(inputs);
    const output = new Tensor(this, array, requiresGrad);
    if (requiresGrad) {
      // A view (reshape) owns nothing: its buffer belongs to the node that made it.
      const view = inputs.some((input) => input.array.buffer === array.buffer);
      this.#tape.push({ op, inputs, output, owned: view ? saved : [array, ...saved], reads, rule });
    } else {
      for (const extra of saved) this.gpu.releaseScoped(extra.buffer);
    }
    return output;
  }

  /** d loss / d leaf for every leaf, added to the leaves' slots. The tape is consumed. */
  backward(loss: Tensor, seed?: NdArray): void {
    if (!seed && loss.size !== 1)
      throw new RangeError(`backward: the loss has shape [${loss.shape}]; give the gradient of each of its numbers`);
    if (!loss.requiresGrad)
      throw new Error("backward: this value does not depend on anything that requires a gradient");
    walkBack(this.gpu, this.#tape, loss, seed);
  }

  /** Ends the device. */
  close(): void {
    this.gpu.destroy();
  }
}

/** The slot of a leaf that belongs to no vector. */
class OwnSlot implements GradientSlot {
  readonly #gpu: Gpu;
  readonly #shape: readonly number[];
  #array: NdArray | undefined;

  constructor(gpu: Gpu, shape: readonly number[]) {
    this.#gpu = gpu;
    this.#shape = shape;
  }

  next() {
    const accumulate = this.#array !== undefined;
    this.#array ??= empty(this.#gpu, this.#shape, "f32", "gradient");
    return { array: this.#array, accumulate };
  }

  value(): NdArray {
    return this.#array ?? fromHost(this.#gpu, new Float32Array(sizeOf(this.#shape)), this.#shape);
  }
}
