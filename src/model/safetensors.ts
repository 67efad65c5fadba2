/**
 * @file safetensors, read and written here (https://github.com/huggingface/safetensors#format): 8 bytes of header
 * length, a JSON header `{name: {dtype, shape, data_offsets}}`, then the data. A header can lie, so it is checked whole
 * before any memory is taken for what it claims: every byte of data belongs to exactly one tensor, and every size fits.
 */

import { inert, quote, refuseImpostor } from "../data/text.ts";
import { InputError } from "../errors.ts";
import { HeaderReader } from "./safetensors-header.ts";

/** Bytes an element takes. Only the floats can be turned into Float32Array; the others may be present. */
export const DTYPE_BYTES = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
} as const;

export type Dtype = keyof typeof DTYPE_BYTES;

/** Where a tensor lies: bytes `start` to `end` of the file. */
export interface TensorPlace {
  dtype: Dtype;
  shape: number[];
  start: number;
  end: number;
}

/** A tensor with its bytes, little-endian, row-major: a view of what was read. */
export interface StoredTensor {
  dtype: Dtype;
  shape: number[];
  bytes: Uint8Array;
}

export interface SafetensorsHeader {
  metadata: Map<string, string>;
  /** In the header's order. */
  tensors: Map<string, TensorPlace>;
}

/** The format's own limit on the header. */
const LONGEST_HEADER = 100_000_000;
const AGAIN = "Download or copy the file again.";

/** The length of the JSON header from a file's first bytes (16 or more help), checked against the file's size. */
export function headerLength(first: Uint8Array, fileSize: number, name: string): number {
  refuseImpostor(first, name, "a safetensors file");
  const fail = (what: string): never => {
    throw new InputError(`${inert(name)}: ${what}. ${AGAIN}`);
  };
  if (fileSize === 0) return fail("the file is empty (expected a safetensors file)");
  if (fileSize < 10) return fail(`not a safetensors file (found ${fileSize} bytes, expected 10 or more)`);
  const view = new DataView(first.buffer, first.byteOffset, first.byteLength);
  const length = view.getUint32(0, true) + view.getUint32(4, true) * 2 ** 32;
  if (length > LONGEST_HEADER) {
    return fail(`not a safetensors file (found a header of ${length} bytes, expected at most ${LONGEST_HEADER})`);
  }
  if (length < 2) return fail(`not a safetensors file (found a header of ${length} bytes, expected 2 or more)`);
  if (8 + length > fileSize) {
    return fail(`truncated in the header (found ${fileSize} bytes, expected ${8 + length} and the data)`);
  }
  if (first[8] !== undefined && first[8] !== 0x7b) {
    return fail(`not a safetensors file (the header begins with byte 0x${first[8].toString(16)}, expected "{")`);
  }
  return length;
}

/** Reads and checks the JSON header (its bytes alone). InputError: anything that is not as the format says. */
export function parseHeader(header: Uint8Array, fileSize: number, name: string): SafetensorsHeader {
  const { metadata, entries } = new HeaderReader(header, name).read();
  const dataStart = 8 + header.length;
  const tensors = new Map<string, TensorPlace>();
  for (const [tensor, { dtype, shape, offsets }] of entries) {
    const fail = (what: string): never => {
      throw new InputError(`${inert(name)}: tensor ${quote(tensor, 100)}: ${what}. ${AGAIN}`);
    };
    if (!Object.hasOwn(DTYPE_BYTES, dtype)) {
      fail(`unknown dtype (found ${quote(dtype)}; expected ${Object.keys(DTYPE_BYTES).join(", ")})`);
    }
    const known = dtype as Dtype;
    let size: number = DTYPE_BYTES[known];
    // A zero anywhere makes the size 0, however large the others are.
    for (const n of shape.includes(0) ? [0] : shape) {
      size *= n;
      if (size > Number.MAX_SAFE_INTEGER) fail(`its shape [${shape.join(", ")}] is larger than any file`);
    }
    const [from, to] = offsets;
    if (to < from) fail(`its data end before they begin (found offsets ${from} to ${to})`);
    if (to - from !== size) {
      fail(
        `its data have another size (found ${to - from} bytes, expected ${size} for ${dtype} [${shape.join(", ")}])`,
      );
    }
    tensors.set(tensor, { dtype: known, shape, start: dataStart + from, end: dataStart + to });
  }
  checkCovered(tensors, dataStart, fileSize, name);
  return { metadata, tensors };
}

