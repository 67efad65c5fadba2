/**
 * @file TensorFlow.js on WebGPU: eager, inside `tidy`, its optimiser `tf.train.adam`. Waiting is a submit of what it has
 * recorded and then its queue: `data()` would add the read-back to the time.
 */
import { createRequire } from "node:module";
import * as tf from "@tensorflow/tfjs-core";
import "@tensorflow/tfjs-backend-webgpu";
import {
  ADAM,
  type Algebra,
  type Input,
  inputsOf,
  type Peer,
  type Prepared,
  Refusal,
  resultNames,
  type Task,
  type Work,
} from "./peer.ts";
import { rested } from "./rest.ts";

type Tensors = Record<string, tf.Tensor>;

/** What is used of the backend, whose own type does not show all of it. */
interface Backend {
  device: GPUDevice;
  queue: GPUQueue;
  commandEncoder: GPUCommandEncoder | null;
  endComputePassEncoder(): void;
  submitQueue(): void;
}

const algebra: Algebra<tf.Tensor> = {
  matmul: (a, b, layout = "NN") => tf.matMul(a, b, layout === "TN", layout === "NT"),
  add: (a, b) => tf.add(a, b),
  scale: (a, factor) => tf.mul(a, factor),
  softmax: (a) => tf.softmax(a),
  layerNorm: (x, gamma, beta, eps) => {
    const { mean, variance } = tf.moments(x, -1, true);
    return tf.add(tf.mul(tf.mul(tf.sub(x, mean), tf.rsqrt(tf.add(variance, eps))), gamma), beta);
  },
  gelu: (x) => tf.mul(tf.mul(x, 0.5), tf.add(tf.erf(tf.mul(x, Math.SQRT1_2)), 1)),
  reshape: (a, shape) => tf.reshape(a, [...shape]),
  permute: (a, order) => tf.transpose(a, [...order]),
  columnSum: (a) => tf.sum(a, 0),
  tokenMean: (a) => tf.mean(a, 1),
  gather: (table, ids) => tf.gather(table, ids as tf.Tensor1D),
  crossEntropy: (logits, oneHot) => tf.mul(tf.sum(tf.mul(tf.logSoftmax(logits), oneHot)), -1 / (logits.shape[0] ?? 1)),
};

export async function openTfjs(version: string): Promise<Peer> {
  // Only as CommonJS (which the runner transpiles) do the gradients load in Node; their registry is a global one.
  createRequire(import.meta.url)("@tensorflow/tfjs-core/dist/register_all_gradients.js");
  tf.enableProdMode();
  if (!(await tf.setBackend("webgpu"))) throw new Refusal("tfjs found no WebGPU adapter");
  await tf.ready();
  const backend = tf.backend() as unknown as Backend;
  return {
    name: "tfjs-webgpu",
    version,
    where: "gpu",
    prepare: async (task, inputs) => prepare(backend, task, inputs),
    close: () => backend.device.destroy(),
  };
}

function prepare(backend: Backend, task: Task, inputs: Record<string, Input>): Prepared {
  const held: Tensors = {};
  for (const [name, { shape, data }] of Object.entries(inputs)) {
    held[name] = tf.tensor(data, [...shape], data instanceof Int32Array ? "int32" : "float32");
  }
  const { work } = task;
  const steps = work.kind === "train" ? trainer(task, work, held) : [() => evaluate(task, held)];
  let results: Tensors = {};
  const free = () => tf.dispose(Object.values(results).filter((result) => !(result instanceof tf.Variable)));
  return {
    run: async () => {
      free();
      results = {};
      for (const step of steps) {
        Object.assign(results, step());
        if (backend.commandEncoder) {
          backend.endComputePassEncoder();
          backend.submitQueue();
        }
        await rested(backend.queue.onSubmittedWorkDone());
      }
    },
    read: async (names) => {
      const read: Record<string, ArrayLike<number>> = {};
      for (const name of names) {
        // Of a copy: a tensor that has been read keeps its numbers on the host, and would be read from there.
        const copy = tf.mul(results[name] as tf.Tensor, 1);
        read[name] = await copy.data();
        copy.dispose();
      }
      return read;
    },
    dispose: () => {
      free();
      tf.dispose(held);
      tf.disposeVariables();
    },
  };
}

function evaluate(task: Task, held: Tensors): Tensors {
  const { gradients } = task;
  if (!gradients) return tf.tidy(() => ({ y: task.forward(algebra, held) }));
  const names = resultNames(task);
  return tf.tidy(() => {
    const at = gradients.map((name) => held[name] as tf.Tensor);
    const forward = (...args: tf.Tensor[]) =>
      task.forward(algebra, {
        ...held,
        ...Object.fromEntries(gradients.map((name, i) => [name, args[i] as tf.Tensor])),
      });
    const { value, grads } = tf.valueAndGrads(forward)(at, held.dy as tf.Tensor);
    return Object.fromEntries([value, ...grads].map((tensor, i) => [names[i] as string, tensor]));
  });
}

/** A step for each batch; the results are its loss and the weights themselves. */
function trainer(task: Task, work: Extract<Work, { kind: "train" }>, held: Tensors): (() => Tensors)[] {
  const weights = task.weights ?? [];
  const variables = Object.fromEntries(weights.map((name) => [name, tf.variable(held[name] as tf.Tensor)]));
  const optimizer = tf.train.adam(work.lr, ADAM.beta1, ADAM.beta2, ADAM.eps);
  return work.batches.map((_, batch) => {
    const x = { ...inputsOf(held, batch), ...variables };
    const loss = () => task.forward<tf.Tensor>(algebra, x, batch) as tf.Scalar;
    return () => ({
      [`y@${batch}`]: optimizer.minimize(loss, true, Object.values(variables)) as tf.Tensor,
      ...variables,
    });
  });
}
