/**
 * @file `npm run bench:gpu:pack [-- FOLDER]`: puts what bench/gpu needs into one folder (.gpu/priorwork): run.ts and the
 * kernels' own test files as plain JavaScript, shaders, torch_gpu.py and, where they are at hand, PyTorch's reference
 * files for a small random BERT. There, Node and the package `webgpu` beside it are all that is needed: no TypeScript, no
 * test runner, no network. The tests are the ones of `npm test`, with a stand-in for Vitest, so that no case has a copy.
 */
import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { build } from "esbuild";
import { SHARED } from "../../test/golden/reference.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
/** Says that a folder is ours to replace. */
const MARK = "packed.json";
/** Native, or found by their own paths at run time. */
const EXTERNAL = ["webgpu", "koffi", "tar-stream", "@sparticuz/chromium"];
const REFERENCE = ["bert_random.json", "bert_random.safetensors"];

/** Every kernel, the gradients of the engine, and a whole small BERT. */
export function carriedTests(): string[] {
  const inFolder = (folder: string) =>
    readdirSync(join(ROOT, folder))
      .filter((name) => name.endsWith(".test.ts"))
      .map((name) => `${folder}/${name}`);
  return [...inFolder("test/kernels"), ...inFolder("test/autograd"), "test/golden/bert_random.test.ts"];
}

/** Makes the folder anew and gives its path. Error: it holds something else. */
export async function pack(folder = join(ROOT, ".gpu/priorwork")): Promise<string> {
  if (existsSync(folder) && readdirSync(folder).length > 0) {
    if (!existsSync(join(folder, MARK))) throw new Error(`${folder}: not empty, and not packed before. Name another.`);
    for (const name of readdirSync(folder))
      if (name !== "node_modules") rmSync(join(folder, name), { recursive: true });
  }
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, MARK), JSON.stringify(versions(), null, 1));
  await build({
    absWorkingDir: ROOT,
    entryPoints: ["bench/gpu/run.ts", ...carriedTests()],
    outdir: folder,
    outbase: ".",
    // Everything lies two folders deep, as its source does: paths relative to a module stay right.
    chunkNames: "src/gpu/[name]-[hash]",
    bundle: true,
    splitting: true,
    format: "esm",
    platform: "node",
    target: "node20",
    external: EXTERNAL,
    alias: { vitest: join(ROOT, "bench/gpu/vitest.ts") },
    logLevel: "warning",
  });
  cpSync(join(ROOT, "shaders"), join(folder, "shaders"), { recursive: true });
  cpSync(join(ROOT, "bench/gpu/torch_gpu.py"), join(folder, "bench/gpu/torch_gpu.py"));
  cpSync(join(ROOT, "package.json"), join(folder, "package.json"));
  for (const name of REFERENCE) {
    const source = join(SHARED, "reference", name);
    if (existsSync(source)) cpSync(source, join(folder, "reference", name));
    else process.stderr.write(`note: no ${source}; the comparison with PyTorch's gradients is skipped\n`);
  }
  return folder;
}

function versions(): Record<string, string> {
  const git = (...words: string[]) => {
    try {
      return execFileSync("git", ["-C", ROOT, ...words], {
        encoding: "utf8",
        stdio: ["ignore", "pipe", "ignore"],
      }).trim();
    } catch {
      return "";
    }
  };
  const require = createRequire(import.meta.url);
  const version = (path: string) => String(JSON.parse(readFileSync(path, "utf8")).version);
  return {
    priorwork: version(join(ROOT, "package.json")),
    commit: git("rev-parse", "HEAD") + (git("status", "--porcelain") ? " and changes" : ""),
    webgpu: version(require.resolve("webgpu/package.json")),
    packed: new Date().toISOString(),
  };
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const folder = await pack(process.argv[2] === undefined ? undefined : resolve(process.argv[2]));
  process.stdout.write(`packed: ${folder}\nrun: node ${join(folder, "bench/gpu/run.js")}\n`);
}
