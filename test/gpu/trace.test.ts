/** @file DEBUG=2, 3 and 4: a line a dispatch, its arrays and parameters, the numbered text of what is compiled. */
import { afterEach, beforeAll, describe, expect, test } from "vitest";
import { debugLevel, f32, Gpu, trace } from "../../src/gpu/index.ts";
import { openGpu, readShaders } from "../../src/gpu/node.ts";
import { NdArray } from "../../src/kernels/array.ts";

const PROBE = `// --- tile
const ROWS = 1u;
// --- end
override ON: u32 = 0u;
struct P { n: u32, x: f32 }
var<immediate> p: P;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(1)
fn add(@builtin(global_invocation_id) id: vec3u) { if (id.x < p.n + ON) { y[id.x] = x[id.x] + p.x * f32(ROWS); } }
`;

let base: Gpu;
beforeAll(async () => {
  base = await openGpu();
  return () => base.destroy();
});
let gpu: Gpu;
afterEach(() => expect(gpu.stats.liveBuffers).toBe(0));

/** What is written at a level for the same dispatch twice. */
function written(level: number): string[] {
  // A Gpu of its own has compiled nothing yet.
  gpu = new Gpu(base.instance, base.device, base.adapter, new Map([...readShaders(), ["probe", PROBE]]));
  const lines: string[] = [];
  trace(gpu, level, (text) => lines.push(...text.split("\n")));
  gpu.scope(() => {
    const x = new NdArray(gpu.allocate(1600), 0, [20, 20]);
    const y = { buffer: gpu.allocate(1600), byteOffset: 0, byteLength: 1600 };
    for (const n of [3, 400]) {
      gpu.dispatch({
        op: "probe.add",
        shader: "probe",
        entry: "add",
        constants: { ON: 1 },
        tile: { ROWS: 2 },
        bindings: [x, y],
        params: [n, f32(-0.5)],
        grid: [400, 1, 1],
      });
    }
  });
  return lines;
}

const LINE = "dispatch probe.add  probe.add  400×1×1  3,200 bytes";
const detail = (n: number) => `  [20 20] 1600 bytes  params ${n} 0xbf000000=-0.5  ON=1  ROWS=2`;

describe("trace", () => {
  test("below 2 is silent, and leaves the device's hooks alone", () => {
    expect(written(1)).toEqual([]);
    expect(gpu.afterDispatch).toBeUndefined();
    expect(gpu.afterCompile).toBeUndefined();
  });

  test("2 writes a line a dispatch", () => expect(written(2)).toEqual([LINE, LINE]));

  test("3 adds shapes, parameters and constants", () => {
    expect(written(3)).toEqual([LINE, detail(3), LINE, detail(400)]);
  });

  test("4 adds the text of a pipeline once, as it is compiled, with its line numbers", () => {
    const lines = written(4);
    expect(lines[0]).toBe("compile probe.add for probe.add");
    expect(lines[1]).toBe("    1 | // --- tile");
    expect(lines[2]).toBe("    2 | const ROWS = 2u;");
    expect(lines.slice(11)).toEqual([LINE, detail(3), LINE, detail(400)]);
  });
});

test("the level is DEBUG's number; anything else is 0", () => {
  expect(["1", "4", "", undefined, "yes", "express:*"].map(debugLevel)).toEqual([1, 4, 0, 0, 0, 0]);
});
