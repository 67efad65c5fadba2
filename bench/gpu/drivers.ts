/**
 * @file Finding the GPU's Vulkan driver. In a container it is often there and not found: its manifest lies where the
 * loader does not look, or the library that wants a display is named where the one that wants none would answer. So the
 * loader is given one manifest after the other until a GPU answers; if none does, what can be said about why is collected.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Ended } from "./start.ts";

const FOLDERS = [
  "/etc/vulkan/icd.d",
  "/usr/share/vulkan/icd.d",
  "/usr/local/share/vulkan/icd.d",
  "/usr/local/nvidia/share/vulkan/icd.d",
];

/** The loader says on stderr which file failed, and why. */
const LOUD = { VK_LOADER_DEBUG: "error,driver" };

export interface Found {
  /** What the parts' processes need in their environment; undefined: no GPU. */
  environment?: Record<string, string>;
  tried: { environment: Record<string, string>; outcome: string }[];
  diagnosis?: string;
}

/**
 * `ask` starts the adapter part under an environment; `answer` is the adapter that it told of, if any. With `software`,
 * or where PRIORWORK_ADAPTER says what is wanted, whatever answers is taken.
 */
export async function findDriver(
  ask: (environment: Record<string, string>) => Promise<Ended>,
  software: boolean,
  answer: () => unknown,
): Promise<Found> {
  const free = software || Boolean(process.env.PRIORWORK_ADAPTER);
  const found: Found = { tried: [] };
  const complaints: string[] = [];
  for (const environment of free ? [{}] : candidates()) {
    const end = await ask({ ...environment, ...LOUD });
    if (answer() !== undefined && !end.error) {
      found.tried.push({ environment, outcome: "taken" });
      found.environment = environment;
      return found;
    }
    const said = end.output.split("\n").filter((line) => /error|warning|fail/i.test(line));
    complaints.push(`with ${JSON.stringify(environment)}:`, ...new Set(said.map((line) => `  ${line.trim()}`)));
    found.tried.push({ environment, outcome: end.error ?? "no GPU answered" });
  }
  found.diagnosis = [
    ...complaints,
    ...FOLDERS.map((folder) => `${folder}: ${list(folder).join(" ") || "nothing"}`),
    shown("ldconfig", ["-p"]).filter((line) => /vulkan|nvidia|libEGL|libXext/i.test(line)).join("\n"), // biome-ignore format: one thing
    nvidiaSmi(),
  ].join("\n");
  return found;
}

function candidates(): Record<string, string>[] {
  const hardware = { PRIORWORK_ADAPTER: "hardware" };
  const manifests = FOLDERS.flatMap((folder) => list(folder).map((name) => join(folder, name)));
  return [
    hardware,
    ...manifests.filter((path) => /nvidia/i.test(path)).map((path) => ({ ...hardware, VK_DRIVER_FILES: path })),
    { ...hardware, VK_DRIVER_FILES: manifest("libEGL_nvidia.so.0") },
    { ...hardware, VK_DRIVER_FILES: manifest("libGLX_nvidia.so.0") },
  ];
}

/** A manifest of our own that names a library. */
function manifest(library: string): string {
  const path = join(mkdtempSync(join(tmpdir(), "priorwork-gpu-")), "icd.json");
  const icd = { file_format_version: "1.0.1", ICD: { library_path: library, api_version: "1.3.0" } };
  writeFileSync(path, JSON.stringify(icd));
  return path;
}

/** What the driver's own tool says; "" where there is none. */
export function nvidiaSmi(): string {
  const fields =
    "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,memory.used,memory.total";
  return shown("nvidia-smi", [`--query-gpu=${fields}`, "--format=csv"]).join("\n");
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

function shown(command: string, words: string[]): string[] {
  try {
    return execFileSync(command, words, { encoding: "utf8", timeout: 5000, stdio: ["ignore", "pipe", "ignore"] })
      .trim()
      .split("\n");
  } catch {
    return [];
  }
}
