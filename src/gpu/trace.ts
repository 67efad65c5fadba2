/**
 * @file What the device is told, as text: DEBUG=2 a line for every dispatch, in order; DEBUG=3 also shapes, parameters
 * and constants; DEBUG=4 also the numbered WGSL of each pipeline when it is compiled. It hangs on two hooks of the
 * device, so that it costs nothing when off.
 */
import type { Dispatch, View } from "./dispatch.ts";
import type { Gpu } from "./gpu.ts";

/** The number in the environment's DEBUG; 0 where it is none. */
export function debugLevel(text: string | undefined): number {
  return Number(text) || 0;
}

/** From now on `write` gets text (one or more lines, without the last line end) for what this device is told. */
export function trace(gpu: Gpu, level: number, write: (lines: string) => void): void {
  if (level < 2) return;
  gpu.afterDispatch = (d) => write(level < 3 ? dispatchLine(d) : `${dispatchLine(d)}\n${detailLine(d)}`);
  if (level >= 4) {
    gpu.afterCompile = (d, wgsl) => write(`compile ${d.shader}.${d.entry} for ${d.op}\n${numbered(wgsl)}`);
  }
}

/** Bytes of the arrays that a dispatch binds, one that is bound twice counted once: it reads and writes each at most. */
export function boundBytes(bindings: readonly View[]): number {
  const seen = new Map(bindings.map((view) => [`${view.buffer.id},${view.byteOffset}`, view.byteLength]));
  let bytes = 0;
  for (const length of seen.values()) bytes += length;
  return bytes;
}

/** "dispatch matmul.NT  matmul_subgroup.nt  6×14×1  2,691,072 bytes". */
export function dispatchLine({ op, shader, entry, grid, bindings }: Dispatch): string {
  return `dispatch ${op}  ${shader}.${entry}  ${grid.join("×")}  ${boundBytes(bindings).toLocaleString("en")} bytes`;
}

/** The arrays in @binding order, the parameter words, the overrides, the tile. */
export function detailLine({ bindings, params, constants = {}, tile = {} }: Dispatch): string {
  const arrays = bindings.map((view) => (view.shape ? `[${view.shape.join(" ")}]` : `${view.byteLength} bytes`));
  const values = Object.entries({ ...constants, ...tile }).map(([name, value]) => `${name}=${value}`);
  return `  ${[arrays.join(" "), `params ${params.map(word).join(" ")}`, ...values].join("  ")}`;
}

const BITS = new DataView(new ArrayBuffer(4));

/** A word does not say whether it is u32 or f32; above the largest size it is shown as both. */
function word(bits: number): string {
  if (bits < 0x20000000) return String(bits); // as a float below 1.1e-19
  BITS.setUint32(0, bits);
  return `0x${bits.toString(16)}=${Number(BITS.getFloat32(0).toPrecision(7))}`;
}

function numbered(text: string): string {
  const lines = text.trimEnd().split("\n");
  return lines.map((line, i) => `${String(i + 1).padStart(5)} | ${line}`).join("\n");
}
