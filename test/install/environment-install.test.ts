import { expect, test } from "vitest";
import { missingParents } from "../../src/install/environment-install.js";

// What ZFS does is in test/lab/environment-install.test.ts.

const stream = (dataset: string, base: string) => ({
  dataset,
  base: { dataset: base, name: "R1", guid: "1" },
});
const environment = { dataset: "p/ROOT/R2" };

test("a new dataset lies in one that is made, or in one that must be there", () => {
  const streams = [
    stream("p/ROOT/R2/usr/local", "p/ROOT/R1/usr/local"),
    stream("p/ROOT/R2/usr", "p/ROOT/R1/usr"),
    stream("p/ROOT/R2/var/opt", "p/ROOT/R1/var/opt"),
    stream("p/OPT/R2", "p/OPT/R1"),
    // Received by the bundle before.
    stream("p/ROOT/R2/gone/data", "p/ROOT/R2/gone/data"),
  ];
  expect(missingParents(streams, environment)).toEqual([
    { dataset: "p/ROOT/R2/var/opt", parent: "p/ROOT/R2/var" },
    { dataset: "p/OPT/R2", parent: "p/OPT" },
  ]);
});
