/**
 * @file A trace: what is watched of each draw of a sampler's chains, in the long form that other tools read (chain, draw,
 * variable, value), what it says of the chains, and the logits of a few fixed sentences to watch. A logit of a sentence
 * that is always the same one tells where the network is, not where its millions of weights are.
 */
import type { Tensor } from "../autograd/index.ts";
import type { PackedBatch } from "../data/batches.ts";
import { type Diagnosis, diagnose } from "./diagnostics.ts";
import type { ThetaClassifier } from "./draws.ts";
import type { TrajectoryDraw } from "./trajectory.ts";

/** A draw without its numbers. */
export type Watched = Pick<TrajectoryDraw, "chain" | "draw" | "functionals">;

export interface TraceRow {
  chain: number;
  draw: number;
  variable: string;
  value: number;
}

/** A row for each draw and functional, in the draws' order. */
export function traceRows(draws: readonly Watched[]): TraceRow[] {
  return draws.flatMap(({ chain, draw, functionals }) =>
    Object.entries(functionals).map(([variable, value]) => ({ chain, draw, variable, value })),
  );
}

/** `chain,draw,variable,value` and a line for each row. A variable's name has no comma. */
export function traceCsv(draws: readonly Watched[]): string {
  const lines = traceRows(draws).map(({ chain, draw, variable, value }) => `${chain},${draw},${variable},${value}`);
  return `${["chain,draw,variable,value", ...lines].join("\n")}\n`;
}

/** An array of the rows, a line each. */
export function traceJson(draws: readonly Watched[]): string {
  return `[\n${traceRows(draws)
    .map((row) => JSON.stringify(row))
    .join(",\n")}\n]\n`;
}

/** A variable's values, chain by chain in the order of its draws. */
export function traceChains(rows: readonly TraceRow[]): Map<string, number[][]> {
  const found = new Map<string, number[][]>();
  for (const { chain, variable, value } of rows) {
    const chains = found.get(variable) ?? [];
    found.set(variable, chains);
    while (chains.length <= chain) chains.push([]);
    chains[chain]?.push(value);
  }
  return found;
}

/** `diagnose` of every variable of a trace; see `diagnoseChains`. */
export function diagnoseTrace(rows: readonly TraceRow[]): Record<string, Diagnosis> {
  return diagnoseChains(traceChains(rows));
}

/**
 * `diagnose` of every variable, its chains cut to the shortest of them (draws that do not come out even leave some one
 * longer); none where that has fewer than four draws.
 */
export function diagnoseChains(variables: ReadonlyMap<string, readonly number[][]>): Record<string, Diagnosis> {
  const found: Record<string, Diagnosis> = {};
  for (const [variable, chains] of variables) {
    const shortest = Math.min(...chains.map(({ length }) => length));
    if (shortest >= 4) found[variable] = diagnose(chains.map((chain) => chain.slice(0, shortest)));
  }
  return found;
}

/** Logits of fixed sentences as functionals of θ. */
export interface SentenceLogits {
  /** logit.SENTENCE.CLASS, both counted from 0, at θ as it is. */
  read(): Promise<Record<string, number>>;
  dispose(): void;
}

/** Of a batch's sentences, without dropout; of each the first `classes` logits. `headOnly`: only the head moves, so that their vectors are computed once. */
export function sentenceLogits(
  model: ThetaClassifier,
  batch: PackedBatch,
  { headOnly = false, classes = Number.POSITIVE_INFINITY }: { headOnly?: boolean; classes?: number } = {},
): SentenceLogits {
  const { engine } = model;
  const quietly = <T>(body: () => T) => engine.step(() => engine.noGrad(body));
  let features: Tensor | undefined;
  return {
    async read() {
      if (headOnly) features ??= quietly(() => model.features(batch).keep());
      const vectors = features;
      // In an object: a step waits for a promise that it is given.
      const { read } = quietly(() => ({ read: (vectors ? model.classify(vectors) : model.logits(batch)).read() }));
      const logits = await read;
      const K = logits.length / batch.sequences;
      const named = Array.from(logits, (value, i): [string, number] => [`logit.${Math.floor(i / K)}.${i % K}`, value]);
      return Object.fromEntries(named.filter((_, i) => i % K < classes));
    },
    dispose: () => features?.dispose(),
  };
}
