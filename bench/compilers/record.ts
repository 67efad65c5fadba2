/**
 * @file Records every kernel that a GPU takes, at the sizes of the benches and the largest that there are, so that its driver
 * compiles it, and says on stderr which is next and when it is done. For run.ts, which reads what the driver says between;
 * that no kernel runs is nothing to it.
 */
import { writeSync } from "node:fs";
import { openGpu } from "../../src/gpu/node.ts";
import * as k from "../../src/kernels/index.ts";
import { ableFamilies, type Family, HALF_FAMILIES, type HalfFamily } from "../../src/kernels/matmul-families.ts";
import { arraysOf, CASES, inputMaker } from "../../test/kernels/cases.ts";
import { cases as attention } from "../attention.ts";
import { cases as elementwise } from "../elementwise.ts";
import { cases as layernorm } from "../layernorm.ts";
import { cases as softmax } from "../softmax.ts";
import { MARK, type Said } from "./statistics.ts";

/** Families that no GPU is given. */
const FOR_CPUS = /\b(plain|subgroup|unrolled)$/;

const say = (said: Said) => writeSync(2, `\n${MARK}${JSON.stringify(said)}\n`);
const toggles = process.argv.includes("--unguarded") ? ["disable_robustness"] : [];
const gpu = await openGpu({ adapter: "hardware", toggles });
say({ adapter: gpu.adapter.name, driver: gpu.adapter.driver });
gpu.afterCompile = ({ shader, entry, tile = {}, constants = {} }) => say({ shader, entry, tile, constants });
const { device } = gpu;
const create = device.createComputePipeline.bind(device);
device.createComputePipeline = (descriptor) => {
  const pipeline = create(descriptor);
  say({ done: true });
  return pipeline;
};

function once(body: () => unknown): void {
  gpu.scope(body);
  gpu.flush();
}
const zeros = (...shape: number[]) => k.empty(gpu, shape);

products();
heads();
once(() => k.columnSum(gpu, zeros(200, 383)));
once(() => k.softmax(gpu, zeros(64, 1536)));
once(() => k.softmaxBackward(gpu, zeros(64, 1536), zeros(64, 1536)));
for (const cases of [attention, layernorm, softmax, elementwise]) {
  for (const one of cases(gpu)) {
    if (!FOR_CPUS.test(one.name)) await one.run(); // in a scope of its own, with inputs that stay
    gpu.flush();
    await one.dispose?.();
  }
}
for (const [name, operation] of Object.entries(CASES)) {
  if (!FOR_CPUS.test(name)) once(() => arraysOf(operation(gpu, inputMaker(gpu))));
}
say({ end: true });
process.exit(0);

/** Every family in every layout, with nothing and all that an epilogue may do, and where C's rows are no whole vectors. */
function products(): void {
  const [M, K] = [1024, 384];
  const inputs = (layout: k.Layout, N: number) =>
    [zeros(...(layout === "TN" ? [K, M] : [M, K])), zeros(...(layout === "NT" ? [N, K] : [K, N]))] as const;
  for (const layout of ["NN", "NT", "TN"] as const) {
    const families: (Family | HalfFamily)[] = ableFamilies(gpu.adapter, layout, { M, N: 1536, K });
    if (gpu.adapter.matrixUnit) families.push(...(Object.keys(HALF_FAMILIES) as HalfFamily[]));
    for (const family of families) {
      for (const N of layout === "NT" ? [1536, 1535] : [1536]) {
        const linear = { family, bias: zeros(N), residual: zeros(M, N), activation: "gelu" } as const;
        const into = { array: zeros(M, N), accumulate: true };
        once(() => k.matmul(gpu, ...inputs(layout, N), layout, { family }));
        once(() => k.matmul(gpu, ...inputs(layout, N), layout, { ...linear, into }));
        if (layout === "NT")
          once(() => k.matmulWithPreactivation(gpu, ...inputs(layout, N), layout, { ...linear, into }));
      }
    }
  }
}

/** Attention at heads that no bench has: a last chunk that is not whole, and the largest. */
function heads(): void {
  for (const d of [80, 128]) {
    for (const dropout of [undefined, { p: 0.1, key: [1, 2] as const }]) {
      const options = { heads: 2, ...(dropout ? { dropout } : {}) };
      once(() => {
        const plan = k.attentionPlan(gpu, Uint32Array.of(0, 70));
        const qkv = zeros(70, 6 * d);
        const { y, lse } = k.attention(gpu, qkv, plan, options);
        k.attentionBackward(gpu, qkv, y, lse, zeros(70, 2 * d), plan, options);
      });
    }
  }
}
