/**
 * @file What the members of a rank-one ensemble say, in one pass (model/rank-one.ts), and each of them as a θ of its own,
 * for whoever has no use for r and s: W_m = W ⊙ r_m s_mᵀ, b_m = r_m ⊙ b.
 */
import type { Slice } from "../autograd/index.ts";
import type { BertForSequenceClassification } from "../model/bert.ts";
import { type RankOneLayer, rankOneLayers } from "../model/rank-one.ts";
import { joined } from "../train/evaluate.ts";
import { type Draws, readSlices } from "./draws.ts";
import type { Posterior } from "./posterior.ts";

type RankOneModel = Pick<BertForSequenceClassification, "engine" | "theta" | "rankOne" | "memberLogits">;

/** The S members of a model, all in one forward pass and one submit a batch. RangeError: the model has none. */
export function rankOneMembers(model: RankOneModel): Posterior {
  const S = membersOf(model);
  return {
    members: S,
    async logits(batches, progress) {
      const members: Float32Array[][] = Array.from({ length: S }, () => []);
      for (const [index, batch] of batches.entries()) {
        const flat = await model.engine.evaluate(() => model.memberLogits(batch)); // [S·B, K]
        const size = flat.length / S;
        for (const [m, member] of members.entries()) member.push(flat.subarray(m * size, (m + 1) * size));
        progress?.((index + 1) / batches.length);
      }
      return members.map(joined);
    },
  };
}

/**
 * Each member's weights and biases, made as they are asked for from what θ holds now: a draw is written over the shared
 * weights, so those are read once and kept. RangeError: the model has none.
 */
export async function rankOneDraws(model: RankOneModel): Promise<Draws> {
  const size = membersOf(model);
  const { theta } = model;
  const layers: (RankOneLayer & { numbers: Numbers })[] = [];
  for (const layer of rankOneLayers(theta.layout)) {
    const read = (slice: Slice) => readSlices(theta, [slice]);
    const [W, b, r, s] = [await read(layer.weight), await read(layer.bias), await read(layer.r), await read(layer.s)];
    layers.push({ ...layer, numbers: [W, b, r, s] });
  }
  return {
    size,
    // In θ's order, as draws have them.
    slices: theta.layout.slices.filter((slice) =>
      layers.some(({ weight, bias }) => slice === weight || slice === bias),
    ),
    read(m) {
      const parts = layers.flatMap(({ weight, bias, numbers }) => {
        const member = memberOf(weight.shape, numbers, m);
        return [
          { offset: weight.offset, values: member.weight },
          { offset: bias.offset, values: member.bias },
        ];
      });
      return joined(parts.sort((a, b) => a.offset - b.offset).map(({ values }) => values));
    },
  };
}

/** W [out, in], b [out], r [S, out], s [S, in] of a layer. */
type Numbers = readonly [Float32Array, Float32Array, Float32Array, Float32Array];

/** W_m [out, in] and b_m [out]. */
function memberOf(
  shape: readonly number[],
  [W, b, r, s]: Numbers,
  m: number,
): { weight: Float32Array; bias: Float32Array } {
  const [out = 0, input = 0] = shape;
  const [rows, columns] = [r.subarray(m * out, (m + 1) * out), s.subarray(m * input, (m + 1) * input)];
  return {
    weight: W.map((w, i) => w * rows[Math.floor(i / input)]! * columns[i % input]!),
    bias: b.map((value, i) => value * rows[i]!),
  };
}

function membersOf({ rankOne }: RankOneModel): number {
  if (!rankOne) throw new RangeError("rank-one members: the model was made without them (its option rankOne)");
  return rankOne.members;
}
