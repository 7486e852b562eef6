import { z } from "zod";
import { canonicalJson, parseCanonicalJson } from "../canonical-json.js";
import { ZferryError } from "../errors.js";
import { checkValue } from "../schema.js";
import { keyChangeFault } from "../trust/keys.js";
import { LIMITS, MANIFEST_NAME, ROOT_MEMBERS, chunkName } from "./layout.js";

// formats/manifest.md. The JSON Schema beside it is generated from these schemas and tested to be the same.

/** The bundle format that this version writes, and the only one it reads. */
export const FORMAT_VERSION = 1;

const RELEASE = /^(?!.*\.\.)(?!.*\.lock$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const SHORT_NAME = /^[a-z][a-z0-9-]{0,31}$/;
const DATASET = /^[A-Za-z][\w.: -]*(\/(?!\.{1,2}(\/|$))[\w.:-][\w.: -]*)*$/;

export const releaseName = z.string().regex(RELEASE, "is not a release name");
export const productName = z.string().regex(SHORT_NAME, "is not a product name");
export const roleName = z.string().regex(SHORT_NAME, "is not a role");
export const datasetName = z.string().max(255).regex(DATASET, "is not a dataset name");
/** Up to 2^53-1, so that every JSON reader has it exactly. */
export const sequenceNumber = z.int().min(1);
export const releaseNotes = z.string().min(1).max(65_536);

/** 64 bits as a decimal string: a JSON number cannot hold them. */
const uint64 = z
  .string()
  .regex(/^(0|[1-9][0-9]{0,19})$/, "is not a decimal number")
  .refine((digits) => digits.length < 20 || digits <= "18446744073709551615", "is over 64 bits");
export const guid = uint64.regex(/^[^0]/, "is no guid");
const objectId = z.string().regex(/^[0-9a-f]{40}$/, "is not a git object id");
export const snapshotName = z
  .string()
  .max(255)
  .regex(/^[\w.:-][\w.: -]*$/, "is not a snapshot name");
const seconds = z.int().min(0).max(LIMITS.time).describe("Seconds since 1970.");
const featureName = z.string().regex(/^[a-z][a-z0-9_]{0,63}$/, "is not a feature name");

const chunk = z.strictObject({
  rawBytes: z.int().min(1).max(LIMITS.chunkRawBytes),
  storedBytes: z.int().min(1).max(LIMITS.chunkStoredBytes),
  largestObject: uint64.describe("The largest object number of the chunk's records."),
});

const stream = z.strictObject({
  role: roleName,
  dataset: datasetName.describe("On the build host, as the stream's BEGIN record has it."),
  base: z
    .strictObject({ snapshot: snapshotName.optional(), guid })
    .optional()
    .describe("Absent in a full stream. The name is absent where only the guid is known."),
  target: z.strictObject({ snapshot: snapshotName, guid }),
  features: z.array(featureName).max(64).describe("The feature flags of BEGIN by name, sorted."),
  rawBytes: z.int().min(1).describe("The sum of the chunks'."),
  chunks: z.array(chunk).min(1).max(LIMITS.chunksPerStream),
});

const rootMember = z.strictObject({
  rawBytes: z.int().min(0).max(LIMITS.rootMemberRawBytes),
  storedBytes: z.int().min(1).max(LIMITS.rootMemberStoredBytes),
});
const rootMetadata = rootMember.extend({ rawBytes: z.int().min(0).max(LIMITS.rootMetadataRawBytes) });
const commit = z.strictObject({ commit: objectId, tree: objectId });

const root = z.strictObject({
  base: commit.optional().describe("Absent in a full bundle."),
  target: commit,
  counts: z
    .strictObject({ added: z.int().min(0), modified: z.int().min(0), deleted: z.int().min(0) })
    .describe("Changed paths."),
  patch: rootMember,
  objects: rootMember,
  metadata: rootMetadata,
});

/** The second line of a public key file: base64 of 42 bytes that begin with `Ed`. */
export const publicKeyText = z.string().regex(/^RW[A-Za-z0-9+/]{54}$/, "is not a public key");

const keyChange = z.strictObject({
  counter: sequenceNumber.describe("Higher than that of every change before."),
  add: z.array(publicKeyText).max(LIMITS.keysChanged).describe("Public keys, sorted."),
  revoke: z.array(publicKeyText).max(LIMITS.keysChanged).describe("Public keys, sorted."),
});

export const manifestSchema = z.strictObject({
  format: z.literal(FORMAT_VERSION),
  product: productName,
  release: z.strictObject({ name: releaseName, sequence: sequenceNumber }),
  created: seconds.describe(
    "The first stream's creation time in seconds since 1970, and every member's mtime.",
  ),
  expires: seconds.optional(),
  notes: releaseNotes.optional(),
  streams: z.array(stream).min(1).max(LIMITS.streams).describe("Sorted by role."),
  root: root.optional().describe("Absent where / does not change."),
  keys: keyChange.optional().describe("A change of the site's trusted keys."),
  requires: z.strictObject({
    poolFeatures: z
      .array(featureName)
      .max(64)
      .describe("Features that the receiving pool must have enabled, without feature@, sorted."),
    freeBytes: z.int().min(0).describe("What the streams take in the pool at most."),
  }),
  padding: z
    .string()
    .max(LIMITS.paddingBytes)
    .regex(/^ +$/, "is not spaces")
    .optional()
    .describe("Spaces without a meaning, which bring the contents to where the writer began them."),
});

export type Manifest = z.infer<typeof manifestSchema>;
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
  let value: unknown;
  try {
    value = parseCanonicalJson(bytes, LIMITS.manifestMarks);
  } catch (error) {
    throw malformed(error instanceof Error ? error.message : String(error));
  }
  const version = typeof value === "object" && value !== null && "format" in value ? value.format : undefined;
  if (typeof version === "number" && version !== FORMAT_VERSION) {
    throw new ZferryError(
      "format-unsupported",
      `the bundle has format ${version}, this zferry reads format ${FORMAT_VERSION}`,
      { hint: "use the zferry that the release's publisher names", details: { found: version } },
    );
  }
  const parsed = checkValue(manifestSchema, value);
  if (parsed.fault !== undefined) throw malformed(parsed.fault);
  const fault = inconsistency(parsed.value);
  if (fault !== undefined) throw malformed(fault);
  return parsed.value;
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
