import { encodeFrame } from "../bundle/frame.js";
import {
  chunkName,
  LIMITS,
  MANIFEST_NAME,
  ROOT_MEMBERS,
  SUMS_NAME,
  TRAILER,
  type Sum,
} from "../bundle/layout.js";
import {
  encodeManifest,
  FORMAT_VERSION,
  parseManifest,
  type Manifest,
  type ManifestChunk,
  type ManifestStream,
} from "../bundle/manifest.js";
import { encodeHead, encodeMember, encodeSignedSums, sumOf } from "../bundle/writer.js";
import { ZferryError } from "../errors.js";
import { throwIfInterrupted, type ProgressReport } from "../report.js";
import { chunkStream, type StreamChunk } from "../stream/chunker.js";
import type { BeginRecord, Feature } from "../stream/records.js";
import type { NewBundleFile } from "../system/bundle-file.js";
import type { KeyChange } from "../trust/keys.js";
import { encodeSignature, sign, type SecretKey } from "../trust/minisign.js";

/** One stream to be packed, and what it must turn out to be. */
export interface StreamInput {
  readonly role: string;
  /** A send stream in pieces of any size. It must throw when its sender failed. */
  readonly source: AsyncIterable<Uint8Array>;
  /** Absent for a stream that was recorded earlier: then BEGIN says it. */
  readonly expected?: {
    readonly base: { readonly snapshot: string; readonly guid: string } | undefined;
    readonly target: { readonly snapshot: string; readonly guid: string };
  };
  /** Bytes, as far as the sender can tell beforehand. */
  readonly estimate?: number;
}

/** The root half, as src/root makes it. */
export interface RootInput {
  readonly patch: Uint8Array;
  readonly objects: Uint8Array;
  readonly metadata: Uint8Array;
  readonly summary: Pick<NonNullable<Manifest["root"]>, "base" | "target" | "counts">;
}

export interface PackOptions {
  readonly product: string;
  readonly release: { readonly name: string; readonly sequence: number };
  /** After `created`. */
  readonly expiresDays: number | undefined;
  readonly notes: string | undefined;
  /** zstd's, 1 to 22. */
  readonly level: number;
  readonly chunkBytes: number;
  readonly streams: readonly StreamInput[];
  readonly root: RootInput | undefined;
  /** A change of the sites' trusted keys. */
  readonly keys?: KeyChange | undefined;
  readonly key: SecretKey;
}

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

/**
 * Packs streams and the root half into a bundle, checking every record as it passes. The same inputs give the same
 * bytes.
 * @throws ZferryError `stream-malformed`, `stream-unsupported`, `base-mismatch`, and what the file gives
 */
export async function packBundle(
  options: PackOptions,
  file: NewBundleFile,
  progress: ProgressReport,
  signal: AbortSignal,
): Promise<{ manifest: Manifest; bytes: number }> {
  const sums: Sum[] = [];
  let created: number | undefined;
  let root: Manifest["root"];
  const append = async (
    name: string,
    raw: Uint8Array,
  ): Promise<{ rawBytes: number; storedBytes: number }> => {
    const frame = encodeFrame(raw, options.level);
    sums.push(sumOf(name, frame));
    await file.append(encodeMember(name, frame, created as number));
    return { rawBytes: raw.length, storedBytes: frame.length };
  };
  const appendRootMember = (kind: keyof typeof ROOT_MEMBERS, raw: Uint8Array) => {
    requireWithin(LIMITS.rootMemberRawBytes, raw.length, `bytes of the root half's ${kind}`);
    return append(ROOT_MEMBERS[kind], raw);
  };
  const appendRoot = async (input: RootInput): Promise<Manifest["root"]> => ({
    ...input.summary,
    patch: await appendRootMember("patch", input.patch),
    objects: await appendRootMember("objects", input.objects),
    metadata: await appendRootMember("metadata", input.metadata),
  });

  const streams: ManifestStream[] = [];
  for (const input of [...options.streams].sort((a, b) => (a.role < b.role ? -1 : 1))) {
    const chunks: ManifestChunk[] = [];
    let done = 0;
    let begin: BeginRecord | undefined;
    for await (const chunk of checkedChunks(input, options.chunkBytes)) {
      throwIfInterrupted(signal);
      if (begin === undefined) {
        begin = chunk.begin;
        requireExpected(input, begin);
        created ??= creationTime(input.role, begin);
        if (streams.length === 0 && options.root !== undefined) root = await appendRoot(options.root);
      }
      requireWithin(LIMITS.chunksPerStream, chunk.index + 1, `chunks of stream ${input.role}`);
      const sizes = await append(chunkName(input.role, chunk.index), chunk.data);
      chunks.push({ ...sizes, largestObject: String(chunk.largestObject) });
      done += chunk.data.length;
      progress.update(`packing ${input.role}`, done, input.estimate);
    }
    // A generator that returned has seen BEGIN and END.
    streams.push(describeStream(input, begin as BeginRecord, chunks, done));
  }
  await file.append(TRAILER);
  progress.end();

  const manifest: Manifest = {
    format: FORMAT_VERSION,
    product: options.product,
    release: options.release,
    created: created as number,
    ...(options.expiresDays === undefined
      ? {}
      : { expires: (created as number) + options.expiresDays * 86_400 }),
    ...(options.notes === undefined ? {} : { notes: options.notes }),
    streams,
    ...(root === undefined ? {} : { root }),
    ...(options.keys === undefined ? {} : { keys: options.keys }),
    requires: {
      poolFeatures: [...new Set(streams.flatMap(({ features }) => features.map(poolFeatureOf)))]
        .filter((feature) => feature !== undefined)
        .sort(),
      freeBytes: streams.reduce((sum, { rawBytes }) => sum + rawBytes, 0),
    },
  };
  // What a reader would refuse is not written: the names in a recorded stream are its sender's.
  const encoded = encodeManifest(manifest);
  parseManifest(encoded);
  const signed = encodeSignedSums(manifest, sums);
  requireWithin(LIMITS.manifestBytes, encoded.length, `bytes of ${MANIFEST_NAME}`);
  requireWithin(LIMITS.sumsBytes, signed.length, `bytes of ${SUMS_NAME}`);
  const signature = sign(options.key, signed, {
    trustedComment: trustedCommentOf(manifest),
  });
  const head = encodeHead(manifest, signed, [
    { keyId: options.key.keyId, bytes: encodeSignature(signature) },
  ]);
  throwIfInterrupted(signal);
  const { bytes } = await file.finish(head);
  return { manifest, bytes };
}

