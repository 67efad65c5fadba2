import { defineConfig } from "vitest/config";

// One process for all files, one after another: the device is the shared resource, and two cores are what there is.
export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    pool: "forks",
    isolate: false,
    fileParallelism: false,
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // The built-in choice of kernels, whatever this machine was tuned to.
    env: { PRIORWORK_TUNED: "0" },
  },
});
