import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    // Real processes and real files: the limit is there for what hangs, not for what is slow.
    testTimeout: 120_000,
    hookTimeout: 120_000,
    projects: [
      {
        extends: true,
        test: { name: "unit", exclude: ["test/lab/**", "test/cli/**", "**/node_modules/**"] },
      },
      { extends: true, test: { name: "cli", include: ["test/cli/**/*.test.ts"] } },
      {
        extends: true,
        test: {
          name: "lab",
          include: ["test/lab/**/*.test.ts"],
          // A guest boots in ten seconds and runs at a tenth of the speed; two at a time would not be quicker.
          fileParallelism: false,
          testTimeout: 900_000,
          hookTimeout: 900_000,
        },
      },
    ],
  },
});
