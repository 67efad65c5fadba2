/**
 * @file When a loss or a gradient is not finite: the same step once more, with every dispatch's arrays summed right after
 * it (a sum is finite only if all its terms are), so that the first operation to blame has a name. Slow, and only run
 * when training has stopped already.
 */
import type { Engine } from "../autograd/index.ts";
import { DivergedError } from "../errors.ts";
import { empty, NdArray, readArray, sum } from "../kernels/index.ts";

/** Arrays looked at: far more than a step has. */
const MOST = 1 << 18;

/**
 * The name of the first operation in `body` after which one of its arrays holds NaN or an infinity, or undefined.
 * `body` runs as one step and is to repeat, bit for bit, what went wrong.
 */
export async function firstBadOperation(engine: Engine, body: () => void): Promise<string | undefined> {
  const { gpu } = engine;
  // What the pool holds may be full of the NaNs of the first run; fresh buffers are zeros.
  gpu.trim();
  const operations: string[] = [];
  const outer = gpu.afterDispatch;
  const { found } = engine.step(() => {
    const verdicts = empty(gpu, [MOST], "f32", "firstBadOperation");
    let looking = false;
    gpu.afterDispatch = ({ op, bindings }) => {
      if (looking || operations.length + bindings.length > MOST) return;
      looking = true;
      for (const binding of bindings) {
        const { buffer, byteOffset, byteLength } = binding;
        // Indices may have the bits of a NaN (0xffffffff: no label), and no index is to blame.
        if (byteLength < 4 || (binding instanceof NdArray && binding.dtype === "u32")) continue;
        const total = sum(gpu, new NdArray(buffer, byteOffset, [Math.floor(byteLength / 4)]));
        gpu.copy(total, new NdArray(verdicts.buffer, 4 * operations.length, [1]));
        gpu.release(total.buffer);
        operations.push(op);
      }
      looking = false;
    };
    try {
      body();
    } finally {
      gpu.afterDispatch = outer;
    }
    return { found: readArray(gpu, verdicts) };
  });
  const verdicts = await found;
  return operations.find((_, i) => !Number.isFinite(verdicts[i]));
}

/**
 * The facts of a step that changed nothing; the caller knows what became of θ and what to do. `rows`: the examples of the
 * batch, counted from 0.
 */
export function divergedError(step: number, rows: readonly number[], operation: string | undefined): DivergedError {
  const shown = rows.slice(0, 16).join(", ") + (rows.length > 16 ? ` and ${rows.length - 16} more` : "");
  const where = operation ?? "the gradient's norm";
  return new DivergedError(
    `step ${step}: the loss or its gradient is not finite (first in ${where}; training examples ${shown}, counted from 0).`,
    step,
    where,
  );
}
