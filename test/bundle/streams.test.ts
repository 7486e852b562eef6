import { describe, expect, test } from "vitest";
import { encodeFrame } from "../../src/bundle/frame.js";
import { chunkName, MANIFEST_NAME } from "../../src/bundle/layout.js";
import {
  encodeManifest,
  parseManifest,
  type Manifest,
  type ManifestStream,
} from "../../src/bundle/manifest.js";
import { VerifiedBundle } from "../../src/bundle/reader.js";
import { checkStreams } from "../../src/bundle/streams.js";
import { chunkStream } from "../../src/stream/chunker.js";
import { FEATURES } from "../../src/stream/records.js";
import { begin, collect, end, inPieces, seal, TOGUID, write } from "../stream/support.js";
import {
  CREATED,
  flipped,
  input,
  join,
  longStream,
  pack,
  packAll,
  refusal,
  replace,
  resign,
  sourceOf,
  split,
  TRUST,
  type Member,
} from "./support.js";

// Bundles that are signed correctly, with hashes that are right, and with one fault each in what was signed.

const members = split(await pack({ streams: [input("usr", longStream())] }));
const chunkMembers = members.filter(({ name }) => name.startsWith("streams/"));
const { items } = await collect(chunkStream(inPieces(longStream(), 1 << 16), { chunkBytes: 256 << 10 }));
const chunks = items.map(({ data }) => data);
const RECORD = 312 + (100 << 10);

const withManifest = (
  change: (manifest: Manifest) => Manifest,
  from: readonly Member[] = members,
): Member[] => replace(from, MANIFEST_NAME, (content) => encodeManifest(change(parseManifest(content))));

const withStream = (change: Partial<ManifestStream>): Member[] =>
  withManifest((manifest) => ({
    ...manifest,
    streams: manifest.streams.map((stream) => ({ ...stream, ...change })),
  }));

const streamOf = (from: readonly Member[]): ManifestStream =>
  parseManifest(from.find(({ name }) => name === MANIFEST_NAME)?.content as Uint8Array)
    .streams[0] as ManifestStream;

/** A bundle with these chunks, and a manifest that says of them what it said of the true ones. */
function withChunks(raw: readonly Uint8Array[]): Member[] {
  const frames = raw.map((data, index) => ({
    name: chunkName("usr", index),
    content: encodeFrame(data, 1),
  }));
  const said = streamOf(members).chunks;
  const changed = withStream({
    rawBytes: raw.reduce((sum, { length }) => sum + length, 0),
    chunks: frames.map(({ content }, index) => ({
      rawBytes: raw[index]?.length ?? 0,
      storedBytes: content.length,
      largestObject: (said[index] ?? said.at(-1))?.largestObject ?? "0",
    })),
  });
  return [...changed.filter((member) => !chunkMembers.some(({ name }) => name === member.name)), ...frames];
}

const withChunk = (index: number, change: (chunk: Uint8Array) => Uint8Array): Member[] =>
  withChunks(chunks.map((chunk, at) => (at === index ? change(chunk) : chunk)));

async function check(from: readonly Member[], created = CREATED): Promise<[string, number, number][]> {
  const bundle = await VerifiedBundle.verify(sourceOf(join(resign(from), created)), TRUST);
  await bundle.checkContents();
  const told: [string, number, number][] = [];
  await checkStreams(bundle, (...progress) => told.push(progress));
  return told;
}

const fault = async (from: readonly Member[], created = CREATED): Promise<object> => {
  const { code, message, details } = await refusal(() => check(from, created));
  return { code, message, details };
};

