/**
 * @file What is measured of the memory-bound kernels: elementwise, dropout, sums over rows, rows moved. `bytes` is the
 * least traffic (each operand read or written once), so GB/s can be set beside the copy's of the same run.
 */
import type { Gpu } from "../src/gpu/index.ts";
import { fromHost, type NdArray, sizeOf } from "../src/kernels/array.ts";
import { columnSum } from "../src/kernels/colsum.ts";
import { dropout } from "../src/kernels/dropout.ts";
import {
  addInto,
  addRow,
  binary,
  binaryBackward,
  fill,
  scale,
  unary,
  unaryBackward,
} from "../src/kernels/elementwise.ts";
import { concatColumns, gatherRows, scatterRows } from "../src/kernels/rows.ts";
import { Stream } from "../src/random.ts";
import type { BenchCase } from "./case.ts";
import { tiled } from "./tiled.ts";

/** A case whose inputs are made at its first run and freed with it; what `body` makes goes back to the pool each time. */
export function memoryBound(
  gpu: Gpu,
  name: string,
  shape: Record<string, number>,
  elements: number,
  inputs: readonly (readonly number[])[],
  body: (arrays: NdArray[]) => unknown,
): BenchCase {
  let held: NdArray[] | undefined;
  return {
    name,
    shape,
    bytes: elements * 4,
    run: () => {
      held ??= inputs.map((dims, i) => fromHost(gpu, numbers(sizeOf(dims), i), dims));
      gpu.scope(() => void body(held as NdArray[]));
    },
    dispose: () => {
      for (const array of held ?? []) gpu.release(array.buffer);
      held = undefined;
    },
  };
}

/** Numbers within ±2 that are cheap to make and not all alike. */
function numbers(n: number, seed: number): Float32Array {
  return tiled(n, (i) => 2 * Math.sin(i * 0.7 + seed));
}

export function cases(gpu: Gpu, n = 1024, c = 1536): BenchCase[] {
  const all = [n, c];
  const rows = n / 8;
  const index = () => fromHost(gpu, new Stream(6, "bench").shuffle(n).subarray(0, rows));
  const make = (name: string, share: number, inputs: number[][], body: (arrays: NdArray[]) => unknown) =>
    memoryBound(gpu, name, { N: n, C: c }, share * n * c, inputs, body);
  return [
    make("scale", 2, [all], ([x]) => scale(gpu, x!, 2, 1)),
    make("add", 3, [all, all], ([a, b]) => binary(gpu, "add", a!, b!)),
    make("multiply.backward", 5, [all, all, all], ([a, b, dy]) => binaryBackward(gpu, "multiply", a!, b!, dy!)),
    make("addInto", 3, [all, all], ([a, b]) => addInto(gpu, a!, b!, 1e-9)),
    make("fill", 1, [all], ([x]) => fill(gpu, x!, 1)),
    make("gelu", 2, [all], ([x]) => unary(gpu, "gelu", x!)),
    make("gelu.backward", 3, [all, all], ([x, dy]) => unaryBackward(gpu, "gelu", x!, dy!)),
    make("tanh", 2, [all], ([x]) => unary(gpu, "tanh", x!)),
    make("relu.backward", 3, [all, all], ([x, dy]) => unaryBackward(gpu, "relu", x!, dy!)),
    make("addRow", 2, [all, [c]], ([x, row]) => addRow(gpu, x!, row!)),
    make("dropout", 2, [all], ([x]) => dropout(gpu, x!, 0.1, [1, 2])),
    make("columnSum", 1, [all], ([x]) => columnSum(gpu, x!)),
    make("gatherRows", 2 / 8, [all], ([x]) => gatherRows(gpu, x!, index())),
    make("scatterRows", 1 + 1 / 8, [[rows, c]], ([dy]) => scatterRows(gpu, dy!, index(), n)),
    make("concatColumns", 2, [[n, c / 4]], ([x]) => concatColumns(gpu, [x!, x!, x!, x!])),
  ];
}
