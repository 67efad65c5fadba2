/** @file PyTorch on the CPU, in a child process that PRIORWORK_PYTHON names (a python with torch) and torch_peer.py runs in. */
import { fileURLToPath } from "node:url";
import type { Peer } from "./peer.ts";
import { Pipe } from "./pipe.ts";

export async function openTorch(python: string): Promise<Peer> {
  const pipe = new Pipe(python, [fileURLToPath(new URL("torch_peer.py", import.meta.url))], {
    // Its threads sleep while others have their turn, instead of spinning.
    env: { ...process.env, OMP_WAIT_POLICY: "PASSIVE", KMP_BLOCKTIME: "0", PYTHONDONTWRITEBYTECODE: "1" },
  });
  const { answer } = await pipe.ask({ command: "hello" });
  return {
    name: "PyTorch CPU",
    version: answer.version ?? "",
    where: "cpu",
    native: true,
    prepare: (task, inputs) => pipe.prepare(task, inputs),
    close: () => pipe.close(),
  };
}
