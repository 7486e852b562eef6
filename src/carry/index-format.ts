import { createHash } from "node:crypto";
import * as v from "valibot";
import {
  guid,
  keyId,
  objectId,
  productName,
  releaseName,
  roleName,
  seconds,
  sequenceNumber,
  sha256Hex,
  snapshotName,
  type Manifest,
} from "../bundle/manifest.js";
import { LIMITS } from "../bundle/layout.js";
import type { Bundle } from "../bundle/reader.js";
import { encodeHead } from "../bundle/writer.js";
import { canonicalJson } from "../canonical-json.js";
import { ZferryError } from "../errors.js";
import { integer, list, parseForm, table } from "../schema.js";
import {
  encodeSignature,
  parseSignature,
  sign,
  SIGNATURE_FILE_MAX,
  verifySignature,
  type PublicKey,
  type SecretKey,
} from "../trust/minisign.js";
import type { Link } from "./chain.js";

// formats/mirror.md: the index of a mirror, bytes to values and back. The JSON Schema beside it is generated from these
// schemas and tested to be the same.

/** The one file that tells what a mirror has. */
export const INDEX_NAME = "index.signed";
export const PAGE_NAME = "index.html";

const FORMAT_VERSION = 1;

/** formats/mirror.md, Limits. */
export const INDEX_LIMITS = {
  indexBytes: 16 << 20,
  indexMarks: 1_000_000,
  indexBundles: 10_000,
  indexNotes: 500,
  indexDays: 366,
} as const;

