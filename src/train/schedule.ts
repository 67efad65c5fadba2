/**
 * @file Learning rates over a run: a warm-up that rises in equal steps, then linear or cosine decay to 0, or none. A pure
 * function of the step, so that a resumed run needs no state of its own.
 */
import { InputError } from "../errors.ts";

export type ScheduleName = "linear" | "cosine" | "constant";

export interface ScheduleOptions {
  schedule?: ScheduleName | undefined;
  /** Share of the steps that warm up, 0 … 1; default .1. */
  warmup?: number | undefined;
}

/**
 * The factor on every learning rate at `step` (counted from 0) of `steps`. With warm = max(1, round(warmup·steps)), or 0
 * where `warmup` is 0: (step + 1)/warm before warm, then (steps − step)/(steps − warm) for "linear",
 * ½(1 + cos(π·(step − warm)/(steps − warm))) for "cosine", 1 for "constant". InputError: an unknown name, a warm-up
 * outside 0 … 1.
 */
export function schedule({ schedule: name = "linear", warmup = 0.1 }: ScheduleOptions, steps: number) {
  if (name !== "linear" && name !== "cosine" && name !== "constant") {
    throw new InputError(
      `schedule: unknown (found ${String(name)}; expected linear, cosine or constant). Choose one of them.`,
    );
  }
  if (!(warmup >= 0 && warmup <= 1)) {
    throw new InputError(`warmup: not a share of the steps (found ${warmup}; expected 0 to 1). Give, say, 0.1.`);
  }
  const warm = warmup === 0 ? 0 : Math.max(1, roundHalfEven(warmup * steps));
  return (step: number): number => {
    if (step < warm) return (step + 1) / warm;
    const left = (steps - step) / (steps - warm);
    if (name === "constant") return 1;
    return name === "linear" ? left : 0.5 * (1 - Math.cos(Math.PI * left));
  };
}

/** 2.5 → 2 as Python's `round`: the reference recipes are Python's. */
function roundHalfEven(x: number): number {
  const low = Math.floor(x);
  const rest = x - low;
  if (rest !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}
