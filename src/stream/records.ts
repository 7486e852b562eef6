import { Buffer } from "node:buffer";

import { ZferryError, type ErrorCode } from "../errors.js";
import { CHECKSUM_BYTES, Fletcher4 } from "./fletcher4.js";

/** Length of a record's header, which its payload follows. */
export const HEADER_BYTES = 312;

/** The longest payload of each record that has one, in bytes; so a record is at most 16 MiB and 312 bytes. */
export const PAYLOAD_LIMITS: Partial<Record<RecordType, number>> = {
  BEGIN: 1024 * 1024,
  OBJECT: 16 * 1024,
  WRITE: 16 * 1024 * 1024,
  SPILL: 16 * 1024 * 1024,
  WRITE_EMBEDDED: 112,
};

/** Feature flags by name: the bit in BEGIN's versioninfo, less the two bits of the header type. */
export const FEATURES = {
  dedup: 0,
  dedupprops: 1,
  sa_spill: 2,
  embed_data: 16,
  lz4: 17,
  large_blocks: 19,
  resuming: 20,
  redacted: 21,
  compressed: 22,
  large_dnode: 23,
  raw: 24,
  zstd: 25,
  holds: 26,
  switch_to_large_blocks: 27,
  longname: 28,
  large_microzap: 29,
} as const;

export type Feature = keyof typeof FEATURES;

const DEDUP_FEATURES: readonly Feature[] = ["dedup", "dedupprops"];

const MAGIC = 0x2f5bacbacn;
const MAGIC_BIG_ENDIAN = 0xaccbbaf502000000n;
const OBJECT_LIMIT = 1n << 48n;
const UINT64_MAX = (1n << 64n) - 1n;

interface Field<Value> {
  readonly at: number;
  readonly bytes: number;
  read(header: DataView): Value;
  write(header: DataView, value: Value): void;
}

const u8 = (at: number): Field<number> => ({
  at,
  bytes: 1,
  read: (header) => header.getUint8(at),
  write: (header, value) => header.setUint8(at, value),
});

const u32 = (at: number): Field<number> => ({
  at,
  bytes: 4,
  read: (header) => header.getUint32(at, true),
  write: (header, value) => header.setUint32(at, value, true),
});

const u64 = (at: number): Field<bigint> => ({
  at,
  bytes: 8,
  read: (header) => header.getBigUint64(at, true),
  write: (header, value) => header.setBigUint64(at, value, true),
});

const raw = (at: number, bytes: number): Field<Uint8Array> => ({
  at,
  bytes,
  read: (header) => new Uint8Array(header.buffer, header.byteOffset + at, bytes),
  write: (header, value) => new Uint8Array(header.buffer, header.byteOffset + at, bytes).set(value),
});

const text = (at: number, bytes: number): Field<string> => {
  const { read, write } = raw(at, bytes);
  return {
    at,
    bytes,
    read: (header) => {
      const value = Buffer.from(read(header));
      const end = value.indexOf(0);
      return value.toString("latin1", 0, end < 0 ? bytes : end);
    },
    write: (header, value) => write(header, Buffer.from(value, "latin1")),
  };
};

const CHECKSUM = raw(HEADER_BYTES - CHECKSUM_BYTES, CHECKSUM_BYTES);

