/**
 * @file BERT in one file (Devlin, Chang, Lee, Toutanova 2019; parameter names and defaults as in Hugging Face's
 * `BertModel`): embeddings, encoder layers, pooler; sequence classification on any readout. The pretraining heads are in
 * pretraining.ts.
 * Batches are packed: N tokens of B sequences one after the other, `starts` [B+1], no padding and no attention mask.
 * C channels, H heads, V vocabulary, F channels of the feed-forward layer, K labels.
 */
import { type Engine, Layout, ops, type SliceSpec, type Tensor, Theta } from "../autograd/index.ts";
import { type PackedBatch, repeatBatch } from "../data/batches.ts";
import { InputError } from "../errors.ts";
import { type AttentionPlan, attentionPlan, fromHost, type NdArray } from "../kernels/index.ts";
import { type BertConfig, parseBertConfig } from "./config.ts";
import { type Checkpoint, checkSizes, fillTheta, hasParameter, type LoadReport, randomStart } from "./load.ts";
import { levelMembers, memberBatch, memberKey, type RankOne, rankOneSlices } from "./rank-one.ts";
import { type Readout, readoutNamed } from "./readout.ts";

/** The key of each dropout of the model, by its site; undefined means no dropout (evaluation). */
export type DropoutKeys = (site: number) => readonly [number, number];

// ---- parameters

/** The encoder's slices in order of use. Query, key and value are one slice: one GEMM computes all three. */
export function encoderSlices(config: BertConfig, pooler: boolean): SliceSpec[] {
  const { hiddenSize: c, intermediateSize: f, vocabSize, maxPositions, typeVocabSize } = config;
  const one = (name: string, shape: number[], group: string): SliceSpec => ({
    key: name,
    parameters: [{ name, shape }],
    groups: ["encoder", group],
  });
  const table = (name: string, rows: number) => ({ ...one(name, [rows, c], "embeddings"), table: true });
  const norm = (prefix: string, group: string) => [
    one(`${prefix}.weight`, [c], group),
    one(`${prefix}.bias`, [c], group),
  ];
  const dense = (prefix: string, out: number, input: number, group: string) => [
    one(`${prefix}.weight`, [out, input], group),
    one(`${prefix}.bias`, [out], group),
  ];
  const slices = [
    table("bert.embeddings.word_embeddings.weight", vocabSize),
    table("bert.embeddings.position_embeddings.weight", maxPositions),
    table("bert.embeddings.token_type_embeddings.weight", typeVocabSize),
    ...norm("bert.embeddings.LayerNorm", "embeddings"),
  ];
  for (let i = 0; i < config.layers; i++) {
    const group = `layer.${i}`;
    const layer = `bert.encoder.layer.${i}`;
    const threefold = (kind: "weight" | "bias", shape: number[]): SliceSpec => ({
      key: `${layer}.attention.self.${kind}`,
      parameters: ["query", "key", "value"].map((part) => ({ name: `${layer}.attention.self.${part}.${kind}`, shape })),
      groups: ["encoder", group],
    });
    slices.push(
      threefold("weight", [c, c]),
      threefold("bias", [c]),
      ...dense(`${layer}.attention.output.dense`, c, c, group),
      ...norm(`${layer}.attention.output.LayerNorm`, group),
      ...dense(`${layer}.intermediate.dense`, f, c, group),
      ...dense(`${layer}.output.dense`, c, f, group),
      ...norm(`${layer}.output.LayerNorm`, group),
    );
  }
  if (pooler) slices.push(...dense("bert.pooler.dense", c, c, "pooler"));
  return slices;
}

// ---- a batch on the device

/** A packed batch and what the layers need of it on the device, uploaded once a step. */
export interface DeviceBatch {
  packed: PackedBatch;
  plan: AttentionPlan;
  /** u32 [B+1] */
  starts: NdArray;
  /** u32 [B]: the row of each sequence's first token */
  first: NdArray;
}

