/** @file What is measured of layer normalisation, at MiniLM's and BERT's widths and one that is no multiple of 4. */
import type { Gpu } from "../src/gpu/index.ts";
import { addLayerNorm, layerNorm, layerNormBackward } from "../src/kernels/layernorm.ts";
import type { BenchCase } from "./case.ts";
import { memoryBound } from "./elementwise.ts";

const SHAPES = [
  [1024, 384],
  [213, 384],
  [1024, 768],
  [1024, 383],
] as const;

export function cases(gpu: Gpu): BenchCase[] {
  return SHAPES.flatMap(([n, c]) => {
    const shape = { N: n, C: c };
    const [all, row] = [[n, c], [c]];
    return [
      memoryBound(gpu, "layerNorm", shape, 2 * n * c, [all, row, row], ([x, gamma, beta]) =>
        layerNorm(gpu, x!, gamma!, beta!, 1e-12),
      ),
      memoryBound(gpu, "addLayerNorm", shape, 4 * n * c, [all, all, row, row], ([x, r, gamma, beta]) =>
        addLayerNorm(gpu, x!, r!, gamma!, beta!, 1e-12),
      ),
      memoryBound(gpu, "layerNorm.backward", shape, 3 * n * c, [all, all, row, [n, 2]], ([dy, x, gamma, stats]) =>
        layerNormBackward(gpu, dy!, x!, gamma!, stats!),
      ),
    ];
  });
}
