/**
 * @file The trace of a run's sampler as one SVG: a panel for each functional, a line for each chain over its draws. Chains
 * that have mixed cross each other like noise; one that drifts, sticks, or keeps to a place of its own is seen at once.
 */
import { inert } from "../data/text.ts";
import { diagnoseTrace, type TraceRow, traceChains } from "../posterior/index.ts";
import { type ChartText, drawing } from "./charts.ts";
import { figure } from "./format.ts";

/** Panels of a chart; what is beyond them is in the trace. */
const MOST_PANELS = 12;
/** A chain's colour, the first two as in the other charts; chains beyond them take them again. */
const COLOURS = ["#2f7ed8", "#d9730d", "#3f9c5a", "#a64fb5", "#c43d4b", "#7a7f87", "#9a8120", "#1f9aa0"];

/** A panel for each of the first variables, with the effective sample size and split R̂ of the draws that it shows. */
export async function traceChart(rows: readonly TraceRow[], text: ChartText): Promise<string> {
  const { plot, Plot, compose } = await drawing();
  const diagnoses = diagnoseTrace(rows);
  const variables = [...traceChains(rows)];
  const panels = variables.slice(0, MOST_PANELS).map(([variable, chains], i) => {
    const last = i === Math.min(variables.length, MOST_PANELS) - 1;
    const { [variable]: judged } = diagnoses;
    const found = Number.isFinite(judged?.ess) ? judged : undefined; // what does not move is worth nothing
    const name = inert(variable);
    const rhat = found?.rhat === undefined ? "" : `, R-hat ${figure(found.rhat)}`;
    const points = chains.flatMap((values, chain) => values.map((value, draw) => ({ chain, draw, value })));
    const only = { ...{ x: "draw", y: "value" }, stroke: (d: { chain: number }) => COLOURS[d.chain % COLOURS.length] };
    return plot({
      height: last ? 128 : 104,
      marginTop: 24,
      marginBottom: last ? 40 : 16,
      x: { label: last ? "draw of its chain" : null, labelAnchor: "center", labelArrow: "none", ticks: last ? 8 : [] },
      y: { label: null, ticks: 3, grid: true, nice: true },
      color: { type: "identity" },
      marks: [
        Plot.line(points, { ...only, z: "chain", strokeWidth: 1.3 }),
        // A chain of one draw is no line.
        Plot.dot(points, { ...only, r: 1.4, title: (d) => `chain ${d.chain}, draw ${d.draw}: ${figure(d.value)}` }),
        Plot.text([found ? `${name}: ESS ${figure(found.ess)}${rhat}` : name], {
          ...{ frameAnchor: "top-left", fontWeight: "bold", fontSize: 11, dy: -5, lineAnchor: "bottom" },
        }),
      ],
    });
  });
  const more = variables.length - panels.length;
  const legend = `A colour is a chain. logit.s.k: of the training table's sentence s, class k, from 0.${more > 0 ? ` ${more} more in trace.json.` : ""}`;
  return compose({ ...text, lines: [...text.lines, legend] }, panels);
}
