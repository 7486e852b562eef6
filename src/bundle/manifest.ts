import * as v from "valibot";
import { canonicalJson } from "../canonical-json.js";
import { ZferryError } from "../errors.js";
import { integer, list, parseForm, table } from "../schema.js";
import { keyChangeFault } from "../trust/keys.js";
import { LIMITS, MANIFEST_NAME, ROOT_MEMBERS, chunkName } from "./layout.js";

// formats/manifest.md. The JSON Schema beside it is generated from these schemas and tested to be the same.

/** The bundle format that this version writes, and the only one it reads. */
export const FORMAT_VERSION = 1;

const RELEASE = /^(?!.*\.\.)(?!.*\.lock$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const SHORT_NAME = /^[a-z][a-z0-9-]{0,31}$/;
const DATASET = /^[A-Za-z][\w.: -]*(\/(?!\.{1,2}(\/|$))[\w.:-][\w.: -]*)*$/;

export const releaseName = v.pipe(v.string(), v.regex(RELEASE, "is not a release name"));
export const productName = v.pipe(v.string(), v.regex(SHORT_NAME, "is not a product name"));
export const roleName = v.pipe(v.string(), v.regex(SHORT_NAME, "is not a role"));
export const datasetName = v.pipe(
  v.string(),
  v.maxCodePoints(255),
  v.regex(DATASET, "is not a dataset name"),
);
/** Up to 2^53-1, so that every JSON reader has it exactly. */
export const sequenceNumber = integer(1);
export const releaseNotes = v.pipe(v.string(), v.minLength(1), v.maxCodePoints(65_536));

/** 64 bits as a decimal string: a JSON number cannot hold them. */
const uint64 = v.pipe(
  v.string(),
  v.regex(/^(0|[1-9][0-9]{0,19})$/, "is not a decimal number"),
  v.check((digits) => digits.length < 20 || digits <= "18446744073709551615", "is over 64 bits"),
);
export const guid = v.pipe(uint64, v.regex(/^[^0]/, "is no guid"));
export const sha256Hex = v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/, "is not a SHA-256"));
export const keyId = v.pipe(v.string(), v.regex(/^[0-9A-F]{16}$/, "is not a key id"));
export const objectId = v.pipe(v.string(), v.regex(/^[0-9a-f]{40}$/, "is not a git object id"));
export const snapshotName = v.pipe(
  v.string(),
  v.maxCodePoints(255),
  v.regex(/^[\w.:-][\w.: -]*$/, "is not a snapshot name"),
);
export const seconds = v.pipe(integer(0, LIMITS.time), v.description("Seconds since 1970."));
export const featureName = v.pipe(v.string(), v.regex(/^[a-z][a-z0-9_]{0,63}$/, "is not a feature name"));

const chunk = table({
  rawBytes: integer(1, LIMITS.chunkRawBytes),
  storedBytes: integer(1, LIMITS.chunkStoredBytes),
  largestObject: v.pipe(uint64, v.description("The largest object number of the chunk's records.")),
});

const stream = table({
  role: roleName,
  dataset: v.pipe(datasetName, v.description("On the build host, as the stream's BEGIN record has it.")),
  base: v.pipe(
    v.optional(table({ snapshot: v.optional(snapshotName), guid })),
    v.description("Absent in a full stream. The name is absent where only the guid is known."),
  ),
  target: table({ snapshot: snapshotName, guid }),
  features: v.pipe(list(featureName, 64), v.description("The feature flags of BEGIN by name, sorted.")),
  rawBytes: v.pipe(integer(1), v.description("The sum of the chunks'.")),
  chunks: v.pipe(list(chunk, LIMITS.chunksPerStream), v.minLength(1)),
});

const rootMember = table({
  rawBytes: integer(0, LIMITS.rootMemberRawBytes),
  storedBytes: integer(1, LIMITS.rootMemberStoredBytes),
});
const rootMetadata = table({
  ...rootMember.entries,
  rawBytes: integer(0, LIMITS.rootMetadataRawBytes),
});
const commit = table({ commit: objectId, tree: objectId });

const root = table({
  base: v.pipe(v.optional(commit), v.description("Absent in a full bundle.")),
  target: commit,
  counts: v.pipe(
    table({ added: integer(0), modified: integer(0), deleted: integer(0) }),
    v.description("Changed paths."),
  ),
  patch: rootMember,
  objects: rootMember,
  metadata: rootMetadata,
});

/** The second line of a public key file: base64 of 42 bytes that begin with `Ed`. */
export const publicKeyText = v.pipe(v.string(), v.regex(/^RW[A-Za-z0-9+/]{54}$/, "is not a public key"));

