import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { deflateSync } from "node:zlib";
import { packBundle, type PackOptions, type RootInput, type StreamInput } from "../../src/build/pack.js";
import {
  BLOCK_BYTES,
  encodeSums,
  keyIdOfSignature,
  paddingOf,
  parseHeader,
  TRAILER,
} from "../../src/bundle/layout.js";
import type { ByteSource } from "../../src/bundle/members.js";
import type { Trust } from "../../src/bundle/reader.js";
import { encodeMember, sumOf } from "../../src/bundle/writer.js";
import type { ZferryError } from "../../src/errors.js";
import { encodeMetadata, type RecordedAttributes } from "../../src/root/metadata.js";
import { encodeRecord } from "../../src/stream/records.js";
import {
  encodeSignature,
  parsePublicKey,
  parseSecretKey,
  sign,
  type SecretKey,
} from "../../src/trust/minisign.js";
import { begin, end, free, inPieces, seal, TOGUID, write } from "../stream/support.js";

const fixture = (name: string): Buffer =>
  readFileSync(new URL(`../../fixtures/keys/${name}`, import.meta.url));

/** The key that signs every bundle of the tests: no secret. */
export const KEY = await parseSecretKey(fixture("plain.key"), "plain.key", undefined);
export const PUBLIC_KEY = parsePublicKey(fixture("plain.pub"), "plain.pub");
export const TRUST: Trust = { keys: [PUBLIC_KEY], threshold: 1 };

/** A small stream from guid 99 to R2, of `bytes` of content. */
export function smallStream(bytes = 24): Uint8Array {
  const content = "release 2\n".repeat(Math.ceil(bytes / 10)).slice(0, bytes);
  return seal([
    begin({ toname: "tank/BUILD/gentoo/usr@R2" }),
    encodeRecord("OBJECT", { object: 34n, type: 19, bonustype: 44, blksz: 512, toguid: TOGUID }),
    encodeRecord(
      "WRITE",
      { object: 34n, type: 19, logicalSize: BigInt(bytes), toguid: TOGUID },
      Buffer.from(content),
    ),
    free(34n, { offset: BigInt(bytes) }),
    end(),
  ]);
}

/** A stream that is cut into several chunks. */
export const longStream = (): Uint8Array =>
  seal([begin(), ...Array.from({ length: 12 }, (_, i) => write(BigInt(i + 1), 100 << 10)), end()]);

export const input = (role: string, stream: Uint8Array): StreamInput => ({
  role,
  source: inPieces(stream, 1 << 16),
});

/** A root half that changes one file, /etc/issue. */
export function rootInput(): RootInput & Readonly<Record<"patch" | "objects" | "metadata", Uint8Array>> {
  const [before, after] = [Buffer.from("Release 1\n"), Buffer.from("Release 2\n")];
  const attributes: RecordedAttributes = {
    owner: { name: "root", id: 0 },
    group: { name: "root", id: 0 },
    permissions: "0644",
    xattrs: {},
  };
  const file = (content: Buffer) => ({ mode: "100644" as const, blob: blobId(content), ...attributes });
  const folder = { ...attributes, permissions: "0755" };
  return {
    patch: Buffer.from(
      `diff --git a/etc/issue b/etc/issue\nindex ${blobId(before)}..${blobId(after)} 100644\n` +
        `--- a/etc/issue\n+++ b/etc/issue\n@@ -1 +1 @@\n-${before.toString()}+${after.toString()}`,
    ),
    objects: packOfBlob(before),
    metadata: encodeMetadata({
      format: 1,
      changes: [{ path: "etc/issue", before: file(before), after: file(after) }],
      directories: [{ path: "etc", before: folder, after: folder }],
    }),
    summary: {
      base: { commit: "1".repeat(40), tree: treeId(before) },
      target: { commit: "2".repeat(40), tree: treeId(after) },
      counts: { added: 0, modified: 1, deleted: 0 },
    },
  };
}

const sha1 = (...parts: (string | Uint8Array)[]): Buffer => {
  const hash = createHash("sha1");
  for (const part of parts) hash.update(part);
  return hash.digest();
};
const blobId = (content: Buffer): string => sha1(`blob ${content.length}\0`, content).toString("hex");

function treeId(issue: Buffer): string {
  const tree = (entry: string, id: Buffer): Buffer => {
    const content = Buffer.concat([Buffer.from(`${entry}\0`), id]);
    return sha1(`tree ${content.length}\0`, content);
  };
  return tree("40000 etc", tree("100644 issue", Buffer.from(blobId(issue), "hex"))).toString("hex");
}

