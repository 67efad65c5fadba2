/**
 * @file The device in Node: reads the shader folder, and chooses an adapter aloud. The chain is real GPU → software
 * Vulkan of the system (Mesa's lavapipe) → the SwiftShader library inside the npm package `@sparticuz/chromium`, which
 * runs where there is no Vulkan at all (linux-x64). PRIORWORK_ADAPTER overrides: hardware | software | bundled | a part
 * of an adapter's name. One of the few files that touch Node.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";
import { createBrotliDecompress } from "node:zlib";
import { DeviceError, InputError } from "../errors.ts";
import { type AdapterReport, Gpu, type MatrixUnit } from "./gpu.ts";
import type { ShaderSources } from "./shaders.ts";
import { restBetweenTurns } from "./wait.ts";

/** What was asked for an adapter, and why it was or was not taken. */
export interface Attempt {
  name: string;
  taken: boolean;
  reason: string;
}

export interface OpenOptions {
  /** As PRIORWORK_ADAPTER. */
  adapter?: string | undefined;
  /** Further Dawn toggles, e.g. "disable_robustness" for a bench. */
  toggles?: readonly string[];
  /** Every attempt is told here, in order. */
  onAttempt?: (attempt: Attempt) => void;
}

/** Dawn's toggles of every device: on, and off. */
export const ENABLED = ["allow_unsafe_apis", "vulkan_enable_f16_on_nvidia"];
export const DISABLED = ["timestamp_quantization"];
const FEATURES = ["subgroups", "shader-f16", "timestamp-query", "chromium-experimental-subgroup-matrix"];

const INSTALL =
  "Install a GPU driver with Vulkan, or Mesa's software Vulkan (Debian 12: mesa-vulkan-drivers and libvulkan1 from bookworm-backports), or on linux-x64 run `npm install --include=optional`.";

/** All of shaders/*.wgsl, by name. */
export function readShaders(folder = fileURLToPath(new URL("../../shaders", import.meta.url))): ShaderSources {
  const sources = new Map<string, string>();
  for (const file of readdirSync(folder).sort()) {
    if (file.endsWith(".wgsl")) sources.set(file.slice(0, -5), readFileSync(join(folder, file), "utf8"));
  }
  return sources;
}

/**
 * Opens the best adapter there is. Throws DeviceError with every attempt and its reason when there is none, InputError
 * when the one that was named is not there.
 */
export async function openGpu(options: OpenOptions = {}): Promise<Gpu> {
  const wanted = options.adapter ?? process.env.PRIORWORK_ADAPTER ?? "";
  const attempts: Attempt[] = [];
  const note = (name: string, taken: boolean, reason: string) => {
    const attempt = { name, taken, reason };
    attempts.push(attempt);
    options.onAttempt?.(attempt);
  };
  const toggles = [
    `enable-dawn-features=${[...ENABLED, ...(options.toggles ?? [])].join(",")}`,
    `disable-dawn-features=${DISABLED.join(",")}`,
  ];
  let dawn: Dawn;
  try {
    dawn = (await import("webgpu")) as unknown as Dawn;
  } catch (error) {
    throw new DeviceError(
      `the package \`webgpu\` (Dawn) does not load here: ${message(error)}. Run npm install; it needs 64-bit Linux with glibc ≥ 2.34, macOS or Windows.`,
      "open",
      { cause: error },
    );
  }

  if (wanted !== "bundled" && loaded.length > 0) {
    // SwiftShader would be found under the system's name, and other kernels be chosen for it than the first time.
    note("system", false, "this process has loaded the bundled Vulkan, which stands in the system's place");
  } else if (wanted !== "bundled") {
    const instance = dawn.create(toggles);
    const adapter = await requestAdapter(instance);
    if (!adapter) {
      note("system", false, "no usable Vulkan, Metal or D3D12 driver was found on this system");
    } else {
      const software = isSoftware(adapter.info);
      const name = adapterName(adapter.info);
      const refusal = refuse(wanted, software, name);
      if (refusal === undefined) {
        try {
          const gpu = await openAdapter(instance, adapter, software ? "software" : "hardware");
          note(name, true, software ? "software adapter of the system" : "GPU");
          return gpu;
        } catch (error) {
          note(name, false, message(error));
        }
      } else {
        note(name, false, refusal);
      }
    }
  }
  if (wanted === "" || wanted === "bundled" || "swiftshader".includes(wanted.toLowerCase())) {
    try {
      await loadBundledVulkan();
      const instance = dawn.create(toggles);
      const adapter = await requestAdapter(instance);
      if (!adapter) throw new Error("Dawn found no adapter in it");
      const gpu = await openAdapter(instance, adapter, "bundled");
      note(
        adapterName(adapter.info),
        true,
        "SwiftShader from the package @sparticuz/chromium: works everywhere on linux-x64, about 5× slower than lavapipe",
      );
      return gpu;
    } catch (error) {
      note("bundled SwiftShader", false, message(error));
    }
  }
  const tried = attempts.map((a) => `${a.name}: ${a.reason}`).join("; ");
  if (wanted !== "") {
    const known = ["hardware", "software", "bundled"].includes(wanted);
    const text = `PRIORWORK_ADAPTER=${wanted}: no such adapter here (${tried}). Choose hardware, software, bundled or a part of an adapter's name; \`priorwork doctor\` lists them.`;
    throw known ? new DeviceError(text, "open") : new InputError(text);
  }
  throw new DeviceError(`no adapter: ${tried}. ${INSTALL}`, "open");
}

