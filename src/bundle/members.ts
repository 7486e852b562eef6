import { createHash } from "node:crypto";
import { ZferryError } from "../errors.js";
import { decodeFrame, encodeFrame, frameBound } from "./frame.js";
import { archiveFault, BLOCK_BYTES, encodeHeader, paddingOf } from "./layout.js";

/** Where a bundle's bytes come from: a file, a device, a buffer. It may change between two reads. */
export interface ByteSource {
  /** Shown in messages. */
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** Exactly `length` bytes from `offset`, all of which lie below `size`. */
  read(offset: number, length: number): Promise<Uint8Array>;
  /** How members are read, if not one after another on the calling thread. */
  readonly work?: MemberWork | undefined;
  /** Which files hold these bytes, for messages, where it is not the one of `name`: a bundle's volumes. */
  filesOf?(offset: number, length: number): readonly string[];
  /**
   * Told how many bytes the bundle has, once its manifest is read: then `size` and `work` are settled. Before, `size`
   * may be more.
   * @throws ZferryError when some of it is not there
   */
  complete?(size: number): Promise<void>;
}

const WHOLE_AGAIN = "the file is damaged or was changed; copy it again from where it is whole";
const VOLUME_AGAIN =
  "the volume is damaged, or of another bundle or copy; copy it again from where the bundle is whole";

/** What a fault in these bytes is told of. */
function faultPlace(
  source: ByteSource,
  offset: number,
  length: number,
): { readonly name: string; readonly file: string | readonly string[]; readonly hint: string } {
  const files = source.filesOf?.(offset, length);
  if (files === undefined) return { name: source.name, file: source.name, hint: WHOLE_AGAIN };
  const [file = source.name] = files;
  return { name: files.join(" and "), file: files.length === 1 ? file : files, hint: VOLUME_AGAIN };
}

/** Does `work`; of a source in volumes, what is wrong with the archive is told of the volume that it is in. */
export async function inItsVolume<Value>(source: ByteSource, work: () => Promise<Value>): Promise<Value> {
  try {
    return await work();
  } catch (error) {
    const volumes = source.filesOf;
    if (volumes === undefined || !(error instanceof ZferryError) || error.code !== "archive-malformed")
      throw error;
    const { code, message, details } = error;
    const { name, file, hint } = faultPlace(source, Number(details["offset"]), 1);
    throw new ZferryError(code, `${name}: ${message}`, { details: { ...details, file }, hint, cause: error });
  }
}

/** A member that the list of hashes names. */
export interface StoredMember {
  readonly name: string;
  /** Of the content in the archive. */
  readonly offset: number;
  /** Of the content, in bytes. */
  readonly storedBytes: number;
  /** 64 lower-case hex digits. */
  readonly sha256: string;
}

/** Bytes in memory that is used again once they are released. */
export interface Held {
  readonly bytes: Uint8Array;
  release(): void;
}

/** What takes time in reading a bundle. Several pieces of it can be under way at a time. */
export interface MemberWork {
  /** How many pieces are worth being under way. */
  readonly ahead: number;
  /** {@link checkMember} */
  check(member: StoredMember, created: number): Promise<void>;
  /** {@link decodeMember} */
  decode(member: StoredMember, rawBytes: number): Promise<Held>;
}

/** A chunk as it is stored. */
export interface PackedFrame extends Held {
  /** 64 lower-case hex digits. */
  readonly sha256: string;
}

/** What takes time in writing a bundle. */
export interface PackWork {
  /** How many pieces are worth being under way. */
  readonly ahead: number;
  /** Memory for the raw bytes of a chunk. `pack` takes it back. */
  memory(bytes: number): Uint8Array;
  /** Compresses and hashes `raw`, which lies at the beginning of memory that {@link memory} gave. */
  pack(raw: Uint8Array, level: number): Promise<PackedFrame>;
}

const PIECE_BYTES = 256 << 10;
const NOTHING = { release: () => undefined };

/** Whether an error is of bytes that were read, and not of a volume that is not there or cannot be opened. */
const isRange = ({ details }: ZferryError): boolean => "offset" in details || "needed" in details;

/** Reads bytes of a member; what the source throws names the member too. */
export async function readOf(
  source: ByteSource,
  member: string,
  offset: number,
  length: number,
): Promise<Uint8Array> {
  try {
    return await source.read(offset, length);
  } catch (error) {
    if (!(error instanceof ZferryError) || !isRange(error)) throw error;
    const { code, message, details, hint } = error;
    throw new ZferryError(code, `${message}, in ${member}`, {
      details: { ...details, member },
      hint,
      cause: error,
    });
  }
}