/** Every byte of data belongs to exactly one tensor. */
function checkCovered(tensors: Map<string, TensorPlace>, dataStart: number, fileSize: number, name: string): void {
  const inOrder = [...tensors].sort(([, a], [, b]) => a.start - b.start || a.end - b.end);
  let end = dataStart;
  let before = "the header";
  for (const [tensor, place] of inOrder) {
    if (place.start !== end) {
      const what = place.start < end ? "overlaps" : "leaves a gap after";
      const at = `found offset ${place.start - dataStart}, expected ${end - dataStart}`;
      throw new InputError(
        `${inert(name)}: tensor ${quote(tensor, 100)} ${what} ${before === "the header" ? before : quote(before, 100)} (${at}). ${AGAIN}`,
      );
    }
    end = place.end;
    before = tensor;
  }
  if (end > fileSize) {
    throw new InputError(
      `${inert(name)}: truncated (found ${fileSize} bytes, expected ${end} by its header). ${AGAIN}`,
    );
  }
  if (end < fileSize) {
    const extra = fileSize - end;
    throw new InputError(
      `${inert(name)}: ${extra} bytes after the last tensor (found ${fileSize} bytes, expected ${end}). ${AGAIN}`,
    );
  }
}

/** A whole file in memory. The tensors' bytes are views of `bytes`. InputError: anything that is not as it should be. */
export function parseSafetensors(
  bytes: Uint8Array,
  name: string,
): { metadata: Map<string, string>; tensors: Map<string, StoredTensor> } {
  const length = headerLength(bytes.subarray(0, 512), bytes.length, name);
  const { metadata, tensors } = parseHeader(bytes.subarray(8, 8 + length), bytes.length, name);
  const stored = new Map<string, StoredTensor>();
  for (const [tensor, { dtype, shape, start, end }] of tensors) {
    stored.set(tensor, { dtype, shape, bytes: bytes.subarray(start, end) });
  }
  return { metadata, tensors: stored };
}

/**
 * A float tensor's elements as float32: exact for F16 and BF16, rounded for F64. F32 that lies at a multiple of 4 bytes
 * is a view, not a copy. InputError: another dtype.
 */
export function toFloat32({ dtype, bytes }: StoredTensor, name = "tensor"): Float32Array<ArrayBuffer> {
  const aligned = bytes.byteOffset % DTYPE_BYTES[dtype] === 0 && bytes.buffer instanceof ArrayBuffer;
  const whole = (aligned ? bytes : bytes.slice()) as Uint8Array<ArrayBuffer>;
  const count = bytes.length / DTYPE_BYTES[dtype];
  if (dtype === "F32") return new Float32Array(whole.buffer, whole.byteOffset, count);
  if (dtype === "F64") return Float32Array.from(new Float64Array(whole.buffer, whole.byteOffset, count));
  if (dtype !== "F16" && dtype !== "BF16") {
    throw new InputError(
      `${inert(name)}: not a float tensor (found ${dtype}; expected F32, F16, BF16 or F64). Convert it.`,
    );
  }
  const halves = new Uint16Array(whole.buffer, whole.byteOffset, count);
  const floats = new Float32Array(count);
  const bits = new Uint32Array(floats.buffer);
  if (dtype === "BF16") {
    for (let i = 0; i < count; i++) bits[i] = halves[i]! << 16;
    return floats;
  }
  for (let i = 0; i < count; i++) {
    const h = halves[i]!;
    const exponent = (h >>> 10) & 31;
    const fraction = h & 1023;
    const sign = (h & 0x8000) << 16;
    if (exponent === 31) bits[i] = sign | 0x7f800000 | (fraction << 13);
    else if (exponent > 0) bits[i] = sign | ((exponent + 112) << 23) | (fraction << 13);
    else {
      floats[i] = fraction * 2 ** -24; // subnormal or 0
      bits[i] = bits[i]! | sign;
    }
  }
  return floats;
}

