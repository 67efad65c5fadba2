/** @file priorwork's side: the kernels as `priorwork/kernels` has them; layers and training steps in priorwork-model.ts. */
import { Engine } from "../../src/autograd/index.ts";
import type { Gpu } from "../../src/gpu/index.ts";
import {
  addRow,
  attention,
  attentionBackward,
  attentionPlan,
  columnSum,
  fromHost,
  layerNorm,
  layerNormBackward,
  matmul,
  type NdArray,
  softmax,
  unary,
} from "../../src/kernels/index.ts";
import { EPS } from "./model.ts";
import type { Input, Peer, Prepared, Task, Work } from "./peer.ts";
import { type Arrays, kernel } from "./priorwork-kernel.ts";
import { prepareModel } from "./priorwork-model.ts";

export function openPriorwork(gpu: Gpu, version: string): Peer {
  const engine = new Engine(gpu);
  return {
    name: "priorwork",
    version,
    where: "gpu",
    prepare: async (task, inputs) => {
      const { work } = task;
      if (work.kind === "layer" || work.kind === "train" || work.kind === "inference") {
        return prepareModel(engine, task, work, inputs);
      }
      if (work.kind === "attention") return prepareAttention(gpu, work, inputs);
      const held = uploaded(gpu, inputs);
      return kernel(gpu, held, () => body(gpu, task, held));
    },
    close: () => engine.close(),
  };
}

function uploaded(gpu: Gpu, inputs: Record<string, Input>): Arrays {
  const arrays: Arrays = {};
  for (const [name, { data, shape }] of Object.entries(inputs))
    arrays[name] = fromHost(gpu, Float32Array.from(data), shape);
  return arrays;
}

function body(gpu: Gpu, { work, gradients }: Task, x: Arrays): Arrays {
  const of = (name: string) => x[name] as NdArray;
  switch (work.kind) {
    case "matmul":
      return { y: matmul(gpu, of("a"), of("b"), work.layout) };
    case "softmax":
      return { y: softmax(gpu, of("x")) };
    case "gelu":
      return { y: unary(gpu, "gelu", of("x")) };
    case "addRow":
      return { y: addRow(gpu, of("x"), of("row")) };
    case "columnSum":
      return { y: columnSum(gpu, of("x")) };
    case "layerNorm": {
      const { y, stats } = layerNorm(gpu, of("x"), of("gamma"), of("beta"), EPS);
      return { y, ...(gradients ? layerNormBackward(gpu, of("dy"), of("x"), of("gamma"), stats) : {}) };
    }
    default:
      throw new Error(`no kernel for ${work.kind}`);
  }
}

/** Packed: the rows of [B·H, T, D] that are no padding, side by side as [N, 3C]. */
function prepareAttention(gpu: Gpu, work: Work & { kind: "attention" }, inputs: Record<string, Input>): Prepared {
  const { heads, lengths } = work;
  const [, longest = 1, d = 1] = inputs.q?.shape ?? [];
  const c = heads * d;
  const starts = Uint32Array.from([0, ...lengths]);
  for (let b = 1; b < starts.length; b++) starts[b] = (starts[b] ?? 0) + (starts[b - 1] ?? 0);
  const n = starts.at(-1) ?? 0;

  /** Calls `visit` with a packed index (row, then `width` per row) and the padded one. */
  const walk = (width: number, part: number, visit: (packed: number, padded: number) => void) => {
    for (const [b, length] of lengths.entries())
      for (let t = 0; t < length; t++)
        for (let i = 0; i < c; i++) {
          const padded = ((b * heads + Math.floor(i / d)) * longest + t) * d + (i % d);
          visit(((starts[b] ?? 0) + t) * width + part * c + i, padded);
        }
  };
  const qkv = new Float32Array(n * 3 * c);
  const dy = new Float32Array(n * c);
  for (const [part, name] of ["q", "k", "v"].entries())
    walk(3 * c, part, (packed, padded) => {
      qkv[packed] = inputs[name]?.data[padded] ?? 0;
    });
  const upstream = inputs.dy?.data;
  if (upstream)
    walk(c, 0, (packed, padded) => {
      dy[packed] = upstream[padded] ?? 0;
    });

  const plan = attentionPlan(gpu, starts);
  const held = { qkv: fromHost(gpu, qkv, [n, 3 * c]), dy: fromHost(gpu, dy, [n, c]), tiles: plan.tiles };
  const forward = () => attention(gpu, held.qkv, plan, { heads });
  const run = (): Arrays => {
    const { y, lse } = forward();
    if (!upstream) return { y };
    const dqkv = attentionBackward(gpu, held.qkv, y, lse, held.dy, plan, { heads });
    return { y, dq: dqkv, dk: dqkv, dv: dqkv };
  };
  return kernel(gpu, held, run, (name, data) => {
    const unpacked = new Float32Array(lengths.length * heads * longest * d);
    const gradient = name !== "y";
    walk(gradient ? 3 * c : c, gradient ? ["dq", "dk", "dv"].indexOf(name) : 0, (packed, padded) => {
      unpacked[padded] = data[packed] ?? Number.NaN;
    });
    return unpacked;
  });
}
