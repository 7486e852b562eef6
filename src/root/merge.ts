import { existsSync, realpathSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { ZferryError } from "../errors.js";
import { ancestors, showPath, type RawPath } from "../raw-path.js";
import {
  closeTree,
  folderOf,
  freeSpace,
  listBelow,
  mountPoints,
  openTree,
  readFileIn,
  type FileAttributes,
  type Tree,
} from "../system/tree.js";
import {
  blobSizes,
  createBorrower,
  indexInfo,
  listTree,
  splitNul,
  withWorkTree,
  type Git,
  type TreeFile,
} from "../system/git.js";
import { parseAccounts, type Accounts } from "./accounts.js";
import { isSameInGit, MAX_PATCH_BYTES, packedIds, type RootSummary } from "./diff.js";
import { differingFields, readLive, sameGit, sameState, type FileState, type Live } from "./live.js";
import {
  checkCounts,
  gitModeSchema,
  isExecutable,
  isSymlink,
  parseMetadata,
  type Account,
  type RecordedAttributes,
  type RecordedFile,
  type RootMetadata,
} from "./metadata.js";
import { pathName, pathOf } from "./paths.js";
import type { RootPlan } from "./plan.js";

/** Room for the new files on one file system, in bytes. */
export interface RootSpace {
  readonly folder: string;
  readonly needed: number;
  readonly free: number;
}

export interface PlanOptions {
  /** The site's repository. */
  readonly git: Git;
  /** The site's `/`: its work tree. */
  readonly rootDir: string;
  /** A folder of zferry's own for a scratch repository, which `commitRoot` needs too. */
  readonly scratchDir: string;
  /** `root` of the verified manifest. */
  readonly summary: RootSummary;
  readonly patch: Uint8Array;
  readonly objects: Uint8Array;
  readonly metadata: Uint8Array;
  /** The release's name, for messages of commits. */
  readonly release: string;
  /** Told what each file system of `/` needs and has. */
  readonly space?: (found: readonly RootSpace[]) => void;
  /** The date of the commits, in seconds since 1970. */
  readonly date: number;
}

/** What the site's repository says when the plan is made. */
interface Site {
  readonly head: string;
  readonly tree: string;
  readonly branch: string | null;
  readonly previousRelease: string | null;
}

/** The release that the site's `/` was made from, as it was: then whole trees can be compared and merged. */
interface Pristine {
  readonly tree: string;
  readonly commit: string | null;
}

interface Change {
  readonly path: RawPath;
  readonly before: RecordedFile | null;
  readonly after: RecordedFile | null;
}

/**
 * Decides everything that installing the root half of a bundle changes on a site, and changes nothing there: new
 * objects are only in the scratch repository.
 * @throws ZferryError `worktree-dirty`, `base-mismatch`, `patch-malformed`, `metadata-malformed`, `merge-conflict`,
 * `not-configured` (users or groups that the site lacks), `no-space`, `git-failed`, `io-failed`
 */
export async function planRoot(options: PlanOptions): Promise<RootPlan> {
  const { git, rootDir, summary, release } = options;
  const metadata = parseMetadata(options.metadata);
  checkCounts(metadata, summary);
  const changes = metadata.changes.map(({ path, ...states }): Change => ({ path: pathOf(path), ...states }));

  const site = await readSite(git);
  const scratch = createBorrower(join(options.scratchDir, "root.git"), git);
  await requireClean(git, withWorkTree(scratch, rootDir), site);
  await importBlobs(scratch, options.objects, metadata);
  await applyPatch(scratch, options.patch, changes);

  const pristine = await findPristine(git, site, summary);
  const base = pristine?.tree ?? (await writeTree(scratch, changedInGit(changes, "before")));
  const theirs = pristine
    ? await rebuildTarget(scratch, pristine, changes, summary)
    : await writeTree(scratch, changedInGit(changes, "after"));
  const commit = (tree: string, parents: readonly string[], message: string): Promise<string> =>
    writeCommit(scratch, tree, parents, message, options.date);
  const merged = await mergeTrees(scratch, base, site.tree, theirs, commit);

  const disk = await planDisk({
    rootDir,
    scratch,
    metadata,
    changes,
    head: site.tree,
    merged,
    space: options.space,
  });
  const releaseCommit =
    pristine &&
    (await commit(theirs, pristine.commit === null ? [] : [pristine.commit], `Release ${release}`));
  const parents = [site.head, ...(releaseCommit === null ? [] : [releaseCommit])];
  return {
    format: 1,
    head: site.head,
    branch: site.branch,
    mergeCommit: await commit(merged, parents, `Install ${release}`),
    releaseCommit,
    previousRelease: site.previousRelease,
    ...disk,
  };
}

const line = (output: Buffer): string => output.toString("utf8").trim();

async function readSite(git: Git): Promise<Site> {
  const head = await git.ask(["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]);
  if (head.status !== 0) {
    throw new ZferryError("not-configured", `the repository ${git.gitDir} has no commit`, {
      hint: "commit the site's / first",
    });
  }
  const branch = await git.ask(["symbolic-ref", "--quiet", "HEAD"]);
  const release = await git.ask(["rev-parse", "--verify", "--quiet", "refs/zferry/release^{commit}"]);
  return {
    head: line(head.stdout),
    tree: line(await git.run(["rev-parse", "--verify", "HEAD^{tree}"])),
    branch: branch.status === 0 ? line(branch.stdout) : null,
    previousRelease: release.status === 0 ? line(release.stdout) : null,
  };
}

const dirty = (message: string, paths: readonly string[], hint: string): ZferryError =>
  new ZferryError("worktree-dirty", `${message}: ${paths.slice(0, 20).join("; ")}`, {
    details: { paths },
    hint,
  });

/** What git leaves in its folder in the middle of something. */
const IN_PROGRESS = {
  "index.lock": "git is running, or was killed",
  MERGE_HEAD: "a merge is not concluded",
  CHERRY_PICK_HEAD: "a cherry-pick is not concluded",
  REVERT_HEAD: "a revert is not concluded",
  "rebase-merge": "a rebase is not concluded",
  "rebase-apply": "a rebase is not concluded",
};

async function requireClean(git: Git, scratch: Git, site: Site): Promise<void> {
  for (const [name, what] of Object.entries(IN_PROGRESS)) {
    const path = join(git.gitDir, name);
    if (existsSync(path)) throw dirty(what, [path], "conclude it; remove the file if no git runs");
  }
  const hint = "commit the site's own changes (git -C / commit -a), or take them back";
  const compared = ["--no-renames", "--name-only", "-z", "--ignore-submodules=all"];
  const staged = splitNul(await git.run(["diff-index", "--cached", ...compared, site.head]));
  if (staged.length > 0)
    throw dirty("git's index has changes that are not committed", staged.map(showPath), hint);

  // Compared byte by byte with an index of our own: no filter runs, and no flag hides a file.
  const env = { GIT_INDEX_FILE: join(scratch.gitDir, "index.head") };
  await scratch.run(["read-tree", site.tree], { env });
  await scratch.ask(["update-index", "-q", "--refresh", "--ignore-submodules"], { env });
  const changed = splitNul(await scratch.run(["diff-files", ...compared], { env }));
  if (changed.length > 0)
    throw dirty("files differ from the site's last commit", changed.map(showPath), hint);
}

const patchMalformed = (
  message: string,
  details: Record<string, string | readonly string[]> = {},
): ZferryError => new ZferryError("patch-malformed", message, { details });

/** Imports `objects.pack`, which must hold exactly the blobs that the metadata calls for. */
async function importBlobs(scratch: Git, pack: Uint8Array, metadata: RootMetadata): Promise<void> {
  const imported = await scratch.ask(["index-pack", "--strict", "--stdin"], { input: pack });
  const name = /^pack\t([0-9a-f]{40})$/m.exec(imported.stdout.toString("latin1"))?.[1];
  if (imported.status !== 0 || name === undefined) {
    throw patchMalformed(
      `git refuses the root half's objects.pack: ${imported.stderr.split("\n").at(-1) ?? ""}`,
    );
  }
  const listed = await scratch.run([
    "verify-pack",
    "--verbose",
    join(scratch.objects, "pack", `pack-${name}.idx`),
  ]);
  const objects = [...listed.toString("latin1").matchAll(/^([0-9a-f]{40}) (\w+)/gm)];
  const other = objects.find(([, , type]) => type !== "blob");
  if (other) throw patchMalformed(`objects.pack has ${other[1] ?? ""}, a ${other[2] ?? ""}`);
  const found = new Set(objects.map(([, id]) => id));
  const wanted = packedIds(metadata);
  const missing = wanted.find((id) => !found.has(id));
  if (missing !== undefined) throw patchMalformed(`objects.pack lacks ${missing}, which root metadata names`);
  if (objects.length !== wanted.length) {
    throw patchMalformed(`objects.pack has ${objects.length} objects, root metadata names ${wanted.length}`);
  }
}

/** The index entries on one side of all changes that git can see; null where there is no file. */
const changedInGit = (changes: readonly Change[], side: "before" | "after"): [RawPath, TreeFile | null][] =>
  changes
    .filter(({ before, after }) => !isSameInGit(before, after))
    .map(({ path, [side]: file }) => [path, file && { mode: file.mode, id: file.blob }]);

const present = (entries: readonly [RawPath, TreeFile | null][]) =>
  entries.filter((entry): entry is [RawPath, TreeFile] => entry[1] !== null);

/** Applies the patch to what it starts from, and to nothing else; it must lead to what the metadata says, exactly. */
async function applyPatch(scratch: Git, patch: Uint8Array, changes: readonly Change[]): Promise<void> {
  if (patch.length > MAX_PATCH_BYTES) {
    throw patchMalformed(`the root half's patch has ${patch.length} bytes, the limit is ${MAX_PATCH_BYTES}`);
  }
  const env = { GIT_INDEX_FILE: join(scratch.gitDir, "index.patch") };
  await scratch.run(["read-tree", "--empty"], { env });
  await updateIndex(scratch, env, changedInGit(changes, "before"));
  const applied = await scratch.ask(
    ["apply", "--cached", "--allow-empty", "--whitespace=nowarn", "-p1", "-"],
    {
      env,
      input: patch,
    },
  );
  if (applied.status !== 0) {
    throw patchMalformed(
      `git cannot apply the root half's patch: ${applied.stderr.split("\n").at(-1) ?? ""}`,
      {
        stderr: applied.stderr.split("\n").slice(-5),
      },
    );
  }
  const wanted = new Map(present(changedInGit(changes, "after")));
  for (const entry of splitNul(await scratch.run(["ls-files", "--stage", "-z"], { env }))) {
    const [, mode = "", id = "", path = ""] = /^(\d{6}) ([0-9a-f]{40}) 0\t(.*)$/s.exec(entry) ?? [];
    const after = wanted.get(path as RawPath);
    if (after?.mode !== mode || after.id !== id) {
      const says = after === undefined ? "says nothing of it" : `says ${after.mode} ${after.id}`;
      throw patchMalformed(
        `the patch makes ${showPath(path as RawPath)} ${mode} ${id}, root metadata ${says}`,
      );
    }
    wanted.delete(path as RawPath);
  }
  const [missing] = wanted.keys();
  if (missing !== undefined)
    throw patchMalformed(`the patch does not make ${showPath(missing)}, which root metadata has`);
}

async function updateIndex(
  scratch: Git,
  env: Record<string, string>,
  entries: readonly [RawPath, TreeFile | null][],
): Promise<void> {
  const updated = await scratch.ask(["update-index", "-z", "--index-info"], {
    env,
    input: indexInfo(entries),
  });
  if (updated.status !== 0) {
    throw patchMalformed(`git refuses a path of the root half: ${updated.stderr.split("\n").at(-1) ?? ""}`);
  }
}

/** Writes a tree of some files, added to those of another tree or taken from it. */
async function writeTree(
  scratch: Git,
  entries: readonly [RawPath, TreeFile | null][],
  from?: string,
): Promise<string> {
  const env = { GIT_INDEX_FILE: join(scratch.gitDir, "index.tree") };
  await scratch.run(["read-tree", from ?? "--empty"], { env });
  await updateIndex(scratch, env, from === undefined ? present(entries) : entries);
  return line(await scratch.run(["write-tree"], { env }));
}

const COMMIT_FORMAT = "--format=%H %T";

async function findPristine(git: Git, site: Site, summary: RootSummary): Promise<Pristine | null> {
  const { base } = summary;
  if (site.previousRelease !== null) {
    const [, tree = ""] = line(await git.run(["log", "-1", COMMIT_FORMAT, site.previousRelease])).split(" ");
    if (tree === base?.tree) return { tree, commit: site.previousRelease };
    const wants =
      base === undefined
        ? "the bundle holds a full / for a site without one"
        : `the bundle's base is ${base.tree}`;
    throw new ZferryError("base-mismatch", `the site's / was made from tree ${tree}, ${wants}`, {
      details: { site: tree, bundle: base?.tree ?? "" },
      hint: "install the bundles in between first, in their order",
    });
  }
  // The empty tree must be an object in the scratch repository's sight: git has it built in.
  if (base === undefined)
    return { tree: line(await git.run(["hash-object", "-t", "tree", "/dev/null"])), commit: null };
  const history = (await git.run(["log", COMMIT_FORMAT, site.head])).toString("latin1").split("\n");
  const commit = history.find((entry) => entry.endsWith(` ${base.tree}`))?.split(" ")[0];
  return commit === undefined ? null : { tree: base.tree, commit };
}

async function rebuildTarget(
  scratch: Git,
  pristine: Pristine,
  changes: readonly Change[],
  summary: RootSummary,
): Promise<string> {
  const files = await listTree(scratch, pristine.tree);
  for (const { path, before } of changes) {
    const file = files.get(path);
    if (file?.mode !== before?.mode || file?.id !== before?.blob) {
      const has = file === undefined ? "does not have it" : `has ${file.mode} ${file.id}`;
      const says = before === null ? "nothing" : `${before.mode} ${before.blob}`;
      throw patchMalformed(`root metadata has ${says} for ${showPath(path)} in the base, the base ${has}`);
    }
  }
  const tree = await writeTree(scratch, changedInGit(changes, "after"), pristine.tree);
  if (tree === summary.target.tree) return tree;
  throw patchMalformed(
    `the root half leads to tree ${tree}, the manifest's target is ${summary.target.tree}`,
    {
      found: tree,
      expected: summary.target.tree,
    },
  );
}

async function writeCommit(
  scratch: Git,
  tree: string,
  parents: readonly string[],
  message: string,
  date: number,
): Promise<string> {
  const when = `@${date} +0000`;
  const args = ["commit-tree", tree, ...parents.flatMap((parent) => ["-p", parent])];
  return line(
    await scratch.run(args, {
      input: `${message}\n`,
      env: { GIT_AUTHOR_DATE: when, GIT_COMMITTER_DATE: when },
    }),
  );
}

/** Merges trees, with synthetic commits: before 2.40 git's merge-tree takes no base. */
async function mergeTrees(
  scratch: Git,
  base: string,
  ours: string,
  theirs: string,
  commit: (tree: string, parents: readonly string[], message: string) => Promise<string>,
): Promise<string> {
  const root = await commit(base, [], "base");
  const args = [
    "merge-tree",
    "--write-tree",
    "-z",
    await commit(ours, [root], "site"),
    await commit(theirs, [root], "release"),
  ];
  const result = await scratch.ask(args);
  const fields = splitNul(result.stdout);
  const tree = fields[0] ?? "";
  if (result.status === 0) return tree;
  if (result.status !== 1) {
    throw new ZferryError("git-failed", `git merge-tree failed: ${result.stderr.split("\n").at(-1) ?? ""}`, {
      details: { stderr: result.stderr },
    });
  }
  throw mergeConflict(parseConflicts(fields.slice(1)));
}

function mergeConflict(conflicts: ReadonlyMap<RawPath, string>): ZferryError {
  const reasons = [...conflicts].map(([path, reason]) => `${showPath(path)} (${reason})`);
  const more = reasons.length > 20 ? ` and ${reasons.length - 20} more` : "";
  return new ZferryError(
    "merge-conflict",
    `the site and the release both changed ${reasons.slice(0, 20).join(", ")}${more}`,
    {
      details: { paths: [...conflicts.keys()].map(showPath), reasons },
      hint: "nothing was changed; commit a version that agrees with the release in these places, and try again",
    },
  );
}

/** `MODE ID STAGE\tPATH` of each conflicting entry, an empty field, then messages: count, paths, kind, text. */
function parseConflicts(fields: readonly RawPath[]): Map<RawPath, string> {
  const conflicts = new Map<RawPath, string>();
  const end = fields.indexOf("" as RawPath);
  for (const entry of fields.slice(0, end)) {
    conflicts.set(entry.slice(entry.indexOf("\t") + 1) as RawPath, "conflict");
  }
  for (let index = end + 1; index < fields.length;) {
    const count = Number(fields[index]);
    const kind = /^CONFLICT \((.*)\)$/.exec(fields[index + count + 1] ?? "")?.[1];
    for (const path of fields.slice(index + 1, index + 1 + count)) {
      if (kind !== undefined && conflicts.has(path)) conflicts.set(path, kind);
    }
    index += count + 3;
  }
  return conflicts;
}

interface DiskOptions {
  readonly rootDir: string;
  readonly scratch: Git;
  readonly metadata: RootMetadata;
  readonly changes: readonly Change[];
  /** Trees: the site's, and what it becomes. */
  readonly head: string;
  readonly merged: string;
  readonly space: PlanOptions["space"];
}

type Disk = Pick<RootPlan, "changes" | "directories">;

/** Compares the merged tree and the metadata with the files that are there. */
async function planDisk(options: DiskOptions): Promise<Disk> {
  const tree = openTree(options.rootDir);
  try {
    const head = await listTree(options.scratch, options.head);
    const merged = await listTree(options.scratch, options.merged);
    const attributes = await attributeMerger(tree, options.scratch, merged);
    const changes = await planFiles(tree, options.changes, head, merged, attributes);
    const directories = await planDirectories(
      tree,
      options.metadata.directories,
      changes,
      merged,
      attributes,
    );
    attributes.finish();
    refuseMountPoints(options.rootDir, changes);
    const space = await spaceFor(tree, options.scratch, changes, directories);
    options.space?.(space);
    requireSpace(space);
    const named = <T extends { path: RawPath }>(entry: T) => ({ ...entry, path: pathName(entry.path) });
    return { changes: changes.map(named), directories: directories.map(named) };
  } finally {
    closeTree(tree);
  }
}

interface FileChange {
  readonly path: RawPath;
  readonly before: FileState | null;
  readonly after: FileState | null;
}

interface DirectoryChange {
  readonly path: RawPath;
  readonly before: FileAttributes | null;
  readonly after: FileAttributes | null;
}

async function planFiles(
  tree: Tree,
  changes: readonly Change[],
  head: ReadonlyMap<RawPath, TreeFile>,
  merged: ReadonlyMap<RawPath, TreeFile>,
  attributes: AttributeMerger,
): Promise<FileChange[]> {
  const concerned = changes.filter(({ path }) => head.has(path) || merged.has(path));
  const lives = await readLive(
    tree,
    concerned.map(({ path }) => path),
  );
  const leaving = new Set(concerned.filter(({ path }) => !merged.has(path)).map(({ path }) => path));
  const planned: FileChange[] = [];
  const inTheWay: string[] = [];
  for (const [index, { path, before, after }] of concerned.entries()) {
    const live = lives[index] ?? { kind: "absent" };
    const was = head.get(path);
    const becomes = gitFile(merged.get(path));
    const current = live.kind === "file" || live.kind === "symlink" ? live.state : null;
    if (was !== undefined && (current === null || current.mode !== was.mode || current.blob !== was.id)) {
      if (v.is(gitModeSchema, was.mode)) inTheWay.push(`${showPath(path)} changed in this moment`);
      continue;
    }
    if (becomes === null) {
      if (leaving.has(path) && current !== null) planned.push({ path, before: current, after: null });
      continue;
    }
    if (after === null) continue;
    if (was === undefined && !(current !== null && sameGit(current, becomes))) {
      const obstacle = describeObstacle(tree, path, live, leaving);
      if (obstacle === undefined)
        planned.push({ path, before: null, after: { ...becomes, attributes: attributes.resolve(after) } });
      else inTheWay.push(obstacle);
      continue;
    }
    if (current === null || isSymlink(becomes.mode) !== isSymlink(after.mode)) continue;
    const merging = attributes.merge(path, current.attributes, before, after);
    if (!isSymlink(becomes.mode) && isExecutable(merging.permissions) !== (becomes.mode === "100755")) {
      attributes.conflict(path, "permissions");
    }
    const state = { ...becomes, attributes: merging };
    if (!sameState(current, state)) planned.push({ path, before: current, after: state });
  }
  if (inTheWay.length > 0) {
    throw dirty("something lies where the release puts a file", inTheWay, "move it away, or commit it");
  }
  return planned;
}

function gitFile(file: TreeFile | undefined) {
  const mode = file?.mode;
  return file !== undefined && v.is(gitModeSchema, mode) ? { mode, blob: file.id } : null;
}

/** What keeps a new file from its place; undefined when nothing does, or only what the release removes itself. */
function describeObstacle(
  tree: Tree,
  path: RawPath,
  live: Live,
  leaving: ReadonlySet<RawPath>,
): string | undefined {
  if (live.kind === "absent") return undefined;
  if (live.kind === "blocked") {
    if (leaving.has(live.at)) return undefined;
    const what = live.by === "symlink" ? "a symbolic link" : "no directory";
    return `${showPath(path)} (${showPath(live.at)} is ${what})`;
  }
  if (live.kind !== "directory") return `${showPath(path)} (an untracked ${live.kind})`;
  const below = listBelow(tree, path);
  const staying = below.find(
    (entry) => !leaving.has(entry) && !below.some((other) => other.startsWith(`${entry}/`)),
  );
  if (below.length > 0 && staying === undefined) return undefined;
  return `${showPath(path)} (a directory${staying === undefined ? "" : ` with ${showPath(staying)}`})`;
}

async function planDirectories(
  tree: Tree,
  recorded: RootMetadata["directories"],
  changes: readonly FileChange[],
  merged: ReadonlyMap<RawPath, TreeFile>,
  attributes: AttributeMerger,
): Promise<DirectoryChange[]> {
  const byPath = new Map(recorded.map(({ path, ...states }) => [pathOf(path), states]));
  const needed = new Set(changes.flatMap(({ path, after }) => (after === null ? [] : ancestors(path))));
  const kept = new Set([...merged.keys()].flatMap(ancestors));
  const emptied = changes
    .flatMap(({ path, after }) => (after === null ? ancestors(path) : []))
    .filter((path) => !kept.has(path) && !byPath.has(path));
  const paths = [...new Set([...byPath.keys(), ...emptied])].sort();
  const lives = await readLive(tree, paths);
  const planned: DirectoryChange[] = [];
  for (const [index, path] of paths.entries()) {
    const live = lives[index];
    const directory = byPath.get(path);
    const before = live?.kind === "directory" ? live.attributes : null;
    if (directory === undefined) {
      if (before !== null) planned.push({ path, before, after: null });
    } else if (before !== null) {
      const after = attributes.merge(path, before, directory.before, directory.after);
      if (differingFields(before, after).length > 0) planned.push({ path, before, after });
    } else if (needed.has(path)) {
      planned.push({ path, before, after: attributes.resolve(directory.after) });
    }
  }
  return planned;
}

/** Merges what git does not keep, field by field, and collects what stands against it. */
interface AttributeMerger {
  /** A new file's or directory's attributes, with the site's numbers. */
  resolve(recorded: RecordedAttributes): FileAttributes;
  merge(
    path: RawPath,
    live: FileAttributes,
    before: RecordedAttributes | null,
    after: RecordedAttributes,
  ): FileAttributes;
  conflict(path: RawPath, field: string): void;
  /** @throws ZferryError `merge-conflict`, `not-configured` for what was collected */
  finish(): void;
}

async function attributeMerger(
  tree: Tree,
  scratch: Git,
  merged: ReadonlyMap<RawPath, TreeFile>,
): Promise<AttributeMerger> {
  const users = await readAccounts(tree, scratch, merged, "etc/passwd" as RawPath);
  const groups = await readAccounts(tree, scratch, merged, "etc/group" as RawPath);
  const conflicts = new Map<RawPath, string>();
  const missing = new Set<string>();

  const conflict = (path: RawPath, field: string): void => {
    const earlier = conflicts.get(path);
    conflicts.set(path, earlier === undefined ? field : `${earlier}, ${field}`);
  };
  const number = ({ name, id }: Account, kind: "user" | "group"): number => {
    if (name === null) return id;
    const found = (kind === "user" ? users : groups).merged.idOf.get(name);
    if (found === undefined) missing.add(`${kind} ${name}`);
    return found ?? id;
  };
  const resolve = ({ owner, group, permissions, xattrs }: RecordedAttributes): FileAttributes => ({
    uid: number(owner, "user"),
    gid: number(group, "group"),
    permissions: parseInt(permissions, 8),
    xattrs,
  });

  const merge: AttributeMerger["merge"] = (path, live, before, after) => {
    /** `after` is asked for only where it counts: a name that the site lacks does not matter elsewhere. */
    const field = <T>(name: string, changed: boolean, site: T, was: T | undefined, becomes: () => T): T => {
      if (!changed || site === becomes()) return site;
      if (before !== null && site === was) return becomes();
      conflict(path, name);
      return site;
    };
    const owned = (
      kind: "user" | "group",
      site: number,
      was: Account | undefined,
      becomes: Account,
    ): number => {
      const { current } = kind === "user" ? users : groups;
      const wasId = was && (was.name === null ? was.id : current.idOf.get(was.name));
      const name = kind === "user" ? "owner" : "group";
      return field(name, !sameAccount(was, becomes), site, wasId, () => number(becomes, kind));
    };
    const names = new Set([...Object.keys(before?.xattrs ?? {}), ...Object.keys(after.xattrs)]);
    const xattrs: Record<string, string> = { ...live.xattrs };
    for (const name of names) {
      const [was, becomes] = [before?.xattrs[name], after.xattrs[name]];
      const value = field(name, before === null || was !== becomes, live.xattrs[name], was, () => becomes);
      if (value === undefined) delete xattrs[name];
      else xattrs[name] = value;
    }
    const permissions = parseInt(after.permissions, 8);
    const permissionsBefore = before === null ? undefined : parseInt(before.permissions, 8);
    return {
      uid: owned("user", live.uid, before?.owner, after.owner),
      gid: owned("group", live.gid, before?.group, after.group),
      permissions: field(
        "permissions",
        permissions !== permissionsBefore,
        live.permissions,
        permissionsBefore,
        () => permissions,
      ),
      xattrs,
    };
  };

  const finish = (): void => {
    if (conflicts.size > 0) throw mergeConflict(conflicts);
    if (missing.size === 0) return;
    const names = [...missing].sort();
    throw new ZferryError("not-configured", `the site does not have ${names.join(", ")}`, {
      details: { missing: names },
      hint: "the release has files of theirs: add them to the site's /etc/passwd and /etc/group, and commit",
    });
  };
  return { resolve, merge, conflict, finish };
}

const sameAccount = (a: Account | undefined, b: Account): boolean =>
  a !== undefined && a.name === b.name && (a.name !== null || a.id === b.id);

/** The site's accounts as they are, and as this release leaves them: it may bring the users that its files belong to. */
async function readAccounts(
  tree: Tree,
  scratch: Git,
  merged: ReadonlyMap<RawPath, TreeFile>,
  path: RawPath,
): Promise<{ current: Accounts; merged: Accounts }> {
  const current = parseAccounts(readFileIn(tree, path) ?? Buffer.of());
  const file = gitFile(merged.get(path));
  if (file === null || isSymlink(file.mode)) return { current, merged: current };
  return { current, merged: parseAccounts(await scratch.run(["cat-file", "blob", file.blob])) };
}

function refuseMountPoints(
  rootDir: string,
  changes: readonly { readonly path: RawPath; readonly before: unknown }[],
) {
  const root = realpathSync(rootDir);
  const mounts = mountPoints();
  const found = changes.filter(
    ({ path, before }) => before !== null && mounts.has(join(Buffer.from(root).toString("latin1"), path)),
  );
  if (found.length === 0) return;
  throw dirty(
    "a mount point cannot be replaced",
    found.map(({ path }) => showPath(path)),
    "unmount it first",
  );
}

const BLOCK_BYTES = 4096;

/** Every changed file is written beside its place first, so the new ones need room in addition to the old ones. */
async function spaceFor(
  tree: Tree,
  scratch: Git,
  changes: readonly FileChange[],
  directories: readonly DirectoryChange[],
): Promise<RootSpace[]> {
  const made = new Set(directories.filter(({ before }) => before === null).map(({ path }) => path));
  const sizes = await blobSizes(
    scratch,
    new Set(changes.flatMap(({ after }) => (after === null ? [] : [after.blob]))),
  );
  const spaces = new Map<string, ReturnType<typeof freeSpace>>();
  const needs = new Map<number, RootSpace>();
  for (const { path, after } of changes) {
    if (after === null) continue;
    let folder = folderOf(path);
    while (folder !== "" && made.has(folder)) folder = folderOf(folder);
    if (!spaces.has(folder)) spaces.set(folder, freeSpace(tree, folder));
    const space = spaces.get(folder);
    if (space === undefined) continue;
    const known = needs.get(space.device);
    const bytes = Math.ceil((sizes.get(after.blob) ?? 0) / BLOCK_BYTES + 1) * BLOCK_BYTES;
    needs.set(space.device, {
      folder: known?.folder ?? join(tree.path, folder),
      needed: (known?.needed ?? 0) + bytes,
      free: space.bytes,
    });
  }
  return [...needs.values()];
}

function requireSpace(spaces: readonly RootSpace[]): void {
  for (const { folder, needed, free } of spaces) {
    if (needed <= free) continue;
    throw new ZferryError(
      "no-space",
      `the release needs ${needed} bytes for files in ${folder}, ${free} are free`,
      {
        details: { path: folder, needed, free },
        hint: `free space on the file system of ${folder}`,
      },
    );
  }
}
