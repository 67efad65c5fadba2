/**
 * @file J Λ⁻¹ Jᵀ of groups of θ, [K, K] for each example. A row of J is a backward pass of one logit of one example, so n
 * examples cost n·K passes; the root of Λ⁻¹ is applied on the device, and only K² numbers come back.
 */
import type { Matrix } from "ml-matrix";
import type { Slice } from "../autograd/index.ts";
import type { PackedBatch } from "../data/batches.ts";
import type { Gpu } from "../gpu/index.ts";
import { binary, concatColumns, empty, fromHost, matmul, NdArray } from "../kernels/index.ts";
import { joined } from "../train/evaluate.ts";
import { type BlockGaussian, type KroneckerGaussian, width } from "./curvature.ts";
import type { Block } from "./ggn.ts";
import type { Laplace } from "./laplace.ts";
import { holdOthers, type LogitModel } from "./layers.ts";
import type { GaussianLogits } from "./linearised.ts";
import { expectBuffers } from "./room.ts";

/** Mean and covariance (without the temperature) of a batch's logits. */
export async function covarianceOfGroups(
  model: LogitModel<PackedBatch>,
  { ggn, gaussians }: Laplace,
  batch: PackedBatch,
): Promise<GaussianLogits> {
  const { engine, theta } = model;
  const { gpu } = engine;
  const sizes = ggn.blocks.map(({ slices, curvature: { size } }) => ({ slices, size }));
  const release = holdOthers(
    theta,
    ggn.blocks.flatMap(({ slices }) => slices),
  );
  const kept: NdArray[] = [];
  const keep = (data: Float32Array, shape: readonly number[]) => {
    const array = fromHost(gpu, data, shape);
    gpu.keep(array.buffer);
    kept.push(array);
    return array;
  };
  try {
    let classes = 0;
    const roots: DeviceRoot[] = [];
    const means: Float32Array[] = [];
    const grams: Float32Array[] = [];
    for (let row = 0; row < batch.sequences; row++) {
      const one = sequenceOf(batch, row);
      const { reads } = engine.step(() => {
        let logits = model.logits(one); // [1, K]
        const K = logits.shape[1] ?? 0;
        if (row === 0) {
          classes = K;
          expectJacobian(gpu, sizes, K);
          for (const [b, block] of ggn.blocks.entries())
            roots.push(rootOnDevice(gpu, block, gaussians[b] as BlockGaussian, keep));
        }
        const mean = logits.read();
        const rows = ggn.blocks.map(({ curvature }) => empty(gpu, [K, curvature.size], "f32", "laplace"));
        for (let k = 0; k < K; k++) {
          if (k > 0) logits = model.logits(one);
          theta.zeroGradient();
          const seed = Float32Array.from({ length: K }, (_, l) => (l === k ? 1 : 0));
          engine.backward(logits, fromHost(gpu, seed, [1, K]));
          const gradient = theta.gradient();
          for (const [b, { slices, curvature }] of ggn.blocks.entries()) {
            const J = slices.map(({ offset, shape }) => new NdArray(gradient.buffer, 4 * offset, shape));
            const w = (roots[b] as DeviceRoot)(J);
            const all = rows[b] as NdArray;
            gpu.copy(w, new NdArray(all.buffer, 4 * k * curvature.size, [curvature.size]));
          }
        }
        const products = empty(gpu, [K, K], "f32", "laplace");
        for (const [b, w] of rows.entries()) {
          matmul(gpu, w, w, "NT", { into: { array: products, accumulate: b > 0 } });
        }
        return { reads: Promise.all([mean, gpu.read(products)]) };
      });
      const [mean, products] = await reads;
      means.push(mean);
      grams.push(new Float32Array(products));
    }
    return {
      n: batch.sequences,
      K: classes,
      mean: Float64Array.from(joined(means)),
      covariance: Float64Array.from(joined(grams)),
    };
  } finally {
    release();
    for (const { buffer } of kept) gpu.release(buffer);
  }
}

/** Bytes of the Jacobian of K logits that lie on the device at once; InputError where a block's are more than it takes. */
export function expectJacobian(
  gpu: Gpu,
  blocks: readonly { slices: readonly Pick<Slice, "parameters">[]; size: number }[],
  K: number,
): number {
  const { maxBufferSize, maxStorageBufferBindingSize } = gpu.device.limits;
  expectBuffers(Math.min(maxBufferSize, maxStorageBufferBindingSize), blocks, K);
  return blocks.reduce((sum, { size }) => sum + 4 * K * size, 0);
}

/** Rᵀ·J, [size], of a block's gradients, slice by slice, with a root R of Λ⁻¹, RRᵀ = Λ⁻¹, on the device. */
type DeviceRoot = (J: readonly NdArray[]) => NdArray;

function rootOnDevice(
  gpu: Gpu,
  block: Block,
  gaussian: BlockGaussian,
  keep: (data: Float32Array, shape: readonly number[]) => NdArray,
): DeviceRoot {
  if (!isKronecker(gaussian)) {
    // Of a diagonal block the draw of ones is the root itself.
    const root = gaussian.draw(new Float64Array(block.curvature.size).fill(1));
    const array = keep(Float32Array.from(root), [root.length]);
    return ([J]) => binary(gpu, "multiply", (J as NdArray).reshape([root.length]), array);
  }
  const m = block.layer ? width(block.layer) : 0;
  const outputs = block.layer?.outputs ?? 0;
  const onDevice = (matrix: Matrix) => keep(Float32Array.from(matrix.to1DArray()), [matrix.rows, matrix.columns]);
  const [U, V] = [onDevice(gaussian.outputs), onDevice(gaussian.inputs)];
  const scale = keep(
    Float32Array.from(gaussian.eigenvalues, (value) => 1 / Math.sqrt(value)),
    [outputs, m],
  );
  return ([weight, bias]) => {
    const J = bias ? concatColumns(gpu, [weight as NdArray, bias.reshape([outputs, 1])]) : (weight as NdArray);
    const rotated = matmul(gpu, matmul(gpu, U, J, "TN"), V, "NN"); // UᵀJV [out, in (+1)]
    return binary(gpu, "multiply", rotated, scale);
  };
}

function isKronecker(gaussian: BlockGaussian): gaussian is KroneckerGaussian {
  return "eigenvalues" in gaussian;
}

/** Sequence b of a batch, as a batch of its own. */
function sequenceOf({ ids, typeIds, positions, starts }: PackedBatch, b: number): PackedBatch {
  const [from = 0, to = 0] = [starts[b], starts[b + 1]];
  const tokens = to - from;
  return {
    ids: ids.slice(from, to),
    typeIds: typeIds.slice(from, to),
    positions: positions.slice(from, to),
    starts: Uint32Array.of(0, tokens),
    tokens,
    sequences: 1,
    longest: tokens,
  };
}
