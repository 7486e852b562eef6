import { join } from "node:path";
import * as v from "valibot";
import { canonicalJson } from "../canonical-json.js";
import { ZferryError } from "../errors.js";
import { ancestors, showPath, type RawPath } from "../raw-path.js";
import { listFirst } from "../report.js";
import {
  closeTree,
  inspect,
  isPresent,
  openTree,
  readFileIn,
  type FileAttributes,
  type Found,
  type Tree,
} from "../system/tree.js";
import { createBorrower, listTree, type Git, type TreeFile } from "../system/git.js";
import { writeScratchFile, type ScratchFile } from "../system/scratch.js";
import { parseAccounts, type Accounts } from "./accounts.js";
import {
  countChanges,
  encodeMetadata,
  gitModeSchema,
  isCarriedXattr,
  isExecutable,
  isLinkedAlike,
  isSymlink,
  parseMetadata,
  ROOT_FORMAT,
  type Account,
  type GitMode,
  type RecordedAttributes,
  type RecordedFile,
  type RootCounts,
  type RootMetadata,
} from "./metadata.js";
import { findEmptyDirectories } from "./empty-directories.js";
import { fileRefusal, pathName, pathOf } from "./paths.js";
import { findSecrets, refuseSecrets, type SecretRules } from "./secrets.js";

/** A release of `/`, as its commit and the commit's tree: 40 hex digits each. */
export interface RootRelease {
  readonly commit: string;
  readonly tree: string;
}

/** What the manifest says of the root half. Without `base` it is a full one: all of the target is new. */
export interface RootSummary {
  readonly base?: RootRelease | undefined;
  readonly target: RootRelease;
  readonly counts: RootCounts;
}

/** The root half of a bundle: its three members, uncompressed, and what the manifest says of them. */
export interface RootPart {
  readonly patch: ScratchFile;
  readonly objects: ScratchFile;
  readonly metadata: Buffer;
  readonly summary: RootSummary;
}

/** The tree without files, which git knows everywhere. */
export const EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";

export const MAX_PATCH_BYTES = 1023 << 20;
export const MAX_OBJECTS_BYTES = 1 << 30;

// formats/root.md, patch: every option is explicit, so that no setting and no later default changes the bytes.
const PATCH_COMMAND = [
  // What binary hunks are deflated with.
  ...["-c", "core.compression=9"],
  ...["diff-tree", "-r", "-p", "--binary", "--full-index", "--unified=3", "--inter-hunk-context=0"],
  ...["--diff-algorithm=myers", "--indent-heuristic", "--no-renames", "--no-ext-diff", "--no-textconv"],
  ...[
    "--no-color",
    "--no-function-context",
    "--no-relative",
    "--ignore-submodules=none",
    "--submodule=short",
  ],
  ...["--ws-error-highlight=none", "--src-prefix=a/", "--dst-prefix=b/", "--no-commit-id"],
];

// formats/root.md, objects.pack: nothing is taken over from a pack that happens to be there.
const PACK_COMMAND = [
  ...["-c", "pack.threads=1", "-c", "pack.indexVersion=2", "pack-objects", "--stdout", "--quiet"],
  ...["--threads=1", "--window=0", "--no-reuse-delta", "--no-reuse-object", "--compression=0"],
];

/**
 * Makes the root half of a bundle. The same trees and attributes give the same bytes, whatever the repository's
 * settings and packs are.
 * @param options.base a commit, or null for a full root half
 * @param options.beforeDir a folder with the file tree of `base`: a ZFS snapshot; null with `base`
 * @param options.afterDir the same of `target`
 * @param options.secrets what may travel, beside what never does
 * @param options.scratchDir a folder for what is made; its files are needed as long as the result is
 * @throws ZferryError `git-failed` for what a release cannot hold (a submodule, a protected path);
 * `secret-found` for what must not travel; `worktree-dirty` when a folder does not have what its commit says; `no-space`, `io-failed`
 */
