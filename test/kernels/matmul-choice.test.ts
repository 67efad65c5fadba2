/**
 * @file The choice of matrix-product families: where each can run, what the built-in table says, and how choices that
 * were measured are read, put in force and asked.
 */
import { describe, expect, test } from "vitest";
import type { Dispatch } from "../../src/gpu/index.ts";
import { fromHost } from "../../src/kernels/array.ts";
import { matmul } from "../../src/kernels/matmul.ts";
import {
  type Choice,
  choicesInForce,
  chooseMatmul,
  chosenFamilies,
  parseChoices,
  preferred,
  useChoices,
} from "../../src/kernels/matmul-choice.ts";
import { ableFamilies, FAMILIES, type MatmulAdapter } from "../../src/kernels/matmul-families.ts";
import { gpuForTests, randn, run } from "./harness.ts";

const gpu = gpuForTests();

const limits = { maxComputeInvocationsPerWorkgroup: 1024, maxComputeWorkgroupStorageSize: 32768 };
const software: MatmulAdapter = { kind: "software", subgroupSize: 8, limits };
const hardware: MatmulAdapter = { kind: "hardware", subgroupSize: 32, limits };
const least = { maxComputeInvocationsPerWorkgroup: 256, maxComputeWorkgroupStorageSize: 16384 };

describe("where a family can run", () => {
  test("the register tile everywhere, subgroups of 4 or 8 with whole vectors, tiles where they fit", () => {
    const sizes = { M: 64, N: 64, K: 64 };
    expect(ableFamilies(hardware, "NN", sizes)).not.toContain("subgroup");
    expect(ableFamilies(software, "NN", sizes)).toContain("subgroup");
    expect(ableFamilies(software, "NN", { ...sizes, N: 63 })).toEqual(["register"]);
    expect(ableFamilies(software, "NN", { ...sizes, K: 63 })).toEqual(["subgroup", "register"]);
    expect(ableFamilies({ ...software, subgroupSize: 4 }, "NN", sizes)).not.toContain("strip32");
    expect(ableFamilies({ ...hardware, limits: least }, "TN", sizes)).toEqual(["tile32", "tile64", "register"]);
    expect(ableFamilies({ ...hardware, limits: {} }, "TN", sizes)).toEqual(["register"]);
  });

  test("what a family says of its rows and columns covers C", () => {
    for (const family of ableFamilies(software, "NN", { M: 64, N: 64, K: 64 })) {
      const { rows, columns } = FAMILIES[family](software, "NN", { M: 64, N: 64, K: 64 }) ?? { rows: 0, columns: 0 };
      expect([family, rows > 0 && rows % 4 === 0, columns > 0 && columns % 4 === 0]).toEqual([family, true, true]);
    }
  });
});

describe("the built-in table", () => {
  test("takes strips or subgroups on software adapters and the largest busy tile on a GPU", () => {
    const of = (adapter: MatmulAdapter, M: number, N: number, G = 1) =>
      chooseMatmul(adapter, "NT", { M, N, K: 384, G });
    expect(of(software, 1024, 384)).toMatchObject({ shader: "matmul_strip", rows: 32 });
    expect(of(software, 1024, 384).packed, "NT's B is in order as it is").toBeUndefined();
    const nn = (M: number) => chooseMatmul(software, "NN", { M, N: 384, K: 384 }).packed;
    expect([nn(16), nn(255), nn(256)]).toEqual([undefined, undefined, true]);
    expect(of(software, 16, 384)).toMatchObject({ shader: "matmul_strip", rows: 16 });
    expect(of({ ...software, kind: "bundled", subgroupSize: 4 }, 1024, 384).shader).toBe("matmul_subgroup");
    expect(of(software, 1024, 2).shader).toBe("matmul_register");
    expect(of(hardware, 4096, 4096).columns).toBe(128);
    expect(of(hardware, 1024, 1536).columns).toBe(64);
    expect(of(hardware, 128, 384)).toMatchObject({ rows: 32, columns: 32 });
    expect(of(hardware, 64, 64, 132).columns).toBe(64);
  });

  test("falls to the register tile where a wish cannot run", () => {
    const sizes = { M: 5, N: 3, K: 7 };
    expect(chooseMatmul(software, "NN", sizes, ["subgroup", "tile64"]).shader).toBe("matmul_register");
    expect(preferred(software, "NN", { M: 5, N: 8, K: 7 })).not.toContain("register");
  });
});

