import zstd from "zstd-napi/binding.js";
import { ZferryError } from "../errors.js";

/** zstd's levels without the "ultra" and the negative ones' exceptions: 1 quick and large, 22 slow and small. */
export const MIN_LEVEL = 1;
export const MAX_LEVEL = 22;

// formats/bundle.md, Frames: the bits of the frame header descriptor (RFC 8878, 3.1.1.1.1).
const RESERVED_BIT = 0x08;
const CHECKSUM_FLAG = 0x04;
const DICTIONARY_FLAG = 0x03;

/** Compresses to one zstd frame with content size, without checksum or dictionary. */
export function encodeFrame(raw: Uint8Array, level: number): Uint8Array {
  const context = new zstd.CCtx();
  context.setParameter(zstd.CParameter.compressionLevel, level);
  context.setParameter(zstd.CParameter.contentSizeFlag, 1);
  context.setParameter(zstd.CParameter.checksumFlag, 0);
  const frame = new Uint8Array(zstd.compressBound(raw.length));
  return frame.subarray(0, context.compress2(frame, raw));
}

/**
 * Decompresses exactly one frame that holds exactly `rawBytes`. Memory is taken for `rawBytes` and no more,
 * whatever the frame claims.
 * @throws ZferryError `frame-malformed`
 */
export function decodeFrame(frame: Uint8Array, rawBytes: number, name: string): Uint8Array {
  const malformed = (fault: string): ZferryError =>
    new ZferryError("frame-malformed", `${name}: ${fault}`, { details: { member: name } });

  const descriptor = frame[4];
  if (descriptor === undefined || Buffer.from(frame.subarray(0, 4)).readUInt32LE() !== zstd.MAGICNUMBER) {
    throw malformed("is not a zstd frame");
  }
  if (descriptor & (RESERVED_BIT | CHECKSUM_FLAG | DICTIONARY_FLAG)) {
    throw malformed(`frame header descriptor 0x${descriptor.toString(16)} asks for a checksum or dictionary`);
  }
  try {
    const size = zstd.getFrameContentSize(frame);
    if (size !== rawBytes)
      throw malformed(`frame holds ${size ?? "unknown"} bytes, the manifest says ${rawBytes}`);
    const end = zstd.findFrameCompressedSize(frame);
    if (end !== frame.length) throw malformed(`frame ends at byte ${end} of ${frame.length}`);
    const raw = new Uint8Array(rawBytes);
    const length = new zstd.DCtx().decompress(raw, frame);
    if (length !== rawBytes) throw malformed(`frame gave ${length} bytes, the manifest says ${rawBytes}`);
    return raw;
  } catch (error) {
    if (error instanceof ZferryError) throw error;
    throw malformed(`zstd: ${error instanceof Error ? error.message : String(error)}`);
  }
}
