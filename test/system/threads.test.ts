import { randomBytes } from "node:crypto";
import { closeSync, mkdtempSync, openSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
// Threads do not load TypeScript: this is the built program.
import { packBundle } from "../../dist/build/pack.js";
import { VerifiedBundle } from "../../dist/bundle/reader.js";
import { openBundleFile, type OpenedFile } from "../../dist/system/bundle-file.js";
import { packingThreads, readingThreads } from "../../dist/system/threads.js";
import { BLOCK_BYTES } from "../../src/bundle/layout.js";
import { flipped, pack, packOptions, refusal, TRUST } from "../bundle/support.js";
import { begin, end, inPieces, seal, write } from "../stream/support.js";

const MIB = 1 << 20;

/** Chunks that differ in size and in how well they compress. */
function stream(): Uint8Array {
  const records = Array.from({ length: 40 }, (_, i) => {
    const record = write(BigInt(i + 1), (i % 5) * 128 * 1024 + 512);
    if (i % 2 === 0) record.set(randomBytes(512), record.length - 512);
    return record;
  });
  return seal([begin(), ...records, end()]);
}

describe("packing in threads", () => {
  test.each([1, 2, 3, 7])("give the same bytes as none, with %i", async (count) => {
    const bytes = stream();
    const options = { level: 3, chunkBytes: MIB };
    const alone = await pack({ ...options, streams: [{ role: "usr", source: inPieces(bytes, 70_000) }] });
    const work = packingThreads(count);
    try {
      const source = inPieces(bytes, 70_000);
      expect(alone.equals(await pack({ ...options, streams: [{ role: "usr", source }], work }))).toBe(true);
    } finally {
      await work.close();
    }
  });

  test("a level gives the same frame in a context that is used again", async () => {
    const work = packingThreads(1);
    const raws = [3, 1, 2].map((seed) => Buffer.alloc(MIB / 4, `${seed} and so on ${seed * 7}, `));
    try {
      for (const level of [1, 3, 6, 9, 15, 19]) {
        const sums = new Map<number, Set<string>>();
        for (const index of [0, 1, 2, 1, 0]) {
          const memory = work.memory(MIB / 4);
          memory.set(raws[index] as Buffer);
          const { sha256, release } = await work.pack(memory, level);
          sums.set(index, (sums.get(index) ?? new Set()).add(sha256));
          release();
        }
        expect([...sums.values()].map(({ size }) => size)).toEqual([1, 1, 1]);
      }
    } finally {
      await work.close();
    }
  });

  test("memory stays within what is under way, however long the stream", async () => {
    const work = packingThreads(2);
    const seen = new Set<ArrayBufferLike>();
    const options = packOptions({
      level: 1,
      chunkBytes: 256 * 1024,
      streams: [{ role: "usr", source: inPieces(stream(), 70_000) }],
      work: {
        ...work,
        memory(bytes: number) {
          const memory = work.memory(bytes);
          seen.add(memory.buffer);
          return memory;
        },
      },
    });
    const file = {
      reserve: () => undefined,
      append: async () => undefined,
      finish: async () => ({ bytes: 0 }),
      discard: async () => undefined,
    };
    try {
      const progress = { update: () => undefined, end: () => undefined };
      const { manifest } = await packBundle(options, file, progress, new AbortController().signal);
      expect(manifest.streams[0]?.chunks.length).toBeGreaterThan(20);
      // Those under way, one being filled and one that is full.
      expect(seen.size).toBeLessThanOrEqual(work.ahead + 2);
    } finally {
      await work.close();
    }
  });
});

describe("reading in threads", () => {
  let folder: string;
  let bundle: Buffer;
  let opened: { file: OpenedFile; close(): Promise<void> } | undefined;

  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), "zferry-threads-"));
    const source = inPieces(stream(), 70_000);
    bundle = await pack({ level: 1, chunkBytes: 256 * 1024, streams: [{ role: "usr", source }] });
  });
  afterEach(async () => {
    await opened?.close();
    opened = undefined;
    rmSync(folder, { recursive: true });
  });

  /** A small file is read without threads unless they are given to it. */
  async function open(bytes: Buffer): Promise<{ verified: VerifiedBundle; path: string }> {
    const path = join(folder, "R2.bundle");
    writeFileSync(path, bytes);
    const file = await openBundleFile(path);
    const fd = openSync(path, "r");
    const work = readingThreads(3, [{ fd, name: path, size: bytes.length }]);
    opened = {
      file,
      async close() {
        await work.close();
        closeSync(fd);
        await file.close();
      },
    };
    return { verified: await VerifiedBundle.verify({ ...file, work }, TRUST), path };
  }

  async function send(verified: VerifiedBundle): Promise<Buffer> {
    const parts: Buffer[] = [];
    const [usr] = verified.manifest.streams;
    if (usr !== undefined) for await (const chunk of verified.chunks(usr)) parts.push(Buffer.from(chunk));
    return Buffer.concat(parts);
  }

  test("gives the stream in order, whole", async () => {
    const { verified } = await open(bundle);
    await verified.checkContents();
    const bytes = await send(verified);
    expect(bytes.length).toBe(verified.manifest.streams[0]?.rawBytes);
    expect((await send(verified)).equals(bytes)).toBe(true);
  });

  test("tells progress that never goes back, to the end", async () => {
    const { verified } = await open(bundle);
    const told: number[] = [];
    await verified.checkContents((done) => told.push(done));
    expect(told).toEqual([...told].sort((a, b) => a - b));
    expect(told.at(-1)).toBe(bundle.length);
  });

  test("names the first damaged member of several, and gives no byte of it", async () => {
    // Behind the list of hashes, which has the names too.
    const contents = bundle.indexOf("manifest.json\0");
    const at = (index: number): number =>
      bundle.indexOf(`streams/usr/${String(index).padStart(8, "0")}.zst`, contents) + BLOCK_BYTES + 5;
    const { verified } = await open(flipped(flipped(bundle, at(9)), at(4)));
    expect(await refusal(() => verified.checkContents())).toMatchObject({
      code: "content-mismatch",
      details: { member: "streams/usr/00000004.zst" },
    });
    const [usr] = verified.manifest.streams;
    let given = 0;
    const { code, details, hint } = await refusal(async () => {
      if (usr !== undefined) for await (const chunk of verified.chunks(usr)) given += chunk.length;
    });
    expect([code, details["member"]]).toEqual(["content-mismatch", "streams/usr/00000004.zst"]);
    expect(hint).toMatch(/copy it again/);
    expect(given).toBe(usr?.chunks.slice(0, 4).reduce((sum, { rawBytes }) => sum + rawBytes, 0));
  });

  test("tells a file that became shorter, and goes on with one that is whole again", async () => {
    const { verified, path } = await open(bundle);
    truncateSync(path, bundle.length - 200_000);
    expect((await refusal(() => verified.checkContents())).code).toBe("bundle-truncated");
    writeFileSync(path, bundle);
    await verified.checkContents();
  });

  test("a taker that leaves early leaves nothing running", async () => {
    const { verified } = await open(bundle);
    const [usr] = verified.manifest.streams;
    if (usr !== undefined) for await (const chunk of verified.chunks(usr)) if (chunk.length > 0) break;
    await verified.checkContents();
  });
});