export async function makeRootPart(options: {
  git: Git;
  base: string | null;
  target: string;
  beforeDir: string | null;
  afterDir: string;
  secrets: SecretRules;
  scratchDir: string;
}): Promise<RootPart> {
  const { git, scratchDir } = options;
  const base = options.base === null ? undefined : await resolveRelease(git, options.base);
  const target = await resolveRelease(git, options.target);
  const borrower = createBorrower(join(scratchDir, "root.git"), git);
  const before = base === undefined ? new Map<RawPath, TreeFile>() : await listTree(borrower, base.tree);
  const after = await listTree(borrower, target.tree);
  const { files: changes, refused } = compareTrees(before, after);
  for (const { path, refusal } of refused) throw cannotChange(path, refusal);
  refuseSecrets(await findSecrets(borrower, before, after, options.secrets));
  const metadata = await recordMetadata(
    changes,
    options.beforeDir,
    options.afterDir,
    (beforeTree, afterTree) =>
      findEmptyDirectories(git, borrower, beforeTree && { tree: beforeTree, files: before.keys() }, {
        tree: afterTree,
        files: after.keys(),
      }),
  );
  const patch = await writeScratchFile(
    join(scratchDir, "patch"),
    borrower.stream([...PATCH_COMMAND, base?.tree ?? EMPTY_TREE, target.tree], {
      maxOutputBytes: MAX_PATCH_BYTES,
    }),
  );
  const objects = await writeScratchFile(
    join(scratchDir, "objects.pack"),
    borrower.stream(PACK_COMMAND, {
      input: packedIds(metadata)
        .map((id) => `${id}\n`)
        .join(""),
      maxOutputBytes: MAX_OBJECTS_BYTES,
    }),
  );
  const bytes = encodeMetadata(metadata);
  // A builder must not sign what every site would refuse.
  parseMetadata(bytes);
  const summary = {
    ...(base === undefined ? {} : { base }),
    target,
    counts: countChanges(metadata.changes),
  };
  return { patch, objects, metadata: bytes, summary };
}

async function resolveRelease(git: Git, revision: string): Promise<RootRelease> {
  const resolve = async (what: string): Promise<string> =>
    (await git.run(["rev-parse", "--verify", "--end-of-options", `${revision}^{${what}}`]))
      .toString("utf8")
      .trim();
  return { commit: await resolve("commit"), tree: await resolve("tree") };
}

/** The ids of the blobs that `objects.pack` has: those that git's difference starts from, sorted. */
export const packedIds = ({ changes }: Pick<RootMetadata, "changes">): string[] =>
  [
    ...new Set(
      changes.flatMap(({ before, after }) => (before && !isSameInGit(before, after) ? [before.blob] : [])),
    ),
  ].sort();

/** Whether git sees no change: then only owner, permissions or attributes changed. */
export const isSameInGit = (before: RecordedFile | null, after: RecordedFile | null): boolean =>
  before?.mode === after?.mode && before?.blob === after?.blob;

const cannotChange = (path: RawPath, refusal: string): ZferryError =>
  new ZferryError("git-failed", `a release cannot change ${showPath(path)}: it ${refusal}`, {
    details: { path: showPath(path) },
    hint: "take it out of git's index (git rm --cached), or list it in .gitignore",
  });

interface FileAcross {
  readonly path: RawPath;
  readonly before: TreeFile | null;
  readonly after: TreeFile | null;
}

/** A path that differs, and that no release can change: why, as words to follow it. */
interface RefusedPath {
  readonly path: RawPath;
  readonly refusal: string;
}

