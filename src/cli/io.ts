/** @file The world of a command: where it writes, what it is told, the time. Tests give their own. */

export interface Io {
  stdout: Stream;
  stderr: Stream;
  env: Readonly<Record<string, string | undefined>>;
  /** Aborted by the first Ctrl-C. */
  signal: AbortSignal;
  now: Clock;
}

export interface Stream {
  write(text: string): unknown;
  isTTY?: boolean | undefined;
  columns?: number | undefined;
}

/** Milliseconds, ever rising. */
export type Clock = () => number;