/** The index of the first element that is NaN or infinite, or −1. */
export function firstNonFinite(values: Float32Array): number {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < bits.length; i++) if ((bits[i]! & 0x7f800000) === 0x7f800000) return i;
  return -1;
}

/** A tensor to be written; F16 and BF16 are rounded from `data` to nearest, ties to even. */
export interface TensorToWrite {
  name: string;
  dtype: "F32" | "F16" | "BF16";
  shape: readonly number[];
  data: Float32Array;
}

/** Numbers that are no weights and keep their float64. */
export interface WideTensor extends Omit<TensorToWrite, "dtype" | "data"> {
  dtype: "F64";
  data: Float64Array;
}

/**
 * The pieces of a safetensors file, one tensor at a time, so that a large model need not lie in memory twice. Tensors
 * stand in the order given, but 8-byte elements before 4-byte ones and those before 2-byte ones, so that each is aligned. The same input gives the
 * same bytes. RangeError: a name that stands twice or is reserved, a shape that is not `data`'s.
 */
export function* safetensorsPieces(
  tensors: readonly (TensorToWrite | WideTensor)[],
  metadata: Readonly<Record<string, string>> = { format: "pt" },
): Generator<Uint8Array, void> {
  const ordered = [...tensors].sort((a, b) => DTYPE_BYTES[b.dtype] - DTYPE_BYTES[a.dtype]);
  const names = new Set<string>(["__metadata__"]);
  let offset = 0;
  const entries = [`"__metadata__":${JSON.stringify(metadata)}`];
  for (const { name, dtype, shape, data } of ordered) {
    if (names.has(name)) throw new RangeError(`safetensors: tensor ${name} stands twice or has a reserved name`);
    names.add(name);
    if (shape.reduce((a, b) => a * b, 1) !== data.length) {
      throw new RangeError(`safetensors: tensor ${name} has ${data.length} elements, not [${shape.join(", ")}]`);
    }
    const end = offset + data.length * DTYPE_BYTES[dtype];
    const entry = { dtype, shape, data_offsets: [offset, end] };
    entries.push(`${JSON.stringify(name)}:${JSON.stringify(entry)}`);
    offset = end;
  }
  const json = new TextEncoder().encode(`{${entries.join(",")}}`);
  const padded = Math.ceil(json.length / 8) * 8;
  const header = new Uint8Array(8 + padded).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(padded), true);
  header.set(json, 8);
  yield header;
  for (const tensor of ordered) yield encode(tensor);
}

/** A whole safetensors file in memory; see `safetensorsPieces`. */
export function writeSafetensors(
  tensors: readonly (TensorToWrite | WideTensor)[],
  metadata: Readonly<Record<string, string>> = { format: "pt" },
): Uint8Array<ArrayBuffer> {
  const pieces = [...safetensorsPieces(tensors, metadata)];
  const file = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    file.set(piece, at);
    at += piece.length;
  }
  return file;
}

function encode({ dtype, data }: TensorToWrite | WideTensor): Uint8Array {
  if (dtype === "F32" || dtype === "F64") return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const bits = new Uint32Array(data.buffer, data.byteOffset, data.length);
  const halves = new Uint16Array(data.length);
  const round = dtype === "BF16" ? toBf16 : toF16;
  for (let i = 0; i < halves.length; i++) halves[i] = round(bits[i]!);
  return new Uint8Array(halves.buffer);
}

/** The bits of a float32 rounded to bfloat16. A NaN stays one: rounding must not carry it over to infinity. */
function toBf16(bits: number): number {
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/** The bits of a float32 rounded to float16. */
function toF16(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // 65,520 and above round to infinity
  if (magnitude >= 0x38800000) return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
  // Subnormal: the fraction with its leading 1, shifted to units of 2^-24. Below half of one it is 0.
  const shift = 126 - (magnitude >>> 23);
  if (shift > 24) return sign;
  const fraction = (magnitude & 0x7fffff) | 0x800000;
  const half = 2 ** (shift - 1);
  const kept = fraction >>> shift;
  const rest = fraction & (2 ** shift - 1);
  return sign | (kept + (rest > half || (rest === half && kept % 2 === 1) ? 1 : 0));
}
