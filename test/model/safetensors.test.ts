/** @file safetensors: round trips bit for bit, and every way in which a header can lie, each with its sentence. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { writeFileAtomic } from "../../src/data/files.ts";
import { InputError, StorageError } from "../../src/errors.ts";
import {
  firstNonFinite,
  parseSafetensors,
  safetensorsPieces,
  type TensorToWrite,
  toFloat32,
  writeSafetensors,
} from "../../src/model/safetensors.ts";
import { openSafetensors } from "../../src/model/safetensors-file.ts";
import { Stream } from "../../src/random.ts";
import { needs, shared, temporaryFolder } from "../data/shared.ts";

const folder = temporaryFolder();

/** A file of this header text (or these bytes) and `data` bytes. */
function file(header: string | Uint8Array, data = 0, length?: number): Uint8Array {
  const json = typeof header === "string" ? new TextEncoder().encode(header) : header;
  const bytes = new Uint8Array(8 + json.length + data);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length ?? json.length), true);
  bytes.set(json, 8);
  return bytes;
}
const tensor = (dtype: string, shape: unknown, from: unknown, to: unknown) =>
  JSON.stringify({ dtype, shape, data_offsets: [from, to] });
const parse = (bytes: Uint8Array) => parseSafetensors(bytes, "m.safetensors");

/** Refused with this message after the file's name, from memory and from disk alike. */
function refused(bytes: Uint8Array, message: string) {
  const path = join(folder, "m.safetensors");
  writeFileSync(path, bytes);
  for (const read of [() => parse(bytes), () => openSafetensors(path)]) {
    expect(read).toThrow(InputError);
    expect(read).toThrow(/^[^:]*m\.safetensors: [^\n]+\.$/);
    expect(read).toThrow(message);
  }
}

describe("round trip", () => {
  const random = new Stream(1, "test.safetensors");
  const values = (n: number) => Float32Array.from({ length: n }, () => random.normal());
  const tensors: TensorToWrite[] = [
    { name: "half", dtype: "F16", shape: [3], data: Float32Array.of(0.5, -2, 65504) },
    { name: "a.weight", dtype: "F32", shape: [2, 3], data: values(6) },
    { name: "__proto__", dtype: "F32", shape: [], data: Float32Array.of(Number.NaN) },
    { name: 'Zoë "東京"', dtype: "F32", shape: [2, 0], data: values(0) },
    { name: "brain", dtype: "BF16", shape: [2], data: Float32Array.of(1, -0) },
  ];

  it("keeps names, shapes, bits and metadata", () => {
    const { metadata, tensors: read } = parse(writeSafetensors(tensors, { format: "pt", note: "x" }));
    expect([...metadata]).toEqual([
      ["format", "pt"],
      ["note", "x"],
    ]);
    expect([...read.keys()]).toEqual(["a.weight", "__proto__", 'Zoë "東京"', "half", "brain"]);
    for (const { name, dtype, shape, data } of tensors) {
      const back = read.get(name);
      if (back === undefined) throw new Error(name);
      expect([back.dtype, back.shape]).toEqual([dtype, shape]);
      expect(toFloat32(back)).toEqual(data);
    }
  });

  it("gives the same bytes each time, a header of a multiple of 8 bytes, 4-byte data aligned", () => {
    const bytes = writeSafetensors(tensors);
    expect(writeSafetensors(tensors)).toEqual(bytes);
    const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
    expect(length % 8).toBe(0);
    const header = new TextDecoder().decode(bytes.subarray(8, 8 + length));
    expect(
      header.startsWith(
        '{"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}',
      ),
    ).toBe(
      true, // transformers refuses a file whose metadata has no format
    );
  });

  it("reads from disk a tensor at a time what was written in pieces", () => {
    const path = join(folder, "pieces.safetensors");
    writeFileAtomic(path, safetensorsPieces(tensors));
    const opened = openSafetensors(path);
    expect(opened.metadata.get("format")).toBe("pt");
    expect(opened.tensors.get("a.weight")?.shape).toEqual([2, 3]);
    expect(opened.float32("a.weight")).toEqual(tensors[1]?.data);
    expect(opened.float32("half")).toEqual(tensors[0]?.data);
    expect(() => opened.read("nope")).toThrow('pieces.safetensors: no tensor "nope" among its 5');
    opened.close();
  });

  it("reads F32 that lies at an odd address", () => {
    const bytes = file(`{"b":${tensor("U8", [1], 0, 1)},"a":${tensor("F32", [1], 1, 5)}}`, 5);
    new DataView(bytes.buffer).setFloat32(bytes.length - 4, 1.5, true);
    const a = parse(bytes).tensors.get("a");
    if (a === undefined) throw new Error("a");
    expect(toFloat32(a)).toEqual(Float32Array.of(1.5));
  });

  it("lists tensors that are no floats, and refuses to make floats of them", () => {
    const { tensors: read } = parse(file(`{"ids":${tensor("I64", [1, 2], 0, 16)}}`, 16));
    const ids = read.get("ids");
    if (ids === undefined) throw new Error("ids");
    expect(() => toFloat32(ids, "m: tensor ids")).toThrow("m: tensor ids: not a float tensor (found I64;");
  });

  it("refuses to write what nobody could read", () => {
    const one = { dtype: "F32", shape: [1], data: new Float32Array(1) } as const;
    expect(() =>
      writeSafetensors([
        { name: "a", ...one },
        { name: "a", ...one },
      ]),
    ).toThrow("a stands twice");
    expect(() => writeSafetensors([{ name: "__metadata__", ...one }])).toThrow(RangeError);
    expect(() => writeSafetensors([{ name: "a", ...one, shape: [2] }])).toThrow("a has 1 elements, not [2]");
  });
});

