/** @file `open()`: an engine on the best adapter there is, named aloud. Apart from index.ts, since it touches Node. */
import { Engine } from "./autograd/index.ts";
import { adapterText } from "./cli/output.ts";
import { loadTuned, tunedRemark } from "./cli/tuned.ts";
import { debugLevel, trace } from "./gpu/index.ts";
import { type OpenOptions, openGpu } from "./gpu/node.ts";

/**
 * Opens the best adapter (or PRIORWORK_ADAPTER's), with the choices of `bench --tune` where it was tuned, and names both
 * on stderr, unless `quiet`. `engine.close()` when done.
 * Throws DeviceError where there is none, with what was tried and what to install.
 */
export async function open({ quiet = false, ...options }: OpenOptions & { quiet?: boolean } = {}): Promise<Engine> {
  const gpu = await openGpu(options);
  const remark = tunedRemark(loadTuned(gpu, process.env));
  if (!quiet) {
    process.stderr.write(`adapter: ${adapterText(gpu.adapter)}\n`);
    if (remark !== undefined) process.stderr.write(`note: ${remark}\n`);
  }
  trace(gpu, debugLevel(process.env.DEBUG), (lines) => process.stderr.write(`${lines}\n`));
  return new Engine(gpu);
}
