/**
 * @file The device for a command: opened, said aloud, closed again whatever happens. The adapter that was passed over is
 * a note, so that nobody times a software adapter believing it a GPU.
 */
import { type Dtype, Engine } from "../autograd/index.ts";
import { debugLevel, type Gpu, trace } from "../gpu/index.ts";
import { openGpu } from "../gpu/node.ts";
import { checkHalf } from "../kernels/matmul-half.ts";
import type { Output } from "./output.ts";
import { loadTuned, tunedRemark } from "./tuned.ts";

/**
 * Runs `body` with an engine on the best adapter (or PRIORWORK_ADAPTER's). DeviceError: none; or `dtype` is f16 and the
 * adapter's products in f16 are not what they should be.
 */
export async function withEngine<T>(
  out: Output,
  body: (engine: Engine) => Promise<T>,
  { dtype = "f32" }: { dtype?: Dtype } = {},
): Promise<T> {
  const gpu: Gpu = await openGpu({ adapter: out.io.env.PRIORWORK_ADAPTER });
  out.adapter(gpu.adapter);
  const remark = tunedRemark(loadTuned(gpu, out.io.env));
  if (remark !== undefined) out.note(remark);
  trace(gpu, debugLevel(out.io.env.DEBUG), (lines) => out.remark(lines));
  const engine = new Engine(gpu, { dtype });
  try {
    if (dtype === "f16") {
      const { subnormals } = await checkHalf(gpu);
      out.note(`training steps multiply in f16 and sum in f32 (checked; below 6e-5 ${subnormals})`);
    }
    return await body(engine);
  } finally {
    engine.close();
  }
}
