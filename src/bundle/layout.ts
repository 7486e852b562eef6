import { ZferryError } from "../errors.js";

// formats/bundle.md: the archive and its list of hashes, bytes to values and back.

export const SUMS_NAME = "SHA256SUMS";
export const MANIFEST_NAME = "manifest.json";

/** The three members of the root half, in archive order. */
export const ROOT_MEMBERS = {
  patch: "root/patch.zst",
  objects: "root/objects.pack.zst",
  metadata: "root/metadata.json.zst",
} as const;

/** formats/bundle.md, Limits. All in bytes, but for the counts and the time, which is in seconds since 1970. */
export const LIMITS = {
  time: 0o77777777777,
  sumsBytes: 32 << 20,
  signatureBytes: 16 << 10,
  signatures: 16,
  manifestBytes: 32 << 20,
  manifestMarks: 2_000_000,
  paddingBytes: 16 << 20,
  streams: 64,
  keysChanged: 64,
  chunksPerStream: 131_072,
  chunkRawBytes: 32 << 20,
  chunkStoredBytes: (32 << 20) + (256 << 10),
  rootMemberRawBytes: 1 << 30,
  rootMetadataRawBytes: 128 << 20,
  rootMemberStoredBytes: (1 << 30) + (8 << 20),
} as const;

export const BLOCK_BYTES = 512;
/** Two zero blocks end the archive, and nothing follows them. */
export const TRAILER = new Uint8Array(2 * BLOCK_BYTES);

export const signatureName = (keyId: string): string => `signatures/${keyId}.minisig`;
const SIGNATURE_NAME = /^signatures\/([0-9A-F]{16})\.minisig$/;

/** The key id in a signature member's name, or undefined for another member. */
export const keyIdOfSignature = (name: string): string | undefined => SIGNATURE_NAME.exec(name)?.[1];

export const chunkName = (role: string, index: number): string =>
  `streams/${role}/${String(index).padStart(8, "0")}.zst`;

/** Bytes of zeros that fill a member up to the next block. */
export const paddingOf = (size: number): number => (BLOCK_BYTES - (size % BLOCK_BYTES)) % BLOCK_BYTES;

export interface MemberHeader {
  readonly name: string;
  /** Bytes of content. */
  readonly size: number;
  /** Seconds since 1970. */
  readonly mtime: number;
}

// POSIX.1-1988 ustar: name 0..100, mode, uid, gid, size, mtime, checksum, typeflag, linkname, magic, version, …
const FIELD = {
  name: 0,
  mode: 100,
  uid: 108,
  gid: 116,
  size: 124,
  mtime: 136,
  checksum: 148,
  type: 156,
  magic: 257,
};
const MAX_NAME_BYTES = 100;
const MAX_SIZE = 0o77777777777;

/** The one ustar header that a member of this name, size and time has: mode 0644, uid and gid 0, no names. */
export function encodeHeader({ name, size, mtime }: MemberHeader): Uint8Array {
  if (name.length > MAX_NAME_BYTES || size > MAX_SIZE || mtime > LIMITS.time) {
    throw new RangeError(`no ustar header can hold member ${name} of ${size} bytes`);
  }
  const block = Buffer.alloc(BLOCK_BYTES);
  const octal = (value: number, offset: number, digits: number): void => {
    block.write(value.toString(8).padStart(digits, "0"), offset, "latin1");
  };
  block.write(name, FIELD.name, "latin1");
  octal(0o644, FIELD.mode, 7);
  octal(0, FIELD.uid, 7);
  octal(0, FIELD.gid, 7);
  octal(size, FIELD.size, 11);
  octal(mtime, FIELD.mtime, 11);
  block.write("0", FIELD.type, "latin1");
  block.write("ustar\u000000", FIELD.magic, "latin1");
  block.fill(" ", FIELD.checksum, FIELD.checksum + 8);
  octal(
    block.reduce((sum, byte) => sum + byte, 0),
    FIELD.checksum,
    6,
  );
  block[FIELD.checksum + 6] = 0;
  return block;
}

/**
 * Reads a header that must be, byte for byte, what `encodeHeader` writes: so there is no link, directory, device,
 * extension, base-256 number or other spelling of the same member.
 * @throws ZferryError `archive-malformed`, naming the offset of the header
 */
export function parseHeader(bytes: Uint8Array, offset: number): MemberHeader {
  const block = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const name = block.toString("latin1", FIELD.name, FIELD.name + MAX_NAME_BYTES).replace(/\0.*$/s, "");
  const number = (at: number): number | undefined => {
    const digits = block.toString("latin1", at, at + 11);
    return /^[0-7]{11}$/.test(digits) ? parseInt(digits, 8) : undefined;
  };
  const size = number(FIELD.size);
  const mtime = number(FIELD.mtime);
  if (
    name === "" ||
    size === undefined ||
    mtime === undefined ||
    !encodeHeader({ name, size, mtime }).every((byte, i) => byte === block[i])
  ) {
    throw archiveFault("the tar header is not the canonical one of a regular file", offset);
  }
  return { name, size, mtime };
}

export const archiveFault = (fault: string, offset: number, hint?: string): ZferryError =>
  new ZferryError("archive-malformed", `byte ${offset}: ${fault}`, { details: { offset }, hint });

export interface Sum {
  readonly name: string;
  /** 64 lower-case hex digits. */
  readonly sha256: string;
}

/** `SHA256SUMS` as `sha256sum` writes it: digest, two spaces, name, newline. */
export const encodeSums = (sums: readonly Sum[]): Uint8Array =>
  Buffer.from(sums.map(({ name, sha256 }) => `${sha256}  ${name}\n`).join(""), "latin1");

const SUM_LINE = /^([0-9a-f]{64}) {2}([A-Za-z0-9._/-]+)$/;

/**
 * Parses a list whose signature was checked before.
 * @throws ZferryError `sums-malformed`, naming the line
 */
export function parseSums(bytes: Uint8Array): Sum[] {
  const lines = Buffer.from(bytes).toString("latin1").split("\n");
  const fault = (line: number, what: string): ZferryError =>
    new ZferryError("sums-malformed", `${SUMS_NAME} line ${line}: ${what}`, {
      details: { member: SUMS_NAME, line },
    });
  if (lines.pop() !== "" || lines.length === 0) throw fault(lines.length + 1, "the last line does not end");
  const seen = new Set<string>();
  return lines.map((line, index) => {
    const [, sha256, name] = SUM_LINE.exec(line) ?? [];
    if (sha256 === undefined || name === undefined) {
      throw fault(index + 1, "is not a digest, two spaces and the name of a member");
    }
    if (seen.has(name)) throw fault(index + 1, `names ${name} a second time`);
    seen.add(name);
    return { name, sha256 };
  });
}
