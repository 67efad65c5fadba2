/**
 * @file `npm run bench:peers [-- FILTER… --json --markdown --rounds N]`: every task whose name contains a filter, on
 * priorwork and on every peer that can do it, in one process on one adapter. Progress on stderr, the result on stdout;
 * `--markdown` writes the table into bench/README.md.
 */
import { readFileSync } from "node:fs";
import { create, globals } from "webgpu";
import { adapterText } from "../../src/cli/output.ts";
import { openGpu } from "../../src/gpu/node.ts";
import { check } from "./check.ts";
import { reference } from "./f64.ts";
import { text, writeTable } from "./markdown.ts";
import { compare, type Entry, measure, type Row } from "./measure.ts";
import { type Peer, type Prepared, Refusal, type Task } from "./peer.ts";
import { openPriorwork } from "./priorwork.ts";
import { restOnlyOn } from "./rest.ts";
import { tasks } from "./tasks.ts";

const LEAST_ROUNDS = 9;

const words = process.argv.slice(2);
const roundsAt = words.indexOf("--rounds");
const rounds = roundsAt < 0 ? LEAST_ROUNDS : Number(words.splice(roundsAt, 2)[1]);
const [json, markdown] = ["--json", "--markdown"].map((flag) => words.includes(flag));
const filters = words.filter((word) => !word.startsWith("-"));
const unknown = words.find((word) => word.startsWith("-") && word !== "--json" && word !== "--markdown");
if (unknown || !(rounds >= 1)) {
  process.stderr.write(
    `${unknown ?? "--rounds"}: unknown flag or no number. Usage: npm run bench:peers [-- FILTER… --json --markdown --rounds N]\n`,
  );
  process.exit(2);
}

const chosen = tasks().filter(({ name, layout = "", shape }) => {
  const title = `${name} ${layout} ${Object.entries(shape).flat().join("")}`.toLowerCase();
  return filters.length === 0 || filters.some((filter) => title.includes(filter.toLowerCase()));
});
if (chosen.length === 0) {
  const names = [...new Set(tasks().map(({ name }) => name))].join(", ");
  process.stderr.write(`${filters.join(" ")}: no task has that in its name. There are ${names}.\n`);
  process.exit(2);
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
const python = process.env.PRIORWORK_PYTHON;
const doors: Record<string, () => Promise<Peer>> = {
  "jax-js": async () => (await import("./jax.ts")).openJax(version("node_modules/@jax-js/jax/package.json")),
  "tfjs-webgpu": async () =>
    (await import("./tfjs.ts")).openTfjs(version("node_modules/@tensorflow/tfjs-backend-webgpu/package.json")),
  "onnxruntime-web": async () =>
    (await import("./ort.ts")).openOrt(version("node_modules/onnxruntime-web/package.json")),
  burn: async () => (await import("./burn.ts")).openBurn(gpu.adapter.name, note),
  ...(python ? { "PyTorch CPU": async () => (await import("./torch.ts")).openTorch(python) } : {}),
};
for (const [name, open] of Object.entries(doors)) {
  try {
    peers.push(await open());
  } catch (error) {
    absent.push(`${name}: ${sentence(error)}`);
    note(`${error instanceof Refusal ? "note" : "warning"}: ${name} does not take part: ${sentence(error)}`);
  }
}

const results: Row[] = [];
for (const task of chosen) {
  const row = await measured(task);
  results.push(row);
  note(text(row));
}

const report = {
  adapter: gpu.adapter,
  date: new Date().toISOString(),
  node: process.version,
  rounds,
  peers: peers.map(({ name, version, where }) => ({ name, version, where })),
  absent,
  results,
};
if (json) process.stdout.write(`${JSON.stringify(report, null, 2)}\n`);
else process.stdout.write(`${results.map(text).join("\n")}\n`);
if (markdown) {
  if (rounds < LEAST_ROUNDS || filters.length > 0) note("warning: the table is of all tasks and 9 rounds; not written");
  else note(`wrote ${writeTable(report)}`);
}
for (const peer of peers.toReversed()) await peer.close();
clearInterval(alive);
void dawn.requestAdapter; // see above
process.exit(0);

async function measured(task: Task): Promise<Row> {
  const inputs = task.inputs();
  const expected = reference(task, inputs);
  const prepared = new Map<string, Prepared>();
  const entries: Entry[] = [];
  for (const peer of peers) {
    let made: Prepared | undefined;
    try {
      made = await peer.prepare(task, inputs);
      await check(task, inputs, made, expected);
      prepared.set(peer.name, made);
    } catch (error) {
      await made?.dispose();
      entries.push({ peer: peer.name, refused: sentence(error) });
      if (!(error instanceof Refusal) && process.env.DEBUG) console.error(error);
    }
  }
  const timed = await measure(task, prepared, rounds);
  entries.push(...timed.values());
  for (const { dispose } of prepared.values()) await dispose();
  const order = peers.map(({ name }) => name);
  entries.sort((a, b) => order.indexOf(a.peer) - order.indexOf(b.peer));
  const { name, layout, shape } = task;
  return { name, ...(layout ? { layout } : {}), shape, entries, best: compare(entries, ours.name, peers) };
}

function version(path: string): string {
  return JSON.parse(readFileSync(new URL(path, import.meta.url), "utf8")).version;
}

function sentence(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split("\n", 1)[0] ?? "";
}
