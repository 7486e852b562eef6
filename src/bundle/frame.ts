import zstd from "zstd-napi/binding.js";
import { ZferryError } from "../errors.js";

/** zstd's levels without the "ultra" and the negative ones' exceptions: 1 quick and large, 22 slow and small. */
export const MIN_LEVEL = 1;
export const MAX_LEVEL = 22;

// formats/bundle.md, Frames: the bits of the frame header descriptor (RFC 8878, 3.1.1.1.1).
const RESERVED_BIT = 0x08;
const CHECKSUM_FLAG = 0x04;
const DICTIONARY_FLAG = 0x03;

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
  compressor.reset(zstd.ResetDirective.sessionAndParameters);
  compressor.setParameter(zstd.CParameter.compressionLevel, level);
  compressor.setParameter(zstd.CParameter.contentSizeFlag, 1);
  compressor.setParameter(zstd.CParameter.checksumFlag, 0);
  return into.subarray(0, compressor.compress2(into, raw));
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
    const raw = into?.subarray(0, rawBytes) ?? new Uint8Array(rawBytes);
    decompressor ??= new zstd.DCtx();
    const length = decompressor.decompress(raw, frame);
    if (length !== rawBytes) throw malformed(`frame gave ${length} bytes, the manifest says ${rawBytes}`);
    return raw;
  } catch (error) {
    if (error instanceof ZferryError) throw error;
    throw malformed(`zstd: ${error instanceof Error ? error.message : String(error)}`);
  }
}
