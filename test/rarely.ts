import { it } from "vitest";

/** Whether nothing is left out that is rare and takes long. */
export const ALL = process.env["ZFERRY_TEST_ALL"] === "1";

/** A test of what is rare, and takes long: a run of everything leaves it out, and counts it as skipped; ZFERRY_TEST_ALL=1 has it. */
export const rarely = it.runIf(ALL);
