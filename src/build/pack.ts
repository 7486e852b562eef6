import { createHash } from "node:crypto";
import { rmSync } from "node:fs";
import { encodeFrame, encodeFrameOf } from "../bundle/frame.js";
import {
  chunkName,
  encodeHeader,
  LIMITS,
  MANIFEST_NAME,
  paddingOf,
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
import { PACK_WORK, type PackedFrame, type PackWork } from "../bundle/members.js";
import { describeStream, ofStream, poolFeaturesOf } from "../bundle/streams.js";
import { encodeHead, encodeSignedSums, memberParts, padManifest, sumOf } from "../bundle/writer.js";
import { ZferryError } from "../errors.js";
import { inOrder } from "../in-order.js";
import { throwIfInterrupted, type ProgressReport } from "../report.js";
import { chunkStream, type StreamChunk } from "../stream/chunker.js";
import type { BeginRecord } from "../stream/records.js";
import type { NewBundleFile } from "../system/bundle-file.js";
import { readScratchFile, writeScratchFile, type ScratchFile } from "../system/scratch.js";
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

/** The root half, as src/root makes it: in memory, or in files for what may be large. */
export interface RootInput {
  readonly patch: RootContent;
  readonly objects: RootContent;
  readonly metadata: RootContent;
  readonly summary: Pick<NonNullable<Manifest["root"]>, "base" | "target" | "counts">;
}

type RootContent = Uint8Array | ScratchFile;

const bytesOf = (content: RootContent): number =>
  content instanceof Uint8Array ? content.length : content.bytes;

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
  /** Told the pool features that a stream needs, once it begins; throws where nobody could receive it. */
  readonly receivable?: ((role: string, poolFeatures: readonly string[]) => void) | undefined;
  /** How chunks are compressed, if not one after another on the calling thread. */
  readonly work?: PackWork;
}

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
  const append = async (name: string, rawBytes: number, content: Uint8Array, sha256: string) => {
    sums.push({ name, sha256 });
    for (const part of memberParts(name, content, created as number)) await file.append(part);
    return { rawBytes, storedBytes: content.length };
  };
  const appendRootMember = async (kind: keyof typeof ROOT_MEMBERS, raw: RootContent) => {
    const name = ROOT_MEMBERS[kind];
    const rawBytes = bytesOf(raw);
    requireWithin(LIMITS.rootMemberRawBytes, rawBytes, `bytes of the root half's ${kind}`);
    if (raw instanceof Uint8Array) {
      const frame = encodeFrame(raw, options.level);
      return append(name, rawBytes, frame, sumOf(name, frame).sha256);
    }
    const hash = createHash("sha256");
    // The header, which comes first, has the size.
    const frame = await writeScratchFile(
      `${raw.path}.zst`,
      encodeFrameOf(told(`packing ${kind} of /`, raw), rawBytes, options.level),
    );
    await file.append(encodeHeader({ name, size: frame.bytes, mtime: created as number }));
    for await (const piece of readScratchFile(frame)) {
      throwIfInterrupted(signal);
      hash.update(piece);
      await file.append(piece);
    }
    await file.append(new Uint8Array(paddingOf(frame.bytes)));
    rmSync(frame.path);
    sums.push({ name, sha256: hash.digest("hex") });
    return { rawBytes, storedBytes: frame.bytes };
  };
  const told = async function* (what: string, raw: ScratchFile): AsyncGenerator<Uint8Array> {
    let done = 0;
    for await (const piece of readScratchFile(raw)) {
      throwIfInterrupted(signal);
      yield piece;
      progress.update(what, (done += piece.length), raw.bytes);
    }
  };
  const appendRoot = async (input: RootInput): Promise<Manifest["root"]> => ({
    ...input.summary,
    patch: await appendRootMember("patch", input.patch),
    objects: await appendRootMember("objects", input.objects),
    metadata: await appendRootMember("metadata", input.metadata),
  });

  const { work = PACK_WORK } = options;
  file.reserve(guessHeadBytes(options));
  const streams: ManifestStream[] = [];
  for (const input of [...options.streams].sort((a, b) => (a.role < b.role ? -1 : 1))) {
    const chunks: ManifestChunk[] = [];
    let done = 0;
    let begin: BeginRecord | undefined;
    const pack = async (chunk: StreamChunk): Promise<PackedChunk> => {
      const rawBytes = chunk.data.length;
      return { chunk, rawBytes, frame: await work.pack(chunk.data, options.level) };
    };
    const packed = inOrder(checkedChunks(input, options.chunkBytes, work), work.ahead, pack);
    for await (const { chunk, rawBytes, frame } of packed) {
      throwIfInterrupted(signal);
      if (begin === undefined) {
        begin = chunk.begin;
        requireExpected(input, begin);
        options.receivable?.(input.role, poolFeaturesOf([begin]));
        created ??= creationTime(input.role, begin);
        if (streams.length === 0 && options.root !== undefined) root = await appendRoot(options.root);
      }
      requireWithin(LIMITS.chunksPerStream, chunk.index + 1, `chunks of stream ${input.role}`);
      const sizes = await append(chunkName(input.role, chunk.index), rawBytes, frame.bytes, frame.sha256);
      frame.release();
      chunks.push({ ...sizes, largestObject: String(chunk.largestObject) });
      done += rawBytes;
      progress.update(`packing ${input.role}`, done, input.estimate);
    }
    // A generator that returned has seen BEGIN and END.
    streams.push(describeStream(input.role, begin as BeginRecord, input.expected?.base?.snapshot, chunks));
  }
  await file.append(TRAILER);
  progress.end();

  const plain = describeBundle(options, created as number, streams, root);
  const manifest = padManifest(plain, encodeSigned(options, plain, sums).length);
  // What a reader would refuse is not written: the names in a recorded stream are its sender's.
  const encoded = encodeManifest(manifest);
  parseManifest(encoded);
  requireWithin(LIMITS.manifestBytes, encoded.length, `bytes of ${MANIFEST_NAME}`);
  requireWithin(LIMITS.sumsBytes, encodeSignedSums(manifest, sums).length, `bytes of ${SUMS_NAME}`);
  const head = encodeSigned(options, manifest, sums);
  throwIfInterrupted(signal);
  const { bytes } = await file.finish(head);
  return { manifest, bytes };
}