/** Every file of either tree: one that git sees no change in may have another owner. */
export function compareTrees(
  before: ReadonlyMap<RawPath, TreeFile>,
  after: ReadonlyMap<RawPath, TreeFile>,
): { readonly files: readonly FileAcross[]; readonly refused: readonly RefusedPath[] } {
  const files: FileAcross[] = [];
  const refused: RefusedPath[] = [];
  for (const path of [...new Set([...before.keys(), ...after.keys()])].sort()) {
    const file = { path, before: before.get(path) ?? null, after: after.get(path) ?? null };
    const changed = file.before?.mode !== file.after?.mode || file.before?.id !== file.after?.id;
    const unknown = [file.before, file.after].find((entry) => entry && !v.is(gitModeSchema, entry.mode));
    const refusal = unknown
      ? `has git mode ${unknown.mode}${unknown.mode === "160000" ? ", a submodule" : ""}`
      : fileRefusal(path);
    if (refusal === undefined) files.push(file);
    else if (changed) refused.push({ path, refusal });
  }
  return { files, refused };
}

/** A file tree at one release, with the names of its users and groups. */
interface Snapshot {
  readonly tree: Tree;
  readonly users: Accounts;
  readonly groups: Accounts;
}

function openSnapshot(path: string): Snapshot {
  const tree = openTree(path);
  try {
    const accounts = (path: string): Accounts =>
      parseAccounts(readFileIn(tree, path as RawPath) ?? Buffer.of());
    return { tree, users: accounts("etc/passwd"), groups: accounts("etc/group") };
  } catch (error) {
    closeTree(tree);
    throw error;
  }
}

/** What differs between two file trees of these files, with what git does not keep. */
export async function recordMetadata(
  files: readonly FileAcross[],
  beforeDir: string | null,
  afterDir: string,
  findEmpty: (before: Tree | undefined, after: Tree) => Promise<RawPath[]>,
): Promise<RootMetadata> {
  const after = openSnapshot(afterDir);
  try {
    const before = beforeDir === null ? undefined : openSnapshot(beforeDir);
    try {
      return await compareSnapshots(files, await findEmpty(before?.tree, after.tree), before, after);
    } finally {
      if (before !== undefined) closeTree(before.tree);
    }
  } finally {
    closeTree(after.tree);
  }
}

async function compareSnapshots(
  files: readonly FileAcross[],
  empty: readonly RawPath[],
  before: Snapshot | undefined,
  after: Snapshot,
): Promise<RootMetadata> {
  const befores = await recordFiles(before, new Map(files.map(({ path, before: file }) => [path, file])));
  const afters = await recordFiles(after, new Map(files.map(({ path, after: file }) => [path, file])));
  const all = files.map(({ path }) => ({
    path: pathName(path),
    before: befores.get(path) ?? null,
    after: afters.get(path) ?? null,
  }));
  const isSameFile = isLinkedAlike(all);
  const changes: RootMetadata["changes"] = [];
  const changedFolders = new Set<RawPath>();
  const folders = new Set<RawPath>();
  for (const change of all) {
    const path = pathOf(change.path);
    for (const folder of ancestors(path)) folders.add(folder);
    if (isSameFile(path) && canonicalJson(change.before) === canonicalJson(change.after)) continue;
    changes.push(change);
    for (const folder of ancestors(path)) changedFolders.add(folder);
  }

  for (const path of empty) folders.add(path);
  const foldersBefore = await recordFolders(before, [...folders].sort());
  // New ones come with the folders that they lie in, which may be no tracked file's.
  for (const path of empty) {
    if (!foldersBefore.has(path)) for (const folder of [...ancestors(path), path]) changedFolders.add(folder);
  }
  const above = [...changedFolders].filter((path) => !folders.has(path)).sort();
  for (const [path, recorded] of await recordFolders(before, above)) foldersBefore.set(path, recorded);

  const paths = [...folders, ...above].sort();
  const foldersAfter = await recordFolders(after, paths);
  const emptied = new Set(empty);
  const directories: RootMetadata["directories"] = [];
  for (const path of paths) {
    const directory = { before: foldersBefore.get(path) ?? null, after: foldersAfter.get(path) ?? null };
    if (directory.after === null && !emptied.has(path)) continue;
    const changed =
      directory.before !== null && canonicalJson(directory.before) !== canonicalJson(directory.after);
    if (!changed && !changedFolders.has(path)) continue;
    directories.push({ path: pathName(path), before: directory.before, after: directory.after });
  }
  return { format: ROOT_FORMAT, changes, directories };
}

