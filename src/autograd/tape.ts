/**
 * @file The tape: what was computed, in order, and how gradients walk back over it. A node's rule receives the gradient
 * of its output and one sink per input; it offers each sink a contribution. Contributions to one value are added, those
 * to a slice of θ and those of products by the kernel itself. What a node made is released as soon as its rule
 * has run: everything recorded later, hence everything that could still need it, has been walked already. A node may
 * stand for operations whose values were not kept: the walk puts them in its place, recorded anew, and goes on with them.
 */
import type { Gpu, PooledBuffer } from "../gpu/index.ts";
import { empty, type Into, type NdArray } from "../kernels/array.ts";
import { addInto, binary, fill } from "../kernels/elementwise.ts";
import type { Tensor } from "./tensor.ts";

/** Where a rule puts the gradient of one input. */
export interface Sink {
  /** False when no parameter below wants this gradient: the rule may skip its work. */
  readonly needed: boolean;
  /**
   * Where a kernel may write or add the contribution: a slice of θ, or what other nodes have given already; undefined
   * means a fresh array. `rows` as in GradientSlot. A rule that writes there writes all of its contribution, and reads nothing of it.
   */
  into(rows?: readonly number[]): Into | undefined;
  /** Hands over a contribution that this rule made (or that was written to `into()`). Dropped when not needed. */
  give(array: NdArray): void;
  /** `give(make(into(rows)))`, if needed. */
  accept(make: (into?: Into) => NdArray, rows?: readonly number[]): void;
  /** The gradient of the output itself, or a reshaping of it, without a copy. */
  pass(dy: NdArray): void;
}

export type Rule = (dy: NdArray, sinks: readonly Sink[]) => void;

export interface TapeNode {
  readonly op: string;
  readonly inputs: readonly Tensor[];
  readonly output: Tensor;
  /** Buffers made by this node: its output and what it saved, less what `tidy` has freed. */
  owned: readonly NdArray[];
  /** Of the arrays that nodes own, those that the rule reads. */
  readonly reads: readonly NdArray[];
  readonly rule: Rule | undefined;
  /** In place of a rule: runs the operations that this node stands for again, for their nodes and their result. */
  readonly again?: () => { nodes: readonly TapeNode[]; output: Tensor };
}

/**
 * Walks `tape` back from `loss`, whose own gradient is `seed` (1 by default), and leaves the gradients of leaves in their slots. Consumes
 * the tape: a second walk over it is an error of the caller. Throws if a value that needs a gradient was made by an
 * operation without a rule.
 */
export function walkBack(gpu: Gpu, tape: TapeNode[], loss: Tensor, seed?: NdArray): void {
  const gradients = new Map<Tensor, NdArray>();
  // How many values hold a gradient buffer: `pass` shares one between several.
  const holders = new Map<PooledBuffer, number>();
  const hold = (array: NdArray) => holders.set(array.buffer, (holders.get(array.buffer) ?? 0) + 1);
  const drop = (array: NdArray) => {
    const left = (holders.get(array.buffer) ?? 0) - 1;
    if (left > 0) {
      holders.set(array.buffer, left);
    } else {
      holders.delete(array.buffer);
      gpu.releaseScoped(array.buffer);
    }
  };

  /** Arrays to be released after the rule that runs, unless held: it may pass one to several sinks. */
  const loose = new Set<PooledBuffer>();
  const free = (array: NdArray) => loose.add(array.buffer);
  const sweep = () => {
    for (const buffer of loose) if (!holders.has(buffer)) gpu.releaseScoped(buffer);
    loose.clear();
  };

  const add = (input: Tensor, array: NdArray) => {
    const before = gradients.get(input);
    if (!before) {
      gradients.set(input, array);
      hold(array);
    } else if (holders.get(before.buffer) === 1 && before.buffer !== array.buffer) {
      addInto(gpu, before, array.reshape(before.shape));
      free(array);
    } else {
      const sum = binary(gpu, "add", before, array.reshape(before.shape));
      gradients.set(input, sum);
      hold(sum);
      drop(before);
      // A rule may pass one array twice to one value: `drop` has seen to it then.
      if (array.buffer !== before.buffer) free(array);
    }
  };

  /** The sum so far, where nobody else holds it: a kernel then adds to it, for one pass less over the array. */
  const heldBy = (input: Tensor): Into | undefined => {
    const before = gradients.get(input);
    if (!before || holders.get(before.buffer) !== 1) return undefined;
    return { array: before.reshape(input.shape), accumulate: true };
  };

  const toSlot = (into: Into, array: NdArray) => {
    if (array.buffer === into.array.buffer) return;
    if (into.accumulate) addInto(gpu, into.array, array.reshape(into.array.shape));
    else gpu.copy(array, into.array);
    free(array);
  };

  const sinkOf = (input: Tensor): Sink => {
    let target: Into | undefined;
    const sink: Sink = {
      needed: input.requiresGrad,
      into(rows) {
        if (input.requiresGrad) target ??= input.slot ? input.slot.next(rows) : heldBy(input);
        return target;
      },
      give(array) {
        if (!input.requiresGrad) free(array);
        else if (input.slot) toSlot(sink.into() as Into, array);
        else if (array.buffer !== target?.array.buffer) add(input, array);
      },
      accept(make, rows) {
        if (input.requiresGrad) sink.give(make(sink.into(rows)));
      },
      pass(dy) {
        if (input.requiresGrad) sink.give(dy);
      },
    };
    return sink;
  };

  const one = seed ?? empty(gpu, loss.shape, "f32", "backward");
  if (!seed) fill(gpu, one, 1);
  gradients.set(loss, one);
  hold(one);

  const release = (node: TapeNode) => {
    for (const array of node.owned) if (array.buffer !== loss.array.buffer) gpu.releaseScoped(array.buffer);
  };

  for (let node = tape.pop(); node; node = tape.pop()) {
    const dy = gradients.get(node.output);
    if (dy && node.again) {
      release(node);
      const { nodes, output } = node.again();
      gradients.delete(node.output);
      gradients.set(output, dy);
      tape.push(...nodes);
      continue;
    }
    if (dy) {
      if (!node.rule) throw new Error(`${node.op} has no backward, but a gradient is asked through it`);
      node.rule(dy, node.inputs.map(sinkOf));
      sweep();
      gradients.delete(node.output);
      drop(dy);
    }
    release(node);
  }
}
