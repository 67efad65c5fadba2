/**
 * @file Real models and data, which the repository does not hold: found through PRIORWORK_SHARED (default ../shared).
 * Tests that need them are skipped, with the reason in their name, where they are absent.
 */

import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll } from "vitest";

const SHARED = process.env.PRIORWORK_SHARED ?? "../shared";

export const shared = (...parts: string[]) => join(SHARED, ...parts);

/** For `describe.skipIf(absent.skip)(absent.named("…"))`: skip, aloud, unless all these paths exist. */
export function needs(...paths: string[]): { skip: boolean; named: (name: string) => string } {
  const missing = paths.find((path) => !existsSync(shared(path)));
  const reason = `SKIPPED: ${missing} not found; set PRIORWORK_SHARED`;
  return { skip: missing !== undefined, named: (name) => (missing === undefined ? name : `${name} [${reason}]`) };
}

/** A folder of this test file's own, removed after it. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "priorwork-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
