/** @file The picture: mean KL to the exact predictive against labelled sentences, a line a method, its seeds as dots. */
import { drawing } from "../../src/cli/charts.ts";

export interface Point {
  method: string;
  /** Labelled sentences. */
  n: number;
  seed: number;
  /** Mean KL(p(y|x) ‖ model), nats a sentence. */
  kl: number;
}

/** One θ in grey and black, many θ in colours (Okabe and Ito's, which colour-blind eyes tell apart). */
const COLORS: Readonly<Record<string, string>> = {
  "frozen encoder": "#999999",
  MLE: "#d55e00",
  MAP: "currentColor",
  "dropout members": "#cc79a7",
  "Laplace, head": "#0072b2",
  "SGHMC, head": "#56b4e9",
  SWAG: "#009e73",
  "five MAPs": "#e69f00",
};

/** As SVG. `about`: what stands under the title. */
export async function picture(points: readonly Point[], about: readonly string[]): Promise<string> {
  const { plot, Plot, compose } = await drawing();
  const methods = Object.keys(COLORS).filter((method) => points.some((p) => p.method === method));
  const sizes = [...new Set(points.map(({ n }) => n))].sort((a, b) => a - b);
  const means = methods.flatMap((method) =>
    sizes.flatMap((n) => {
      const kls = points.filter((p) => p.method === method && p.n === n).map(({ kl }) => kl);
      return kls.length === 0 ? [] : [{ method, n, kl: kls.reduce((a, b) => a + b, 0) / kls.length }];
    }),
  );
  const ends = spread(methods.flatMap((method) => means.filter((m) => m.method === method).slice(-1)));
  const color = (d: { method: string }) => COLORS[d.method] ?? "currentColor";
  const main = plot({
    height: 460,
    marginRight: 130,
    marginBottom: 44,
    x: {
      type: "log",
      base: 2,
      ticks: sizes,
      tickFormat: "d",
      label: "labelled sentences",
      labelAnchor: "center",
      labelArrow: "none",
    },
    y: {
      type: "log",
      grid: true,
      ticks: [0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1],
      tickFormat: ".2~f",
      labelOffset: 48,
      label: "mean KL from the exact p(y|x), nats a sentence",
    },
    marks: [
      Plot.dot(points, { x: "n", y: "kl", r: 1.6, fill: color, fillOpacity: 0.55 }),
      ...methods.map((method) =>
        Plot.line(
          means.filter((m) => m.method === method),
          { x: "n", y: "kl", stroke: COLORS[method] ?? "currentColor", strokeWidth: 2 },
        ),
      ),
      Plot.text(ends, {
        x: "n",
        y: "label",
        text: "method",
        fill: color,
        textAnchor: "start",
        dx: 8,
        fontWeight: "bold",
      }),
    ],
  });
  return compose({ title: "How near to the truth with few labels", lines: about }, [main]);
}

/** Labels at the lines' ends, pushed apart on the logarithmic axis until none covers another. */
function spread<T extends { kl: number }>(ends: T[]): (T & { label: number })[] {
  const sorted = ends.map((end) => ({ ...end, label: end.kl })).sort((a, b) => a.kl - b.kl);
  const apart = 1.09;
  for (let round = 0; round < 50; round++) {
    for (let i = 1; i < sorted.length; i++) {
      const [low, high] = [sorted[i - 1]!, sorted[i]!];
      const factor = (apart * low.label) / high.label;
      if (factor <= 1) continue;
      low.label /= Math.sqrt(factor);
      high.label *= Math.sqrt(factor);
    }
  }
  return sorted;
}
