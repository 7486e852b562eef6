import { createHash } from "node:crypto";
import { ZferryError } from "../errors.js";
import type { PublicKey } from "../trust/minisign.js";
import { checkSignatures, type Signer } from "../trust/policy.js";
import { inOrder } from "../in-order.js";
import { decodeFrameOf } from "./frame.js";
import {
  BLOCK_BYTES,
  LIMITS,
  MANIFEST_NAME,
  ROOT_MEMBERS,
  SUMS_NAME,
  TRAILER,
  archiveFault,
  chunkName,
  keyIdOfSignature,
  paddingOf,
  parseHeader,
  parseSums,
  type Sum,
} from "./layout.js";
import {
  membersOf,
  parseManifest,
  type Manifest,
  type ManifestChunk,
  type ManifestStream,
} from "./manifest.js";
import {
  decodeMember,
  inItsVolume,
  memberWork,
  readMember,
  readMemberPieces,
  readOf,
  requireHash,
  requirePadding,
  type ByteSource,
  type Held,
  type MemberWork,
  type StoredMember,
} from "./members.js";
import { parseVolumeName, volumeName } from "./volumes.js";

export interface Signature {
  /** 16 upper-case hex digits, from the member's name. */
  readonly keyId: string;
  readonly bytes: Uint8Array;
}

/** Which keys a reader believes, and how many of them must have signed. */
export interface Trust {
  readonly keys: readonly PublicKey[];
  readonly threshold: number;
}

/** Tells how many of the bundle's bytes were checked. */
export type Progress = (done: number, total: number) => void;

/** The parts before the first hashed content, as they lie in the archive and not yet believed. */
interface Head {
  readonly sums: Uint8Array;
  readonly signatures: readonly Signature[];
  readonly manifest: Uint8Array;
  readonly mtime: number;
  /** Of the manifest's header in the archive. */
  readonly manifestHeaderOffset: number;
}

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** @param member for messages */
async function readExactly(
  source: ByteSource,
  member: string,
  offset: number,
  length: number,
): Promise<Uint8Array> {
  if (offset + length > source.size) {
    throw new ZferryError(
      "bundle-truncated",
      `${source.name}: ends at byte ${source.size}, the bundle goes on to byte ${offset + length} at least`,
      {
        details: { file: source.name, size: source.size, needed: offset + length },
        hint: "copy the file again",
      },
    );
  }
  return readOf(source, member, offset, length);
}

const readHead = (source: ByteSource): Promise<Head> => inItsVolume(source, () => readHeadBytes(source));

async function readHeadBytes(source: ByteSource): Promise<Head> {
  let offset = 0;
  let mtime: number | undefined;
  const requireBundle = (start: Uint8Array): void => {
    const name = Buffer.from(SUMS_NAME).subarray(0, start.length);
    if (name.equals(start.subarray(0, SUMS_NAME.length))) return;
    const volume = parseVolumeName(source.name);
    throw archiveFault(
      `${source.name} is no bundle: it does not begin with ${SUMS_NAME}`,
      0,
      volume === undefined || volume.number === 1
        ? undefined
        : `a volume of a bundle? Name the first: ${volumeName(volume.bundle, 1)}`,
    );
  };
  const next = async (): Promise<{ name: string; bytes: Uint8Array; headerOffset: number }> => {
    const headerOffset = offset;
    // What is too short for a header may be no bundle at all.
    if (source.size < BLOCK_BYTES) requireBundle(await source.read(0, source.size));
    const block = await readExactly(source, "a header", offset, BLOCK_BYTES);
    if (offset === 0) requireBundle(block);
    const header = parseHeader(block, offset);
    mtime ??= header.mtime;
    if (header.mtime !== mtime)
      throw archiveFault(`${header.name} has time ${header.mtime}, not ${mtime}`, offset);
    const limit = headLimit(header.name);
    if (limit === undefined)
      throw archiveFault(`member ${JSON.stringify(header.name)} is out of place`, offset);
    if (header.size > limit) {
      throw archiveFault(`${header.name} has ${header.size} bytes, the limit is ${limit}`, offset);
    }
    const content = await readExactly(
      source,
      header.name,
      offset + BLOCK_BYTES,
      header.size + paddingOf(header.size),
    );
    requirePadding(content.subarray(header.size), offset + BLOCK_BYTES + header.size);
    offset += BLOCK_BYTES + content.length;
    return { name: header.name, bytes: content.subarray(0, header.size), headerOffset };
  };

  const first = await next();
  if (first.name !== SUMS_NAME) throw archiveFault(`the first member is ${first.name}, not ${SUMS_NAME}`, 0);
  const signatures: Signature[] = [];
  for (;;) {
    const member = await next();
    const keyId = keyIdOfSignature(member.name);
    if (keyId === undefined) {
      if (member.name !== MANIFEST_NAME || signatures.length === 0) {
        throw archiveFault(
          `${member.name} is where a signature or ${MANIFEST_NAME} must be`,
          member.headerOffset,
        );
      }
      return {
        sums: first.bytes,
        signatures,
        manifest: member.bytes,
        mtime: mtime as number,
        manifestHeaderOffset: member.headerOffset,
      };
    }
    const previous = signatures.at(-1);
    if (previous !== undefined && previous.keyId >= keyId) {
      throw archiveFault(
        `the signature of ${keyId} comes after that of ${previous.keyId}`,
        member.headerOffset,
      );
    }
    if (signatures.length === LIMITS.signatures) {
      throw archiveFault(`has more than ${LIMITS.signatures} signatures`, member.headerOffset);
    }
    signatures.push({ keyId, bytes: member.bytes });
  }
}

