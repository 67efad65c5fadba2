/**
 * @file The real process as a command's world. The first Ctrl-C asks the command to finish its step and save; the second
 * ends at once. A reader that goes away (`| head`) is no failure, and a failure is one line, whatever was under way.
 */
import { storageError } from "../data/files.ts";
import type { Io } from "./io.ts";
import { main, reportFailure } from "./main.ts";

export async function run(argv: readonly string[] = process.argv.slice(2)): Promise<void> {
  const interrupted = new AbortController();
  const onSignal = () => {
    if (interrupted.signal.aborted) process.exit(130);
    interrupted.abort();
    process.stderr.write("\nnote: stopping after this step; Ctrl-C again stops at once\n");
  };
  // Only once a command looks at the signal: until then nothing is written, and while tables are read no handler would
  // get its turn, so Ctrl-C ends the program as it ends any other.
  let listening = false;
  const listen = () => {
    if (listening) return;
    listening = true;
    process.on("SIGINT", onSignal);
    process.on("SIGTERM", onSignal);
  };
  // What cannot be said is no reason to stop; an answer that cannot be written is.
  process.stderr.on("error", () => {});
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") return;
    process.stderr.write(`${storageError("stdout", "write", error).message}\n`);
    process.exit(4);
  });
  const io: Io = {
    stdout: process.stdout,
    stderr: process.stderr,
    env: process.env,
    get signal() {
      listen();
      return interrupted.signal;
    },
    now: () => performance.now(),
  };
  // A failure closes the device, and what still waits for it fails after it: that is no news. Without a failure it is.
  const unawaited: unknown[] = [];
  let ended = false;
  const onRejection = (error: unknown) => {
    if (!ended) unawaited.push(error);
    else if (!process.exitCode) process.exitCode = reportFailure(error, io);
  };
  process.on("unhandledRejection", onRejection);
  // Where `main` waits for what such a failure should have settled, nothing else would tell of it.
  const onExit = () => {
    if (!ended && unawaited.length > 0) process.exitCode = reportFailure(unawaited[0], io);
  };
  process.once("exit", onExit);
  process.exitCode = await main(argv, io);
  ended = true;
  process.off("exit", onExit);
  for (const error of unawaited) onRejection(error);
  process.off("SIGINT", onSignal);
  process.off("SIGTERM", onSignal);
}