/** The fields of each record's header, by their names in OpenZFS; bytes between them are zero. formats/stream.md, Records */
export const LAYOUT = {
  BEGIN: {
    payloadlen: u32(4),
    magic: u64(8),
    versioninfo: u64(16),
    creationTime: u64(24),
    type: u32(32),
    flags: u32(36),
    toguid: u64(40),
    fromguid: u64(48),
    toname: text(56, 256),
  },
  OBJECT: {
    object: u64(8),
    type: u32(16),
    bonustype: u32(20),
    blksz: u32(24),
    bonuslen: u32(28),
    checksumtype: u8(32),
    compress: u8(33),
    dnSlots: u8(34),
    flags: u8(35),
    rawBonuslen: u32(36),
    toguid: u64(40),
    indblkshift: u8(48),
    nlevels: u8(49),
    nblkptr: u8(50),
    maxblkid: u64(56),
    checksum: CHECKSUM,
  },
  FREEOBJECTS: {
    firstobj: u64(8),
    numobjs: u64(16),
    toguid: u64(24),
    checksum: CHECKSUM,
  },
  WRITE: {
    object: u64(8),
    type: u32(16),
    offset: u64(24),
    logicalSize: u64(32),
    toguid: u64(40),
    checksumtype: u8(48),
    flags: u8(49),
    compressiontype: u8(50),
    key: raw(56, 40),
    compressedSize: u64(96),
    salt: raw(104, 8),
    iv: raw(112, 12),
    mac: raw(124, 16),
    checksum: CHECKSUM,
  },
  FREE: {
    object: u64(8),
    offset: u64(16),
    length: u64(24),
    toguid: u64(32),
    checksum: CHECKSUM,
  },
  END: {
    streamChecksum: raw(8, CHECKSUM_BYTES),
    toguid: u64(40),
    checksum: CHECKSUM,
  },
  SPILL: {
    object: u64(8),
    length: u64(16),
    toguid: u64(24),
    flags: u8(32),
    compressiontype: u8(33),
    compressedSize: u64(40),
    salt: raw(48, 8),
    iv: raw(56, 12),
    mac: raw(68, 16),
    type: u32(84),
    checksum: CHECKSUM,
  },
  WRITE_EMBEDDED: {
    object: u64(8),
    offset: u64(16),
    length: u64(24),
    toguid: u64(32),
    compression: u8(40),
    etype: u8(41),
    lsize: u32(48),
    psize: u32(52),
    checksum: CHECKSUM,
  },
  OBJECT_RANGE: {
    firstobj: u64(8),
    numslots: u64(16),
    toguid: u64(24),
    salt: raw(32, 8),
    iv: raw(40, 12),
    mac: raw(52, 16),
    flags: u8(68),
    checksum: CHECKSUM,
  },
  REDACT: {
    object: u64(8),
    offset: u64(16),
    length: u64(24),
    toguid: u64(32),
    checksum: CHECKSUM,
  },
} as const;

export type RecordType = keyof typeof LAYOUT;

/** What a record's header says: 64-bit numbers as bigint, smaller ones as number, keys and sums as bytes. */
export type HeaderFields<Type extends RecordType> = {
  -readonly [Name in keyof (typeof LAYOUT)[Type]]: (typeof LAYOUT)[Type][Name] extends Field<infer Value>
    ? Value
    : never;
};

/** Record types by their number; WRITE_BYREF is known, and refused. */
const TYPES: readonly (RecordType | "WRITE_BYREF")[] = [
  "BEGIN",
  "OBJECT",
  "FREEOBJECTS",
  "WRITE",
  "FREE",
  "END",
  "WRITE_BYREF",
  "SPILL",
  "WRITE_EMBEDDED",
  "OBJECT_RANGE",
  "REDACT",
];

const TYPE = u32(0);

/** The header's fields can be read and written through it by {@link LAYOUT}. */
export const viewHeader = (record: Uint8Array) =>
  new DataView(record.buffer, record.byteOffset, HEADER_BYTES);

/**
 * The header of a record, of which the reader gave the type. Byte fields are views of `record`.
 *
 * @param record a header or a whole record
 */
export function decodeHeader<Type extends RecordType>(type: Type, record: Uint8Array): HeaderFields<Type> {
  const view = viewHeader(record);
  const fields = Object.entries<Field<unknown>>(LAYOUT[type]);
  return Object.fromEntries(fields.map(([name, field]) => [name, field.read(view)])) as HeaderFields<Type>;
}

/** A record with these fields, the others zero. Its checksums come from {@link sealRecord}. */
export function encodeRecord<Type extends RecordType>(
  type: Type,
  fields: Partial<HeaderFields<Type>>,
  payload: Uint8Array = new Uint8Array(),
): Uint8Array {
  const record = new Uint8Array(HEADER_BYTES + payload.length);
  const view = viewHeader(record);
  TYPE.write(view, TYPES.indexOf(type));
  const layout: Record<string, Field<unknown>> = LAYOUT[type];
  for (const [name, value] of Object.entries(fields)) layout[name]?.write(view, value);
  record.set(payload, HEADER_BYTES);
  return record;
}

