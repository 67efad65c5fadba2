/**
 * @file The parts that need the device, each in a process of its own. Everything begun and everything found is told at
 * once, since the process may not live to its end: another then goes on behind what ended this one. A case that fails
 * may have taken the device with it, so the next one gets a new one.
 */
import { pathToFileURL } from "node:url";
import { copies, type Gpu, matrixMultiplyAdd, multiplyAdd } from "../../src/gpu/index.ts";
import { DISABLED, ENABLED, openGpu } from "../../src/gpu/node.ts";
import { cases as attention } from "../attention.ts";
import type { BenchCase } from "../case.ts";
import { cases as elementwise } from "../elementwise.ts";
import { hostCases } from "../host.ts";
import { cases as layernorm } from "../layernorm.ts";
import { rounded } from "../rounds.ts";
import { cases as softmax } from "../softmax.ts";
import { stepCases } from "../step.ts";
import { cases as vector } from "../vector.ts";
import { measureOnGpu } from "./measure.ts";
import type { Plan } from "./plan.ts";
import { type Product, productCases } from "./products.ts";
import type { Message } from "./results.ts";
import { runCollected } from "./vitest.ts";

export type Tell = (message: Message) => void;

/** What a part's process is started with. */
export interface Order {
  part: "adapter" | "ops" | "ceilings" | "kernels" | "steps" | "unguarded";
  plan: Plan;
  /** As Date.now: nothing new is begun after it. */
  until: number;
  /** Of "ops": a test file's path. */
  file?: string;
  /** What earlier processes of this part have begun; of it, what they did not survive. */
  begun: readonly string[];
  fatal: readonly string[];
}

export async function carryOut(order: Order, tell: Tell): Promise<void> {
  const { part, plan, until, file = "" } = order;
  if (part === "adapter") return adapter(tell);
  if (part === "ops") {
    await import(pathToFileURL(file).href);
    const begin = (name: string) => tell({ kind: "begin", name });
    return runCollected((result) => tell({ kind: "test", file, result }), { until, begin, leaveOut: order.begun });
  }
  const bench = new Bench(tell, order, part === "unguarded" ? ["disable_robustness"] : []);
  if (part === "ceilings") await bench.group("ceilings", ceilings);
  if (part === "kernels" || part === "unguarded") {
    await bench.group("products", (gpu) => productCases(gpu, plan, part === "unguarded"));
  }
  if (part === "kernels") {
    for (const [name, cases] of Object.entries(plan.kernels === "all" ? KERNELS : FEW)) await bench.group(name, cases);
  }
  if (part === "steps") {
    await bench.group("host", hostCases);
    await bench.group("steps", (gpu) => stepCases(gpu, plan.model, plan.batches));
  }
  bench.close();
}

const KERNELS: Record<string, (gpu: Gpu) => BenchCase[]> = {
  attention,
  layernorm,
  softmax,
  elementwise: (gpu) => elementwise(gpu),
  // 100 MB an array, twice a big GPU's cache: there the copy's ceiling is the right measure.
  "elementwise, large": (gpu) => elementwise(gpu, 16_384, 1536),
  vector: (gpu) => vector(gpu),
};
const FEW: typeof KERNELS = { elementwise: (gpu) => elementwise(gpu, 16, 64).slice(0, 4) };

/** More threads and more bytes than a software adapter is asked for: a GPU has room for them. */
function ceilings(gpu: Gpu): BenchCase[] {
  if (gpu.adapter.kind !== "hardware") return [multiplyAdd(gpu), ...matrixMultiplyAdd(gpu), ...copies(gpu)];
  const bytes = Math.min(512 * 2 ** 20, gpu.adapter.limits.maxStorageBufferBindingSize ?? 0);
  return [
    multiplyAdd(gpu),
    multiplyAdd(gpu, { groups: 8448, rounds: 2048 }),
    multiplyAdd(gpu, { groups: 8448, rounds: 8192 }),
    ...matrixMultiplyAdd(gpu),
    ...copies(gpu),
    ...copies(gpu, bytes),
  ];
}

