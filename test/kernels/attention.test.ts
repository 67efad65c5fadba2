import { describe, expect, test } from "vitest";
import { fromHost, type NdArray } from "../../src/kernels/array.ts";
import {
  type AttentionFamily,
  type AttentionOptions,
  attention,
  attentionBackward,
  attentionMask,
  attentionPlan,
  attentionReference,
} from "../../src/kernels/attention.ts";
import { streamKey } from "../../src/random.ts";
import { expectClose, gpuForTests, numericGradient, randn, run } from "./harness.ts";

const gpu = gpuForTests();

function startsOf(lengths: readonly number[]): Uint32Array {
  let n = 0;
  return Uint32Array.from([0, ...lengths.map((t) => (n += t))]);
}

function forward(
  qkv: Float32Array,
  lengths: readonly number[],
  options: AttentionOptions,
  family?: AttentionFamily,
): Promise<Float32Array[]> {
  const g = gpu();
  const starts = startsOf(lengths);
  return run(g, () => {
    const { y, lse } = attention(g, input(qkv, starts), attentionPlan(g, starts, family), options);
    return [y, lse];
  });
}

async function backward(
  qkv: Float32Array,
  dy: Float32Array,
  lengths: readonly number[],
  options: AttentionOptions,
  family?: AttentionFamily,
): Promise<Float32Array> {
  const g = gpu();
  const starts = startsOf(lengths);
  const [dqkv] = await run(g, () => {
    const x = input(qkv, starts);
    const plan = attentionPlan(g, starts, family);
    const { y, lse } = attention(g, x, plan, options);
    return [attentionBackward(g, x, y, lse, fromHost(g, dy, y.shape), plan, options)];
  });
  return dqkv ?? new Float32Array();
}

function input(qkv: Float32Array, starts: Uint32Array): NdArray {
  const n = starts.at(-1) ?? 0;
  return fromHost(gpu(), qkv, [n, qkv.length / n]);
}

/** heads, head size, lengths: every residue of eight rows, one, primes, an empty sequence, several tiles of 32, large heads. */
const CASES: readonly (readonly [number, number, readonly number[]])[] = [
  [1, 4, [1]],
  [4, 16, [5, 6, 7, 8, 9, 1, 2, 3, 4]],
  [2, 16, [512]],
  [12, 32, [13, 5, 64, 17]],
  [5, 32, [257]],
  [3, 20, [11, 0, 1]],
  [1, 64, [65]],
  [1, 128, [9, 3]],
  [2, 48, [1, 10]], // the second slice of a lane's vec4s is half empty
  [1, 100, [11]],
  [2, 80, [9, 33]], // in chunks of 32 channels and parts of 64: the last chunk half empty, and none after it
];
const FAMILIES = ["tiled", "subgroup", "unrolled", "plain"] as const;
const ALL = CASES.flatMap((sizes) => FAMILIES.map((family) => [family, ...sizes] as const));

/** Skips what would be the plain family under another name. */
function needs(family: AttentionFamily, d: number, context: { skip(reason: string): void }): void {
  const { adapter } = gpu();
  const lanes = { subgroup: [4, 8], unrolled: [4], tiled: undefined, plain: undefined }[family];
  if (lanes && !lanes.includes(adapter.subgroupSize))
    context.skip(`this adapter (${adapter.driver}) cannot run ${family}`);
  if (family === "unrolled" && d % 16 !== 0) context.skip("heads of the unrolled family are multiples of 16");
  if (family === "tiled" && d === 100) context.skip("in chunks and parts as 80 is, and seconds to compile");
  if (lanes && d > 64) context.skip("larger heads are the plain family's");
}

/** Central differences in float64 along a direction each for q, k and v, so that an error in one is not hidden by the others. */
function differencesOf(heads: number, d: number, lengths: readonly number[]) {
  const starts = startsOf(lengths);
  const [n, c] = [starts.at(-1) ?? 0, heads * d];
  const qkv = randn(5, n * 3 * c);
  const dy = randn(6, n * c);
  const parts = [0, 1, 2].map((part) => {
    const direction = randn(7 + part, qkv.length).map((z, i) => (Math.floor(i / c) % 3 === part ? z : 0));
    const along = (h: number) => {
      const at = Float64Array.from(qkv, (x, i) => x + h * (direction[i] ?? 0));
      return attentionReference(at, starts, { heads }).reduce((sum, v, i) => sum + v * (dy[i] ?? 0), 0);
    };
    return { direction, expected: (along(1e-4) - along(-1e-4)) / 2e-4 };
  });
  return { n, c, qkv, dy, parts };
}

/** All families are held against the same differences, which are made once. */
const made = new Map<string, ReturnType<typeof differencesOf>>();
function differences(heads: number, d: number, lengths: readonly number[]) {
  const key = JSON.stringify([heads, d, lengths]);
  const found = made.get(key) ?? differencesOf(heads, d, lengths);
  made.set(key, found);
  return found;
}

