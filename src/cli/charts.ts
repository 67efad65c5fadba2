/**
 * @file Charts as SVG text: reliability, accuracy against coverage, and uncertainty in and out of the domain. What they
 * show is computed elsewhere (`posterior/calibration.ts`, `posterior/ranking.ts`); here it is drawn.
 *
 * Drawn by Observable Plot (ISC; marks and scales, axes and their labels) on linkedom (ISC; the few DOM calls it makes):
 * 62 packages of 16 MB, no browser, no native code, and its ink is `currentColor`, so that one file serves light and
 * dark pages. Vega draws without a DOM, but is 79 packages of 25 MB and evaluates expressions by `new Function`; ECharts
 * is 67 MB. Both are loaded when the first chart is drawn (.6 s): a run that draws none never pays for them.
 *
 * Names of files may stand in a chart. They enter as text nodes alone, made inert, so that none becomes markup (P8).
 */
import { inert } from "../data/text.ts";
import type { ReliabilityBin, Selective } from "../posterior/index.ts";
import { cut } from "./format.ts";

type Plot = typeof import("@observablehq/plot");
type PlotOptions = import("@observablehq/plot").PlotOptions;

/** What a chart says above itself: what was measured on what, then n, members and figures, a line each. */
export interface ChartText {
  title: string;
  lines: readonly string[];
}

const WIDTH = 640;
const MARGIN = { marginLeft: 64, marginRight: 24 };
/** Two colours that stand out from white and from near-black, and from each other for colour-blind eyes too. */
const [OWN, OTHER] = ["#2f7ed8", "#d9730d"];
const STYLE = `text{font-family:system-ui,sans-serif}
svg{color:#1f2328}.ground{fill:#fff}
@media(prefers-color-scheme:dark){svg{color:#e6edf3}.ground{fill:#0d1117}}`;
/** Most points of a curve: more would not show. */
const MOST_POINTS = 400;
/** Half a cap of a whisker, as a share of the axis. */
const CAP = 0.008;
/** Bars of a histogram. */
const BARS = 30;

const share = (x: number) => x.toFixed(3);
/** "1 text", "2 texts". */
const texts = (n: number) => `${n} text${n === 1 ? "" : "s"}`;

/** Accuracy and its interval by bin of confidence, the gap to what was claimed, and how many texts each bin has. */
export async function reliabilityChart(bins: readonly ReliabilityBin[], text: ChartText): Promise<string> {
  const { plot, Plot, compose } = await drawing();
  const edges = [0, ...bins.map(({ to }) => to)];
  const filled = bins.flatMap(({ from, to, count, found }) => (found ? [{ from, to, count, ...found }] : []));
  const x = { domain: [0, 1], label: null, ticks: edges.filter((_, i) => i % 3 === 0), tickFormat: ".1f" };
  const title = (d: (typeof filled)[number]) =>
    `confidence ${share(d.confidence)}, accuracy ${share(d.accuracy)} (95 %: ${share(d.interval[0])} to ${share(d.interval[1])}), ${texts(d.count)}`;
  const main = plot({
    height: 380,
    marginBottom: 24,
    x,
    y: { domain: [0, 1], label: "accuracy: share of right answers", grid: true },
    marks: [
      Plot.ruleX(edges, { strokeOpacity: 0.06 }),
      Plot.link([0], { x1: 0, y1: 0, x2: 1, y2: 1, strokeDasharray: "4 4", strokeOpacity: 0.6 }),
      Plot.text(["as sure as it should be"], { x: 0.22, y: 0.22, rotate: -32, dy: -8, fillOpacity: 0.7 }),
      Plot.link(filled, {
        ...{ x1: "confidence", x2: "confidence", y1: "confidence", y2: "accuracy" },
        ...{ stroke: OTHER, strokeWidth: 7, strokeOpacity: 0.55, strokeLinecap: "butt" },
      }),
      Plot.ruleX(filled, {
        ...{ x: "confidence", y1: (d) => d.interval[0], y2: (d) => d.interval[1] },
        ...{ stroke: OWN, strokeWidth: 1.5 },
      }),
      // The whiskers' caps. Plot's own markers carry ids, which two charts on one page would share.
      ...[0, 1].map((end) =>
        Plot.link(filled, {
          ...{ x1: (d) => d.confidence - CAP, x2: (d) => d.confidence + CAP, y: (d) => d.interval[end] },
          ...{ stroke: OWN, strokeWidth: 1.5 },
        }),
      ),
      Plot.dot(filled, { x: "confidence", y: "accuracy", r: 4.5, fill: OWN, title }),
    ],
  });
  const counts = plot({
    height: 130,
    marginTop: 18,
    marginBottom: 40,
    x: { ...x, label: "confidence: probability of the predicted label", labelAnchor: "center", labelArrow: "none" },
    y: { label: "texts", ticks: 3, labelArrow: "none" },
    marks: [
      Plot.rectY(filled, {
        x1: "from",
        x2: "to",
        y: "count",
        fill: OWN,
        fillOpacity: 0.5,
        insetLeft: 1,
        insetRight: 1,
      }),
      Plot.text(filled, { x: (d) => (d.from + d.to) / 2, y: "count", text: (d) => String(d.count), dy: -7 }),
      Plot.ruleY([0]),
    ],
  });
  const legend = "Dot: accuracy. Whisker: its 95 % interval (Wilson). Bar: gap to the mean confidence.";
  return compose({ ...text, lines: [...text.lines, legend] }, [main, counts]);
}

