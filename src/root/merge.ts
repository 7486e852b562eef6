import { join } from "node:path";
import { ZferryError } from "../errors.js";
import { showPath, type RawPath } from "../raw-path.js";
import { listFirst, type ProgressReport } from "../report.js";
import {
  createBorrower,
  DAMAGED_HINT,
  listTree,
  missingObjects,
  trimmed,
  withWorkTree,
  type Git,
} from "../system/git.js";
import type { ScratchFile } from "../system/scratch.js";
import { writeUncommitted, type UncommittedDrift } from "./commit-drift.js";
import { applyPatch, changedInGit, importBlobs, patchMalformed, writeTree, type Change } from "./content.js";
import { EMPTY_TREE, type RootSummary } from "./diff.js";
import { planDisk, type Disk, type DiskOptions, type RootSpace } from "./disk.js";
import { checkCounts, parseMetadata } from "./metadata.js";
import { pathName, pathOf } from "./paths.js";
import type { RootPlan } from "./plan.js";
import { followRenames } from "./renames.js";
import { backUp } from "./replaced.js";
import {
  settler,
  type MergePolicy,
  type OpenConflicts,
  type Resolutions,
  type SettledConflict,
} from "./settle.js";
import { requireMovable } from "./git-locks.js";
import { readSite, requireClean, type Site } from "./site.js";
import { mergeTrees, type Commit } from "./trees.js";

export interface PlanOptions {
  /** The site's repository. */
  readonly git: Git;
  /** The site's `/`: its work tree. */
  readonly rootDir: string;
  /** A folder of zferry's own for a scratch repository, which `commitRoot` needs too. */
  readonly scratchDir: string;
  /** `root` of the verified manifest. */
  readonly summary: RootSummary;
  readonly patch: ScratchFile;
  readonly objects: ScratchFile;
  readonly metadata: Uint8Array;
  /** The release's name, for messages of commits. */
  readonly release: string;
  /** Whether changes that the site did not commit are committed first; otherwise they are refused. */
  readonly commitDrift?: boolean;
  /** Whether files that git does not track are replaced where the release has one, and kept in git; otherwise they are refused. */
  readonly replaceUntracked?: boolean;
  /** Told how far it is. */
  readonly progress?: ProgressReport;
  /** Told the paths that change; throws where some must not. */
  readonly permit?: (paths: readonly RawPath[]) => void;
  /** Told what each file system of `/` needs and has. */
  readonly space?: (found: readonly RootSpace[]) => void;
  /** Told what does not stand against the install, and is good to know. */
  readonly warn?: (what: string) => void;
  /** What decides conflicts; the first that means a path. */
  readonly policies?: readonly MergePolicy[];
  /** What a person decided of conflicts; it comes before the policies. */
  readonly resolutions?: Resolutions;
  /** Told the conflicts that stand against the install, before it is refused; `git` has their contents. */
  readonly conflicts?: (open: OpenConflicts, git: Git) => Promise<void>;
  /** Told the conflicts that do not stand against the install. */
  readonly settled?: (found: readonly SettledConflict[]) => void;
  /** The date of the commits, in seconds since 1970. */
  readonly date: number;
}

/** The release that the site's `/` was made from, as it was: then whole trees can be compared and merged. */
interface Pristine {
  readonly tree: string;
  readonly commit: string | null;
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

  const found = await readSite(git);
  await requireMovable(git, found.branch);
  const scratch = createBorrower(join(options.scratchDir, "root.git"), git);
  const uncommitted = await takeUncommitted(scratch, found, options);
  const site = { ...found, tree: uncommitted?.tree ?? found.tree };
  await importBlobs(scratch, options.scratchDir, options.objects, metadata);
  await applyPatch(scratch, options.patch, changes);