// ---- the encoder

/** Dropout sites: 0 the embeddings, 3i+1 … 3i+3 layer i (attention, its output, the feed-forward's), then the heads. */
const SITES_PER_LAYER = 3;

export class BertEncoder {
  readonly engine: Engine;
  readonly config: BertConfig;
  readonly theta: Theta;
  readonly hasPooler: boolean;
  /** True: of a layer only its input is kept, and its backward runs it again. Slower, less memory, the same bits. */
  recompute = false;

  /** `heads`: the slices of whatever stands on the encoder; θ covers both, and the vectors of rank-one members. */
  constructor(engine: Engine, config: BertConfig, heads: readonly SliceSpec[], pooler: boolean, rankOne?: RankOne) {
    this.engine = engine;
    this.config = config;
    this.hasPooler = pooler;
    const slices = [...encoderSlices(config, pooler), ...heads];
    const vectors = rankOne ? rankOneSlices(slices, rankOne) : [];
    this.theta = new Theta(engine, new Layout([...slices, ...vectors]));
  }

  /**
   * act(x·Wᵀ + b) + residual with the parameters under a prefix: x [R, in] → [R, out]. `members`: x is so many copies of
   * one batch, and where the layer has rank-one members each is multiplied by its own W_m.
   */
  linear(
    prefix: string,
    x: Tensor,
    { members, activation, residual }: Omit<ops.LinearOptions, "bias"> & { members?: number | undefined } = {},
  ): Tensor {
    const p = (key: string) => this.theta.tensor(key);
    const [weight, bias] = [p(`${prefix}.weight`), p(`${prefix}.bias`)];
    if (members === undefined || !this.theta.layout.has(memberKey(prefix, "r"))) {
      return ops.linear(x, weight, { bias, ...(activation ? { activation } : {}), ...(residual ? { residual } : {}) });
    }
    const y = ops.linear(ops.rowScale(x, p(memberKey(prefix, "s"))), weight, { bias });
    const scaled = ops.rowScale(y, p(memberKey(prefix, "r")));
    const active = activation ? ops.unary(activation, scaled) : scaled;
    return residual ? ops.add(active, residual) : active;
  }

  upload(packed: PackedBatch): DeviceBatch {
    const { gpu } = this.engine;
    return {
      packed,
      plan: attentionPlan(gpu, packed.starts),
      starts: fromHost(gpu, packed.starts),
      first: fromHost(gpu, packed.starts.subarray(0, packed.sequences)),
    };
  }

