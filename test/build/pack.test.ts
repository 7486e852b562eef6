import { describe, expect, test } from "vitest";
import { packBundle } from "../../src/build/pack.js";
import { VerifiedBundle } from "../../src/bundle/reader.js";
import { parseManifest, type Manifest } from "../../src/bundle/manifest.js";
import { FEATURES } from "../../src/stream/records.js";
import { generateKeyPair } from "../../src/trust/minisign.js";
import { begin, end, inPieces, seal, write } from "../stream/support.js";
import {
  CREATED,
  input,
  longStream,
  pack,
  packAll,
  packOptions,
  refusal,
  rootInput,
  smallStream,
  sourceOf,
  split,
  TRUST,
} from "../bundle/support.js";

const manifestOf = (bundle: Uint8Array): Manifest => {
  const member = split(bundle).find(({ name }) => name === "manifest.json");
  return parseManifest(member?.content as Uint8Array);
};

const packStream = (stream: Uint8Array) => pack({ streams: [input("usr", stream)] });
const versionOf = (...features: (keyof typeof FEATURES)[]): bigint =>
  features.reduce((version, feature) => version | (1n << BigInt(FEATURES[feature] + 2)), 1n);

describe("packing", () => {
  test("gives the same bytes each time", async () => {
    expect((await packAll()).equals(await packAll())).toBe(true);
  });

  test("does not depend on the pieces that the stream comes in, nor on the order of the streams", async () => {
    const streams = [input("usr", longStream()), input("data", smallStream())];
    const whole = await pack({ streams });
    const pieces = await pack({
      streams: [
        { role: "data", source: inPieces(smallStream(), 7) },
        { role: "usr", source: inPieces(longStream(), 4_093) },
      ],
    });
    expect(pieces.equals(whole)).toBe(true);
  });

  test("by another key changes the signature only", async () => {
    const other = split(await pack({ root: rootInput(), key: generateKeyPair().secretKey }));
    const [sums, , ...rest] = split(await pack({ root: rootInput() }));
    expect([other[0], ...other.slice(2)]).toEqual([sums, ...rest]);
  });

  test("puts the members into their order", async () => {
    expect(split(await packAll()).map(({ name }) => name)).toEqual([
      "SHA256SUMS",
      "signatures/0E07B77755AB6E15.minisig",
      "manifest.json",
      "root/patch.zst",
      "root/objects.pack.zst",
      "root/metadata.json.zst",
      "streams/data/00000000.zst",
      "streams/usr/00000000.zst",
    ]);
  });

  test("takes the manifest from BEGIN", async () => {
    const stream = seal([
      begin({ versioninfo: versionOf("large_blocks", "embed_data", "lz4"), fromguid: 0n }),
      write(7n, 8),
      end(),
    ]);
    const manifest = manifestOf(await pack({ streams: [input("usr", stream)], expiresDays: 2, notes: "n" }));
    expect(manifest).toMatchObject({
      created: CREATED,
      expires: CREATED + 2 * 86_400,
      notes: "n",
      requires: {
        poolFeatures: ["embedded_data", "large_blocks", "lz4_compress"],
        freeBytes: stream.length,
      },
      streams: [
        {
          dataset: "tank/BUILD/gentoo/usr",
          target: { snapshot: "r2", guid: "1234605616436508552" },
          features: ["embed_data", "large_blocks", "lz4"],
          rawBytes: stream.length,
        },
      ],
    });
    expect(manifest.streams[0]).not.toHaveProperty("base");
  });

  test("takes the base's name from whoever knows it", async () => {
    const target = { snapshot: "R2", guid: "1234605616436508552" };
    const base = { snapshot: "R1", guid: "99" };
    const bundle = await pack({ streams: [{ ...input("usr", smallStream()), expected: { base, target } }] });
    expect(manifestOf(bundle).streams[0]?.base).toEqual(base);
  });

  test.each([
    ["another base", { snapshot: "R1", guid: "98" }, "1234605616436508552"],
    ["no base", undefined, "1234605616436508552"],
    ["another target", { snapshot: "R1", guid: "99" }, "7"],
  ])("refuses a stream where %s was expected", async (_what, base, guid) => {
    const expected = { base, target: { snapshot: "R2", guid } };
    const { code } = await refusal(() => pack({ streams: [{ ...input("usr", smallStream()), expected }] }));
    expect(code).toBe("base-mismatch");
  });

  test.each<[string, string, Uint8Array]>([
    ["is cut off", "stream-malformed", smallStream().subarray(0, -1)],
    ["is empty", "stream-malformed", new Uint8Array()],
    ["goes on after its end", "stream-malformed", Buffer.concat([smallStream(), smallStream()])],
    [
      "has a byte changed",
      "stream-malformed",
      smallStream().map((byte, i) => (i === 1_000 ? byte ^ 1 : byte)),
    ],
    ["is a resuming one", "stream-unsupported", seal([begin({ versioninfo: versionOf("resuming") }), end()])],
    ["was made in the year 2300", "stream-unsupported", seal([begin({ creationTime: 1n << 33n }), end()])],
    [
      "has a snapshot's name that no zfs takes",
      "manifest-malformed",
      seal([begin({ toname: "tank@%x" }), end()]),
    ],
  ])("refuses a stream that %s", async (_what, code, stream) => {
    expect((await refusal(() => packStream(stream))).code).toBe(code);
  });

  test("hands on what its source fails with", async () => {
    const failing = async function* (): AsyncGenerator<Uint8Array> {
      throw new Error("the sender died");
    };
    await expect(pack({ streams: [{ role: "usr", source: failing() }] })).rejects.toThrow("the sender died");
  });

  test("stops when it is interrupted, and finishes no file", async () => {
    const interrupt = new AbortController();
    const appended: number[] = [];
    const file = {
      reserve: () => undefined,
      append: async (bytes: Uint8Array) => {
        appended.push(bytes.length);
        interrupt.abort();
      },
      finish: () => Promise.reject(new Error("finished")),
      discard: async () => undefined,
    };
    const options = packOptions({ streams: [input("usr", longStream())] });
    const progress = { update: () => undefined, end: () => undefined };
    const { code } = await refusal(() => packBundle(options, file, progress, interrupt.signal));
    // Header, content and padding of the first member.
    expect([code, appended.length]).toEqual(["interrupted", 3]);
  });

  test("makes what is verified", async () => {
    for (const bundle of [await pack(), await packAll(), await packStream(longStream())]) {
      await (await VerifiedBundle.verify(sourceOf(bundle), TRUST)).checkContents();
    }
  });
});
