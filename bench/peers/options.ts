/** @file The flags of `npm run bench:peers`, and which tasks they choose. */
import { parseArgs } from "node:util";
import type { Task } from "./peer.ts";

export const LEAST_ROUNDS = 9;

export const HELP = `npm run bench:peers [-- FILTER… flags]

Tasks whose name contains a FILTER (all without one), on priorwork and on every peer that can do them, in turn.

  --rounds N        rounds that are timed, at least ${LEAST_ROUNDS} for the table (${LEAST_ROUNDS})
  --burn            with burn; where cargo has not built bench/peers/burn yet, it does now: 17 minutes on two idle cores, an hour on busy ones
  --without PEER    leave a peer out: jax-js, tfjs-webgpu, onnxruntime-web, "PyTorch CPU"; may be given again
  --small           a rehearsal: every task at a small size, which is no measurement
  --save FILE       keep the result as JSON, written anew after every task
  --merge FILE      take the tasks that this run does not measure from such a file
  --markdown        write the table of bench/README.md: all tasks, measured or merged
  --json            the result as JSON on stdout, instead of text
  --list            the tasks' names
  --help

PRIORWORK_PYTHON names a python with torch: PyTorch on the CPU then takes part. CARGO_TARGET_DIR says where burn is built,
PRIORWORK_BURN names its program where it has been built already.
`;

export interface Options {
  filters: readonly string[];
  rounds: number;
  small: boolean;
  burn: boolean;
  without: readonly string[];
  save?: string;
  merge?: string;
  markdown: boolean;
  json: boolean;
  list: boolean;
  help: boolean;
}

/** Error: an unknown flag, a flag without its value, a number of rounds that is none, or an unknown peer. */
export function optionsOf(words: readonly string[], peers: readonly string[]): Options {
  const { values, positionals } = parseArgs({
    args: [...words],
    allowPositionals: true,
    options: {
      rounds: { type: "string", default: String(LEAST_ROUNDS) },
      small: { type: "boolean", default: false },
      burn: { type: "boolean", default: false },
      without: { type: "string", multiple: true, default: [] },
      save: { type: "string" },
      merge: { type: "string" },
      markdown: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
      list: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  const rounds = Number(values.rounds);
  if (!Number.isInteger(rounds) || rounds < 1) throw new Error(`--rounds ${values.rounds}: expected a number from 1`);
  const unknown = values.without.find((name) => !peers.includes(name));
  if (unknown !== undefined) throw new Error(`--without ${unknown}: no such peer. There are ${peers.join(", ")}.`);
  const { save, merge, ...rest } = values;
  return {
    ...rest,
    filters: positionals,
    rounds,
    ...(save === undefined ? {} : { save }),
    ...(merge === undefined ? {} : { merge }),
  };
}

/** Those whose title contains a filter, or all. Error: there is none. */
export function chosenTasks(all: readonly Task[], filters: readonly string[]): Task[] {
  const chosen = all.filter(({ name, layout = "", shape }) => {
    const title = `${name} ${layout} ${Object.entries(shape).flat().join("")}`.toLowerCase();
    return filters.length === 0 || filters.some((filter) => title.includes(filter.toLowerCase()));
  });
  if (chosen.length > 0) return chosen;
  const names = [...new Set(all.map(({ name }) => name))].join(", ");
  throw new Error(`${filters.join(" ")}: no task has that in its name. There are ${names}.`);
}
