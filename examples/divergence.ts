/**
 * @file How far predictions are from the exact p(y|x), which the default's grammar knows, and what can be said of it:
 * sentence by sentence, so that two models are compared on the same sentences and their difference has a standard error.
 */
import { table } from "../src/cli/format.ts";

/** A model's distance from the truth. */
export interface Distance {
  name: string;
  /** KL(p(y|x) ‖ model) of every sentence, nats. */
  kl: Float64Array;
}

/** KL(p(y|x) ‖ q(y|x)) of every sentence, nats, [n]: from p [n][K] and log q [n·K], both in the same order of labels. */
export function divergences(p: readonly (readonly number[])[], logq: ArrayLike<number>): Float64Array {
  const K = logq.length / p.length;
  return Float64Array.from(p, (row, i) =>
    row.reduce((kl, q, k) => kl + (q > 0 ? q * (Math.log(q) - (logq[i * K + k] ?? Number.NaN)) : 0), 0),
  );
}

export function mean(values: Iterable<number>): number {
  const all = Array.from(values);
  return all.reduce((a, b) => a + b, 0) / all.length;
}

/** Mean of a − b over the sentences, and its standard error: what makes a sentence hard for both cancels. */
export function difference(a: Float64Array, b: Float64Array): { change: number; error: number } {
  const each = a.map((x, i) => x - (b[i] ?? Number.NaN));
  const change = mean(each);
  const variance = each.reduce((sum, d) => sum + (d - change) ** 2, 0) / (each.length - 1);
  return { change, error: Math.sqrt(variance / each.length) };
}

/**
 * Which of all is nearest, and what its number means; then each average over many θ beside `start`, the one θ, nearest
 * first. Within two standard errors nothing is claimed. At most 80 columns.
 */
export function verdict(start: Distance, averages: readonly Distance[], others: readonly Distance[]): string {
  const sorted = (all: readonly Distance[]) => [...all].sort((a, b) => mean(a.kl) - mean(b.kl));
  const [nearest = start] = sorted([start, ...averages, ...others]);
  const kl = mean(nearest.kl);
  const rows = sorted(averages).map(({ name, kl }) => {
    const { change, error } = difference(kl, start.kl);
    const said = Math.abs(change) <= 2 * error ? "no difference to be seen" : change < 0 ? "nearer" : "farther";
    return [`    ${name}`, `${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(3)}`, `± ${error.toFixed(3)}`, said];
  });
  return `${wrap(
    `KL is the mean of KL(p(y|x) ‖ model) over the ${start.kl.length} sentences, in nats: the log-probability that a model's answers \
lose to the grammar's own. Nearest to the truth is ${nearest.name}, ${kl.toFixed(3)}: it gives the right answer, on geometric \
average, e^−${kl.toFixed(3)} = ${Math.round(100 * Math.exp(-kl))} % of the probability that the grammar gives it.`,
  )}
${wrap(`Averages over many θ, their KL less that of ${start.name}'s one θ, ± a standard error over the sentences:`)}${table(["", "", "", ""], rows)}`;
}

/** Lines of at most 80 columns, each with its end. */
function wrap(text: string): string {
  return text.replace(/(.{1,80})(?: |$)/g, "$1\n");
}
