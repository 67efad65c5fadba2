/**
 * @file `--profile`: which kernels the training's time went to, beside what the device can do at best. The first two
 * steps compile and are left out; after a hundred the rest runs at its usual speed. A table on stderr, the same in the
 * JSON document and in profile.json.
 */
import { join } from "node:path";
import { writeFileAtomic } from "../data/files.ts";
import {
  type AdapterReport,
  type Ceilings,
  type Gpu,
  hasTimestamps,
  type KernelTime,
  measureCeilings,
  Profile,
  type ProfileReport,
} from "../gpu/index.ts";
import type { StepReport } from "../train/index.ts";
import { figure, table } from "./format.ts";
import { adapterText, type Output } from "./output.ts";

/** Steps that are left out: they compile. */
const SKIPPED = 2;
/** Steps that are counted, at most. */
const COUNTED = 100;

/** profile.json. */
export interface ProfileJson {
  adapter: AdapterReport;
  /** Steps counted, and steps left out before them. */
  steps: number;
  skipped: number;
  /** Wall time of the steps counted. */
  milliseconds: number;
  /** Of it, no kernel running: the host, uploads, copies, gaps between passes. */
  outsideMilliseconds: number;
  ceilings: Ceilings;
  kernels: KernelRow[];
}

export interface KernelRow {
  kernel: string;
  calls: number;
  milliseconds: number;
  microsecondsPerCall: number;
  /** The rate of a kernel that counts its flops; else `gbps`. */
  gflops?: number;
  gbps?: number;
  /** Of the multiply-adds' ceiling with `gflops`, of the copy's with `gbps`. */
  ceilingShare: number;
  /** Of `milliseconds`. */
  share: number;
}

interface Steps {
  readonly step: number;
  readonly steps: number;
  run(): AsyncGenerator<StepReport, void, undefined>;
}

export class StepProfile {
  readonly #gpu: Gpu;
  readonly #out: Output;
  readonly #ceilings: Ceilings;
  readonly #profile: Profile;
  #from = Number.NaN;
  #counted = 0;

  /** Measures the ceilings. Undefined, with a warning, where the adapter has no timestamps: training goes on without. */
  static async begin(gpu: Gpu, out: Output): Promise<StepProfile | undefined> {
    if (!hasTimestamps(gpu)) {
      out.warning(
        `--profile: ${gpu.adapter.name} has no timestamps (feature timestamp-query), so no profile is made. Training goes on; another adapter may have them (PRIORWORK_ADAPTER).`,
      );
      return undefined;
    }
    return new StepProfile(gpu, out, await measureCeilings(gpu));
  }

  private constructor(gpu: Gpu, out: Output, ceilings: Ceilings) {
    this.#gpu = gpu;
    this.#out = out;
    this.#ceilings = ceilings;
    this.#profile = new Profile(gpu);
  }

  /** Must this step be settled (`FitOptions.settle`)? Counting begins and ends only where nothing is on its way. */
  settles(step: number): boolean {
    return step === this.#from || step === this.#from + COUNTED;
  }

  /** The trainer's own reports. What runs between them at a settled step, an evaluation or a checkpoint, is not counted. */
  async *over(trainer: Steps): AsyncGenerator<StepReport, void, undefined> {
    this.#from = trainer.step + SKIPPED;
    let since: number | undefined;
    const stop = (step: number) => {
      if (since === undefined) return;
      this.#profile.stop();
      this.#counted += step - since;
      since = undefined;
    };
    try {
      for await (const report of trainer.run()) {
        const { step } = report;
        const settled = step === trainer.step;
        if (settled) stop(step);
        yield report;
        if (settled && step >= this.#from && step < this.#from + COUNTED && step < trainer.steps) {
          this.#profile.start();
          since = step;
        }
      }
    } finally {
      // After a failure; what was begun is not counted.
      if (since !== undefined) stop(since);
    }
  }

  /** Shows the table, writes profile.json; gives what it holds. */
  async finish(folder: string): Promise<ProfileJson> {
    const report = await this.#profile.report();
    this.#profile.dispose();
    const { adapter } = this.#gpu;
    const json = profileJson(report, { adapter, steps: this.#counted, skipped: SKIPPED, ceilings: this.#ceilings });
    writeFileAtomic(join(folder, "profile.json"), `${JSON.stringify(json, null, 2)}\n`);
    this.#out.remark(profileText(json));
    return json;
  }
}

type Facts = Pick<ProfileJson, "adapter" | "steps" | "skipped" | "ceilings">;

export function profileJson(report: ProfileReport, facts: Facts): ProfileJson {
  const { milliseconds, kernelMilliseconds, kernels } = report;
  return {
    ...facts,
    milliseconds,
    outsideMilliseconds: Math.max(0, milliseconds - kernelMilliseconds),
    kernels: kernels.map((kernel) => kernelRow(kernel, milliseconds, facts.ceilings)),
  };
}

function kernelRow(kernel: KernelTime, wall: number, { gflops, gbps }: Ceilings): KernelRow {
  const { op, calls, milliseconds, flops, bytes } = kernel;
  // A clock too coarse for the kernel shows no time at all: then there is no rate either.
  const rate = milliseconds > 0 ? (flops > 0 ? flops : bytes) / (milliseconds * 1e6) : 0;
  return {
    kernel: op,
    calls,
    milliseconds,
    microsecondsPerCall: (1000 * milliseconds) / calls,
    ...(flops > 0 ? { gflops: rate } : { gbps: rate }),
    ceilingShare: rate / (flops > 0 ? gflops : gbps),
    share: milliseconds / wall,
  };
}

/** The table with what must be known to read it. */
export function profileText(json: ProfileJson): string {
  const { adapter, steps, skipped, milliseconds, outsideMilliseconds, ceilings } = json;
  if (steps === 0) {
    return `profile: no step was counted; the first ${skipped} compile and are left out, so train for more.`;
  }
  const percent = (share: number) => (Number.isFinite(share) ? `${(100 * share).toFixed(1)}%` : "");
  const rows = json.kernels.map((row) => [
    row.kernel,
    String(row.calls),
    row.milliseconds.toFixed(2),
    row.microsecondsPerCall.toFixed(1),
    row.gflops === undefined ? "" : figure3(row.gflops),
    row.gbps === undefined ? "" : figure3(row.gbps),
    percent(row.ceilingShare),
    percent(row.share),
  ]);
  const calls = json.kernels.reduce((sum, row) => sum + row.calls, 0);
  rows.push(["outside the kernels", "", outsideMilliseconds.toFixed(2), "", "", "", "", percent(outsideMilliseconds / milliseconds)]); // biome-ignore format: one row
  rows.push(["all", String(calls), milliseconds.toFixed(2), "", "", "", "", percent(1)]);
  return [
    `profile: ${steps} step${steps === 1 ? "" : "s"} counted, ${figure(milliseconds / steps)} ms each (the first ${skipped} are left out: they compile), on ${adapterText(adapter)}`,
    table(["kernel", "calls", "total ms", "µs/call", "GFLOP/s", "GB/s", "of ceiling", "of time"], rows),
    `Ceilings, measured before training: ${figure3(ceilings.gflops)} GFLOP/s of multiply-adds, ${figure3(ceilings.gbps)} GB/s of a copy of 64 MiB; small arrays that fit a cache may pass it.`,
    "GB/s are of the arrays bound, each once, or of what the kernel says that it moves. Outside the kernels: the host, uploads, copies and clears, and the gaps between passes; with a pass per dispatch these are longer than without --profile.",
  ].join("\n");
}

function figure3(x: number): string {
  return figure(Number(x.toPrecision(3)));
}
