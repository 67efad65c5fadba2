/**
 * @file What `bench --tune` found, on disk: a file an adapter and driver in the user's cache. It is taken up whenever a
 * device is opened by a command or by `open()`, said aloud, and never an obstacle: a file that is damaged or was measured
 * with other shaders is left aside with a remark. PRIORWORK_TUNED=0 leaves it aside in silence.
 */
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileExists, readText, sha256, storageError, writeFileAtomic } from "../data/files.ts";
import { isObject, type JsonObject, parseJson } from "../data/json.ts";
import { inert } from "../data/text.ts";
import { PriorworkError } from "../errors.ts";
import type { AdapterReport, Gpu } from "../gpu/index.ts";
import { cacheFolder, readShaders } from "../gpu/node.ts";
import { type Choice, type Choices, parseChoices, useChoices } from "../kernels/matmul-choice.ts";
import { FAMILIES, type Family } from "../kernels/matmul-families.ts";
import type { Io } from "./io.ts";

export interface Tuned {
  file: string;
  /** The day on which it was measured. */
  date: string;
}

/** What loading came to: choices in force, or why a file that is there is not used; both absent where there is none. */
export interface Loaded {
  tuned?: Tuned;
  problem?: string;
}

/** Puts this adapter's choices in force, where it was tuned. Throws nothing. */
export function loadTuned(gpu: Gpu, env: Io["env"]): Loaded {
  if (env.PRIORWORK_TUNED === "0") return {};
  const file = tunedFile(gpu.adapter, env);
  try {
    if (!fileExists(file)) return {};
    const found = read(gpu, file);
    useChoices(gpu, parseChoices(found.choices));
    return { tuned: { file, date: typeof found.date === "string" ? found.date.slice(0, 10) : "an unknown day" } };
  } catch (error) {
    if (!(error instanceof PriorworkError || error instanceof TypeError)) throw error;
    const reason = error instanceof PriorworkError ? error.message : `${inert(file)}: ${error.message}.`;
    return { problem: `${reason} The built-in choice of kernels is used; priorwork bench --tune measures anew.` };
  }
}

/** The remark for what was loaded, without "note: "; undefined where nothing was. */
export function tunedRemark({ tuned, problem }: Loaded): string | undefined {
  return tuned ? `matrix products as tuned here on ${tuned.date} (PRIORWORK_TUNED=0: as built in)` : problem;
}

/** Writes the choices for this adapter; gives the file. StorageError: the system refused. */
export function storeTuned(gpu: Gpu, env: Io["env"], choices: Choices): string {
  const file = tunedFile(gpu.adapter, env);
  write(gpu, env, file, { choices });
  rmSync(unfinishedFile(gpu.adapter, env), { force: true });
  return file;
}

/** A shape that was measured: its choice, and the milliseconds of each family. */
export interface Measured {
  choice: Choice;
  milliseconds: Partial<Record<Family, number>>;
}

/** Keeps what a tuning has measured so far, in no command's force. StorageError: the system refused. */
export function keepUnfinished(gpu: Gpu, env: Io["env"], measured: readonly Measured[]): void {
  write(gpu, env, unfinishedFile(gpu.adapter, env), {
    choices: measured.map(({ choice }) => choice),
    milliseconds: measured.map(({ milliseconds }) => milliseconds),
  });
}

/** What a tuning of this adapter with these shaders had measured when it ended early; none where its file is no good. */
export function readUnfinished(gpu: Gpu, env: Io["env"]): Measured[] {
  const file = unfinishedFile(gpu.adapter, env);
  try {
    if (!fileExists(file)) return [];
    const found = read(gpu, file);
    const times = found.milliseconds;
    return parseChoices(found.choices).map((choice, i) => {
      const milliseconds = (Array.isArray(times) ? times[i] : undefined) as unknown;
      if (!isObject(milliseconds) || !Object.values(milliseconds).every((ms) => typeof ms === "number" && ms > 0)) {
        throw new TypeError(`choice ${i} has no times`);
      }
      return { choice, milliseconds };
    });
  } catch (error) {
    if (!(error instanceof PriorworkError || error instanceof TypeError)) throw error;
    return [];
  }
}

function read(gpu: Gpu, file: string): JsonObject {
  const found = parseJson(readText(file, { maxBytes: 4 << 20 }), file);
  if (found.format !== 1 || found.adapter !== gpu.adapter.name || found.driver !== gpu.adapter.driver) {
    throw new TypeError("not a file of this adapter's choices");
  }
  if (found.shaders !== shadersHash()) throw new TypeError("measured with other shaders");
  return found;
}

function write(gpu: Gpu, env: Io["env"], file: string, found: JsonObject): void {
  const { name, driver } = gpu.adapter;
  const content = {
    format: 1,
    adapter: name,
    driver,
    shaders: shadersHash(),
    date: new Date().toISOString(),
    ...found,
  };
  const folder = cacheFolder(env);
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw storageError(folder, "write", error);
  }
  writeFileAtomic(file, `${JSON.stringify(content, null, 2)}\n`);
}

function tunedFile({ name, driver }: AdapterReport, env: Io["env"]): string {
  return join(cacheFolder(env), `matmul-${sha256(JSON.stringify([name, driver])).slice(0, 16)}.json`);
}

function unfinishedFile(adapter: AdapterReport, env: Io["env"]): string {
  return tunedFile(adapter, env).replace(/json$/, "unfinished.json");
}

/** Of all that was measured: the shaders of products, and which families there are. */
function shadersHash(): string {
  const sources = [...readShaders()].filter(([name]) => name.startsWith("matmul_"));
  return sha256(JSON.stringify([Object.keys(FAMILIES), sources]));
}