describe("streams that are what the manifest says", () => {
  test("are checked chunk by chunk", async () => {
    const told = await check(members);
    expect(told.map(([role, , total]) => [role, total])).toEqual(
      chunks.map(() => ["usr", longStream().length]),
    );
    expect(told.at(-1)?.[1]).toBe(longStream().length);
    expect(await check(withChunks(chunks))).toEqual(told);
  });

  test("are checked one after the other", async () => {
    const told = await check(split(await packAll()));
    expect(told.map(([role, done, total]) => [role, done === total])).toEqual([
      ["data", true],
      ["usr", true],
    ]);
  });

  test("may be full, and may have any features", async () => {
    const versioninfo = 1n | (((1n << 23n) | (1n << 25n)) << 2n);
    const stream = seal([begin({ fromguid: 0n, versioninfo }), write(7n, 64), end()]);
    expect(await check(split(await pack({ streams: [input("usr", stream)] })))).toHaveLength(1);
  });

  test("may be cut anywhere between records", async () => {
    const whole = Buffer.concat(chunks);
    const cut = chunks[0]?.length ?? 0;
    const apart = [whole.subarray(0, 312), whole.subarray(312, cut), ...chunks.slice(1)];
    const largest = ["0", ...streamOf(members).chunks.map(({ largestObject }) => largestObject)];
    const made = withChunks(apart);
    const told = streamOf(made).chunks.map((chunk, index) => ({
      ...chunk,
      largestObject: largest[index] as string,
    }));
    const right = withManifest(
      (manifest) => ({ ...manifest, streams: [{ ...streamOf(made), chunks: told }] }),
      made,
    );
    expect(await check(right)).toHaveLength(apart.length);
  });
});

describe("a stream with one fault is refused", () => {
  const inSecond = chunks[0]?.length ?? 0;

  test("a byte that is another one", async () => {
    expect(await fault(withChunk(1, (chunk) => flipped(chunk, 1_000)))).toMatchObject({
      code: "stream-malformed",
      message: expect.stringMatching(
        `^streams/usr/00000001.zst: record 4 \\(WRITE\\) at byte ${inSecond + RECORD} has checksum `,
      ) as string,
      details: { role: "usr", member: "streams/usr/00000001.zst", offset: inSecond + RECORD },
    });
  });

  test("a byte that is another one at the end of a chunk, which the next one tells", async () => {
    expect(await fault(withChunk(0, (chunk) => flipped(chunk, chunk.length - 1)))).toMatchObject({
      code: "stream-malformed",
      details: { member: "streams/usr/00000001.zst", offset: inSecond },
    });
  });

  test("a checksum of the whole that is another one", async () => {
    const last = chunks.length - 1;
    expect(await fault(withChunk(last, (chunk) => flipped(chunk, chunk.length - 300)))).toMatchObject({
      code: "stream-malformed",
      message: expect.stringContaining("(END)") as string,
      details: { member: chunkName("usr", last) },
    });
  });

  test("a cut inside a record", async () => {
    const [first, second, ...rest] = chunks as [Uint8Array, Uint8Array, ...Uint8Array[]];
    const moved = [first.subarray(0, -8), Buffer.concat([first.subarray(-8), second]), ...rest];
    expect(await fault(withChunks(moved))).toEqual({
      code: "stream-malformed",
      message: `streams/usr/00000000.zst: chunk ends at byte ${inSecond - 8}, inside the record at byte ${inSecond - RECORD}`,
      details: { role: "usr", member: "streams/usr/00000000.zst", offset: inSecond - 8 },
    });
  });

  test.each<[string, (chunks: Uint8Array[]) => Uint8Array[]]>([
    ["in the last chunk", (all) => [...all.slice(0, -1), Buffer.concat([...all.slice(-1), Buffer.alloc(8)])]],
    ["in a chunk more", (all) => [...all, Buffer.alloc(8)]],
  ])("bytes after END, %s", async (_where, change) => {
    const changed = change(chunks);
    const offset = longStream().length;
    expect(await fault(withChunks(changed))).toEqual({
      code: "stream-malformed",
      message: `${chunkName("usr", changed.length - 1)}: stream goes on after its END record, at byte ${offset}`,
      details: { role: "usr", member: chunkName("usr", changed.length - 1), offset },
    });
  });

  test("an end without END", async () => {
    expect(await fault(withChunks(chunks.slice(0, -1)))).toMatchObject({
      code: "stream-malformed",
      message: expect.stringContaining("without an END record") as string,
      details: { role: "usr", member: chunkName("usr", chunks.length - 2) },
    });
  });

  test("the rest of an interrupted receive", async () => {
    const versioninfo = 1n | (1n << (BigInt(FEATURES.resuming) + 2n));
    const stream = seal([begin({ versioninfo }), write(7n, 64), end()]);
    expect(await fault(withChunks([stream]))).toMatchObject({
      code: "stream-unsupported",
      details: { member: "streams/usr/00000000.zst" },
    });
  });

  test("a second frame in a chunk", async () => {
    const two = (content: Uint8Array): Uint8Array =>
      Buffer.concat([content, encodeFrame(Buffer.alloc(8), 1)]);
    const changed = replace(members, "streams/usr/00000001.zst", two);
    const said = streamOf(members).chunks.map((chunk, index) =>
      index === 1 ? { ...chunk, storedBytes: two(chunkMembers[1]?.content as Uint8Array).length } : chunk,
    );
    const right = withManifest(
      (manifest) => ({ ...manifest, streams: [{ ...streamOf(members), chunks: said }] }),
      changed,
    );
    expect(await fault(right)).toMatchObject({
      code: "frame-malformed",
      details: { member: "streams/usr/00000001.zst" },
    });
  });
});

