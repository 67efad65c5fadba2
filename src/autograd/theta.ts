/**
 * @file θ is one vector. Every named parameter is a slice of it that starts at a multiple of 256 bytes (64 numbers; the
 * padding between slices is 0 and stays 0). Gradient, prior mean, moments and samples are vectors of the same layout, so
 * log p(θ), a gradient norm, an optimiser step or an average of models is a handful of dispatches, and the code reads
 * like the mathematics. Parameters carry the checkpoint's names; a slice may hold several that one GEMM uses together
 * (query, key and value).
 */
import { type Into, NdArray, readArray, sizeOf } from "../kernels/array.ts";
import type { Engine } from "./engine.ts";
import { type GradientSlot, Tensor } from "./tensor.ts";

/** 256 bytes: WebGPU's alignment of a storage binding. */
const ALIGN = 64;

export interface ParameterSpec {
  /** As in the checkpoint. */
  name: string;
  shape: readonly number[];
}

export interface SliceSpec {
  /** How the model asks for the slice. For a slice of one parameter, its name. */
  key: string;
  /** Stored one after the other along the first axis. */
  parameters: readonly ParameterSpec[];
  /** From general to particular, e.g. ["encoder", "layer.3"] or ["head"]. */
  groups: readonly string[];
  /** An embedding table: a batch reads some of its rows, and only those have a gradient. */
  table?: boolean;
}

export interface Parameter extends ParameterSpec {
  /** In numbers from the start of the vector. */
  offset: number;
  size: number;
}

export interface Slice {
  key: string;
  parameters: readonly Parameter[];
  groups: readonly string[];
  shape: readonly number[];
  offset: number;
  size: number;
  /** Size with padding: the distance to the next slice. */
  stride: number;
  table: boolean;
}

export class Layout {
  readonly slices: readonly Slice[];
  /** Numbers in a vector, padding included. */
  readonly length: number;
  /** Numbers that are parameters. */
  readonly parameterCount: number;
  readonly #byName = new Map<string, Parameter>();
  readonly #byKey = new Map<string, number>();

