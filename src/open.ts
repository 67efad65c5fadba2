/** @file `open()`: an engine on the best adapter there is, named aloud. Apart from index.ts, since it touches Node. */
import { type Dtype, Engine } from "./autograd/index.ts";
import { adapterText } from "./cli/output.ts";
import { loadTuned, tunedRemark } from "./cli/tuned.ts";
import { debugLevel, trace } from "./gpu/index.ts";
import { type OpenOptions, openGpu } from "./gpu/node.ts";
import { checkHalf } from "./kernels/matmul-half.ts";

/**
 * Opens the best adapter (or PRIORWORK_ADAPTER's), with the choices of `bench --tune` where it was tuned, and names both
 * on stderr, unless `quiet`. `engine.close()` when done. With `dtype: "f16"` training steps multiply in f16 on the adapter's
 * matrix unit, sum in f32 and scale their loss.
 * Throws DeviceError where there is none, with what was tried and what to install; or where `dtype` is f16 and the adapter
 * has no such unit, or one that does not pass `checkHalf`.
 */
export async function open({
  quiet = false,
  dtype,
  ...options
}: OpenOptions & { quiet?: boolean; dtype?: Dtype } = {}): Promise<Engine> {
  const gpu = await openGpu(options);
  const remark = tunedRemark(loadTuned(gpu, process.env));
  if (!quiet) {
    process.stderr.write(`adapter: ${adapterText(gpu.adapter)}\n`);
    if (remark !== undefined) process.stderr.write(`note: ${remark}\n`);
  }
  trace(gpu, debugLevel(process.env.DEBUG), (lines) => process.stderr.write(`${lines}\n`));
  if (dtype === "f16") {
    await checkHalf(gpu).catch((error: unknown) => {
      gpu.destroy();
      throw error;
    });
  }
  return new Engine(gpu, { dtype });
}
