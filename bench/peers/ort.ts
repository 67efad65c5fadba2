/**
 * @file onnxruntime-web with its WebGPU provider: a graph per task, inputs and output in GPU buffers, so that nothing is
 * copied while it is timed; weights are constants of the graph.
 */
import { setFlagsFromString } from "node:v8";
import type * as Ort from "onnxruntime-web";
import { OnnxGraph } from "./onnx.ts";
import { type Input, type Peer, type Prepared, Refusal, type Task } from "./peer.ts";
import { rested } from "./rest.ts";

const OPTIONS: Ort.InferenceSession.SessionOptions = {
  executionProviders: ["webgpu"],
  preferredOutputLocation: "gpu-buffer",
  logSeverityLevel: 3,
};

export async function openOrt(version: string): Promise<Peer> {
  // V8's optimising compiler works on the 25 MB of WebAssembly for minutes, on the cores that are being measured.
  setFlagsFromString("--no-wasm-tier-up");
  copySharedUploads();
  const ort = (await import("onnxruntime-web/webgpu")) as typeof Ort;
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  let device: GPUDevice | undefined;
  return {
    name: "onnxruntime-web",
    version,
    where: "gpu",
    prepare: async (task, inputs) => {
      if (task.gradients || task.work.kind === "train") throw new Refusal("onnxruntime-web does inference only");
      const graph = new OnnxGraph(inputs);
      const output = task.forward(graph, Object.fromEntries(Object.keys(inputs).map((name) => [name, name])));
      const weights = task.weights ?? [];
      const session = await ort.InferenceSession.create(graph.model(inputs, weights, output), OPTIONS);
      device = await ort.env.webgpu.device;
      return prepare(ort, device, session, task, inputs);
    },
    close: () => device?.destroy(),
  };
}

function prepare(
  ort: typeof Ort,
  device: GPUDevice,
  session: Ort.InferenceSession,
  task: Task,
  inputs: Record<string, Input>,
): Prepared {
  const feeds: Record<string, Ort.Tensor> = {};
  const buffers: GPUBuffer[] = [];
  for (const [name, { shape, data }] of Object.entries(inputs)) {
    if (task.weights?.includes(name)) continue;
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    const buffer = device.createBuffer({ size: Math.ceil(data.byteLength / 16) * 16, usage });
    device.queue.writeBuffer(buffer, 0, data as Float32Array<ArrayBuffer>);
    const dataType = data instanceof Int32Array ? "int32" : "float32";
    feeds[name] = ort.Tensor.fromGpuBuffer(buffer, { dataType, dims: [...shape] });
    buffers.push(buffer);
  }
  let result: Ort.Tensor | undefined;
  return {
    run: async () => {
      result?.dispose();
      result = (await session.run(feeds)).y;
      await rested(device.queue.onSubmittedWorkDone());
    },
    read: async () => {
      if (!result) throw new Error("nothing has been run");
      return { y: await download(device, result) };
    },
    dispose: async () => {
      result?.dispose();
      for (const buffer of buffers) buffer.destroy();
      await session.release();
    },
  };
}

/** By a copy of our own: `getData` would move the tensor to the host for good. */
async function download(device: GPUDevice, tensor: Ort.Tensor): Promise<Float32Array> {
  const size = tensor.size * 4;
  const staging = device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(tensor.gpuBuffer as GPUBuffer, 0, staging, 0, size);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(GPUMapMode.READ);
  const data = new Float32Array(staging.getMappedRange().slice(0));
  staging.destroy();
  return data;
}

/** Its memory is shared between threads, and Dawn for Node refuses to upload from such: those uploads are copied first. */
function copySharedUploads(): void {
  const upload = GPUQueue.prototype.writeBuffer;
  GPUQueue.prototype.writeBuffer = function (buffer, offset, data, ...range: [number?, number?]) {
    const shared = ArrayBuffer.isView(data) && data.buffer instanceof SharedArrayBuffer;
    return upload.call(this, buffer, offset, shared ? (data as unknown as Uint8Array).slice() : data, ...range);
  };
}
