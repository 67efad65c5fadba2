/**
 * @file `npm run bench:peers [-- FILTER… flags]` (options.ts): every task whose name contains a filter, on priorwork and on
 * every peer that can do it, in one process on one adapter. Progress on stderr, the result on stdout.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { create, globals } from "webgpu";
import { adapterText } from "../../src/cli/output.ts";
import { openGpu } from "../../src/gpu/node.ts";
import { check } from "./check.ts";
import { reference } from "./f64.ts";
import { text, writeTable } from "./markdown.ts";
import { compare, type Entry, measure, type Row } from "./measure.ts";
import { chosenTasks, HELP, LEAST_ROUNDS, optionsOf } from "./options.ts";
import { type Peer, type Prepared, Refusal, type Task } from "./peer.ts";
import { openPriorwork } from "./priorwork.ts";
import { merged, type Report, readReport, title } from "./report.ts";
import { restOnlyOn } from "./rest.ts";
import { tasks } from "./tasks.ts";

const LONG_ROUND = 5000; // ms
const python = process.env.PRIORWORK_PYTHON;
const doors: Record<string, () => Promise<Peer>> = {
  "jax-js": async () => (await import("./jax.ts")).openJax(version("node_modules/@jax-js/jax/package.json")),
  "tfjs-webgpu": async () =>
    (await import("./tfjs.ts")).openTfjs(version("node_modules/@tensorflow/tfjs-backend-webgpu/package.json")),
  "onnxruntime-web": async () =>
    (await import("./ort.ts")).openOrt(version("node_modules/onnxruntime-web/package.json")),
  burn: async () => {
    if (!options.burn) throw new Refusal("it takes part with --burn");
    return (await import("./burn.ts")).openBurn(gpu.adapter.name, note);
  },
  "PyTorch CPU": async () => {
    if (!python) throw new Refusal("PRIORWORK_PYTHON names no python");
    return (await import("./torch.ts")).openTorch(python);
  },
};

const { options, all, chosen, earlier } = asked(() => {
  const options = optionsOf(process.argv.slice(2), Object.keys(doors));
  const all = tasks(options);
  const earlier = options.merge === undefined ? undefined : readReport(options.merge);
  return { options, all, chosen: chosenTasks(all, options.filters), earlier };
});
if (options.help || options.list) {
  process.stdout.write(options.help ? HELP : `${all.map(title).join("\n")}\n`);
  process.exit(0);
}

const note = (line: string) => process.stderr.write(`${line}\n`);
// Work on the GPU does not keep Node's loop alive, and without this Node would wait for compilers before it goes on.
const alive = setInterval(() => {}, 1000);

const gpu = await openGpu();
note(`adapter: ${adapterText(gpu.adapter)}`);
restOnlyOn(gpu.adapter.kind);
// After openGpu, which may load a Vulkan of its own. Reachable until the end: Dawn must outlive its devices.
Object.assign(globalThis, globals);
const dawn = create([]);
const browser = { gpu: dawn, userAgent: "Node", hardwareConcurrency: 1 };
Object.defineProperty(globalThis, "navigator", { value: browser, configurable: true });
const info = (await dawn.requestAdapter())?.info;
if (info?.description !== gpu.adapter.driver) {
  note(
    `adapter: the peers would get ${info?.description}, priorwork has ${gpu.adapter.driver}. Set no PRIORWORK_ADAPTER.`,
  );
  process.exit(3);
}

const ours = openPriorwork(gpu, version("../../package.json"));
const peers: Peer[] = [ours];
const absent: string[] = [];
for (const [name, open] of Object.entries(doors)) {
  if (options.without.includes(name)) continue;
  try {
    peers.push(await open());
  } catch (error) {
    absent.push(`${name}: ${sentence(error)}`);
    note(`${error instanceof Refusal ? "note" : "warning"}: ${name} does not take part: ${sentence(error)}`);
  }
}

const results: Row[] = [];
asked(report); // refuses --merge before anything is measured
for (const task of chosen) {
  const row = await measured(task);
  results.push(row);
  note(text(row));
  if (options.save) writeFileSync(options.save, `${JSON.stringify(report(), null, 2)}\n`);
}

if (options.json) process.stdout.write(`${JSON.stringify(report(), null, 2)}\n`);
else process.stdout.write(`${results.map(text).join("\n")}\n`);
if (options.markdown) {
  const whole = report();
  if (options.small || whole.rounds < LEAST_ROUNDS || whole.results.length < all.length) {
    note(`warning: the table is of all tasks, full size and ${LEAST_ROUNDS} rounds; not written`);
  } else note(`wrote ${writeTable(whole)}`);
}
for (const peer of peers.toReversed()) await peer.close();
clearInterval(alive);
void dawn.requestAdapter; // see above
process.exit(0);

/** Of what has been measured so far, and of --merge. */
function report(): Report {
  const now: Report = {
    adapter: gpu.adapter,
    date: new Date().toISOString(),
    node: process.version,
    rounds: options.rounds,
    peers: peers.map(({ name, version, where }) => ({ name, version, where })),
    absent,
    results,
  };
  return earlier ? merged(now, earlier, all.map(title)) : now;
}

async function measured(task: Task): Promise<Row> {
  const inputs = task.inputs();
  const expected = reference(task, inputs);
  const prepared = new Map<string, Prepared>();
  const entries: Entry[] = [];
  let round = 0;
  for (const peer of peers) {
    let made: Prepared | undefined;
    try {
      made = await peer.prepare(task, inputs);
      round += await check(task, inputs, made, expected);
      prepared.set(peer.name, made);
    } catch (error) {
      await made?.dispose();
      entries.push({ peer: peer.name, refused: sentence(error) });
      if (!(error instanceof Refusal) && process.env.DEBUG) console.error(error);
    }
  }
  // The check has run each already; where a round is seconds long, caches that have gone cold since are nothing beside it.
  const timed = await measure(task, prepared, { rounds: options.rounds, warmup: round > LONG_ROUND ? 0 : 1 });
  entries.push(...timed.values());
  for (const { dispose } of prepared.values()) await dispose();
  const order = peers.map(({ name }) => name);
  entries.sort((a, b) => order.indexOf(a.peer) - order.indexOf(b.peer));
  const { name, layout, shape } = task;
  return { name, ...(layout ? { layout } : {}), shape, entries, best: compare(entries, ours.name, peers) };
}

/** Ends with a sentence and exit code 2 where the command line is wrong. */
function asked<T>(read: () => T): T {
  try {
    return read();
  } catch (error) {
    process.stderr.write(`${sentence(error)}\n\n${HELP}`);
    process.exit(2);
  }
}

function version(path: string): string {
  return JSON.parse(readFileSync(new URL(path, import.meta.url), "utf8")).version;
}

function sentence(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split("\n", 1)[0] ?? "";
}
