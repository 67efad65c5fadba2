/**
 * @file How Node waits for a GPU that is the same processor. Dawn for Node asks whether the GPU is done as often as the
 * event loop turns, without a rest; a software adapter computes on all cores, and on two of them that asking takes a
 * third of them from the work it waits for (a product of 1024 × 1536 × 384 on lavapipe: 100 ms so, 50 with rests).
 */

/** Milliseconds of a rest: well below what a round trip to a software adapter takes. */
const REST = 0.05;

const cell = new Int32Array(new SharedArrayBuffer(4));

/** Blocks this thread, and with it the event loop, for one rest. */
function rest(): void {
  Atomics.wait(cell, 0, 0, REST);
}

/**
 * Makes a function to be told of every promise that waits for the GPU: as long as one is open, `pause` is called once in
 * each turn of the event loop, however many are open.
 */
export function restBetweenTurns(pause: () => void = rest): (wait: Promise<unknown>) => void {
  let open = 0;
  let turning = false;
  const turn = () => {
    turning = open > 0;
    if (!turning) return;
    pause();
    setImmediate(turn);
  };
  const closed = () => {
    open--;
  };
  return (wait) => {
    open++;
    wait.then(closed, closed);
    if (turning) return;
    turning = true;
    setImmediate(turn);
  };
}
