/**
 * @file The families of matrix-product shaders: what each computes with one workgroup and where it can run. A family more
 * is an entry more here; the op tests, the tuning and the table of choices go over all of them. All give the same values
 * up to the order of the sum over k.
 */
import type { AdapterReport, Tile } from "../gpu/index.ts";
import type { Layout, MatmulSizes } from "./matmul.ts";

/** What of an adapter decides. */
export type MatmulAdapter = Pick<AdapterReport, "kind" | "subgroupSize" | "limits" | "matrixUnit">;

/** A shader with its switches, ready to launch. */
export interface MatmulChoice {
  shader: string;
  entry: string;
  tile: Tile;
  /** Override constants of the shader beside the epilogue's. */
  constants?: Readonly<Record<string, number>>;
  /** B is first copied into panels of as many columns as a workgroup computes (matmul_pack.wgsl). */
  packed?: boolean;
  /** Rows and columns of C that one workgroup computes. */
  rows: number;
  columns: number;
}

/** The shader for this adapter and shape; undefined where the family cannot run. */
type Offer = (adapter: MatmulAdapter, layout: Layout, sizes: MatmulSizes) => MatmulChoice | undefined;

/** How A and B are stored, for shaders that are not told by strides. */
const along = (layout: Layout) => ({ A_ALONG_K: Number(layout !== "TN"), B_ALONG_K: Number(layout === "NT") });

/** Loads of these shaders are 4-vectors along the inner dimension of each array as stored. */
const WHOLE_VECTORS: Record<Layout, readonly (keyof MatmulSizes)[]> = { NN: ["K", "N"], NT: ["K"], TN: ["M", "N"] };

/** Subgroup broadcast: one subgroup of 4 or 8 lanes a workgroup, sums in registers, no shared memory. Software adapters. */
const subgroup: Offer = ({ subgroupSize: lanes }, layout, { N, K }) => {
  if (lanes !== 4 && lanes !== 8) return undefined;
  if (layout === "NT" ? K % 2 !== 0 : N % 4 !== 0) return undefined;
  const entry = layout === "NT" ? "nt" : "nn";
  return { shader: "matmul_subgroup", entry, tile: { LANES: lanes }, rows: 16, columns: lanes * 4 };
};

/** As above with loads by 4-vectors and four k at once, for subgroups of 8 that are a CPU's vectors. */
const strip =
  (ROWS: number): Offer =>
  ({ subgroupSize }, layout, sizes) => {
    if (subgroupSize !== 8 || WHOLE_VECTORS[layout].some((size) => sizes[size] % 4 !== 0)) return undefined;
    return {
      shader: "matmul_strip",
      entry: "strips",
      tile: { ROWS },
      constants: along(layout),
      rows: ROWS,
      columns: 32,
    };
  };

/** Strips that read B from panels: the copy pays for itself where many strips read it. NT's B is in order as it is. */
const packed: Offer = (adapter, layout, sizes) => {
  const choice = layout === "NT" ? undefined : strip(32)(adapter, layout, sizes);
  return choice && { ...choice, constants: { ...choice.constants, B_PACKED: 1 }, packed: true };
};

/**
 * Tiles in workgroup memory, for GPUs: TX·TY threads compute TY·RB·4 rows and TX·CB·4 columns. tile128 takes 16.5 KiB of
 * workgroup memory, more than the least there is.
 */
const workgroup =
  (tile: { RB: number; CB: number; TX: number; TY: number }): Offer =>
  ({ limits }, layout, sizes) => {
    if (WHOLE_VECTORS[layout].some((size) => sizes[size] % 4 !== 0)) return undefined;
    const rows = tile.TY * tile.RB * 4;
    const columns = tile.TX * tile.CB * 4;
    const bytes = 16 * 16 * (rows / 4 + 1 + columns / 4 + 1);
    if (tile.TX * tile.TY > (limits.maxComputeInvocationsPerWorkgroup ?? 0)) return undefined;
    if (bytes > (limits.maxComputeWorkgroupStorageSize ?? 0)) return undefined;
    return {
      shader: "matmul_workgroup",
      entry: sizes.N % 4 === 0 ? "tiled" : "ragged",
      tile,
      constants: along(layout),
      rows,
      columns,
    };
  };