/** Accuracy among the surest, as more and more are answered, with its 95 % interval. */
export async function coverageChart({ points }: Selective, text: ChartText): Promise<string> {
  const { plot, Plot, compose } = await drawing();
  const last = points.at(-1);
  if (last === undefined) throw new RangeError("coverageChart: no points");
  const step = Math.ceil(points.length / MOST_POINTS);
  const shown = points.filter((_, i) => (points.length - 1 - i) % step === 0);
  const marked = [0.25, 0.5, 0.75, 1].flatMap((c) => points.find(({ coverage }) => coverage >= c) ?? []);
  // The first few answers have an interval down to 0: what matters begins where a tenth is answered.
  const from = shown.filter(({ coverage }) => coverage >= 0.1).map(({ accuracy, interval }) => [accuracy, interval[0]]);
  const bottom = Math.max(0, Math.floor(Math.min(...from.flat()) * 10) / 10);
  const above = (y: number) => Math.max(bottom, y);
  const main = plot({
    height: 400,
    marginBottom: 44,
    x: {
      ...{ domain: [0, 1], percent: false, labelAnchor: "center", labelArrow: "none", ticks: 11, tickFormat: ".1f" },
      label: "coverage: share of texts answered, the surest first",
    },
    y: { domain: [bottom, 1], grid: true, ticks: 8, label: "accuracy: share of right answers among them" },
    marks: [
      Plot.areaY(shown, {
        ...{ x: "coverage", y1: (d) => above(d.interval[0]), y2: (d) => above(d.interval[1]) },
        ...{ fill: OWN, fillOpacity: 0.18 },
      }),
      Plot.ruleY([last.accuracy], { strokeDasharray: "4 4", strokeOpacity: 0.6 }),
      Plot.line(shown, { x: "coverage", y: (d) => above(d.accuracy), stroke: OWN, strokeWidth: 2 }),
      Plot.dot(marked, {
        ...{ x: "coverage", y: (d) => above(d.accuracy), r: 4.5, fill: OWN },
        title: (d) =>
          `coverage ${share(d.coverage)}, accuracy ${share(d.accuracy)}, confidence from ${share(d.threshold)}`,
      }),
      Plot.text(marked, {
        ...{ x: "coverage", y: (d) => above(d.accuracy), text: (d) => share(d.accuracy) },
        ...{ textAnchor: "end", dx: -3, dy: 15, fontWeight: "bold" },
      }),
    ],
  });
  const legend = "Band: 95 % interval (Wilson). Dashed: where confidence says nothing of being right.";
  return compose({ ...text, lines: [...text.lines, legend] }, [main]);
}

export interface Uncertainties {
  /** What is drawn, in nats: "epistemic uncertainty" or "total uncertainty". */
  what: string;
  /** [n], ≥ 0. */
  inDomain: Float64Array;
  outOfDomain: Float64Array;
}