async function adapter(tell: Tell): Promise<void> {
  const attempts: unknown[] = [];
  const gpu = await openGpu({ onAttempt: (attempt) => attempts.push(attempt) }).finally(() =>
    tell({ kind: "fact", name: "attempts", value: attempts }),
  );
  const {
    subgroupMatrixConfigs = [],
    vendor,
    architecture,
    subgroupMinSize,
    subgroupMaxSize,
  } = gpu.device.adapterInfo as GPUAdapterInfo & { subgroupMatrixConfigs?: Iterable<object> };
  const matrices = [...subgroupMatrixConfigs].map((one) => plainly(one));
  tell({ kind: "fact", name: "toggles", value: { enabled: ENABLED, disabled: DISABLED } });
  const info = { vendor, architecture, subgroupMinSize, subgroupMaxSize, subgroupMatrixConfigs: matrices };
  tell({ kind: "fact", name: "adapter", value: { ...gpu.adapter, ...info } });
  await gpu.settle();
  gpu.destroy();
}

/** What stands on the prototype too, as Dawn's objects have it. */
function plainly(object: object): Record<string, unknown> {
  const found: Record<string, unknown> = {};
  for (const key in object) found[key] = (object as Record<string, unknown>)[key];
  return found;
}

class Bench {
  readonly #tell: Tell;
  readonly #order: Order;
  readonly #toggles: readonly string[];
  #gpu: Gpu | undefined;

  constructor(tell: Tell, order: Order, toggles: readonly string[]) {
    this.#tell = tell;
    this.#order = order;
    this.#toggles = toggles;
  }

  /** Measures the cases that `make` makes, those of one turn together. */
  async group(name: string, make: (gpu: Gpu) => BenchCase[] | Promise<BenchCase[]>): Promise<void> {
    const { until, begun, fatal } = this.#order;
    let cases: BenchCase[] | undefined;
    if (fatal.includes(name)) return;
    this.#tell({ kind: "begin", name });
    try {
      cases = await make(await this.#open());
    } catch (error) {
      this.#fail(name, error);
      return;
    }
    // Indices of the cases to be timed together. After a failure all are made anew, in the same order.
    const sets = together(cases);
    const titles = cases.map(titled);
    for (let set = sets.shift(); set; set = sets.shift()) {
      const named = set.map((i) => titles[i]).join(", ");
      // One of them failed or took the process with it: the others are worth a try alone.
      const apart = () => {
        if (set.length > 1) sets.unshift(...set.map((i) => [i]));
      };
      if (begun.includes(named)) {
        if (fatal.includes(named)) apart();
        continue;
      }
      if (Date.now() > until) {
        this.#tell({ kind: "failure", name: named, error: "no time was left for it" });
        continue;
      }
      this.#tell({ kind: "begin", name: named });
      try {
        const gpu = await this.#open();
        cases ??= await make(gpu);
        const bodies = set.flatMap((i) => cases?.[i] ?? []);
        await this.#one(gpu, bodies);
      } catch (error) {
        this.#fail(named, error);
        cases = undefined;
        apart();
      }
    }
  }

  close(): void {
    this.#gpu?.destroy();
    this.#gpu = undefined;
  }

  async #one(gpu: Gpu, bodies: readonly BenchCase[]): Promise<void> {
    const errors: (number | undefined)[] = [];
    for (const body of bodies) {
      const worst = "worstError" in body ? await (body as Product).worstError() : undefined;
      if (worst !== undefined && !(worst <= 1)) throw new Error(`wrong by ${worst} times what rounding allows`);
      errors.push(worst);
    }
    const rows = await measureOnGpu(gpu, bodies, this.#order.plan, this.#order.until);
    for (const [i, row] of rows.entries()) {
      const worst = errors[i];
      this.#tell({ kind: "row", row: worst === undefined ? row : { ...row, worstError: rounded(worst) } });
    }
  }

  async #open(): Promise<Gpu> {
    this.#gpu ??= await openGpu({ toggles: this.#toggles });
    return this.#gpu;
  }

  #fail(name: string, error: unknown): void {
    this.#tell({ kind: "failure", name, error: error instanceof Error ? error.message.slice(0, 2000) : String(error) });
    try {
      this.close();
    } catch {
      this.#gpu = undefined;
    }
  }
}

/** Places of the cases of one turn, which are timed round by round; the others alone. */
function together(cases: readonly BenchCase[]): number[][] {
  const sets = new Map<string, number[]>();
  for (const [i, { turn }] of cases.entries()) {
    const key = turn ?? `alone ${i}`;
    sets.set(key, [...(sets.get(key) ?? []), i]);
  }
  return [...sets.values()];
}

const titled = ({ name, layout, shape }: BenchCase) => `${name}${layout ? ` ${layout}` : ""} ${JSON.stringify(shape)}`;