function headLimit(name: string): number | undefined {
  if (name === SUMS_NAME) return LIMITS.sumsBytes;
  if (name === MANIFEST_NAME) return LIMITS.manifestBytes;
  return keyIdOfSignature(name) === undefined ? undefined : LIMITS.signatureBytes;
}

/** What a bundle's head leads to. */
interface Located {
  readonly manifest: Manifest;
  readonly members: ReadonlyMap<string, StoredMember>;
  /** Bytes of the whole bundle. */
  readonly end: number;
}

/** From a believed (or knowingly not believed) list of hashes to the place of every member, and to a source with all of them. */
async function locate(source: ByteSource, head: Head): Promise<Located> {
  const located = locateMembers(source, head);
  await source.complete?.(located.end);
  requireSize(source, located.end);
  return located;
}

function locateMembers(source: ByteSource, head: Head): Located {
  const sums = parseSums(head.sums);
  const manifestSum = sums[0] as Sum;
  if (manifestSum.name !== MANIFEST_NAME) {
    throw new ZferryError(
      "sums-malformed",
      `${SUMS_NAME} line 1: names ${manifestSum.name}, not ${MANIFEST_NAME}`,
      {
        details: { member: SUMS_NAME, line: 1 },
      },
    );
  }
  const stored = {
    name: MANIFEST_NAME,
    offset: head.manifestHeaderOffset + BLOCK_BYTES,
    storedBytes: head.manifest.length,
    sha256: manifestSum.sha256,
  };
  requireHash(source, stored, sha256(head.manifest));
  const manifest = parseManifest(head.manifest);
  if (manifest.created !== head.mtime) {
    throw archiveFault(`the members have time ${head.mtime}, the manifest says ${manifest.created}`, 0);
  }

  const expected = membersOf(manifest, head.manifest.length);
  const members = new Map<string, StoredMember>();
  let offset = head.manifestHeaderOffset;
  for (let index = 0; index < Math.max(expected.length, sums.length); index += 1) {
    const member = expected[index];
    const sum = sums[index];
    if (member === undefined || sum === undefined || member.name !== sum.name) {
      throw new ZferryError(
        "sums-malformed",
        `${SUMS_NAME} line ${index + 1}: names ${sum?.name ?? "nothing"}, the manifest ${member?.name ?? "nothing"}`,
        { details: { member: SUMS_NAME, line: index + 1 } },
      );
    }
    const { name, storedBytes } = member;
    members.set(name, { name, offset: offset + BLOCK_BYTES, storedBytes, sha256: sum.sha256 });
    offset += BLOCK_BYTES + storedBytes + paddingOf(storedBytes);
  }
  return { manifest, members, end: offset + TRAILER.length };
}

function requireSize(source: ByteSource, end: number): void {
  if (source.size < end) {
    throw new ZferryError(
      "bundle-truncated",
      `${source.name}: has ${source.size} of the bundle's ${end} bytes`,
      {
        details: { file: source.name, size: source.size, needed: end },
        hint: "copy the file again",
      },
    );
  }
  if (source.size > end) {
    throw archiveFault(`${source.name} goes on to byte ${source.size} after the end of the bundle`, end);
  }
}

/**
 * A bundle whose head was read. Whatever it hands out was hashed in memory, in the very bytes that are handed out:
 * the medium may change between two reads.
 */
export class Bundle {
  readonly manifest: Manifest;
  /** The exact bytes of `SHA256SUMS`: what is signed. */
  readonly sums: Uint8Array;
  /** Their SHA-256. */
  readonly identity: string;
  readonly signatures: readonly Signature[];
  readonly name: string;
  /** Bytes of the whole file. */
  readonly size: number;
  readonly #source: ByteSource;
  readonly #work: MemberWork;
  readonly #members: ReadonlyMap<string, StoredMember>;
  readonly #end: number;

  protected constructor(source: ByteSource, head: Head, { manifest, members, end }: Located) {
    this.manifest = manifest;
    this.sums = head.sums;
    this.identity = sha256(head.sums);
    this.signatures = head.signatures;
    this.name = source.name;
    this.size = source.size;
    this.#source = source;
    this.#work = source.work ?? memberWork(source);
    this.#members = members;
    this.#end = end;
  }