/**
 * Writes the checksums of the stream up to here into a record, in place, and adds the record to `sum`.
 * formats/stream.md, Checksums
 *
 * @param sum of all records before this one
 */
export function sealRecord(record: Uint8Array, sum: Fletcher4): void {
  const view = viewHeader(record);
  const type = TYPES[TYPE.read(view)];
  if (type === "END") LAYOUT.END.streamChecksum.write(view, sum.digest());
  if (type !== "BEGIN") {
    sum.update(record.subarray(0, CHECKSUM.at));
    CHECKSUM.write(view, sum.digest());
    sum.update(record.subarray(CHECKSUM.at));
  } else {
    sum.update(record);
  }
}

/** What a stream says of itself in its first record. */
export interface BeginRecord {
  /** Guid of the snapshot that the stream leads to. */
  readonly toguid: bigint;
  /** Guid of the snapshot that the stream starts from; 0 for a full stream. */
  readonly fromguid: bigint;
  /** Name of the snapshot on the sending host, `pool/dataset@snapshot`. */
  readonly toname: string;
  /** When the snapshot was taken, in seconds since 1970. */
  readonly creationTime: bigint;
  readonly objsetType: "filesystem" | "volume";
  readonly featureFlags: bigint;
  /** Names of the feature flags, in the order of their bits. */
  readonly features: readonly Feature[];
  /** Flags that ask nothing of a receiver: clone 1, ci_data 2, freerecords 4, spill_block 8. */
  readonly flags: number;
}

export interface StreamRecord {
  /** Number of records before this one. */
  readonly index: number;
  /** Bytes of the stream before this record. */
  readonly offset: number;
  readonly type: RecordType;
  /** What the stream says of itself. */
  readonly begin: BeginRecord;
  /** The object, or the first of a range of objects; 0 in BEGIN and END. */
  readonly object: bigint;
  /** The last object of a range, at most 2^64-1; otherwise the object. */
  readonly lastObject: bigint;
  /** Header and payload. Without a place of the caller's own, valid until the next record is asked for. */
  readonly bytes: Uint8Array;
}

/** A whole stream that had no fault. */
export interface StreamSummary {
  readonly begin: BeginRecord;
  /** Length of the stream in bytes. */
  readonly bytes: number;
  /** Number of records, with BEGIN and END. */
  readonly records: number;
}

/** Makes the error for the record that is being read. */
type Refuse = (what: string, code?: ErrorCode, hint?: string) => ZferryError;

/**
 * Cuts a stream into records and checks all that formats/stream.md asks for. A record's payload is covered by the
 * checksums of the records after it, so nothing is certain before `finish` returned.
 */
export class RecordReader {
  readonly #place: (length: number) => Uint8Array;
  readonly #checksums: boolean;
  readonly #sum = new Fletcher4();
  readonly #header = new Uint8Array(HEADER_BYTES);
  readonly #view = viewHeader(this.#header);
  readonly #beforeChecksum = this.#header.subarray(0, CHECKSUM.at);
  readonly #checksum = this.#header.subarray(CHECKSUM.at);
  #begin: BeginRecord | undefined;
  #ended = false;
  /** Of the record that is being read. */
  #index = 0;
  #offset = 0;
  /** The record whose header is complete, and how many bytes of it, or of the header before, are here. */
  #record: StreamRecord | undefined;
  #filled = 0;

  /**
   * @param place gives the memory for a record of `length` bytes; without it the reader uses its own again and again
   * @param options.checksums `false` for records of a stream of which some are left out
   */
  constructor(
    place: (length: number) => Uint8Array = reuseMemory(),
    { checksums = true }: { readonly checksums?: boolean } = {},
  ) {
    this.#place = place;
    this.#checksums = checksums;
  }

