/**
 * @file An ONNX model from the algebra: a value is a name, an operation a node. The little of protobuf that it takes is
 * here (field numbers from onnx.proto3: ModelProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, AttributeProto).
 */
import { type Algebra, type Input, type Layout, Refusal } from "./peer.ts";

const OPSET = 20; // Gelu
const IR_VERSION = 9;
const [FLOAT, INT32, INT64] = [1, 6, 7];

// ---- protobuf

function varint(n: number): number[] {
  const bytes: number[] = [];
  for (let rest = n; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return [...bytes, rest];
    bytes.push((rest % 128) + 128);
  }
}
const int = (field: number, n: number) => Buffer.from([...varint(field * 8), ...varint(n)]);
const bytes = (field: number, ...parts: Uint8Array[]) => {
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  return Buffer.concat([Buffer.from([...varint(field * 8 + 2), ...varint(length)]), ...parts]);
};
const text = (field: number, s: string) => bytes(field, Buffer.from(s));
const float = (field: number, x: number) => {
  const value = Buffer.alloc(4);
  value.writeFloatLE(x);
  return Buffer.concat([Buffer.from(varint(field * 8 + 5)), value]);
};

type Attribute = number | readonly number[] | { float: number };

function attribute(name: string, value: Attribute): Buffer {
  if (typeof value === "number") return bytes(5, text(1, name), int(3, value), int(20, 2));
  if ("float" in value) return bytes(5, text(1, name), float(2, value.float), int(20, 1));
  return bytes(5, text(1, name), ...value.map((n) => int(8, n)), int(20, 7));
}

function tensor(name: string, shape: readonly number[], type: number, data: Uint8Array): Buffer {
  return Buffer.concat([...shape.map((n) => int(1, n)), int(2, type), text(8, name), bytes(9, data)]);
}

function info(name: string, type: number, shape?: readonly number[]): Buffer {
  const dims = shape ? [bytes(2, ...shape.map((n) => bytes(1, int(1, n))))] : [];
  return Buffer.concat([text(1, name), bytes(2, bytes(1, int(1, type), ...dims))]);
}

const raw = (data: Float32Array | Int32Array | BigInt64Array) =>
  new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
const typeOf = (data: Float32Array | Int32Array) => (data instanceof Int32Array ? INT32 : FLOAT);

// ---- the graph

export class OnnxGraph implements Algebra<string> {
  readonly #nodes: Buffer[] = [];
  readonly #constants: Buffer[] = [];
  readonly #ranks: Record<string, number> = {};
  #count = 0;

  constructor(inputs: Record<string, Input>) {
    for (const [name, { shape }] of Object.entries(inputs)) this.#ranks[name] = shape.length;
  }

  matmul(a: string, b: string, layout: Layout = "NN"): string {
    if (layout === "NN") return this.#node("MatMul", [a, b]);
    if (this.#ranks[a] === 2) {
      return this.#node("Gemm", [a, b], { transA: layout === "TN" ? 1 : 0, transB: layout === "NT" ? 1 : 0 });
    }
    if (layout === "TN") throw new Refusal("no graph for a batch of TN products");
    return this.#node("MatMul", [a, this.permute(b, [0, 2, 1])], {}, 3);
  }
  add(a: string, b: string): string {
    return this.#node("Add", [a, b]);
  }
  scale(a: string, factor: number): string {
    return this.#node("Mul", [a, this.#constant([], Float32Array.of(factor))]);
  }
  softmax(a: string): string {
    return this.#node("Softmax", [a], { axis: this.#rank(a) - 1 });
  }
  layerNorm(x: string, gamma: string, beta: string, eps: number): string {
    const axis = this.#rank(x) - 1;
    return this.#node("LayerNormalization", [x, gamma, beta], { axis, epsilon: { float: eps } });
  }
  gelu(x: string): string {
    return this.#node("Gelu", [x]);
  }
  reshape(a: string, shape: readonly number[]): string {
    return this.#node("Reshape", [a, this.#indices(shape)], {}, shape.length);
  }
  permute(a: string, order: readonly number[]): string {
    return this.#node("Transpose", [a], { perm: order });
  }
  columnSum(a: string): string {
    return this.#node("ReduceSum", [a, this.#indices([0])], { keepdims: 0 }, this.#rank(a) - 1);
  }
  tokenMean(a: string): string {
    return this.#node("ReduceMean", [a, this.#indices([1])], { keepdims: 0 }, this.#rank(a) - 1);
  }
  gather(table: string, ids: string): string {
    return this.#node("Gather", [table, ids]);
  }
  crossEntropy(): string {
    throw new Refusal("onnxruntime-web does inference only");
  }

  /** The model file. Inputs named in `weights` are constants in it. */
  model(inputs: Record<string, Input>, weights: readonly string[], output: string): Uint8Array {
    const constants = weights.map((name) => {
      const { shape, data } = inputs[name] as Input;
      return bytes(5, tensor(name, shape, typeOf(data), raw(data)));
    });
    const open = Object.entries(inputs).filter(([name]) => !weights.includes(name));
    const graph = Buffer.concat([
      ...this.#nodes,
      this.#encode("Identity", [output], ["y"], {}),
      text(2, "task"),
      ...constants,
      ...this.#constants,
      ...open.map(([name, { shape, data }]) => bytes(11, info(name, typeOf(data), shape))),
      bytes(12, info("y", FLOAT)),
    ]);
    return Buffer.concat([int(1, IR_VERSION), bytes(7, graph), bytes(8, text(1, ""), int(2, OPSET))]);
  }

  #rank(name: string): number {
    return this.#ranks[name] ?? 0;
  }

  #node(op: string, inputs: string[], attributes: Record<string, Attribute> = {}, rank = this.#rank(inputs[0] ?? "")) {
    const name = `v${this.#count++}`;
    this.#ranks[name] = rank;
    this.#nodes.push(this.#encode(op, inputs, [name], attributes));
    return name;
  }

  #encode(op: string, inputs: string[], outputs: string[], attributes: Record<string, Attribute>): Buffer {
    return bytes(
      1,
      ...inputs.map((input) => text(1, input)),
      ...outputs.map((output) => text(2, output)),
      text(4, op),
      ...Object.entries(attributes).map(([key, value]) => attribute(key, value)),
    );
  }

  #constant(shape: readonly number[], data: Float32Array | BigInt64Array): string {
    const name = `c${this.#count++}`;
    this.#constants.push(bytes(5, tensor(name, shape, data instanceof Float32Array ? FLOAT : INT64, raw(data))));
    return name;
  }

  #indices(values: readonly number[]): string {
    return this.#constant([values.length], BigInt64Array.from(values.map(BigInt)));
  }
}
