import { describe, expect, test } from "vitest";
import { readIndex, readStream, type RecordedStream } from "../../fixtures/streams/recorded.js";
import { chunkStream } from "../../src/stream/chunker.js";
import { LAYOUT, RecordReader, viewHeader, type RecordType } from "../../src/stream/records.js";
import { parseResumeToken, type ResumePoint } from "../../src/stream/resume-token.js";
import { resumeStream } from "../../src/stream/resume.js";
import { begin, end, everyRecord, free, freeobjects, inPieces, seal, TOGUID, write } from "./support.js";
import { encodeRecord } from "../../src/stream/records.js";

const all = readIndex();
const recorded = all.flatMap((resuming) => {
  const whole = all.find(({ name }) => name === resuming.rest?.of);
  return resuming.rest === undefined || whole === undefined
    ? []
    : [{ name: resuming.name, resuming, whole, token: parseResumeToken(resuming.rest.token) }];
});

async function resumed(source: AsyncIterable<Uint8Array>, point: ResumePoint): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of resumeStream(source, point)) pieces.push(Buffer.from(piece));
  return Buffer.concat(pieces);
}

/** Its records stay valid. */
const newReader = (): RecordReader => new RecordReader((length) => new Uint8Array(length));

interface Seen {
  readonly type: RecordType;
  readonly object: bigint;
  readonly offset: bigint | undefined;
  readonly payload: string;
}

/** The records of a whole stream, its checksums verified. */
function recordsOf(stream: Uint8Array): Seen[] {
  const reader = newReader();
  const records = [...reader.read(stream)].map(({ type, object, bytes }) => ({
    type,
    object,
    offset: type === "WRITE" || type === "FREE" ? LAYOUT[type].offset.read(viewHeader(bytes)) : undefined,
    payload: Buffer.from(bytes.subarray(312)).toString("base64"),
  }));
  reader.finish();
  return records;
}

describe("the rest of a recorded stream", () => {
  test("there are recorded ones of both releases", () => {
    expect(recorded.map(({ whole }: { whole: RecordedStream }) => whole.name).sort()).toEqual([
      "2.1-encrypted-incr",
      "2.1-files-full",
      "2.1-files-incr",
      "2.1-split-full",
      "2.3-encrypted-incr",
      "2.3-files-full",
      "2.3-files-incr",
      "2.3-split-full",
    ]);
  });

  const exact = recorded.filter(({ name }) => !name.includes("split"));
  test.each(exact)("$name is byte for byte what zfs send -t gave", async ({ resuming, whole, token }) => {
    const stream = readStream(whole);
    for (const pieceBytes of [311, 70_000, stream.length]) {
      expect((await resumed(inPieces(stream, pieceBytes), token)).equals(readStream(resuming))).toBe(true);
    }
  });

  test.each(recorded)("$name needs BEGIN's chunk and those from the object on", async ({ whole, token }) => {
    const stream = readStream(whole);
    async function* needed(): AsyncGenerator<Uint8Array> {
      let found = false;
      for await (const { index, data, largestObject } of chunkStream(inPieces(stream, 70_000), {
        chunkBytes: 256 * 1024,
      })) {
        found ||= largestObject >= token.object;
        if (index === 0 || found) yield data;
      }
    }
    const expected = await resumed(inPieces(stream, 70_000), token);
    expect((await resumed(needed(), token)).equals(expected)).toBe(true);
  });

  const split = recorded.filter(({ name }) => name.includes("split"));
  test.each(split)(
    "$name has all but what zfs sends again of a split block",
    async ({ resuming, whole, token }) => {
      const ours = recordsOf(await resumed(inPieces(readStream(whole), 70_000), token));
      const theirs = recordsOf(readStream(resuming));
      const again = theirs.filter(
        ({ type, object, offset }) =>
          type === "WRITE" && object === token.object && (offset ?? 0n) < token.offset,
      );
      expect(again.length).toBeGreaterThan(0);
      expect(ours).toEqual(theirs.filter((record) => !again.includes(record)));
    },
  );
});

