/** @file Another mode: it is the run's with another seed, and nothing of it stays on the device, however it ends. */
import { join } from "node:path";
import { expect, test } from "vitest";
import { Engine } from "../../src/autograd/index.ts";
import { anotherMode } from "../../src/cli/another-mode.ts";
import { loadFor } from "../../src/cli/classifier.ts";
import { finetuneOptions } from "../../src/cli/options.ts";
import { Output } from "../../src/cli/output.ts";
import { openModelFolder } from "../../src/cli/source.ts";
import { temporaryFolder } from "../data/shared.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { writeModel } from "./harness.ts";

const gpu = gpuForTests();
const folder = temporaryFolder();

function context(onText: (text: string) => void, signal: AbortSignal) {
  const model = writeModel(join(folder, "model"));
  const options = finetuneOptions({
    model,
    train: "t.tsv",
    epochs: "2",
    batch: "2",
    lr: "1e-3",
    dev: "d",
    select: "best",
  });
  const write = (text: string) => onText(text);
  let ticks = 0;
  const io = { stdout: { write }, stderr: { write }, env: {}, signal, now: () => 20_000 * ticks++ };
  const checkpoint = openModelFolder("--model", model);
  const engine = new Engine(gpu());
  const nlls: number[] = [];
  return {
    nlls,
    close: () => checkpoint.checkpoint.close(),
    options,
    out: new Output(io, true),
    data: [
      [2, 5, 3],
      [2, 8, 9, 3],
      [2, 6, 3],
      [2, 9, 3],
    ].map((ids, i) => ({ ids, typeIds: ids.map(() => 0), label: i % 2 })),
    reload: (seed: number) => loadFor(engine, { ...options, seed }, checkpoint, { labels: ["a", "b"], newHead: false }),
    // The first epoch's is better.
    measure: async () => ({ nll: nlls.push(0) }),
  };
}

test("is made from its seed, takes the best on dev, and leaves nothing behind", async () => {
  const own = context(() => {}, new AbortController().signal);
  const once = (seed: number) => anotherMode(own, { seed, what: "member 2 of 2", ifInterrupted: "" });
  const first = await once(7);
  expect(own.nlls).toHaveLength(2);
  expect(first.every(Number.isFinite)).toBe(true);
  expect(await once(8)).not.toEqual(first);
  own.nlls.length = 0;
  expect(await once(7)).toEqual(first);
  // With the second epoch's the better, the numbers are others.
  own.measure = async () => ({ nll: -own.nlls.push(0) });
  expect(await once(7)).not.toEqual(first);
  own.close();
});

test("says which it was that diverged or was interrupted", async () => {
  let heard = "";
  const stop = new AbortController();
  const own = context((text) => {
    heard += text;
    if (text.includes("member 3 of 5 1/4")) stop.abort();
  }, stop.signal);
  const broken = anotherMode(own, {
    seed: 7,
    what: "member 2 of 5",
    ifInterrupted: "",
    perturb: async (_, __, data) => data.map((example) => ({ ...example, weight: Number.NaN })),
  });
  await expect(broken).rejects.toThrow(/step 1/);
  expect(heard).toContain("note: what diverged is member 2 of 5, from seed 7");
  await expect(anotherMode(own, { seed: 8, what: "member 3 of 5", ifInterrupted: "Go on." })).rejects.toThrow(
    /^interrupted \(member 3 of 5, step [12] of 4\)\. Go on\.$/,
  );
  own.close();
});