/** The stream's chunks; what is wrong with it is told with its role. */
async function* checkedChunks(
  { role, source }: StreamInput,
  chunkBytes: number,
): AsyncGenerator<StreamChunk> {
  try {
    yield* chunkStream(source, { chunkBytes });
  } catch (error) {
    if (!(error instanceof ZferryError && error.code.startsWith("stream-"))) throw error;
    const { code, message, details, hint } = error;
    throw new ZferryError(code, `stream ${role}: ${message}`, {
      details: { role, ...details },
      ...(hint === undefined ? {} : { hint }),
      cause: error,
    });
  }
}

/** What zferry's own signatures say beside what they sign. Decisions use the manifest alone. */
export const trustedCommentOf = ({ product, release }: Manifest): string =>
  `product ${product} release ${release.name} sequence ${release.sequence}`;

const poolFeatureOf = (feature: string): string | undefined => POOL_FEATURES[feature as Feature];

function requireWithin(limit: number, value: number, what: string): void {
  if (value <= limit) return;
  throw new ZferryError("stream-unsupported", `${value} ${what} are too many, the limit is ${limit}`);
}

function creationTime(role: string, { creationTime: seconds }: BeginRecord): number {
  if (seconds <= BigInt(LIMITS.time)) return Number(seconds);
  throw new ZferryError(
    "stream-unsupported",
    `stream ${role} was made at ${seconds} s, the limit is ${LIMITS.time} s`,
  );
}

function splitName(toname: string): { dataset: string; snapshot: string } {
  const at = toname.indexOf("@");
  return { dataset: toname.slice(0, at), snapshot: toname.slice(at + 1) };
}

function requireExpected({ role, expected }: StreamInput, begin: BeginRecord): void {
  if (expected === undefined) return;
  const wanted = { from: expected.base?.guid ?? "0", to: expected.target.guid };
  const found = { from: String(begin.fromguid), to: String(begin.toguid) };
  if (wanted.from !== found.from || wanted.to !== found.to) {
    throw new ZferryError(
      "base-mismatch",
      `stream ${role} leads from guid ${found.from} to ${found.to}, the snapshots are ${wanted.from} and ${wanted.to}`,
      { details: { role, wanted: [wanted.from, wanted.to], found: [found.from, found.to] } },
    );
  }
}

function describeStream(
  { role, expected }: StreamInput,
  begin: BeginRecord,
  chunks: ManifestChunk[],
  rawBytes: number,
): ManifestStream {
  const { dataset, snapshot } = splitName(begin.toname);
  const base =
    begin.fromguid === 0n
      ? undefined
      : {
          ...(expected?.base === undefined ? {} : { snapshot: expected.base.snapshot }),
          guid: String(begin.fromguid),
        };
  return {
    role,
    dataset,
    ...(base === undefined ? {} : { base }),
    target: { snapshot, guid: String(begin.toguid) },
    features: [...begin.features].sort(),
    rawBytes,
    chunks,
  };
}
