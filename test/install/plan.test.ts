import { expect, test } from "vitest";
import type { ManifestStream } from "../../src/bundle/manifest.js";
import { estimateTime, type StreamPlan } from "../../src/install/plan.js";
import type { Installation, SiteState } from "../../src/install/state.js";

const MIB = 1 << 20;

const stream = (needed: number | null): StreamPlan => ({
  stream: {} as ManifestStream,
  dataset: "rpool/usr",
  base: undefined,
  received: needed === null,
  taken: 0,
  space: needed === null ? null : { needed, available: needed },
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
