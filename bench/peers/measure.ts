/** @file Times a task on all peers in turn, and compares. */
import { inTurn, rounded, spreadOf } from "../rounds.ts";
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

export async function measure(
  task: Task,
  prepared: ReadonlyMap<string, Prepared>,
  rounds: number,
): Promise<Map<string, Entry>> {
  // The check has run each already: one round to warm up is enough.
  const times = await inTurn(
    [...prepared.values()].map(({ run }) => run),
    { rounds, warmup: 1 },
  );
  return new Map([...prepared.keys()].map((peer, i) => [peer, entry(task, peer, times[i] ?? [])]));
}

function entry({ flops, bytes }: Task, peer: string, samples: readonly number[]): Entry {
  const { median, fastest, slowest } = spreadOf(samples);
  return {
    peer,
    medianMs: rounded(median),
    range: [rounded(fastest), rounded(slowest)],
    ...(flops ? { gflops: rounded(flops / median / 1e6) } : {}),
    ...(bytes ? { gbps: rounded(bytes / median / 1e6) } : {}),
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