  /** Word + position + type, normalised: → [N, C]. */
  embed({ packed }: DeviceBatch, keys?: DropoutKeys): Tensor {
    const p = (name: string) => this.theta.tensor(`bert.embeddings.${name}`);
    const x = ops.embeddingSum([
      { table: p("word_embeddings.weight"), ids: packed.ids },
      { table: p("position_embeddings.weight"), ids: packed.positions },
      { table: p("token_type_embeddings.weight"), ids: packed.typeIds },
    ]);
    const y = ops.layerNorm(x, p("LayerNorm.weight"), p("LayerNorm.bias"), this.config.layerNormEps);
    const { hiddenDropout } = this.config;
    if (!keys || hiddenDropout === 0 || this.#frozen("bert.embeddings.LayerNorm.weight")) return y;
    return ops.dropout(y, hiddenDropout, keys(0));
  }

  /** One encoder layer: x [N, C] → [N, C]. */
  layer(i: number, x: Tensor, batch: DeviceBatch, keys?: DropoutKeys): Tensor {
    const { heads, layerNormEps: eps, hiddenDropout, attentionDropout, hiddenAct } = this.config;
    const prefix = `bert.encoder.layer.${i}`;
    const p = (name: string) => this.theta.tensor(`${prefix}.${name}`);
    const site = 1 + SITES_PER_LAYER * i;
    const { members } = batch.packed;
    const linear: typeof this.linear = (name, y, options) =>
      this.linear(`${prefix}.${name}`, y, { members, ...options });
    // A frozen layer has no dropout inside it: it is knowledge held fixed.
    const live = this.#frozen(`${prefix}.output.dense.weight`) ? undefined : keys;
    // layerNorm(W·y + b + x): the sum belongs to the product, or where a dropout stands between to the normalisation.
    const addNorm = (residual: Tensor, y: Tensor, name: string, offset: number) => {
      const [gamma, beta] = [p(`${name}.LayerNorm.weight`), p(`${name}.LayerNorm.bias`)];
      if (!live || hiddenDropout === 0)
        return ops.layerNorm(linear(`${name}.dense`, y, { residual }), gamma, beta, eps);
      const dropped = ops.dropout(linear(`${name}.dense`, y), hiddenDropout, live(site + offset));
      return ops.addLayerNorm(dropped, residual, gamma, beta, eps);
    };

    const qkv = linear("attention.self", x); // [N, 3C]
    const context = ops.attention(qkv, batch.plan, {
      heads,
      ...(live && attentionDropout > 0 ? { dropout: { p: attentionDropout, key: live(site) } } : {}),
    }); // [N, C]
    const attended = addNorm(x, context, "attention.output", 1);
    const hidden = linear("intermediate.dense", attended, { activation: hiddenAct }); // [N, F]
    return addNorm(attended, hidden, "output", 2);
  }

  /**
   * Outputs of the embeddings and of every layer, `states[0]` … `states[layers]`, each [N, C]. Those before the last
   * `depth` are not kept (and are undefined) when no gradient needs them.
   */
  states(batch: DeviceBatch, keys?: DropoutKeys, depth = Number.POSITIVE_INFINITY): (Tensor | undefined)[] {
    const { engine, config } = this;
    const states: (Tensor | undefined)[] = [engine.tidy(() => this.embed(batch, keys))];
    for (let i = 0; i < config.layers; i++) {
      const x = states[i] as Tensor;
      const layer = () => this.layer(i, x, batch, keys);
      states.push(this.recompute ? engine.recompute([x], layer) : engine.tidy(layer));
      if (config.layers + 1 - i > depth && !(states[i + 1] as Tensor).requiresGrad) {
        engine.gpu.releaseScoped(x.array.buffer);
        states[i] = undefined;
      }
    }
    return states;
  }

  /** tanh(W·x + b) of the first token's vector: x [B, C] → [B, C]. */
  pooler(x: Tensor, members?: number): Tensor {
    return this.linear("bert.pooler.dense", x, { members, activation: "tanh" });
  }

  /** A readout of a batch: → [B, width]. */
  read(readout: Readout, packed: PackedBatch, keys?: DropoutKeys): Tensor {
    const batch = this.upload(packed);
    const states = this.states(batch, keys, readout.depth ?? 1);
    return readout.apply({
      last(k) {
        const state = states[states.length - k];
        if (!state)
          throw new Error(
            `readout ${readout.name}: layer ${k} from the end was not kept; its depth says ${readout.depth ?? 1}`,
          );
        return state;
      },
      cls: (x) => ops.rows(x, batch.first),
      mean: (x) => ops.segmentMean(x, batch.starts),
      max: (x) => ops.segmentMax(x, batch.starts),
      pooler: (x) => this.pooler(x, packed.members),
    });
  }

  /** As `states`, for a batch of the host. */
  hiddenStates(packed: PackedBatch): Tensor[] {
    return this.states(this.upload(packed)) as Tensor[];
  }

  /** Dropout at a site of the heads, counted from 0. */
  headDropout(x: Tensor, p: number, head: number, keys?: DropoutKeys): Tensor {
    const site = 1 + SITES_PER_LAYER * this.config.layers + head;
    return keys && p > 0 ? ops.dropout(x, p, keys(site)) : x;
  }

  #frozen(key: string): boolean {
    return this.theta.isFrozen(this.theta.layout.slices[this.theta.layout.index(key)]!);
  }
}

