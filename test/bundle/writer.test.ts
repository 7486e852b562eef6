import { describe, expect, test } from "vitest";
import { BLOCK_BYTES, LIMITS } from "../../src/bundle/layout.js";
import { encodeManifest, parseManifest, type Manifest } from "../../src/bundle/manifest.js";
import { encodeHead, padManifest } from "../../src/bundle/writer.js";
import { packExample, split } from "./support.js";

const small = parseManifest(
  split(await packExample()).find(({ name }) => name === "manifest.json")?.content as Uint8Array,
);
/** A manifest of so many chunks of a MiB. */
const manifestOf = (count: number): Manifest => {
  const chunk = { rawBytes: 1 << 20, storedBytes: 500_000, largestObject: "128" };
  const [stream] = small.streams;
  return {
    ...small,
    streams: [
      {
        ...(stream as Manifest["streams"][number]),
        rawBytes: count << 20,
        chunks: Array.from({ length: count }, () => chunk),
      },
    ],
  };
};
const headOf = (manifest: Manifest, sumsBytes: number): Uint8Array =>
  encodeHead(manifest, new Uint8Array(sumsBytes), [
    { keyId: "0123456789ABCDEF", bytes: new Uint8Array(300) },
  ]);

describe("padManifest", () => {
  test.each([64, 65, 100, 1000, 2000])("makes the head of %i MiB a power of two", (count) => {
    const plain = manifestOf(count);
    const sumsBytes = count * 94;
    const head = headOf(plain, sumsBytes);
    const padded = padManifest(plain, head.length);
    expect(padded.padding).toMatch(/^ +$/);
    const { length } = headOf(padded, sumsBytes);
    expect(Math.log2(length) % 1).toBe(0);
    expect(length).toBeGreaterThan(head.length);
    expect(length).toBeLessThan(head.length * 2);
    expect(parseManifest(encodeManifest(padded))).toEqual(padded);
  });

  test("leaves a small bundle's head, and one that is a power of two, as they are", () => {
    expect(padManifest(manifestOf(63), 10 * BLOCK_BYTES)).toEqual(manifestOf(63));
    expect(padManifest(manifestOf(64), 8 * BLOCK_BYTES)).toEqual(manifestOf(64));
  });

  test("takes no more padding than a reader would", () => {
    const head = 2 ** 25 + BLOCK_BYTES;
    expect(padManifest(manifestOf(64), head).padding).toBeUndefined();
    expect(padManifest(manifestOf(64), 2 ** 25 - LIMITS.paddingBytes).padding).toBeUndefined();
    expect(padManifest(manifestOf(64), 2 ** 25 - LIMITS.paddingBytes + BLOCK_BYTES).padding).toHaveLength(
      LIMITS.paddingBytes - BLOCK_BYTES - 13,
    );
  });
});
