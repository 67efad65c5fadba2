/** @file What `npm start` says at its end of each method's distance from the truth. (.ci/run runs `npm start` itself.) */
import { expect, test } from "vitest";
import { type Distance, difference, divergences, verdict } from "../../examples/divergence.ts";
import { width } from "../../src/cli/format.ts";

test("divergences are the sentences' own, and 0 for the truth alone", () => {
  const p = [
    [0.25, 0.75],
    [0, 1],
  ];
  const q = [
    [0.5, 0.5],
    [0.2, 0.8],
  ];
  const kl = divergences(p, q.flat().map(Math.log));
  expect(kl[0]).toBeCloseTo(0.25 * Math.log(0.5) + 0.75 * Math.log(1.5), 12);
  expect(kl[1]).toBeCloseTo(-Math.log(0.8), 12); // 0 log 0 is 0
  expect([...divergences(p, p.flat().map(Math.log))]).toEqual([0, 0]);
});

test("a difference has the standard error of paired sentences", () => {
  const hard = [0, 10, 100]; // shared, so it cancels
  const { change, error } = difference(
    Float64Array.from(hard, (h, i) => h + [1, 2, 6][i]!),
    Float64Array.from(hard),
  );
  expect(change).toBeCloseTo(3, 12);
  expect(error).toBeCloseTo(Math.sqrt((4 + 1 + 9) / 2 / 3), 12);
});

/** 300 sentences, half of them `noise` above the mean KL and half below. */
function distance(name: string, kl: number, noise: number): Distance {
  return { name, kl: Float64Array.from({ length: 300 }, (_, i) => kl + (i % 2 === 0 ? noise : -noise)) };
}

test("the verdict names the nearest, and claims of averages only what the sentences show", () => {
  const map = distance("MAP", 0.12, 0);
  const averages = [distance("SGHMC on the head", 0.3, 0.5), distance("SWAG", 0.121, 0.1), distance("Laplace", 0.1, 0.01)]; // biome-ignore format: one line
  const lines = verdict(map, averages, [distance("MLE", 0.4, 0)]).split("\n");
  expect(lines.join(" ")).toContain("Nearest to the truth is Laplace, 0.100: it gives the right answer");
  expect(lines.join(" ")).toContain("e^−0.100 = 90 % of the probability");
  const said = lines.filter((line) => line.startsWith("    ")).map((line) => line.trim().replace(/ +/g, " "));
  expect(said).toEqual([
    "Laplace −0.020 ± 0.001 nearer",
    "SWAG +0.001 ± 0.006 no difference to be seen",
    "SGHMC on the head +0.180 ± 0.029 farther",
  ]);
  expect(verdict(map, averages, [distance("frozen", 0.09, 0)])).toContain("truth is frozen, 0.090");
  for (const line of lines) expect(width(line)).toBeLessThanOrEqual(80);
});
