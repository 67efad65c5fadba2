import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";
import { BaseSequencer, type TestSpecification } from "vitest/node";

/** What takes longest on the bundled adapter, longest first. */
const LONG = [
  "kernels/matmul",
  "kernels/attention",
  "cli/tune",
  "bench/gpu",
  "docs",
  "bench/memory",
  "kernels/grids",
  "train/shaped-priors",
  "train/fisher",
  "posterior/joint",
].map((name) => `/test/${name}.test.ts`);

/** Long files begin first, so that none is left to one worker at the end; of the others Vitest takes the largest first. */
class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const rank = ({ moduleId }: TestSpecification) => {
      const at = LONG.findIndex((end) => moduleId.endsWith(end));
      return at < 0 ? LONG.length : at;
    };
    return (await super.sort(files)).sort((a, b) => rank(a) - rank(b));
  }
}

// Two processes share the files: most of a test's time on a software adapter is one thread's, which compiles. In each the
// files run one after another on one device (test/kernels/harness.ts), so that a pipeline is compiled once a process.
export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    pool: "forks",
    isolate: false,
    maxWorkers: Math.min(2, availableParallelism()),
    sequence: { sequencer: LongestFirst },
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // The built-in choice of kernels, whatever this machine was tuned to.
    env: { PRIORWORK_TUNED: "0" },
  },
});
