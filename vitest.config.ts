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
  },
});
