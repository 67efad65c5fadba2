/**
 * @file The reference: the algebra in float64 on the host, with a tape. Obvious rather than fast, but for the product,
 * whose loops run along rows. Of priorwork only erf is used, so the two check each other.
 */
import { erf } from "../../src/kernels/erf.ts";
import { ADAM, type Algebra, type Input, inputsOf, sizeOf, type Task } from "./peer.ts";
import { batches, product } from "./product.ts";

/** A value and its gradient, which `back` hands on to what it came from. */
interface Node {
  shape: readonly number[];
  value: Float64Array;
  gradient?: Float64Array;
  back?: (dy: Float64Array) => void;
}

const at = (a: Float64Array, i: number) => a[i] as number;

class Reference implements Algebra<Node> {
  readonly tape: Node[] = [];

  matmul(a: Node, b: Node, layout: "NN" | "NT" | "TN" = "NN"): Node {
    const [g, size] = batches(a.shape, b.shape, layout);
    const shape = [...a.shape.slice(0, -2), size.M, size.N];
    return this.#node(shape, product(a.value, b.value, layout, size, g), (dy) => {
      const { M, N, K } = size;
      // y = AB: dA = dy·Bᵀ, dB = Aᵀ·dy; the other layouts transpose what they transpose.
      const toA = { M, N: K, K: N };
      if (layout === "TN") give(a, product(b.value, dy, "NT", { M: K, N: M, K: N }, g));
      else give(a, product(dy, b.value, layout === "NT" ? "NN" : "NT", toA, g));
      if (layout === "NT") give(b, product(dy, a.value, "TN", { M: N, N: K, K: M }, g));
      else give(b, product(a.value, dy, layout === "TN" ? "NN" : "TN", { M: K, N, K: M }, g));
    });
  }

  add(a: Node, b: Node): Node {
    const index = broadcast(a.shape, b.shape);
    return this.#node(
      a.shape,
      a.value.map((x, i) => x + at(b.value, index(i))),
      (dy) => {
        give(a, dy);
        const db = new Float64Array(b.value.length);
        for (let i = 0; i < dy.length; i++) db[index(i)] = at(db, index(i)) + at(dy, i);
        give(b, db);
      },
    );
  }

  scale(a: Node, factor: number): Node {
    return this.#node(
      a.shape,
      a.value.map((x) => x * factor),
      (dy) =>
        give(
          a,
          dy.map((d) => d * factor),
        ),
    );
  }

  softmax(a: Node): Node {
    const c = a.shape.at(-1) ?? 1;
    const y = new Float64Array(a.value.length);
    for (let r = 0; r < y.length; r += c) {
      let [most, sum] = [Number.NEGATIVE_INFINITY, 0];
      for (let i = r; i < r + c; i++) most = Math.max(most, at(a.value, i));
      for (let i = r; i < r + c; i++) {
        y[i] = Math.exp(at(a.value, i) - most);
        sum += at(y, i);
      }
      for (let i = r; i < r + c; i++) y[i] = at(y, i) / sum;
    }
    return this.#node(a.shape, y, (dy) => {
      const da = new Float64Array(y.length);
      for (let r = 0; r < y.length; r += c) {
        let dot = 0;
        for (let i = r; i < r + c; i++) dot += at(y, i) * at(dy, i);
        for (let i = r; i < r + c; i++) da[i] = at(y, i) * (at(dy, i) - dot);
      }
      give(a, da);
    });
  }

  layerNorm(x: Node, gamma: Node, beta: Node, eps: number): Node {
    const c = gamma.value.length;
    const hat = new Float64Array(x.value.length);
    const rstd = new Float64Array(hat.length / c);
    for (let r = 0; r < rstd.length; r++) {
      const row = x.value.subarray(r * c, (r + 1) * c);
      const mean = row.reduce((a, b) => a + b, 0) / c;
      const scale = 1 / Math.sqrt(row.reduce((sum, v) => sum + (v - mean) ** 2, 0) / c + eps);
      rstd[r] = scale;
      for (let i = 0; i < c; i++) hat[r * c + i] = (at(row, i) - mean) * scale;
    }
    const y = hat.map((h, i) => h * at(gamma.value, i % c) + at(beta.value, i % c));
    return this.#node(x.shape, y, (dy) => {
      const [dx, dgamma, dbeta] = [new Float64Array(hat.length), new Float64Array(c), new Float64Array(c)];
      for (let r = 0; r < rstd.length; r++) {
        let [mean, dot] = [0, 0];
        for (let i = 0, j = r * c; i < c; i++, j++) {
          const dh = at(dy, j) * at(gamma.value, i);
          mean += dh / c;
          dot += (dh * at(hat, j)) / c;
          dgamma[i] = at(dgamma, i) + at(dy, j) * at(hat, j);
          dbeta[i] = at(dbeta, i) + at(dy, j);
        }
        for (let i = 0, j = r * c; i < c; i++, j++) {
          dx[j] = at(rstd, r) * (at(dy, j) * at(gamma.value, i) - mean - at(hat, j) * dot);
        }
      }
      give(x, dx);
      give(gamma, dgamma);
      give(beta, dbeta);
    });
  }

  gelu(x: Node): Node {
    const phi = x.value.map((v) => (1 + erf(v / Math.SQRT2)) / 2);
    return this.#node(
      x.shape,
      x.value.map((v, i) => v * at(phi, i)),
      (dy) => {
        const density = (v: number) => Math.exp((-v * v) / 2) / Math.sqrt(2 * Math.PI);
        give(
          x,
          dy.map((d, i) => d * (at(phi, i) + at(x.value, i) * density(at(x.value, i)))),
        );
      },
    );
  }

  reshape(a: Node, shape: readonly number[]): Node {
    return this.#node(shape, a.value, (dy) => give(a, dy));
  }

  permute(a: Node, order: readonly number[]): Node {
    const shape = order.map((axis) => a.shape[axis] as number);
    const from = permutation(a.shape, order);
    return this.#node(
      shape,
      a.value.map((_, i) => at(a.value, from[i] as number)),
      (dy) => {
        const da = new Float64Array(dy.length);
        for (let i = 0; i < dy.length; i++) da[from[i] as number] = at(dy, i);
        give(a, da);
      },
    );
  }

  columnSum(a: Node): Node {
    const [n, c] = a.shape as [number, number];
    return this.#mean(a, 1, n, c, 1);
  }

  tokenMean(a: Node): Node {
    const [b, t, c] = a.shape as [number, number, number];
    return this.#mean(a, b, t, c, 1 / t);
  }

  gather(table: Node, ids: Node): Node {
    const c = table.shape[1] as number;
    const y = new Float64Array(ids.value.length * c);
    for (const [r, id] of ids.value.entries()) y.set(table.value.subarray(id * c, (id + 1) * c), r * c);
    return this.#node([ids.value.length, c], y, () => {
      throw new Error("the reference has no gradient of gather: no task asks for one");
    });
  }

  crossEntropy(logits: Node, oneHot: Node): Node {
    const [n, k] = logits.shape as [number, number];
    const p = new Reference().softmax(logits).value;
    let loss = 0;
    for (let i = 0; i < n * k; i++) if (at(oneHot.value, i) > 0) loss -= (at(oneHot.value, i) * Math.log(at(p, i))) / n;
    return this.#node([], Float64Array.of(loss), (dy) =>
      give(
        logits,
        p.map((q, i) => ((q - at(oneHot.value, i)) / n) * at(dy, 0)),
      ),
    );
  }

  /** factor · Σ over the middle axis of [b, t, c]. */
  #mean(a: Node, b: number, t: number, c: number, factor: number): Node {
    const y = new Float64Array(b * c);
    const to = (i: number) => Math.floor(i / (t * c)) * c + (i % c);
    for (let i = 0; i < a.value.length; i++) y[to(i)] = at(y, to(i)) + factor * at(a.value, i);
    return this.#node(b === 1 ? [c] : [b, c], y, (dy) =>
      give(
        a,
        a.value.map((_, i) => factor * at(dy, to(i))),
      ),
    );
  }

  #node(shape: readonly number[], value: Float64Array, back: (dy: Float64Array) => void): Node {
    const node = { shape, value, back };
    this.tape.push(node);
    return node;
  }
}

