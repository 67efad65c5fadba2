/**
 * @file `posterior/` of a run folder: the many θ that a method keeps. A member is a safetensors file with the parameters
 * it covers, under the checkpoint's names (what it does not cover is model.safetensors'); posterior.json lists the
 * members with their SHA-256, and is written last. A member is read when it is asked for, and believed only if
 * it is the one that was written.
 */
import { mkdirSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Slice, Theta } from "../autograd/index.ts";
import { fileExists, readText, sha256File, storageError, writeFileAtomic } from "../data/files.ts";
import { isObject, type JsonObject, parseJson } from "../data/json.ts";
import { inert, quote } from "../data/text.ts";
import { InputError } from "../errors.ts";
import { firstNonFinite, safetensorsPieces, type TensorToWrite } from "../model/safetensors.ts";
import { openSafetensors } from "../model/safetensors-file.ts";
import { type Draws, spreadOver } from "../posterior/index.ts";
import { WEIGHTS, weightsHash } from "./model-folder.ts";

interface MemberFile {
  file: string;
  sha256: string;
  /** The chain or mode that it is of, where there are several. */
  chain?: number;
}

/** posterior.json. */
export interface PosteriorRecord {
  format: 1;
  method: string;
  /** Parameters that every member has. */
  covers: string[];
  members: MemberFile[];
  /** SHA-256 of the model.safetensors that has what the members do not cover; none where they cover all. */
  weights?: string;
  /** What the members were drawn with, for people. */
  settings: JsonObject;
}

const FOLDER = "posterior";
const MANIFEST = "posterior.json";
/** What an unfinished posterior has so far: as the manifest, without settings. Gone once that is written. */
const JOURNAL = "journal.json";

/** What is written here, whole or as a kill left it; whatever else lies in the folder is somebody's. */
const NAMES = String.raw`(posterior|journal|gaussian|trace)\.json|trace\.csv|(gaussian|member-\d{3,6})\.safetensors`;
const OURS = new RegExp(String.raw`^(${NAMES}|\.(${NAMES})\.\d+-\d+\.tmp)$`);

/** Writes members as they come; nothing is a posterior before `finish`. */
export class PosteriorWriter {
  readonly #folder: string;
  readonly #slices: readonly Slice[];
  readonly #members: MemberFile[] = [];
  readonly #method: string | undefined;
  /** Paths of what should list an earlier attempt's members and is not what is written here. */
  readonly broken: string[] = [];

