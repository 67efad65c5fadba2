/**
 * @file A class drawn for each row of logits: labels as the model itself would give them, as a Fisher information needs
 * them (train/fisher.ts). A draw is a function of (key, row, class), like every random number here.
 */
import { type Gpu, grid } from "../gpu/index.ts";
import { threefry2x32 } from "../random.ts";
import { empty, expectShape, type NdArray } from "./array.ts";

/** u32 [B]: classes with the probabilities softmax(logits), logits [B, K], K ≥ 1. */
export function categorical(gpu: Gpu, logits: NdArray, key: readonly [number, number]): NdArray {
  const op = "categorical";
  expectShape(op, "logits", logits, "B K", {});
  const [rows, k] = logits.shape as [number, number];
  const classes = empty(gpu, [rows], "u32", op);
  if (k < 1) throw new RangeError(`${op}: no classes`);
  if (rows > 0)
    gpu.dispatch({
      op,
      shader: "categorical",
      entry: "categorical",
      bindings: [logits, classes],
      params: [rows, k, ...key],
      grid: grid(rows),
    });
  return classes;
}

/** The same in float64: of each row the scores xₖ − log Eₖ, of which the largest is drawn. [B][K] */
export function categoricalReference(logits: ArrayLike<number>, k: number, key: readonly [number, number]): number[][] {
  return Array.from({ length: logits.length / k }, (_, row) =>
    Array.from({ length: k }, (_, j) => {
      const word = threefry2x32(key[0], key[1], j >> 1, row)[j % 2] as number;
      return (logits[row * k + j] as number) - Math.log(-Math.log1p(-(word + 0.5) / 2 ** 32));
    }),
  );
}