function give(node: Node, gradient: Float64Array): void {
  node.gradient = node.gradient ? node.gradient.map((g, i) => g + at(gradient, i)) : gradient;
}

/** Index into b (trailing axes of a; an axis of 1 is repeated) of an index into a. */
function broadcast(a: readonly number[], b: readonly number[]): (i: number) => number {
  const size = sizeOf(b);
  if (sizeOf(a) === size) return (i) => i;
  if (b.at(-2) !== 1) return (i) => i % size;
  const [t, c] = [a.at(-2) ?? 1, a.at(-1) ?? 1];
  return (i) => Math.floor(i / (t * c)) * c + (i % c);
}

/** For every element of the permuted array, where it came from. */
function permutation(shape: readonly number[], order: readonly number[]): Uint32Array {
  const strides = shape.map((_, axis) => sizeOf(shape.slice(axis + 1)));
  let from = Uint32Array.of(0);
  for (const axis of order) {
    const n = shape[axis] as number;
    const next = new Uint32Array(from.length * n);
    for (let i = 0; i < next.length; i++) next[i] = (from[Math.floor(i / n)] ?? 0) + (i % n) * (strides[axis] ?? 0);
    from = next;
  }
  return from;
}

/** All results of a task, in float64. Of training, each batch's loss before its step, and the weights after the last. */
export function reference(task: Task, inputs: Record<string, Input>): Record<string, Float64Array> {
  if (task.work.kind === "train") return trained(task, task.work, inputs);
  const algebra = new Reference();
  const x = leaves(inputs);
  const y = task.forward<Node>(algebra, x);
  const results: Record<string, Float64Array> = { y: y.value };
  const wanted = task.gradients ?? [];
  if (wanted.length === 0) return results;
  backward(algebra, y, x.dy?.value);
  for (const name of wanted) results[`d${name}`] = gradientOf(task, x, name);
  return results;
}