  const pristine = await findPristine(git, site, summary);
  const base = pristine?.tree ?? (await writeTree(scratch, changedInGit(changes, "before")));
  const theirs = pristine
    ? await rebuildTarget(scratch, pristine, changes, summary)
    : await writeTree(scratch, changedInGit(changes, "after"));
  const commit = committer(scratch, options.date);
  if (pristine === null) await warnOfRenames(scratch, site, changes, options.warn);
  const { directories } = metadata;
  const difference = {
    ...{ base, theirs, changes, directories },
    ...{ isWhole: pristine !== null, isOfRelease: true, back: undefined },
  };
  const { merged, disk } = await mergeInto(scratch, site.tree, difference, options);
  await requireObjects(scratch, site, disk, uncommitted, options);
  const replaced =
    disk.replaced.length === 0
      ? undefined
      : await backUp(disk.replaced, {
          git,
          scratch: withWorkTree(scratch, rootDir),
          release,
          date: options.date,
          commit,
        });
  const releaseCommit =
    pristine &&
    (await commit(theirs, pristine.commit === null ? [] : [pristine.commit], `Release ${release}`));
  return {
    ...(await planCommits(site, uncommitted, commit, {
      tree: merged,
      parents: releaseCommit === null ? [] : [releaseCommit],
      message: `Install ${release}`,
      own: `Changes of this site before ${release}`,
      releaseCommit,
    })),
    ...(replaced === undefined ? {} : { replaced }),
    ...disk.plan,
  };
}

interface Committed {
  readonly tree: string;
  /** Besides what the site has. */
  readonly parents?: readonly string[];
  readonly message: string;
  /** Message of the commit before it, of what was not committed. */
  readonly own: string;
  /** That refs/zferry/release is then. */
  readonly releaseCommit: string | null;
}

/** Where a plan of `/` begins, and the commits that it leads to. */
export async function planCommits(
  site: Site,
  uncommitted: UncommittedDrift | null,
  commit: Commit,
  { tree, parents = [], message, own, releaseCommit }: Committed,
): Promise<Omit<RootPlan, "replaced" | "changes" | "directories">> {
  const drift = await commitUncommitted(uncommitted, site, own, commit);
  return {
    format: 1,
    head: site.head,
    branch: site.branch,
    mergeCommit: await commit(tree, [drift?.commit ?? site.head, ...parents], message),
    releaseCommit,
    previousRelease: site.releaseReference,
    ...(drift === null ? {} : { drift }),
  };
}

/**
 * Refuses a repository without the contents that giving the install up, or a file with other attributes, takes from there: a partial
 * clone, or one that lost some.
 */
export async function requireObjects(
  scratch: Git,
  site: Site,
  { plan, replaced }: Disk,
  uncommitted: UncommittedDrift | null,
  { git, scratchDir }: Pick<PlanOptions, "git" | "scratchDir">,
): Promise<void> {
  // Those come into the repository with the merge.
  const brought = new Set([...replaced.map(({ path }) => path), ...(uncommitted?.paths ?? [])]);
  const committed = new Set([...(await listTree(scratch, site.head)).values()].map(({ id }) => id));
  const wanted = new Map<string, RawPath>();
  for (const { path: name, before, after } of plan.changes) {
    const path = pathOf(name);
    if (before !== null && !brought.has(path)) wanted.set(before.blob, path);
    if (after !== null && committed.has(after.blob) && !wanted.has(after.blob)) wanted.set(after.blob, path);
  }
  // The scratch repository has those of the bundle, too.
  const alone = createBorrower(join(scratchDir, "site.git"), git);
  const missing = await missingObjects(alone, wanted.keys());
  if (missing.length === 0) return;
  const paths = [...new Set(missing.map((id) => showPath(wanted.get(id) ?? ("" as RawPath))))].sort();
  throw new ZferryError(
    "git-failed",
    `the repository ${git.gitDir} does not have the contents of ${listFirst(paths)}`,
    { details: { paths, missing }, hint: DAMAGED_HINT },
  );
}

/** What comes into a site's `/`: the difference of two trees, and what git does not keep of it. */
interface Difference extends Pick<DiskOptions, "directories" | "back" | "isOfRelease"> {
  readonly base: string;
  readonly theirs: string;
  readonly changes: readonly Change[];
  /** Whether the trees have everything, not only what differs. */
  readonly isWhole: boolean;
}

/**
 * Merges a difference into the site's tree, and holds the result against its files. New objects are only in `scratch`.
 * @returns the tree, and what changes on disk
 * @throws ZferryError `merge-conflict`, `worktree-dirty`, `not-configured`, `no-space`, `git-failed`, `io-failed`
 */
