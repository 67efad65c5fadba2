/** @file Times a task on all peers in turn: a round runs each once, so that what else the machine does meets all alike. */
import { milliseconds } from "./check.ts";
import type { Prepared, Task } from "./peer.ts";

/** A peer's number for a task, or why it has none. */
export interface Entry {
  peer: string;
  medianMs?: number;
  /** Fastest and slowest round. */
  range?: [number, number];
  gflops?: number;
  gbps?: number;
  refused?: string;
}

export interface Row {
  name: string;
  layout?: string;
  shape: Record<string, number>;
  entries: Entry[];
  /** The fastest GPU peer's median by ours: above 1 we are faster. */
  ratio?: number;
  best?: string;
}

export async function inTurn(
  task: Task,
  prepared: ReadonlyMap<string, Prepared>,
  rounds: number,
): Promise<Map<string, Entry>> {
  const samples = new Map<string, number[]>([...prepared.keys()].map((name) => [name, []]));
  for (let round = -1; round < rounds; round++) {
    for (const [name, { run }] of prepared) {
      const ms = await milliseconds(run);
      if (round >= 0) samples.get(name)?.push(ms);
    }
  }
  return new Map([...samples].map(([peer, list]) => [peer, entry(task, peer, list)]));
}

function entry({ flops, bytes }: Task, peer: string, samples: number[]): Entry {
  const sorted = samples.toSorted((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  const median = ((sorted[Math.floor(middle)] ?? 0) + (sorted[Math.ceil(middle)] ?? 0)) / 2;
  const rate = (amount: number) => Number((amount / median / 1e6).toPrecision(4));
  return {
    peer,
    medianMs: Number(median.toPrecision(4)),
    range: [sorted[0], sorted.at(-1)].map((ms = 0) => Number(ms.toPrecision(4))) as [number, number],
    ...(flops ? { gflops: rate(flops) } : {}),
    ...(bytes ? { gbps: rate(bytes) } : {}),
  };
}

/** The fastest of `peers` beside ours. */
export function compare(
  entries: readonly Entry[],
  ours: string,
  peers: readonly string[],
): Pick<Row, "ratio" | "best"> {
  const own = entries.find(({ peer }) => peer === ours)?.medianMs;
  const others = entries.filter(({ peer, medianMs }) => peers.includes(peer) && medianMs !== undefined);
  const best = others.sort((a, b) => (a.medianMs ?? 0) - (b.medianMs ?? 0))[0];
  if (own === undefined || best?.medianMs === undefined) return {};
  return { best: best.peer, ratio: Number((best.medianMs / own).toPrecision(3)) };
}