/**
 * Checks every byte of a member: header, content, padding.
 * @throws ZferryError `archive-malformed`, `content-mismatch`, and what the source gives
 */
export const checkMember = (source: ByteSource, member: StoredMember, created: number): Promise<void> =>
  inItsVolume(source, () => checkMemberBytes(source, member, created));

async function checkMemberBytes(source: ByteSource, member: StoredMember, created: number): Promise<void> {
  const { name, offset, storedBytes } = member;
  const header = await readOf(source, name, offset - BLOCK_BYTES, BLOCK_BYTES);
  if (Buffer.compare(header, encodeHeader({ name, size: storedBytes, mtime: created })) !== 0) {
    throw archiveFault(`the tar header is not that of ${name}`, offset - BLOCK_BYTES);
  }
  const pieces = readMemberPieces(source, member);
  while (!(await pieces.next()).done);
  const end = offset + storedBytes;
  requirePadding(await readOf(source, name, end, paddingOf(storedBytes)), end);
}

/**
 * A member's content as it is stored, piece by piece. It counts only once the last piece came: then its hash is checked.
 * @throws ZferryError `content-mismatch`, and what the source gives
 */
export async function* readMemberPieces(
  source: ByteSource,
  member: StoredMember,
): AsyncGenerator<Uint8Array, void, void> {
  const { name, offset, storedBytes } = member;
  const hash = createHash("sha256");
  for (let done = 0; done < storedBytes; done += PIECE_BYTES) {
    const piece = await readOf(source, name, offset + done, Math.min(PIECE_BYTES, storedBytes - done));
    hash.update(piece);
    yield piece;
  }
  requireHash(source, member, hash.digest("hex"));
}

/**
 * A member's content, its hash checked.
 * @throws ZferryError `content-mismatch`, and what the source gives
 */
export async function readMember(source: ByteSource, member: StoredMember): Promise<Uint8Array> {
  const bytes = await readOf(source, member.name, member.offset, member.storedBytes);
  requireHash(source, member, createHash("sha256").update(bytes).digest("hex"));
  return bytes;
}

/**
 * A member's content, its hash checked and then decompressed.
 * @param into where the raw bytes go, if not into new memory
 * @throws ZferryError `content-mismatch`, `frame-malformed`, and what the source gives
 */
export async function decodeMember(
  source: ByteSource,
  member: StoredMember,
  rawBytes: number,
  into?: Uint8Array,
): Promise<Uint8Array> {
  return decodeFrame(await readMember(source, member), rawBytes, member.name, into);
}

/** Compresses a chunk into `into`, which has {@link frameBound} bytes, and hashes what comes out. */
export function packChunk(
  raw: Uint8Array,
  level: number,
  into: Uint8Array,
): { bytes: number; sha256: string } {
  const frame = encodeFrame(raw, level, into);
  return { bytes: frame.length, sha256: createHash("sha256").update(frame).digest("hex") };
}

/** One member after another, on the calling thread. */
export const memberWork = (source: ByteSource): MemberWork => ({
  ahead: 1,
  check: (member, created) => checkMember(source, member, created),
  decode: async (member, rawBytes) => ({ bytes: await decodeMember(source, member, rawBytes), ...NOTHING }),
});

/** One chunk after another, on the calling thread. */
export const PACK_WORK: PackWork = {
  ahead: 1,
  memory: (bytes) => new Uint8Array(bytes),
  async pack(raw, level) {
    const frame = new Uint8Array(frameBound(raw.length));
    const { bytes, sha256 } = packChunk(raw, level, frame);
    return { bytes: frame.subarray(0, bytes), sha256, ...NOTHING };
  },
};

/** @throws ZferryError `content-mismatch` */
export function requireHash(
  source: ByteSource,
  { name: member, offset, storedBytes, sha256: expected }: StoredMember,
  found: string,
): void {
  if (found === expected) return;
  const { name, file, hint } = faultPlace(source, offset, storedBytes);
  throw new ZferryError("content-mismatch", `${name}: ${member} has SHA-256 ${found}, not ${expected}`, {
    details: { file, member, expected, found },
    hint,
  });
}

/**
 * @param offset of the padding in the archive
 * @throws ZferryError `archive-malformed`
 */
export function requirePadding(padding: Uint8Array, offset: number): void {
  const at = padding.findIndex((byte) => byte !== 0);
  if (at !== -1) throw archiveFault("the padding of a member is not zero", offset + at);
}
