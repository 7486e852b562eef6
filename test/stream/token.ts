import { deflateSync } from "node:zlib";
import { Fletcher4 } from "../../src/stream/fletcher4.js";

/** A token of a packed list, as ZFS makes it. */
export function tokenOf(list: Uint8Array, bytes = list.length): string {
  const packed = deflateSync(list);
  const sum = new Fletcher4();
  sum.update(packed.subarray(0, packed.length - (packed.length % 4)));
  const checksum = Buffer.from(sum.digest()).readBigUInt64LE(0).toString(16);
  return `1-${checksum}-${bytes.toString(16)}-${packed.toString("hex")}`;
}

/** A pair of an nvlist. formats/stream.md, Lists */
export function pair(name: string, type: number, value: Uint8Array): Buffer {
  const nameBytes = Buffer.alloc(Math.ceil((name.length + 1) / 8) * 8);
  nameBytes.write(name);
  const valueBytes = Buffer.alloc(Math.ceil(value.length / 8) * 8);
  valueBytes.set(value);
  const head = Buffer.alloc(16);
  head.writeInt32LE(16 + nameBytes.length + valueBytes.length, 0);
  head.writeInt16LE(name.length + 1, 4);
  head.writeInt32LE(1, 8);
  head.writeInt32LE(type, 12);
  return Buffer.concat([head, nameBytes, valueBytes]);
}
export const number = (name: string, value: bigint): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(value);
  return pair(name, 8, bytes);
};
const START = Buffer.from([0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
export const listOf = (...pairs: Buffer[]): Buffer => Buffer.concat([START, ...pairs, Buffer.alloc(4)]);
