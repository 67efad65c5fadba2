/** @file The kernels, one line an operation. Public as "priorwork/kernels". */
export * from "./array.ts";
export * from "./attention.ts";
export * from "./colsum.ts";
export * from "./crossentropy.ts";
export * from "./dropout.ts";
export * from "./elementwise.ts";
export * from "./embedding.ts";
export * from "./langevin.ts";
export * from "./layernorm.ts";
export * from "./live.ts";
export * from "./matmul.ts";
export * from "./reduce.ts";
export * from "./rows.ts";
export * from "./segment.ts";
export * from "./softmax.ts";
export * from "./terms.ts";
export * from "./update.ts";
