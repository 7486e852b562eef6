import { createHash } from "node:crypto";
import {
  encodeHeader,
  encodeSums,
  MANIFEST_NAME,
  paddingOf,
  signatureName,
  SUMS_NAME,
  type Sum,
} from "./layout.js";
import { encodeManifest, type Manifest } from "./manifest.js";
import type { Signature } from "./reader.js";

/** One member as it lies in the archive: header, content, padding. */
export function encodeMember(name: string, content: Uint8Array, created: number): Uint8Array {
  return Buffer.concat([
    encodeHeader({ name, size: content.length, mtime: created }),
    content,
    Buffer.alloc(paddingOf(content.length)),
  ]);
}

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
