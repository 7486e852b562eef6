import * as v from "valibot";
import { canonicalJson, parseCanonicalJson } from "../canonical-json.js";
import { ZferryError } from "../errors.js";
import { checkValue, integer, list, record, table } from "../schema.js";
import { ancestors, showPath, type RawPath } from "../raw-path.js";
import { ACCOUNT_NAME, MAX_ACCOUNT_ID } from "./accounts.js";
import { groupedAlike, linkOf } from "./names.js";
import { base64Text, directoryRefusal, fileRefusal, isPathName, pathNameSchema, pathOf } from "./paths.js";
import { xattrRefusal } from "./xattrs.js";

// formats/root.md, metadata.json

export const ROOT_FORMAT = 1;
export const MAX_METADATA_BYTES = 128 << 20;
/** Of `[`, `{` and `,`: some 26 a change, and 14 a directory. */
const MAX_METADATA_MARKS = 8_000_000;
export const MAX_CHANGES = 250_000;
/** What ext4 allows a file. */
export const MAX_NAMES = 65_000;
export const MAX_XATTR_BYTES = 65_536;
const MAX_XATTR_BASE64 = 4 * Math.ceil(MAX_XATTR_BYTES / 3);

/** The extended attributes that are carried. All others are the file system's, the kernel's or the site's own. */
const CARRIED_XATTR =
  /^(user\.[^\p{Cc}]{1,250}|security\.capability|system\.posix_acl_access|system\.posix_acl_default)$/u;

export const isCarriedXattr = (name: string): boolean =>
  CARRIED_XATTR.test(name) && Buffer.byteLength(name) <= 255;

export const accountSchema = table({
  name: v.nullable(v.pipe(v.string(), v.regex(ACCOUNT_NAME))),
  id: integer(0, MAX_ACCOUNT_ID),
});

export const permissionsSchema = v.pipe(v.string(), v.regex(/^[0-7]{4}$/));

export const xattrsSchema = record(
  v.pipe(v.string(), v.regex(CARRIED_XATTR)),
  v.pipe(base64Text, v.maxLength(MAX_XATTR_BASE64)),
);

const attributes = {
  owner: accountSchema,
  group: accountSchema,
  permissions: permissionsSchema,
  xattrs: xattrsSchema,
};

export const gitModeSchema = v.picklist(["100644", "100755", "120000"]);
export const gitIdSchema = v.pipe(v.string(), v.regex(/^[0-9a-f]{40}$/));

const directorySchema = table(attributes);
const fileSchema = table({
  mode: gitModeSchema,
  blob: gitIdSchema,
  ...attributes,
  link: v.optional(pathNameSchema),
});

export const metadataSchema = table({
  format: v.literal(ROOT_FORMAT),
  changes: list(
    table({ path: pathNameSchema, before: v.nullable(fileSchema), after: v.nullable(fileSchema) }),
    MAX_CHANGES,
  ),
  directories: list(
    table({ path: pathNameSchema, before: v.nullable(directorySchema), after: v.nullable(directorySchema) }),
    MAX_CHANGES,
  ),
});

/** `metadata.json`: what git does not keep of the changed paths. Both lists are sorted bytewise by path. */
export type RootMetadata = v.InferOutput<typeof metadataSchema>;
export type GitMode = v.InferOutput<typeof gitModeSchema>;
export type Account = v.InferOutput<typeof accountSchema>;
/** Owner, group, permission bits (four octal digits) and extended attributes (name to base64). */
export type RecordedAttributes = v.InferOutput<typeof directorySchema>;
export type RecordedFile = v.InferOutput<typeof fileSchema>;

export const isSymlink = (mode: GitMode): boolean => mode === "120000";

/** The number of changed paths of each kind, as the manifest has it. */
export interface RootCounts {
  readonly added: number;
  readonly modified: number;
  readonly deleted: number;
}

export function countChanges(changes: RootMetadata["changes"]): RootCounts {
  const added = changes.filter(({ before }) => before === null).length;
  const deleted = changes.filter(({ after }) => after === null).length;
  return { added, modified: changes.length - added - deleted, deleted };
}

