/**
 * @file burn (Rust) with its wgpu backend, in a child process: the crate in burn/, which cargo builds the first time into
 * burn/target (or CARGO_TARGET_DIR) and finds there later; PRIORWORK_BURN names a program that is built already. Its
 * kernels are fused and tuned as burn does by default, with fewer samples for each (burn/cubecl.toml).
 */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { milliseconds } from "../rounds.ts";
import { type Peer, type Prepared, Refusal } from "./peer.ts";
import { Pipe } from "./pipe.ts";

const FOLDER = fileURLToPath(new URL("burn", import.meta.url));

/**
 * By the largest number of an array: burn's GELU is exact, but its backward is the derivative of the form by tanh, which is
 * off by up to 1e-3.
 */
const GELU_TOLERANCE = 1e-3;

/** `adapter`: the name of the one that all share, as Dawn says it. Throws Refusal where burn can't be built or takes another. */
export async function openBurn(adapter: string, note: (line: string) => void): Promise<Peer> {
  const pipe = new Pipe(process.env.PRIORWORK_BURN ?? build(note), [], { cwd: FOLDER });
  const { answer } = await pipe.ask({ command: "hello" });
  if (adapterKey(answer.adapter ?? "") !== adapterKey(adapter)) {
    await pipe.close();
    throw new Refusal(`its adapter is ${answer.adapter ?? "unknown"}, the others have ${adapter}`);
  }
  return {
    name: "burn",
    version: pinned("burn"),
    where: "gpu",
    native: true,
    prepare: async (task, inputs) => {
      const trial = await pipe.prepare(task, inputs);
      await settled(trial);
      await trial.dispose();
      const prepared = await pipe.prepare(task, inputs); // anew: a trial has trained
      return task.work.kind === "layer" ? { ...prepared, gradientTolerance: GELU_TOLERANCE } : prepared;
    },
    close: () => pipe.close(),
  };
}

/** Runs until it gets no faster by a fifth: the first run tunes, the next look for operations to fuse. */
async function settled({ run }: Prepared): Promise<void> {
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 6; i++) {
    const ms = await milliseconds(run);
    if (ms > 0.8 * best) return;
    best = ms;
  }
}

/** Dawn makes "llvmpipe (LLVM 15.0.6, 256 bits)" into "llvmpipe-llvm-15-0-6-256-bits"; wgpu leaves it. */
export function adapterKey(name: string): string {
  return name
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .replace(/^-|-$/g, "");
}

/** Path of the program, up to date. */
function build(note: (line: string) => void): string {
  if (spawnSync("cargo", ["--version"]).status !== 0) throw new Refusal("cargo is not on PATH");
  const target = resolve(process.env.CARGO_TARGET_DIR ?? join(FOLDER, "target"));
  const program = join(target, "release", `priorwork-burn${process.platform === "win32" ? ".exe" : ""}`);
  const first = !existsSync(program);
  if (first) note(`note: building burn into ${target}, this first time only: it takes many minutes`);
  const args = ["build", "--release", "--target-dir", target, ...(first ? [] : ["--quiet"])];
  const { status } = spawnSync("cargo", args, { cwd: FOLDER, stdio: ["ignore", 2, 2] });
  if (status !== 0) throw new Refusal("cargo build failed, see above");
  return program;
}

/** The version that Cargo.toml holds still. */
function pinned(crate: string): string {
  const manifest = readFileSync(join(FOLDER, "Cargo.toml"), "utf8");
  return new RegExp(`^${crate} = .*"=([^"]+)"`, "m").exec(manifest)?.[1] ?? "";
}