describe("F16 and BF16", () => {
  /** The value of 16 bits by the definition (IEEE 754): sign, `e` bits of exponent, the rest fraction. */
  const value = (h: number, e: number) => {
    const f = 15 - e;
    const bias = 2 ** (e - 1) - 1;
    const sign = h & 0x8000 ? -1 : 1;
    const exponent = (h >> f) & (2 ** e - 1);
    const fraction = (h & (2 ** f - 1)) / 2 ** f;
    if (exponent === 2 ** e - 1) return fraction > 0 ? Number.NaN : sign * Number.POSITIVE_INFINITY;
    return sign * (exponent === 0 ? fraction * 2 ** (1 - bias) : (1 + fraction) * 2 ** (exponent - bias));
  };

  it.each([
    ["F16", 5],
    ["BF16", 8],
  ] as const)("%s: all 65,536 values are read exactly and written back to the same bits", (dtype, e) => {
    const halves = Uint16Array.from({ length: 65536 }, (_, h) => h);
    const floats = toFloat32({ dtype, shape: [65536], bytes: new Uint8Array(halves.buffer) });
    const wrong = [...halves].filter((h) => !Object.is(floats[h], value(h, e)));
    expect(wrong).toEqual([]);
    const { bytes } =
      parse(writeSafetensors([{ name: "a", dtype, shape: [65536], data: floats }])).tensors.get("a") ?? {};
    const back = new Uint16Array((bytes ?? new Uint8Array()).slice().buffer);
    const changed = [...halves].filter((h) =>
      Number.isNaN(floats[h]) ? !Number.isNaN(value(back[h] ?? 0, e)) : back[h] !== h,
    );
    expect(changed).toEqual([]);
  });

  it.each([
    ["F16", 5, 10],
    ["BF16", 8, 7],
  ] as const)("%s: rounds to the nearest, halves to even", (dtype, e, fractionBits) => {
    const random = new Stream(2, "test.rounding");
    const smallest = 2 ** (2 - 2 ** (e - 1) - fractionBits);
    const data = Float32Array.from({ length: 20_000 }, (_, i) => {
      // Sizes from deep in the subnormals to above the largest half; every fourth exactly between two neighbours.
      const x = random.normal() * 2 ** (random.integer(46) - 28);
      const unit = Math.max(2 ** (Math.floor(Math.log2(Math.abs(x))) - fractionBits), smallest);
      return i % 4 === 0 ? (Math.floor(x / unit) + 0.5) * unit : x;
    });
    const { bytes } = parse(writeSafetensors([{ name: "a", dtype, shape: [20_000], data }])).tensors.get("a") ?? {};
    const written = new Uint16Array((bytes ?? new Uint8Array()).slice().buffer);
    const largest = value(dtype === "F16" ? 0x7bff : 0x7f7f, e);
    const wrong = [...data].filter((x, i) => {
      // Independently, in f64: the spacing at x, and JavaScript's exact division and rounding of halves.
      const unit = Math.max(2 ** (Math.floor(Math.log2(Math.abs(x))) - fractionBits), smallest);
      const q = x / unit;
      const below = Math.floor(q);
      const n = q - below > 0.5 || (q - below === 0.5 && below % 2 !== 0) ? below + 1 : below;
      const expected = Math.abs(n * unit) > largest ? Math.sign(x) * Number.POSITIVE_INFINITY : n * unit;
      return value(written[i] ?? 0, e) !== expected;
    });
    expect(wrong).toEqual([]);
  });
});