describe("attention", () => {
  test.for(ALL)("%s: %i heads of %i, lengths %j, agrees with float64", async ([family, heads, d, lengths], context) => {
    needs(family, d, context);
    const starts = startsOf(lengths);
    const qkv = randn(1, (starts.at(-1) ?? 0) * 3 * heads * d, 1.5);
    const [y] = await forward(qkv, lengths, { heads }, family);
    expectClose(y ?? [], attentionReference(qkv, starts, { heads }), { rtol: 1e-5, atol: 3e-6 });
  });

  test("lse is the log-sum-exp of the scaled scores", async () => {
    const [heads, d, t] = [2, 16, 7];
    const qkv = randn(2, t * 3 * heads * d);
    const [, lse] = await forward(qkv, [t], { heads, scale: 0.3 });
    const expected = Array.from({ length: t * heads }, (_, i) => {
      const [n, h] = [Math.floor(i / heads), i % heads];
      let sum = 0;
      for (let j = 0; j < t; j++) {
        let s = 0;
        for (let e = 0; e < d; e++) {
          s += (qkv[n * 96 + h * d + e] ?? 0) * (qkv[j * 96 + 32 + h * d + e] ?? 0);
        }
        sum += Math.exp(0.3 * s);
      }
      return Math.log(sum);
    });
    expectClose(lse ?? [], expected, { rtol: 1e-6, atol: 2e-6 });
  });

  test.each([
    [1, 4, [1]],
    [2, 16, [1, 2, 9]],
    [2, 20, [3, 5]],
  ] as const)("%i heads of %i, lengths %j: the gradient is the numeric one", async (heads, d, lengths) => {
    const starts = startsOf(lengths);
    const n = starts.at(-1) ?? 0;
    const qkv = randn(3, n * 3 * heads * d);
    const dy = randn(4, n * heads * d);
    const expected = numericGradient((at) => attentionReference(at, starts, { heads }), qkv, dy);
    expectClose(await backward(qkv, dy, lengths, { heads }), expected, { rtol: 2e-5, atol: 5e-6 });
  });

  test.for(ALL)(
    "%s: %i heads of %i, lengths %j: the gradient has the directional derivative",
    async ([family, heads, d, lengths], context) => {
      needs(family, d, context);
      const { n, c, qkv, dy, parts } = differences(heads, d, lengths);
      const dqkv = await backward(qkv, dy, lengths, { heads }, family);
      for (const { direction, expected } of parts) {
        const actual = dqkv.reduce((sum, g, i) => sum + g * (direction[i] ?? 0), 0);
        // A sum of n·3C products of normals: their rounding grows with the root of their number.
        const size = Math.max(Math.abs(expected), Math.sqrt(n * c));
        expect(Math.abs(actual - expected) / size).toBeLessThan(2e-5);
      }
    },
  );

  test.for(FAMILIES)("the %s family gives the same values", async (family, context) => {
    const [heads, d, lengths] = [3, 16, [9, 4, 75, 1]] as const; // 75: three tiles of keys, or five, the last not full
    needs(family, d, context);
    const options = { heads, dropout: { p: 0.25, key: streamKey(2, "test") } };
    const starts = startsOf(lengths);
    const qkv = randn(17, 89 * 3 * heads * d);
    const dy = randn(18, 89 * heads * d);
    const [y] = await forward(qkv, lengths, options, family);
    expectClose(y ?? [], attentionReference(qkv, starts, options), { rtol: 1e-5, atol: 3e-6 });
    const dqkv = await backward(qkv, dy, lengths, options, family);
    const other = family === "plain" ? "subgroup" : "plain";
    expectClose(dqkv, await backward(qkv, dy, lengths, options, other), { rtol: 1e-4, atol: 1e-5 });
  });

  test.for(FAMILIES)(
    "%s: another sequence changes no bit of this one, forward or backward",
    async (family, context) => {
      const [heads, d, lengths] = [2, 16, [5, 11, 9]] as const;
      needs(family, d, context);
      const c = heads * d;
      const qkv = randn(8, 25 * 3 * c);
      const dy = randn(9, 25 * c);
      const other = Float32Array.from(qkv);
      const otherDy = Float32Array.from(dy);
      other.fill(Number.NaN, 5 * 3 * c, 16 * 3 * c);
      otherDy.fill(1e30, 5 * c, 16 * c);
      const dropout = { p: 0.2, key: streamKey(1, "test") };
      const [y] = await forward(qkv, lengths, { heads, dropout }, family);
      const [z] = await forward(other, lengths, { heads, dropout }, family);
      const dx = await backward(qkv, dy, lengths, { heads, dropout }, family);
      const dz = await backward(other, otherDy, lengths, { heads, dropout }, family);
      for (const [a, b, width] of [
        [y, z, c],
        [dx, dz, 3 * c],
      ] as const) {
        expect(a?.subarray(0, 5 * width)).toEqual(b?.subarray(0, 5 * width));
        expect(a?.subarray(16 * width)).toEqual(b?.subarray(16 * width));
        expect(Number.isNaN(b?.[5 * width])).toBe(true);
      }
    },
  );

  test.for(FAMILIES)("%s: NaN and infinities go where float64 takes them", async (family, context) => {
    const [heads, d, lengths] = [2, 16, [6, 3]] as const;
    needs(family, d, context);
    const starts = startsOf(lengths);
    const [c, w] = [heads * d, 3 * heads * d];
    for (const [at, value] of [
      [2 * w, Number.NaN], // q of row 2, head 0: its own row
      [3 * w + c, Number.NaN], // k of row 3, head 0: all rows of the sequence
      [1 * w + 2 * c + d, Number.NaN], // v of row 1, head 1
      [2 * w + c, Number.POSITIVE_INFINITY], // scores of ±∞
      [4 * w + d, Number.NEGATIVE_INFINITY],
      [1 * w + 2 * c, Number.POSITIVE_INFINITY],
      [5 * w + 2 * c, Number.POSITIVE_INFINITY], // of the last row, which may stand in for keys beyond the end
    ] as const) {
      const qkv = randn(10, 9 * w);
      qkv[at] = value;
      const [y] = await forward(qkv, lengths, { heads }, family);
      expectClose(y ?? [], attentionReference(qkv, starts, { heads }), { rtol: 1e-5, atol: 1e-6 });
    }
  });

  test("scores of thousands do not overflow", async () => {
    const qkv = randn(11, 10 * 3 * 8, 60);
    const [y] = await forward(qkv, [10], { heads: 1 });
    expectClose(y ?? [], attentionReference(qkv, [0, 10], { heads: 1 }), { rtol: 1e-3, atol: 1e-3 });
  });

  test.for(FAMILIES)("%s: scores of thousands have a gradient", async (family, context) => {
    const d = family === "unrolled" ? 16 : 8;
    needs(family, d, context);
    const qkv = randn(11, 10 * 3 * d, 60);
    const dy = randn(19, 10 * d);
    const expected = numericGradient((at) => attentionReference(at, [0, 10], { heads: 1 }), qkv, dy, 1e-6);
    // A score of 10⁴ is known to 6e-4, and so is log P.
    expectClose(await backward(qkv, dy, [10], { heads: 1 }, family), expected, { rtol: 5e-3, atol: 5e-3 });
  });

  test.for(FAMILIES)(
    "%s: a NaN or an infinity reaches the gradients that depend on it and no others",
    async (family, context) => {
      const [heads, d, lengths] = [2, 16, [40, 3]] as const; // q | k | v, head 0 | head 1 in each
      needs(family, d, context);
      const c = heads * d;
      const row = 2;
      type Parts = { q: boolean | "own"; k: boolean; v: boolean };
      for (const [what, at, value, spoilt] of [
        ["q", row * 3 * c, Number.NaN, { q: "own", k: true, v: true }], // P of its own row
        ["k", row * 3 * c + c, Number.NaN, { q: true, k: true, v: true }], // P of every row
        ["v", row * 3 * c + 2 * c, Number.NaN, { q: true, k: true, v: false }],
        ["v", row * 3 * c + 2 * c, Number.POSITIVE_INFINITY, { q: true, k: true, v: false }],
        ["dy", row * c, Number.NaN, { q: "own", k: true, v: true }],
        ["dy", row * c, Number.NEGATIVE_INFINITY, { q: "own", k: true, v: true }],
      ] as [string, number, number, Parts][]) {
        const qkv = randn(20, 43 * 3 * c);
        const dy = randn(21, 43 * c);
        (what === "dy" ? dy : qkv)[at] = value;
        const dqkv = await backward(qkv, dy, lengths, { heads }, family);
        const bad = (n: number, part: number, h: number) =>
          dqkv
            .subarray(n * 3 * c + part * c + d * h)
            .subarray(0, d)
            .some((x) => !Number.isFinite(x));
        for (let n = 0; n < 43; n++) {
          for (const [part, name] of (["q", "k", "v"] as const).entries()) {
            const expected = n < 40 && (spoilt[name] === "own" ? n === row : spoilt[name]);
            expect(bad(n, part, 0), `${value} in ${what}: d${name} of row ${n}`).toBe(expected);
            expect(bad(n, part, 1), `${value} in ${what}: d${name} of row ${n}, the other head`).toBe(false);
          }
        }
      }
    },
  );

  test("shapes, head sizes and plans are checked by name", () => {
    const g = gpu();
    g.scope(() => {
      const plan = attentionPlan(g, startsOf([2, 1]));
      const x = fromHost(g, randn(1, 3 * 36), [3, 36]);
      expect(() => attention(g, x.reshape([1, 108]), plan, { heads: 1 })).toThrow("attention: qkv has shape [1 108]");
      expect(() => attention(g, x, plan, { heads: 2 })).toThrow(
        "a head size of 6; it must be a multiple of 4 up to 128",
      );
      expect(() => attention(g, x, plan, { heads: 3, dropout: { p: 1, key: [0, 0] } })).toThrow("p is 1");
      expect(() => attentionPlan(g, Uint32Array.from([0, 3, 2]))).toThrow("starts fall from 3 to 2 at sequence 1");
      expect(() => attentionPlan(g, Uint32Array.from([1, 3]))).toThrow("starts begin with 1");
      expect(() => attentionPlan(g, Uint32Array.from([0, 5, 5 + 262145]))).toThrow(
        "attentionPlan: sequence 1 has 262145 rows; at most 262144",
      );
    });
  });
});

