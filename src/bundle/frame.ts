import zstd from "zstd-napi/binding.js";
import { ZferryError } from "../errors.js";

/** zstd's levels without the "ultra" and the negative ones' exceptions: 1 quick and large, 22 slow and small. */
export const MIN_LEVEL = 1;
export const MAX_LEVEL = 22;

// formats/bundle.md, Frames: the bits of the frame header descriptor (RFC 8878, 3.1.1.1.1).
const SINGLE_SEGMENT_FLAG = 0x20;
const RESERVED_BIT = 0x08;
const CHECKSUM_FLAG = 0x04;
const DICTIONARY_FLAG = 0x03;

/** What a frame may need of the content before to decompress the rest. */
const MAX_WINDOW_LOG = 27;
/** Up to so many raw bytes are compressed in one go, which makes a smaller frame for some. */
const WHOLE_BYTES = 32 << 20;
const FRAME_HEADER_BYTES = 18;
const PIECE_BYTES = 128 << 10;

/** Bytes that a frame of so many raw bytes has at most. */
export const frameBound = (rawBytes: number): number => zstd.compressBound(rawBytes);

// A context has tables of up to 90 MiB. Each thread has its own, and no state goes from one frame to the next.
let compressor: InstanceType<typeof zstd.CCtx> | undefined;
let decompressor: InstanceType<typeof zstd.DCtx> | undefined;

/**
 * Compresses to one zstd frame with content size, without checksum or dictionary.
 * @param into memory of at least {@link frameBound} bytes, if the frame is not to have new memory
 */
export function encodeFrame(
  raw: Uint8Array,
  level: number,
  into: Uint8Array = new Uint8Array(frameBound(raw.length)),
): Uint8Array {
  compressor ??= new zstd.CCtx();
  setLevel(compressor, level);
  return into.subarray(0, compressor.compress2(into, raw));
}

function setLevel(context: InstanceType<typeof zstd.CCtx>, level: number): void {
  context.reset(zstd.ResetDirective.sessionAndParameters);
  context.setParameter(zstd.CParameter.compressionLevel, level);
  context.setParameter(zstd.CParameter.contentSizeFlag, 1);
  context.setParameter(zstd.CParameter.checksumFlag, 0);
}

/**
 * Compresses what comes in pieces to one frame, of the same form, in memory that does not grow with it. How the content is
 * cut makes no difference to the bytes. Each piece is valid until the next one is asked for.
 * @param rawBytes what the pieces have
 */
export async function* encodeFrameOf(
  pieces: AsyncIterable<Uint8Array>,
  rawBytes: number,
  level: number,
): AsyncGenerator<Uint8Array, void, void> {
  if (rawBytes <= WHOLE_BYTES) {
    const parts: Uint8Array[] = [];
    for await (const piece of pieces) parts.push(piece);
    yield encodeFrame(Buffer.concat(parts), level);
    return;
  }
  const context = new zstd.CCtx();
  setLevel(context, level);
  context.setPledgedSrcSize(rawBytes);
  const out = new Uint8Array(PIECE_BYTES);
  const compress = function* (piece: Uint8Array, how: number): Generator<Uint8Array> {
    for (let rest = piece; ;) {
      const [left, produced, consumed] = context.compressStream2(out, rest, how);
      if (produced > 0) yield out.subarray(0, produced);
      rest = rest.subarray(consumed);
      if (how === zstd.EndDirective.end ? left === 0 : rest.length === 0) return;
    }
  };
  for await (const piece of pieces) yield* compress(piece, zstd.EndDirective.continue);
  yield* compress(new Uint8Array(), zstd.EndDirective.end);
}

/**
 * Decompresses exactly one frame that holds exactly `rawBytes`. Memory is taken for `rawBytes` and no more,
 * whatever the frame claims.
 * @param into memory of at least `rawBytes`, if the content is not to have new memory
 * @throws ZferryError `frame-malformed`
 */
