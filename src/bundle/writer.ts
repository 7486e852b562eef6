import { createHash } from "node:crypto";
import {
  encodeHeader,
  encodeSums,
  LIMITS,
  MANIFEST_NAME,
  paddingOf,
  signatureName,
  SUMS_NAME,
  TRAILER,
  type Sum,
} from "./layout.js";
import { encodeManifest, type Manifest } from "./manifest.js";
import type { Bundle, Signature } from "./reader.js";

/** One member as it lies in the archive: header, content, padding. */
export const memberParts = (name: string, content: Uint8Array, created: number): Uint8Array[] => [
  encodeHeader({ name, size: content.length, mtime: created }),
  content,
  new Uint8Array(paddingOf(content.length)),
];

/** The same in one piece. */
export const encodeMember = (name: string, content: Uint8Array, created: number): Uint8Array =>
  Buffer.concat(memberParts(name, content, created));

export const sumOf = (name: string, content: Uint8Array): Sum => ({
  name,
  sha256: createHash("sha256").update(content).digest("hex"),
});

/** What is signed: the manifest's hash, then those of the members that follow it, in archive order. */
export function encodeSignedSums(manifest: Manifest, rest: readonly Sum[]): Uint8Array {
  return encodeSums([sumOf(MANIFEST_NAME, encodeManifest(manifest)), ...rest]);
}

/** The archive up to the first member after the manifest. */
export function encodeHead(
  manifest: Manifest,
  sums: Uint8Array,
  signatures: readonly Signature[],
): Uint8Array {
  const { created } = manifest;
  const sorted = [...signatures].sort((a, b) => (a.keyId < b.keyId ? -1 : 1));
  return Buffer.concat([
    encodeMember(SUMS_NAME, sums, created),
    ...sorted.map(({ keyId, bytes }) => encodeMember(signatureName(keyId), bytes, created)),
    encodeMember(MANIFEST_NAME, encodeManifest(manifest), created),
  ]);
}

/** The bundle's file with these signatures. Every content is hashed again as it is copied. */
export async function* resigned(
  bundle: Bundle,
  signatures: readonly Signature[],
): AsyncGenerator<Uint8Array, void> {
  yield encodeHead(bundle.manifest, bundle.sums, signatures);
  for await (const { name, bytes } of bundle.contents()) {
    yield encodeMember(name, bytes, bundle.manifest.created);
  }
  yield TRAILER;
}

/** Below so much of raw stream a head is not padded. */
const PADDED_FROM_RAW_BYTES = 64 << 20;
const FIELD_BYTES = Buffer.byteLength('"padding":"",');

/**
 * The manifest with padding: so much that the head, of `headBytes` without, has a power of two. A writer that can tell
 * about how long its head will be knows then where the contents begin, and need not move them. formats/manifest.md, Padding
 */
export function padManifest(manifest: Manifest, headBytes: number): Manifest {
  const rawBytes = manifest.streams.reduce((sum, stream) => sum + stream.rawBytes, 0);
  const missing = 2 ** Math.ceil(Math.log2(headBytes)) - headBytes;
  if (rawBytes < PADDED_FROM_RAW_BYTES || missing === 0 || missing > LIMITS.paddingBytes) return manifest;
  return { ...manifest, padding: " ".repeat(missing - FIELD_BYTES) };
}
