/**
 * @file Which matrix-product family runs. Two tables: the one built in, by kind of adapter, from measurements that stand
 * below; and one that `priorwork bench --tune` made for one adapter, where it has been made and is in force. A choice
 * changes rounding and nothing else, so a run remembers its own and takes it up again.
 */
import type { AdapterReport, Gpu } from "../gpu/index.ts";
import type { Layout, MatmulSizes } from "./matmul.ts";
import {
  FAMILIES,
  type Family,
  HALF_FAMILIES,
  type HalfFamily,
  isFamily,
  type MatmulAdapter,
  type MatmulChoice,
  offer,
} from "./matmul-families.ts";

/** G products of one shape in a dispatch, 1 where there is no batch. */
export interface ProductSizes extends MatmulSizes {
  G: number;
}

/** What was measured at one shape. */
export interface Choice extends ProductSizes {
  layout: Layout;
  /** Fastest first. The first that can run at a shape nearby is taken there. */
  families: readonly Family[];
}

/**
 * The choices of one adapter, as they stand in a file. A shape takes those of its layout's nearest measured shape, by the
 * distance of the logarithms of G, M, N and K: what decides between tiles are ratios of sizes, and every shape has a
 * nearest one, so that no class is empty.
 */
export type Choices = readonly Choice[];

/** A tile is worth its size while it makes at least this many workgroups: a big GPU has 132 multiprocessors. Unmeasured. */
const BUSY = 132;

/**
 * GFLOP/s at M1024 N1536 K384, NN / NT / TN, medians of 11 rounds in turn on two busy cores, counted by processor time:
 *   lavapipe (Mesa 25.0, LLVM 15, Xeon with AVX-512)   strip32 45 / 47 / 45   strip16 36 / 38 / 37   subgroup 31 / 33 / 31
 *     and on a day when others used the caches         packed 43 / – / 38     strip32 34 / – / 28
 * At 512³, counted likewise on another machine:
 *   lavapipe      subgroup 30 / 19–28 / 26    register 7 / 6 / 7
 *   SwiftShader   subgroup 3.3 / 4.3 / 3.3    register 1.9 / 1.7 / 1.8
 * So both take strips or subgroups wherever they can run; one subgroup a workgroup would leave most of a GPU idle. What is
 * true of Mesa 25 need not be of another: `bench --tune` measures.
 */
const SUBGROUP_ADAPTERS: readonly AdapterReport["kind"][] = ["software", "bundled"];

/** Rows of C from which a copy of B into panels pays: 12 % at 208, 28 % at 512 (NN, N1536 K384). */
const WORTH_PACKING = 256;

/** Below this many columns most threads of a tile have nothing to do, and the register tile is as good. */
const FEW_COLUMNS = 4;

/** What runs: the first that can of `families`, or else of the built-in table's. `families` may be a wish or a measurement. */
export function chooseMatmul(
  adapter: MatmulAdapter,
  layout: Layout,
  sizes: MatmulSizes & { G?: number },
  families: readonly (Family | HalfFamily)[] = preferred(adapter, layout, sizes),
): MatmulChoice {
  for (const family of families) {
    const choice = offer(family, adapter, layout, sizes);
    if (choice) return choice;
  }
  return FAMILIES.register();
}

/** The built-in table: the families in the order in which they are tried. */
export function preferred(
  adapter: MatmulAdapter,
  layout: Layout,
  sizes: MatmulSizes & { G?: number },
): readonly Family[] {
  const { M, N, G = 1 } = sizes;
  if (N <= FEW_COLUMNS) return ["register"];
  if (SUBGROUP_ADAPTERS.includes(adapter.kind)) {
    if (M <= 16) return ["strip16", "subgroup"];
    return M >= WORTH_PACKING ? ["packed", "strip32", "subgroup"] : ["strip32", "subgroup"];
  }
  const busy = (["tile128", "tile64"] as const).filter((family) =>
    isBusy(FAMILIES[family](adapter, layout, sizes), { M, N, G }),
  );
  return [...busy, "tile32"];
}

function isBusy(choice: MatmulChoice | undefined, { M, N, G }: Omit<ProductSizes, "K">): boolean {
  // Half of a tile beyond the edge is work for nothing.
  return (
    choice !== undefined &&
    M > choice.rows / 2 &&
    N > choice.columns / 2 &&
    G * Math.ceil(M / choice.rows) * Math.ceil(N / choice.columns) >= BUSY
  );
}

