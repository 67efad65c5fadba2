/**
 * @file The lines of experiment.ts as tables: mean ± standard deviation over the seeds that are there, and, since not every
 * way has every seed, by how much NLL and accuracy differ from MAP's one θ on the same seeds.
 *
 *   npx tsx examples/sst2/table.ts RESULTS.jsonl
 */
import { readFileSync } from "node:fs";
import { mean } from "../divergence.ts";

const METRICS = ["accuracy", "nll", "ece", "eceFloor", "brier", "oodEpistemic", "oodTotal", "distance"] as const;
type Line = { n: number; seed: number; tau: number | "inf" | "fisher"; reading: string; members: number } & Partial<
  Record<(typeof METRICS)[number], number>
>;

/** τ of the MAP that others are compared with. */
const BASE: Record<number, number> = { 64: 100, 256: 300 };

const [file] = process.argv.slice(2);
if (!file) throw new Error("usage: table.ts RESULTS.jsonl");
const lines = readFileSync(file, "utf8")
  .trimEnd()
  .split("\n")
  .map((line) => JSON.parse(line) as Line);

for (const n of [...new Set(lines.map((line) => line.n))].sort((a, b) => a - b)) {
  const ways = new Map<string, Line[]>();
  for (const line of lines) if (line.n === n) ways.set(nameOf(line), [...(ways.get(nameOf(line)) ?? []), line]);
  console.log(`\n### ${n} labelled sentences\n`);
  console.log(
    `| way to predict | θ | seeds | accuracy | NLL | less MAP's (τ = ${BASE[n]}), same seeds | ECE (floor) | AUROC: epistemic, total | distance |`,
  );
  console.log("|---|---|---|---|---|---|---|---|---|");
  for (const [name, seeds] of [...ways].sort(([a], [b]) => orderOf(a) - orderOf(b))) {
    const over = (metric: (typeof METRICS)[number], digits = 3) =>
      spread(
        seeds.flatMap((s) => s[metric] ?? []),
        digits,
      );
    const meanOf = (metric: (typeof METRICS)[number]) => mean(seeds.flatMap((s) => s[metric] ?? []));
    const base = (seed: number) => lines.find((l) => l.n === n && l.seed === seed && l.tau === BASE[n] && l.reading === "point"); // biome-ignore format: one search
    const less = (metric: "accuracy" | "nll") =>
      signed(mean(seeds.map((s) => (s[metric] ?? Number.NaN) - (base(s.seed)?.[metric] ?? Number.NaN))));
    const members = seeds[0]?.members ?? 1;
    const epistemic = members > 1 ? meanOf("oodEpistemic").toFixed(2) : "–";
    const distance = seeds[0]?.distance === undefined ? "" : meanOf("distance").toFixed(3);
    console.log(
      `| ${name} | ${members} | ${seeds.length} | ${over("accuracy")} | ${over("nll")} | ${less("accuracy")}, ${less("nll")} | ${over("ece")} (${meanOf("eceFloor").toFixed(3)}) | ${epistemic}, ${meanOf("oodTotal").toFixed(2)} | ${distance} |`,
    );
  }
}

function nameOf({ tau, reading }: Line): string {
  const trained =
    tau === "inf" ? "frozen" : tau === 0 ? "MLE" : tau === "fisher" ? "MAP, Fisher prior" : `MAP τ = ${tau}`;
  const read: Record<string, string> = {
    point: "",
    temperature: ", temperature from a fifth of the rows",
    laplace: ", Laplace on the head",
    maximum: ", head at its maximum",
    evidence: ", head's τ by MacKay's fixed point, Laplace on it",
    sghmc: ", SGHMC on the head",
    swag: ", SWAG on all of θ",
    dropout: ", dropout members",
    ensemble: ", five trainings averaged",
    ensembleEvidence: ", five trainings, each with its head's τ by the fixed point",
    fisher: ", Laplace on all of θ with the Fisher prior",
  };
  return trained + (read[reading] ?? `, ${reading}`);
}

/** Single θ first, from the data alone to the prior alone. */
function orderOf(name: string): number {
  const [trained = "", read] = name.split(/, (?!Fisher)/);
  const tau =
    trained === "MLE"
      ? 0
      : trained === "frozen"
        ? 1e12
        : trained.includes("Fisher")
          ? 1e11
          : Number(/\d+$/.exec(trained)?.[0]);
  return (read ? 1e13 : 0) + tau;
}

function signed(value: number): string {
  return value
    .toFixed(3)
    .replace(/^(?=\d)/, "+")
    .replace("-", "−");
}

function spread(values: readonly number[], digits: number): string {
  const middle = mean(values);
  if (values.length < 2) return middle.toFixed(digits);
  const variance = values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1);
  return `${middle.toFixed(digits)} ± ${Math.sqrt(variance).toFixed(digits)}`;
}