/** A git pack of one blob of at most 15 bytes, not compressed. */
function packOfBlob(content: Buffer): Buffer {
  const pack = Buffer.concat([
    Buffer.from("PACK\0\0\0\x02\0\0\0\x01"),
    Buffer.from([(3 << 4) | content.length]),
    deflateSync(content, { level: 0 }),
  ]);
  return Buffer.concat([pack, sha1(pack)]);
}

/** What a bundle is packed from, but for what a test changes. */
export const packOptions = (changed: Partial<PackOptions> = {}): PackOptions => ({
  product: "demo",
  release: { name: "R2", sequence: 2 },
  expiresDays: undefined,
  notes: undefined,
  level: 9,
  chunkBytes: 256 << 10,
  streams: [input("usr", smallStream())],
  root: undefined,
  key: KEY,
  ...changed,
});

export async function pack(changed: Partial<PackOptions> = {}): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  let whole = Buffer.alloc(0);
  await packBundle(
    packOptions(changed),
    {
      reserve: () => undefined,
      // A copy, since the memory may be used again.
      append: async (bytes) => void parts.push(Buffer.from(bytes)),
      finish: async (head) => {
        whole = Buffer.concat([head, ...parts]);
        return { bytes: whole.length };
      },
      discard: async () => undefined,
    },
    { update: () => undefined, end: () => undefined },
    new AbortController().signal,
  );
  return whole;
}

/** The bundle of `fixtures/bundle/`: both halves, with notes and an expiry. */
export const packExample = (): Promise<Buffer> =>
  pack({ root: rootInput(), notes: "New /etc/issue.", expiresDays: 90 });

/** Two streams and both halves. */
export const packAll = (): Promise<Buffer> =>
  pack({ streams: [input("usr", smallStream()), input("data", smallStream(40))], root: rootInput() });

export const sourceOf = (bytes: Uint8Array): ByteSource => ({
  name: "test.bundle",
  size: bytes.length,
  read: async (offset, length) => bytes.slice(offset, offset + length),
});

export interface Member {
  readonly name: string;
  readonly content: Uint8Array;
}

export function split(bundle: Uint8Array): Member[] {
  const members: Member[] = [];
  for (let at = 0; at < bundle.length - TRAILER.length;) {
    const { name, size } = parseHeader(bundle.subarray(at, at + BLOCK_BYTES), at);
    members.push({ name, content: bundle.subarray(at + BLOCK_BYTES, at + BLOCK_BYTES + size) });
    at += BLOCK_BYTES + size + paddingOf(size);
  }
  return members;
}

export const CREATED = 1_750_000_000;

export const join = (members: readonly Member[], created = CREATED): Buffer =>
  Buffer.concat([...members.map(({ name, content }) => encodeMember(name, content, created)), TRAILER]);

const isHashed = ({ name }: Member): boolean => name !== "SHA256SUMS" && keyIdOfSignature(name) === undefined;

/** The members with a true list of hashes, and true signatures of it: so that only the fault is left to be found. */
export function resign(members: readonly Member[], keys: readonly SecretKey[] = [KEY]): Member[] {
  const hashed = members.filter(isHashed);
  return resignSums(hashed, encodeSums(hashed.map(({ name, content }) => sumOf(name, content))), keys);
}

/** The members that are hashed, with this list of hashes, signed. */
export function resignSums(
  hashed: readonly Member[],
  sums: Uint8Array,
  keys: readonly SecretKey[] = [KEY],
): Member[] {
  const signatures = keys.map((key) => ({
    name: `signatures/${key.keyId}.minisig`,
    content: encodeSignature(sign(key, sums, { trustedComment: "test" })),
  }));
  return [{ name: "SHA256SUMS", content: sums }, ...signatures, ...hashed.filter(isHashed)];
}

/** The members with some content exchanged. */
export const replace = (
  members: readonly Member[],
  name: string,
  change: (content: Uint8Array) => Uint8Array,
): Member[] =>
  members.map((member) => (member.name === name ? { name, content: change(member.content) } : member));

/** The error that some work ends in. */
export async function refusal(work: () => unknown): Promise<ZferryError> {
  try {
    await work();
  } catch (error) {
    // By its name, since the built program has a class of its own.
    if (error instanceof Error && error.name === "ZferryError") return error as ZferryError;
    throw error;
  }
  throw new Error("was not refused");
}

export const flipped = (bytes: Uint8Array, at: number, bits = 1): Buffer => {
  const copy = Buffer.from(bytes);
  copy[at] = (copy[at] as number) ^ bits;
  return copy;
};
