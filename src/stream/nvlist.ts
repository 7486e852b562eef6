/*
 * nvlists: lists of names and values as ZFS packs them, in memory's own form ("native") or in XDR. formats/stream.md, Lists
 */

const HEADER_BYTES = 4;
const NATIVE = 0;
const XDR = 1;
const LITTLE_ENDIAN = 1;
/** Header, version, flags. */
const START_BYTES = 12;
const PAIR_BYTES = 16;
const UNIQUE_NAME = 1;

const BOOLEAN = 1;
const UINT64 = 8;
const STRING = 9;

const roundUp = (bytes: number, to: number): number => Math.ceil(bytes / to) * to;

/**
 * The numbers, strings and flags (as `true`) of a natively packed little-endian list; values of other types are left out.
 * @returns undefined for anything else
 */
export function readNativeList(list: Uint8Array): Map<string, bigint | string | true> | undefined {
  const view = Buffer.from(list.buffer, list.byteOffset, list.length);
  if (view.length < START_BYTES || view[0] !== NATIVE || view[1] !== LITTLE_ENDIAN) return undefined;
  const pairs = new Map<string, bigint | string | true>();
  for (let at = START_BYTES; at + 4 <= view.length;) {
    const size = view.readInt32LE(at);
    if (size === 0) return at + 4 === view.length ? pairs : undefined;
    if (size < PAIR_BYTES || size % 8 !== 0 || at + size > view.length) return undefined;
    const nameBytes = view.readInt16LE(at + 4);
    const value = PAIR_BYTES + roundUp(Math.max(nameBytes, 0), 8);
    if (nameBytes < 2 || value > size || view[at + PAIR_BYTES + nameBytes - 1] !== 0) return undefined;
    const name = view.toString("latin1", at + PAIR_BYTES, at + PAIR_BYTES + nameBytes - 1);
    if (pairs.has(name)) return undefined;
    const type = view.readInt32LE(at + 12);
    if (type === BOOLEAN) pairs.set(name, true);
    if (type === UINT64) {
      if (value + 8 > size) return undefined;
      pairs.set(name, view.readBigUInt64LE(at + value));
    }
    if (type === STRING) {
      const end = view.indexOf(0, at + value);
      if (end === -1 || end >= at + size) return undefined;
      pairs.set(name, view.toString("latin1", at + value, end));
    }
    at += size;
  }
  return undefined;
}

/**
 * A packed list with numbers before what it has; without a list, a new one.
 * @returns undefined for bytes that are no packed list
 */
export function prependNumbers(
  list: Uint8Array,
  numbers: readonly (readonly [name: string, value: bigint])[],
): Uint8Array | undefined {
  if (list.length === 0) {
    const start = Buffer.alloc(START_BYTES);
    start.writeUInt8(LITTLE_ENDIAN, 1);
    start.writeUInt32LE(UNIQUE_NAME, 8);
    return Buffer.concat([start, ...numbers.map(nativePair), Buffer.alloc(4)]);
  }
  if (list.length < START_BYTES + 4 || list[1] !== LITTLE_ENDIAN) return undefined;
  const pair = list[0] === NATIVE ? nativePair : list[0] === XDR ? xdrPair : undefined;
  if (pair === undefined) return undefined;
  return Buffer.concat([list.subarray(0, START_BYTES), ...numbers.map(pair), list.subarray(START_BYTES)]);
}

function nativePair([name, value]: readonly [string, bigint]): Uint8Array {
  const valueAt = PAIR_BYTES + roundUp(name.length + 1, 8);
  const pair = Buffer.alloc(valueAt + 8);
  pair.writeInt32LE(pair.length, 0);
  pair.writeInt16LE(name.length + 1, 4);
  pair.writeInt32LE(1, 8);
  pair.writeInt32LE(UINT64, 12);
  pair.write(name, PAIR_BYTES, "latin1");
  pair.writeBigUInt64LE(value, valueAt);
  return pair;
}

/** In XDR: sizes of the pair, packed and in memory; the name's length and bytes; type, count, value, all big-endian. */
function xdrPair([name, value]: readonly [string, bigint]): Uint8Array {
  const nameBytes = roundUp(name.length, 4);
  const pair = Buffer.alloc(HEADER_BYTES * 3 + nameBytes + 16);
  pair.writeInt32BE(pair.length, 0);
  pair.writeInt32BE(PAIR_BYTES + roundUp(name.length + 1, 8) + 8, 4);
  pair.writeInt32BE(name.length, 8);
  pair.write(name, 12, "latin1");
  pair.writeInt32BE(UINT64, 12 + nameBytes);
  pair.writeInt32BE(1, 16 + nameBytes);
  pair.writeBigUInt64BE(value, 20 + nameBytes);
  return pair;
}
