/**
 * @file How a case is timed on a GPU. One run may take microseconds, and awaiting the device costs a hundred: so a round
 * records a case many times over and awaits it once. Cases that are compared take turns, round by round. Beside the wall
 * time stand the host's (recording) and the device's (timestamps, each dispatch in a pass of its own, in a round apart).
 */
import { type Gpu, hasTimestamps, Profile } from "../../src/gpu/index.ts";
import type { BenchCase } from "../case.ts";
import { calibrated, rounded, rowOf, runsOf, spreadOf } from "../rounds.ts";
import type { Plan } from "./plan.ts";
import type { GpuRow } from "./results.ts";

interface Timed {
  body: BenchCase;
  repeats: number;
  /** Milliseconds of whole rounds, and of recording alone. */
  wall: number[];
  host: number[];
  dispatches: number;
}

/** Rows of the cases, timed in turn; each is disposed of. `until`: no further round begins after that (Date.now). */
export async function measureOnGpu(
  gpu: Gpu,
  bodies: readonly BenchCase[],
  { rounds, round }: Pick<Plan, "rounds" | "round">,
  until: number,
): Promise<GpuRow[]> {
  try {
    const timed: Timed[] = [];
    for (const body of bodies) timed.push(await prepared(gpu, body, round));
    for (let i = 0; i < rounds && (i < 1 || Date.now() < until); i++) {
      for (const one of timed) {
        const { wall, host } = await runsOf(gpu, one.body, one.repeats);
        one.wall.push(wall / one.repeats);
        one.host.push(host / one.repeats);
      }
    }
    const rows: GpuRow[] = [];
    for (const one of timed) rows.push(row(one, await deviceTime(gpu, one)));
    return rows;
  } finally {
    for (const body of bodies) await body.dispose?.();
    gpu.trim();
  }
}

async function prepared(gpu: Gpu, body: BenchCase, round: number): Promise<Timed> {
  const repeats = await calibrated(gpu, body, round);
  gpu.counters.dispatches = 0;
  await runsOf(gpu, body, 1);
  return { body, repeats, wall: [], host: [], dispatches: gpu.counters.dispatches };
}

/** Milliseconds in which some kernel ran, of one run. */
async function deviceTime(gpu: Gpu, { body, repeats }: Timed): Promise<number> {
  if (!hasTimestamps(gpu)) return 0;
  const runs = Math.min(repeats, 16);
  const profile = new Profile(gpu);
  try {
    profile.start();
    await runsOf(gpu, body, runs);
    profile.stop();
    return (await profile.report()).kernelMilliseconds / runs;
  } finally {
    gpu.timer = undefined;
    profile.dispose();
  }
}

function row({ body, repeats, wall, host, dispatches }: Timed, gpuMs: number): GpuRow {
  return {
    ...rowOf(body, wall),
    repeats,
    dispatches,
    hostMs: rounded(spreadOf(host).median),
    gpuMs: rounded(gpuMs),
  };
}
