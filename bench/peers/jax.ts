/**
 * @file jax-js: the whole task is one `jit` function, which is how it fuses. Its arrays are counted by hand (an argument
 * is consumed unless one writes `.ref`), so inside the trace every operand is passed as a further reference.
 */
import * as jax from "@jax-js/jax";
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

const { nn, numpy: np, lax } = jax;
type Arr = jax.Array;
type Tree = Record<string, Arr>;

const algebra: Algebra<Arr> = {
  matmul: (a, b, layout = "NN") =>
    np.matmul(
      layout === "TN" ? np.swapaxes(a.ref, -1, -2) : a.ref,
      layout === "NT" ? np.swapaxes(b.ref, -1, -2) : b.ref,
    ),
  add: (a, b) => np.add(a.ref, b.ref),
  scale: (a, factor) => np.multiply(a.ref, factor),
  softmax: (a) => nn.softmax(a.ref, -1),
  layerNorm: (x, gamma, beta, epsilon) =>
    np.add(np.multiply(nn.standardize(x.ref, -1, { epsilon }), gamma.ref), beta.ref),
  gelu: (x) => np.multiply(np.multiply(x.ref, 0.5), np.add(lax.erf(np.multiply(x.ref, Math.SQRT1_2)), 1)),
  reshape: (a, shape) => np.reshape(a.ref, [...shape]),
  permute: (a, order) => np.transpose(a.ref, [...order]),
  columnSum: (a) => np.sum(a.ref, 0),
  tokenMean: (a) => np.mean(a.ref, 1),
  gather: (table, ids) => np.take(table.ref, ids.ref, 0),
  crossEntropy: (logits, oneHot) => {
    const rows = logits.shape[0] ?? 1;
    return np.multiply(np.sum(np.multiply(nn.logSoftmax(logits.ref, -1), oneHot.ref)), -1 / rows);
  },
};

export async function openJax(version: string): Promise<Peer> {
  const devices = await jax.init("webgpu");
  if (!devices.includes("webgpu")) throw new Refusal("jax-js found no WebGPU adapter");
  jax.defaultDevice("webgpu");
  const device = jax.getWebGPUDevice();
  return {
    name: "jax-js",
    version,
    where: "gpu",
    prepare: async (task, inputs) => prepare(device, task, inputs),
    close: () => device.destroy(),
  };
}

function prepare(device: GPUDevice, task: Task, inputs: Record<string, Input>): Prepared {
  const held: Tree = {};
  for (const [name, { shape, data }] of Object.entries(inputs)) {
    held[name] = np.array(data.slice() as Float32Array<ArrayBuffer>).reshape([...shape]);
  }
  const { work } = task;
  const steps = work.kind === "train" ? trainer(task, work, held) : [evaluator(task)];
  let results: Tree = {};
  return {
    run: async () => {
      const before = results;
      results = {};
      for (const step of steps) {
        const found = step(held);
        for (const [name, value] of Object.entries(found)) {
          results[name]?.dispose(); // a weight that has taken a further step
          results[name] = value;
        }
        await rested(jax.blockUntilReady(found)); // compiles and submits what is pending
        await rested(device.queue.onSubmittedWorkDone());
      }
      jax.tree.dispose(before);
    },
    read: async (names) => {
      const read: Record<string, ArrayLike<number>> = {};
      for (const name of names) read[name] = await (results[name] as Arr).ref.data();
      return read;
    },
    dispose: () => {
      jax.tree.dispose(results);
      jax.tree.dispose(held);
    },
  };
}

function evaluator(task: Task): (x: Tree) => Tree {
  const { gradients } = task;
  if (!gradients) {
    const f = jax.jit((x: Tree): Tree => ({ y: task.forward(algebra, x) }));
    return (x) => f(jax.tree.ref(x));
  }
  const names = resultNames(task);
  const f = jax.jit((x: Tree): Tree => {
    const at = gradients.map((name) => x[name] as Arr);
    const forward = (...args: Arr[]) =>
      task.forward(algebra, { ...x, ...Object.fromEntries(gradients.map((name, i) => [name, args[i] as Arr])) });
    const [y, pull] = jax.vjp(forward, at);
    const slopes = pull((x.dy as Arr).ref) as Arr[];
    return Object.fromEntries([y as Arr, ...slopes].map((value, i) => [names[i] as string, value]));
  });
  return (x) => f(jax.tree.ref(x));
}

/**
 * A step of Adam for each batch, compiled for its length, with the weights' and moments' arrays handed from step to step;
 * the results are the loss and the new weights.
 */
function trainer(task: Task, { batches, lr }: Extract<Work, { kind: "train" }>, held: Tree): ((x: Tree) => Tree)[] {
  const weights = task.weights ?? [];
  const zeros = (): Tree => Object.fromEntries(weights.map((n) => [n, np.zeros((held[n] as Arr).shape)]));
  let [m, v] = [zeros(), zeros()];
  let steps = 0;
  const update = (batch: number) => (theta: Tree, m: Tree, v: Tree, x: Tree, c1: Arr, c2: Arr) => {
    const loss = (w: Tree) => task.forward(algebra, { ...x, ...w }, batch);
    const [y, slopes] = jax.valueAndGrad(loss)(theta) as unknown as [Arr, Tree];
    const [next, m1, v1]: [Tree, Tree, Tree] = [{}, {}, {}];
    for (const name of weights) {
      const g = slopes[name] as Arr;
      const first = np.add(np.multiply((m[name] as Arr).ref, ADAM.beta1), np.multiply(g.ref, 1 - ADAM.beta1));
      const second = np.add(
        np.multiply((v[name] as Arr).ref, ADAM.beta2),
        np.multiply(np.square(g.ref), 1 - ADAM.beta2),
      );
      const root = np.add(np.sqrt(np.multiply(second.ref, c2.ref)), ADAM.eps);
      const by = np.multiply(np.trueDivide(np.multiply(first.ref, c1.ref), root), lr);
      next[name] = np.subtract((theta[name] as Arr).ref, by);
      m1[name] = first;
      v1[name] = second;
    }
    return [y, next, m1, v1] as [Arr, Tree, Tree, Tree];
  };
  return batches.map((_, batch) => {
    const f = jax.jit(update(batch));
    return (x) => {
      steps++;
      const data = Object.fromEntries(Object.entries(inputsOf(x, batch)).filter(([name]) => !weights.includes(name)));
      const theta = Object.fromEntries(weights.map((name) => [name, x[name] as Arr]));
      const correction = (beta: number) => np.array(1 / (1 - beta ** steps));
      const [y, next, m1, v1] = f(theta, m, v, jax.tree.ref(data), correction(ADAM.beta1), correction(ADAM.beta2));
      [m, v] = [m1, v1];
      for (const name of weights) x[name] = next[name] as Arr;
      return { [`y@${batch}`]: y, ...jax.tree.ref(next) };
    };
  });
}