// ---- heads

/** The widest hidden layer of a head. */
export const WIDEST_HEAD = 65_536;

/** A linear head, or one hidden layer of that many channels with GELU. */
export type HeadSpec = "linear" | `mlp:${number}`;

/** The head's slices. With the pooler and a linear head the names are Hugging Face's own. */
export function headSlices(head: HeadSpec, readout: Readout, config: BertConfig, labels: number): SliceSpec[] {
  const width = readout.width(config.hiddenSize, config.layers);
  const dense = (prefix: string, out: number, input: number): SliceSpec[] => [
    { key: `${prefix}.weight`, parameters: [{ name: `${prefix}.weight`, shape: [out, input] }], groups: ["head"] },
    { key: `${prefix}.bias`, parameters: [{ name: `${prefix}.bias`, shape: [out] }], groups: ["head"] },
  ];
  if (head === "linear") return dense(headPrefix(head, readout), labels, width);
  const hidden = Number(head.slice("mlp:".length));
  return [...dense("priorwork.head.hidden", hidden, width), ...dense("priorwork.head.output", labels, hidden)];
}

function headPrefix(head: HeadSpec, readout: Readout): string {
  if (head !== "linear") return "priorwork.head.output";
  return readout.name === "pooler" ? "classifier" : "priorwork.head";
}

export interface ClassifierOptions {
  /** How many labels, or what they are called. Without it, what the checkpoint's config says. */
  labels?: number | readonly string[];
  /** A name or an object. Default: what the checkpoint says, else `pooler` where it has one, else `cls`. */
  readout?: string | Readout;
  head?: HeadSpec;
  /** Of what starts at random: a new head, or everything. */
  seed?: number;
  /** Random start for all of θ instead of the checkpoint's weights. */
  scratch?: boolean;
  /** Run every layer again in the backward instead of keeping its values: a third more work, the same bits. */
  recompute?: boolean;
  /** S members that share the weights and are trained together: see rank-one.ts. */
  rankOne?: RankOne | undefined;
}

/** One label per sequence: readout → dropout → head. */
export class BertForSequenceClassification {
  readonly encoder: BertEncoder;
  readonly readout: Readout;
  readonly head: HeadSpec;
  /** What the K classes are called. */
  readonly labels: readonly string[];
  /** Parameters that did not come with the checkpoint; their prior mean is 0. */
  readonly newParameters = new Set<string>();
  /** Members that `loss` trains together; what `logits` gives is the shared model's. */
  readonly rankOne: RankOne | undefined;

  constructor(
    engine: Engine,
    config: BertConfig,
    options: { labels: readonly string[]; readout: Readout; head: HeadSpec; rankOne?: RankOne | undefined },
  ) {
    this.readout = options.readout;
    this.head = options.head;
    this.labels = options.labels;
    this.rankOne = options.rankOne;
    const heads = headSlices(options.head, options.readout, config, options.labels.length);
    this.encoder = new BertEncoder(engine, config, heads, options.readout.usesPooler ?? false, options.rankOne);
    levelMembers(this.theta);
  }

  /**
   * Loads a checkpoint: a model folder's path, or tensors from anywhere. A head that is not in it is new, and the report
   * says so. Throws InputError (see `parseBertConfig`, `fillTheta`), StorageError for an unreadable folder.
   */
  static async load(
    engine: Engine,
    source: string | Checkpoint,
    options: ClassifierOptions = {},
  ): Promise<BertForSequenceClassification & { report: LoadReport }> {
    return withCheckpoint(source, async (checkpoint, config) => {
      const stored = storedChoices(config, checkpoint.name);
      if (!options.scratch) checkSizes(checkpoint, config);
      const fallback = hasParameter(checkpoint, "bert.pooler.dense.weight") ? "pooler" : "cls";
      const readout = options.readout ?? stored.readout ?? fallback;
      const model = new BertForSequenceClassification(engine, config, {
        labels: labelNames(options.labels ?? config.labels ?? 2),
        readout: typeof readout === "string" ? readoutNamed(readout, config.layers) : readout,
        head: options.head ?? stored.head ?? "linear",
        rankOne: options.rankOne,
      });
      model.encoder.recompute = options.recompute ?? false;
      return start(model, checkpoint, options);
    });
  }