describe("numbers that are none", () => {
  it("are found by their place", () => {
    expect(firstNonFinite(Float32Array.of(0, -3.4e38, 1e-45))).toBe(-1);
    expect(firstNonFinite(Float32Array.of(0, 1, Number.NaN, Number.POSITIVE_INFINITY))).toBe(2);
    expect(firstNonFinite(Float32Array.of(Number.NEGATIVE_INFINITY))).toBe(0);
    expect(firstNonFinite(Float32Array.of(Number.NaN, 1, 2).subarray(1))).toBe(-1);
  });
});

describe("files that are none", () => {
  const text = (s: string) => new TextEncoder().encode(s);
  it.each<[string, Uint8Array, string]>([
    ["empty", new Uint8Array(0), "the file is empty"],
    ["9 bytes", new Uint8Array(9), "not a safetensors file (found 9 bytes"],
    ["an HTML page", text("<!DOCTYPE html><html>"), "this is an HTML page, not the file itself"],
    [
      "a Git LFS pointer",
      text("version https://git-lfs.github.com/spec/v1\noid sha256:1"),
      "this is a Git LFS pointer",
    ],
    ["a PyTorch archive", text("PK\u0003\u0004 and more of it"), "this is a ZIP archive"],
    ["text", text("hello, this is a text of some length"), "not a safetensors file (found a header of"],
    [
      "a header length of 2^63",
      file("{}", 0, 2 ** 63),
      "not a safetensors file (found a header of 9223372036854776000",
    ],
    ["a header above 100 MB", file("{}", 0, 100_000_001), "not a safetensors file (found a header of 100000001 bytes"],
    ["a header longer than the file", file("{}", 0, 1000), "truncated in the header (found 10 bytes, expected 1008"],
    ["a header of 0 bytes", file("", 5), "not a safetensors file (found a header of 0 bytes"],
    ["no brace", file("[]"), 'not a safetensors file (the header begins with byte 0x5b, expected "{")'],
  ])("%s", (_, bytes, message) => refused(bytes, message));
});