  /**
   * Removes what an earlier attempt has left, and nothing else. `slices`: what a member covers. `keep`: the method whose
   * members, where each is costly and does not depend on those before it, stay as far as they are whole; `size` says how many
   * do, `broken` which lists of them could not be read.
   */
  constructor(run: string, slices: readonly Slice[], { keep }: { keep?: string } = {}) {
    this.#folder = join(run, FOLDER);
    this.#slices = slices;
    this.#method = keep;
    if (keep !== undefined) this.#members.push(...this.#whole(keep));
    const kept = new Set(this.#members.map(({ file }) => file));
    try {
      mkdirSync(this.#folder, { recursive: true });
      if (keep !== undefined) this.#writeJournal();
      for (const name of readdirSync(this.#folder)) {
        if (!OURS.test(name) || kept.has(name) || (keep !== undefined && name === JOURNAL)) continue;
        rmSync(join(this.#folder, name), { recursive: true, force: true });
      }
    } catch (error) {
      throw storageError(this.#folder, "write", error);
    }
  }

  /** Members that are there. */
  get size(): number {
    return this.#members.length;
  }

  /** `values`: the slices' numbers one after the other; `chain`: which chain or mode gave them. */
  add(values: Float32Array, chain?: number): void {
    const tensors: TensorToWrite[] = [];
    let at = 0;
    for (const { name, shape, size } of this.#slices.flatMap(({ parameters }) => parameters)) {
      tensors.push({ name, dtype: "F32", shape, data: values.subarray(at, at + size) });
      at += size;
    }
    const file = memberFile(this.#members.length);
    const path = join(this.#folder, file);
    writeFileAtomic(path, safetensorsPieces(tensors));
    this.#members.push({ file, sha256: sha256File(path), ...(chain === undefined ? {} : { chain }) });
    if (this.#method !== undefined) this.#writeJournal();
  }

  /** `theta`: at the run's mode, which has the parameters that members do not cover. */
  async finish(method: string, settings: JsonObject, theta: Theta): Promise<void> {
    const record: PosteriorRecord = {
      ...{ format: 1, method, covers: this.#covers, members: this.#members },
      ...(this.#slices.length < theta.layout.slices.length ? { weights: await weightsHash(theta) } : {}),
      settings,
    };
    writeFileAtomic(join(this.#folder, MANIFEST), `${JSON.stringify(record, null, 2)}\n`);
    rmSync(join(this.#folder, JOURNAL), { force: true });
  }

  get #covers(): string[] {
    return this.#slices.flatMap(({ parameters }) => parameters.map(({ name }) => name));
  }

  #writeJournal(): void {
    const record = { format: 1, method: this.#method, covers: this.#covers, members: this.#members };
    writeFileAtomic(join(this.#folder, JOURNAL), `${JSON.stringify(record, null, 2)}\n`);
  }

  /** The first members of an earlier attempt, up to one that is not the one that was written. */
  #whole(method: string): MemberFile[] {
    for (const name of [JOURNAL, MANIFEST]) {
      const path = join(this.#folder, name);
      if (!fileExists(path)) continue;
      const record = wholeRecordAt(path);
      if (record === undefined) this.broken.push(path);
      if (record?.method !== method || String(record.covers) !== String(this.#covers)) continue;
      const broken = record.members.findIndex(({ file, sha256 }, s) => {
        const member = join(this.#folder, file);
        return file !== memberFile(s) || !fileExists(member) || sha256File(member) !== sha256;
      });
      return record.members.slice(0, broken < 0 ? undefined : broken);
    }
    return [];
  }
}

function memberFile(s: number): string {
  return `member-${String(s).padStart(3, "0")}.safetensors`;
}

/** InputError: the run's weights are not those of SHA-256 `weights`, as its `manifest` has it; `what` names them. */
export function checkWeights(
  run: string,
  { weights, manifest, what }: { weights: string; manifest: string; what: string },
): void {
  const path = join(run, WEIGHTS);
  if (sha256File(path) === weights) return;
  throw new InputError(
    `${inert(path)}: not the θ that ${what} (its SHA-256 differs from ${manifest}'s weights). Restore it, or train again.`,
  );
}

/** The manifest of a run's posterior, or undefined where it keeps none. InputError: it is broken. */
export function readPosterior(run: string): PosteriorRecord | undefined {
  const path = join(run, FOLDER, MANIFEST);
  if (!fileExists(path)) return undefined;
  const record = recordAt(path);
  if (record === undefined || record.members.length === 0 || record.covers.length === 0 || !isObject(record.settings)) {
    throw new InputError(
      `${inert(path)}: not what priorwork writes (format, method, covers, members or settings). Train again with --overwrite.`,
    );
  }
  return record;
}

/** Whether it is a SHA-256 as it stands in a manifest. */
export const isHash = (x: unknown): x is string => typeof x === "string" && /^[0-9a-f]{64}$/.test(x);

/** As `recordAt`, but undefined also where it is no JSON. */
function wholeRecordAt(path: string): PosteriorRecord | undefined {
  try {
    return recordAt(path);
  } catch (error) {
    if (error instanceof InputError) return undefined;
    throw error;
  }
}

/** A manifest or a journal; undefined: it is not what is written here. InputError: it is no JSON. */
function recordAt(path: string): PosteriorRecord | undefined {
  const record = parseJson(readText(path, { maxBytes: 16 << 20 }), path);
  const members: unknown = record.members;
  const words = (x: unknown): x is string[] => Array.isArray(x) && x.every((word) => typeof word === "string");
  const ok =
    record.format === 1 &&
    typeof record.method === "string" &&
    words(record.covers) &&
    (record.weights === undefined || isHash(record.weights)) &&
    Array.isArray(members) &&
    members.every(
      // A name of ours and nothing else: a manifest must not lead out of its folder.
      (m) =>
        isObject(m) &&
        typeof m.file === "string" &&
        /^member-\d{3,6}\.safetensors$/.test(m.file) &&
        isHash(m.sha256) &&
        (m.chain === undefined || Number.isSafeInteger(m.chain)),
    );
  return ok ? (record as unknown as PosteriorRecord) : undefined;
}

/**
 * `members` of a run's draws, from each chain or mode in turn and spread over it (`spreadOver`); for a model of its architecture. InputError: more than it holds, a tensor that the model has not or has in
 * another shape, a file that is not the one written or that holds more than the manifest says.
 */
export function storedDraws(
  run: string,
  record: PosteriorRecord,
  theta: Pick<Theta, "layout">,
  members?: number,
): Draws {
  const count = members ?? record.members.length;
  if (count > record.members.length) {
    throw new InputError(
      `--members ${count}: more than the run holds (${record.members.length} in ${inert(join(run, FOLDER))}). Ask for fewer, or leave the flag out.`,
    );
  }
  // Laplace's come in pairs about the mode: the first so many keep theirs.
  const chosen =
    record.method === "laplace"
      ? record.members.map((_, s) => s)
      : spreadOver(
          record.members.map(({ chain }) => chain),
          count,
        );
  const known = new Set(record.covers);
  const strange = record.covers.find((name) => !theta.layout.has(name));
  if (strange !== undefined) {
    throw new InputError(
      `${inert(join(run, FOLDER, MANIFEST))}: the model has no tensor ${quote(strange, 100)}. Is this the run that it was written for?`,
    );
  }
  const slices = theta.layout.slices.filter(({ parameters }) => parameters.some(({ name }) => known.has(name)));
  const size = slices.reduce((sum, slice) => sum + slice.size, 0);
  return {
    size: count,
    slices,
    read(s) {
      const member = record.members[chosen[s] ?? 0] as MemberFile;
      const path = join(run, FOLDER, member.file);
      if (sha256File(path) !== member.sha256) {
        throw new InputError(
          `${inert(path)}: not the member that the run wrote (its SHA-256 differs from posterior.json's). Restore it, or train again.`,
        );
      }
      const file = openSafetensors(path);
      try {
        const more = [...file.tensors.keys()].find((name) => !known.has(name));
        if (more !== undefined) {
          throw new InputError(
            `${inert(path)}: holds tensor ${inert(more.slice(0, 100))}, which posterior.json's covers does not name. Restore both, or train again.`,
          );
        }
        const values = new Float32Array(size);
        let at = 0;
        for (const { name, shape, size } of slices.flatMap(({ parameters }) => parameters)) {
          const found = file.tensors.get(name)?.shape;
          if (String(found) !== String(shape)) {
            throw new InputError(
              `${inert(path)}: tensor ${name} has shape [${found ?? "none"}] (expected [${shape}]). Is this the run that it was written for?`,
            );
          }
          const data = file.float32(name);
          const bad = firstNonFinite(data);
          if (bad >= 0) {
            throw new InputError(
              `${inert(path)}: tensor ${name} has ${data[bad]} at position ${bad} (expected finite numbers). Train again.`,
            );
          }
          values.set(data, at);
          at += size;
        }
        return values;
      } finally {
        file.close();
      }
    },
  };
}