const changedKeys = v.pipe(list(publicKeyText, LIMITS.keysChanged), v.description("Public keys, sorted."));
const keyChange = table({
  counter: v.pipe(sequenceNumber, v.description("Higher than that of every change before.")),
  add: changedKeys,
  revoke: changedKeys,
});

export const manifestSchema = table({
  format: v.literal(FORMAT_VERSION),
  product: productName,
  release: table({ name: releaseName, sequence: sequenceNumber }),
  created: v.pipe(
    seconds,
    v.description("The first stream's creation time in seconds since 1970, and every member's mtime."),
  ),
  expires: v.optional(seconds),
  notes: v.optional(releaseNotes),
  streams: v.pipe(list(stream, LIMITS.streams), v.minLength(1), v.description("Sorted by role.")),
  root: v.pipe(v.optional(root), v.description("Absent where / does not change.")),
  keys: v.pipe(v.optional(keyChange), v.description("A change of the site's trusted keys.")),
  requires: table({
    poolFeatures: v.pipe(
      list(featureName, 64),
      v.description("Features that the receiving pool must have enabled, without feature@, sorted."),
    ),
    freeBytes: v.pipe(integer(0), v.description("What the streams take in the pool at most.")),
  }),
  padding: v.pipe(
    v.optional(v.pipe(v.string(), v.maxCodePoints(LIMITS.paddingBytes), v.regex(/^ +$/, "is not spaces"))),
    v.description("Spaces without a meaning, which bring the contents to where the writer began them."),
  ),
});

export type Manifest = v.InferOutput<typeof manifestSchema>;
export type ManifestStream = Manifest["streams"][number];
export type ManifestRoot = NonNullable<Manifest["root"]>;
export type ManifestChunk = ManifestStream["chunks"][number];

export const encodeManifest = (manifest: Manifest): Uint8Array => Buffer.from(canonicalJson(manifest));

/**
 * Parses a manifest whose hash was checked before.
 * @throws ZferryError `format-unsupported` for another version, `manifest-malformed` naming the field
 */
export function parseManifest(bytes: Uint8Array): Manifest {
  const malformed = (fault: string): ZferryError =>
    new ZferryError("manifest-malformed", `${MANIFEST_NAME}: ${fault}`, {
      details: { member: MANIFEST_NAME },
    });
  const manifest = parseForm(manifestSchema, bytes, {
    format: FORMAT_VERSION,
    maxMarks: LIMITS.manifestMarks,
    malformed,
    unsupported: (found) =>
      new ZferryError(
        "format-unsupported",
        `the bundle has format ${found}, this zferry reads format ${FORMAT_VERSION}`,
        { hint: "use the zferry that the release's publisher names", details: { found } },
      ),
  });
  const fault = inconsistency(manifest);
  if (fault !== undefined) throw malformed(fault);
  return manifest;
}

const sortedBytewise = (names: readonly string[]): boolean =>
  names.every((name, index) => index === 0 || (names[index - 1] as string) < name);

/** What no schema can say: order, and sums over several fields. */
function inconsistency(manifest: Manifest): string | undefined {
  if (!sortedBytewise(manifest.streams.map(({ role }) => role))) return "streams: the roles are not sorted";
  if (!sortedBytewise(manifest.requires.poolFeatures)) return "requires.poolFeatures: is not sorted";
  const keys = manifest.keys && keyChangeFault(manifest.keys);
  if (keys !== undefined) return `keys.${keys}`;
  for (const { role, rawBytes, chunks, features, base, target } of manifest.streams) {
    const total = chunks.reduce((sum, each) => sum + each.rawBytes, 0);
    if (total !== rawBytes) return `stream ${role}: the chunks hold ${total} bytes, rawBytes is ${rawBytes}`;
    if (!sortedBytewise(features)) return `stream ${role}: the features are not sorted`;
    if (base?.guid === target.guid) return `stream ${role}: base and target are both guid ${target.guid}`;
  }
  return undefined;
}

/** Every member that `SHA256SUMS` lists, in archive order, with the size in the archive where the manifest has it. */
export function membersOf(
  manifest: Manifest,
  manifestBytes: number,
): { name: string; storedBytes: number }[] {
  const { root } = manifest;
  return [
    { name: MANIFEST_NAME, storedBytes: manifestBytes },
    ...(root === undefined
      ? []
      : (["patch", "objects", "metadata"] as const).map((kind) => ({
          name: ROOT_MEMBERS[kind],
          storedBytes: root[kind].storedBytes,
        }))),
    ...manifest.streams.flatMap(({ role, chunks }) =>
      chunks.map(({ storedBytes }, index) => ({ name: chunkName(role, index), storedBytes })),
    ),
  ];
}
