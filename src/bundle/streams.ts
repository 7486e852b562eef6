import { canonicalJson } from "../canonical-json.js";
import { ZferryError, type ErrorDetails } from "../errors.js";
import { ChunkReader, type StreamChunk } from "../stream/chunker.js";
import type { BeginRecord, Feature } from "../stream/records.js";
import { chunkName, MANIFEST_NAME } from "./layout.js";
import type { Manifest, ManifestChunk, ManifestStream } from "./manifest.js";
import type { Bundle } from "./reader.js";

// What a manifest says of its streams: made from them, and held against them.

/** Which pool feature a receiver must have enabled for a stream's feature flag. formats/manifest.md, requires */
export const POOL_FEATURES: Partial<Record<Feature, string>> = {
  embed_data: "embedded_data",
  lz4: "lz4_compress",
  large_blocks: "large_blocks",
  redacted: "redacted_datasets",
  large_dnode: "large_dnode",
  raw: "encryption",
  zstd: "zstd_compress",
  longname: "longname",
  large_microzap: "large_microzap",
};

/** The pool features that streams need, sorted. */
export const poolFeaturesOf = (streams: readonly { readonly features: Iterable<string> }[]): string[] =>
  [...new Set(streams.flatMap(({ features }) => [...features].map(poolFeatureOf)))]
    .filter((feature) => feature !== undefined)
    .sort();

const poolFeatureOf = (feature: string): string | undefined => POOL_FEATURES[feature as Feature];

/**
 * What the manifest says of a stream. formats/manifest.md, streams[]
 * @param baseSnapshot the base's name, which no stream has, where it is known
 */
export function describeStream(
  role: string,
  { toname, toguid, fromguid, features }: BeginRecord,
  baseSnapshot: string | undefined,
  chunks: ManifestChunk[],
): ManifestStream {
  const at = toname.indexOf("@");
  const base = {
    ...(baseSnapshot === undefined ? {} : { snapshot: baseSnapshot }),
    guid: String(fromguid),
  };
  return {
    role,
    dataset: toname.slice(0, at),
    ...(fromguid === 0n ? {} : { base }),
    target: { snapshot: toname.slice(at + 1), guid: String(toguid) },
    features: [...features].sort(),
    rawBytes: chunks.reduce((sum, { rawBytes }) => sum + rawBytes, 0),
    chunks,
  };
}

/**
 * Decompresses every chunk, checks every record of every stream, and holds what the manifest says of them against them.
 * @param progress told the bytes of one stream after the other
 * @throws ZferryError `stream-malformed`, `stream-unsupported`, `manifest-malformed`, `frame-malformed`, and what the
 *   source gives
 */
export async function checkStreams(
  bundle: Bundle,
  progress: (role: string, done: number, total: number) => void,
): Promise<void> {
  const { manifest } = bundle;
  for (const stream of manifest.streams) {
    const { role, rawBytes } = stream;
    for await (const chunk of checkedChunks(bundle, stream)) {
      if (chunk.index === 0) requireTrueBegin(manifest, stream, chunk.begin);
      requireTrueChunk(stream, chunk);
      progress(role, chunk.offset + chunk.data.length, rawBytes);
    }
  }
  const needed = poolFeaturesOf(manifest.streams);
  requireTrue("requires.poolFeatures", manifest.requires.poolFeatures, needed, "the streams need");
}

async function* checkedChunks(bundle: Bundle, stream: ManifestStream): AsyncGenerator<StreamChunk> {
  const { role } = stream;
  const reader = new ChunkReader();
  let member = "";
  try {
    let index = 0;
    for await (const data of bundle.chunks(stream)) {
      member = chunkName(role, index);
      index += 1;
      yield reader.read(data);
    }
    reader.finish();
  } catch (error) {
    throw ofStream(error, member, { role, member });
  }
}

/** What is wrong with a stream, told with the part of the bundle in which it was found. */
export function ofStream(error: unknown, part: string, where: ErrorDetails): unknown {
  if (!(error instanceof ZferryError && error.code.startsWith("stream-"))) return error;
  const { code, message, details, hint } = error;
  return new ZferryError(code, `${part}: ${message}`, {
    details: { ...where, ...details },
    ...(hint === undefined ? {} : { hint }),
    cause: error,
  });
}

function requireTrueBegin(manifest: Manifest, stream: ManifestStream, begin: BeginRecord): void {
  const { role, base, chunks } = stream;
  const found = describeStream(role, begin, base?.snapshot, chunks);
  for (const field of ["dataset", "base", "target", "features"] as const) {
    requireTrue(`stream ${role}: ${field}`, stream[field], found[field], "BEGIN has");
  }
  if (stream === manifest.streams[0]) {
    requireTrue("created", manifest.created, Number(begin.creationTime), `stream ${role} was made at`);
  }
}

function requireTrueChunk(
  { role, chunks }: ManifestStream,
  { index, offset, largestObject }: StreamChunk,
): void {
  requireTrue(
    `stream ${role}: largestObject of chunk ${index} at byte ${offset}`,
    chunks[index]?.largestObject,
    String(largestObject),
    "its records have",
  );
}

function requireTrue(field: string, said: unknown, found: unknown, source: string): void {
  const [a, b] = [said, found].map((value) => (value === undefined ? "none" : canonicalJson(value)));
  if (a === b) return;
  throw new ZferryError("manifest-malformed", `${MANIFEST_NAME}: ${field} is ${a}, ${source} ${b}`, {
    details: { member: MANIFEST_NAME },
  });
}
