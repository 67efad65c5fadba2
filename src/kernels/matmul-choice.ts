/**
 * @file Which matrix-product shader runs: a small table of measurements, keyed by what the adapter is and by the shape.
 * Every choice gives the same values up to the order of the sum over k.
 */
import type { AdapterReport, Tile } from "../gpu/index.ts";
import type { Layout, MatmulSizes } from "./matmul.ts";

/**
 * "subgroup": subgroup broadcast, software adapters; "tile32" … "tile128": workgroup memory, GPUs, by the rows and columns
 * of a workgroup; "register": everywhere and every size.
 */
export type Family = "subgroup" | "register" | keyof typeof WORKGROUP_TILES;

/** The switches of matmul_workgroup.wgsl: a workgroup computes TY·RB·4 rows and TX·CB·4 columns with TX·TY threads. */
export const WORKGROUP_TILES = {
  tile32: { RB: 1, CB: 1, TX: 8, TY: 8 },
  tile64: { RB: 2, CB: 1, TX: 16, TY: 8 },
  tile128: { RB: 2, CB: 2, TX: 16, TY: 16 },
} as const satisfies Record<string, Tile>;

/** Loads are 4-vectors along the inner dimension of each array as stored. */
const WHOLE_VECTORS: Record<Layout, readonly (keyof MatmulSizes)[]> = { NN: ["K", "N"], NT: ["K"], TN: ["M", "N"] };

/** A tile is worth its size while it makes at least this many workgroups: a big GPU has 132 multiprocessors. Unmeasured. */
const BUSY = 132;

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
 * So both take the subgroup family wherever it can run; one subgroup a workgroup would leave most of a GPU idle.
 */
const SUBGROUP_ADAPTERS: readonly AdapterReport["kind"][] = ["software", "bundled"];

/** Below this many columns most threads of a tile have nothing to do, and the register tile is as good. */
const FEW_COLUMNS = 4;

/** What of an adapter decides. */
export type MatmulAdapter = Pick<AdapterReport, "kind" | "subgroupSize" | "limits">;

/** `family` is a wish (tests, benches): where it cannot run, the register tile does. */
export function chooseMatmul(
  adapter: MatmulAdapter,
  layout: Layout,
  sizes: MatmulSizes & { G?: number },
  family: Family = preferred(adapter, sizes),
): MatmulChoice {
  const { N, K } = sizes;
  const lanes = adapter.subgroupSize;
  if (family === "subgroup" && (lanes === 4 || lanes === 8) && (layout === "NT" ? K % 2 === 0 : N % 4 === 0)) {
    const entry = layout === "NT" ? "nt" : "nn";
    return { shader: "matmul_subgroup", entry, tile: { LANES: lanes }, rows: 16, columns: lanes * 4 };
  }
  if (family !== "subgroup" && family !== "register" && WHOLE_VECTORS[layout].every((size) => sizes[size] % 4 === 0)) {
    const tile = WORKGROUP_TILES[family];
    if (fits(adapter, family)) {
      const { rows, columns } = extent(tile);
      return { shader: "matmul_workgroup", entry: "tiled", tile, rows, columns };
    }
  }
  return { shader: "matmul_register", entry: "registers", tile: {}, rows: 64, columns: 32 };
}

function preferred(adapter: MatmulAdapter, { M, N, G = 1 }: MatmulSizes & { G?: number }): Family {
  if (N <= FEW_COLUMNS) return "register";
  if (SUBGROUP_ADAPTERS.includes(adapter.kind)) return "subgroup";
  const busy = (["tile128", "tile64"] as const).find((family) => {
    const { rows, columns } = extent(WORKGROUP_TILES[family]);
    return fits(adapter, family) && G * Math.ceil(M / rows) * Math.ceil(N / columns) >= BUSY;
  });
  return busy ?? "tile32";
}

function extent({ RB, CB, TX, TY }: (typeof WORKGROUP_TILES)[keyof typeof WORKGROUP_TILES]) {
  return { rows: TY * RB * 4, columns: TX * CB * 4 };
}

/** Whether the adapter has the threads and the workgroup memory: tile128 takes 16.5 KiB, more than the least there is. */
function fits({ limits }: MatmulAdapter, family: keyof typeof WORKGROUP_TILES): boolean {
  const { TX, TY } = WORKGROUP_TILES[family];
  const { rows, columns } = extent(WORKGROUP_TILES[family]);
  const bytes = 16 * 16 * (rows / 4 + 1 + columns / 4 + 1);
  return (
    TX * TY <= (limits.maxComputeInvocationsPerWorkgroup ?? 0) && bytes <= (limits.maxComputeWorkgroupStorageSize ?? 0)
  );
}
