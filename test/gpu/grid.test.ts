import { expect, test } from "vitest";
import { grid } from "../../src/gpu/index.ts";

test("grid covers n workgroups, wastes less than a row, and stays under 65,535 in each dimension", () => {
  for (const n of [1, 2, 65534, 65535, 65536, 65537, 131070, 131071, 1_000_003, 16_777_216, 65535 ** 2]) {
    const [x, y, z] = grid(n);
    expect(x * y * z, `grid(${n})`).toBeGreaterThanOrEqual(n);
    expect(x * (y - 1), `grid(${n}) wastes a row`).toBeLessThan(n);
    expect(Math.max(x, y, z)).toBeLessThanOrEqual(65535);
    expect([x, y, z].every((d) => Number.isInteger(d) && d >= 1)).toBe(true);
  }
});

test("nothing to do is still one workgroup, which the shader leaves at once", () => {
  expect(grid(0)).toEqual([1, 1, 1]);
});
