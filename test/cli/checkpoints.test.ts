/** @file Checkpoints: what is read is what was written, or it is passed over with a reason; older ones go last. */
import { appendFileSync, existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { newestCheckpoint, removeOthers, writeCheckpoint } from "../../src/cli/checkpoints.ts";
import { temporaryFolder } from "../data/shared.ts";

const folder = temporaryFolder();
let made = 0;
const root = () => join(folder, `run-${made++}`, "checkpoints");
const bytes = (step: number) => Uint8Array.from([1, 2, 3, step]);
const write = (at: string, step: number) =>
  writeCheckpoint(at, "step", step, [
    { name: "state.bin", content: [bytes(step).subarray(0, 2), bytes(step).subarray(2)] },
    { name: "note.json", content: '{"a": "é"}' },
  ]);

test("a checkpoint comes back byte for byte, and the newest is taken", () => {
  const at = root();
  write(at, 9);
  write(at, 100_000_000);
  write(at, 10);
  const { taken, skipped } = newestCheckpoint(at, "step");
  expect(taken?.step).toBe(100_000_000);
  expect([...(taken?.files.get("state.bin") ?? [])]).toEqual([...bytes(100_000_000)]);
  expect(new TextDecoder().decode(taken?.files.get("note.json"))).toBe('{"a": "é"}');
  expect(skipped).toEqual([]);
});

test.each<[string, (at: string) => void, RegExp]>([
  [
    "a file cut short",
    (at) => writeFileSync(join(at, "state.bin"), "ab"),
    /state\.bin has 2 bytes \(the manifest says 4\)/,
  ],
  ["a file changed", (at) => writeFileSync(join(at, "state.bin"), "abcd"), /state\.bin is not what was written/],
  ["a file gone", (at) => rmSync(join(at, "state.bin")), /state\.bin has no bytes/],
  ["no manifest", (at) => rmSync(join(at, "manifest.json")), /manifest\.json: cannot open: no such file/],
  ["a manifest cut short", (at) => writeFileSync(join(at, "manifest.json"), '{"form'), /not valid JSON/],
  ["a manifest with more", (at) => appendFileSync(join(at, "manifest.json"), "x"), /not valid JSON/],
  [
    "a manifest that reaches outside",
    (at) =>
      writeFileSync(
        join(at, "manifest.json"),
        JSON.stringify({ format: 1, step: 2, files: { "../../secret": { bytes: 1, sha256: "" } } }),
      ),
    /names a file that no checkpoint has/,
  ],
])("%s is passed over with the reason, and the one before is taken", (_, harm, reason) => {
  const at = root();
  write(at, 1);
  write(at, 2);
  harm(join(at, "step-00000002"));
  const { taken, skipped } = newestCheckpoint(at, "step");
  expect(taken?.step).toBe(1);
  expect(skipped.map(({ name }) => name)).toEqual(["step-00000002"]);
  expect(skipped[0]?.reason).toMatch(reason);
});

test("one that a kill left unfinished is passed over, and removed by the next", () => {
  const at = root();
  write(at, 1);
  write(at, 2);
  // A kill before the rename.
  renameSync(join(at, "step-00000002"), join(at, ".step-00000002.99.tmp"));
  const { taken, skipped } = newestCheckpoint(at, "step");
  expect(taken?.step).toBe(1);
  expect(skipped).toEqual([{ name: ".step-00000002.99.tmp", reason: "it was never finished" }]);
  write(at, 3);
  // Both stand until the new one is whole.
  expect(existsSync(join(at, "step-00000001"))).toBe(true);
  removeOthers(at, "step", "step-00000003");
  expect(readdirSync(at)).toEqual(["step-00000003"]);
});

test("kinds are apart, strangers stay", () => {
  const at = root();
  write(at, 1);
  writeCheckpoint(at, "best", 1, [{ name: "theta.bin", content: bytes(1) }]);
  mkdirSync(join(at, "mine"));
  removeOthers(at, "step", undefined);
  expect(readdirSync(at).sort()).toEqual(["best-00000001", "mine"]);
  expect(newestCheckpoint(at, "step")).toEqual({ taken: undefined, skipped: [] });
  expect(newestCheckpoint(at, "best", 1).taken).toMatchObject({ step: 1 });
  expect(newestCheckpoint(join(at, "none"), "step").taken).toBeUndefined();
});

test("the same step again: the later one is taken, and the earlier stands until then", () => {
  const at = root();
  write(at, 1);
  const name = writeCheckpoint(at, "step", 1, [{ name: "other.bin", content: bytes(9) }]);
  expect(readdirSync(at)).toEqual(["step-00000001", name]);
  expect([...(newestCheckpoint(at, "step").taken?.files.keys() ?? [])]).toEqual(["other.bin"]);
  removeOthers(at, "step", name);
  expect(readdirSync(at)).toEqual([name]);
  expect(newestCheckpoint(at, "step", 1).taken?.name).toBe(name);
});
