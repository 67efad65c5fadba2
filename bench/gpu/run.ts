/**
 * @file `node …/bench/gpu/run.js [--quick] [--minutes N] [--only PART,…] [--out FOLDER] [--software]`: everything that a
 * real GPU is asked, in one command that ends by itself. Plain Node: it is run from what pack.ts makes, on a machine that
 * may have nothing else. This process only starts the parts, each in a process of its own with a time by which it is
 * killed, and writes down what they say; see README.md.
 */
import { existsSync, readFileSync } from "node:fs";
import { arch, cpus, platform, release, totalmem } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { findDriver, nvidiaSmi } from "./drivers.ts";
import { judge } from "./judge.ts";
import { markdown } from "./markdown.ts";
import { carryOut, type Order, type Tell } from "./parts.ts";
import { FULL, PARTS, type Part, QUICK, REHEARSAL } from "./plan.ts";
import { type Message, type PartReport, type Results, write } from "./results.ts";
import { type Ended, runPython, startPart, testFiles, throughAll } from "./start.ts";

const SCRIPT = fileURLToPath(import.meta.url);
/** The packed folder: shaders/, reference/, test/, packed.json. */
const ROOT = fileURLToPath(new URL("../..", import.meta.url));
/** Where the golden tests look for reference/. */
const CARRIED = { PRIORWORK_SHARED: ROOT };
/** Milliseconds between two writings of the results. */
const WRITE_EVERY = 2000;
/** A part begins nothing in its last milliseconds: what is cut off there would be lost. */
const SPARE = 4000;
/** For one attempt to reach a driver. */
const ATTEMPT = 15_000;

if (process.send) {
  // A part: the order comes as the only message. It ends with the process that started it, or when it has said its last.
  process.once("disconnect", () => process.exit());
  process.once("message", (order: Order) => {
    const tell: Tell = (message) => void process.send?.(message);
    carryOut(order, tell)
      .catch((error: unknown) => {
        const text = error instanceof Error ? error.message : String(error);
        tell({ kind: "failure", name: order.file ?? order.part, error: text });
      })
      // Sent after all the rest, so once it is on its way nothing is left behind.
      .finally(() => process.send?.({ kind: "end" }, () => process.disconnect()));
  });
} else {
  process.exitCode = await main();
}

