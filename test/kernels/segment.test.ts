import { describe, expect, test } from "vitest";
import { fromHost, readIndices } from "../../src/kernels/array.ts";
import {
  segmentMax,
  segmentMaxBackward,
  segmentMaxReference,
  segmentMean,
  segmentMeanBackward,
  segmentMeanReference,
} from "../../src/kernels/segment.ts";
import { expectClose, gpuForTests, numericGradient, randn, run } from "./harness.ts";

const gpu = gpuForTests();

/** Lengths of the sequences, channels. */
const SIZES = [
  [[1], 1],
  [[2, 5, 1], 7],
  [[3, 0, 4], 8],
  [[64, 65, 13, 1, 2], 20],
  [[17, 3], 386],
  [[9, 30], 384],
] as const;

function startsOf(lengths: readonly number[]): Uint32Array {
  const starts = new Uint32Array(lengths.length + 1);
  lengths.forEach((n, i) => {
    starts[i + 1] = (starts[i] ?? 0) + n;
  });
  return starts;
}

for (const [lengths, c] of SIZES) {
  const starts = startsOf(lengths);
  const n = starts.at(-1) ?? 0;
  const b = lengths.length;
  const x = randn(1, n * c);
  const dy = randn(2, b * c);

  describe(`sequences of ${lengths}, ${c} channels`, () => {
    test("mean and its gradient", async () => {
      const g = gpu();
      const [y, dx] = await run(g, () => {
        const s = fromHost(g, starts);
        return [segmentMean(g, fromHost(g, x, [n, c]), s, b), segmentMeanBackward(g, fromHost(g, dy, [b, c]), s, n)];
      });
      expectClose(y ?? [], segmentMeanReference(x, starts, c), { rtol: 1e-5, atol: 1e-6 });
      const numeric =
        n * c <= 200
          ? numericGradient((at) => segmentMeanReference(at, starts, c), x, dy)
          : x.map((_, i) => {
              const s = starts.findIndex((begin, k) => begin <= i / c && i / c < (starts[k + 1] ?? 0));
              return (dy[s * c + (i % c)] ?? 0) / (lengths[s] ?? 1);
            });
      expectClose(dx ?? [], numeric, { rtol: 1e-5, atol: 1e-6 });
    });

    test("maximum and its gradient", async () => {
      const g = gpu();
      let where: Promise<Uint32Array> | undefined;
      const [y, dx] = await run(g, () => {
        const max = segmentMax(g, fromHost(g, x, [n, c]), fromHost(g, starts), b);
        where = readIndices(g, max.argmax);
        return [max.y, segmentMaxBackward(g, fromHost(g, dy, [b, c]), max.argmax, n)];
      });
      const expected = segmentMaxReference(x, starts, c);
      expectClose(y ?? [], expected.y, { rtol: 0, atol: 0 });
      expect(await where).toEqual(expected.argmax);
      const dxExpected = new Float64Array(n * c);
      expected.argmax.forEach((row, i) => {
        if (row < n) dxExpected[row * c + (i % c)] = dy[i] ?? 0;
      });
      expectClose(dx ?? [], dxExpected, { rtol: 0, atol: 0 });
      if (n * c <= 200) {
        const numeric = numericGradient((at) => segmentMaxReference(at, starts, c).y, x, dy);
        expectClose(dx ?? [], numeric, { rtol: 1e-5, atol: 1e-6 });
      }
    });
  });
}

test("a sequence of more than 2²⁰ rows is taken to its end, forward and backward", async () => {
  const g = gpu();
  const n = 2 ** 20 + 1;
  const x = new Float32Array(n);
  x[n - 1] = n;
  const [mean, max, dx] = await run(g, () => {
    const [X, starts] = [fromHost(g, x, [n, 1]), fromHost(g, Uint32Array.of(0, n))];
    const dy = fromHost(g, [n], [1, 1]);
    return [segmentMean(g, X, starts, 1), segmentMax(g, X, starts, 1).y, segmentMeanBackward(g, dy, starts, n)];
  });
  expect([mean?.[0], max?.[0], dx?.[n - 1]]).toEqual([1, n, 1]);
});

test.each([1, 4])("the first of equal maxima, the first NaN, infinities (%i channels)", async (c) => {
  const g = gpu();
  const [inf, nan] = [Number.POSITIVE_INFINITY, Number.NaN];
  const columns = [
    [2, 3, 3, 1],
    [nan, 5, nan, inf],
    [1, nan, 9, nan],
    [-inf, -inf, -inf, -inf],
    [inf, -inf, inf, 0],
  ];
  const b = columns.length;
  // A column becomes a sequence of four rows; every channel has the same.
  const x = columns.flatMap((rows) => rows.flatMap((value) => Array<number>(c).fill(value)));
  let where: Promise<Uint32Array> | undefined;
  const [y] = await run(g, () => {
    const max = segmentMax(g, fromHost(g, x, [4 * b, c]), fromHost(g, Uint32Array.from({ length: b + 1 }, (_, i) => 4 * i)), b); // biome-ignore format: one line, one call
    where = readIndices(g, max.argmax);
    return [max.y];
  });
  const repeat = (values: number[]) => values.flatMap((value) => Array<number>(c).fill(value));
  expect([...(y ?? [])]).toEqual(repeat([3, nan, nan, -inf, inf]));
  expect([...((await where) ?? [])]).toEqual(repeat([1, 4, 9, 12, 16]));
});

test("NaN and infinities reach the mean and the gradient of their own sequence only", async () => {
  const g = gpu();
  const starts = Uint32Array.of(0, 2, 4);
  const [y, dx] = await run(g, () => {
    const s = fromHost(g, starts);
    return [
      segmentMean(g, fromHost(g, [1, Number.NaN, 3, 5], [4, 1]), s, 2),
      segmentMeanBackward(g, fromHost(g, [Number.POSITIVE_INFINITY, 4], [2, 1]), s, 4),
    ];
  });
  expect([...(y ?? [])]).toEqual([Number.NaN, 4]);
  expect([...(dx ?? [])]).toEqual([Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY, 2, 2]);
});

test("starts and argmax that are no whole numbers are refused", () => {
  const g = gpu();
  g.scope(() => {
    const [x, starts] = [fromHost(g, [1, 2], [2, 1]), fromHost(g, [0, 2])];
    expect(() => segmentMean(g, x, starts, 1)).toThrow("segmentMean: starts holds f32, expected u32");
    expect(() => segmentMax(g, x, starts, 1)).toThrow("segmentMax: starts holds f32, expected u32");
    const dy = fromHost(g, [1], [1, 1]);
    expect(() => segmentMeanBackward(g, dy, starts, 2)).toThrow("segmentMean.backward: starts holds f32, expected u32");
    expect(() => segmentMaxBackward(g, dy, dy, 2)).toThrow("segmentMax.backward: argmax holds f32, expected u32");
  });
});

test("starts of another length are refused", () => {
  const g = gpu();
  g.scope(() => {
    const x = fromHost(g, randn(1, 6), [3, 2]);
    expect(() => segmentMean(g, x, fromHost(g, Uint32Array.of(0, 3)), 2)).toThrow(
      "segmentMean: starts has shape [2], expected [3]",
    );
  });
});