/** Those that may round to f16 here where that was asked for. A CPU gains nothing by a larger tile, and compiles it for seconds. */
export function halfCandidates({ kind }: MatmulAdapter): readonly HalfFamily[] {
  return SUBGROUP_ADAPTERS.includes(kind) ? ["matrix32"] : ["matrix128", "matrix64", "matrix32"];
}

/** The same of one product, in the order in which they are tried. Unmeasured, as `BUSY` is. */
export function preferredHalf(adapter: MatmulAdapter, layout: Layout, sizes: ProductSizes): readonly HalfFamily[] {
  if (sizes.N <= FEW_COLUMNS) return [];
  return halfCandidates(adapter).filter(
    (family) => family === "matrix32" || isBusy(HALF_FAMILIES[family](adapter, layout, sizes), sizes),
  );
}

const halved = new WeakSet<Gpu>();

/**
 * Runs `body`, whose products have factors rounded to f16 wherever a matrix unit can take them: it is the caller who says
 * that this precision will do. Others, such as those of sizes that are no multiples of 4, stay in f32. Synchronous.
 */
export function halfProducts<T>(gpu: Gpu, body: () => T): T {
  if (halved.has(gpu)) return body();
  halved.add(gpu);
  try {
    return body();
  } finally {
    halved.delete(gpu);
  }
}

// ---- choices in force

/** By layout, with the logarithms that distances are made of. */
type Index = Record<Layout, { at: readonly number[]; families: readonly Family[] }[]>;

const inForce = new WeakMap<Gpu, { choices: Choices; index: Index }>();

/** From now on `gpu` takes these; undefined: the built-in table's. */
export function useChoices(gpu: Gpu, choices: Choices | undefined): void {
  if (choices === undefined) {
    inForce.delete(gpu);
    return;
  }
  const index: Index = { NN: [], NT: [], TN: [] };
  for (const choice of choices) index[choice.layout].push({ at: logarithms(choice), families: choice.families });
  inForce.set(gpu, { choices, index });
}

/** Those that a file or a run brought; undefined where the built-in table decides. */
export function choicesInForce(gpu: Gpu): Choices | undefined {
  return inForce.get(gpu)?.choices;
}

/** What `gpu` takes for this product by what is in force; undefined: the built-in table decides. */
export function chosenFamilies(
  gpu: Gpu,
  layout: Layout,
  sizes: ProductSizes,
): readonly (Family | HalfFamily)[] | undefined {
  const measured = measuredFamilies(gpu, layout, sizes);
  if (!halved.has(gpu)) return measured;
  return [...preferredHalf(gpu.adapter, layout, sizes), ...(measured ?? preferred(gpu.adapter, layout, sizes))];
}

function measuredFamilies(gpu: Gpu, layout: Layout, sizes: ProductSizes): readonly Family[] | undefined {
  const measured = inForce.get(gpu)?.index[layout];
  if (!measured) return undefined;
  const at = logarithms(sizes);
  let nearest: readonly Family[] | undefined;
  let least = Number.POSITIVE_INFINITY;
  for (const one of measured) {
    const distance = one.at.reduce((sum, x, i) => sum + (x - (at[i] as number)) ** 2, 0);
    if (distance < least) {
      least = distance;
      nearest = one.families;
    }
  }
  return nearest;
}

function logarithms({ G, M, N, K }: ProductSizes): number[] {
  return [Math.log2(G), Math.log2(M), Math.log2(N), Math.log2(K)];
}

/** More than any tuning writes; a file may hold anything. */
const MOST_CHOICES = 4096;

/** Choices as JSON has them. TypeError, with what is wrong: they are not, or name a family that is not known here. */
export function parseChoices(value: unknown): Choices {
  if (!Array.isArray(value) || value.length > MOST_CHOICES) throw new TypeError("no list of choices");
  return value.map((item: unknown, i) => {
    const { layout, families, ...rest } = (item ?? {}) as Record<string, unknown>;
    if (layout !== "NN" && layout !== "NT" && layout !== "TN") throw new TypeError(`choice ${i} has no layout`);
    const [G, M, N, K] = (["G", "M", "N", "K"] as const).map((name) => {
      const size = rest[name];
      if (!Number.isSafeInteger(size) || (size as number) < 1) throw new TypeError(`choice ${i} has no size ${name}`);
      return size as number;
    }) as [number, number, number, number];
    if (!Array.isArray(families) || families.length === 0 || !families.every(isFamily)) {
      throw new TypeError(`choice ${i} names a kernel that is not known here`);
    }
    return { layout, G, M, N, K, families: [...new Set(families)] };
  });
}