/**
 * The manifest's counts must be those of the metadata.
 * @throws ZferryError `metadata-malformed`
 */
export function checkCounts(metadata: RootMetadata, { counts }: { readonly counts: RootCounts }): void {
  const found = countChanges(metadata.changes);
  for (const kind of ["added", "modified", "deleted"] as const) {
    if (found[kind] !== counts[kind]) {
      throw new ZferryError(
        "metadata-malformed",
        `root metadata has ${found[kind]} ${kind} paths, the manifest says ${counts[kind]}`,
      );
    }
  }
}

/** The bytes of `metadata.json`. */
export const encodeMetadata = (metadata: RootMetadata): Buffer => Buffer.from(canonicalJson(metadata));

/**
 * Reads `metadata.json` and checks everything in it that can be checked without the other members.
 * @throws ZferryError `metadata-malformed`; `format-unsupported` for another version.
 */
export function parseMetadata(bytes: Uint8Array): RootMetadata {
  if (bytes.length > MAX_METADATA_BYTES) {
    throw malformed(`${bytes.length} bytes, the limit is ${MAX_METADATA_BYTES}`);
  }
  let value: unknown;
  try {
    value = parseCanonicalJson(bytes, MAX_METADATA_MARKS);
  } catch (error) {
    throw malformed(error instanceof Error ? error.message : String(error), error);
  }
  const version = v.safeParse(v.object({ format: integer(Number.MIN_SAFE_INTEGER) }), value);
  if (version.success && version.output.format !== ROOT_FORMAT) {
    throw new ZferryError(
      "format-unsupported",
      `root metadata has format ${version.output.format}, this zferry reads format ${ROOT_FORMAT}`,
      { details: { found: version.output.format, supported: ROOT_FORMAT } },
    );
  }
  const parsed = checkValue(metadataSchema, value);
  if (parsed.fault !== undefined) throw malformed(parsed.fault);
  checkMeaning(parsed.value);
  return parsed.value;
}

const malformed = (reason: string, cause?: unknown): ZferryError =>
  new ZferryError("metadata-malformed", `root metadata is malformed: ${reason}`, { cause });

/** The rules that the schema cannot say. */
function checkMeaning({ changes, directories }: RootMetadata): void {
  checkOrder(changes.map(({ path }) => path));
  checkOrder(directories.map(({ path }) => path));

  const knownBefore = new Set<RawPath>();
  const known = new Set<RawPath>();
  const made: RawPath[] = [];
  for (const { path, before, after } of directories) {
    const directory = pathOf(path);
    refuse(directory, directoryRefusal(directory));
    if (before === null && after === null) refuse(directory, "is neither in the base nor in the target");
    if (before !== null) knownBefore.add(directory);
    if (after !== null) known.add(directory);
    if (before === null) made.push(directory);
    for (const state of [before, after]) if (state !== null) checkAttributes(directory, state);
  }
  checkLinks(changes, "before");
  checkLinks(changes, "after");
  const isSameFile = isLinkedAlike(changes);
  const befores = new Set<RawPath>();
  const afters = new Set<RawPath>();
  for (const { path, before, after } of changes) {
    const file = pathOf(path);
    refuse(file, fileRefusal(file));
    if (before === null && after === null) refuse(file, "is neither in the base nor in the target");
    if (isSameFile(file) && canonicalJson(before) === canonicalJson(after)) {
      refuse(file, "is the same before and after");
    }
    if (before !== null) befores.add(file);
    if (after !== null) afters.add(file);
    for (const state of [before, after]) if (state !== null) checkFile(file, state);
  }
  for (const [files, folders, when] of [
    [befores, knownBefore, "base"],
    [afters, known, "target"],
  ] as const) {
    for (const path of [...files, ...folders]) {
      const above = ancestors(path).find((folder) => files.has(folder));
      if (above !== undefined) refuse(path, `lies below ${showPath(above)}, a file of the ${when}`);
    }
    for (const file of files) {
      if (folders.has(file)) refuse(file, `is a file and a directory of the ${when}`);
    }
  }
  for (const path of [...afters, ...made]) {
    const missing = ancestors(path).find((folder) => !known.has(folder));
    if (missing !== undefined)
      refuse(missing, `has no entry in directories, and ${showPath(path)} lies in it`);
  }
}

