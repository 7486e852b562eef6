import { inflateSync } from "node:zlib";
import { ZferryError } from "../errors.js";
import { Fletcher4 } from "./fletcher4.js";
import { readNativeList } from "./nvlist.js";

/** Where an interrupted `zfs receive -s` goes on. */
export interface ResumePoint {
  readonly object: bigint;
  /** Bytes in the object. */
  readonly offset: bigint;
}

/** What `receive_resume_token` says. It comes from the site's pool, and is believed only as far as a bundle agrees. */
export interface ResumeToken extends ResumePoint {
  /** Guid of the snapshot that the stream leads to. */
  readonly toguid: bigint;
  /** Guid of the snapshot that the stream starts from; 0 for a full stream. */
  readonly fromguid: bigint;
  /** Bytes of the stream that ZFS had taken. */
  readonly bytes: bigint;
  /** Name of the snapshot on the sending host. */
  readonly toname: string;
}

/** formats/stream.md, Tokens */
const TOKEN = /^1-([0-9a-f]{1,16})-([0-9a-f]{1,8})-((?:[0-9a-f]{2})+)$/;
const MAX_LIST_BYTES = 64 * 1024;

/**
 * Parses a token as `zfs get -H -o value receive_resume_token DATASET` prints it.
 * @throws ZferryError `token-malformed`
 */
export function parseResumeToken(text: string): ResumeToken {
  const malformed = (fault: string): ZferryError =>
    new ZferryError("token-malformed", `resume token ${fault}`, {
      hint: "take it whole, from: zfs get -H -o value receive_resume_token DATASET",
    });
  const [, checksum, length, packed] = TOKEN.exec(text) ?? [];
  if (checksum === undefined || length === undefined || packed === undefined) {
    throw malformed("is not of the form 1-CHECKSUM-LENGTH-DATA");
  }
  const bytes = Number.parseInt(length, 16);
  if (bytes > MAX_LIST_BYTES) throw malformed(`says ${bytes} bytes, the limit is ${MAX_LIST_BYTES}`);
  const compressed = Buffer.from(packed, "hex");
  let inflated: { readonly buffer: Buffer; readonly engine: { readonly bytesWritten: number } };
  try {
    // With `info` it tells how much it took: it passes over what comes after the end.
    inflated = inflateSync(compressed, {
      maxOutputLength: Math.max(1, bytes),
      info: true,
    }) as unknown as typeof inflated;
  } catch (error) {
    throw malformed(`cannot be decompressed: ${error instanceof Error ? error.message : String(error)}`);
  }
  const list = inflated.buffer;
  if (inflated.engine.bytesWritten !== compressed.length) {
    throw malformed(`has ${compressed.length - inflated.engine.bytesWritten} bytes after its data`);
  }
  if (list.length !== bytes) throw malformed(`holds ${list.length} bytes, it says ${bytes}`);
  // The sum is that of the compressed bytes, of which ZFS leaves out what is no whole word.
  const sum = new Fletcher4();
  sum.update(compressed.subarray(0, compressed.length - (compressed.length % 4)));
  const found = Buffer.from(sum.digest()).readBigUInt64LE(0).toString(16);
  if (found !== checksum) throw malformed(`has checksum ${checksum}, its data give ${found}`);

  const pairs = readNativeList(list);
  if (pairs === undefined) throw malformed("holds no list of names and values");
  const number = (name: string, otherwise?: bigint): bigint => {
    const value = pairs.get(name) ?? otherwise;
    if (typeof value !== "bigint") throw malformed(`has no number ${name}`);
    return value;
  };
  const toname = pairs.get("toname");
  if (typeof toname !== "string") throw malformed("has no toname");
  return {
    object: number("object"),
    offset: number("offset"),
    toguid: number("toguid"),
    // Absent in a full stream's token.
    fromguid: number("fromguid", 0n),
    bytes: number("bytes"),
    toname,
  };
}