describe("the rest of any stream", () => {
  const range = (firstobj: bigint) =>
    encodeRecord("OBJECT_RANGE", { firstobj, numslots: 32n, toguid: TOGUID });
  const object = (number: bigint) =>
    encodeRecord("OBJECT", { object: number, type: 19, bonustype: 44, blksz: 512, toguid: TOGUID });
  const stream = seal([
    begin(),
    freeobjects(1n, 9n),
    range(0n),
    object(10n),
    object(12n),
    freeobjects(13n, 19n),
    write(10n, 512),
    write(10n, 512, { offset: 512n }),
    free(10n, { offset: 1024n }),
    write(12n, 512),
    range(32n),
    object(40n),
    free(12n, { offset: 512n }),
    freeobjects(41n, (1n << 64n) - 42n),
    end(),
  ]);
  const shown = (bytes: Uint8Array): string[] =>
    recordsOf(bytes).map(({ type, object: number, offset }) =>
      [type, number, offset].filter((x) => x !== undefined).join(" "),
    );

  test.each<[bigint, bigint, string[]]>([
    [
      10n,
      512n,
      [
        "OBJECT_RANGE 0",
        "OBJECT 10",
        "OBJECT 12",
        "FREEOBJECTS 13",
        "WRITE 10 512",
        "FREE 10 1024",
        "WRITE 12 0",
        "OBJECT_RANGE 32",
        "OBJECT 40",
        "FREE 12 512",
        "FREEOBJECTS 41",
      ],
    ],
    [
      12n,
      0n,
      [
        "OBJECT_RANGE 0",
        "OBJECT 12",
        "FREEOBJECTS 13",
        "WRITE 12 0",
        "OBJECT_RANGE 32",
        "OBJECT 40",
        "FREE 12 512",
        "FREEOBJECTS 41",
      ],
    ],
    [20n, 0n, ["OBJECT_RANGE 0", "FREEOBJECTS 20", "OBJECT_RANGE 32", "OBJECT 40", "FREEOBJECTS 41"]],
    [100n, 0n, ["FREEOBJECTS 100"]],
  ])("from object %s and offset %s has what lies there and after", async (number, offset, expected) => {
    const rest = await resumed(inPieces(stream, 313), { object: number, offset });
    expect(shown(rest)).toEqual(["BEGIN 0", ...expected, "END 0"]);
  });

  test("frees no object before the point, and as many after it", async () => {
    const rest = await resumed(inPieces(stream, 313), { object: 20n, offset: 0n });
    const reader = newReader();
    const [clipped] = [...reader.read(rest)].flatMap(({ type, bytes }) =>
      type === "FREEOBJECTS" ? [LAYOUT.FREEOBJECTS.numobjs.read(viewHeader(bytes))] : [],
    );
    expect(clipped).toBe(12n);
  });

  test("keeps every record if it starts at the first object", async () => {
    const whole = seal([begin(), ...everyRecord().slice(1)]);
    const rest = await resumed(inPieces(whole, 1000), { object: 0n, offset: 0n });
    expect(recordsOf(rest).slice(1)).toEqual(recordsOf(whole).slice(1));
  });

  test("tells where and that it resumes in BEGIN, before what was there", async () => {
    for (const payload of [undefined, nativeList(), xdrList()]) {
      const whole = seal([begin({ payloadlen: payload?.length ?? 0 }, payload), write(5n, 16), end()]);
      const rest = await resumed(inPieces(whole, 1000), { object: 5n, offset: 77n });
      const [{ begin: read, bytes } = { begin: undefined, bytes: new Uint8Array() }] = [
        ...newReader().read(rest),
      ];
      expect(read?.features).toEqual(["resuming"]);
      const list = Buffer.from(bytes.subarray(312));
      expect(list.indexOf("resume_object")).toBeGreaterThan(0);
      expect(list.indexOf("resume_offset")).toBeGreaterThan(list.indexOf("resume_object"));
      if (payload !== undefined) expect(list.indexOf("other")).toBeGreaterThan(list.indexOf("resume_offset"));
    }
  });

  test("refuses a payload of BEGIN that is no list", async () => {
    const whole = seal([begin({ payloadlen: 24 }, new Uint8Array(24).fill(7)), write(5n, 16), end()]);
    await expect(resumed(inPieces(whole, 1000), { object: 5n, offset: 0n })).rejects.toMatchObject({
      code: "stream-malformed",
    });
  });
});

/** {other: 1}, packed natively. */
const nativeList = (): Uint8Array =>
  Buffer.from(
    "00010000" +
      "00000000" +
      "01000000" +
      "20000000" +
      "0600" +
      "0000" +
      "01000000" +
      "08000000" +
      "6f74686572000000" +
      "0100000000000000" +
      "00000000",
    "hex",
  );

/** {other: 1}, packed in XDR. */
const xdrList = (): Uint8Array =>
  Buffer.from(
    "01010000" +
      "00000000" +
      "00000001" +
      "00000024" +
      "00000020" +
      "00000005" +
      "6f74686572000000" +
      "00000008" +
      "00000001" +
      "0000000000000001" +
      "0000000000000000",
    "hex",
  );
