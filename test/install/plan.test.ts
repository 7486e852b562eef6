import { describe, expect, test } from "vitest";
import type { ManifestStream } from "../../src/bundle/manifest.js";
import { estimateTime, requireSpaceForAll, type StreamPlan } from "../../src/install/plan.js";
import type { Installation, SiteState } from "../../src/install/state.js";

const MIB = 1 << 20;

const stream = (needed: number | null): StreamPlan => ({
  stream: {} as ManifestStream,
  dataset: "rpool/usr",
  base: undefined,
  received: needed === null,
  taken: 0,
  space: needed === null ? null : { needed, dataset: "rpool/usr", available: needed },
  warnings: [],
});

/** A state with installations of so many bytes in so many seconds. */
const state = (
  ...installations: readonly (readonly [bytes: number | undefined, seconds: number])[]
): SiteState => ({
  version: 3,
  product: "demo",
  highestSequence: 1,
  installations: installations.map(([rawBytes, seconds]): Installation => ({
    release: { name: "R1", sequence: 1, identity: "a".repeat(64) },
    created: 0,
    startedAt: 1000,
    finishedAt: 1000 + seconds,
    signers: [],
    streams: [
      { role: "usr", dataset: "rpool/usr", base: null, target: { snapshot: "R1", guid: "1" }, rawBytes },
    ],
    commit: null,
  })),
});

test.each([
  ["nothing was installed", undefined, 50, true],
  ["an older zferry installed", state([undefined, 10]), 50, true],
  ["little was installed, which tells nothing", state([MIB, 10]), 50, true],
  ["one was installed", state([100 * MIB, 10]), 10, false],
  ["one was interrupted for long", state([100 * MIB, 10], [100 * MIB, 9999]), 10, false],
  ["one was done within its second", state([100 * MIB, 0]), 100, false],
])("the time is estimated where %s", (_, of, rate, assumed) => {
  const streams = [stream(1000 * MIB), stream(null)];
  expect(estimateTime(streams, of)).toEqual({
    seconds: Math.ceil(1000 / rate),
    bytesPerSecond: rate * MIB,
    assumed,
  });
});

describe("the space for all streams", () => {
  const GIB = 1 << 30;
  const need = (role: string, dataset: string, needed: number, available: number) => ({
    stream: { role } as ManifestStream,
    space: { needed: needed * GIB, dataset, available: available * GIB },
  });
  /** What is refused, where the datasets have so many GiB left. */
  const refused = (left: Record<string, number>, ...needs: ReturnType<typeof need>[]): Promise<string> =>
    requireSpaceForAll(needs, (dataset) => Promise.resolve((left[dataset] ?? NaN) * GIB)).then(
      () => "",
      (error: unknown) => (error as Error).message,
    );
  const all = { rpool: 6, "rpool/USR": 6, "rpool/OPT": 6 };

  test("is that of their pool, which they share", async () => {
    const needs = [need("usr", "rpool/USR", 5, 6), need("opt", "rpool/OPT", 5, 6)] as const;
    expect(await refused(all, ...needs)).toBe(
      "streams opt, usr may take 10.0 GiB together, rpool has 6.0 GiB left",
    );
    expect(await refused({ ...all, rpool: 10 }, ...needs)).toBe("");
  });

  test("is that of the quota that they share, and of no other", async () => {
    const needs = [need("usr", "rpool/USR", 2, 3), need("opt", "rpool/USR", 2, 3)] as const;
    expect(await refused({ rpool: 90, "rpool/USR": 3 }, ...needs)).toBe(
      "streams opt, usr may take 4.0 GiB together, rpool/USR has 3.0 GiB left",
    );
    const apart = [need("usr", "rpool/USR", 2, 3), need("opt", "rpool/OPT", 2, 3)] as const;
    expect(await refused({ ...all, rpool: 90 }, ...apart)).toBe("");
    expect(await refused({ rpool: 3, tank: 3 }, need("usr", "rpool", 2, 3), need("opt", "tank", 2, 3))).toBe(
      "",
    );
  });

  test("is more where one has a reservation", async () => {
    const needs = [need("usr", "rpool/USR", 5, 9), need("opt", "rpool/OPT", 2, 3)] as const;
    expect(await refused({ ...all, rpool: 3 }, ...needs)).toBe("");
  });
});