interface Dawn {
  create(options: string[]): GPU;
}

function refuse(wanted: string, software: boolean, name: string): string | undefined {
  if (wanted === "" || wanted === (software ? "software" : "hardware")) return undefined;
  if (wanted === "hardware") return "a software adapter, and PRIORWORK_ADAPTER=hardware asks for a GPU";
  if (wanted === "software") return "a GPU, and PRIORWORK_ADAPTER=software asks for a software adapter";
  return name.toLowerCase().includes(wanted.toLowerCase()) ? undefined : `its name does not contain "${wanted}"`;
}

async function requestAdapter(instance: GPU): Promise<GPUAdapter | null> {
  try {
    return await instance.requestAdapter({ powerPreference: "high-performance" });
  } catch {
    return null;
  }
}

/** By its names alone: Dawn calls the architecture of every driver with Mesa's vendor number "software", a GPU of Apple's too. */
export function isSoftware({ device, description }: Pick<GPUAdapterInfo, "device" | "description">): boolean {
  return /llvmpipe|lavapipe|swiftshader|software|basic render/i.test(`${device} ${description}`);
}

function adapterName(info: GPUAdapterInfo): string {
  // Dawn makes "SwiftShader Device (Subzero)" into "swiftshader-device-subzero-".
  return info.device.replace(/-+$/, "") || info.description || info.vendor || "unnamed adapter";
}

async function openAdapter(instance: GPU, adapter: GPUAdapter, kind: AdapterReport["kind"]): Promise<Gpu> {
  const features = FEATURES.filter((f) => adapter.features.has(f as GPUFeatureName));
  const limits = numbers(adapter.limits as unknown as Record<string, number>);
  const device = await adapter.requestDevice({
    requiredFeatures: features as GPUFeatureName[],
    requiredLimits: limits,
  });
  const info = adapter.info;
  const matrixUnit = matrixUnitOf(features, info);
  const gpu = new Gpu(
    instance,
    device,
    {
      name: adapterName(info),
      kind,
      driver: info.description,
      features,
      limits,
      subgroupSize: features.includes("subgroups") ? fixedSubgroupSize(info) : 0,
      ...(matrixUnit ? { matrixUnit } : {}),
    },
    readShaders(),
  );
  if (kind !== "hardware") gpu.onWait = restBetweenTurns();
  return gpu;
}

/** 0 where the size may vary from dispatch to dispatch: our kernels want it known. */
function fixedSubgroupSize(info: GPUAdapterInfo): number {
  const size = info.subgroupMinSize ?? 0;
  return size === info.subgroupMaxSize ? size : 0;
}

/** Dawn's list of what its subgroup matrices can be; not yet in @webgpu/types. */
interface MatrixConfig extends MatrixUnit {
  readonly componentType: string;
  readonly resultComponentType: string;
}

/**
 * The largest unit with f16 factors and f32 sums. The feature alone proves nothing: where f16 is hidden, the list is empty.
 * An integer or f16 sum is of no use to training, and sizes other than 8, 16 and 32 do not divide our tiles.
 */
