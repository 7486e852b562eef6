import { describe, expect, test } from "vitest";
import {
  describeFailure,
  judgeBoot,
  readFailure,
  readTrial,
  writeFailure,
} from "../../src/install/trial-rules.js";
import { readPage, rowsOf } from "../formats/page.js";

const rows = rowsOf(readPage("environments.md"));
const orNull = (cell: string): string | null => (cell === "-" ? null : cell);

describe("the properties of a trial", () => {
  const start = rows.findIndex(([, , , allowed]) => allowed === "allowed");
  const table = rows.slice(start + 2, start + 13);

  test.each(table)("trial %j, boots %j, previous %j: allowed %s, counted %s, back to %s", (...row) => {
    const [trial = "", boots = "", previous = "", allowed = "", counted = "", back = ""] = row;
    const read = readTrial({ trial, boots, previous });
    expect([read?.allowed, read?.counted, read?.previous ?? null]).toEqual(
      allowed === "-" ? [undefined, undefined, null] : [Number(allowed), Number(counted), orNull(back)],
    );
  });
});

describe("a boot", () => {
  const table = rows.filter(([, , , , , verdict = ""]) =>
    ["none", "confirm", "wait", "go-back", "stay"].includes(verdict),
  );

  test("has a row for every verdict", () => {
    expect(new Set(table.map((row) => row[5])).size).toBe(5);
  });

  test.each(table)("allowed %s, counted %s, well %s, late %s, before %s: %s", (...row) => {
    const [allowed = "", counted, well, late, before, verdict] = row;
    const trial =
      allowed === "-" ? undefined : { allowed: Number(allowed), counted: Number(counted), previous: "11" };
    const fault = well === "yes" ? undefined : "failed: sshd.service";
    const deadline = 600;
    for (const watched of late === "yes" ? [600, 1000] : [0, 599.9]) {
      expect(judgeBoot({ trial, fault, deadline, watched, hasPrevious: before === "there" })).toBe(verdict);
    }
  });
});

describe("why a trial failed", () => {
  test("is one line of text, of a length that a property has", () => {
    const value = writeFailure({ at: 1_795_747_489, reason: "check:\ttwo\nlines \u001b[1m" });
    expect(value).toBe("1795747489 check: two lines \\u{1b}[1m");
    expect(readFailure(value)).toEqual({ at: 1_795_747_489, reason: "check: two lines \\u{1b}[1m" });
    expect(writeFailure({ at: 1, reason: "x".repeat(10_000) }).length).toBeLessThan(1000);
  });

  test("is shown with its time, where that is known", () => {
    expect(describeFailure({ at: 1_795_747_489, reason: "late" })).toBe("at 2026-11-27 02:44:49 UTC: late");
    expect(describeFailure({ at: 0, reason: "late" })).toBe("late");
  });

  test.each(["", "-", "late", "12345678901234 late", "1"])("%j is no failure", (value) => {
    expect(readFailure(value)).toBeUndefined();
  });
});
