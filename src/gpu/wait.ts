/**
 * @file How Node waits for a GPU that is the same processor. Dawn for Node asks whether the GPU is done as often as the
 * event loop turns, without a rest; a software adapter computes on all cores, and on two of them that asking takes a
 * third of them from the work it waits for (a product of 1024 × 1536 × 384 on lavapipe: 100 ms so, 50 with rests).
 */

/** The first rests: well below what a round trip to a software adapter takes. Milliseconds. */
const SHORTEST = 0.05;
/** A turn of the event loop costs about as much as the first rest, so rests grow: what they add to a wait is a sixteenth. */
const SHARE = 1 / 16;
const LONGEST = 1;

const cell = new Int32Array(new SharedArrayBuffer(4));

/** Milliseconds to rest when so many have been waited. */
export function restAfter(waited: number): number {
  return Math.min(LONGEST, Math.max(SHORTEST, SHARE * waited));
}

/** Blocks this thread, and with it the event loop, for one rest. */
function rest(waited: number): void {
  Atomics.wait(cell, 0, 0, restAfter(waited));
}

/**
 * Makes a function to be told of every promise that waits for the GPU: as long as one is open, `pause` is called once in
 * each turn of the event loop, however many are open, with the milliseconds since the last began or ended.
 */
export function restBetweenTurns(pause: (waited: number) => void = rest): (wait: Promise<unknown>) => void {
  let open = 0;
  let turning = false;
  let since = 0;
  const turn = () => {
    turning = open > 0;
    if (!turning) return;
    pause(performance.now() - since);
    setImmediate(turn);
  };
  const closed = () => {
    open--;
    since = performance.now();
  };
  return (wait) => {
    open++;
    since = performance.now();
    wait.then(closed, closed);
    if (turning) return;
    turning = true;
    setImmediate(turn);
  };
}
