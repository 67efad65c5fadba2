/**
 * @file What of θ a run has to visit at each step: everything but the rows of embedding tables that no batch has held. A
 * row joins when a gradient reaches it and stays, since its moments then do. What lies at rest at the start is read off
 * the numbers, so a resumed run, or a prior whose mean is not where θ starts, is judged by what it is.
 */
import type { Slice, Theta } from "../autograd/index.ts";
import { type Live, LiveChunks, NdArray, readArray } from "../kernels/index.ts";

export class LiveParameters {
  readonly #theta: Theta;
  readonly #chunks: LiveChunks;
  /** Tables some of whose rows are at rest. */
  readonly #tables: readonly Slice[];

  private constructor(theta: Theta, chunks: LiveChunks, tables: readonly Slice[]) {
    this.#theta = theta;
    this.#chunks = chunks;
    this.#tables = tables;
  }

  /**
   * Reads θ − `mu` and the optimiser's `vectors` (of θ's layout) in the tables. `resting` false: nothing is left out, as
   * where a decay pulls at weights that have no gradient.
   */
  static async find(
    theta: Theta,
    mu: NdArray,
    vectors: readonly NdArray[],
    { resting }: { resting: boolean },
  ): Promise<LiveParameters> {
    const { slices, length } = theta.layout;
    const chunks = new LiveChunks(length);
    const tables = resting ? slices.filter((slice) => slice.table && !theta.isFrozen(slice)) : [];
    for (const slice of slices) {
      if (!tables.includes(slice) && !theta.isFrozen(slice)) chunks.add(slice.offset, slice.offset + slice.stride);
    }
    const live = new LiveParameters(theta, chunks, tables);
    const read = (vector: NdArray, { offset, size }: Slice) =>
      readArray(theta.engine.gpu, new NdArray(vector.buffer, 4 * offset, [size]));
    for (const slice of tables) {
      const values = await read(theta.values, slice);
      const mean = await read(mu, slice);
      live.#visit(slice, (i) => values[i] !== mean[i]);
      for (const vector of vectors) {
        const moment = await read(vector, slice);
        live.#visit(slice, (i) => moment[i] !== 0);
      }
    }
    return live;
  }

  /** Takes in the rows that the gradient vector has reached, and says what this step visits. Inside `engine.step`. */
  next(): Live {
    for (const slice of this.#tables) {
      const rows = this.#theta.gradientRows(slice);
      if (rows) for (const row of rows) this.#addRow(slice, row);
      else this.#chunks.add(slice.offset, slice.offset + slice.size);
    }
    return this.soFar();
  }

  /** What the steps have visited; the rest is where it was. Inside a scope. */
  soFar(): Live {
    return this.#chunks.upload(this.#theta.engine.gpu);
  }

  #addRow({ offset, shape: [, width = 1] }: Slice, row: number): void {
    this.#chunks.add(offset + row * width, offset + (row + 1) * width);
  }

  /** Adds the numbers of a slice for which `moved` holds. */
  #visit({ offset, size }: Slice, moved: (i: number) => boolean): void {
    for (let i = 0; i < size; i++) if (moved(i)) this.#chunks.add(offset + i, offset + i + 1);
  }
}