function describeBundle(
  options: PackOptions,
  created: number,
  streams: ManifestStream[],
  root: Manifest["root"],
): Manifest {
  return {
    format: FORMAT_VERSION,
    product: options.product,
    release: options.release,
    created,
    ...(options.expiresDays === undefined ? {} : { expires: created + options.expiresDays * 86_400 }),
    ...(options.notes === undefined ? {} : { notes: options.notes }),
    streams,
    ...(root === undefined ? {} : { root }),
    ...(options.keys === undefined ? {} : { keys: options.keys }),
    requires: {
      poolFeatures: poolFeaturesOf(streams),
      freeBytes: streams.reduce((sum, { rawBytes }) => sum + rawBytes, 0),
    },
  };
}

/** The signed head of a bundle. */
function encodeSigned({ key }: PackOptions, manifest: Manifest, sums: readonly Sum[]): Uint8Array {
  const signed = encodeSignedSums(manifest, sums);
  const signature = sign(key, signed, { trustedComment: trustedCommentOf(manifest) });
  return encodeHead(manifest, signed, [{ keyId: key.keyId, bytes: encodeSignature(signature) }]);
}

const USUAL_RECORD_BYTES = 128 << 10;

/**
 * How long the head will be, as far as the estimates of the streams tell; 0 if they do not. The padding makes it right
 * most of the time.
 */
function guessHeadBytes(options: PackOptions): number {
  // A chunk has no room for about half a record.
  const rawBytes = options.chunkBytes - USUAL_RECORD_BYTES / 2;
  const sums: Sum[] = [];
  const add = (name: string): void => void sums.push({ name, sha256: "0".repeat(64) });
  const streams: ManifestStream[] = [];
  for (const { role, estimate = Infinity, expected } of options.streams) {
    const count = Math.ceil(estimate / rawBytes);
    if (count > LIMITS.chunksPerStream) return 0;
    const chunks = Array.from({ length: count }, (_, index) => {
      add(chunkName(role, index));
      return { rawBytes, storedBytes: rawBytes, largestObject: "100000" };
    });
    const target = expected?.target ?? { snapshot: options.release.name, guid: "1".repeat(20) };
    const base = expected?.base ?? target;
    const dataset = "tank/BUILD/gentoo/usr";
    streams.push({ role, dataset, base, target, features: [], rawBytes: count * rawBytes, chunks });
  }
  let root: Manifest["root"];
  if (options.root !== undefined) {
    Object.values(ROOT_MEMBERS).forEach(add);
    const { summary, patch, objects, metadata } = options.root;
    const sizes = (raw: RootContent) => ({ rawBytes: bytesOf(raw), storedBytes: bytesOf(raw) });
    root = { ...summary, patch: sizes(patch), objects: sizes(objects), metadata: sizes(metadata) };
  }
  const plain = describeBundle(options, LIMITS.time, streams, root);
  const manifest = padManifest(plain, encodeSigned(options, plain, sums).length);
  return manifest.padding === undefined ? 0 : encodeSigned(options, manifest, sums).length;
}

interface PackedChunk {
  /** Its data are no longer there. */
  readonly chunk: StreamChunk;
  readonly rawBytes: number;
  readonly frame: PackedFrame;
}

/** The stream's chunks; what is wrong with it is told with its role. */
async function* checkedChunks(
  { role, source }: StreamInput,
  chunkBytes: number,
  { memory }: PackWork,
): AsyncGenerator<StreamChunk> {
  try {
    yield* chunkStream(source, { chunkBytes, memory });
  } catch (error) {
    throw ofStream(error, `stream ${role}`, { role });
  }
}

/** What zferry's own signatures say beside what they sign. Decisions use the manifest alone. */
export const trustedCommentOf = ({ product, release }: Manifest): string =>
  `product ${product} release ${release.name} sequence ${release.sequence}`;

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
