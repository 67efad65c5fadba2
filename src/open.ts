/**
 * @file Opening the engine in Node: chooses an adapter, says aloud which, and gives an engine. Touches Node, as the
 * adapter choice does; a page makes `new Engine(gpu)` with a device of its own.
 */
import { Engine } from "./autograd/index.ts";
import type { AdapterReport } from "./gpu/index.ts";
import { type OpenOptions as GpuOptions, openGpu } from "./gpu/node.ts";

export interface OpenOptions extends GpuOptions {
  /** Where the line that names the adapter goes; stderr by default. */
  log?: (line: string) => void;
}

/** Opens the best adapter there is (PRIORWORK_ADAPTER or `options.adapter` overrides). Throws as `openGpu`. */
export async function open(options: OpenOptions = {}): Promise<Engine> {
  const gpu = await openGpu(options);
  const log = options.log ?? ((line: string) => process.stderr.write(`${line}\n`));
  log(`adapter: ${describeAdapter(gpu.adapter)}`);
  return new Engine(gpu);
}

/** One line: name, kind, driver, and for software adapters the reminder that they are one. */
export function describeAdapter({ name, kind, driver, features }: AdapterReport): string {
  const kinds = { hardware: "GPU", software: "software adapter of the system", bundled: "bundled software adapter" };
  const extras = features.filter((f) => f === "subgroups" || f === "shader-f16").join(", ");
  return `${name} (${kinds[kind]}; ${driver || "driver unknown"}${extras ? `; ${extras}` : ""})`;
}