  get engine(): Engine {
    return this.encoder.engine;
  }

  get theta(): Theta {
    return this.encoder.theta;
  }

  get config(): BertConfig {
    return this.encoder.config;
  }

  /** The readout's vectors: → [B, width]. */
  features(batch: PackedBatch, keys?: DropoutKeys): Tensor {
    return this.encoder.read(this.readout, batch, keys);
  }

  /** → [B, K]. */
  logits(batch: PackedBatch, keys?: DropoutKeys): Tensor {
    return this.classify(this.features(batch, keys), keys, batch.members);
  }

  /**
   * Of all rank-one members in one pass: → [S·B, K], member m's in the rows m·B … (m + 1)·B. Where the head alone has
   * members, the encoder takes the batch once (and draws one dropout for all of them there).
   */
  memberLogits(batch: PackedBatch, keys?: DropoutKeys): Tensor {
    const S = this.rankOne?.members ?? 1;
    if (this.rankOne?.layers === "all") return this.logits(memberBatch(batch, S), keys);
    return this.classify(ops.repeatRows(this.features(batch, keys), S), keys, S);
  }

  /** The head alone: [B, width] → [B, K]; `members`: the rows are so many copies, each for its rank-one member. */
  classify(features: Tensor, keys?: DropoutKeys, members?: number): Tensor {
    const { config } = this;
    const p = config.classifierDropout ?? config.hiddenDropout;
    let x = this.encoder.headDropout(features, p, 0, keys);
    if (this.head !== "linear") {
      x = this.encoder.linear("priorwork.head.hidden", x, { members, activation: "gelu" });
      x = this.encoder.headDropout(x, p, 1, keys);
    }
    return this.encoder.linear(headPrefix(this.head, this.readout), x, { members });
  }

  /** −log p(y | x, θ) of every sequence, in nats: → [B]; of rank-one members their mean. The batch has labels. */
  loss(batch: PackedBatch, keys?: DropoutKeys): { nlls: Tensor; count: number; logits: Tensor } {
    if (!batch.labels) throw new Error("loss: the batch has no labels");
    const logits = this.rankOne ? this.memberLogits(batch, keys) : this.logits(batch, keys);
    return { nlls: this.nllsOf(logits, batch.labels, batch.weights), count: batch.sequences, logits };
  }

  /** As `loss`, of the batch and a copy of it in one pass, whose dropout masks differ: logits [2B, K], nlls [2B]. */
  twice(batch: PackedBatch, keys?: DropoutKeys): { nlls: Tensor; logits: Tensor; count: number } {
    if (!batch.labels) throw new Error("twice: the batch has no labels");
    expectOneModel(this);
    const both = repeatBatch(batch, 2);
    const logits = this.logits(both, keys);
    return { nlls: this.nllsOf(logits, both.labels as Uint32Array, both.weights), logits, count: batch.sequences };
  }

  /** −w log p(y) from logits [B, K], or from the members' [S·B, K] their mean: → [B]. Weights default to 1. */
  nllsOf(logits: Tensor, labels: Uint32Array, weights?: Float32Array): Tensor {
    const [B, S] = [labels.length, (logits.shape[0] as number) / labels.length];
    if (S === 1) return weigh(ops.crossEntropy(logits, fromHost(this.engine.gpu, labels)), weights);
    const copies = Uint32Array.from({ length: S * B }, (_, i) => labels[i % B] ?? 0);
    const nlls = ops.reshape(ops.crossEntropy(logits, fromHost(this.engine.gpu, copies)), [S, B]);
    const average = this.engine.tensor(new Float32Array(S).fill(1 / S), [1, S]);
    return weigh(ops.reshape(ops.matmul(average, nlls), [B]), weights);
  }

