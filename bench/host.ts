/**
 * @file Host cost of recording a dispatch: ours (checks, pool, cached bind groups) beside the same dispatches on raw
 * Dawn, encoded into one pass. The kernel does next to nothing, so what is timed is JavaScript, Dawn and the driver.
 */
import type { Gpu } from "../src/gpu/index.ts";
import { empty } from "../src/kernels/index.ts";
import type { BenchCase } from "./case.ts";

const DISPATCHES = 1000;

export function hostCases(gpu: Gpu): BenchCase[] {
  const source = empty(gpu, [4096]);
  const destination = empty(gpu, [4096]);
  const one = () =>
    gpu.dispatch({
      op: "host.dispatch",
      shader: "ceiling",
      entry: "copy",
      bindings: [source, destination],
      params: [0, 16],
      grid: [1, 1, 1],
    });
  let raw: { pipeline: GPUComputePipeline; group: GPUBindGroup } | undefined;
  const setUp = () => {
    const module = gpu.device.createShaderModule({ code: gpu.source("ceiling") });
    const pipeline = gpu.device.createComputePipeline({ layout: "auto", compute: { module, entryPoint: "copy" } });
    const entries = [source, destination].map((a, binding) => ({ binding, resource: { buffer: a.buffer.raw } }));
    return { pipeline, group: gpu.device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries }) };
  };
  const words = Uint32Array.of(0, 16);
  return [
    {
      name: "host.dispatch",
      turn: "host",
      shape: { dispatches: DISPATCHES },
      run: () => {
        for (let i = 0; i < DISPATCHES; i++) one();
      },
    },
    {
      name: "host.dispatch.rawDawn",
      turn: "host",
      shape: { dispatches: DISPATCHES },
      run: () => {
        raw ??= setUp();
        const encoder = gpu.device.createCommandEncoder();
        const pass = encoder.beginComputePass();
        for (let i = 0; i < DISPATCHES; i++) {
          pass.setPipeline(raw.pipeline);
          pass.setBindGroup(0, raw.group);
          pass.setImmediates(0, words);
          pass.dispatchWorkgroups(1);
        }
        pass.end();
        gpu.device.queue.submit([encoder.finish()]);
      },
      dispose: () => {
        for (const array of [source, destination]) gpu.release(array.buffer);
      },
    },
  ];
}