/** Histograms of an uncertainty in nats over the same bars, one's own texts above those of another domain. */
export async function uncertaintyChart(
  { what, inDomain, outOfDomain }: Uncertainties,
  text: ChartText,
): Promise<string> {
  const { plot, Plot, compose } = await drawing();
  const most = [inDomain, outOfDomain].reduce((top, values) => values.reduce((a, b) => Math.max(a, b), top), 0) || 1;
  const rows = [inDomain, outOfDomain].map((values) => histogram(values, most));
  const top = Math.max(...rows.flatMap((bars) => bars.map((bar) => bar.share)));
  const panels = rows.map((bars, i) => {
    const [values, color, name] = i === 0 ? [inDomain, OWN, "in domain"] : [outOfDomain, OTHER, "out of domain"];
    return plot({
      height: 190 + 20 * i,
      marginTop: 26,
      marginBottom: 24 + 20 * i,
      x: {
        domain: [0, most],
        label: i === 0 ? null : `${what}, nats`,
        labelAnchor: "center",
        labelArrow: "none",
      },
      y: { domain: [0, top], grid: true, label: "share of texts", ticks: 4 },
      marks: [
        Plot.rectY(bars, {
          ...{ x1: "from", x2: "to", y: "share", fill: color, fillOpacity: 0.7, insetLeft: 0.5, insetRight: 0.5 },
          title: (d) => `${texts(d.count)} from ${d.from.toPrecision(3)} to ${d.to.toPrecision(3)} nats`,
        }),
        Plot.ruleX([median(values)], { stroke: color, strokeWidth: 1.5, strokeDasharray: "4 3" }),
        Plot.text([`${name}: ${texts(values.length)}, median ${median(values).toPrecision(3)}`], {
          ...{ frameAnchor: "top-right", fill: color, fontWeight: "bold", fontSize: 12, dy: -2, lineAnchor: "bottom" },
        }),
        Plot.ruleY([0]),
      ],
    });
  });
  return compose({ ...text, lines: [...text.lines, "Dashed: median. Bars: the same widths above and below."] }, panels);
}

/** Bars of equal width over 0 … most; `most` falls into the last. Empty ones are left out. */
function histogram(values: Float64Array, most: number) {
  const counts = new Uint32Array(BARS);
  for (const value of values) counts[Math.min(BARS - 1, Math.floor((value / most) * BARS))]! += 1;
  return Array.from(counts, (count, i) => ({
    from: (i / BARS) * most,
    to: ((i + 1) / BARS) * most,
    count,
    share: count / values.length,
  })).filter(({ count }) => count > 0);
}

function median(values: Float64Array): number {
  const sorted = values.slice().sort();
  const half = (sorted.length - 1) / 2;
  return ((sorted[Math.floor(half)] ?? 0) + (sorted[Math.ceil(half)] ?? 0)) / 2;
}

export interface Drawing {
  Plot: Plot;
  /** A panel; its height is in its options. */
  plot(options: PlotOptions): Element;
  /** Panels below one another, under a heading, as one SVG document. */
  compose(text: ChartText, panels: readonly Element[]): string;
}

/** The libraries, and an empty document of their own for each chart; for charts of other subjects in the same hand, too. */
export async function drawing(): Promise<Drawing> {
  const [Plot, { parseHTML }] = await Promise.all([import("@observablehq/plot"), import("linkedom")]);
  const { document } = parseHTML("<html></html>");
  const element = (name: string, attributes: Record<string, string | number>, text?: string) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
    if (text !== undefined) made.textContent = inert(text);
    return made;
  };
  return {
    Plot,
    plot: (options) => Plot.plot({ ...MARGIN, width: WIDTH, document, ...options }),
    compose({ title, lines }, panels) {
      const svg = element("svg", { xmlns: "http://www.w3.org/2000/svg", role: "img", fill: "currentColor" });
      svg.append(element("title", {}, title), element("desc", {}, lines.join(" ")));
      const style = element("style", {});
      style.textContent = STYLE; // constant, and its line ends stay
      svg.append(style, element("rect", { class: "ground", width: "100%", height: "100%" }));
      svg.append(element("text", { x: 16, y: 28, "font-size": 16, "font-weight": "bold" }, cut(title, 76)));
      let y = 34;
      for (const line of lines) {
        y += 16;
        svg.append(element("text", { x: 16, y, "font-size": 11.5, "fill-opacity": 0.8 }, cut(line, 100)));
      }
      y += 12;
      for (const panel of panels) {
        panel.querySelector("style")?.remove(); // Plot's own is for pages
        panel.setAttribute("y", String(y));
        svg.append(panel);
        y += Number(panel.getAttribute("height"));
      }
      for (const [key, value] of Object.entries({ width: WIDTH, height: y, viewBox: `0 0 ${WIDTH} ${y}` })) {
        svg.setAttribute(key, String(value));
      }
      return `${svg.outerHTML}\n`;
    },
  };
}
