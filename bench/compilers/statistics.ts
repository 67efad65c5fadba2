/** @file What compilers of GPUs say of a kernel, each in its own words, made into the same few numbers. */

/** Begins a line of record.ts, before JSON of what happens next: `Said`. */
export const MARK = "priorwork compiles ";

export interface Kernel {
  shader: string;
  entry: string;
  tile: Readonly<Record<string, number | string>>;
  constants: Readonly<Record<string, number>>;
}

/** The adapter; a kernel, before its driver has it; that it is compiled; the end. */
export type Said = { adapter: string; driver: string } | Kernel | { done: true } | { end: true };

/** Numbers of a kernel. */
export interface Statistics {
  instructions: number;
  /** Of a thread, in the compiler's unit. */
  registers: number;
  /** What had no register, as the compiler counts it (`Compiler.spilt`). */
  spills: number;
  /** Memory of a thread, for spills and for arrays that have a computed index; in the compiler's unit. */
  scratch: number;
  /** What a multiprocessor holds at once, as the compiler counts it. */
  resident: number;
}

export interface Compiler {
  name: string;
  /** The script that .ci/mesa26 makes for it. */
  script: string;
  /** What makes it talk. */
  env: Readonly<Record<string, string>>;
  /** The adapter's name: no other may answer in its place. */
  adapter: RegExp;
  /** Each of these is found once of every kernel; numbers of several are added. */
  patterns: Readonly<Record<keyof Statistics, readonly RegExp[]>>;
  /** The most registers, and what they are. */
  most: number;
  registers: string;
  spilt: string;
  resident: string;
}

export const COMPILERS: readonly Compiler[] = [
  {
    name: "NAK, for an NVIDIA GA102 (Ampere)",
    script: "run-nvidia",
    env: { NOUVEAU_CHIPSET: "172", NAK_DEBUG: "print" },
    adapter: /^nvk/,
    patterns: {
      instructions: [/^Instruction count: (\d+)/],
      registers: [/^Num GPRs: (\d+)/],
      spills: [/^Spills to mem: (\d+)/, /^Fills from mem: (\d+)/],
      scratch: [/^SLM size: (\d+)/],
      resident: [/^Max warps\/SM: (\d+)/],
    },
    most: 255,
    registers: "of 255",
    spilt: "stores and loads",
    resident: "warps by registers, of 48",
  },
  {
    name: "ACO, for an AMD Navi 31 (RDNA 3)",
    script: "run-amd",
    env: { AMDGPU_GPU_ID: "navi31", RADV_DEBUG: "shaderstats" },
    adapter: /navi31/,
    patterns: {
      instructions: [/^Instructions: (\d+)/],
      registers: [/^VGPRs: (\d+)/],
      spills: [/^Spilled VGPRs: (\d+)/],
      scratch: [/^Scratch size: (\d+)/],
      resident: [/^Subgroups per SIMD: (\d+)/],
    },
    most: 256,
    registers: "of 256",
    spilt: "vector registers",
    resident: "waves of 32 threads, of 32", // one of 64 counts two, and Mesa counts workgroup memory
  },
  {
    name: "AGX, for an Apple M1",
    script: "run-apple",
    env: { AGX_MESA_DEBUG: "shaderdb" },
    adapter: /^apple-m1/,
    patterns: {
      instructions: [/^CS shader: (\d+) instrs,/],
      registers: [/^CS shader: .* (\d+) gprs,/],
      spills: [/^CS shader: .* (\d+):\d+ spills:fills/, /^CS shader: .* \d+:(\d+) spills:fills/],
      scratch: [/^CS shader: .* (\d+) scratch,/],
      resident: [/^CS shader: .* (\d+) threads,/],
    },
    most: 256,
    registers: "halves of 16 bits, of 256",
    spilt: "stores and loads",
    resident: "threads by registers, of 1024",
  },
];

/** A kernel as one compiler made it. */
export type Compiled = Kernel & Statistics;

/**
 * What record.ts and a driver have said together, as lines. Error, with the last of them: another adapter has answered, a
 * kernel was compiled without a word or without one of its numbers, or it ends before its end.
 */
export async function read(
  lines: AsyncIterable<string>,
  { adapter: expected, patterns }: Compiler,
): Promise<{ driver: string; kernels: Compiled[] }> {
  const kernels: Compiled[] = [];
  const last: string[] = [];
  let driver: string | undefined;
  let open: Kernel | undefined;
  let heard: string[] = [];
  const stop = (why: string) =>
    new Error([why, ...(open ? [`at ${open.shader}.${open.entry}`] : []), "", ...last].join("\n").trimEnd());
  for await (const text of lines) {
    const at = text.indexOf(MARK);
    if (at !== 0) {
      const line = at < 0 ? text : text.slice(0, at);
      if (open) heard.push(line);
      last.push(line);
      if (last.length > 12) last.shift();
      if (at < 0) continue;
    }
    const said = parsed(text.slice(at + MARK.length));
    if (said === undefined) throw stop(`it says half a line: ${text}`);
    if ("driver" in said) {
      driver = `${said.adapter}: ${said.driver}`;
      if (!expected.test(said.adapter)) throw stop(`the adapter that answers is ${driver}`);
    } else if ("shader" in said) {
      open = said;
      heard = [];
    } else if ("end" in said) {
      if (driver === undefined || kernels.length === 0) throw stop("it has compiled nothing");
      return { driver, kernels };
    } else if (open) {
      const numbers = statistics(heard, patterns);
      if (typeof numbers === "string") throw stop(`it says nothing of ${numbers}`);
      kernels.push({ ...open, ...numbers });
      open = undefined;
    }
  }
  throw stop("it ended early");
}

/** From the lines of one kernel, or which number is not there. A driver may compile a shader of its own beside it: the first counts. */
function statistics(lines: readonly string[], patterns: Compiler["patterns"]): Statistics | string {
  const found: Partial<Statistics> = {};
  for (const [name, all] of Object.entries(patterns) as [keyof Statistics, readonly RegExp[]][]) {
    const numbers = all.map((pattern) => lines.map((line) => pattern.exec(line)?.[1]).find((n) => n !== undefined));
    if (numbers.includes(undefined)) return name;
    found[name] = numbers.reduce((sum, n) => sum + Number(n), 0);
  }
  return found as Statistics;
}

function parsed(json: string): Said | undefined {
  try {
    return JSON.parse(json) as Said;
  } catch {
    return undefined;
  }
}