async function recordFiles(
  snapshot: Snapshot | undefined,
  files: Map<RawPath, TreeFile | null>,
): Promise<Map<RawPath, RecordedFile>> {
  const recorded = new Map<RawPath, RecordedFile>();
  const expected = [...files].flatMap(([path, file]) => (file === null ? [] : [{ path, file }]));
  if (snapshot === undefined) return recorded;
  const found = await inspect(
    snapshot.tree,
    expected.map(({ path }) => path),
    isCarriedXattr,
  );
  const dirty: string[] = [];
  const linked = new Map<string, RawPath[]>();
  for (const [index, { path, file }] of expected.entries()) {
    const entry = found[index];
    const mode = v.parse(gitModeSchema, file.mode);
    if (entry === undefined || !isPresent(entry) || !agrees(entry, mode)) {
      dirty.push(`${showPath(path)}: git has ${mode}, the file system ${describe(entry)}`);
      continue;
    }
    recorded.set(path, { mode, blob: file.id, ...record(snapshot, entry.attributes) });
    if (entry.linked === undefined) continue;
    const names = linked.get(entry.linked.file) ?? [];
    names.push(path);
    linked.set(entry.linked.file, names);
  }
  for (const names of linked.values()) {
    const [first] = names;
    const blob = first && recorded.get(first)?.blob;
    if (first === undefined || names.length === 1) continue;
    for (const path of names) {
      const file = recorded.get(path);
      if (file === undefined) continue;
      if (file.blob === blob) recorded.set(path, { ...file, link: pathName(first) });
      else
        dirty.push(
          `${showPath(path)}: git has another content than for ${showPath(first)}, and they are one file`,
        );
    }
  }
  if (dirty.length > 0) {
    throw new ZferryError(
      "worktree-dirty",
      `${snapshot.tree.path} does not have what its commit says: ${listFirst(dirty, "; ")}`,
      { details: { paths: dirty }, hint: "commit everything before the snapshot is made" },
    );
  }
  return recorded;
}

const agrees = ({ kind, attributes }: Extract<Found, { size: number }>, mode: GitMode): boolean =>
  isSymlink(mode)
    ? kind === "symlink"
    : kind === "file" && isExecutable(attributes.permissions) === (mode === "100755");

const describe = (found: Found | undefined): string =>
  found === undefined || !isPresent(found)
    ? "nothing"
    : `a ${found.kind} with permissions ${octal(found.attributes.permissions)}`;

async function recordFolders(
  snapshot: Snapshot | undefined,
  paths: readonly RawPath[],
): Promise<Map<RawPath, RecordedAttributes>> {
  if (snapshot === undefined) return new Map();
  const found = await inspect(snapshot.tree, paths, isCarriedXattr);
  return new Map(
    found.flatMap((entry, index): [RawPath, RecordedAttributes][] => {
      const path = paths[index];
      return path !== undefined && entry.kind === "directory"
        ? [[path, record(snapshot, entry.attributes)]]
        : [];
    }),
  );
}

const octal = (permissions: number): string => permissions.toString(8).padStart(4, "0");

const record = ({ users, groups }: Snapshot, attributes: FileAttributes): RecordedAttributes => ({
  owner: account(users, attributes.uid),
  group: account(groups, attributes.gid),
  permissions: octal(attributes.permissions),
  xattrs: attributes.xattrs,
});

const account = ({ nameOf }: Accounts, id: number): Account => ({ name: nameOf.get(id) ?? null, id });
