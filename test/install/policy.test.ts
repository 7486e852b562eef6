import { describe, expect, test } from "vitest";
import type { Manifest } from "../../src/bundle/manifest.js";
import { ZferryError } from "../../src/errors.js";
import { checkRelease, type Exceptions } from "../../src/install/policy.js";
import type { Installation, SiteState } from "../../src/install/state.js";

// formats/state.md, What a site takes

const DAY = 86_400;
const CLOCK = 1_800_000_000;
const SAME = "a".repeat(64);
const OTHER = "b".repeat(64);

const manifest = (changed: Partial<Manifest> = {}): Manifest => ({
  format: 1,
  product: "demo",
  release: { name: "R5", sequence: 5 },
  created: CLOCK - DAY,
  streams: [],
  requires: { poolFeatures: [], freeBytes: 0 },
  ...changed,
});

const installation = (identity: string, created: number): Installation => ({
  release: { name: "R4", sequence: 4, identity },
  created,
  startedAt: created,
  finishedAt: created,
  signers: [],
  streams: [],
  commit: null,
});

const state = (changed: Partial<SiteState> = {}): SiteState => ({
  version: 3,
  product: "demo",
  highestSequence: 4,
  installations: [installation(OTHER, CLOCK - 9 * DAY)],
  ...changed,
});

function verdict(
  of: Manifest,
  had: SiteState | undefined,
  exceptions: Exceptions = {},
  clock = CLOCK,
): string {
  try {
    checkRelease(of, SAME, "demo", had, new Date(clock * 1000), exceptions);
    return "taken";
  } catch (error) {
    if (error instanceof ZferryError) return error.code;
    throw error;
  }
}

describe("a release is", () => {
  test("taken by a new site, and by one that had an older one", () => {
    expect(verdict(manifest(), undefined)).toBe("taken");
    expect(verdict(manifest(), state())).toBe("taken");
  });

  test("refused for another product than the configured one or the one of the state", () => {
    expect(verdict(manifest({ product: "other" }), undefined)).toBe("product-mismatch");
    expect(verdict(manifest(), state({ product: "other" }))).toBe("product-mismatch");
  });

  test("refused when its number is not above every number before, unless that very number is allowed", () => {
    for (const highestSequence of [5, 6]) {
      expect(verdict(manifest(), state({ highestSequence }))).toBe("sequence-mismatch");
      expect(verdict(manifest(), state({ highestSequence }), { allowDowngrade: 4 })).toBe(
        "sequence-mismatch",
      );
      expect(verdict(manifest(), state({ highestSequence }), { allowDowngrade: 5 })).toBe("taken");
    }
  });

  test("taken again when it is the same that was installed before", () => {
    const installations = [installation(SAME, CLOCK - DAY), installation(OTHER, CLOCK - DAY)];
    expect(verdict(manifest(), state({ highestSequence: 9, installations }))).toBe("taken");
  });

  test("refused after its expiry, unless that very number is allowed", () => {
    const expired = manifest({ expires: CLOCK - 1 });
    expect(verdict(manifest({ expires: CLOCK }), state())).toBe("taken");
    expect(verdict(expired, state())).toBe("bundle-expired");
    expect(verdict(expired, state(), { allowExpired: 4 })).toBe("bundle-expired");
    expect(verdict(expired, state(), { allowExpired: 5 })).toBe("taken");
    expect(verdict(expired, state(), { allowDowngrade: 5, acceptTime: true })).toBe("bundle-expired");
  });

  test("expired by the time of a release that is installed, though the clock was set back", () => {
    const expired = manifest({ expires: CLOCK - 1, created: CLOCK - 50 * DAY });
    const installations = [installation(OTHER, CLOCK), installation(OTHER, CLOCK - 99 * DAY)];
    expect(verdict(expired, state({ installations }), {}, CLOCK - 40 * DAY)).toBe("bundle-expired");
  });

  test("refused when it is from a time more than a day after the clock, unless that is accepted", () => {
    expect(verdict(manifest({ created: CLOCK + DAY }), state())).toBe("taken");
    expect(verdict(manifest({ created: CLOCK + DAY + 1 }), state())).toBe("time-ahead");
    expect(verdict(manifest({ created: CLOCK + DAY + 1 }), state(), { acceptTime: true })).toBe("taken");
    // Not the site's time, which one wrong release may have moved, but the clock counts.
    const installations = [installation(OTHER, CLOCK + 9 * DAY)];
    expect(verdict(manifest({ created: CLOCK + 2 * DAY }), state({ installations }))).toBe("time-ahead");
  });
});

test("what the clock does not allow is said with both times", () => {
  expect(() =>
    checkRelease(manifest({ expires: CLOCK - 1 }), SAME, "demo", undefined, new Date(CLOCK * 1000)),
  ).toThrow("release R5 expired at 2027-01-15 07:59:59 UTC, it is 2027-01-15 08:00:00 UTC here");
  expect(() =>
    checkRelease(manifest({ created: CLOCK + 2 * DAY }), SAME, "demo", undefined, new Date(CLOCK * 1000)),
  ).toThrow(
    "release R5 was made at 2027-01-17 08:00:00 UTC, more than a day after this machine's 2027-01-15 08:00:00 UTC",
  );
});
