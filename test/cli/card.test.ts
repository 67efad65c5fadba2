/** @file A run's README.md: which members its metrics are of, and what the lines of Python leave out. */
import { describe, expect, test } from "vitest";
import { type CardFacts, modelCard } from "../../src/cli/card.ts";
import { finetuneOptions } from "../../src/cli/options.ts";

/** The card of a run with these flags, whose metrics are of so many members; without its line ends. */
function card(flags: Record<string, string | boolean>, members: number): string {
  const options = finetuneOptions({ model: "m", train: "t.tsv", ...flags });
  const facts: CardFacts = {
    name: "run",
    labels: ["neg", "pos"],
    readout: "pooler",
    head: "linear",
    options,
    precision: "encoder=300,head=1",
    source: "m",
    train: { file: "t.tsv", rows: 28 },
    steps: 4,
    adapter: "llvmpipe",
    version: "0.1.0",
    maxLength: 64,
    plain: true,
    metrics: { n: 20, members, accuracy: 0.9, nll: 0.3 },
    measuredOn: "dev.tsv",
    selectedOnDev: false,
  };
  return modelCard(facts);
}

describe("a card", () => {
  const cases: [string, Record<string, string | boolean>, number, string, string | undefined, string | undefined][] = [
    ["of one θ", {}, 1, "MAP", undefined, undefined],
    ["of maximum likelihood", { method: "mle" }, 1, "maximum likelihood", undefined, undefined],
    ["of dropout's mean", { method: "dropout", members: "1" }, 1, "MAP, its dropout kept on in predictions", undefined, undefined],
    ["of dropout", { method: "dropout" }, 16, "MAP, its dropout kept on in predictions", "the average over 16 dropout masks of the one θ", "that θ without dropout"],
    ["of a sampler", { method: "sghmc" }, 16, "SGHMC of head, from the run's mode", "the average over 16 members, the θ in posterior/", "the run's mode"],
    ["of one draw", { method: "sgld" }, 1, "SGLD of head, from the run's mode", "its one member, the θ in posterior/", "the run's mode"],
    ["of SWAG", { method: "swag" }, 16, "SWAG around the run's mode", "the average over 16 members, the θ in posterior/", "the run's mode"],
    ["of multi-SWAG", { method: "swag", modes: "3" }, 16, "multi-SWAG around 3 modes", "the average over 16 members, the θ in posterior/", "the run's mode"],
    ["of an ensemble", { method: "ensemble" }, 5, "ensemble of trainings from other seeds", "the average over 5 members, the θ in posterior/", "its first member"],
    ["of an anchored one", { method: "ensemble", anchored: true }, 5, "anchored ensemble, its centres drawn in head", "the average over 5 members, the θ in posterior/", "the run's mode"],
    ["of rank-one members", { method: "rank-one" }, 4, "rank-one ensemble", "the average over 4 members, the θ in posterior/", "the weights that its members share"],
    ["of Laplace", { method: "laplace" }, 64, "Laplace, linearised, of the last layer", "the average over 64 draws of the logits from the Gaussian in posterior/", "the run's mode"],
    ["of Laplace's probit", { method: "laplace", predictive: "probit" }, 1, "Laplace by probit, of the last layer", "a closed form that is near the average over the Gaussian in posterior/", "the run's mode"],
    ["of Laplace's draws", { method: "laplace", predictive: "mc", laplaceGroups: "layer.1,head" }, 16, "Laplace by draws of θ, of head, layer.1", "the average over 16 members, the θ in posterior/", "the run's mode"],
  ]; // biome-ignore format: a row each
  test.each(cases)("%s", (_, flags, members, method, measured, alone) => {
    const text = card(flags, members);
    expect(text).toContain(`| method | ${method} (--method ${flags.method ?? "map"}), prior precision `);
    expect(text).toContain("Measured on dev.tsv, 20 examples");
    const python = text.slice(text.indexOf("## From Python"));
    if (measured === undefined || alone === undefined) {
      expect(text).not.toMatch(/posterior\/|alone|the average/);
      expect(python).toMatch(/^## From Python\n\n```python\n/);
      return;
    }
    expect(text).toContain(`Measured on dev.tsv, 20 examples, by ${measured}.`);
    expect(python).toContain(`answer with model.safetensors alone, ${alone}: `);
    expect(python.indexOf("alone")).toBeLessThan(python.indexOf("```python"));
  });
});