describe("headers that lie", () => {
  const F = (shape: unknown, from: unknown, to: unknown) => tensor("F32", shape, from, to);
  it.each<[string, string, number, string]>([
    ["cut data", `{"a":${F([4], 0, 16)}}`, 15, "truncated (found 78 bytes, expected 79 by its header)"],
    ["extra data", `{"a":${F([4], 0, 16)}}`, 17, "1 bytes after the last tensor (found 80 bytes, expected 79)"],
    ["no tensors, but data", "{}", 4, "4 bytes after the last tensor"],
    [
      "a gap",
      `{"a":${F([1], 0, 4)},"b":${F([1], 8, 12)}}`,
      12,
      'tensor "b" leaves a gap after "a" (found offset 8, expected 4)',
    ],
    ["a gap at the start", `{"a":${F([1], 4, 8)}}`, 8, 'tensor "a" leaves a gap after the header (found offset 4'],
    [
      "an overlap",
      `{"a":${F([2], 0, 8)},"b":${F([2], 4, 12)}}`,
      12,
      'tensor "b" overlaps "a" (found offset 4, expected 8)',
    ],
    ["the same place twice", `{"a":${F([2], 0, 8)},"b":${F([2], 0, 8)}}`, 8, 'tensor "b" overlaps "a"'],
    ["offsets backwards", `{"a":${F([1], 4, 0)}}`, 4, 'tensor "a": its data end before they begin'],
    [
      "another size",
      `{"a":${F([3], 0, 8)}}`,
      8,
      'tensor "a": its data have another size (found 8 bytes, expected 12 for F32 [3])',
    ],
    ["a scalar of 8 bytes", `{"a":${F([], 0, 8)}}`, 8, "(found 8 bytes, expected 4 for F32 [])"],
    [
      "an overflowing shape",
      `{"a":${F([2 ** 40, 2 ** 40], 0, 8)}}`,
      8,
      'tensor "a": its shape [1099511627776, 1099511627776] is larger',
    ],
    [
      "an overflow that wraps to 0",
      `{"a":${F([2 ** 32, 2 ** 32], 0, 0)}}`,
      0,
      'tensor "a": its shape [4294967296, 4294967296] is larger',
    ],
    ["a negative dimension", `{"a":${F([-1], 0, 4)}}`, 4, 'broken header: the shape of tensor "a" holds -1'],
    ["two negative dimensions", `{"a":${F([-1, -1], 0, 4)}}`, 4, "holds -1 (expected whole numbers from 0)"],
    ["a fraction", `{"a":${F([1.5], 0, 6)}}`, 6, 'the shape of tensor "a" holds 1.5'],
    ["an exponent", '{"a":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}}', 4, "holds 1e0"],
    [
      "a dimension above 2^53",
      '{"a":{"dtype":"F32","shape":[9007199254740993],"data_offsets":[0,4]}}',
      4,
      "holds 9007199254740993",
    ],
    ["a string dimension", `{"a":${F(["1"], 0, 4)}}`, 4, 'the shape of tensor "a" holds "'],
    ["a nested shape", `{"a":${F([[1]], 0, 4)}}`, 4, 'the shape of tensor "a" holds ['],
    ["17 dimensions", `{"a":${F(Array(17).fill(1), 0, 4)}}`, 4, 'the shape of tensor "a" has more than 16 numbers'],
    ["three offsets", '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}', 4, "has more than 2 numbers"],
    [
      "one offset",
      '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}',
      4,
      'tensor "a" has no data_offsets of two numbers',
    ],
    ["no shape", '{"a":{"dtype":"F32","data_offsets":[0,4]}}', 4, 'tensor "a" has no shape'],
    [
      "an unknown field",
      '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}',
      4,
      'tensor "a" has an unknown field "x"',
    ],
    ["a prototype's field", '{"a":{"toString":1}}', 4, 'tensor "a" has an unknown field "toString"'],
    [
      "a field twice",
      '{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}',
      4,
      'tensor "a" has dtype twice',
    ],
    ["a name twice", `{"a":${F([1], 0, 4)},"\\u0061":${F([1], 4, 8)}}`, 8, 'broken header: tensor "a" stands twice'],
    ["metadata twice", '{"__metadata__":{},"__metadata__":{}}', 0, "__metadata__ stands twice"],
    ["a metadata key twice", '{"__metadata__":{"a":"1","a":"2"}}', 0, '__metadata__ has "a" twice'],
    ["metadata of a number", '{"__metadata__":{"a":1}}', 0, "found 1 (expected a string), at byte 29"],
    ["an unknown dtype", `{"a":${tensor("Q4", [1], 0, 4)}}`, 4, 'tensor "a": unknown dtype (found "Q4"; expected BOOL'],
    ["a prototype's dtype", `{"a":${tensor("toString", [1], 0, 4)}}`, 4, 'unknown dtype (found "toString"'],
    ["a tensor that is a list", '{"a":[]}', 0, "found [ (expected {), at byte 13"],
    ["an unfinished object", '{"a":{"dtype":"F32"', 0, "found its end (expected } or ,)"],
    ["an unfinished string", '{"abc', 0, "a string has no end"],
    ["a trailing comma", '{"a":{},}', 0, 'tensor "a" has no dtype'],
    ["something behind", "{} x", 0, "something after the header's end, at byte 11"],
    ["a broken escape", '{"\\x":{}}', 0, "a string is not valid JSON or not valid UTF-8, at byte 9"],
    ["a line break in a name", '{"a\nb":{}}', 0, "a string is not valid JSON"],
    [
      "a name that moves the cursor",
      `{"\\u001b[2J":${F([1], 0, 8)}}`,
      8,
      'tensor "\\u{1b}[2J": its data have another size',
    ],
  ])("%s", (_, header, data, message) => refused(file(header, data), message));

  it("invalid UTF-8 in a name", () => {
    refused(
      file(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x3a, 0x7b, 0x7d, 0x7d)),
      "broken header: a string is not valid JSON or not valid UTF-8",
    );
  });

  it("every cut of a good file, and every bit flipped in its header, is refused or reads within the file", () => {
    const good = writeSafetensors([
      { name: "a", dtype: "F32", shape: [2, 2], data: new Float32Array(4) },
      { name: "b", dtype: "F16", shape: [1], data: new Float32Array(1) },
    ]);
    for (let n = 0; n < good.length; n++) expect(() => parse(good.subarray(0, n))).toThrow(InputError);
    const data = 18;
    for (let bit = 0; bit < 8 * (good.length - data); bit++) {
      const bytes = good.slice();
      bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      try {
        // What a flip leaves readable (a letter of a name) still covers exactly the data.
        const { tensors } = parse(bytes);
        expect([...tensors.values()].reduce((sum, { bytes: b }) => sum + b.length, 0)).toBe(data);
      } catch (error) {
        expect(error).toBeInstanceOf(InputError);
      }
    }
  });

  it("more tensors than any model has, before they fill the memory", () => {
    const many = Array.from({ length: 100_001 }, (_, i) => `"${i}":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}`);
    expect(() => parse(file(`{${many.join(",")}}`))).toThrow("broken header: more than 100000 tensors");
  });

  it("a path that is none is the system's refusal, not the file's", () => {
    expect(() => openSafetensors(join(folder, "none.safetensors"))).toThrow(StorageError);
  });
});

