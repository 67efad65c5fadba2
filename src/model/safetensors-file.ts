/**
 * @file A safetensors file on disk, read one tensor at a time, so that a model's weights never lie in memory beside the
 * whole file. Touches Node through data/files.ts.
 */

import { RangeFile } from "../data/files.ts";
import { inert, quote } from "../data/text.ts";
import { InputError } from "../errors.ts";
import { headerLength, parseHeader, type StoredTensor, type TensorPlace, toFloat32 } from "./safetensors.ts";

export class SafetensorsFile {
  readonly path: string;
  readonly metadata: ReadonlyMap<string, string>;
  /** Where each tensor lies, with dtype and shape. */
  readonly tensors: ReadonlyMap<string, TensorPlace>;
  readonly #file: RangeFile;

  /** Use `openSafetensors`. */
  constructor(file: RangeFile) {
    const first = file.read(0, Math.min(file.size, 512));
    const length = headerLength(first, file.size, file.path);
    const { metadata, tensors } = parseHeader(file.read(8, length), file.size, file.path);
    this.#file = file;
    this.path = file.path;
    this.metadata = metadata;
    this.tensors = tensors;
  }

  /** A tensor's bytes, read now. InputError: there is none of that name. */
  read(name: string): StoredTensor {
    const place = this.tensors.get(name);
    if (place === undefined) {
      throw new InputError(
        `${inert(this.path)}: no tensor ${quote(name, 100)} among its ${this.tensors.size}. Check the model.`,
      );
    }
    return { dtype: place.dtype, shape: place.shape, bytes: this.#file.read(place.start, place.end - place.start) };
  }

  /** A float tensor's elements as float32. InputError: no such tensor, or not F32, F16, BF16 or F64. */
  float32(name: string): Float32Array<ArrayBuffer> {
    return toFloat32(this.read(name), `${this.path}: tensor ${quote(name, 100)}`);
  }

  close(): void {
    this.#file.close();
  }
}

/** Opens a file and checks its header whole. Close it. InputError: broken; StorageError: the system refuses. */
export function openSafetensors(path: string): SafetensorsFile {
  const file = new RangeFile(path);
  try {
    return new SafetensorsFile(file);
  } catch (error) {
    file.close();
    throw error;
  }
}
