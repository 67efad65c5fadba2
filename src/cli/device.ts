/**
 * @file The device for a command: opened, said aloud, closed again whatever happens. The adapter that was passed over is
 * a note, so that nobody times a software adapter believing it a GPU.
 */
import { totalmem } from "node:os";
import { type Dtype, Engine } from "../autograd/index.ts";
import { debugLevel, type Gpu, trace } from "../gpu/index.ts";
import { openGpu } from "../gpu/node.ts";
import { checkHalf } from "../kernels/matmul-half.ts";
import type { Output } from "./output.ts";
import { loadTuned, tunedRemark } from "./tuned.ts";
import { numberValue } from "./values.ts";

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

/**
 * The device's memory in bytes, or undefined: WebGPU does not tell. A software adapter's is this machine's, or what its
 * container may have of it; of a GPU PRIORWORK_DEVICE_MEMORY says it. InputError for a value that is no number.
 */
export function deviceMemory(
  { adapter }: Pick<Gpu, "adapter">,
  { env }: Pick<Output["io"], "env">,
): number | undefined {
  const given = env.PRIORWORK_DEVICE_MEMORY;
  if (given) return numberValue("PRIORWORK_DEVICE_MEMORY", given, { min: 0, above: true, example: "24e9" });
  if (adapter.kind === "hardware") return undefined;
  const allowed = process.constrainedMemory?.() ?? 0;
  return allowed > 0 ? Math.min(allowed, totalmem()) : totalmem();
}