/** Everywhere and for every size. */
const register = (): MatmulChoice => ({
  shader: "matmul_register",
  entry: "registers",
  tile: {},
  rows: 64,
  columns: 32,
});

export const FAMILIES = {
  packed,
  /** By the rows of a strip. */
  strip32: strip(32),
  strip16: strip(16),
  subgroup,
  /** By the rows and columns of a workgroup. */
  tile32: workgroup({ RB: 1, CB: 1, TX: 8, TY: 8 }),
  tile64: workgroup({ RB: 2, CB: 1, TX: 16, TY: 8 }),
  tile128: workgroup({ RB: 2, CB: 2, TX: 16, TY: 16 }),
  register,
} as const satisfies Record<string, Offer>;

export type Family = keyof typeof FAMILIES;

/**
 * Matrix units: factors rounded to f16, sums in f32. WM × WN subgroups compute SM × SN each, four rows of fragments at most.
 */
const matrix =
  (tile: { SM: number; SN: number; WM: number; WN: number }): Offer =>
  ({ subgroupSize: SG, matrixUnit, limits }, layout, sizes) => {
    if (!matrixUnit || SG === 0 || WHOLE_VECTORS[layout].some((size) => sizes[size] % 4 !== 0)) return undefined;
    const { M: FM, N: FN, K: FK } = matrixUnit;
    const { SM, SN, WM, WN } = tile;
    const threads = SG * WM * WN;
    const [rows, columns] = [WM * SM, WN * SN];
    // Whole fragments, and of a tile as many 4-vectors for each thread.
    if (SM % FM !== 0 || SM / FM > 4 || SN % FN !== 0) return undefined;
    if ((rows * 8) % threads !== 0 || (columns * 8) % threads !== 0) return undefined;
    // Tiles of f16, 32 of k, with 8 of padding a line; a row of fragments of f32 with 4.
    const tileBytes = (across: number) => 2 * Math.max(across * 40, 32 * (across + 8));
    const bytes = tileBytes(rows) + tileBytes(columns) + 4 * WM * FM * (columns + 4);
    if (threads > (limits.maxComputeInvocationsPerWorkgroup ?? 0)) return undefined;
    if (bytes > (limits.maxComputeWorkgroupStorageSize ?? 0)) return undefined;
    const constants = along(layout);
    const entry = sizes.N % 4 === 0 ? "matrices" : "ragged";
    return { shader: "matmul_matrix", entry, tile: { SG, FM, FN, FK, ...tile }, constants, rows, columns };
  };

/** What rounds its factors to f16: never chosen where f32 is asked for, and no choice that a file may name. */
export const HALF_FAMILIES = {
  /** By the rows and columns of a workgroup. */
  matrix32: matrix({ SM: 16, SN: 16, WM: 2, WN: 2 }),
  matrix64: matrix({ SM: 32, SN: 32, WM: 2, WN: 2 }),
  matrix128: matrix({ SM: 64, SN: 32, WM: 2, WN: 4 }),
} as const satisfies Record<string, Offer>;

export type HalfFamily = keyof typeof HALF_FAMILIES;

const ALL: Readonly<Record<Family | HalfFamily, Offer>> = { ...FAMILIES, ...HALF_FAMILIES };

/** The shader of one family; undefined where it cannot run. */
export function offer(
  family: Family | HalfFamily,
  adapter: MatmulAdapter,
  layout: Layout,
  sizes: MatmulSizes,
): MatmulChoice | undefined {
  return ALL[family](adapter, layout, sizes);
}

export const isFamily = (name: unknown): name is Family => typeof name === "string" && Object.hasOwn(FAMILIES, name);

/** The families that can run here; the register tile always can. */
export function ableFamilies(adapter: MatmulAdapter, layout: Layout, sizes: MatmulSizes): Family[] {
  return (Object.keys(FAMILIES) as Family[]).filter((family) => FAMILIES[family](adapter, layout, sizes));
}
