/**
 * @file `doctor`: which adapter is used, what was tried before it and why it was passed over, and how to get a faster
 * one. Works where there is no adapter at all (exit 3), for that is when it is needed.
 */
import { PriorworkError } from "../errors.ts";
import type { AdapterReport } from "../gpu/index.ts";
import { type Attempt, openGpu } from "../gpu/node.ts";
import { table } from "./format.ts";
import type { Io } from "./io.ts";
import type { RawFlags } from "./options.ts";
import { adapterText, Output } from "./output.ts";
import { type Loaded, loadTuned } from "./tuned.ts";
import { versions } from "./version.ts";

/** The limits that decide which models fit and which kernels run. */
const SHOWN_LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupStorageSize",
];

const ADVICE: Record<AdapterReport["kind"], string> = {
  hardware: "This is a GPU: nothing to do.",
  software:
    "For a faster one: a GPU with its Vulkan driver (NVIDIA's, or Mesa's for AMD and Intel). A software adapter computes the same, on the CPU.",
  bundled:
    "For a faster one: a GPU with its Vulkan driver; or Mesa's software Vulkan, about 5 times faster than this one (Debian 12: mesa-vulkan-drivers and libvulkan1 from bookworm-backports).",
};

export async function doctor(raw: RawFlags, io: Io): Promise<void> {
  const out = new Output(io, raw.json === true);
  const tried: Attempt[] = [];
  let adapter: AdapterReport | null = null;
  let loaded: Loaded = {};
  let failure: unknown;
  try {
    const gpu = await openGpu({
      adapter: io.env.PRIORWORK_ADAPTER,
      onAttempt: (attempt) => tried.push(attempt),
    });
    adapter = gpu.adapter;
    loaded = loadTuned(gpu, io.env);
    gpu.destroy();
  } catch (error) {
    if (!(error instanceof PriorworkError)) throw error;
    failure = error;
  }
  if (adapter !== null) out.adapter(adapter);
  if (loaded.problem !== undefined) out.note(loaded.problem);
  out.text(report(adapter, loaded, tried, io));
  if (out.json) {
    const { subgroupSize: _, matrixUnit = null, ...rest } = adapter ?? { subgroupSize: 0 };
    const shown = { ...rest, matrixUnit };
    const tuned = loaded.tuned ?? null;
    out.document({ adapter: adapter === null ? null : shown, tried, tuned, versions: versions() });
  }
  // The sentence that says what to install comes last, as every failure's.
  if (failure !== undefined) throw failure;
}

function report(adapter: AdapterReport | null, { tuned }: Loaded, tried: readonly Attempt[], io: Io): string {
  const { priorwork, node, webgpu } = versions();
  const lines = [
    `priorwork ${priorwork}, Node ${node}, webgpu (Dawn) ${webgpu}, ${process.platform}-${process.arch}`,
    "",
  ];
  const rows = tried.map(({ name, taken, reason }) => [taken ? "taken" : "passed over", name, reason]);
  if (rows.length > 0) lines.push(table(["tried", "adapter", "why"], rows), "");
  if (io.env.PRIORWORK_ADAPTER) lines.push(`PRIORWORK_ADAPTER=${io.env.PRIORWORK_ADAPTER} decides.`, "");
  if (adapter === null) return [...lines, "No adapter."].join("\n");
  lines.push(`Used: ${adapterText(adapter)}`);
  lines.push(`Features: ${adapter.features.join(", ") || "none that priorwork uses"}`);
  const unit = adapter.matrixUnit;
  lines.push(
    unit
      ? `Matrix unit: ${unit.M} × ${unit.K} by ${unit.K} × ${unit.N}, f16 summed in f32 (--dtype f16)`
      : "Matrix unit: none that multiplies f16 and sums in f32 (--dtype f16 needs one)",
  );
  lines.push("Limits:");
  lines.push(...SHOWN_LIMITS.map((name) => `  ${name}: ${adapter.limits[name] ?? "unknown"}`));
  lines.push(
    tuned
      ? `Matrix products: tuned here on ${tuned.date} (${tuned.file})`
      : "Matrix products: the built-in choice; `priorwork bench --tune` measures this adapter, in some minutes",
  );
  return [...lines, "", ADVICE[adapter.kind]].join("\n");
}