const PATH = /^(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.bundle$/;

/**
 * The name of a bundle's file: by its head, from which all of its bytes follow. So what has a name never changes, and a
 * client that reads while the mirror changes never joins two files.
 */
export const pathOf = (bundle: Bundle): string =>
  `${bundle.manifest.release.name}-${headDigits(bundle)}.bundle`;

const NAMED_BY_HEAD = /-([0-9a-f]{16})\.bundle$/;

/** What a bundle's file that is named by another head says and is; undefined for a name that is true, or says nothing of it. */
export function otherHead(
  bundle: Bundle,
  path: string,
): { readonly expected: string; readonly found: string } | undefined {
  const [, expected] = NAMED_BY_HEAD.exec(path) ?? [];
  const found = headDigits(bundle);
  return expected === undefined || expected === found ? undefined : { expected, found };
}

function headDigits({ manifest, sums, signatures }: Bundle): string {
  const hash = createHash("sha256").update(encodeHead(manifest, sums, signatures));
  return hash.digest("hex").slice(0, 16);
}

/** Whether a file of this name can be a mirror's bundle: no other folder, no address. */
export const isBundleName = (name: string): boolean => PATH.test(name);

const entrySchema = table({
  path: v.pipe(
    v.string(),
    v.regex(PATH, "is not the name of a bundle's file"),
    v.description("The file, beside the index."),
  ),
  size: v.pipe(integer(1), v.description("Bytes of the file.")),
  identity: v.pipe(sha256Hex, v.description("SHA-256 of the bundle's SHA256SUMS.")),
  release: table({ name: releaseName, sequence: sequenceNumber }),
  created: seconds,
  expires: v.optional(seconds),
  notes: v.pipe(
    v.optional(v.pipe(v.string(), v.minLength(1), v.maxCodePoints(INDEX_LIMITS.indexNotes))),
    v.description("The beginning of the manifest's."),
  ),
  streams: v.pipe(
    list(
      table({
        role: roleName,
        base: v.optional(table({ snapshot: v.optional(snapshotName), guid })),
        target: table({ snapshot: snapshotName, guid }),
      }),
      LIMITS.streams,
    ),
    v.minLength(1),
  ),
  root: v.pipe(
    v.optional(table({ base: v.optional(objectId), target: objectId })),
    v.description("The trees of /."),
  ),
  signers: v.pipe(
    list(keyId, LIMITS.signatures),
    v.minLength(1),
    v.description("The ids of the keys that signed the bundle, sorted."),
  ),
});
export type IndexEntry = v.InferOutput<typeof entrySchema>;

export const indexSchema = table({
  format: v.literal(FORMAT_VERSION),
  product: productName,
  counter: v.pipe(sequenceNumber, v.description("Higher than that of every index before.")),
  created: seconds,
  expires: v.pipe(seconds, v.description("After this time the index is not believed.")),
  bundles: v.pipe(
    list(entrySchema, INDEX_LIMITS.indexBundles),
    v.description("Sorted by sequence number, then by identity."),
  ),
});
export type MirrorIndex = v.InferOutput<typeof indexSchema>;

/** What an index says of a bundle, at this path. */
export function entryOf({ manifest, identity, size, signatures }: Bundle, path: string): IndexEntry {
  const { release, created, expires, notes, streams, root } = manifest;
  return {
    path,
    size,
    identity,
    release,
    created,
    ...(expires === undefined ? {} : { expires }),
    ...(notes === undefined ? {} : { notes: beginningOf(notes) }),
    streams: streams.map(({ role, base, target }) => ({ role, ...(base && { base }), target })),
    ...(root === undefined ? {} : { root: treesOf(root) }),
    signers: signatures.map(({ keyId }) => keyId),
  };
}

const treesOf = ({ base, target }: NonNullable<Manifest["root"]>): { base?: string; target: string } => ({
  ...(base === undefined ? {} : { base: base.tree }),
  target: target.tree,
});

/** Cut between characters: half of a surrogate pair has no UTF-8. */
function beginningOf(notes: string): string {
  if (notes.length <= INDEX_LIMITS.indexNotes) return notes;
  return `${notes.slice(0, INDEX_LIMITS.indexNotes - 1).replace(/[\ud800-\udbff]$/, "")}…`;
}

/** What a chain is chosen by. */
export const entryLink = <Of extends IndexEntry>(entry: Of, product: string): Link & { entry: Of } => ({
  id: entry.identity,
  product,
  release: entry.release,
  bytes: entry.size,
  streams: entry.streams.map(({ role, base, target }) => ({ role, base: base ?? null, target: target.guid })),
  root: entry.root === undefined ? null : { base: entry.root.base ?? null, target: entry.root.target },
  entry,
});

/** The order of an index's bundles. */
export const inIndexOrder = (a: IndexEntry, b: IndexEntry): number =>
  a.release.sequence - b.release.sequence || (a.identity < b.identity ? -1 : a.identity > b.identity ? 1 : 0);

/**
 * A signed index's file: the four lines of a minisign signature, then the JSON that it signs.
 * @throws ZferryError `usage` for one that no reader would take
 */
export function encodeIndex(index: MirrorIndex, key: SecretKey): Uint8Array {
  const json = Buffer.from(canonicalJson(index));
  const trustedComment = `zferry mirror of ${index.product}, counter ${index.counter}`;
  const bytes = Buffer.concat([encodeSignature(sign(key, json, { trustedComment })), json]);
  if (bytes.length > INDEX_LIMITS.indexBytes || index.bundles.length > INDEX_LIMITS.indexBundles) {
    throw new ZferryError(
      "usage",
      `the index would have ${index.bundles.length} bundles in ${bytes.length} bytes, the limits are ${INDEX_LIMITS.indexBundles} and ${INDEX_LIMITS.indexBytes}`,
      { hint: "bundle mirror remove takes old releases out" },
    );
  }
  return bytes;
}

/**
 * Believes an index only after its signature. Its time and counter are for the caller to judge.
 * @param name shown in messages
 * @throws ZferryError `index-malformed`, `format-unsupported`, `signature-malformed`, `signature-missing`, `signature-invalid`
 */
export async function verifyIndex(
  bytes: Uint8Array,
  keys: readonly PublicKey[],
  name: string,
): Promise<{ readonly index: MirrorIndex; readonly signer: PublicKey }> {
  const malformed = (fault: string): ZferryError =>
    new ZferryError("index-malformed", `${name}: ${fault}`, { details: { file: name } });
  if (bytes.length > INDEX_LIMITS.indexBytes) {
    throw malformed(`has ${bytes.length} bytes, the limit is ${INDEX_LIMITS.indexBytes}`);
  }
  const end = endOfLines(bytes.subarray(0, SIGNATURE_FILE_MAX), 4);
  if (end === undefined) throw malformed("does not begin with the four lines of a signature");
  const signature = parseSignature(bytes.subarray(0, end), name);
  const json = bytes.subarray(end);
  const candidates = keys.filter(({ keyId }) => keyId === signature.keyId);
  if (candidates.length === 0) {
    const trusted = keys.map(({ keyId }) => keyId);
    throw new ZferryError(
      "signature-missing",
      `${name}: is signed by ${signature.keyId}, trusted is ${trusted.join(", ") || "no key"}`,
      {
        details: { file: name, signed: [signature.keyId], trusted },
        hint: "if you trust this signer, add its public key to the trusted keys",
      },
    );
  }
  const signer = await signerOf(signature, candidates, json, name);
  const index = parseForm(indexSchema, json, {
    format: FORMAT_VERSION,
    maxMarks: INDEX_LIMITS.indexMarks,
    malformed,
    unsupported: (found) =>
      new ZferryError(
        "format-unsupported",
        `${name}: the index has format ${found}, this zferry reads format ${FORMAT_VERSION}`,
        { hint: "use the zferry that the mirror's publisher names", details: { found } },
      ),
  });
  const fault = inconsistency(index);
  if (fault !== undefined) throw malformed(fault);
  return { index, signer };
}

/** Of two trusted keys with the same id each is tried. */
async function signerOf(
  signature: ReturnType<typeof parseSignature>,
  candidates: readonly PublicKey[],
  json: Uint8Array,
  name: string,
): Promise<PublicKey> {
  let failure: unknown;
  for (const key of candidates) {
    try {
      await verifySignature(key, signature, json);
      return key;
    } catch (error) {
      failure = error;
    }
  }
  const { message } = failure as Error;
  throw new ZferryError("signature-invalid", `${name}: ${message}`, {
    details: { file: name },
    cause: failure,
  });
}

/** Where the so-manieth line ends, its newline included. */
function endOfLines(bytes: Uint8Array, count: number): number | undefined {
  let at = 0;
  for (let line = 0; line < count; line += 1) {
    const newline = bytes.indexOf(0x0a, at);
    if (newline === -1) return undefined;
    at = newline + 1;
  }
  return at;
}

const DAY_SECONDS = 86_400;

/** What the schema cannot say. */
function inconsistency({ created, expires, bundles }: MirrorIndex): string | undefined {
  if (expires <= created) return `expires: ${expires} is not after created, ${created}`;
  if (expires - created > INDEX_LIMITS.indexDays * DAY_SECONDS) {
    return `expires: is more than ${INDEX_LIMITS.indexDays} days after created`;
  }
  const paths = new Set<string>();
  const identities = new Set<string>();
  for (const [index, entry] of bundles.entries()) {
    const before = bundles[index - 1];
    if (before !== undefined && inIndexOrder(before, entry) > 0) return `bundles.${index}: is not sorted`;
    if (paths.has(entry.path)) return `bundles.${index}: has the path of another, ${entry.path}`;
    if (identities.has(entry.identity)) return `bundles.${index}: is there twice`;
    paths.add(entry.path);
    identities.add(entry.identity);
    const roles = entry.streams.map(({ role }) => role);
    if (roles.some((role, at) => at > 0 && (roles[at - 1] as string) >= role)) {
      return `bundles.${index}: the roles are not sorted`;
    }
    const { signers } = entry;
    if (signers.some((id, at) => at > 0 && (signers[at - 1] as string) >= id)) {
      return `bundles.${index}: the signers are not sorted`;
    }
  }
  return undefined;
}
