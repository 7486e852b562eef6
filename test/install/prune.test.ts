import { expect, test } from "vitest";
import type { BootEnvironment, EnvironmentState } from "../../src/install/environments.js";
import { chooseOld } from "../../src/install/prune.js";

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
const names = (found: BootEnvironment[]): string[] => found.map(({ name }) => name);

test("the oldest of zferry's own are chosen, oldest first", () => {
  expect(names(chooseOld(R, 3))).toEqual(["R1"]);
  expect(names(chooseOld([...R].reverse(), 1))).toEqual(["R1", "R2", "R3"]);
  expect(names(chooseOld(R, 4))).toEqual([]);
});

test("those of others do not count", () => {
  const hand = [environment("one", 0, false), environment("two", 9, false)];
  expect(names(chooseOld([...hand, ...R], 3))).toEqual(["R1"]);
});

test("what is leaving already goes on, however many are kept", () => {
  expect(names(chooseOld([...R, environment("R5", 5, true, ["leaving"])], 9))).toEqual(["R5"]);
});
