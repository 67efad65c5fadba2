/**
 * @file The engine without BERT: a word predicted from its left neighbour, with a table of logits as the whole model.
 * Without a prior (MLE) its softmax becomes the relative counts; a Gaussian prior around 0 (MAP) pulls every row towards
 * the uniform distribution, and the more so the fewer times its word was seen. Run: npx tsx examples/cooccurrence.ts
 */
import { fileURLToPath } from "node:url";
import { type Engine, fit, gaussianPrior, Layout, logPosterior, open, ops, sgd, Theta } from "priorwork";
import { fromHost } from "priorwork/kernels";

/** A coast's weather, day by day: 46 days, three words, every pair of neighbours at least once. */
export const DIARY =
  "sun sun sun rain rain sun sun fog rain sun sun sun sun rain rain rain sun rain sun sun sun sun fog " +
  "fog sun sun rain rain sun sun sun rain sun sun fog sun sun sun rain rain fog sun sun sun rain sun";

/** Pairs of neighbours as word numbers. */
export interface Pairs {
  left: Uint32Array;
  right: Uint32Array;
  words: string[];
}

export function pairsOf(text: string): Pairs {
  const tokens = text.split(" ");
  const words = [...new Set(tokens)];
  const ids = Uint32Array.from(tokens, (token) => words.indexOf(token));
  return { left: ids.slice(0, -1), right: ids.slice(1), words };
}

/** p(right | left) at the maximum of log p(θ|X), row by row, [V, V]. `precision` 0 is maximum likelihood. */
export async function cooccurrence(engine: Engine, { left, right, words }: Pairs, precision: number) {
  const [N, V] = [left.length, words.length];
  const parameters = [{ name: "table", shape: [V, V] }];
  const theta = new Theta(engine, new Layout([{ key: "table", parameters, groups: ["table"] }])); // all zeros: uniform
  const model = {
    engine,
    theta,
    loss(pairs: Omit<Pairs, "words">) {
      const logits = ops.embedding(theta.tensor("table"), pairs.left); // [N, V]
      return { nlls: ops.crossEntropy(logits, fromHost(engine.gpu, pairs.right)), count: pairs.left.length };
    },
  };
  const prior = gaussianPrior(theta, { table: { mean: 0, precision } });
  const pick = (from: Uint32Array, rows: readonly number[]) => Uint32Array.from(rows, (row) => from[row] ?? 0);
  const data = {
    length: N,
    batch: (rows: readonly number[]) => ({ left: pick(left, rows), right: pick(right, rows) }),
  };
  const options = { optimizer: sgd({ lr: 2, momentum: 0.8 }), epochs: 200, batch: N, schedule: "constant" as const };
  let logJoint = Number.NEGATIVE_INFINITY;
  for await (const step of fit(logPosterior(model, prior, { N }), data, options)) logJoint = step.logJoint;
  const probabilities = await engine.step(() => ({ read: ops.softmax(theta.tensor("table")).read() })).read;
  prior.dispose();
  theta.dispose();
  return { probabilities, logJoint };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const engine = await open();
  const pairs = pairsOf(DIARY);
  for (const [name, precision] of [["MLE (τ = 0): the relative counts", 0] as const, ["MAP (τ = 2)", 2] as const]) {
    const { probabilities } = await cooccurrence(engine, pairs, precision);
    console.log(`\n${name}\n${"".padEnd(10)}${pairs.words.map((word) => `→ ${word}`.padEnd(8)).join("")}`);
    for (const [row, word] of pairs.words.entries()) {
      const cells = pairs.words.map((_, k) => (probabilities[row * pairs.words.length + k] ?? 0).toFixed(3).padEnd(8));
      const seen = pairs.left.filter((id) => id === row).length;
      console.log(`${`${word} (${seen})`.padEnd(10)}${cells.join("")}`);
    }
  }
  engine.close();
}
