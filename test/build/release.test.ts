import { expect, test } from "vitest";
import { flagsFor } from "../../src/build/release.js";
import { begin, end, seal } from "../stream/support.js";
import { FEATURES } from "../../src/stream/records.js";
import { ZferryError } from "../../src/errors.js";
import { input, pack, refusal } from "../bundle/support.js";

// formats/request.md, A bundle for a request

const ALL = { largeBlocks: true, embedded: true, compressed: true, raw: false };

test("a stream for a site leaves out what its pool lacks, and may be left out", () => {
  const enabled = new Set(["embedded_data", "lz4_compress", "zstd_compress"]);
  expect(flagsFor(ALL, undefined)).toEqual(ALL);
  expect(flagsFor(ALL, enabled)).toEqual(ALL);
  expect(flagsFor(ALL, new Set(["lz4_compress"]))).toEqual({ ...ALL, embedded: false, compressed: false });
  expect(flagsFor(ALL, new Set(["embedded_data"]))).toEqual({ ...ALL, compressed: false });
});

test("an encrypted stream stays as it is", () => {
  const raw = { ...ALL, raw: true };
  expect(flagsFor(raw, new Set())).toEqual(raw);
});

test("a stream that a pool cannot take is refused as it begins, and no bundle is made", async () => {
  const versioninfo = 1n | (1n << BigInt(FEATURES.large_blocks + 2));
  const told: unknown[] = [];
  const receivable = (role: string, needed: readonly string[]): void => {
    told.push([role, needed]);
    throw new ZferryError("dataset-unsuitable", "no");
  };
  const stream = seal([begin({ versioninfo }), end()]);
  const { code } = await refusal(() => pack({ streams: [input("usr", stream)], receivable }));
  expect([code, told]).toEqual(["dataset-unsuitable", [["usr", ["large_blocks"]]]]);
});
