/** @file Packed batches, the order of epochs, and what pretraining draws, by χ² where chance is involved. */

import { describe, expect, it } from "vitest";
import * as b from "../../src/data/batches.ts";
import { Stream } from "../../src/random.ts";

const example = (ids: number[], label?: number): b.Example => ({
  ids,
  typeIds: ids.map((_, t) => (t > 2 ? 1 : 0)),
  ...(label === undefined ? {} : { label }),
});
const batch = b.packBatch([example([2, 7, 8, 9, 3], 1), example([2], 0), example([2, 5, 3], 1)]);

describe("packing", () => {
  it("lays sequences end to end, positions from 0 in each", () => {
    expect(batch).toEqual({
      ids: Uint32Array.of(2, 7, 8, 9, 3, 2, 2, 5, 3),
      typeIds: Uint32Array.of(0, 0, 0, 1, 1, 0, 0, 0, 0),
      positions: Uint32Array.of(0, 1, 2, 3, 4, 0, 0, 1, 2),
      starts: Uint32Array.of(0, 5, 6, 9),
      labels: Uint32Array.of(1, 0, 1),
      tokens: 9,
      sequences: 3,
      longest: 5,
    });
    expect("labels" in b.packBatch([example([1])])).toBe(false);
  });

  it("repeats a batch as packing its examples S times does", () => {
    const examples = [example([2, 7, 8, 9, 3], 1), example([2], 0), example([2, 5, 3], 1)];
    expect(b.repeatBatch(batch, 3)).toEqual(b.packBatch([...examples, ...examples, ...examples]));
    expect(b.repeatBatch(batch, 1)).toEqual(batch);
  });

  it("refuses a batch that is none", () => {
    expect(() => b.packBatch([])).toThrow("a batch needs an example");
    expect(() => b.packBatch([example([])])).toThrow("example 0 has no tokens");
    expect(() => b.packBatch([{ ids: [1], typeIds: [0, 0] }])).toThrow("1 ids but 2 type ids");
    expect(() => b.packBatch([example([1], 0), example([1])])).toThrow("1 of 2 examples have a label");
  });
});

describe("epochs", () => {
  it("have an order of their own that comes again from seed and number", () => {
    const order = b.epochOrder(100, 7, 2);
    expect(order).toEqual(new Stream(7, "order", 2).shuffle(100));
    expect([...order].sort((x, y) => x - y)).toEqual([...Array(100).keys()]);
    expect(b.epochOrder(100, 7, 3)).not.toEqual(order);
    expect(b.epochOrder(100, 8, 2)).not.toEqual(order);
    expect([...b.epochOrder(4, 7, 2, false)]).toEqual([0, 1, 2, 3]);
  });

  it("are cut by number of sequences, the last batch short", () => {
    expect(b.batchesOfEpoch(5, 2, [4, 3, 2, 1, 0])).toEqual([[4, 3], [2, 1], [0]]);
    expect(b.batchesOfEpoch(4, 2, [0, 1, 2, 3])).toEqual([
      [0, 1],
      [2, 3],
    ]);
    expect(b.batchesOfEpoch(0, 2, [])).toEqual([]);
  });

  it("are cut by a token budget, an example above it alone", () => {
    const lengths = [4, 6, 20, 1, 1, 9];
    expect(b.batchesOfEpoch(6, { tokens: 10, lengths }, [0, 1, 2, 3, 4, 5])).toEqual([[0, 1], [2], [3, 4], [5]]);
  });

  it("refuse an order or a size that cannot be", () => {
    expect(() => b.batchesOfEpoch(3, 2, [0, 1])).toThrow(RangeError);
    expect(() => b.batchesOfEpoch(1, 0, [0])).toThrow("a batch of 0");
    expect(() => b.batchesOfEpoch(1, 1.5, [0])).toThrow("a batch of 1.5");
  });
});

