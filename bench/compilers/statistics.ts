/** @file What compilers of GPUs say of a shader, each in its own words, made into the same few numbers. */

/** Begins a line of record.ts: JSON of the kernel that is compiled next. */
export const MARK = "priorwork compiles ";

export interface Compiler {
  /** Of the GPU, and of the compiler. */
  name: string;
  /** The script that .ci/mesa26 makes for it. */
  script: string;
  /** What makes it talk. */
  env: Readonly<Record<string, string>>;
  /** Registers of a thread, and the most that a thread may have. */
  registers: RegExp;
  most: number;
  /** Numbers of stores and loads of registers that had no place; summed. */
  spills: readonly RegExp[];
  /** What fits a multiprocessor at once, by registers and workgroup memory, and what it holds at most. */
  resident: RegExp;
  full: number;
  unit: string;
}

export const COMPILERS: readonly Compiler[] = [
  {
    name: "NVIDIA GA102 (Ampere), Mesa's NAK",
    script: "run-nvidia",
    env: { NOUVEAU_CHIPSET: "172", NAK_DEBUG: "print" },
    registers: /^Num GPRs: (\d+)/,
    most: 255,
    spills: [/^Spills to mem: (\d+)/, /^Fills from mem: (\d+)/],
    resident: /^Max warps\/SM: (\d+)/,
    full: 48,
    unit: "warps of 32",
  },
  {
    name: "AMD Navi 31 (RDNA 3), Mesa's ACO",
    script: "run-amd",
    env: { AMDGPU_GPU_ID: "navi31", RADV_DEBUG: "shaderstats" },
    registers: /^VGPRs: (\d+)/,
    most: 256,
    spills: [/^Spilled VGPRs: (\d+)/],
    resident: /^Subgroups per SIMD: (\d+)/,
    full: 32,
    unit: "waves",
  },
  {
    name: "Apple M1, Mesa's AGX",
    script: "run-apple",
    env: { AGX_MESA_DEBUG: "shaderdb" },
    registers: /^CS shader: .* (\d+) gprs,/,
    most: 256, // of 16 bits
    spills: [/ (\d+):\d+ spills:fills/, / \d+:(\d+) spills:fills/],
    resident: /^CS shader: .* (\d+) threads,/,
    full: 1024,
    unit: "threads",
  },
];

/** A kernel as one compiler made it. */
export interface Compiled {
  shader: string;
  entry: string;
  tile: Readonly<Record<string, number | string>>;
  constants: Readonly<Record<string, number>>;
  registers: number;
  spills: number;
  resident: number;
}

/** What record.ts and a driver have said together, as lines. Error: it ends before its end. */
export async function read(
  lines: AsyncIterable<string>,
  { registers, spills, resident }: Compiler,
): Promise<{ driver: string; kernels: Compiled[] }> {
  const patterns = [registers, resident, ...spills];
  const kernels: Compiled[] = [];
  let driver = "";
  let found: (number | undefined)[] = [];
  let open: Pick<Compiled, "shader" | "entry" | "tile" | "constants"> | undefined;
  const close = () => {
    const [used, resident, ...spilt] = found;
    // Without a number it has not been compiled: a driver may know the shader from another pipeline.
    if (open && used !== undefined) {
      kernels.push({
        ...open,
        registers: used,
        resident: resident ?? Number.NaN,
        spills: spilt.reduce<number>((sum, n) => sum + (n ?? 0), 0),
      });
    }
    open = undefined;
    found = [];
  };
  const last: string[] = [];
  for await (const line of lines) {
    if (!line.startsWith(MARK)) {
      // The first number counts: after a shader of ours a driver may speak of one of its own.
      if (open) for (const [i, pattern] of patterns.entries()) found[i] ??= numberIn(line, pattern);
      last.push(line);
      if (last.length > 20) last.shift();
      continue;
    }
    close();
    const said = JSON.parse(line.slice(MARK.length)) as Record<string, unknown>;
    if (said.end) return { driver, kernels };
    if (said.driver !== undefined) driver = `${said.adapter}: ${said.driver}`;
    else open = { tile: {}, constants: {}, ...said } as Compiled;
  }
  throw new Error(`it ended early, with\n${last.join("\n")}`);
}

function numberIn(line: string, pattern: RegExp): number | undefined {
  const found = pattern.exec(line);
  return found ? Number(found[1]) : undefined;
}
