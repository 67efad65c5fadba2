import { describe, expect, it } from "vitest";
import { schedule } from "../../src/train/schedule.ts";

describe("schedule", () => {
  it("is the reference recipe's linear warm-up and decay", () => {
    // lr_factor of the reference: warm = max(1, round(.1·steps)); (step+1)/warm, then (steps−step)/(steps−warm)
    const f = schedule({}, 80);
    expect([0, 3, 7, 8, 44, 79].map(f)).toEqual([1 / 8, 4 / 8, 1, 1, 36 / 72, 1 / 72]);
  });

  it("rounds the warm-up half to even, warms up at least one step, and not at all for 0", () => {
    expect(schedule({ warmup: 0.1 }, 25)(1)).toBe(1); // round(2.5) = 2
    expect(schedule({ warmup: 0.1 }, 35)(2)).toBe(3 / 4); // round(3.5) = 4
    expect(schedule({}, 1)(0)).toBe(1);
    expect(schedule({ warmup: 0 }, 4)(0)).toBe(1);
    expect(schedule({ warmup: 1 }, 4)(3)).toBe(1);
  });

  it("knows cosine and constant", () => {
    const cosine = schedule({ schedule: "cosine", warmup: 0 }, 4);
    expect(cosine(0)).toBeCloseTo(1, 12);
    expect(cosine(1)).toBeCloseTo(0.5 * (1 + Math.cos(Math.PI / 4)), 12);
    expect(cosine(2)).toBeCloseTo(0.5, 12);
    const constant = schedule({ schedule: "constant", warmup: 0.5 }, 8);
    expect([0, 1, 3, 4, 7].map(constant)).toEqual([0.25, 0.5, 1, 1, 1]);
  });

  it("refuses what is no schedule and no share", () => {
    expect(() => schedule({ schedule: "step" as "linear" }, 4)).toThrow(/schedule: unknown \(found step/);
    expect(() => schedule({ warmup: 1.5 }, 4)).toThrow(/warmup.*found 1.5/);
    expect(() => schedule({ warmup: Number.NaN }, 4)).toThrow(/warmup.*found NaN/);
  });
});
