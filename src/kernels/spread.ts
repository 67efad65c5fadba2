/**
 * @file How an array is shared out among threads where nothing but its size matters. A software adapter pays by the
 * thread, so each takes many vec4 there; a GPU wants many threads. `per` is a parameter of the shader rather than a
 * constant: drivers unroll a short constant loop, which compiles for seconds and runs slower on lavapipe (add: 2.0×).
 */
import { type Gpu, type Grid, grid } from "../gpu/index.ts";

/** Workgroups below which a larger share a thread would leave cores idle. */
const ENOUGH = 16;

/** Workgroups that are enough for a CPU's cores: each costs as much as 20 vec4s do (lavapipe, bench/NOTES.md). */
export const CPU_WORKGROUPS = 64;

/** Shares `size` elements among workgroups of 64 threads: vec4 a thread, 64 apart, and the grid. */
export function spread(gpu: Gpu, size: number): { per: number; grid: Grid } {
  const quads = Math.ceil(size / 4);
  const most = gpu.adapter.kind === "hardware" ? 4 : 32;
  const per = Math.max(1, Math.min(most, Math.ceil(quads / (64 * ENOUGH))));
  return { per, grid: grid(Math.ceil(quads / (64 * per))) };
}

/** The same with at most `CPU_WORKGROUPS` on a system's software adapter. */
export function spreadFew(gpu: Gpu, size: number): { per: number; grid: Grid } {
  const usual = spread(gpu, size);
  const quads = Math.ceil(size / 4);
  const per = Math.ceil(quads / (64 * CPU_WORKGROUPS));
  if (gpu.adapter.kind !== "software" || per <= usual.per) return usual;
  return { per, grid: grid(Math.ceil(quads / (64 * per))) };
}
