/** @file The co-occurrence table: MLE is the relative counts, MAP what Newton's method in float64 finds. */
import { expect, test } from "vitest";
import { cooccurrence, DIARY, pairsOf } from "../../examples/cooccurrence.ts";
import { Engine } from "../../src/autograd/index.ts";
import { expectClose, gpuForTests } from "../kernels/harness.ts";
import { solve } from "../train/toys.ts";

const gpu = gpuForTests();
const pairs = pairsOf(DIARY);
const V = pairs.words.length;

/** counts[r][k]: how often k follows r. */
function countsOf(): number[][] {
  const counts = pairs.words.map(() => new Array<number>(V).fill(0));
  for (const [i, r] of pairs.left.entries()) counts[r]![pairs.right[i]!]! += 1;
  return counts;
}

function softmax(z: readonly number[]): number[] {
  const e = z.map(Math.exp);
  const total = e.reduce((a, b) => a + b);
  return e.map((v) => v / total);
}

/** argmax of Σ_k c_k log softmax(θ)_k − ½τ‖θ‖², one row: gradient c − n·p − τθ, Hessian −n(diag p − ppᵀ) − τI. */
function newton(c: readonly number[], tau: number): { theta: number[]; logJoint: number } {
  const n = c.reduce((a, b) => a + b);
  let theta = c.map(() => 0);
  for (let i = 0; i < 50; i++) {
    const p = softmax(theta);
    const gradient = c.map((count, k) => count - n * p[k]! - tau * theta[k]!);
    const H = p.map((pr, r) => p.map((pk, k) => (r === k ? n * pr + tau : 0) - n * pr * pk));
    theta = solve(H, gradient).map((step, k) => theta[k]! + step);
  }
  const p = softmax(theta);
  const logJoint = c.reduce((sum, count, k) => sum + count * Math.log(p[k]!) - 0.5 * tau * theta[k]! ** 2, 0);
  return { theta, logJoint };
}

test("every pair occurs, so the maximum of the likelihood is finite", () => {
  expect(Math.min(...countsOf().flat())).toBeGreaterThan(0);
});

test("MLE gives the relative counts", async () => {
  const { probabilities } = await cooccurrence(new Engine(gpu()), pairs, 0);
  const relative = countsOf().flatMap((row) => row.map((count) => count / row.reduce((a, b) => a + b)));
  // The slowest row has 5 of 45 pairs and closes in by a factor .95 a step; what is left is float32's rounding.
  expectClose(probabilities, relative, { rtol: 0, atol: 1e-5 });
});

for (const tau of [0.5, 2, 50]) {
  test(`MAP with τ = ${tau} is Newton's solution, between the counts and the uniform distribution`, async () => {
    const { probabilities, logJoint } = await cooccurrence(new Engine(gpu()), pairs, tau);
    const rows = countsOf().map((row) => newton(row, tau));
    expectClose(
      probabilities,
      rows.flatMap(({ theta }) => softmax(theta)),
      { rtol: 0, atol: 1e-5 },
    );
    // Σ over rows: the prior and the likelihood both are sums over rows.
    expect(Math.abs(logJoint / rows.reduce((sum, row) => sum + row.logJoint, 0) - 1)).toBeLessThan(1e-5);
    for (const [r, row] of countsOf().entries()) {
      const n = row.reduce((a, b) => a + b);
      const fromUniform = (p: (k: number) => number) => Math.hypot(...row.map((_, k) => p(k) - 1 / V));
      expect(fromUniform((k) => probabilities[r * V + k]!)).toBeLessThan(fromUniform((k) => row[k]! / n));
    }
  });
}
