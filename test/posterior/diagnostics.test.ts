/** @file Effective sample size and R̂ on series whose answers are known. */
import { describe, expect, test } from "vitest";
import { diagnose, effectiveSampleSize, meanSampleSize, rhat, splitRhat } from "../../src/posterior/diagnostics.ts";
import { Stream } from "../../src/random.ts";

/** x ← φx + √(1 − φ²)z: variance 1, autocorrelation φᵗ. */
function autoregressive(seed: number, n: number, phi: number, mean = 0, sd = 1): number[] {
  const stream = new Stream(seed, "ar");
  let x = stream.normal();
  return Array.from({ length: n }, () => {
    x = phi * x + Math.sqrt(1 - phi * phi) * stream.normal();
    return mean + sd * x;
  });
}
const chains = (phi: number, n = 2000, m = 4) => Array.from({ length: m }, (_, c) => autoregressive(c, n, phi));

describe("effective sample size", () => {
  test.each([0, 0.5, 0.9])("of an autoregression with φ = %d is n(1 − φ)/(1 + φ)", (phi) => {
    const expected = (8000 * (1 - phi)) / (1 + phi);
    expect(Math.abs(effectiveSampleSize(chains(phi)) / expected - 1)).toBeLessThan(0.2);
  });

  test("of an antithetic chain is more than its draws, and bounded", () => {
    const ess = effectiveSampleSize(chains(-0.6));
    expect(ess).toBeGreaterThan(2 * 8000);
    expect(ess).toBeLessThanOrEqual(8000 * Math.log10(8000));
    // Few draws that alternate: their autocorrelations sum to less than nothing.
    expect(effectiveSampleSize([[1, -1, 1.1, -1.2]])).toBeCloseTo(4 * Math.log10(4), 12);
  });

  test("does not change under a monotone map of the draws", () => {
    const draws = chains(0.5, 200);
    expect(effectiveSampleSize(draws.map((c) => c.map((x) => Math.exp(3 * x))))).toBe(effectiveSampleSize(draws));
  });

  test("of the mean is of the values: skewed ones forget their past sooner, and its error is theirs", () => {
    const skewed = chains(0.9, 4000).map((chain) => chain.map((x) => Math.exp(x)));
    // Autocorrelations of exp(x): (exp(φᵗ) − 1)/(e − 1).
    let tau = 1;
    for (let t = 1; t < 400; t++) tau += (2 * Math.expm1(0.9 ** t)) / Math.expm1(1);
    expect(Math.abs((meanSampleSize(skewed) * tau) / 16_000 - 1)).toBeLessThan(0.2);
    expect(meanSampleSize(skewed)).toBeGreaterThan(1.15 * effectiveSampleSize(skewed));
    const { sd, mcse, ess } = diagnose(skewed);
    expect(mcse).toBeCloseTo(sd / Math.sqrt(meanSampleSize(skewed)), 12);
    expect(ess).toBe(effectiveSampleSize(skewed));
  });

  test("of chains that disagree is small, and of constants not a number", () => {
    const draws = chains(0, 500).map((chain, c) => chain.map((x) => x + 5 * c));
    expect(effectiveSampleSize(draws)).toBeLessThan(20);
    expect(effectiveSampleSize([Array(8).fill(1), Array(8).fill(1)])).toBeNaN();
  });
});

describe("R-hat", () => {
  test("is √((n−1)/n + B/(nW)): two chains by hand", () => {
    // Means 2 and 5, variances 1 and 1, n = 3: B/n = 4.5, so R̂ = √(2/3 + 4.5).
    expect(rhat([[1, 2, 3], [4, 5, 6]])).toBeCloseTo(Math.sqrt(2 / 3 + 4.5), 12); // biome-ignore format: two chains
  });

  test("is 1 where chains agree; not where one is elsewhere, one is wider, or all drift alike", () => {
    expect(splitRhat(chains(0))).toBeLessThan(1.005);
    const moved = chains(0).map((chain, c) => (c === 0 ? chain.map((x) => x + 1) : chain));
    expect(splitRhat(moved)).toBeGreaterThan(1.05);
    // The same means: only the folded draws tell.
    const wide = chains(0).map((chain, c) => (c === 0 ? chain.map((x) => 4 * x) : chain));
    expect(splitRhat(wide)).toBeGreaterThan(1.05);
    const drift = chains(0).map((chain) => chain.map((x, i) => x + i / 1000));
    expect(splitRhat(drift)).toBeGreaterThan(1.05);
  });

  test("is refused for one chain", () => {
    expect(() => splitRhat([autoregressive(1, 100, 0)])).toThrow("R-hat: one chain");
    expect(diagnose([autoregressive(1, 100, 0)]).rhat).toBeUndefined();
  });
});

test("a diagnosis has mean, spread and the mean's error", () => {
  const draws = Array.from({ length: 4 }, (_, c) => autoregressive(10 + c, 1000, 0.5, 7, 2));
  const { mean, sd, mcse, rhat } = diagnose(draws);
  expect(Math.abs(mean - 7)).toBeLessThan(4 * mcse);
  expect(sd).toBeCloseTo(2, 0);
  expect(mcse).toBeCloseTo(sd / Math.sqrt(meanSampleSize(draws)), 12);
  expect(rhat).toBeLessThan(1.02);
  expect(() => diagnose([[1, 2, 3]])).toThrow("one length ≥ 4");
  expect(() => diagnose([[1, 2, 3, 4], [1, 2, 3]])).toThrow("chains of 4, 3 draws"); // biome-ignore format: two chains
});
