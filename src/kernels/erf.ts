/**
 * @file The error function in float64, for references: JavaScript has none. Below 2 the series whose terms are all
 * positive (Abramowitz and Stegun 7.1.6), so that nothing cancels; above it the continued fraction of erfc (7.1.14).
 */

/** 2/√π · ∫₀ˣ exp(−t²) dt, to about 1e-15. */
export function erf(x: number): number {
  const m = Math.abs(x);
  if (m <= 2) {
    // erf x = 2/√π · exp(−x²) · Σ 2ⁿ x²ⁿ⁺¹ / (1·3·5·…·(2n+1))
    let term = x;
    let sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
      term *= (2 * x * x) / (2 * n + 1);
      sum += term;
    }
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
  }
  return Math.sign(x) * (1 - (m > 6 ? 0 : erfcFraction(m)));
}

/** erfc x = exp(−x²)/√π · 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + …)))), from the far end inwards. */
function erfcFraction(x: number): number {
  let fraction = x;
  for (let n = 120; n >= 1; n--) fraction = x + n / 2 / fraction;
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / fraction;
}
