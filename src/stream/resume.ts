import { ZferryError } from "../errors.js";
import { Fletcher4 } from "./fletcher4.js";
import { prependNumbers } from "./nvlist.js";
import {
  FEATURES,
  HEADER_BYTES,
  LAYOUT,
  RecordReader,
  sealRecord,
  viewHeader,
  type StreamRecord,
} from "./records.js";
import type { ResumePoint } from "./resume-token.js";

const OUTPUT_BYTES = 1 << 20;
/** Of the two bits of the header type. */
const FEATURES_SHIFT = 2n;

/**
 * The stream that `zfs send -t TOKEN` would write where the snapshots are, made from the whole stream: what an interrupted
 * `zfs receive -s` needs to go on. It differs only where blocks of more than 128 KiB were sent in pieces: zfs goes back to
 * the start of the block, which the stream does not tell. formats/stream.md, Resuming
 *
 * @param source the stream's records in pieces of any size, in order, and already known to be sound. Those without an
 *   object of `point.object` or above may be missing, but for BEGIN
 * @returns pieces, each valid until the next but one is asked for
 * @throws ZferryError `stream-malformed`
 */
export async function* resumeStream(
  source: AsyncIterable<Uint8Array>,
  point: ResumePoint,
): AsyncGenerator<Uint8Array, void, void> {
  const sum = new Fletcher4();
  let memory: Uint8Array = new Uint8Array(OUTPUT_BYTES);
  const spares: Uint8Array[] = [new Uint8Array(OUTPUT_BYTES), new Uint8Array(OUTPUT_BYTES)];
  let filled = 0;
  let full: Uint8Array | undefined;
  const reader = new RecordReader(
    (length) => {
      if (filled + length > memory.length) {
        full = memory.subarray(0, filled);
        spares.push(memory);
        const oldest = spares.shift() as Uint8Array;
        memory = length <= oldest.length ? oldest : new Uint8Array(length);
        filled = 0;
      }
      return memory.subarray(filled, filled + length);
    },
    { checksums: false },
  );
  for await (const piece of source) {
    for (const record of reader.read(piece)) {
      if (full !== undefined) {
        yield full;
        full = undefined;
      }
      if (!isNeeded(record, point)) continue;
      if (record.type === "BEGIN") {
        const begin = resumingBegin(record, point);
        sealRecord(begin, sum);
        yield begin;
        continue;
      }
      sealRecord(record.bytes, sum);
      filled += record.bytes.length;
    }
  }
  reader.finish();
  yield memory.subarray(0, filled);
}

/** Whether a receive that goes on at a point needs a record. It clips FREEOBJECTS, in place. */
function isNeeded({ type, object, lastObject, bytes }: StreamRecord, point: ResumePoint): boolean {
  const header = viewHeader(bytes);
  switch (type) {
    case "BEGIN":
    case "END":
      return true;
    case "OBJECT":
    case "SPILL":
      return object >= point.object;
    case "WRITE":
    case "WRITE_EMBEDDED":
    case "FREE":
    case "REDACT":
      return (
        object > point.object || (object === point.object && LAYOUT[type].offset.read(header) >= point.offset)
      );
    case "OBJECT_RANGE":
      return lastObject >= point.object;
    case "FREEOBJECTS": {
      if (lastObject < point.object) return false;
      const { firstobj, numobjs } = LAYOUT.FREEOBJECTS;
      const missing = point.object - object;
      if (missing > 0n) {
        firstobj.write(header, point.object);
        numobjs.write(header, numobjs.read(header) - missing);
      }
      return true;
    }
  }
}

function resumingBegin({ bytes, begin }: StreamRecord, { object, offset }: ResumePoint): Uint8Array {
  const list = prependNumbers(bytes.subarray(HEADER_BYTES), [
    ["resume_object", object],
    ["resume_offset", offset],
  ]);
  if (list === undefined) {
    throw new ZferryError(
      "stream-malformed",
      `BEGIN of ${begin.toname} has a payload that is no packed list`,
    );
  }
  const record = new Uint8Array(HEADER_BYTES + list.length);
  record.set(bytes.subarray(0, HEADER_BYTES));
  record.set(list, HEADER_BYTES);
  const header = viewHeader(record);
  const { payloadlen, versioninfo } = LAYOUT.BEGIN;
  payloadlen.write(header, list.length);
  versioninfo.write(header, versioninfo.read(header) | (1n << (BigInt(FEATURES.resuming) + FEATURES_SHIFT)));
  return record;
}
