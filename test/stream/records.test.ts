import { describe, expect, test } from "vitest";

import { ZferryError } from "../../src/errors.js";
import { Fletcher4 } from "../../src/stream/fletcher4.js";
import {
  decodeHeader,
  encodeRecord,
  FEATURES,
  HEADER_BYTES,
  LAYOUT,
  RecordReader,
  type RecordType,
  type StreamRecord,
  verifyStream,
} from "../../src/stream/records.js";
import {
  begin,
  collect,
  end,
  everyRecord,
  filler,
  free,
  freeobjects,
  inPieces,
  seal,
  TOGUID,
  UINT64_MAX,
  write,
} from "./support.js";

function read(stream: Uint8Array, pieceBytes = stream.length) {
  const reader = new RecordReader();
  const records: StreamRecord[] = [];
  for (let at = 0; at < stream.length; at += pieceBytes) {
    for (const record of reader.read(stream.subarray(at, at + pieceBytes))) {
      records.push({ ...record, bytes: record.bytes.slice() });
    }
  }
  return { records, summary: reader.finish() };
}

function refusal(stream: Uint8Array): ZferryError {
  try {
    read(stream);
  } catch (error) {
    if (error instanceof ZferryError) return error;
    throw error;
  }
  throw new Error("the stream was taken");
}

/** A record with one 32-bit word at a header's offset changed. */
function patch(record: Uint8Array, at: number, value: number): Uint8Array {
  new DataView(record.buffer).setUint32(at, value, true);
  return record;
}

describe("a whole stream", () => {
  test("gives its records", () => {
    const stream = seal(everyRecord());
    const { records, summary } = read(stream);
    expect(records.map(({ type, object, lastObject }) => [type, object, lastObject])).toEqual([
      ["BEGIN", 0n, 0n],
      ["OBJECT_RANGE", 32n, 63n],
      ["OBJECT", 34n, 34n],
      ["OBJECT", 35n, 35n],
      ["FREEOBJECTS", 36n, 39n],
      ["WRITE", 34n, 34n],
      ["WRITE", 35n, 35n],
      ["SPILL", 35n, 35n],
      ["SPILL", 36n, 36n],
      ["WRITE_EMBEDDED", 37n, 37n],
      ["REDACT", 38n, 38n],
      ["FREE", 39n, 39n],
      ["END", 0n, 0n],
    ]);
    let offset = 0;
    for (const [index, record] of records.entries()) {
      expect(record).toMatchObject({ index, offset, begin: summary.begin });
      offset += record.bytes.length;
    }
    expect(Buffer.concat(records.map(({ bytes }) => bytes))).toEqual(Buffer.from(stream));
    expect(summary).toMatchObject({ bytes: stream.length, records: records.length });
  });

  test("says of itself what BEGIN has", () => {
    const versioninfo = 1n | (1n << (2n + 16n)) | (1n << (2n + 22n));
    const { summary } = read(seal([begin({ versioninfo, flags: 4 }), end()]));
    expect(summary.begin).toEqual({
      toguid: TOGUID,
      fromguid: 99n,
      toname: "tank/BUILD/gentoo/usr@r2",
      creationTime: 1_750_000_000n,
      objsetType: "filesystem",
      featureFlags: (1n << 16n) | (1n << 22n),
      features: ["embed_data", "compressed"],
      flags: 4,
    });
  });

  test.each([1, 2, 3, 7, 311, 312, 313, 1000])("is the same in pieces of %i bytes", (pieceBytes) => {
    const stream = seal(everyRecord());
    expect(read(stream, pieceBytes)).toEqual(read(stream));
  });

  test("may leave checksums out, but for the one in END's fields", () => {
    const sum = new Fletcher4();
    const records = [begin(), write(1n, 64), end()];
    for (const record of records) {
      if (record === records.at(-1)) record.set(sum.digest(), 8);
      sum.update(record);
    }
    const stream = new Uint8Array(Buffer.concat(records));
    expect(read(stream).summary.records).toBe(3);
    stream[312 + 312] = 0;
    expect(refusal(stream).message).toMatch(/^record 2 \(END\) at byte 688 has stream checksum /);
  });

  test("is of a volume, a full one, and has names with all that zfs allows", () => {
    const toname = "p/A-z_0.:% b/..c@s-n_a.p: %9";
    const { summary } = read(seal([begin({ type: 3, fromguid: 0n, toname }), end()]));
    expect(summary.begin).toMatchObject({ objsetType: "volume", fromguid: 0n, toname });
  });

  test("may have a name of 255 bytes, and blocks of 16 MiB", () => {
    const toname = `p@${"x".repeat(253)}`;
    const stream = seal([begin({ toname }), write(1n, 16 * 1024 * 1024), end()]);
    expect(read(stream).summary).toMatchObject({ begin: { toname }, records: 3 });
  });

  test("may have a range of objects that ends beyond 64 bits", () => {
    const ranges = [freeobjects(5n, UINT64_MAX), freeobjects(5n, 0n), freeobjects(0n, 1n)];
    const { records } = read(seal([begin(), ...ranges, end()]));
    expect(records.slice(1, 4).map(({ lastObject }) => lastObject)).toEqual([UINT64_MAX, 5n, 0n]);
  });
});