const real = needs("models/all-MiniLM-L6-v2/model.safetensors", "reference/bert_random.safetensors");
describe.skipIf(real.skip)(real.named("real files"), () => {
  it("MiniLM: 22.7 M finite parameters, ids listed beside them", () => {
    const model = openSafetensors(shared("models/all-MiniLM-L6-v2/model.safetensors"));
    let parameters = 0;
    for (const [name, { dtype }] of model.tensors) {
      if (dtype === "I64") continue;
      const values = model.float32(name);
      expect([name, firstNonFinite(values)]).toEqual([name, -1]);
      parameters += values.length;
    }
    model.close();
    expect(parameters).toBe(22_713_216);
    expect(model.tensors.get("embeddings.position_ids")?.dtype).toBe("I64");
  });
});

it("F64 is written as it is, before what is narrower", () => {
  const wide = Float64Array.of(1 / 3, -1e-300, Math.PI);
  const bytes = writeSafetensors([
    { name: "a", dtype: "F32", shape: [1], data: Float32Array.of(2) },
    { name: "b", dtype: "F64", shape: [3], data: wide },
  ]);
  const found = parse(bytes).tensors.get("b");
  expect([found?.dtype, found?.shape]).toEqual(["F64", [3]]);
  expect(new Float64Array(Uint8Array.from(found?.bytes ?? []).buffer)).toEqual(wide);
  expect((found?.bytes.byteOffset ?? 1) % 8).toBe(0);
});
