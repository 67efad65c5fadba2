/**
 * @file Which matrix-product shader runs: a small table of measurements, keyed by what the adapter is and by the shape.
 * Every choice gives the same values up to the order of the sum over k.
 */
import type { AdapterReport, Tile } from "../gpu/index.ts";
import type { Layout, MatmulSizes } from "./matmul.ts";

/** "subgroup": subgroup broadcast, software adapters; "register": everywhere and every size. Next: "workgroup" for GPUs. */
export type Family = "subgroup" | "register";

export interface MatmulChoice {
  shader: string;
  entry: string;
  tile: Tile;
  /** Rows and columns of C that one workgroup computes. */
  rows: number;
  columns: number;
}

/**
 * GFLOP/s at 512³ on two busy cores, NN / NT / TN, medians, counted by the processor time of the adapter's threads,
 * multiply-add ceiling by the same count 95 (lavapipe, Mesa 25.0 with LLVM 15) and 36 (SwiftShader):
 *   lavapipe      subgroup 30 / 19–28 / 26    register 7 / 6 / 7
 *   SwiftShader   subgroup 3.3 / 4.3 / 3.3    register 1.9 / 1.7 / 1.8
 * So both take the subgroup family wherever it can run.
 */
const PREFERRED: Record<AdapterReport["kind"], Family> = {
  software: "subgroup",
  bundled: "subgroup",
  hardware: "register", // unmeasured; one subgroup a workgroup would leave most of a GPU idle
};

/** Below this many columns most lanes of a subgroup have nothing to do, and the register tile is as good. */
const FEW_COLUMNS = 4;

/** `family` is a wish (tests, benches): where it cannot run, the register tile does. */
export function chooseMatmul(
  adapter: Pick<AdapterReport, "kind" | "subgroupSize">,
  layout: Layout,
  { N, K }: MatmulSizes,
  family: Family = N <= FEW_COLUMNS ? "register" : PREFERRED[adapter.kind],
): MatmulChoice {
  const lanes = adapter.subgroupSize;
  const fits = (lanes === 4 || lanes === 8) && (layout === "NT" ? K % 2 === 0 : N % 4 === 0);
  if (family === "subgroup" && fits) {
    const entry = layout === "NT" ? "nt" : "nn";
    return { shader: "matmul_subgroup", entry, tile: { LANES: lanes }, rows: 16, columns: lanes * 4 };
  }
  return { shader: "matmul_register", entry: "any", tile: {}, rows: 64, columns: 32 };
}
