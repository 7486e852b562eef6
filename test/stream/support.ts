import { Fletcher4 } from "../../src/stream/fletcher4.js";
import { encodeRecord, type HeaderFields, sealRecord } from "../../src/stream/records.js";

export const UINT64_MAX = (1n << 64n) - 1n;
export const TOGUID = 0x1122334455667788n;

/** The BEGIN record of every test stream, with some fields changed. */
export function begin(fields: Partial<HeaderFields<"BEGIN">> = {}, payload?: Uint8Array): Uint8Array {
  return encodeRecord(
    "BEGIN",
    {
      magic: 0x2f5bacbacn,
      versioninfo: 1n,
      creationTime: 1_750_000_000n,
      type: 2,
      toguid: TOGUID,
      fromguid: 99n,
      toname: "tank/BUILD/gentoo/usr@r2",
      ...fields,
    },
    payload,
  );
}

export function end(fields: Partial<HeaderFields<"END">> = {}): Uint8Array {
  return encodeRecord("END", { toguid: TOGUID, ...fields });
}

export function write(
  object: bigint,
  bytes: number,
  fields: Partial<HeaderFields<"WRITE">> = {},
): Uint8Array {
  const header = { object, type: 19, logicalSize: BigInt(bytes), toguid: TOGUID, ...fields };
  return encodeRecord("WRITE", header, filler(bytes));
}

export function free(object: bigint, fields: Partial<HeaderFields<"FREE">> = {}): Uint8Array {
  return encodeRecord("FREE", { object, length: UINT64_MAX, toguid: TOGUID, ...fields });
}

export function freeobjects(firstobj: bigint, numobjs: bigint): Uint8Array {
  return encodeRecord("FREEOBJECTS", { firstobj, numobjs, toguid: TOGUID });
}

/** One record of each type, with each way of telling the payload's length. */
export function everyRecord(): Uint8Array[] {
  const toguid = TOGUID;
  return [
    begin({ payloadlen: 24 }, filler(24)),
    encodeRecord("OBJECT_RANGE", { firstobj: 32n, numslots: 32n, toguid, mac: filler(16), flags: 1 }),
    encodeRecord("OBJECT", { object: 34n, type: 19, bonustype: 44, bonuslen: 9, toguid }, filler(16)),
    encodeRecord("OBJECT", { object: 35n, type: 19, bonuslen: 8, rawBonuslen: 20, toguid }, filler(20)),
    freeobjects(36n, 4n),
    write(34n, 64, { offset: 512n, key: filler(40) }),
    write(35n, 12, { logicalSize: 64n, compressiontype: 15, compressedSize: 12n }),
    encodeRecord("SPILL", { object: 35n, length: 32n, toguid, type: 44 }, filler(32)),
    encodeRecord("SPILL", { object: 36n, length: 32n, compressedSize: 16n, toguid }, filler(16)),
    encodeRecord("WRITE_EMBEDDED", { object: 37n, length: 512n, lsize: 50, psize: 21, toguid }, filler(24)),
    encodeRecord("REDACT", { object: 38n, offset: 512n, length: 512n, toguid }),
    free(39n),
    end(),
  ];
}

/** Bytes that differ from their neighbours, the same in every run. */
export function filler(length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i += 1) bytes[i] = i * 167 + (i >> 8) * 13 + 1;
  return bytes;
}

/** The stream of these records, with their checksums. */
export function seal(records: readonly Uint8Array[]): Uint8Array {
  const sum = new Fletcher4();
  for (const record of records) sealRecord(record, sum);
  return new Uint8Array(Buffer.concat(records));
}

export async function* inPieces(bytes: Uint8Array, pieceBytes: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += pieceBytes) yield bytes.subarray(at, at + pieceBytes);
}

/** All that a generator yields, and what it returns. */
export async function collect<Item, Result>(
  generator: AsyncGenerator<Item, Result, void>,
): Promise<{ items: Item[]; result: Result }> {
  const items: Item[] = [];
  for (;;) {
    const next = await generator.next();
    if (next.done === true) return { items, result: next.value };
    items.push(next.value);
  }
}
