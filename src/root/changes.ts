import { createHash } from "node:crypto";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { canonicalJson } from "../canonical-json.js";
import { reworded, ZferryError } from "../errors.js";
import { showPath, type RawPath } from "../raw-path.js";
import { listFirst } from "../report.js";
import {
  createBorrower,
  listTree,
  missingObjects,
  withWorkTree,
  type Git,
  type TreeFile,
} from "../system/git.js";
import { writeScratchFile } from "../system/scratch.js";
import { closeTree, kindAt, openTree } from "../system/tree.js";
import { writeUncommitted } from "./commit-drift.js";
import { writeTree, type Change } from "./content.js";
import { compareTrees, MAX_OBJECTS_BYTES, recordMetadata } from "./diff.js";
import { requireMovable } from "./git-locks.js";
import {
  committer,
  mergeInto,
  planCommits,
  requireObjects,
  takeUncommitted,
  type PlanOptions,
} from "./merge.js";
import type { RootMetadata } from "./metadata.js";
import { pathOf } from "./paths.js";
import type { RootPlan } from "./plan.js";
import { readSite } from "./site.js";

// formats/environments.md, Merging what was changed before

/** A `/` at one time, and its repository. */
export interface RootAt {
  readonly git: Git;
  readonly rootDir: string;
}

/** What was changed in a `/` between two times, of what its repository tracks. */
export interface RootChanges {
  /** Trees of the scratch repository, as the files were and as they are, committed or not. */
  readonly base: string;
  readonly theirs: string;
  /** The commit that it has now. */
  readonly head: string;
  /** Whether that commit is what the files are. */
  readonly isCommitted: boolean;
  readonly changes: readonly Change[];
  readonly directories: RootMetadata["directories"];
  /** SHA-256, which tells this difference from any other. */
  readonly id: string;
}

/**
 * Compares the files of a `/` at two times, as they are on disk: those that git tracked in its last commit or in its index. What is left
 * to a person is not among them: protected paths, submodules, and files that are there and not tracked any more.
 * @param scratch gets the trees and what they have that it does not see
 * @throws ZferryError `worktree-dirty`, `git-failed`, `io-failed`, `no-space`
 */
export async function readChanges(
  scratch: Git,
  {
    then,
    now,
    scratchDir,
    isOwn,
  }: {
    readonly then: RootAt;
    readonly now: RootAt;
    readonly scratchDir: string;
    /** Which files are the site's own state and keys besides those that always are. */
    readonly isOwn?: (path: string) => boolean;
  },
): Promise<RootChanges> {
  const before = await readSide(then, join(scratchDir, "then.git"));
  const after = await readSide(now, join(scratchDir, "now.git"));
  const { files, refused } = compareTrees(before.files, after.files);
  const own = isOwn === undefined ? [] : files.flatMap(({ path }) => (isOwn(showPath(path)) ? [path] : []));
  const left = new Set([...refused.map(({ path }) => path), ...own, ...untracked(before.files, after)]);
  const staying = files.filter(({ path }) => !left.has(path));
  const { changes, directories } = await recordMetadata(
    staying,
    then.rootDir,
    now.rootDir,
    // As git: an empty folder is no change.
    async () => [],
  );
  return {
    base: await bring(scratch, before, left, scratchDir),
    theirs: await bring(scratch, after, left, scratchDir),
    head: after.head,
    isCommitted: after.isCommitted,
    changes: changes.map(({ path, ...states }) => ({ path: pathOf(path), ...states })),
    directories,
    id: createHash("sha256").update(canonicalJson({ changes, directories })).digest("hex"),
  };
}

interface Side extends RootAt {
  readonly head: string;
  readonly isCommitted: boolean;
  readonly files: ReadonlyMap<RawPath, TreeFile>;
}

/** @param path for a repository that has what is not committed; it is `git` of the result */
async function readSide({ git, rootDir }: RootAt, path: string): Promise<Side> {
  const site = await readSite(git);
  const own = createBorrower(path, git);
  const uncommitted = await writeUncommitted(git, withWorkTree(own, rootDir), rootDir, site);
  const files = await listTree(own, uncommitted?.tree ?? site.tree);
  return { git: own, rootDir, head: site.head, isCommitted: uncommitted === null, files };
}

