import zstd from "zstd-napi/binding.js";
import { describe, expect, test } from "vitest";
import {
  decodeFrame,
  decodeFrameOf,
  encodeFrame,
  encodeFrameOf,
  MAX_LEVEL,
  MIN_LEVEL,
} from "../../src/bundle/frame.js";
import { filler } from "../stream/support.js";
import { refusal } from "./support.js";

const raw = Buffer.from("release 2\n".repeat(50));

/** A frame made with other parameters than those of a bundle. */
function frameWith(parameters: Partial<Record<keyof typeof zstd.CParameter, number>>, bytes = raw): Buffer {
  const context = new zstd.CCtx();
  for (const [name, value] of Object.entries(parameters)) {
    context.setParameter(zstd.CParameter[name as keyof typeof zstd.CParameter], value);
  }
  const frame = Buffer.alloc(zstd.compressBound(bytes.length));
  return frame.subarray(0, context.compress2(frame, bytes));
}

/** Eight blocks that repeat one byte, the last one marked so. */
const mebibyte = Buffer.concat(
  Array.from({ length: 8 }, (_, index) => {
    const block = Buffer.alloc(4);
    block.writeUIntLE(((128 << 10) << 3) | 2 | (index === 7 ? 1 : 0), 0, 3);
    return block;
  }),
);

async function* inPieces(bytes: Uint8Array, length: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += length) yield bytes.subarray(at, at + length);
}

async function joined(pieces: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const copies: Buffer[] = [];
  for await (const piece of pieces) copies.push(Buffer.from(piece));
  return Buffer.concat(copies);
}

