/** @file Charts: what is in the SVG and what is not; that text in it stays text; that only who draws loads what draws. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { coverageChart, reliabilityChart, uncertaintyChart } from "../../src/cli/charts.ts";
import { figure } from "../../src/cli/format.ts";
import { traceChart } from "../../src/cli/trace-chart.ts";
import { reliability, selective } from "../../src/posterior/index.ts";
import { elements, textsIn } from "./svg.ts";

const HOSTILE = `</text><script>alert(1)</script> & "runs" \u202e\u001b[31m ]]>`;
const TEXT = { title: HOSTILE, lines: [HOSTILE, "n 7, members 3"] };
const TOP = {
  confidence: Float64Array.of(0.55, 0.58, 0.99, 0.97, 0.96, 1, 1),
  correct: Uint8Array.of(0, 1, 1, 1, 1, 1, 0),
};

test("reliability: a dot and a whisker for each bin that has texts, their counts, and nothing for the empty ones", async () => {
  const svg = await reliabilityChart(reliability(TOP), TEXT);
  const found = elements(svg);
  const dots = found.filter(({ name }) => name === "circle").map(({ attributes }) => attributes);
  expect(dots).toHaveLength(2);
  for (const { cx = "", cy = "" } of dots) {
    const whiskers = found.filter(({ name, attributes: { x1, x2 } }) => name === "line" && x1 === cx && x2 === cx);
    expect(whiskers).toHaveLength(1);
    const ends = [Number(whiskers[0]?.attributes.y1), Number(whiskers[0]?.attributes.y2)];
    expect(Math.min(...ends) < Number(cy) && Number(cy) < Math.max(...ends)).toBe(true);
  }
  expect(found.filter(({ name, attributes }) => name === "rect" && attributes.class === undefined)).toHaveLength(2);
  expect(textsIn(svg)).toEqual(expect.arrayContaining(["2", "5", "confidence: probability of the predicted label"]));
  expect(textsIn(svg).join(" ")).toContain("accuracy: share of right answers");
  // (.55 + .58)/2 sure, half of two right: Wilson's interval of 1 of 2.
  expect(textsIn(svg)).toContain("confidence 0.565, accuracy 0.500 (95 %: 0.095 to 0.905), 2 texts");
  expect(svg).not.toMatch(/NaN|Infinity|undefined/);
});

test("accuracy against coverage: marked at the quarters, with a curve, a band and labelled axes", async () => {
  const svg = await coverageChart(selective(TOP), TEXT);
  // The two surest tie: the first point answers both.
  expect(textsIn(svg)).toContain("coverage 0.286, accuracy 0.500, confidence from 1.000");
  expect(textsIn(svg)).toContain("coverage 1.000, accuracy 0.714, confidence from 0.550");
  expect(textsIn(svg).join(" ")).toContain("coverage: share of texts answered, the surest first");
  expect(svg).not.toMatch(/NaN|Infinity|undefined/);
  // Many points are thinned: the file stays small.
  const many = Float64Array.from({ length: 20_000 }, (_, i) => 0.5 + i / 40_000);
  const long = await coverageChart(selective({ confidence: many, correct: new Uint8Array(20_000).fill(1) }), TEXT);
  expect(long.length).toBeLessThan(60_000);
});

test("uncertainty: two histograms with their n, all zeros too", async () => {
  const what = "epistemic uncertainty";
  const inDomain = Float64Array.of(0, 0.1, 0.1, 0.3);
  const svg = await uncertaintyChart({ what, inDomain, outOfDomain: Float64Array.of(0.3, 0.6) }, TEXT);
  expect(textsIn(svg)).toEqual(
    expect.arrayContaining([
      "in domain: 4 texts, median 0.100",
      "out of domain: 2 texts, median 0.450",
      `${what}, nats`,
      "2 texts from 0.100 to 0.120 nats",
      "1 text from 0.580 to 0.600 nats",
    ]),
  );
  const zeros = await uncertaintyChart({ what, inDomain: new Float64Array(3), outOfDomain: new Float64Array(2) }, TEXT);
  expect(zeros).not.toMatch(/NaN|Infinity|undefined/);
});

test("a trace: a line for each chain in a panel for each of the first twelve variables", async () => {
  const variables = Array.from({ length: 14 }, (_, i) => `v${i}`);
  const rows = [0, 1, 2].flatMap((chain) =>
    [0, 1, 2, 3, 4].flatMap((draw) =>
      variables.map((variable, i) => ({ chain, draw, variable, value: Math.sin(chain + 2 * draw + i) })),
    ),
  );
  const svg = await traceChart(rows, TEXT);
  const found = elements(svg);
  expect(found.filter(({ name, attributes: { stroke = "" } }) => name === "path" && /^#/.test(stroke))).toHaveLength(
    12 * 3,
  );
  expect(found.filter(({ name }) => name === "circle")).toHaveLength(12 * 15);
  expect(textsIn(svg).filter((text) => /^v\d+: ESS \S+, R-hat \S+$/.test(text))).toHaveLength(12);
  expect(textsIn(svg).join(" ")).toContain("2 more in trace.json");
  expect(textsIn(svg)).toContain(`chain 2, draw 4: ${figure(Math.sin(10))}`);
  // A single draw, and a variable that does not move.
  const still = [0, 1].flatMap((chain) => [0, 1, 2, 3].map((draw) => ({ chain, draw, variable: "still", value: 2 })));
  for (const few of [rows.slice(0, 1), still])
    expect(await traceChart(few, TEXT)).not.toMatch(/NaN|Infinity|undefined/);
});

test("text is inert (P8), and every chart is well-formed, light and dark", async () => {
  for (const svg of [
    await reliabilityChart(reliability(TOP), TEXT),
    await coverageChart(selective(TOP), TEXT),
    await uncertaintyChart({ what: "x", inDomain: Float64Array.of(1), outOfDomain: Float64Array.of(2) }, TEXT),
    await traceChart([{ chain: 0, draw: 0, variable: HOSTILE, value: 1 }], TEXT),
  ]) {
    const found = elements(svg);
    expect(found[0]).toMatchObject({ name: "svg", attributes: { xmlns: "http://www.w3.org/2000/svg", width: "640" } });
    const allowed = "svg title desc style rect text g path line circle".split(" ");
    expect(found.map(({ name }) => name).filter((name) => !allowed.includes(name))).toEqual([]);
    expect(found.flatMap(({ attributes }) => Object.keys(attributes)).filter((key) => /^on|href/i.test(key))).toEqual(
      [],
    );
    expect(textsIn(svg).join(" ")).toContain('</text><script>alert(1)</script> & "runs" \\u{202e}\\u{1b}[31m ]]>');
    expect(svg).not.toMatch(/[\p{Cf}\p{Co}\u2028\u2029]|(?!\n)\p{Cc}/u);
    expect(found.filter(({ attributes }) => "id" in attributes)).toEqual([]);
    expect(svg).toContain("prefers-color-scheme:dark");
  }
});

test("what draws is loaded by who draws: no file of src imports it when it is loaded itself", () => {
  const src = fileURLToPath(new URL("../../src", import.meta.url));
  const files = readdirSync(src, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".ts"));
  const early = files.filter((file) =>
    /^(import|export)\b[^;(]*["'](@observablehq\/plot|linkedom)["']/m.test(readFileSync(join(src, file), "utf8")),
  );
  expect(early).toEqual([]);
});
