/** @file Times a task on all peers in turn, and compares. */
import { inTurn, rounded, spreadOf } from "../rounds.ts";
import type { Peer, Prepared, Task } from "./peer.ts";

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
  /** Of those on the adapter: the fastest in JavaScript, and those that are not; the fastest first. */
  best: Ratio[];
}

/** A peer's median by ours: above 1 we are faster. */
export interface Ratio {
  peer: string;
  ratio: number;
}

export async function measure(
  task: Task,
  prepared: ReadonlyMap<string, Prepared>,
  { rounds, warmup }: { rounds: number; warmup: number },
): Promise<Map<string, Entry>> {
  const times = await inTurn(
    [...prepared.values()].map(({ run }) => run),
    { rounds, warmup },
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

/** Ours beside others on the adapter: see Row.best. */
export function compare(
  entries: readonly Entry[],
  ours: string,
  peers: readonly Pick<Peer, "name" | "where" | "native">[],
): Ratio[] {
  const own = entries.find(({ peer }) => peer === ours)?.medianMs;
  if (own === undefined) return [];
  const others = entries
    .flatMap(({ peer, medianMs }) => {
      const { where, native = false } = peers.find(({ name }) => name === peer) ?? {};
      return peer !== ours && where === "gpu" && medianMs !== undefined ? [{ peer, medianMs, native }] : [];
    })
    .sort((a, b) => a.medianMs - b.medianMs);
  const script = others.find(({ native }) => !native);
  return others
    .filter((other) => other.native || other === script)
    .map(({ peer, medianMs }) => ({ peer, ratio: Number((medianMs / own).toPrecision(3)) }));
}