describe("a frame", () => {
  test.each([0, 1, 255, 256, 65_791, 65_792, 3 << 20])("of %i bytes gives them back", (length) => {
    const bytes = filler(length);
    expect(Buffer.compare(decodeFrame(encodeFrame(bytes, 3), length, "x"), bytes)).toBe(0);
  });

  test.each([MIN_LEVEL, 9, MAX_LEVEL])("of level %i is the same each time", (level) => {
    const bytes = filler(100_000);
    expect(encodeFrame(bytes, level)).toEqual(encodeFrame(bytes, level));
    expect(Buffer.compare(decodeFrame(encodeFrame(bytes, level), bytes.length, "x"), bytes)).toBe(0);
  });

  test("has its content size, no checksum and no dictionary", () => {
    const frame = encodeFrame(raw, 9);
    expect(zstd.getFrameContentSize(frame)).toBe(raw.length);
    expect((frame[4] as number) & 0b1111).toBe(0);
  });

  const good = Buffer.from(encodeFrame(raw, 9));
  const skippable = Buffer.from([0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4]);
  const bomb = Buffer.from(encodeFrame(Buffer.alloc(1 << 20), 9));

  test.each<[string, Buffer, number]>([
    ["nothing", Buffer.alloc(0), 0],
    ["nothing, for some bytes", Buffer.alloc(0), raw.length],
    ["four bytes", good.subarray(0, 4), raw.length],
    ["raw bytes", raw, raw.length],
    ["a gzip file's magic", Buffer.concat([Buffer.from([0x1f, 0x8b, 8, 0]), good.subarray(4)]), raw.length],
    ["a frame cut at its end", good.subarray(0, -1), raw.length],
    ["a second frame", Buffer.concat([good, good]), raw.length],
    ["a second frame, for the sum", Buffer.concat([good, good]), 2 * raw.length],
    ["an empty second frame", Buffer.concat([good, encodeFrame(Buffer.alloc(0), 3)]), raw.length],
    ["bytes after the frame", Buffer.concat([good, Buffer.alloc(1)]), raw.length],
    ["a skippable frame before", Buffer.concat([skippable, good]), raw.length],
    ["a skippable frame after", Buffer.concat([good, skippable]), raw.length],
    ["a skippable frame only", skippable, 0],
    ["a checksum", frameWith({ checksumFlag: 1 }), raw.length],
    ["no content size", frameWith({ contentSizeFlag: 0 }), raw.length],
    ["a dictionary's id", withDictionaryId(good), raw.length],
    ["the reserved bit", withBits(good, 8), raw.length],
    ["less than the manifest says", good, raw.length + 1],
    ["more than the manifest says", good, raw.length - 1],
    ["a bomb", bomb, 100],
    ["a claim of 2^60 bytes", claiming(1n << 60n), raw.length],
    ["a claim of 2^28 bytes in one segment", claiming(1n << 28n), 1 << 28],
    ["a window of 2^28 bytes", withWindow(18 << 3), 1 << 20],
    ["the old format 0.7", Buffer.concat([Buffer.from([0x27]), good.subarray(1)]), raw.length],
  ])("that is %s is refused", async (_what, frame, rawBytes) => {
    for (const decode of [
      () => decodeFrame(frame, rawBytes, "streams/usr/00000000.zst"),
      () => joined(decodeFrameOf(inPieces(frame, 7), rawBytes, "streams/usr/00000000.zst")),
      () => joined(decodeFrameOf(inPieces(frame, 1 << 20), rawBytes, "streams/usr/00000000.zst")),
    ]) {
      const { code, details } = await refusal(decode);
      expect([code, details]).toEqual(["frame-malformed", { member: "streams/usr/00000000.zst" }]);
    }
  });

  test.each([0, 1, 300, 131_072, (3 << 20) + 1])("of %i bytes is the same in pieces", async (length) => {
    const bytes = filler(length);
    const frame = encodeFrame(bytes, 9);
    expect(await joined(encodeFrameOf(inPieces(bytes, 50_000), length, 9))).toEqual(Buffer.from(frame));
    for (const piece of [1000, 1 << 20]) {
      const decoded = await joined(decodeFrameOf(inPieces(frame, piece), length, "x"));
      expect(Buffer.compare(decoded, bytes)).toBe(0);
    }
  });

  test("of much content does not depend on how that is cut, and has the same form", async () => {
    const bytes = Buffer.concat(Array.from({ length: 12 }, () => filler(3 << 20)));
    const frame = await joined(encodeFrameOf(inPieces(bytes, 1 << 20), bytes.length, 3));
    expect(await joined(encodeFrameOf(inPieces(bytes, 999_999), bytes.length, 3))).toEqual(frame);
    expect(Buffer.compare(decodeFrame(frame, bytes.length, "x"), bytes)).toBe(0);
  });

  test("may have a window of 128 MiB", async () => {
    const frame = withWindow(17 << 3);
    expect(decodeFrame(frame, 1 << 20, "x").length).toBe(1 << 20);
    expect((await joined(decodeFrameOf(inPieces(frame, 5), 1 << 20, "x"))).length).toBe(1 << 20);
  });

  test("gives no more than the manifest says, whatever it has", async () => {
    const lying = Buffer.concat([claiming(100n).subarray(0, 13), mebibyte]);
    let given = 0;
    await refusal(async () => {
      for await (const piece of decodeFrameOf(inPieces(lying, 1 << 20), 100, "x")) given += piece.length;
    });
    expect(given).toBeLessThanOrEqual(100);
  });

  test("takes no more memory than the manifest says", async () => {
    const before = process.memoryUsage().arrayBuffers;
    await refusal(() => decodeFrame(claiming(1n << 40n), 1 << 10, "x"));
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(1 << 20);
  });

  test("cut anywhere, or with a bit changed, is refused or gives other bytes, and never crashes", async () => {
    for (let at = 0; at < good.length; at += 1) {
      await refusal(() => decodeFrame(good.subarray(0, at), raw.length, "x"));
      for (let bit = 0; bit < 8; bit += 1) {
        const changed = Buffer.from(good);
        changed[at] = (changed[at] as number) ^ (1 << bit);
        try {
          expect(decodeFrame(changed, raw.length, "x").length).toBe(raw.length);
        } catch (error) {
          expect(error).toMatchObject({ code: "frame-malformed" });
        }
      }
    }
  });
});

function withBits(frame: Buffer, bits: number): Buffer {
  const copy = Buffer.from(frame);
  copy[4] = (copy[4] as number) | bits;
  return copy;
}

/** RFC 8878, 3.1.1.1: flag 1 in the descriptor, and one byte before the content size. */
const withDictionaryId = (frame: Buffer): Buffer =>
  Buffer.concat([withBits(frame, 1).subarray(0, 5), Buffer.from([7]), frame.subarray(5)]);

/** A frame of 1 MiB with this window descriptor. RFC 8878, 3.1.1.1.2 */
function withWindow(descriptor: number): Buffer {
  const header = Buffer.alloc(10);
  header.writeUInt32LE(zstd.MAGICNUMBER);
  header[4] = 0b1000_0000; // four bytes of content size, a window
  header[5] = descriptor;
  header.writeUInt32LE(1 << 20, 6);
  return Buffer.concat([header, mebibyte]);
}

/** A frame whose header says that it holds so many bytes. */
function claiming(size: bigint): Buffer {
  const header = Buffer.alloc(14);
  header.writeUInt32LE(zstd.MAGICNUMBER);
  header[4] = 0b1110_0000; // eight bytes of content size, one segment
  header.writeBigUInt64LE(size, 5);
  header[13] = 1;
  return Buffer.concat([header, Buffer.alloc(2)]);
}
