/** @file The general engine: tensors, the tape, θ as one vector, and the operations. */
export { type Dtype, Engine, type LinearWatch } from "./engine.ts";
export { checkGradients, type GradientCheck } from "./gradcheck.ts";
export * as ops from "./ops.ts";
export type { Rule, Sink, TapeNode } from "./tape.ts";
export { type GradientSlot, Tensor } from "./tensor.ts";
export {
  Layout,
  type Parameter,
  type ParameterSpec,
  type Slice,
  type SliceSpec,
  Theta,
  tensorNames,
  valueFor,
} from "./theta.ts";
