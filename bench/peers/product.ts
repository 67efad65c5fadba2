/** @file The float64 product of the reference: batches of NN, NT or TN, in loops that run along rows. */
import type { Layout } from "./peer.ts";

interface Sizes {
  M: number;
  N: number;
  K: number;
}

/** How many products, and their sizes. */
export function batches(a: readonly number[], b: readonly number[], layout: Layout): [number, Sizes] {
  const [a0 = 1, a1 = 1] = a.slice(-2);
  const [b0 = 1, b1 = 1] = b.slice(-2);
  const [M, K] = layout === "TN" ? [a1, a0] : [a0, a1];
  const [N, K2] = layout === "NT" ? [b0, b1] : [b1, b0];
  if (K !== K2) throw new RangeError(`product of [${a}] and [${b}], ${layout}`);
  return [a.slice(0, -2).reduce((x, y) => x * y, 1), { M, N, K }];
}

export function product(a: Float64Array, b: Float64Array, layout: Layout, { M, N, K }: Sizes, g = 1): Float64Array {
  const c = new Float64Array(g * M * N);
  for (let i = 0; i < g; i++) {
    const x = a.subarray(i * M * K, (i + 1) * M * K);
    const y = b.subarray(i * K * N, (i + 1) * K * N);
    rows(
      c.subarray(i * M * N, (i + 1) * M * N),
      layout === "TN" ? transposed(x, K, M) : x,
      layout === "NT" ? transposed(y, N, K) : y,
      { M, N, K },
    );
  }
  return c;
}

function transposed(a: Float64Array, rows: number, columns: number): Float64Array {
  const t = new Float64Array(a.length);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) t[j * rows + i] = a[i * columns + j] as number;
  return t;
}

/** c += a·b, four rows of b at a time. */
function rows(c: Float64Array, a: Float64Array, b: Float64Array, { M, N, K }: Sizes): void {
  const whole = K - (K % 4);
  for (let i = 0; i < M; i++) {
    const to = i * N;
    for (let k = 0; k < whole; k += 4) {
      const at = i * K + k;
      const [a0, a1, a2, a3] = [a[at]!, a[at + 1]!, a[at + 2]!, a[at + 3]!];
      const [b0, b1, b2, b3] = [k * N, (k + 1) * N, (k + 2) * N, (k + 3) * N];
      for (let j = 0; j < N; j++) {
        c[to + j]! += a0 * b[b0 + j]! + a1 * b[b1 + j]! + a2 * b[b2 + j]! + a3 * b[b3 + j]!;
      }
    }
    for (let k = whole; k < K; k++) {
      const x = a[i * K + k]!;
      for (let j = 0; j < N; j++) c[to + j]! += x * b[k * N + j]!;
    }
  }
}
