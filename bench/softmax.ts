/**
 * @file What is measured of softmax, log-softmax and cross-entropy: the attention-like and wide rows that others publish,
 * a vocabulary (150 masked positions of BERT), two labels. `bytes` is the least traffic, each operand once.
 */
import type { Gpu } from "../src/gpu/index.ts";
import { fromHost } from "../src/kernels/array.ts";
import { crossEntropy, crossEntropyBackward } from "../src/kernels/crossentropy.ts";
import { logSoftmax, logSoftmaxBackward, softmax, softmaxBackward } from "../src/kernels/softmax.ts";
import type { BenchCase } from "./case.ts";
import { memoryBound } from "./elementwise.ts";

const ROWS = [
  [6144, 64],
  [1024, 384],
  [1024, 1024],
] as const;

const CLASSES = [
  [256, 2],
  [150, 30522],
] as const;

export function cases(gpu: Gpu): BenchCase[] {
  const rows = ROWS.flatMap(([n, c]) => {
    const shape = { N: n, C: c };
    const two = [
      [n, c],
      [n, c],
    ];
    return [
      memoryBound(gpu, "softmax", shape, 2 * n * c, [[n, c]], ([x]) => softmax(gpu, x!)),
      memoryBound(gpu, "logSoftmax", shape, 2 * n * c, [[n, c]], ([x]) => logSoftmax(gpu, x!)),
      memoryBound(gpu, "softmax.backward", shape, 3 * n * c, two, ([y, dy]) => softmaxBackward(gpu, y!, dy!)),
      memoryBound(gpu, "logSoftmax.backward", shape, 3 * n * c, two, ([y, dy]) => logSoftmaxBackward(gpu, y!, dy!)),
    ];
  });
  const classes = CLASSES.flatMap(([b, k]) => {
    const shape = { B: b, K: k };
    const targets = () =>
      fromHost(
        gpu,
        Uint32Array.from({ length: b }, (_, i) => (i * 7919) % k),
      );
    return [
      memoryBound(gpu, "crossEntropy", shape, b * k, [[b, k]], ([x]) => crossEntropy(gpu, x!, targets())),
      memoryBound(gpu, "crossEntropy.backward", shape, 2 * b * k, [[b, k], [b], [b]], ([x, lse, dloss]) =>
        crossEntropyBackward(gpu, x!, targets(), lse!, dloss!),
      ),
    ];
  });
  return [...rows, ...classes];
}