describe("refuses", () => {
  const unsupported = "stream-unsupported";
  const malformed = "stream-malformed";
  const flag = (bit: bigint) => 1n | (1n << (2n + bit));
  const beforeBegin = (record: Uint8Array) => [record, begin(), end()];
  const after = (...records: Uint8Array[]) => [begin(), ...records, end()];
  const toguid = TOGUID;

  test.each<[fault: string, code: string, message: string, records: Uint8Array[]]>([
    [
      "another first record",
      malformed,
      "record 0 (FREE) at byte 0 is not BEGIN, so this is no zfs send stream",
      beforeBegin(free(1n)),
    ],
    ["a second BEGIN", malformed, "record 1 (BEGIN) at byte 312 is a second BEGIN record", after(begin())],
    [
      "an unknown type",
      malformed,
      "record 1 (type 11) at byte 312 has a type that is not 0 to 10",
      after(patch(free(1n), 0, 11)),
    ],
    [
      "WRITE_BYREF",
      unsupported,
      "record 1 (WRITE_BYREF) at byte 312 is of a deduplicated stream",
      after(patch(free(1n), 0, 6)),
    ],
    [
      "another magic",
      malformed,
      "is not of a zfs send stream: magic 2f5bacbad, not 2f5bacbac",
      [begin({ magic: 0x2f5bacbadn }), end()],
    ],
    [
      "a big-endian stream",
      unsupported,
      "is of a big-endian host",
      [begin({ magic: 0xaccbbaf502000000n }), end()],
    ],
    ["a compound stream", unsupported, "is of a compound stream", [begin({ versioninfo: 2n }), end()]],
    [
      "no header type",
      malformed,
      "has header type 0, not 1 for a single stream",
      [begin({ versioninfo: 0n }), end()],
    ],
    [
      "header type 3",
      malformed,
      "has header type 3, not 1 for a single stream",
      [begin({ versioninfo: 3n }), end()],
    ],
    ["feature dedup", unsupported, "has feature flag 0 (dedup)", [begin({ versioninfo: flag(0n) }), end()]],
    [
      "feature dedupprops",
      unsupported,
      "has feature flag 1 (dedupprops)",
      [begin({ versioninfo: flag(1n) }), end()],
    ],
    [
      "an unknown feature",
      unsupported,
      "has feature flag 18, which is not known to zferry",
      [begin({ versioninfo: flag(18n) }), end()],
    ],
    [
      "a reserved bit",
      unsupported,
      "has feature flag 61, which is not known to zferry",
      [begin({ versioninfo: flag(61n) }), end()],
    ],
    [
      "another objset type",
      unsupported,
      "is of objset type 4, not 2 (filesystem) or 3 (volume)",
      [begin({ type: 4 }), end()],
    ],
    [
      "toguid 0",
      malformed,
      "record 0 (BEGIN) at byte 0 has toguid 0",
      [begin({ toguid: 0n }), end({ toguid: 0n })],
    ],
    [
      "another toguid",
      malformed,
      `record 1 (FREE) at byte 312 has toguid 7, BEGIN has ${TOGUID}`,
      after(free(1n, { toguid: 7n })),
    ],
    [
      "another toguid in END",
      malformed,
      `record 1 (END) at byte 312 has toguid 7, BEGIN has ${TOGUID}`,
      [begin(), end({ toguid: 7n })],
    ],
    ["object 0", malformed, "has object 0, which is not 1 to 281474976710655", after(free(0n))],
    ["object 2^48", malformed, "has object 281474976710656, which is not 1 to", after(write(1n << 48n, 8))],
    [
      "a write past 2^64",
      malformed,
      "has offset 18446744073709551608 and length 8, which pass 2^64-1",
      after(write(1n, 8, { offset: UINT64_MAX - 7n })),
    ],
    [
      "an embedded write past 2^64",
      malformed,
      "which pass 2^64-1",
      after(encodeRecord("WRITE_EMBEDDED", { object: 1n, offset: 1n, length: UINT64_MAX, toguid })),
    ],
    [
      "a free past 2^64",
      malformed,
      "which pass 2^64-1",
      after(free(1n, { offset: 2n, length: UINT64_MAX - 1n })),
    ],
    [
      "a BEGIN payload over 1 MiB",
      malformed,
      "has a payload of 1048580 bytes, the limit is 1048576",
      [begin({ payloadlen: 1048580 }), end()],
    ],
    [
      "an OBJECT payload over 16 KiB",
      malformed,
      "has a payload of 16392 bytes, the limit is 16384",
      after(encodeRecord("OBJECT", { object: 1n, bonuslen: 16385, toguid })),
    ],
    [
      "a raw OBJECT payload over 16 KiB",
      malformed,
      "has a payload of 4294967292 bytes, the limit is 16384",
      after(encodeRecord("OBJECT", { object: 1n, rawBonuslen: 0xfffffffc, toguid })),
    ],
    [
      "a WRITE payload over 16 MiB",
      malformed,
      "has a payload of 16777220 bytes, the limit is 16777216",
      after(write(1n, 0, { logicalSize: 16777220n })),
    ],
    [
      "a compressed WRITE over 16 MiB",
      malformed,
      "has a payload of 16777220 bytes, the limit is 16777216",
      after(write(1n, 0, { compressiontype: 15, compressedSize: 16777220n })),
    ],
    [
      "a SPILL payload over 16 MiB",
      malformed,
      "has a payload of 18446744073709551612 bytes, the limit is 16777216",
      after(encodeRecord("SPILL", { object: 1n, length: UINT64_MAX - 3n, toguid })),
    ],
    [
      "an embedded payload over 112 bytes",
      malformed,
      "has a payload of 120 bytes, the limit is 112",
      after(encodeRecord("WRITE_EMBEDDED", { object: 1n, psize: 113, toguid })),
    ],
    [
      "half a word",
      malformed,
      "has a payload of 6 bytes, which are not whole 32-bit words",
      after(write(1n, 0, { logicalSize: 6n })),
    ],
  ])("%s", (_fault, code, message, records) => {
    const error = refusal(seal(records));
    expect(error.message).toContain(message);
    expect(error.code).toBe(code);
  });

  test.each([
    "",
    "tank",
    "tank@",
    "@r2",
    "/tank@r2",
    "tank//usr@r2",
    "tank/usr/@r2",
    "tank/./usr@r2",
    "tank/..@r2",
    "tank@r2@r3",
    "tank@r2/usr",
    "tank#r2",
    "1tank@r2",
    "-tank@r2",
    "tank@r2\n",
    "tank/ü@r2",
    "tank/$(id)@r2",
    `p@${"x".repeat(254)}`,
  ])("the snapshot name %j", (toname) => {
    const error = refusal(seal([begin({ toname }), end()]));
    expect(error.message).toBe(
      `record 0 (BEGIN) at byte 0 has toname ${JSON.stringify(toname)}, which is no snapshot's name`,
    );
  });

  test("a wrong checksum, with both values", () => {
    const stream = seal([begin(), free(1n), end()]);
    const right = stream.slice(312 + 280, 312 + 312);
    stream[312 + 280] = (stream[312 + 280] ?? 0) ^ 1;
    const wrong = stream.slice(312 + 280, 312 + 312);
    const [had, have] = [wrong, right].map((sum) => Buffer.from(sum).toString("hex"));
    const error = refusal(stream);
    expect(error.message).toBe(
      `record 1 (FREE) at byte 312 has checksum ${had}, the bytes before it give ${have}`,
    );
    expect(error).toMatchObject({ code: malformed, details: { record: 1, type: "FREE", offset: 312 } });
  });

  test("bytes after END", () => {
    const stream = Uint8Array.from([...seal([begin(), end()]), 0]);
    expect(refusal(stream).message).toBe("stream goes on after its END record, at byte 624");
  });

  test("a stream that ends early, at every byte", () => {
    const stream = seal(everyRecord());
    const { records } = read(stream);
    for (let length = 0; length < stream.length; length += 1) {
      const error = refusal(stream.subarray(0, length));
      const record = records.findLastIndex(({ offset }) => offset <= length);
      const where = records[record]?.offset === length ? "without an END record" : `inside record ${record}`;
      expect(error.message).toBe(`stream ends at byte ${length}, ${where}`);
      expect(error).toMatchObject({ code: malformed, details: { offset: length } });
    }
  });

  // Every byte is covered: END's fields sum up all before it, and END's own checksum covers those.
  test("a flipped bit, in every byte", () => {
    const stream = seal(everyRecord());
    for (let at = 0; at < stream.length; at += 1) {
      const flipped = stream.slice();
      flipped[at] = (flipped[at] ?? 0) ^ (1 << (at % 8));
      expect(refusal(flipped).code, `byte ${at}`).toMatch(/^stream-/);
    }
  });
});