  constructor(specs: readonly SliceSpec[]) {
    let offset = 0;
    let count = 0;
    this.slices = specs.map((spec, index) => {
      let inner = offset;
      const parameters = spec.parameters.map((p) => {
        const parameter = { ...p, offset: inner, size: sizeOf(p.shape) };
        if (this.#byName.has(p.name)) throw new Error(`two parameters are named ${p.name}`);
        this.#byName.set(p.name, parameter);
        inner += parameter.size;
        return parameter;
      });
      const size = inner - offset;
      const rest = spec.parameters[0]?.shape.slice(1) ?? [];
      const shape = [size / sizeOf(rest), ...rest];
      const stride = Math.ceil(size / ALIGN) * ALIGN;
      const { key, groups, table = false } = spec;
      const slice = { key, parameters, groups, shape, offset, size, stride, table };
      this.#byKey.set(spec.key, index);
      offset += stride;
      count += size;
      return slice;
    });
    this.length = offset;
    this.parameterCount = count;
  }

  get names(): string[] {
    return [...this.#byName.keys()];
  }

  /** Every group that a slice belongs to, general before particular, each once. */
  get groups(): string[] {
    return [...new Set(this.slices.flatMap((slice) => slice.groups))];
  }

  parameter(name: string): Parameter {
    const found = this.#byName.get(name);
    if (!found) throw new Error(`no parameter is named ${name}`);
    return found;
  }

  has(name: string): boolean {
    return this.#byName.has(name);
  }

  index(key: string): number {
    const found = this.#byKey.get(key);
    if (found === undefined) throw new Error(`no slice is named ${key}`);
    return found;
  }
}

/** The names of a slice's tensors, for sentences: what several have in common once, "….self.{query,key,value}.weight". */
export function tensorNames({ parameters }: Pick<Slice, "parameters">): string {
  const names = parameters.map(({ name }) => name.split("."));
  const [first = []] = names;
  const differing = first.flatMap((part, i) => (names.every((name) => name[i] === part) ? [] : [i]));
  const [only] = differing;
  if (only === undefined || differing.length > 1 || names.some(({ length }) => length !== first.length))
    return parameters.map(({ name }) => name).join(", ");
  return first.map((part, i) => (i === only ? `{${names.map((name) => name[i]).join(",")}}` : part)).join(".");
}

/** The value that holds for a slice: that of its most particular group that `values` names. */
export function valueFor<T>(slice: Slice, values: Readonly<Record<string, T>>): T | undefined {
  for (let i = slice.groups.length - 1; i >= 0; i--) {
    const group = slice.groups[i] as string;
    if (Object.hasOwn(values, group)) return values[group];
  }
  return undefined;
}

export class Theta {
  readonly engine: Engine;
  readonly layout: Layout;
  /** [layout.length], f32, persistent. */
  readonly values: NdArray;
  #gradient: NdArray | undefined;
  readonly #written = new Set<number>();
  /** Tables of whose gradient all but these rows is 0, as the vector stands. */
  readonly #rows = new Map<number, Set<number>>();
  readonly #frozen = new Set<number>();
  readonly #vectors: NdArray[] = [];

  /** All zeros to begin with. */
  constructor(engine: Engine, layout: Layout) {
    this.engine = engine;
    this.layout = layout;
    this.values = this.vector();
  }

  /** A persistent vector of θ's layout, all zeros; disposed of with θ. */
  vector(): NdArray {
    const { gpu } = this.engine;
    const { length } = this.layout;
    const array = new NdArray(gpu.allocate(4 * length, "theta.vector", { lasting: true }), 0, [length]);
    gpu.keep(array.buffer);
    gpu.clear(array);
    this.#vectors.push(array);
    return array;
  }

  /** Gives a vector made by `vector` back; nothing if θ's disposal has done so already. */
  release(vector: NdArray): void {
    const at = this.#vectors.indexOf(vector);
    if (at < 0) return;
    this.#vectors.splice(at, 1);
    this.engine.gpu.release(vector.buffer);
  }

  /** The leaf for one slice: its values are θ's own, its gradient goes into the gradient vector. */
  tensor(key: string): Tensor {
    const index = this.layout.index(key);
    const slice = this.layout.slices[index] as Slice;
    const requiresGrad = !this.#frozen.has(index);
    return new Tensor(
      this.engine,
      view(this.values, slice),
      requiresGrad,
      requiresGrad ? this.#slot(index, slice) : undefined,
    );
  }

  /** Slices for which `frozen` holds get no gradient from now on: no backward work is done for them. */
  freeze(frozen: (slice: Slice) => boolean): void {
    this.#frozen.clear();
    for (const [index, slice] of this.layout.slices.entries()) if (frozen(slice)) this.#frozen.add(index);
  }

  isFrozen(slice: Slice): boolean {
    return this.#frozen.has(this.layout.index(slice.key));
  }

  /** Forgets the gradient: the next contribution to a slice overwrites what is there. */
  zeroGradient(): void {
    this.#written.clear();
  }

  /** Whether there is a gradient vector yet. */
  get hasGradient(): boolean {
    return this.#gradient !== undefined;
  }

  /** The gradient vector; slices that no gradient has reached since `zeroGradient` are 0. */
  gradient(): NdArray {
    const gradient = this.#gradientVector();
    for (const [index, slice] of this.layout.slices.entries()) {
      if (this.#written.has(index) || this.#frozen.has(index)) continue;
      this.engine.gpu.clear(view(gradient, slice));
      this.#written.add(index);
      if (slice.table) this.#rows.set(index, new Set());
    }
    return gradient;
  }

  /** The rows of a table that the gradient vector may hold other than 0; undefined: any. */
  gradientRows(slice: Slice): ReadonlySet<number> | undefined {
    return this.#rows.get(this.layout.index(slice.key));
  }

  /** Writes one named parameter. `data` has its size. */
  set(name: string, data: Float32Array, vector = this.values): void {
    const p = this.layout.parameter(name);
    if (data.length !== p.size) throw new RangeError(`${name}: ${data.length} numbers for shape [${p.shape}]`);
    this.engine.gpu.write(new NdArray(vector.buffer, p.offset * 4, [p.size]), data);
  }

  /** One named parameter's numbers, from θ or from another vector of its layout. */
  get(name: string, vector = this.values): Promise<Float32Array> {
    const p = this.layout.parameter(name);
    return readArray(this.engine.gpu, new NdArray(vector.buffer, p.offset * 4, p.shape));
  }

  dispose(): void {
    for (const vector of this.#vectors.splice(0)) this.engine.gpu.release(vector.buffer);
    this.#gradient = undefined;
  }

  #gradientVector(): NdArray {
    if (this.#gradient) return this.#gradient;
    this.#gradient = this.vector();
    for (const [index, { table }] of this.layout.slices.entries()) if (table) this.#rows.set(index, new Set());
    return this.#gradient;
  }

  #slot(index: number, slice: Slice): GradientSlot {
    return {
      next: (rows): Into => {
        const array = view(this.#gradientVector(), slice);
        const accumulate = this.#written.has(index);
        this.#written.add(index);
        if (!slice.table) return { array, accumulate };
        const before = this.#rows.get(index);
        if (accumulate && before && rows) for (const row of rows) before.add(row);
        else if (rows && !accumulate) this.#rows.set(index, new Set(rows));
        else this.#rows.delete(index);
        const now = this.#rows.get(index);
        return { array, accumulate, stale: before && now && [...before].filter((row) => !now.has(row)) };
      },
    };
  }
}

function view(vector: NdArray, slice: Slice): NdArray {
  return new NdArray(vector.buffer, slice.offset * 4, slice.shape);
}