  dispose(): void {
    this.theta.dispose();
  }
}

/** Throws InputError for a model with rank-one members, whose copies of a batch are the members' already. */
export function expectOneModel({ rankOne }: Pick<BertForSequenceClassification, "rankOne">): void {
  if (rankOne) throw new InputError("r-drop: not with rank-one members, among whom a batch is shared out already. Leave it out."); // biome-ignore format: one sentence
}

/** NLLs [B] times their weights, where there are any: p^w for p. */
function weigh(nlls: Tensor, weights: Float32Array | undefined): Tensor {
  return weights ? ops.multiply(nlls, nlls.engine.tensor(weights, nlls.shape)) : nlls;
}

/** What a run folder of ours says of its readout and head, under "priorwork" in config.json. Throws InputError. */
function storedChoices(config: BertConfig, name: string): { readout?: Readout; head?: HeadSpec } {
  const stored = config.raw.priorwork;
  if (typeof stored !== "object" || stored === null) return {};
  const { readout, head } = stored as { readout?: unknown; head?: unknown };
  try {
    return {
      ...(typeof readout === "string" ? { readout: readoutNamed(readout, config.layers) } : {}),
      ...(typeof head === "string" ? { head: parseHead(head) } : {}),
    };
  } catch (error) {
    // The two blame the flag, which nobody gave.
    throw new InputError(`${name}: priorwork.${(error as Error).message.replace(/^--/, "")}`);
  }
}

/** "linear" or "mlp:WIDTH". Throws InputError. */
export function parseHead(text: string): HeadSpec {
  if (text === "linear") return "linear";
  const hidden = Number(/^mlp:(\d+)$/.exec(text)?.[1] ?? 0);
  if (hidden >= 1 && hidden <= WIDEST_HEAD) return `mlp:${hidden}`;
  throw new InputError(
    `--head ${text}: not a head (expected linear, or mlp:H with H hidden channels from 1 to ${WIDEST_HEAD}).`,
  );
}

/** Opens the source, hands over checkpoint and config, and lets go of the file afterwards. */
export async function withCheckpoint<T>(
  source: string | Checkpoint,
  use: (checkpoint: Checkpoint, config: BertConfig) => Promise<T>,
): Promise<T> {
  // The folder reader touches Node; a page passes its own tensors.
  const checkpoint: Checkpoint = typeof source === "string" ? (await import("./folder.ts")).openFolder(source) : source;
  try {
    return await use(checkpoint, parseBertConfig(checkpoint.config, checkpoint.name));
  } finally {
    checkpoint.close?.();
  }
}

/** Fills θ, from the checkpoint or at random; a model that cannot be filled is disposed of. */
export async function start<
  M extends { theta: Theta; config: BertConfig; newParameters: Set<string>; dispose(): void },
>(
  model: M,
  checkpoint: Checkpoint,
  { seed = 0, scratch = false }: { seed?: number; scratch?: boolean },
): Promise<M & { report: LoadReport }> {
  const options = { seed, initializerRange: model.config.initializerRange };
  try {
    const report = scratch
      ? randomStart(model.theta, model.newParameters, options)
      : await fillTheta(model.theta, checkpoint, model.newParameters, options);
    return Object.assign(model, { report });
  } catch (error) {
    model.dispose();
    throw error;
  }
}

function labelNames(labels: number | readonly string[]): readonly string[] {
  return typeof labels === "number" ? Array.from({ length: labels }, (_, i) => `LABEL_${i}`) : labels;
}
