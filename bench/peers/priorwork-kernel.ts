/** @file Work on our engine as this bench wants it: run, awaited, read. */
import type { Gpu } from "../../src/gpu/index.ts";
import { type NdArray, readArray } from "../../src/kernels/index.ts";
import type { Prepared } from "./peer.ts";

export type Arrays = Record<string, NdArray>;

/** One run is one scope; its results outlive it until the next run. */
export function kernel(
  gpu: Gpu,
  held: Arrays,
  body: () => Arrays,
  readAs: (name: string, data: ArrayLike<number>) => ArrayLike<number> = (_, data) => data,
): Prepared {
  let results: Arrays = {};
  const free = (arrays: Arrays) => {
    for (const buffer of new Set(Object.values(arrays).map((array) => array.buffer))) gpu.release(buffer);
  };
  return {
    run: async () => {
      free(results);
      gpu.scope(() => {
        results = body();
        for (const { buffer } of Object.values(results)) gpu.keep(buffer);
      });
      await gpu.settle();
    },
    read: async (names) => {
      const read: Record<string, ArrayLike<number>> = {};
      for (const name of names) read[name] = readAs(name, await readArray(gpu, results[name] as NdArray));
      return read;
    },
    dispose: () => {
      free(results);
      free(held);
      gpu.trim();
    },
  };
}
