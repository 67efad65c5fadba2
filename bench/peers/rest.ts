/**
 * @file How this bench waits for a library's queue: with the rests that priorwork takes on a software adapter, so that
 * Dawn's polling takes the cores from nobody's work (src/gpu/wait.ts).
 */
import { restBetweenTurns } from "../../src/gpu/wait.ts";

const resting = restBetweenTurns();

export function rested<T>(wait: Promise<T>): Promise<T> {
  resting(wait);
  return wait;
}