/** Adam with its moments and the correction of their biases, a step on each batch. */
function trained(
  task: Task,
  { batches, lr }: Extract<Task["work"], { kind: "train" }>,
  inputs: Record<string, Input>,
): Record<string, Float64Array> {
  const results: Record<string, Float64Array> = {};
  const theta = leaves(inputs);
  const moments = Object.fromEntries(
    (task.weights ?? []).map((name) => {
      const size = (theta[name] as Node).value.length;
      return [name, { m: new Float64Array(size), v: new Float64Array(size) }];
    }),
  );
  const { beta1, beta2, eps } = ADAM;
  for (const i of batches.keys()) {
    const algebra = new Reference();
    const x = inputsOf(theta, i);
    const y = task.forward<Node>(algebra, x, i);
    results[`y@${i}`] = y.value;
    backward(algebra, y);
    for (const [name, { m, v }] of Object.entries(moments)) {
      const [gradient, node] = [gradientOf(task, x, name), theta[name] as Node];
      const value = node.value.map((w, j) => {
        const g = at(gradient, j);
        m[j] = beta1 * at(m, j) + (1 - beta1) * g;
        v[j] = beta2 * at(v, j) + (1 - beta2) * g * g;
        return w - (lr * (at(m, j) / (1 - beta1 ** (i + 1)))) / (Math.sqrt(at(v, j) / (1 - beta2 ** (i + 1))) + eps);
      });
      theta[name] = { shape: node.shape, value };
      results[name] = value;
    }
  }
  return results;
}

function leaves(inputs: Record<string, Input>): Record<string, Node> {
  return Object.fromEntries(
    Object.entries(inputs).map(([name, { shape, data }]) => [name, { shape, value: Float64Array.from(data) }]),
  );
}

/** From y back to all it came from; dy is 1 unless given. */
function backward({ tape }: Reference, y: Node, dy: Float64Array = Float64Array.of(1)): void {
  y.gradient = dy;
  for (const node of tape.reverse()) if (node.gradient) node.back?.(node.gradient);
}

function gradientOf(task: Task, x: Record<string, Node>, name: string): Float64Array {
  const gradient = x[name]?.gradient;
  if (!gradient) throw new Error(`${task.name}: no gradient reached ${name}`);
  return gradient;
}