export function decodeFrame(
  frame: Uint8Array,
  rawBytes: number,
  name: string,
  into?: Uint8Array,
): Uint8Array {
  return asMalformed(name, () => {
    checkHeader(frame, rawBytes, name);
    const end = zstd.findFrameCompressedSize(frame);
    if (end !== frame.length) throw malformed(name, `frame ends at byte ${end} of ${frame.length}`);
    const raw = into?.subarray(0, rawBytes) ?? new Uint8Array(rawBytes);
    decompressor ??= new zstd.DCtx();
    const length = decompressor.decompress(raw, frame);
    if (length !== rawBytes)
      throw malformed(name, `frame gave ${length} bytes, the manifest says ${rawBytes}`);
    return raw;
  });
}

/**
 * The same of a frame that comes in pieces, in memory for the frame's window alone. Each piece of what comes out is valid
 * until the next one is asked for, and all of it counts only once the last one came.
 * @throws ZferryError `frame-malformed`
 */
export async function* decodeFrameOf(
  pieces: AsyncIterable<Uint8Array>,
  rawBytes: number,
  name: string,
): AsyncGenerator<Uint8Array, void, void> {
  const context = new zstd.DCtx();
  context.setParameter(zstd.DParameter.windowLogMax, MAX_WINDOW_LOG);
  const out = new Uint8Array(PIECE_BYTES);
  let start = Buffer.of();
  let [given, produced, ended] = [0, 0, false];
  const decompress = function* (piece: Uint8Array): Generator<Uint8Array> {
    for (let rest = piece; ;) {
      if (ended) throw malformed(name, `frame ends at byte ${given}, the member goes on`);
      const [left, length, consumed] = asMalformed(name, () => context.decompressStream(out, rest));
      rest = rest.subarray(consumed);
      [given, produced, ended] = [given + consumed, produced + length, left === 0];
      if (produced > rawBytes)
        throw malformed(name, `frame gives more bytes than the ${rawBytes} of the manifest`);
      if (length > 0) yield out.subarray(0, length);
      if (rest.length === 0 && (ended || length < out.length)) return;
    }
  };
  for await (const piece of pieces) {
    if (start.length < FRAME_HEADER_BYTES) {
      start = Buffer.concat([start, piece]);
      if (start.length < FRAME_HEADER_BYTES) continue;
      asMalformed(name, () => checkHeader(start, rawBytes, name));
      yield* decompress(start);
    } else {
      yield* decompress(piece);
    }
  }
  if (start.length < FRAME_HEADER_BYTES) {
    // So little is decompressed at once.
    yield decodeFrame(start, rawBytes, name);
  } else if (!ended || produced !== rawBytes) {
    throw malformed(name, `frame gave ${produced} bytes, the manifest says ${rawBytes}`);
  }
}

const malformed = (name: string, fault: string): ZferryError =>
  new ZferryError("frame-malformed", `${name}: ${fault}`, { details: { member: name } });

function asMalformed<Result>(name: string, use: () => Result): Result {
  try {
    return use();
  } catch (error) {
    if (error instanceof ZferryError) throw error;
    throw malformed(name, `zstd: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** @param start of a frame: its header at least, if it has one */
function checkHeader(start: Uint8Array, rawBytes: number, name: string): void {
  const descriptor = start[4];
  if (descriptor === undefined || Buffer.from(start.subarray(0, 4)).readUInt32LE() !== zstd.MAGICNUMBER) {
    throw malformed(name, "is not a zstd frame");
  }
  if (descriptor & (RESERVED_BIT | CHECKSUM_FLAG | DICTIONARY_FLAG)) {
    const shown = `0x${descriptor.toString(16)}`;
    throw malformed(name, `frame header descriptor ${shown} asks for a checksum or dictionary`);
  }
  const size = zstd.getFrameContentSize(start);
  if (size !== rawBytes)
    throw malformed(name, `frame holds ${size ?? "unknown"} bytes, the manifest says ${rawBytes}`);
  const window = descriptor & SINGLE_SEGMENT_FLAG ? rawBytes : windowBytes(start[5] ?? 0);
  if (window > 2 ** MAX_WINDOW_LOG)
    throw malformed(name, `frame has a window of ${window} bytes, the limit is ${2 ** MAX_WINDOW_LOG}`);
}

// RFC 8878, 3.1.1.1.2
const windowBytes = (descriptor: number): number =>
  2 ** (10 + (descriptor >> 3)) * (1 + (descriptor & 7) / 8);
