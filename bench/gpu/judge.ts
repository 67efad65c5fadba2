/**
 * @file The targets for an H100-class GPU, each with what was measured and whether it was reached. A software adapter, a
 * PyTorch without a GPU, or a part that did not come to its end gives no verdict, and the line says why.
 */
import type { MatmulSizes } from "../../src/kernels/matmul.ts";
import { CUBE, FEED_FORWARD } from "./plan.ts";
import type { GpuRow, Results } from "./results.ts";

export interface Verdict {
  target: string;
  measured: string;
  /** undefined: no verdict. */
  reached?: boolean;
}

/** Milliseconds of wall time, or a share: what a target compares. */
type Found = { measured: string; reached: boolean } | string;

export function judge(results: Results): Verdict[] {
  const verdict = (target: string, found: Found): Verdict => {
    if (typeof found === "string") return { target, measured: found };
    if (results.rehearsal) return { target, measured: `${found.measured} (a software adapter: no verdict)` };
    return { target, ...found };
  };
  return [
    verdict("f32 product 4096³: at least 35 % of the multiply-add ceiling", product(results, CUBE, 0.35)),
    verdict("f32 product M1024 K384 N1536: at least 20 % of it", product(results, FEED_FORWARD, 0.2)),
    verdict("a MiniLM step of 1,024 tokens: at most 2× PyTorch eager f32, TF32 off", step(results)),
    verdict("at most 10 µs of wall time a dispatch", dispatch(results)),
    verdict("every op test passes", tests(results)),
  ];
}

/** The best ceiling that was seen, GFLOP/s or GB/s. */
export function ceilingOf(
  { ceilings }: Pick<Results, "ceilings">,
  rate: "gflops" | "gbps",
  dtype: string = "f32",
): number {
  // What moves bytes has no dtype to speak of.
  const rows = rate === "gflops" ? ceilings.filter((row) => row.dtype === dtype) : ceilings;
  return Math.max(0, ...rows.map((row) => row[rate] ?? 0));
}

/** Share of the ceiling that the row's rate belongs to; undefined where it has none. */
export function shareOf(results: Pick<Results, "ceilings">, row: GpuRow): number | undefined {
  const rate = row.gflops !== undefined ? "gflops" : "gbps";
  const [reached, ceiling] = [row[rate], ceilingOf(results, rate, row.dtype)];
  return reached === undefined || ceiling === 0 ? undefined : reached / ceiling;
}

function product(results: Results, sizes: MatmulSizes, least: number): Found {
  const shaped = (rows: readonly GpuRow[]) =>
    rows
      .filter(({ layout, dtype }) => layout === "NN" && dtype === "f32")
      .filter(({ shape }) => Object.entries(sizes).every(([key, n]) => shape[key] === n));
  const chosen = shaped(results.kernels).find(({ name }) => name === "matmul");
  const share = chosen && shareOf(results, chosen);
  if (chosen === undefined || share === undefined) return "not measured";
  const best = shaped(results.kernels).reduce((a, b) => ((b.gflops ?? 0) > (a.gflops ?? 0) ? b : a), chosen);
  const unguarded = shaped(results.unguarded).find(({ name }) => name === "matmul");
  const said = [`${percent(share)} (${chosen.gflops} GFLOP/s)`];
  if (best !== chosen) said.push(`best family ${best.name} ${percent(shareOf(results, best) ?? 0)}`);
  if (unguarded) said.push(`without robustness ${percent(shareOf(results, unguarded) ?? 0)}`);
  return { measured: said.join(", "), reached: share >= least };
}

function step({ steps, torch, facts }: Results): Found {
  const ours = steps.find(({ name, shape }) => name === "step.MLE" && shape.tokens === 1024);
  const theirs = torch.find(
    ({ name, mode, shape }) => name === "step.train" && mode === "f32" && shape.tokens === 1024,
  );
  if (!ours) return "our step was not measured";
  if (!theirs) return `${ours.medianMs} ms; PyTorch was not measured`;
  const measured = `${ours.medianMs} ms, PyTorch ${theirs.medianMs} ms: ${(ours.medianMs / theirs.medianMs).toFixed(2)}×`;
  const { device = "" } = (facts.torch ?? {}) as { device?: string };
  return device.startsWith("cuda")
    ? { measured, reached: ours.medianMs <= 2 * theirs.medianMs }
    : `${measured} (PyTorch had no GPU: no verdict)`;
}

function dispatch({ steps }: Results): Found {
  const tiny = steps.find(({ name }) => name === "host.dispatch");
  if (!tiny) return "not measured";
  const each = (row: GpuRow) => (1000 * row.medianMs) / (row.dispatches || 1);
  const raw = steps.find(({ name }) => name === "host.dispatch.rawDawn");
  const said = [`${each(tiny).toFixed(2)} µs`];
  if (raw) said.push(`raw Dawn ${((1000 * raw.medianMs) / (tiny.dispatches || 1)).toFixed(2)} µs`);
  for (const row of steps.filter(({ name }) => name === "step.MLE")) {
    said.push(`step of ${row.shape.tokens} tokens ${each(row).toFixed(2)} µs (${row.dispatches} dispatches)`);
  }
  return { measured: said.join(", "), reached: each(tiny) <= 10 };
}

function tests({ tests: { passed, failed }, parts }: Results): Found {
  if (passed + failed === 0) return "not run";
  const whole = parts.ops.status === "done";
  const measured = `${passed} passed, ${failed} failed${whole || failed > 0 ? "" : "; not all were reached"}`;
  return failed > 0 || whole ? { measured, reached: failed === 0 } : measured;
}

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
