/**
 * @file The ladder of docs/matmul.md: C = A·B from the definition to the library's kernel, a file a rung in bench/ladder. The
 * rungs are for reading: sizes must be whole tiles, and nothing but the product is computed. Each is compared with float64
 * before it is timed, and they run in turn.
 */
import { readFileSync } from "node:fs";
import type { Gpu } from "../src/gpu/index.ts";
import { withTile } from "../src/gpu/shaders.ts";
import { fromHost, type NdArray, readArray } from "../src/kernels/array.ts";
import { type MatmulSizes, matmul, matmulReference } from "../src/kernels/matmul.ts";
import { Stream } from "../src/random.ts";
import type { BenchCase } from "./case.ts";

/** A rung's file and what one workgroup computes of C. `subgroup`: it needs a fixed subgroup of 4 or 8 lanes. */
const RUNGS: readonly { file: string; rows: number; columns: (lanes: number) => number; subgroup?: true }[] = [
  { file: "1-naive", rows: 8, columns: () => 8 },
  { file: "2-vectors", rows: 8, columns: () => 32 },
  { file: "3-registers", rows: 32, columns: () => 32 },
  { file: "4-taller", rows: 64, columns: () => 32 },
  { file: "5-workgroup", rows: 64, columns: () => 64 },
  { file: "6-subgroup", rows: 8, columns: (lanes) => 4 * lanes, subgroup: true },
  { file: "7-strip", rows: 32, columns: (lanes) => 4 * lanes, subgroup: true },
];

/** MiniLM's feed-forward layer for 1,024 tokens. */
const TIMED: MatmulSizes = { M: 1024, N: 1536, K: 384 };
/** What is compared with float64: two tiles of the largest rung each way. */
const CHECKED: MatmulSizes = { M: 128, N: 128, K: 32 };

export async function ladder(gpu: Gpu): Promise<BenchCase[]> {
  const lanes = gpu.adapter.subgroupSize;
  const able = RUNGS.filter(({ subgroup }) => !subgroup || lanes === 4 || lanes === 8);
  const runs: [string, (a: NdArray, b: NdArray, c: NdArray, sizes: MatmulSizes) => void][] = able.map((rung) => {
    const source = readFileSync(new URL(`ladder/${rung.file}.wgsl`, import.meta.url), "utf8");
    const code = rung.subgroup ? withTile(source, { LANES: lanes }, rung.file) : source;
    const module = gpu.device.createShaderModule({ label: rung.file, code });
    const pipeline = gpu.device.createComputePipeline({ layout: "auto", compute: { module, entryPoint: "main" } });
    const layout = pipeline.getBindGroupLayout(0);
    return [
      rung.file,
      (a, b, c, { M, N, K }) => {
        gpu.flush(); // what wrote the operands
        const entries = [a, b, c].map(({ buffer }, binding) => ({ binding, resource: { buffer: buffer.raw } }));
        const encoder = gpu.device.createCommandEncoder();
        const pass = encoder.beginComputePass();
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, gpu.device.createBindGroup({ layout, entries }));
        pass.setImmediates(0, Uint32Array.of(M, N, K));
        pass.dispatchWorkgroups(N / rung.columns(lanes), M / rung.rows);
        pass.end();
        gpu.device.queue.submit([encoder.finish()]);
      },
    ];
  });
  runs.push([
    "8-library",
    (a, b, c) => void gpu.scope(() => matmul(gpu, a, b, "NN", { into: { array: c, accumulate: false } })),
  ]);
  for (const [name, run] of runs) await check(gpu, name, run);
  return runs.map(([name, run]) => {
    let held: [NdArray, NdArray, NdArray] | undefined;
    return {
      name: `ladder.${name}`,
      layout: "NN",
      turn: "ladder",
      shape: { ...TIMED },
      flops: 2 * TIMED.M * TIMED.N * TIMED.K,
      run: () => {
        held ??= operands(gpu, TIMED);
        run(...held, TIMED);
      },
      dispose: () => {
        for (const { buffer } of held ?? []) gpu.release(buffer);
        held = undefined;
      },
    };
  });
}

function operands(gpu: Gpu, { M, N, K }: MatmulSizes): [NdArray, NdArray, NdArray] {
  const stream = new Stream(1, "ladder");
  const normal = (n: number) => Float32Array.from({ length: n }, () => stream.normal());
  return [fromHost(gpu, normal(M * K), [M, K]), fromHost(gpu, normal(K * N), [K, N]), fromHost(gpu, new Float32Array(M * N), [M, N])]; // biome-ignore format: three alike
}

/** Throws if a rung is wrong: no number of it is worth anything then. */
async function check(
  gpu: Gpu,
  name: string,
  run: (a: NdArray, b: NdArray, c: NdArray, sizes: MatmulSizes) => void,
): Promise<void> {
  const held = operands(gpu, CHECKED);
  run(...held, CHECKED);
  const [a, b, c] = await Promise.all(held.map((array) => readArray(gpu, array)));
  for (const { buffer } of held) gpu.release(buffer);
  const exact = matmulReference(a ?? [], b ?? [], CHECKED, "NN");
  const worst = exact.reduce((most, x, i) => Math.max(most, Math.abs(x - (c?.[i] ?? Number.NaN))), 0);
  if (!(worst < 1e-4)) throw new Error(`ladder: rung ${name} is wrong by ${worst}; it is not timed`);
}
