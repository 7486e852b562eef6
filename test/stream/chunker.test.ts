import { createHash } from "node:crypto";

import { describe, expect, test } from "vitest";

import { chunkStream } from "../../src/stream/chunker.js";
import { encodeRecord } from "../../src/stream/records.js";
import {
  begin,
  collect,
  end,
  free,
  freeobjects,
  inPieces,
  seal,
  TOGUID,
  UINT64_MAX,
  write,
} from "./support.js";

const KIB = 1024;
const chunkBytes = 256 * KIB;
const HEADER = 312;

function chunk(
  records: Uint8Array[],
  pieceBytes = 64 * KIB,
  options: { chunkBytes?: number } = { chunkBytes },
) {
  return collect(chunkStream(inPieces(seal(records), pieceBytes), options));
}

const lengthsOf = (chunks: { data: Uint8Array }[]) => chunks.map(({ data }) => data.length);

describe("chunks", () => {
  const records = [
    begin(),
    ...Array.from({ length: 20 }, (_, i) => write(BigInt(i + 1), 60 * KIB)),
    write(21n, 300 * KIB),
    ...Array.from({ length: 900 }, (_, i) => free(BigInt(i + 22))),
    end(),
  ];

  test("in a row are the stream", async () => {
    const { items, result } = await chunk(records);
    const stream = seal(records);
    expect(Buffer.concat(items.map(({ data }) => data)).equals(stream)).toBe(true);
    expect(items.map(({ index }) => index)).toEqual([...items.keys()]);
    let offset = 0;
    for (const item of items) {
      expect(item.offset).toBe(offset);
      offset += item.data.length;
    }
    expect(result).toMatchObject({ bytes: stream.length, records: records.length });
    expect(items[0]?.begin).toMatchObject({ toguid: TOGUID, toname: "tank/BUILD/gentoo/usr@r2" });
    for (const { begin } of items) expect(begin).toBe(result.begin);
  });

  test.each([100, 312, 4096, 10_000_000])("do not depend on pieces, here of %i bytes", async (pieceBytes) => {
    const withHash = ({ items, result }: Awaited<ReturnType<typeof chunk>>) => ({
      result,
      items: items.map((item) => ({ ...item, data: createHash("sha256").update(item.data).digest("hex") })),
    });
    expect(withHash(await chunk(records, pieceBytes))).toEqual(withHash(await chunk(records)));
  });

  test("close before the record that would pass the limit", async () => {
    // BEGIN and the writes fill a chunk to the last byte.
    const fills = [begin(), write(1n, 128 * KIB), write(2n, 128 * KIB - 3 * HEADER)];
    expect(lengthsOf((await chunk([...fills, end()])).items)).toEqual([chunkBytes, HEADER]);
    const fourMore = [begin(), write(1n, 128 * KIB), write(2n, 128 * KIB - 3 * HEADER + 4)];
    expect(lengthsOf((await chunk([...fourMore, end()])).items)).toEqual([
      2 * HEADER + 128 * KIB,
      128 * KIB - 2 * HEADER + 4 + HEADER,
    ]);
  });

  test("hold a larger record alone", async () => {
    const large = write(2n, 300 * KIB);
    const { items } = await chunk([begin(), write(1n, KIB), large, free(2n), end()]);
    expect(lengthsOf(items)).toEqual([HEADER + HEADER + KIB, HEADER + 300 * KIB, 2 * HEADER]);
  });

  test("hold a larger BEGIN alone", async () => {
    const payload = new Uint8Array(300 * KIB);
    const { items } = await chunk([begin({ payloadlen: payload.length }, payload), end()]);
    expect(lengthsOf(items)).toEqual([HEADER + 300 * KIB, HEADER]);
  });

  test("are of 8 MiB if nothing else is asked for", async () => {
    const writes = Array.from({ length: 9 }, (_, i) => write(BigInt(i + 1), 1024 * KIB));
    const { items } = await chunk([begin(), ...writes, end()], 1024 * KIB, {});
    expect(lengthsOf(items)).toEqual([
      HEADER + 7 * (HEADER + 1024 * KIB),
      2 * (HEADER + 1024 * KIB) + HEADER,
    ]);
  });

  test("own their memory", async () => {
    const { items } = await chunk(records);
    expect(new Set(items.map(({ data }) => data.buffer)).size).toBe(items.length);
    for (const { data } of items) expect(data.byteOffset).toBe(0);
  });
});

describe("the largest object of a chunk", () => {
  const toguid = TOGUID;
  const filling = (object: bigint) => write(object, 256 * KIB - HEADER);

  test("is of all its records, and of no other chunk's", async () => {
    const { items } = await chunk([
      begin(),
      free(70n),
      free(30n),
      filling(10n),
      filling(40n),
      free(20n),
      end(),
    ]);
    expect(items.map(({ largestObject }) => largestObject)).toEqual([70n, 10n, 40n, 20n]);
  });

  test("is 0 without objects", async () => {
    const { items } = await chunk([begin(), filling(10n), end()]);
    expect(items.map(({ largestObject }) => largestObject)).toEqual([0n, 10n, 0n]);
  });

  test.each([
    ["FREEOBJECTS", freeobjects(100n, 10n), 109n],
    ["FREEOBJECTS of none", freeobjects(100n, 0n), 100n],
    ["FREEOBJECTS to the end", freeobjects(100n, UINT64_MAX - 100n), UINT64_MAX - 1n],
    ["FREEOBJECTS beyond the end", freeobjects(100n, UINT64_MAX), UINT64_MAX],
    ["OBJECT_RANGE", encodeRecord("OBJECT_RANGE", { firstobj: 64n, numslots: 32n, toguid }), 95n],
    ["OBJECT", encodeRecord("OBJECT", { object: 50n, dnSlots: 4, toguid }), 50n],
    ["SPILL", encodeRecord("SPILL", { object: 50n, toguid }), 50n],
    ["WRITE_EMBEDDED", encodeRecord("WRITE_EMBEDDED", { object: 50n, toguid }), 50n],
    ["REDACT", encodeRecord("REDACT", { object: 50n, toguid }), 50n],
  ])("counts %s", async (_type, record, largest) => {
    const { items } = await chunk([begin(), free(1n), record, free(2n), end()]);
    expect(items.map(({ largestObject }) => largestObject)).toEqual([largest]);
  });
});

describe("chunkStream refuses", () => {
  test("a resuming stream", async () => {
    const versioninfo = 1n | (1n << (2n + 20n));
    await expect(chunk([begin({ versioninfo }), end()])).rejects.toMatchObject({
      code: "stream-unsupported",
      message: "stream of tank/BUILD/gentoo/usr@r2 is a resuming one",
    });
  });

  test("a stream that ends early, and gives no last chunk", async () => {
    const cut = seal([begin(), write(1n, 255 * KIB), free(1n), free(2n), end()]).subarray(0, -HEADER);
    const given: number[] = [];
    const run = async () => {
      for await (const { data } of chunkStream(inPieces(cut, 4096), { chunkBytes })) given.push(data.length);
    };
    await expect(run()).rejects.toMatchObject({ code: "stream-malformed" });
    expect(given).toEqual([3 * HEADER + 255 * KIB]);
  });

  test.each([256 * KIB - 1, 32 * 1024 * KIB + 1, 1e6 + 0.5, Number.NaN])(
    "chunks of %d bytes",
    async (size) => {
      await expect(chunk([begin(), end()], KIB, { chunkBytes: size })).rejects.toMatchObject({
        code: "usage",
        message: `chunk size of ${size} bytes is not 262144 to 33554432`,
      });
    },
  );
});
