import { it } from "vitest";
import { ALL as TEST_ALL } from "../rarely.js";
import { defaultZfs, usesLocalZfs } from "./guest.js";

/** Whether nothing is left to the other version of ZFS, nor left out. */
export const ALL = usesLocalZfs() || TEST_ALL;

/**
 * Those rounds of a long test that are this machine's, with their numbers from 0. Of every four each version of ZFS has one, and
 * not the same; with the four values of `first` all are somebody's. ZFERRY_TEST_ALL=1 gives all.
 * @param every 8, 16 or 32 where a round takes very long: then half of these, a quarter, an eighth; 2 where one version alone runs the test
 */
export function shareOf<Round>(
  rounds: readonly Round[],
  first: 0 | 1 | 2 | 3,
  every: 2 | 4 | 8 | 16 | 32 = 4,
): [number, Round][] {
  const mine = (first + (defaultZfs() === "2.3" ? 2 : 0)) % 4;
  return [...rounds.entries()].filter(([index]) => ALL || index % every === mine % every);
}

/** A test of what is rare, and takes long: a run of everything leaves it out, and counts it as skipped; ZFERRY_TEST_ALL=1 has it. */
export const rarely = it.runIf(ALL);