describe("a manifest that says something else than the stream is refused", () => {
  test.each<[string, Partial<ManifestStream>, string]>([
    [
      "the target's guid",
      { target: { snapshot: "r2", guid: "5" } },
      `target is {"guid":"5","snapshot":"r2"}, BEGIN has {"guid":"${TOGUID}","snapshot":"r2"}`,
    ],
    [
      "the target's name",
      { target: { snapshot: "r3", guid: String(TOGUID) } },
      `target is {"guid":"${TOGUID}","snapshot":"r3"}, BEGIN has {"guid":"${TOGUID}","snapshot":"r2"}`,
    ],
    ["the base", { base: { guid: "98" } }, 'base is {"guid":"98"}, BEGIN has {"guid":"99"}'],
    ["the dataset", { dataset: "tank/other" }, 'dataset is "tank/other", BEGIN has "tank/BUILD/gentoo/usr"'],
    ["a feature", { features: ["raw"] }, 'features is ["raw"], BEGIN has []'],
  ])("%s", async (_what, change, message) => {
    expect(await fault(withStream(change))).toEqual({
      code: "manifest-malformed",
      message: `manifest.json: stream usr: ${message}`,
      details: { member: "manifest.json" },
    });
  });

  test("a base of a full stream", async () => {
    const full = seal([begin({ fromguid: 0n }), write(7n, 64), end()]);
    const made = split(await pack({ streams: [input("usr", full)] }));
    const withBase = withManifest(
      (manifest) => ({ ...manifest, streams: [{ ...streamOf(made), base: { guid: "99" } }] }),
      made,
    );
    expect(await fault(withBase)).toMatchObject({
      message: 'manifest.json: stream usr: base is {"guid":"99"}, BEGIN has none',
    });
  });

  test("the largest object of a chunk", async () => {
    const said = streamOf(members).chunks.map((chunk, index) =>
      index === 1 ? { ...chunk, largestObject: "5" } : chunk,
    );
    expect(await fault(withStream({ chunks: said }))).toMatchObject({
      code: "manifest-malformed",
      message: `manifest.json: stream usr: largestObject of chunk 1 at byte ${chunks[0]?.length} is "5", its records have "4"`,
    });
  });

  test("the time", async () => {
    const later = withManifest((manifest) => ({ ...manifest, created: CREATED + 1 }));
    expect(await fault(later, CREATED + 1)).toMatchObject({
      code: "manifest-malformed",
      message: `manifest.json: created is ${CREATED + 1}, stream usr was made at ${CREATED}`,
    });
  });

  test("a pool feature", async () => {
    const more = withManifest((manifest) => ({
      ...manifest,
      requires: { ...manifest.requires, poolFeatures: ["encryption"] },
    }));
    expect(await fault(more)).toMatchObject({
      code: "manifest-malformed",
      message: 'manifest.json: requires.poolFeatures is ["encryption"], the streams need []',
    });
  });
});
