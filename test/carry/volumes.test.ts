import { describe, expect, test } from "vitest";
import {
  bundleName,
  FAT_VOLUME_BYTES,
  partsOf,
  requireRoom,
  wantedParts,
  type Part,
} from "../../src/carry/volumes.js";
import type { ZferryError } from "../../src/errors.js";
import { refusal } from "../bundle/support.js";

const GB = 1_000_000_000;

describe("the files of a copy", () => {
  test("are one where it is not larger than a volume, and otherwise volumes of one size but the last", () => {
    const whole = [{ name: "R2.bundle", number: undefined, start: 0, size: 5_000 }];
    expect(partsOf("R2.bundle", 5_000, undefined)).toEqual(whole);
    expect(partsOf("R2.bundle", 5_000, 5_000)).toEqual(whole);
    expect(partsOf("R2.bundle", 8_192, 4_096).map(({ size }) => size)).toEqual([4_096, 4_096]);
    expect(partsOf("R2.bundle", 8_193, 4_096)).toEqual([
      { name: "R2.bundle.001", number: 1, start: 0, size: 4_096 },
      { name: "R2.bundle.002", number: 2, start: 4_096, size: 4_096 },
      { name: "R2.bundle.003", number: 3, start: 8_192, size: 1 },
    ]);
  });

  test("are volumes on FAT from 4 GiB on, each of which FAT takes", () => {
    expect(partsOf("R2.bundle", 2 ** 32, FAT_VOLUME_BYTES).map(({ size }) => size)).toEqual([
      4_293_918_720, 1_048_576,
    ]);
    expect(FAT_VOLUME_BYTES).toBeLessThan(2 ** 32 - 1);
  });

  test("are at most 999", async () => {
    expect(partsOf("R2.bundle", 999 * 4_096, 4_096)).toHaveLength(999);
    const { code, hint } = await refusal(() => partsOf("R2.bundle", 999 * 4_096 + 1, 4_096));
    expect([code, hint]).toEqual(["usage", "give a larger --volume-size, 4097 at least"]);
  });

  test("are called after the bundle, also where it is read from volumes", () => {
    expect(bundleName("/a/R2.bundle.001", true)).toBe("R2.bundle");
    expect(bundleName("/a/R2.bundle.001", false)).toBe("R2.bundle.001");
  });

  test("may be some of the volumes", async () => {
    const parts = partsOf("R2.bundle", 5 * 4_096, 4_096);
    expect(wantedParts(parts, { first: 4, last: 5 }).map(({ number }) => number)).toEqual([4, 5]);
    expect((await refusal(() => wantedParts(parts, { first: 4, last: 6 }))).message).toBe(
      "--volumes: 4-6 is not within 1-5",
    );
    const one = partsOf("R2.bundle", 4_096, 4_096);
    expect((await refusal(() => wantedParts(one, { first: 1, last: 1 }))).code).toBe("usage");
  });
});

describe("a medium that is too small", () => {
  const refused = async (parts: readonly Part[], free: number, volumeBytes?: number): Promise<ZferryError> =>
    refusal(() => requireRoom([parts], { folder: "/stick", free, needs: ({ size }) => size }, volumeBytes));

  test("gets those volumes that fit, and the rest is for another", async () => {
    const { code, message, hint, details } = await refused(
      partsOf("R2.bundle", 6.2 * GB, 1.25 * GB),
      3.9 * GB,
      1.25 * GB,
    );
    expect(code).toBe("no-space");
    expect(message).toBe("/stick has room for 3.6 GiB, and R2.bundle.001 to R2.bundle.005 need 5.8 GiB more");
    expect(hint).toBe(
      "volumes 1-3 fit here: --volume-size 1250000000 --volumes 1-3; " +
        "then the same with another medium for the rest: --volume-size 1250000000 --volumes 4-5",
    );
    expect(details).toEqual({ path: "/stick", needed: 6.2 * GB, free: 3.9 * GB });
    const rest = wantedParts(partsOf("R2.bundle", 6.2 * GB, 1.25 * GB), { first: 4, last: 5 });
    expect((await refused(rest, 2 * GB, 1.25 * GB)).hint).toMatch(/--volumes 4; .* --volumes 5$/);
  });

  test("is told a size of volumes that fits, where there are none or larger ones", async () => {
    expect((await refused(partsOf("R2.bundle", 6.2 * GB, undefined), 3.9 * GB)).hint).toBe(
      "in volumes it fits on several media: --volume-size 3898605568 --volumes 1 here, and the others there",
    );
    expect((await refused(partsOf("R2.bundle", 6.2 * GB, 4 * GB), 3.9 * GB, 4 * GB)).hint).toBe(
      "no volume fits there: give a smaller --volume-size, 3898605568 at most",
    );
    expect((await refused(partsOf("R2.bundle", 6.2 * GB, undefined), 100)).hint).toBe(
      "free space there, or take another medium",
    );
  });

  test("is no fault where what is there counts", () => {
    const [part] = partsOf("R2.bundle", 6 * GB, undefined) as [Part];
    expect(() =>
      requireRoom([[part]], { folder: "/stick", free: GB, needs: () => GB }, undefined),
    ).not.toThrow();
  });
});
