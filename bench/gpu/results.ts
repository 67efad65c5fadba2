/**
 * @file What a run leaves: the shape of the results file, which is written anew and renamed whenever there is more, so
 * that a machine that goes away leaves what was measured until then.
 */
import { mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { BenchRow } from "../runner.ts";
import type { Verdict } from "./judge.ts";
import type { Part } from "./plan.ts";
import type { TestResult } from "./vitest.ts";

export interface GpuRow extends BenchRow {
  /** Runs in a round: all are recorded, then the device is awaited once. Milliseconds are those of one run. */
  repeats: number;
  /** Dispatches of one run. */
  dispatches?: number;
  /** Recording alone, by the host's clock, of one run. */
  hostMs?: number;
  /** By the device's clock, gaps between kernels left out, of one run; 0 where it has none. */
  gpuMs?: number;
  /** Of a product: its largest error in units of what rounding in float32 allows; at most 1 is right. */
  worstError?: number;
}

/** A row of PyTorch's: `mode` is f32 (TF32 off), tf32 or bf16 (autocast). */
export interface TorchRow {
  name: string;
  mode: string;
  shape: Record<string, number>;
  layout?: string;
  medianMs: number;
  bestMs: number;
  gflops?: number;
}

/** What the parts say to the run that started them. */
export type Message =
  /** What is begun now: if the process ends or falls silent, this was why, and the next one leaves it out. */
  | { kind: "begin"; name: string }
  | { kind: "fact"; name: string; value: unknown }
  | { kind: "row"; row: GpuRow }
  | { kind: "torch"; row: TorchRow }
  | { kind: "test"; file: string; result: TestResult }
  | { kind: "failure"; name: string; error: string };

/** `done`: all of it. `incomplete`: something failed, or time ran out; `failures` says what. `skipped`: `reason` does. */
export interface PartReport {
  status: "done" | "incomplete" | "skipped" | "not started";
  seconds: number;
  reason?: string;
  failures: { name: string; error: string }[];
}

export interface Results {
  date: string;
  plan: string;
  /** Whether a software adapter answered: a rehearsal, no number of which says anything of a GPU. */
  rehearsal: boolean;
  facts: Record<string, unknown>;
  parts: Record<Part, PartReport>;
  tests: { passed: number; failed: number; skipped: number; files: Record<string, TestResult[]> };
  ceilings: GpuRow[];
  kernels: GpuRow[];
  /** The products again with Dawn's toggle `disable_robustness`. */
  unguarded: GpuRow[];
  steps: GpuRow[];
  torch: TorchRow[];
  judgement: Verdict[];
}

/** Replaces the file as a whole. */
export function write(folder: string, name: string, text: string): string {
  mkdirSync(folder, { recursive: true });
  const path = join(folder, name);
  writeFileSync(`${path}.partial`, text);
  renameSync(`${path}.partial`, path);
  return path;
}