/** Files that git does not track any more, though they are there: nobody removed them. */
function untracked(before: ReadonlyMap<RawPath, TreeFile>, { rootDir, files }: Side): RawPath[] {
  const tree = openTree(rootDir);
  try {
    const gone = [...before.keys()].filter((path) => !files.has(path));
    return gone.filter((path) => !["absent", "blocked", "directory"].includes(kindAt(tree, path)));
  } finally {
    closeTree(tree);
  }
}

const PACK = ["pack-objects", "--stdout", "--quiet", "--window=0"];
const isSubmodule = ({ mode }: TreeFile): boolean => mode === "160000";

/** Writes the tree of a side without what is left of it, and brings the contents that are not there yet. */
async function bring(
  scratch: Git,
  { git, files }: Side,
  left: ReadonlySet<RawPath>,
  scratchDir: string,
): Promise<string> {
  const kept = [...files].filter(([path]) => !left.has(path));
  const ids = new Set(kept.flatMap(([, file]) => (isSubmodule(file) ? [] : [file.id])));
  const missing = await missingObjects(scratch, ids);
  if (missing.length > 0) {
    const input = missing.map((id) => `${id}\n`).join("");
    const pieces = git.stream(PACK, { input, maxOutputBytes: MAX_OBJECTS_BYTES });
    const pack = await writeScratchFile(join(scratchDir, "changes.pack"), pieces);
    await scratch.run(["index-pack", "--stdin"], { input: pack });
    rmSync(pack.path);
  }
  return writeTree(scratch, kept);
}

export interface ChangesOptions extends Omit<
  PlanOptions,
  "summary" | "patch" | "objects" | "metadata" | "replaceUntracked" | "release"
> {
  readonly found: RootChanges;
  /** The name of the environment that they were made in. */
  readonly environment: string;
  /** Of the commit. */
  readonly message: string;
}

/**
 * Decides everything that merging such a difference changes in another `/`, and changes nothing there.
 * @param scratch a borrowing repository of `git` at `scratchDir`/root.git, which `readChanges` was given
 * @returns null where it has all of it already
 * @throws ZferryError `worktree-dirty`, `merge-conflict`, `not-configured`, `no-space`, `git-failed`, `io-failed`
 */
export async function planChanges(scratch: Git, options: ChangesOptions): Promise<RootPlan | null> {
  const { git, found, environment, warn } = options;
  // Then it makes no difference what is not committed here.
  if (found.changes.length === 0 && found.directories.length === 0) return null;
  const site = await readSite(git);
  await requireMovable(git, site.branch);
  const uncommitted = await takeUncommitted(scratch, site, options);
  const tree = uncommitted?.tree ?? site.tree;
  const { base, theirs, changes, directories } = found;
  const { merged, disk } = await mergeInto(
    scratch,
    tree,
    { base, theirs, changes, directories, isWhole: true, isOfRelease: false, back: undefined },
    {
      ...options,
      ...(warn === undefined ? {} : { warn: (what: string) => warn(inWordsOf(environment, what)) }),
    },
  ).catch((error: unknown) => {
    throw asOfEnvironment(environment, error);
  });
  const { plan } = disk;
  if (merged === tree && plan.changes.length === 0 && plan.directories.length === 0) return null;
  await requireObjects(scratch, site, disk, uncommitted, options);
  return {
    ...(await planCommits(site, uncommitted, committer(scratch, options.date), {
      tree: merged,
      message: options.message,
      own: `Changes of this system before those of ${environment}`,
      releaseCommit: site.releaseReference,
    })),
    ...plan,
  };
}

const inWordsOf = (environment: string, text: string): string =>
  text.replaceAll("the release", `the environment ${environment}`).replaceAll("the install", "the merge");

/** What stands against a merge, in words of this one. */
function asOfEnvironment(environment: string, error: unknown): unknown {
  if (!(error instanceof ZferryError)) return error;
  const told = reworded(error, (text) => inWordsOf(environment, text));
  if (error.code !== "merge-conflict") return told;
  const { reasons = [] } = told.details as { readonly reasons?: readonly string[] };
  return new ZferryError(
    "merge-conflict",
    `changed here and in the environment ${environment}: ${listFirst(reasons)}`,
    {
      details: told.details,
      also: told.also,
      hint:
        "nothing of / was changed; let each of these be here as it is there, and commit that, or say under [[root.merge]] of site.toml " +
        "which side counts; then: bundle confirm --merge",
    },
  );
}