function matrixUnitOf(features: readonly string[], info: GPUAdapterInfo): MatrixUnit | undefined {
  if (!["chromium-experimental-subgroup-matrix", "shader-f16"].every((f) => features.includes(f))) return undefined;
  const { subgroupMatrixConfigs = [] } = info as { subgroupMatrixConfigs?: Iterable<MatrixConfig> };
  const fit = [...subgroupMatrixConfigs].filter(
    ({ componentType, resultComponentType, M, N, K }) =>
      componentType === "f16" && resultComponentType === "f32" && [M, N, K].every((size) => [8, 16, 32].includes(size)),
  );
  const [best] = fit.sort((a, b) => b.M * b.N * b.K - a.M * a.N * a.K);
  return best && { M: best.M, N: best.N, K: best.K };
}

/** The limits as plain numbers; they live on the prototype, so a spread would miss them. */
function numbers(limits: Record<string, number>): Record<string, number> {
  const found: Record<string, number> = {};
  // maxImmediateSize is fixed and may not be requested.
  for (const key in limits) {
    const value = limits[key];
    if (typeof value === "number" && key !== "maxImmediateSize") found[key] = value;
  }
  return found;
}

/** Keeps the libraries loaded for the life of the process. */
const loaded: unknown[] = [];

/** Unpacks SwiftShader and its Vulkan loader beside the user's other caches and loads the loader into this process. */
async function loadBundledVulkan(): Promise<void> {
  if (process.platform !== "linux" || process.arch !== "x64") {
    throw new Error(`it is for linux-x64 only, and this is ${process.platform}-${process.arch}`);
  }
  if (loaded.length > 0) return;
  const require = createRequire(import.meta.url);
  let archive: string;
  let koffi: { load(path: string): unknown };
  try {
    // The package's entry is build/cjs/index.cjs; the archive lies in bin/.
    archive = join(dirname(require.resolve("@sparticuz/chromium")), "../../bin/swiftshader.tar.br");
    koffi = require("koffi");
  } catch {
    throw new Error("its optional packages are not installed (npm install --include=optional)");
  }
  const folder = await unpack(archive);
  const manifest = join(folder, "vk_swiftshader_icd.json");
  process.env.VK_DRIVER_FILES = manifest;
  process.env.VK_ICD_FILENAMES = manifest;
  loaded.push(koffi.load(join(folder, "libvulkan.so.1")));
}

/** Where what can be made again is kept: PRIORWORK_CACHE, or a folder of ours beside the user's other caches. */
export function cacheFolder(env: Readonly<Record<string, string | undefined>> = process.env): string {
  return env.PRIORWORK_CACHE || join(env.XDG_CACHE_HOME || join(homedir(), ".cache"), "priorwork");
}

/** The archive's three files, in a folder of the user's own that is named by the archive's hash; unpacked once. */
async function unpack(archive: string): Promise<string> {
  const bytes = readFileSync(archive);
  const hash = createHash("sha256").update(bytes).digest("hex").slice(0, 16);
  const folder = join(cacheFolder(), `swiftshader-${hash}`);
  if (existsSync(join(folder, "vk_swiftshader_icd.json"))) return folder;
  const { extract } = (await import("tar-stream")) as typeof import("tar-stream");
  const partial = `${folder}.${process.pid}`;
  mkdirSync(partial, { recursive: true, mode: 0o700 });
  const untar = extract();
  untar.on("entry", (header, stream, next) => {
    const chunks: Buffer[] = [];
    stream.on("data", (chunk: unknown) => chunks.push(chunk as Buffer));
    stream.on("end", () => {
      const name = header.name.split("/").at(-1) ?? "";
      if (header.type === "file" && /^[\w.]+$/.test(name))
        writeFileSync(join(partial, name), Buffer.concat(chunks), { mode: 0o700 });
      next();
    });
  });
  await pipeline(Readable.from([bytes]), createBrotliDecompress(), untar);
  try {
    renameSync(partial, folder);
  } catch (error) {
    rmSync(partial, { recursive: true, force: true });
    // Another process may have finished first.
    if (!existsSync(join(folder, "vk_swiftshader_icd.json"))) throw error;
  }
  return folder;
}

function message(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split("\n", 1)[0] ?? "";
}