/** Exit code: 0 everything was done and no target missed; 1 something failed or was missed; 2 flags; 3 no GPU. */
async function main(): Promise<number> {
  const { values: flags } = parseArgs({
    options: {
      quick: { type: "boolean", default: false },
      software: { type: "boolean", default: false },
      minutes: { type: "string" },
      only: { type: "string" },
      out: { type: "string" },
    },
  });
  const plan = flags.quick ? QUICK : flags.software ? REHEARSAL : FULL;
  const only = flags.only?.split(",");
  const strange = only?.find((name) => !(PARTS as readonly string[]).includes(name));
  const whole = Object.values(plan.budget).reduce((a, b) => a + b, 0);
  const seconds = flags.minutes === undefined ? whole : 60 * Number(flags.minutes);
  if (strange !== undefined || !(seconds > 0)) {
    const wrong =
      strange !== undefined ? `--only ${strange}: parts are ${PARTS.join(", ")}` : "--minutes: not a number";
    process.stderr.write(`${wrong}\n`);
    return 2;
  }
  const folder = resolve(flags.out ?? process.env.OUT ?? "bench/results");
  const results = blank(plan.name);
  const started = Date.now();
  let label = "unknown";
  let written = 0;
  const log: string[] = [];
  const save = () => {
    written = Date.now();
    results.judgement = judge(results);
    const name = `${label}-${results.date.slice(0, 16).replaceAll(":", "-")}`;
    write(folder, `${name}.log`, log.join(""));
    write(folder, `${name}.md`, markdown(results));
    return write(folder, `${name}.json`, `${JSON.stringify(results, null, 1)}\n`);
  };
  // A terminal, or what is kept of one, gets the beginning; the log has it all.
  const say = (line: string) => {
    log.push(`${line}\n`);
    const shown = line.replace(/\s+/g, " ").slice(0, 300);
    process.stdout.write(`${((Date.now() - started) / 1000).toFixed(0).padStart(4)} s  ${shown}\n`);
  };
  /** Takes down what a part says. */
  const hear = (part: Part) => (message: Message) => {
    take(results, part, message);
    if (message.kind === "failure") say(`${part}: ${message.name}: ${message.error}`);
    if (message.kind === "test" && message.result.status === "failed") {
      say(`${part}: ${message.result.name}: ${message.result.error}`);
    }
    if (label !== "unknown" && Date.now() - written > WRITE_EVERY) save();
  };

  let due = started;
  let environment: NodeJS.ProcessEnv = {};
  for (const part of PARTS) {
    due += 1000 * plan.budget[part] * (seconds / whole);
    // The adapter is asked in any case: nothing is known without it.
    if (only && part !== "adapter" && !only.includes(part)) continue;
    const report = results.parts[part];
    const begin = Date.now();
    say(`${part}, until ${((due - started) / 1000).toFixed(0)} s`);
    report.status = "incomplete";
    const order = (file?: string): Order => ({
      part: part as Order["part"],
      plan,
      until: due - SPARE,
      begun: [],
      fatal: [],
      ...(file ? { file } : {}),
    });
    const ends: Ended[] = [];
    const start = async (o: Order) => {
      const limits = { due, silence: 1000 * plan.patience };
      ends.push(...(await throughAll(SCRIPT, o, { ...process.env, ...environment, ...CARRIED }, limits, hear(part))));
    };
    if (part === "adapter") {
      const driver = await findDriver(
        (env) => {
          const limits = { due: Date.now() + ATTEMPT, silence: ATTEMPT };
          return startPart(SCRIPT, order(), { ...process.env, ...env, ...CARRIED }, limits, hear(part));
        },
        flags.software,
        () => results.facts.adapter,
      );
      results.facts.drivers = driver.tried;
      if (!driver.environment) {
        Object.assign(results.facts, { diagnosis: driver.diagnosis });
        report.seconds = (Date.now() - begin) / 1000;
        label = "no-gpu";
        say("no GPU answered; what the Vulkan loader said, and what is there:");
        log.push(`${driver.diagnosis}\n`);
        process.stdout.write(`${driver.diagnosis}\nresults: ${save()}\n`);
        return 3;
      }
      environment = driver.environment;
      report.failures = []; // of the attempts before the one that was taken; `drivers` has them
      results.facts.nvidiaSmi = nvidiaSmi();
      const { name = "adapter", kind } = results.facts.adapter as { name?: string; kind?: string };
      results.rehearsal = kind !== "hardware";
      label = name
        .toLowerCase()
        .replace(/[^a-z0-9]+/g, "-")
        .replace(/^-|-$/g, "");
      say(`adapter: ${name} (${kind})`);
    } else if (part === "torch") {
      ends.push(await runPython(join(ROOT, "bench/gpu/torch_gpu.py"), plan, due, hear(part)));
    } else if (part === "ops") {
      const files = testFiles(join(ROOT, "test"), plan.tests);
      // A device each: correctness does not depend on who else is at work, and pipelines take a core each to compile.
      const workers = Math.max(1, Math.min(6, Math.floor(cpus().length / 2)));
      const work = async () => {
        for (let file = files.shift(); file; file = files.shift()) {
          if (Date.now() > due - SPARE) ends.push({ error: `${file}: no time was left for it`, output: "" });
          else await start(order(file));
        }
      };
      await Promise.all(Array.from({ length: workers }, work));
    } else {
      await start(order());
    }
    report.seconds = Math.round((Date.now() - begin) / 100) / 10;
    for (const { output, error } of ends) {
      if (output) log.push(output);
      if (!error) continue;
      report.failures.push({ name: part, error });
      say(`${part}: ${error}`);
    }
    const reason = ends.find((end) => end.skipped)?.skipped;
    const good = report.failures.length === 0 && (part !== "ops" || results.tests.failed === 0);
    report.status = reason ? "skipped" : good ? "done" : "incomplete";
    if (reason) {
      report.reason = reason;
      say(`${part}: ${reason}`);
    }
    save();
  }
  const path = save();
  process.stdout.write(`\n${markdown(results, true)}\nresults: ${path}\n`);
  const missed = results.judgement.some(({ reached }) => reached === false);
  const incomplete = PARTS.some((part) => results.parts[part].status === "incomplete");
  return missed || incomplete ? 1 : 0;
}

function blank(plan: string): Results {
  const packed = join(ROOT, "packed.json");
  const part = (): PartReport => ({ status: "not started", seconds: 0, failures: [] });
  return {
    date: new Date().toISOString(),
    plan,
    rehearsal: true,
    facts: {
      versions: {
        node: process.versions.node,
        ...(existsSync(packed) ? JSON.parse(readFileSync(packed, "utf8")) : {}),
      },
      host: {
        system: `${platform()} ${release()} ${arch()}`,
        cpu: cpus()[0]?.model ?? "",
        cores: cpus().length,
        memoryGiB: Math.round(totalmem() / 2 ** 30),
      },
    },
    parts: Object.fromEntries(PARTS.map((name) => [name, part()])) as Results["parts"],
    tests: { passed: 0, failed: 0, skipped: 0, files: {} },
    ceilings: [],
    kernels: [],
    unguarded: [],
    steps: [],
    torch: [],
    judgement: [],
  };
}

function take(results: Results, part: Part, message: Message): void {
  if (message.kind === "fact") results.facts[message.name] = message.value;
  else if (message.kind === "failure") results.parts[part].failures.push({ name: message.name, error: message.error });
  else if (message.kind === "torch") results.torch.push(message.row);
  else if (message.kind === "test") {
    const file = message.file.slice(message.file.lastIndexOf("/test/") + 6);
    results.tests.files[file] ??= [];
    results.tests.files[file].push(message.result);
    results.tests[message.result.status]++;
  } else if (message.kind === "begin") return;
  else if (part === "ceilings" || part === "kernels" || part === "unguarded" || part === "steps") {
    results[part].push(message.row);
  }
}
