/** @file Versions of this program and of what its numbers depend on, for `--version` and run.json. */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);

function versionIn(path: string): string {
  return String((JSON.parse(readFileSync(path, "utf8")) as { version: unknown }).version);
}

export const VERSION = versionIn(require.resolve("../../package.json"));

/** The Dawn bindings' version; "" where they are not installed. */
function dawnVersion(): string {
  try {
    return versionIn(require.resolve("webgpu/package.json"));
  } catch {
    return "";
  }
}

export interface Versions {
  priorwork: string;
  node: string;
  webgpu: string;
}

export function versions(): Versions {
  return { priorwork: VERSION, node: process.versions.node, webgpu: dawnVersion() };
}
