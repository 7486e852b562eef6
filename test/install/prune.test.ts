import { expect, test } from "vitest";
import type { BootEnvironment, EnvironmentState } from "../../src/install/environments.js";
import { chooseOld, describeShort } from "../../src/install/prune.js";

// What ZFS does is in test/lab/prune.test.ts.

const environment = (
  name: string,
  created: number,
  isMade = true,
  states: EnvironmentState[] = [],
): BootEnvironment => ({
  name,
  dataset: `rpool/ROOT/${name}`,
  guid: String(created),
  states,
  release: isMade ? { name, identity: "ab".repeat(32) } : null,
  created,
  used: 0,
  refers: 0,
  datasets: [],
  fault: null,
  holds: [],
});

const R = [1, 2, 3, 4].map((n) => environment(`R${n}`, n));
const choose = (found: BootEnvironment[], keep: number): Record<"old" | "kept", string[]> => {
  const { old, kept } = chooseOld(found, keep);
  const names = (each: BootEnvironment[]): string[] => each.map(({ name }) => name);
  return { old: names(old), kept: names(kept) };
};

test("the oldest of zferry's own are chosen, oldest first, and then those that are kept", () => {
  expect(choose(R, 3)).toEqual({ old: ["R1"], kept: ["R2", "R3", "R4"] });
  expect(choose([...R].reverse(), 1)).toEqual({ old: ["R1", "R2", "R3"], kept: ["R4"] });
  expect(choose(R, 4)).toEqual({ old: [], kept: ["R1", "R2", "R3", "R4"] });
});

test("those of others do not count", () => {
  const hand = [environment("one", 0, false), environment("two", 9, false)];
  expect(choose([...hand, ...R], 3)).toEqual({ old: ["R1"], kept: ["R2", "R3", "R4"] });
});

test("what is leaving already goes on, however many are kept", () => {
  const leaving = environment("R5", 5, true, ["leaving"]);
  expect(choose([...R, leaving], 9)).toEqual({ old: ["R5"], kept: ["R1", "R2", "R3", "R4"] });
});

const pruning = { container: "rpool/ROOT", keep: 3, keepFree: 2048, removed: [], staying: [] };

test("that too little is free is told, and nothing where it is enough, or where nothing is asked for", () => {
  expect(describeShort({ ...pruning, free: 1024 }, true)).toBe(
    "keep_free is 2.0 KiB, and at least 1.0 KiB would be free on rpool: no other boot environment can be removed",
  );
  expect(describeShort({ ...pruning, free: 1024 }, false)).toContain("and 1.0 KiB are free on rpool");
  expect(describeShort({ ...pruning, free: 2048 }, true)).toBeUndefined();
  expect(describeShort({ ...pruning, keepFree: 0, free: 0 }, true)).toBeUndefined();
});