describe("masking", () => {
  const options = { vocabSize: 50, maskId: 4, specialIds: [0, 2, 3] };

  it("chooses 15 % and treats them 80/10/10, by χ² over 1e6 tokens (check 17)", () => {
    const V = 50;
    const tokens = 1_000_000;
    const source = new Stream(1, "test.tokens");
    const ids = Array.from({ length: tokens }, () => 5 + source.integer(V - 5));
    const packed = b.packBatch([{ ids, typeIds: new Uint8Array(tokens) }]);
    const masked = b.maskTokens(packed, { ...options, stream: new Stream(1, "test.mask") });
    const M = masked.positions.length;
    // Seen from outside: [MASK] (.8, and .1/V drawn), another id (.1·(1 − 2/V)), the same id (.1 + .1/V).
    const expected = [0.8 + 0.1 / V, 0.1 * (1 - 2 / V), 0.1 + 0.1 / V];
    const seen = [0, 0, 0];
    masked.positions.forEach((row, m) => {
      expect(masked.targets[m]).toBe(ids[row]);
      const now = masked.ids[row];
      const kind = now === 4 ? 0 : now === ids[row] ? 2 : 1;
      seen[kind] = (seen[kind] ?? 0) + 1;
    });
    // χ² with 1 and with 2 degrees of freedom: 10.8 and 13.8 are exceeded once in a thousand.
    const z2 = (M - 0.15 * tokens) ** 2 / (tokens * 0.15 * 0.85);
    expect(z2).toBeLessThan(10.8);
    const chi2 = expected.reduce((sum, p, k) => sum + ((seen[k] ?? 0) - p * M) ** 2 / (p * M), 0);
    expect(chi2).toBeLessThan(13.8);
    // What replaces is uniform over the whole vocabulary: 48 other ids for each token, V − 1 classes (not [MASK]).
    const drawn = new Array<number>(V).fill(0);
    masked.positions.forEach((row) => {
      const now = masked.ids[row] ?? 0;
      if (now !== 4 && now !== ids[row]) drawn[now] = (drawn[now] ?? 0) + 1;
    });
    const specials = drawn.slice(0, 4).reduce((sum, n) => sum + n, 0);
    // Ids 0–3 are never a true id, so each is drawn .1/V of the time.
    expect(Math.abs(specials - (4 * 0.1 * M) / V) / Math.sqrt((4 * 0.1 * M) / V)).toBeLessThan(3.3);
    // Rows that were not chosen are as they were.
    const chosen = new Set(masked.positions);
    expect(packed.ids.every((id, i) => chosen.has(i) || masked.ids[i] === id)).toBe(true);
  });

  it("never chooses a special token, at any rate, and leaves the batch itself alone", () => {
    const before = batch.ids.slice();
    const masked = b.maskTokens(batch, { ...options, rate: 1, stream: new Stream(3, "test") });
    expect([...masked.positions]).toEqual([1, 2, 3, 7]);
    expect([...masked.targets]).toEqual([7, 8, 9, 5]);
    expect(batch.ids).toEqual(before);
  });

  it("chooses one at least, any of them, and says so where there is none", () => {
    const rows = new Set<number>();
    for (let seed = 0; seed < 60; seed++) {
      const masked = b.maskTokens(batch, { ...options, rate: 0, stream: new Stream(seed, "test") });
      expect(masked.positions.length).toBe(1);
      rows.add(masked.positions[0] ?? -1);
    }
    expect([...rows].sort()).toEqual([1, 2, 3, 7]);
    const special = b.packBatch([example([2, 3])]);
    expect(() => b.maskTokens(special, { ...options, stream: new Stream(0, "test") })).toThrow("special tokens only");
  });

  it("comes again from its stream", () => {
    const once = () => b.maskTokens(batch, { ...options, stream: new Stream(9, "test") });
    expect(once()).toEqual(once());
  });
});

describe("sentence pairs", () => {
  const documents = [["a0", "a1", "a2"], ["b0", "b1"], [], ["c0"], ["d0", "d1", "d2", "d3"]];

  it("are half true successors, half from another document, every sentence with a successor once", () => {
    const others = new Set<string>();
    for (let seed = 0; seed < 50; seed++) {
      const pairs = b.nspPairs(documents, new Stream(seed, "test"));
      expect(pairs.map((pair) => pair.first).sort()).toEqual(["a0", "a1", "b0", "d0", "d1", "d2"]);
      expect(pairs.filter((pair) => pair.label === 0).length).toBe(3);
      for (const { first, second, label } of pairs) {
        const follows = first[0] === second[0] && Number(second[1]) === Number(first[1]) + 1;
        expect(follows).toBe(label === 0);
        if (label === 1) expect(second[0]).not.toBe(first[0]);
        if (label === 1 && first === "b0") others.add(second[0] ?? "");
      }
    }
    expect([...others].sort()).toEqual(["a", "c", "d"]);
  });

  it("need two documents", () => {
    expect(() => b.nspPairs([["a", "b"], []], new Stream(0, "test"))).toThrow("1 documents (expected two or more)");
  });
});