/** formats/root.md, Hard links */
function checkLinks(changes: RootMetadata["changes"], side: "before" | "after"): void {
  const when = side === "before" ? "base" : "target";
  const groups = new Map<RawPath, { readonly state: string; names: number }>();
  for (const { path: name, [side]: file } of changes) {
    if (file?.link === undefined) continue;
    const [path, first] = [pathOf(name), pathOf(file.link)];
    if (isSymlink(file.mode)) refuse(path, "is a symbolic link, and linked as a file");
    if (!isPathName(file.link)) refuse(path, "has a link that is not written as paths are");
    const state = canonicalJson(file);
    const group = path === first ? { state, names: 0 } : groups.get(first);
    // Changes are sorted, so the first name of a file comes first.
    if (group === undefined) {
      refuse(
        path,
        `is linked to ${showPath(first)}, which is not the first name of a linked file of the ${when}`,
      );
      continue;
    }
    if (group.state !== state)
      refuse(path, `is linked to ${showPath(first)}, and differs from it in the ${when}`);
    group.names += 1;
    groups.set(first, group);
  }
  for (const [path, { names }] of groups) {
    if (names === 1) refuse(path, `is a linked file with one name in the ${when}`);
    if (names > MAX_NAMES) refuse(path, `has ${names} names in the ${when}, the limit is ${MAX_NAMES}`);
  }
}

/** Whether a path is one file with the same others before and after. */
export const isLinkedAlike = (changes: RootMetadata["changes"]): ((path: RawPath) => boolean) =>
  groupedAlike(
    changes.map(({ path }) => pathOf(path)),
    changes.map(({ before }) => linkOf(before)),
    changes.map(({ after }) => linkOf(after)),
  );

function refuse(path: RawPath, reason: string | undefined): void {
  if (reason !== undefined) throw malformed(`${showPath(path)} ${reason}`);
}

function checkOrder(paths: readonly RootMetadata["changes"][number]["path"][]): void {
  let previous: RawPath | undefined;
  for (const name of paths) {
    const path = pathOf(name);
    if (!isPathName(name))
      refuse(path, "is not written as UTF-8 text where it could be, or not canonical base64");
    if (previous !== undefined && path <= previous) refuse(path, `does not sort after ${showPath(previous)}`);
    previous = path;
  }
}

function checkFile(path: RawPath, file: RecordedFile): void {
  checkAttributes(path, file);
  if (isSymlink(file.mode)) {
    if (file.permissions !== "0777")
      refuse(path, `is a symbolic link with permissions ${file.permissions}, not 0777`);
    if (Object.keys(file.xattrs).length > 0) refuse(path, "is a symbolic link with extended attributes");
  } else if (isExecutable(parseInt(file.permissions, 8)) !== (file.mode === "100755")) {
    refuse(path, `has git mode ${file.mode} and permissions ${file.permissions}`);
  }
  if ("system.posix_acl_default" in file.xattrs) refuse(path, "is a file with a default ACL");
}

/** Whether git takes a file with these permissions for executable: the owner may run it. */
export const isExecutable = (permissions: number): boolean => (permissions & 0o100) !== 0;

function checkAttributes(path: RawPath, { permissions, xattrs }: RecordedAttributes): void {
  for (const [name, value] of Object.entries(xattrs)) {
    if (!isCarriedXattr(name)) refuse(path, `has an extended attribute with a name longer than 255 bytes`);
    const bytes = Buffer.from(value, "base64");
    if (bytes.length > MAX_XATTR_BYTES) refuse(path, `has ${name} of more than ${MAX_XATTR_BYTES} bytes`);
    if (bytes.toString("base64") !== value) refuse(path, `has ${name} not in canonical base64`);
    refuse(path, xattrRefusal(name, bytes, parseInt(permissions, 8)));
  }
}
