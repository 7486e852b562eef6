import { ZferryError } from "../errors.js";
import { type BeginRecord, RecordReader, type StreamRecord, type StreamSummary } from "./records.js";

const KIB = 1024;
const MIB = 1024 * KIB;

/** Bytes that a chunk has at most, unless one record alone has more. formats/stream.md, Chunks */
export const CHUNK_BYTES = { least: 256 * KIB, usual: 8 * MIB, most: 32 * MIB } as const;

/** A run of whole records. */
export interface StreamChunk {
  readonly index: number;
  /** Bytes of the stream before this chunk. */
  readonly offset: number;
  /** The records' bytes, as in the stream, at the beginning of memory of their own. */
  readonly data: Uint8Array;
  /** Largest object number of the records, with the last of each range; 0 if none has one. */
  readonly largestObject: bigint;
  /** What the stream says of itself: the same in each chunk. */
  readonly begin: BeginRecord;
}

/**
 * Cuts a send stream into chunks, which in a row are the stream. It checks the stream on the way; as checksums
 * follow what they cover, the chunks count only once the generator has returned. formats/stream.md, Chunks
 *
 * @param source the stream, in pieces of any size; a piece is not used after the next one was asked for
 * @param options.memory gives the memory for a chunk of at most so many bytes
 * @throws {ZferryError} `stream-malformed`, `stream-unsupported` (also for a resuming stream, which is a part of a
 *   difference only), `usage` if `chunkBytes` is out of its range
 */
export async function* chunkStream(
  source: AsyncIterable<Uint8Array>,
  options: { chunkBytes?: number; memory?: (bytes: number) => Uint8Array } = {},
): AsyncGenerator<StreamChunk, StreamSummary, void> {
  const { chunkBytes = CHUNK_BYTES.usual, memory = (bytes) => new Uint8Array(bytes) } = options;
  if (!Number.isInteger(chunkBytes) || chunkBytes < CHUNK_BYTES.least || chunkBytes > CHUNK_BYTES.most) {
    const range = `${CHUNK_BYTES.least} to ${CHUNK_BYTES.most}`;
    throw new ZferryError("usage", `chunk size of ${chunkBytes} bytes is not ${range}`);
  }
  const cut: { open: OpenChunk; full?: OpenChunk | undefined } = { open: openChunk(new Uint8Array()) };
  const reader = new RecordReader((length) => {
    if (cut.open.bytes + length > cut.open.memory.length) {
      if (cut.open.bytes > 0) cut.full = cut.open;
      cut.open = openChunk(memory(Math.max(chunkBytes, length)));
    }
    cut.open.bytes += length;
    return cut.open.memory.subarray(cut.open.bytes - length, cut.open.bytes);
  });

  let index = 0;
  let offset = 0;
  const close = ({ memory, bytes, largestObject }: OpenChunk, begin: BeginRecord): StreamChunk => {
    const chunk = { index, offset, data: memory.subarray(0, bytes), largestObject, begin };
    index += 1;
    offset += bytes;
    return chunk;
  };

  for await (const piece of source) {
    for (const record of reader.read(piece)) {
      // Known to be full once the record that did not fit is complete.
      if (cut.full !== undefined) {
        yield close(cut.full, record.begin);
        cut.full = undefined;
      }
      describe(cut.open, record);
    }
  }
  const summary = reader.finish();
  yield close(cut.open, summary.begin);
  return summary;
}

/**
 * Takes chunks as they are stored, which in a row are a stream, and checks them and the stream: what {@link chunkStream}
 * said of each is said again. As in a {@link RecordReader} nothing is certain before `finish` returned.
 */
export class ChunkReader {
  readonly #reader = new RecordReader();
  #index = 0;
  #offset = 0;

  /**
   * @param data the next chunk
   * @throws {ZferryError} `stream-malformed`, also for a chunk that ends inside a record, and `stream-unsupported`
   */
  read(data: Uint8Array): StreamChunk {
    const open = openChunk(data);
    let begin: BeginRecord | undefined;
    for (const record of this.#reader.read(data)) {
      open.bytes += record.bytes.length;
      begin = record.begin;
      describe(open, record);
    }
    const [index, offset] = [this.#index, this.#offset];
    if (begin === undefined || open.bytes < data.length) {
      throw new ZferryError(
        "stream-malformed",
        `chunk ends at byte ${offset + data.length}, inside the record at byte ${offset + open.bytes}`,
        { details: { offset: offset + data.length } },
      );
    }
    this.#index += 1;
    this.#offset += data.length;
    return { index, offset, data, largestObject: open.largestObject, begin };
  }

  /**
   * To be called after the last chunk.
   *
   * @throws {ZferryError} `stream-malformed` if the stream ends early
   */
  finish(): StreamSummary {
    return this.#reader.finish();
  }
}

interface OpenChunk {
  readonly memory: Uint8Array;
  bytes: number;
  largestObject: bigint;
}

const openChunk = (memory: Uint8Array): OpenChunk => ({ memory, bytes: 0, largestObject: 0n });

/** Adds what a record says to what is said of its chunk. */
function describe(chunk: OpenChunk, { begin, lastObject }: StreamRecord): void {
  if (begin.features.includes("resuming")) {
    throw new ZferryError("stream-unsupported", `stream of ${begin.toname} is a resuming one`, {
      hint: "zfs send -t made it, and it is a part only: send the snapshot without a token",
    });
  }
  if (lastObject > chunk.largestObject) chunk.largestObject = lastObject;
}
