/** @file The curvature H of the last layer and of groups, as the device finds it, against the dense one in float64 (check 13). */
import { Matrix } from "ml-matrix";
import { describe, expect, test } from "vitest";
import { packBatch } from "../../src/data/batches.ts";
import { placeOf, type Structure } from "../../src/posterior/curvature.ts";
import { type GgnOptions, ggn } from "../../src/posterior/ggn.ts";
import { gpuForTests } from "../kernels/harness.ts";
import { denseGgn, hessianOfSoftmax, jacobianOf } from "./reference.ts";
import { apart, BATCHES, C, dense, EXAMPLES, F, HEAD, inFloat64, LAYER, netsOn, only } from "./token-net.ts";

const gpu = gpuForTests();
const withNet = netsOn(gpu);

describe("the GGN (check 13)", () => {
  test("of the last layer: full is the dense one; diagonal and kronecker are what they say", async () => {
    await withNet(3, async (model) => {
      const { center, functions } = await inFloat64(model, HEAD);
      const H = denseGgn(functions, center);
      const found = async (structure: Structure) => ggn(model, BATCHES, { structure });
      const full = await found("full");
      expect([full.n, full.lastLayer, full.blocks.length, full.left.length]).toEqual([6, true, 1, 0]);
      expect(only(full).slices.map(({ key }) => key)).toEqual(HEAD);
      // The inputs and logits come from the device in float32.
      expect(apart(dense(only(full)), H)).toBeLessThan(1e-6);
      expect(apart(dense(only(await found("diagonal"))), Matrix.diag(H.diagonal()))).toBeLessThan(1e-6);
      // Σ x̃x̃ᵀ/n ⊗ Σ (diag p − ppᵀ): not H, but its two factors.
      const at = functions.map((f) => f(center));
      const G = at.map(hessianOfSoftmax).reduce((a, b) => Matrix.add(a, b));
      const J = functions.map((f) => jacobianOf(f, center).getRow(0)); // ∂ logit₀: x̃ in row 0 of W̃
      const x = J.map((row) => [...row.slice(0, F), row[3 * F]!]);
      const A = new Matrix(F + 1, F + 1);
      for (const v of x) A.add(Matrix.columnVector(v).mmul(Matrix.rowVector(v)).div(x.length));
      const shape = { inputs: F, outputs: 3, bias: true };
      const product = new Matrix(3 * F + 3, 3 * F + 3);
      for (let o = 0; o < 3; o++)
        for (let q = 0; q < 3; q++)
          for (let i = 0; i <= F; i++)
            for (let j = 0; j <= F; j++)
              product.set(placeOf(shape, o, i), placeOf(shape, q, j), G.get(o, q) * A.get(i, j));
      const kronecker = dense(only(await found("kronecker")));
      expect(apart(kronecker, product)).toBeLessThan(1e-6);
      expect(apart(kronecker, H)).toBeGreaterThan(0.01);
    });
  });

  test("of chosen groups: the head by K backward passes is the head by its inputs", async () => {
    await withNet(3, async (model) => {
      const byInput = await ggn(model, BATCHES, { structure: "kronecker" });
      const byBackward = await ggn(model, BATCHES, { structure: "kronecker", groups: ["head"] });
      expect([byBackward.n, byBackward.lastLayer]).toEqual([6, false]);
      expect(apart(dense(only(byBackward)), dense(only(byInput)))).toBeLessThan(1e-5);
    });
  });

  test("kronecker is exact for one datum of one token, and for its head", async () => {
    await withNet(3, async (model) => {
      const one = [packBatch(EXAMPLES.slice(3, 4))];
      expect(EXAMPLES[3]?.ids.length).toBe(1);
      for (const [group, keys] of [["layer.0", LAYER] as const, ["head", HEAD] as const]) {
        const { center, functions } = await inFloat64(model, keys);
        const H = denseGgn(functions.slice(3, 4), center);
        const found = await ggn(model, one, { structure: "kronecker", groups: [group] });
        expect(apart(dense(only(found)), H), group).toBeLessThan(1e-5);
      }
    });
  });

  test("kronecker over tokens is the expand form: its definition exactly, the dense GGN only roughly", async () => {
    await withNet(3, async (model) => {
      const found = await ggn(model, BATCHES, { structure: "kronecker", groups: ["encoder"] });
      expect(found.blocks.map(({ slices }) => slices.map(({ key }) => key))).toEqual([LAYER]);
      expect(found.left.map(({ key }) => key)).toEqual(["e"]);
      const { center, functions, logits } = await inFloat64(model, LAYER);
      // One token of a sentence of R alone: its part of J is ã ⊗ g. The tokens of a sentence do not meet before the mean.
      const shape = { inputs: C, outputs: F, bias: true };
      const P = F * C + F;
      const A = new Matrix(C + 1, C + 1);
      const G = new Matrix(F, F);
      const e = await model.theta.get("e");
      let tokens = 0;
      for (const [n, { ids }] of EXAMPLES.entries()) {
        const B = hessianOfSoftmax(functions[n]!(center));
        for (const id of Array.from(ids)) {
          tokens++;
          const a = Matrix.columnVector([...e.subarray(id * C, (id + 1) * C), 1]);
          A.add(a.mmul(a.transpose()));
          // ∂ logits / ∂ u of this token: the bias's part of its own Jacobian, over R.
          const J = jacobianOf(logits([id]), center)
            .subMatrix(0, 2, F * C, P - 1)
            .div(ids.length);
          G.add(J.transpose().mmul(B).mmul(J));
        }
      }
      const expand = new Matrix(P, P);
      for (let o = 0; o < F; o++)
        for (let q = 0; q < F; q++)
          for (let i = 0; i <= C; i++)
            for (let j = 0; j <= C; j++)
              expand.set(placeOf(shape, o, i), placeOf(shape, q, j), (G.get(o, q) * A.get(i, j)) / tokens);
      expect(apart(dense(only(found)), expand)).toBeLessThan(1e-5);
      const H = denseGgn(functions, center);
      // Products of different tokens are missing: too little curvature, of the right order.
      const share = dense(only(found)).trace() / H.trace();
      expect(share).toBeGreaterThan(0.2);
      expect(share).toBeLessThan(0.95);
    });
  });

  test("the diagonal of groups is unbiased, and one draw is noisy", async () => {
    await withNet(3, async (model) => {
      const keys = ["e", ...LAYER, ...HEAD];
      const { center, functions } = await inFloat64(model, keys);
      const exact = denseGgn(functions, center).diagonal();
      const diagonal = async (draws: number | undefined, seed: number) => {
        const groups = { structure: "diagonal", groups: ["encoder", "head"], draws, seed } as const;
        const { blocks } = await ggn(model, BATCHES, groups);
        expect(blocks.map(({ slices }) => slices[0]?.key)).toEqual(keys);
        return blocks.flatMap((block) => dense(block).diagonal());
      };
      const S = 150;
      const found = await diagonal(S, 1);
      // A mean of S values with χ²₁'s relative deviation √2 or less; 4 of its standard errors, and float32's rounding.
      found.forEach((h, i) => {
        expect(Math.abs(h - exact[i]!), `element ${i}`).toBeLessThan(4 * Math.sqrt(2 / S) * exact[i]! + 1e-6);
      });
      const one = await diagonal(undefined, 1);
      expect(await diagonal(undefined, 1)).toEqual(one);
      expect(await diagonal(undefined, 2)).not.toEqual(one);
    });
  });

  test("what is refused", async () => {
    await withNet(3, async (model) => {
      const run = (options: GgnOptions, batches = BATCHES) => ggn(model, batches, options);
      await expect(run({ structure: "full", groups: ["head"] })).rejects.toThrow(
        /full covariance is of the last layer/,
      );
      await expect(run({ structure: "full" }, [])).rejects.toThrow(/no data/);
      await expect(run({ structure: "diagonal", groups: ["hed"] })).rejects.toThrow(/Did you mean head/);
      await expect(run({ structure: "kronecker", groups: ["embeddings"] })).rejects.toThrow(/no linear layer learns/);
      await expect(run({ structure: "kronecker", groups: ["head"], draws: 0 })).rejects.toThrow(/0 draws/);
      await expect(run({ structure: "full", maxBytes: 1000 })).rejects.toThrow(
        /full over 18 parameters takes .* What fits: diagonal/,
      );
      model.theta.freeze(({ groups }) => groups[0] === "head");
      await expect(run({ structure: "full" })).rejects.toThrow(/last layer .w2. is frozen/);
    });
  });
});