  /** Reads a bundle without asking who made it: for showing it, never for using it. */
  static async readUnverified(source: ByteSource): Promise<Bundle> {
    const head = await readHead(source);
    return new Bundle(source, head, await locate(source, head));
  }

  #member(name: string): StoredMember {
    const member = this.#members.get(name);
    if (member === undefined) throw new RangeError(`${this.name} has no member ${name}`);
    return member;
  }

  /** Where the members lie that follow the manifest, in archive order. */
  get storedMembers(): readonly StoredMember[] {
    return [...this.#members.values()].filter(({ name }) => name !== MANIFEST_NAME);
  }

  /** One of the root half's members, decompressed. */
  async rootMember(kind: keyof typeof ROOT_MEMBERS): Promise<Uint8Array> {
    return decodeMember(this.#source, this.#member(ROOT_MEMBERS[kind]), this.#rootBytes(kind));
  }

  /**
   * The same in pieces, for what may be large. Each is valid until the next one is asked for, and all of it counts only
   * once the last one came.
   * @param keep writes what it is given, as it is stored, where nobody else can change it, and gives it back: it is
   * decompressed only after its hash matched, and the medium may give other bytes when it is read again
   */
  async *rootMemberPieces(
    kind: keyof typeof ROOT_MEMBERS,
    keep: (stored: AsyncIterable<Uint8Array>) => Promise<AsyncIterable<Uint8Array>>,
  ): AsyncGenerator<Uint8Array, void, void> {
    const rawBytes = this.#rootBytes(kind);
    const member = this.#member(ROOT_MEMBERS[kind]);
    const kept = await keep(readMemberPieces(this.#source, member));
    yield* decodeFrameOf(kept, rawBytes, member.name);
  }

  #rootBytes(kind: keyof typeof ROOT_MEMBERS): number {
    const { root } = this.manifest;
    if (root === undefined) throw new RangeError(`${this.name} has no root half`);
    return root[kind].rawBytes;
  }

  /**
   * A stream's chunks, decompressed, in order: joined they are the send stream. Each is valid until the next one is
   * asked for.
   * @param indices which chunks, if not all
   */
  async *chunks(
    { role, chunks }: ManifestStream,
    indices: Iterable<number> = chunks.keys(),
  ): AsyncGenerator<Uint8Array, void, void> {
    const decode = (index: number): Promise<Held> => {
      const { rawBytes } = chunks[index] as ManifestChunk;
      return this.#work.decode(this.#member(chunkName(role, index)), rawBytes);
    };
    for await (const { bytes, release } of inOrder(indices, this.#work.ahead, decode)) {
      yield bytes;
      release();
    }
  }

  /** Every member after the signatures and the manifest, as it is stored, in archive order. */
  async *contents(): AsyncGenerator<{ name: string; bytes: Uint8Array }, void, void> {
    for (const member of this.storedMembers) {
      yield { name: member.name, bytes: await readMember(this.#source, member) };
    }
  }

  /**
   * Checks every byte from the manifest's header to the end: headers, contents, padding, trailer.
   * @throws ZferryError `archive-malformed`, `content-mismatch`, `bundle-truncated`
   */
  async checkContents(progress: Progress = () => undefined): Promise<void> {
    const check = async (member: StoredMember): Promise<StoredMember> => {
      await this.#work.check(member, this.manifest.created);
      return member;
    };
    for await (const { offset, storedBytes } of inOrder(this.#members.values(), this.#work.ahead, check)) {
      progress(offset + storedBytes, this.#end);
    }
    const trailer = this.#end - TRAILER.length;
    await inItsVolume(this.#source, async () =>
      requirePadding(await readExactly(this.#source, "the end", trailer, TRAILER.length), trailer),
    );
    progress(this.#end, this.#end);
  }
}

/** A bundle that enough trusted keys signed. Only `verify` makes one, and install takes nothing else. */
export class VerifiedBundle extends Bundle {
  readonly signers: readonly Signer[];

  private constructor(source: ByteSource, head: Head, located: Located, signers: readonly Signer[]) {
    super(source, head, located);
    this.signers = signers;
  }

  /**
   * Believes the list of hashes only after its signatures, and the manifest only after its hash.
   * The contents are checked by `checkContents`, and again as they are used.
   * @throws ZferryError `signature-missing`, `signature-invalid`, and what a broken archive gives
   */
  static async verify(source: ByteSource, trust: Trust): Promise<VerifiedBundle> {
    const head = await readHead(source);
    const signers = await checkSignatures(head.sums, head.signatures, trust.keys, trust.threshold);
    return new VerifiedBundle(source, head, await locate(source, head), signers);
  }
}