describe("attention's dropout", () => {
  const key = streamKey(3, "dropout", 1);

  test("forward agrees with float64 under the host's mask", async () => {
    const [heads, d, lengths] = [3, 16, [9, 4, 21]] as const;
    const options = { heads, dropout: { p: 0.3, key } };
    const qkv = randn(12, 34 * 3 * heads * d);
    const [y, lse] = await forward(qkv, lengths, options);
    expectClose(y ?? [], attentionReference(qkv, startsOf(lengths), options), { rtol: 1e-5, atol: 3e-6 });
    const [, plain] = await forward(qkv, lengths, { heads });
    expect(lse).toEqual(plain);
  });

  test("the gradient is the numeric one of the same mask", async () => {
    const [heads, d, lengths] = [2, 16, [1, 6, 9]] as const;
    const options = { heads, dropout: { p: 0.4, key } };
    const qkv = randn(13, 16 * 3 * heads * d);
    const dy = randn(14, 16 * heads * d);
    const expected = numericGradient((at) => attentionReference(at, startsOf(lengths), options), qkv, dy);
    expectClose(await backward(qkv, dy, lengths, options), expected, { rtol: 2e-5, atol: 5e-6 });
  });

  test("p = 0 gives the bits of no dropout", async () => {
    const qkv = randn(15, 9 * 3 * 16);
    const [a] = await forward(qkv, [9], { heads: 2, dropout: { p: 0, key } });
    const [b] = await forward(qkv, [9], { heads: 2 });
    expect(a).toEqual(b);
  });

  test("keeps a share 1 − p, without correlation between rows, heads, keys or uses", () => {
    const p = 0.1;
    const [rows, heads, keys] = [40, 6, 50];
    const draw = (k: readonly [number, number]) =>
      Float64Array.from({ length: rows * heads * keys }, (_, i) =>
        attentionMask(p, k, Math.floor(i / keys / heads), Math.floor(i / keys) % heads, i % keys) > 0 ? 1 : 0,
      );
    const mask = draw(key);
    const n = mask.length;
    const share = mask.reduce((a, b) => a + b, 0) / n;
    expect(Math.abs(share - (1 - p))).toBeLessThan(4 * Math.sqrt((p * (1 - p)) / n));
    const correlation = (other: Float64Array, lag: number) => {
      let sum = 0;
      for (let i = 0; i + lag < n; i++) sum += ((mask[i] ?? 0) - 1 + p) * ((other[i + lag] ?? 0) - 1 + p);
      return sum / (n - lag) / (p * (1 - p));
    };
    for (const lag of [1, 2, 4, keys, keys * heads]) {
      expect(Math.abs(correlation(mask, lag)), `lag ${lag}`).toBeLessThan(4.5 / Math.sqrt(n));
    }
    expect(Math.abs(correlation(draw(streamKey(3, "dropout", 2)), 0))).toBeLessThan(4.5 / Math.sqrt(n));
  });

  test("the mean over masks is the undropped output", async () => {
    const [heads, d, t] = [1, 4, 6];
    const qkv = randn(16, t * 3 * d);
    const plain = attentionReference(qkv, [0, t], { heads });
    const mean = new Float64Array(plain.length);
    const uses = 400;
    for (let i = 0; i < uses; i++) {
      const options = { heads, dropout: { p: 0.25, key: streamKey(i, "mean") } };
      attentionReference(qkv, [0, t], options).forEach((v, e) => {
        mean[e] = (mean[e] ?? 0) + v / uses;
      });
    }
    const worst = Math.max(...mean.map((v, i) => Math.abs(v - (plain[i] ?? 0))));
    expect(worst).toBeLessThan(0.15);
  });
});
