/**
 * @file How this bench waits for a library's queue: with the rests that priorwork takes on a software adapter, so that
 * Dawn's polling takes the cores from nobody's work (src/gpu/wait.ts).
 */
import type { AdapterReport } from "../../src/gpu/index.ts";
import { restBetweenTurns } from "../../src/gpu/wait.ts";

const resting = restBetweenTurns();
let software = true;

/** Whether the adapter is a software one: on a GPU nobody rests, as priorwork does not. */
export function restOnlyOn(kind: AdapterReport["kind"]): void {
  software = kind !== "hardware";
}

export function rested<T>(wait: Promise<T>): Promise<T> {
  if (software) resting(wait);
  return wait;
}