const choice = (change: Partial<Choice>): Choice => ({
  layout: "NN",
  G: 1,
  M: 1024,
  N: 384,
  K: 384,
  families: ["register"],
  ...change,
});

describe("choices that were measured", () => {
  test("a shape takes those of the nearest measured one of its layout", () => {
    const g = gpu();
    useChoices(g, [
      choice({ families: ["tile64", "register"] }),
      choice({ M: 16, families: ["tile32"] }),
      choice({ G: 96, M: 64, N: 32, K: 64, families: ["tile128"] }),
      choice({ layout: "TN", families: ["subgroup"] }),
    ]);
    const sizes = { G: 1, N: 400, K: 300 };
    expect(chosenFamilies(g, "NN", { M: 700, ...sizes })).toEqual(["tile64", "register"]);
    expect(chosenFamilies(g, "NN", { M: 100, ...sizes })).toEqual(["tile32"]);
    expect(chosenFamilies(g, "NN", { G: 80, M: 50, N: 32, K: 50 })).toEqual(["tile128"]);
    expect(chosenFamilies(g, "TN", { M: 100, ...sizes })).toEqual(["subgroup"]);
    expect(chosenFamilies(g, "NT", { M: 100, ...sizes })).toBeUndefined();
    useChoices(g, undefined);
    expect(chosenFamilies(g, "NN", { M: 700, ...sizes })).toBeUndefined();
    expect(choicesInForce(g)).toBeUndefined();
  });

  test("decide what is launched, until they are taken back", async () => {
    const g = gpu();
    const launched: string[] = [];
    g.afterDispatch = ({ shader }: Dispatch) => void launched.push(shader);
    const product = () =>
      run(g, () => [matmul(g, fromHost(g, randn(1, 256), [16, 16]), fromHost(g, randn(2, 256), [16, 16]), "NN")]);
    try {
      for (const families of [["tile32"], ["register"]] as const) {
        useChoices(g, [choice({ families })]);
        await product();
      }
      useChoices(g, undefined);
      await product();
    } finally {
      g.afterDispatch = undefined;
      useChoices(g, undefined);
    }
    const builtIn = chooseMatmul(g.adapter, "NN", { M: 16, N: 16, K: 16 }).shader;
    expect(launched).toEqual(["matmul_workgroup", "matmul_register", builtIn]);
  });

  test("are read from JSON, and what is none is refused", () => {
    const good = [choice({}), choice({ layout: "TN", families: ["subgroup", "register"] })];
    expect(parseChoices(JSON.parse(JSON.stringify(good)))).toEqual(good);
    expect(parseChoices([{ ...choice({}), more: 1 }])).toEqual([choice({})]);
    const refused = (value: unknown) => expect(() => parseChoices(value));
    refused({}).toThrow("no list of choices");
    refused(new Array(5000).fill(choice({}))).toThrow("no list of choices");
    refused([null]).toThrow("choice 0 has no layout");
    refused([choice({}), { ...choice({}), layout: "TT" }]).toThrow("choice 1 has no layout");
    for (const M of [0, -1, 1.5, "8", null, Number.NaN, 1e300])
      refused([{ ...choice({}), M }]).toThrow("has no size M");
    for (const families of [[], ["constructor"], ["fastest"], "register", [1]]) {
      refused([{ ...choice({}), families }]).toThrow("names a kernel that is not known here");
    }
  });
});