export async function mergeInto(
  scratch: Git,
  tree: string,
  { base, theirs, changes, isWhole, isOfRelease, directories, back }: Difference,
  options: Omit<PlanOptions, "git" | "summary" | "patch" | "objects" | "metadata" | "release">,
): Promise<{ readonly merged: string; readonly disk: Disk }> {
  const followed = await followRenames(scratch, { base, ours: tree, theirs }, changes, isWhole);
  const { rootDir, scratchDir, policies = [], resolutions, replaceUntracked = false } = options;
  const { permit, space, progress, warn } = options;
  const settling = settler({ scratch, scratchDir, policies, resolutions });
  try {
    const commit = committer(scratch, options.date);
    const { tree: merged, conflicts } = await mergeTrees(
      scratch,
      followed.trees,
      followed.conflicts,
      settling.contents,
      commit,
    );
    const disk = await planDisk({
      rootDir,
      scratch,
      directories,
      changes: followed.changes,
      head: tree,
      merged,
      conflicts,
      replaceUntracked,
      back,
      isOfRelease,
      settling,
      permit,
      space,
      progress,
      warn,
    });
    options.settled?.(settling.settled);
    return { merged, disk };
  } catch (error) {
    if (error instanceof ZferryError && error.code === "merge-conflict")
      await options.conflicts?.(settling.open, scratch);
    throw error;
  }
}

/** The site's uncommitted changes, where they may be committed; null where there are none. */
export async function takeUncommitted(
  scratch: Git,
  site: Site,
  { git, rootDir, commitDrift = false }: Pick<PlanOptions, "git" | "rootDir" | "commitDrift">,
): Promise<UncommittedDrift | null> {
  const withFiles = withWorkTree(scratch, rootDir);
  if (commitDrift) return writeUncommitted(git, withFiles, rootDir, site);
  await requireClean(git, withFiles, rootDir, site);
  return null;
}

/** The part of a plan that commits the site's uncommitted changes; null where there are none. */
const commitUncommitted = async (
  uncommitted: UncommittedDrift | null,
  site: Site,
  message: string,
  commit: Commit,
): Promise<NonNullable<RootPlan["drift"]> | null> =>
  uncommitted && {
    commit: await commit(uncommitted.tree, [site.head], message),
    paths: uncommitted.paths.map(pathName),
    staged: uncommitted.staged.map(pathName),
  };

async function findPristine(git: Git, site: Site, summary: RootSummary): Promise<Pristine | null> {
  const { base } = summary;
  if (site.previousRelease !== null) {
    const tree = trimmed(await git.run(["rev-parse", "--verify", `${site.previousRelease}^{tree}`]));
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
  if (base === undefined) return { tree: EMPTY_TREE, commit: null };
  // Not by git log: it verifies signatures if the site's settings say so, with a program that they name.
  const listing = ["rev-list", "--no-commit-header", "--format=%H %T", site.head];
  const history = (await git.run(listing)).toString("latin1").split("\n");
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

/** Writes commits of one date, in seconds since 1970. */
export const committer =
  (scratch: Git, date: number): Commit =>
  async (tree, parents, message) => {
    const when = `@${date} +0000`;
    const args = ["commit-tree", tree, ...parents.flatMap((parent) => ["-p", parent])];
    return trimmed(
      await scratch.run(args, {
        input: `${message}\n`,
        env: { GIT_AUTHOR_DATE: when, GIT_COMMITTER_DATE: when },
      }),
    );
  };

/** Without the whole base nothing tells where a file went that the site does not have any more. */
async function warnOfRenames(
  scratch: Git,
  site: Site,
  changes: readonly Change[],
  warn: PlanOptions["warn"],
): Promise<void> {
  if (warn === undefined) return;
  const files = await listTree(scratch, site.tree);
  const missing = changes.filter(({ path, before }) => before !== null && !files.has(path));
  if (missing.length === 0) return;
  warn(
    `the base of the release is not in the history of this site's /, so this site's renames are not followed: ` +
      `the release changes ${listFirst(missing.map(({ path }) => showPath(path)))}, which this site does not have`,
  );
}