  /**
   * Takes the next bytes of the stream, split anywhere, and gives the records that they complete. Iterate to the
   * end before the next call.
   *
   * @throws {ZferryError} `stream-malformed`, `stream-unsupported`
   */
  *read(piece: Uint8Array): Generator<StreamRecord, void> {
    const bytes = new Uint8Array(piece.buffer, piece.byteOffset, piece.length); // subarray of a Buffer is slow
    let at = 0;
    while (at < bytes.length) {
      if (this.#ended) {
        throw new ZferryError(
          "stream-malformed",
          `stream goes on after its END record, at byte ${this.#offset}`,
          {
            details: { offset: this.#offset },
          },
        );
      }
      if (this.#record === undefined) {
        at += this.#fill(this.#header, bytes, at);
        if (this.#filled < HEADER_BYTES) return;
        this.#record = this.#open();
      }
      const record = this.#record;
      if (record.bytes.length > HEADER_BYTES) {
        at += this.#fill(record.bytes, bytes, at);
        if (this.#filled < record.bytes.length) return;
        if (this.#checksums) this.#sum.update(record.bytes.subarray(HEADER_BYTES));
      }
      this.#record = undefined;
      this.#filled = 0;
      this.#index += 1;
      this.#offset += record.bytes.length;
      this.#ended = record.type === "END";
      yield record;
    }
  }

  /**
   * To be called after the last bytes.
   *
   * @throws {ZferryError} `stream-malformed` if the stream ends early
   */
  finish(): StreamSummary {
    if (this.#begin === undefined || !this.#ended) {
      const end = this.#offset + this.#filled;
      const where = this.#filled > 0 ? `inside record ${this.#index}` : "without an END record";
      throw new ZferryError("stream-malformed", `stream ends at byte ${end}, ${where}`, {
        details: { offset: end, record: this.#index },
        hint: "the stream is cut off: send or copy it again",
      });
    }
    return { begin: this.#begin, bytes: this.#offset, records: this.#index };
  }

  #fill(target: Uint8Array, piece: Uint8Array, at: number): number {
    const count = Math.min(target.length - this.#filled, piece.length - at);
    target.set(piece.subarray(at, at + count), this.#filled);
    this.#filled += count;
    return count;
  }

  /** Checks a whole header and makes room for its record. */
  #open(): StreamRecord {
    const view = this.#view;
    const refuse = this.#refuse;
    const type = TYPES[TYPE.read(view)];
    if (this.#begin === undefined) {
      if (type !== "BEGIN") {
        throw refuse("is not BEGIN, so this is no zfs send stream", "stream-malformed", PLAIN_HINT);
      }
      this.#begin = readBegin(view, refuse);
    } else if (type === "BEGIN") {
      throw refuse("is a second BEGIN record");
    }
    if (type === undefined) throw refuse(`has a type that is not 0 to ${TYPES.length - 1}`);
    if (type === "WRITE_BYREF") throw refuse("is of a deduplicated stream", "stream-unsupported", DEDUP_HINT);
    const toguid = LAYOUT[type].toguid.read(view);
    if (toguid !== this.#begin.toguid) throw refuse(`has toguid ${toguid}, BEGIN has ${this.#begin.toguid}`);

    checkExtent(type, view, refuse);
    const [object, lastObject] = readObjects(type, view, refuse);
    const length = HEADER_BYTES + readPayloadLength(type, view, refuse);
    if (this.#checksums) this.#checkSums(type);

    const bytes = this.#place(length);
    bytes.set(this.#header);
    return { index: this.#index, offset: this.#offset, type, begin: this.#begin, object, lastObject, bytes };
  }

  // formats/stream.md, Checksums
  #checkSums(type: RecordType): void {
    if (type === "END") {
      const checksum = LAYOUT.END.streamChecksum.read(this.#view);
      if (!this.#sum.matches(checksum)) throw this.#refuseSum("stream checksum", checksum);
    }
    this.#sum.update(this.#beforeChecksum);
    const wrong = type !== "BEGIN" && !this.#sum.matches(this.#checksum);
    if (wrong && this.#checksum.some((byte) => byte !== 0)) throw this.#refuseSum("checksum", this.#checksum);
    this.#sum.update(this.#checksum);
  }

  #refuseSum(name: string, checksum: Uint8Array): ZferryError {
    return this.#refuse(`has ${name} ${hex(checksum)}, the bytes before it give ${hex(this.#sum.digest())}`);
  }

  readonly #refuse: Refuse = (what, code = "stream-malformed", hint) => {
    const number = TYPE.read(this.#view);
    const type = TYPES[number] ?? `type ${number}`;
    return new ZferryError(code, `record ${this.#index} (${type}) at byte ${this.#offset} ${what}`, {
      details: { record: this.#index, type, offset: this.#offset },
      ...(hint === undefined ? {} : { hint }),
    });
  };
}

/**
 * Passes a stream through and checks it: each byte is given on once the reader took it, and a fault is thrown in
 * its place. Only the return value says that the stream is whole.
 *
 * @throws {ZferryError} `stream-malformed`, `stream-unsupported`
 */
export async function* verifyStream(
  source: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array, StreamSummary, void> {
  const reader = new RecordReader();
  for await (const piece of source) {
    for (const record of reader.read(piece)) void record;
    yield piece;
  }
  return reader.finish();
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

function reuseMemory(): (length: number) => Uint8Array {
  let memory = new Uint8Array(256 * 1024);
  return (length) => {
    if (length > memory.length) memory = new Uint8Array(length);
    return memory.subarray(0, length);
  };
}

const COMPOUND_HINT =
  "zfs send -R, -p and -I make compound streams: send one step, with -i or without a base";
const PLAIN_HINT = "what zfs send writes is taken as it is: a compressed one must be decompressed before";
const DEDUP_HINT = "zfs send -D made it: send it again without, or convert it with zstream redup";

function readBegin(view: DataView, refuse: Refuse): BeginRecord {
  const { BEGIN } = LAYOUT;
  const magic = BEGIN.magic.read(view);
  if (magic === MAGIC_BIG_ENDIAN) {
    throw refuse("is of a big-endian host, only little-endian is supported", "stream-unsupported");
  }
  if (magic !== MAGIC) {
    throw refuse(
      `is not of a zfs send stream: magic ${magic.toString(16)}, not ${MAGIC.toString(16)}`,
      "stream-malformed",
      PLAIN_HINT,
    );
  }

  const versioninfo = BEGIN.versioninfo.read(view);
  const headerType = versioninfo & 3n;
  if (headerType === 2n) throw refuse("is of a compound stream", "stream-unsupported", COMPOUND_HINT);
  if (headerType !== 1n) throw refuse(`has header type ${headerType}, not 1 for a single stream`);

  const type = BEGIN.type.read(view);
  const objsetType = type === 2 ? "filesystem" : type === 3 ? "volume" : undefined;
  if (objsetType === undefined) {
    throw refuse(`is of objset type ${type}, not 2 (filesystem) or 3 (volume)`, "stream-unsupported");
  }
  const toguid = BEGIN.toguid.read(view);
  if (toguid === 0n) throw refuse("has toguid 0");
  const toname = BEGIN.toname.read(view);
  if (!isSnapshotName(toname)) {
    throw refuse(`has toname ${JSON.stringify(toname)}, which is no snapshot's name`);
  }
  const featureFlags = versioninfo >> 2n;
  return {
    toguid,
    fromguid: BEGIN.fromguid.read(view),
    toname,
    creationTime: BEGIN.creationTime.read(view),
    objsetType,
    featureFlags,
    features: readFeatures(featureFlags, refuse),
    flags: BEGIN.flags.read(view),
  };
}

function readFeatures(featureFlags: bigint, refuse: Refuse): Feature[] {
  const features: Feature[] = [];
  for (let bit = 0; featureFlags >> BigInt(bit) !== 0n; bit += 1) {
    if (((featureFlags >> BigInt(bit)) & 1n) === 0n) continue;
    const feature = FEATURE_NAMES.get(bit);
    if (feature === undefined) {
      throw refuse(`has feature flag ${bit}, which is not known to zferry`, "stream-unsupported");
    }
    if (DEDUP_FEATURES.includes(feature)) {
      throw refuse(`has feature flag ${bit} (${feature})`, "stream-unsupported", DEDUP_HINT);
    }
    features.push(feature);
  }
  return features;
}

const FEATURE_NAMES = new Map<number, Feature>(
  Object.entries(FEATURES).map(([name, bit]) => [bit, name as Feature]),
);

/** As zfs itself checks it: components of `[A-Za-z0-9_.:% -]`, none of them `.` or `..`, and a letter first. */
function isSnapshotName(name: string): boolean {
  return (
    name.length < LAYOUT.BEGIN.toname.bytes &&
    /^[A-Za-z][\w.:% -]*(\/[\w.:% -]+)*@[\w.:% -]+$/.test(name) &&
    !/\/\.\.?[/@]/.test(name)
  );
}

function readPayloadLength(type: RecordType, view: DataView, refuse: Refuse): number {
  const length = announcedLength(type, view);
  const limit = PAYLOAD_LIMITS[type] ?? 0;
  if (length > limit) throw refuse(`has a payload of ${length} bytes, the limit is ${limit}`);
  const bytes = Number(length);
  if (bytes % 4 !== 0) throw refuse(`has a payload of ${bytes} bytes, which are not whole 32-bit words`);
  return bytes;
}

function announcedLength(type: RecordType, view: DataView): number | bigint {
  const { BEGIN, OBJECT, WRITE, SPILL, WRITE_EMBEDDED } = LAYOUT;
  switch (type) {
    case "BEGIN":
      return BEGIN.payloadlen.read(view);
    case "OBJECT":
      return OBJECT.rawBonuslen.read(view) || roundUp8(OBJECT.bonuslen.read(view));
    case "WRITE":
      return (WRITE.compressiontype.read(view) === 0 ? WRITE.logicalSize : WRITE.compressedSize).read(view);
    case "SPILL":
      return SPILL.compressedSize.read(view) || SPILL.length.read(view);
    case "WRITE_EMBEDDED":
      return roundUp8(WRITE_EMBEDDED.psize.read(view));
    default:
      return 0;
  }
}

const roundUp8 = (bytes: number) => Math.ceil(bytes / 8) * 8;

/** The first and the last object that a record is about. */
function readObjects(type: RecordType, view: DataView, refuse: Refuse): [bigint, bigint] {
  switch (type) {
    case "BEGIN":
    case "END":
      return [0n, 0n];
    case "FREEOBJECTS":
      return objectRange(LAYOUT.FREEOBJECTS.firstobj.read(view), LAYOUT.FREEOBJECTS.numobjs.read(view));
    case "OBJECT_RANGE":
      return objectRange(LAYOUT.OBJECT_RANGE.firstobj.read(view), LAYOUT.OBJECT_RANGE.numslots.read(view));
    default: {
      const object = LAYOUT[type].object.read(view);
      if (object === 0n || object >= OBJECT_LIMIT) {
        throw refuse(`has object ${object}, which is not 1 to ${OBJECT_LIMIT - 1n}`);
      }
      return [object, object];
    }
  }
}

function objectRange(first: bigint, count: bigint): [bigint, bigint] {
  if (count === 0n) return [first, first];
  const last = first + count - 1n;
  return [first, last < UINT64_MAX ? last : UINT64_MAX];
}

/** Checks that what a record writes or frees ends below 2^64; a length of 2^64-1 means to the end of the object. */
function checkExtent(type: RecordType, view: DataView, refuse: Refuse): void {
  if (type !== "WRITE" && type !== "WRITE_EMBEDDED" && type !== "FREE" && type !== "REDACT") return;
  const offset = LAYOUT[type].offset.read(view);
  const length = (type === "WRITE" ? LAYOUT.WRITE.logicalSize : LAYOUT[type].length).read(view);
  const toEnd = length === UINT64_MAX && (type === "FREE" || type === "REDACT");
  if (!toEnd && offset + length > UINT64_MAX) {
    throw refuse(`has offset ${offset} and length ${length}, which pass 2^64-1`);
  }
}
