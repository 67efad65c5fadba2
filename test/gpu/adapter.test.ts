import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, test } from "vitest";
import { DeviceError, InputError } from "../../src/errors.ts";
import type { Gpu } from "../../src/gpu/index.ts";
import { type Attempt, isSoftware, openGpu, readShaders } from "../../src/gpu/node.ts";

let opened: Gpu[] = [];
const before = process.env.PRIORWORK_ADAPTER;
afterEach(() => {
  for (const gpu of opened) gpu.destroy();
  opened = [];
  if (before === undefined) delete process.env.PRIORWORK_ADAPTER;
  else process.env.PRIORWORK_ADAPTER = before;
});

async function open(adapter?: string) {
  const attempts: Attempt[] = [];
  const gpu = await openGpu({ ...(adapter === undefined ? {} : { adapter }), onAttempt: (a) => attempts.push(a) });
  opened.push(gpu);
  return { gpu, attempts };
}

describe("the adapter that was taken", () => {
  test("is reported with kind, driver, features and limits, and each attempt with its reason", async () => {
    const { gpu, attempts } = await open();
    expect(attempts.at(-1)).toMatchObject({ name: gpu.adapter.name, taken: true });
    expect(attempts.slice(0, -1).every((attempt) => !attempt.taken && attempt.reason !== "")).toBe(true);
    expect(["hardware", "software", "bundled"]).toContain(gpu.adapter.kind);
    expect(gpu.adapter.limits.maxStorageBufferBindingSize).toBe(gpu.device.limits.maxStorageBufferBindingSize);
    expect(gpu.adapter.limits.maxComputeInvocationsPerWorkgroup).toBeGreaterThanOrEqual(256);
    if (gpu.adapter.features.includes("subgroups")) expect(gpu.adapter.subgroupSize).toBeGreaterThanOrEqual(0);
    else expect(gpu.adapter.subgroupSize).toBe(0);
  });

  test("can be named by a part of its name, in any case", async () => {
    const { gpu } = await open();
    if (gpu.adapter.kind === "bundled") return;
    const part = gpu.adapter.name.slice(0, 4).toUpperCase();
    const named = await open(part);
    expect(named.gpu.adapter.name).toBe(gpu.adapter.name);
  });
});

// As Dawn gives them; the last, an Apple GPU under Linux, with the vendor "mesa" and the architecture "software".
test.each([
  ["llvmpipe-llvm-15-0-6-256-bits-", "llvmpipe: Mesa 25.0.7 (LLVM 15.0.6)", true],
  ["swiftshader-device-subzero-", "SwiftShader driver: 5.0.0", true],
  ["nvidia-h100-80gb-hbm3", "NVIDIA: 570.124.06", false],
  ["amd-radeon-rx-7900-xtx-radv-navi31-", "radv: Mesa 26.1.6", false],
  ["apple-m1-g13g-a0-", "Honeykrisp: Mesa 26.1.6", false],
])("%s (%s): a software adapter is one by its name", (device, description, expected) => {
  expect(isSoftware({ device, description })).toBe(expected);
});

/** Two devices of one process without a Vulkan of the system: a process of its own, since the loader stays in it. */
const TWICE = `
  import { openGpu } from "${new URL("../../src/gpu/node.ts", import.meta.url).href}";
  const gpus = [await openGpu(), await openGpu()];
  process.stdout.write(JSON.stringify(gpus.map(({ adapter }) => adapter)));
  for (const gpu of gpus) gpu.destroy();
`;

test.runIf(process.platform === "linux" && process.arch === "x64")(
  "the bundled adapter is the bundled one the second time too",
  { timeout: 60_000 },
  () => {
    const env = {
      ...process.env,
      PRIORWORK_ADAPTER: "",
      VK_DRIVER_FILES: "/nonexistent",
      VK_ICD_FILENAMES: "/nonexistent",
    };
    const options = { cwd: fileURLToPath(new URL("../..", import.meta.url)), env, stdio: ["ignore", "pipe", "ignore"] };
    const argv = ["--import", "tsx", "--input-type=module", "--eval", TWICE];
    const [first, second] = JSON.parse(
      `${execFileSync(process.execPath, argv, options as { env: NodeJS.ProcessEnv })}`,
    );
    expect(first.kind).toBe("bundled");
    expect(second).toEqual(first);
  },
);

describe("an adapter that is not there", () => {
  test("by an unknown name is the user's mistake (exit 2), says what was tried, and how to choose", async () => {
    process.env.PRIORWORK_ADAPTER = "nonsense";
    const attempts: Attempt[] = [];
    const error: unknown = await openGpu({ onAttempt: (a) => attempts.push(a) }).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(InputError);
    const { message, exitCode } = error as InputError;
    expect(exitCode).toBe(2);
    expect(message).toMatch(/^PRIORWORK_ADAPTER=nonsense: no such adapter here \(/);
    expect(message).toContain("Choose hardware, software, bundled or a part of an adapter's name");
    expect(attempts.length).toBeGreaterThan(0);
    for (const attempt of attempts) {
      expect(attempt.taken).toBe(false);
      expect(message).toContain(`${attempt.name}: ${attempt.reason}`);
    }
    expect(message).not.toContain("\n");
  });

  test("by kind is the device's (exit 3)", async () => {
    const { gpu } = await open();
    const other = gpu.adapter.kind === "hardware" ? "software" : "hardware";
    const error: unknown = await openGpu({ adapter: other }).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(DeviceError);
    expect((error as DeviceError).exitCode).toBe(3);
    expect((error as DeviceError).message).toContain(`PRIORWORK_ADAPTER=${other}`);
  });

  test("an option comes before the environment", async () => {
    process.env.PRIORWORK_ADAPTER = "nonsense";
    const error: unknown = await openGpu({ adapter: "gibberish" }).catch((e: unknown) => e);
    expect((error as Error).message).toMatch(/^PRIORWORK_ADAPTER=gibberish/);
  });
});

test("the shader folder is read by name, without the ending", () => {
  const shaders = readShaders();
  expect(shaders.get("ticket")).toContain("fn write()");
  expect([...shaders.keys()].every((name) => !name.includes("."))).toBe(true);
});