describe("headers", () => {
  test.each(Object.keys(LAYOUT) as RecordType[])("of %s are decoded as they were encoded", (type) => {
    const header = filler(HEADER_BYTES);
    header.set(encodeRecord(type, {}).subarray(0, 4));
    const fields = Object.values(LAYOUT[type]).map(({ at, bytes }) => [at, at + bytes] as const);
    fields.push([0, 4]);
    const gaps = header.map((byte, i) => (fields.some(([from, to]) => i >= from && i < to) ? byte : 0));
    if (type === "BEGIN") gaps.set(encodeRecord("BEGIN", { toname: "pool/set@snap" }).subarray(56), 56);
    expect(encodeRecord(type, decodeHeader(type, gaps))).toEqual(gaps);
  });

  test("have no two fields in one place", () => {
    for (const layout of Object.values(LAYOUT)) {
      let next = 4;
      for (const { at, bytes } of Object.values<{ at: number; bytes: number }>(layout).sort(
        (one, other) => one.at - other.at,
      )) {
        expect(at).toBeGreaterThanOrEqual(next);
        next = at + bytes;
      }
      expect(next).toBe(HEADER_BYTES);
    }
  });
});

test("the reader asks for memory of each record's length", () => {
  const lengths: number[] = [];
  const reader = new RecordReader((length) => {
    lengths.push(length);
    return new Uint8Array(length);
  });
  const records = [begin(), write(1n, 128), free(1n), end()];
  const given = [...reader.read(seal(records))];
  expect(lengths).toEqual([312, 440, 312, 312]);
  expect(given.map(({ bytes }) => bytes)).toEqual(records);
});

describe("verifyStream", () => {
  test("passes a stream through", async () => {
    const stream = seal(everyRecord());
    const { items, result } = await collect(verifyStream(inPieces(stream, 100)));
    expect(Buffer.concat(items)).toEqual(Buffer.from(stream));
    expect(result).toEqual(read(stream).summary);
  });

  test("throws in the place of the piece with a fault", async () => {
    const stream = seal([begin(), free(1n), free(2n, { toguid: 7n }), end()]);
    const passed: number[] = [];
    const run = async () => {
      for await (const piece of verifyStream(inPieces(stream, 312))) passed.push(piece.length);
    };
    await expect(run()).rejects.toMatchObject({ code: "stream-malformed" });
    expect(passed).toEqual([312, 312]);
  });

  test("throws at an early end", async () => {
    const stream = seal([begin(), end()]).subarray(0, 312);
    await expect(collect(verifyStream(inPieces(stream, 312)))).rejects.toThrow("without an END record");
  });
});

test("every feature has a bit of its own", () => {
  const bits = Object.values(FEATURES);
  expect(new Set(bits).size).toBe(bits.length);
});
