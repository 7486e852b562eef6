import { defineConfig } from "vitest/config";

// Real processes and real files: the limits are there for what hangs, not for what is slow.
const limit = (milliseconds: number) => ({ testTimeout: milliseconds, hookTimeout: milliseconds });

export default defineConfig({
  test: {
    // The tests wait for other processes most of the time.
    maxWorkers: "100%",
    slowTestThreshold: 60_000,
    projects: [
      {
        test: {
          name: "unit",
          // Not by an exclude, beside which --exclude would not count.
          include: ["test/*.test.ts", "test/!(cli|lab)/**/*.test.ts"],
          ...limit(120_000),
        },
      },
      { test: { name: "cli", include: ["test/cli/**/*.test.ts"], ...limit(120_000) } },
      {
        test: {
          name: "lab",
          include: ["test/lab/**/*.test.ts"],
          // Each file boots a guest, and an emulated one takes a processor for itself.
          fileParallelism: false,
          ...limit(900_000),
        },
      },
    ],
  },
});
