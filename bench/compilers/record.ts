/**
 * @file Records every kernel that a GPU takes, once, at the benches' sizes, so that its driver compiles it, and says on
 * stderr which is next. For run.ts, which reads what the driver says of each: no kernel need run.
 */
import { writeSync } from "node:fs";
import { openGpu } from "../../src/gpu/node.ts";
import { batchedMatmul, empty, matmul } from "../../src/kernels/index.ts";
import { FAMILIES, HALF_FAMILIES, offer } from "../../src/kernels/matmul-families.ts";
import { arraysOf, CASES, inputMaker } from "../../test/kernels/cases.ts";
import { cases as attention } from "../attention.ts";
import { cases as elementwise } from "../elementwise.ts";
import { cases as layernorm } from "../layernorm.ts";
import { cases as softmax } from "../softmax.ts";
import { cases as vector } from "../vector.ts";
import { MARK } from "./statistics.ts";

/** Families that no GPU is given. */
const FOR_CPUS = /\b(plain|subgroup|unrolled)$/;

const gpu = await openGpu({ adapter: process.env.PRIORWORK_ADAPTER ?? "" });
const say = (line: string) => writeSync(2, `${line}\n`);
say(`${MARK}${JSON.stringify({ adapter: gpu.adapter.name, driver: gpu.adapter.driver })}`);
gpu.afterCompile = ({ shader, entry, tile, constants }) =>
  say(`${MARK}${JSON.stringify({ shader, entry, tile, constants })}`);

function once(name: string, body: () => unknown): void {
  if (FOR_CPUS.test(name)) return;
  gpu.scope(body);
  gpu.flush();
}

products();
for (const cases of [attention, layernorm, softmax, elementwise, vector]) {
  for (const one of cases(gpu)) {
    if (!FOR_CPUS.test(one.name)) await one.run(); // in a scope of its own, with inputs that stay
    gpu.flush();
    await one.dispose?.();
  }
}
for (const [name, operation] of Object.entries(CASES)) {
  once(name, () => arraysOf(operation(gpu, inputMaker(gpu))));
}
say(`${MARK}{"end":true}`);
process.exit(0);

/** Every family in every layout; with what a linear layer adds; and where C's rows are no whole vectors. */
function products(): void {
  const [M, K] = [1024, 384];
  const families = [...Object.keys({ ...FAMILIES, ...HALF_FAMILIES })] as (keyof typeof FAMILIES)[];
  for (const family of families) {
    for (const layout of ["NN", "NT", "TN"] as const) {
      const of = (N: number) => ({
        a: empty(gpu, layout === "TN" ? [K, M] : [M, K]),
        b: empty(gpu, layout === "NT" ? [N, K] : [K, N]),
      });
      if (offer(family, gpu.adapter, layout, { M, N: 1536, K })?.shader.match(/strip|subgroup/)) continue;
      once(`${family} ${layout}`, () => matmul(gpu, of(1536).a, of(1536).b, layout, { family }));
      once(`${family} ${layout}`, () =>
        matmul(gpu, of(1536).a, of(1536).b, layout, { family, bias: empty(gpu, [1536]), activation: "gelu" }),
      );
      if (layout === "NT") once(`${family} ragged`, () => matmul(gpu, of(1535).a, of(1535).b, layout, { family }));
    }
  }
  once("batched", () => batchedMatmul(gpu, empty(gpu, [96, 64, 32]), empty(gpu, [96, 64, 32]), "NT"));
}
