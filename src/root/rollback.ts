import { join } from "node:path";
import { ZferryError } from "../errors.js";
import { showPath, type RawPath } from "../raw-path.js";
import { listFirst } from "../report.js";
import { createBorrower, listTree, type Git, type TreeFile } from "../system/git.js";
import type { FileAttributes } from "../system/tree.js";
import type { Change } from "./content.js";
import type { PlannedState } from "./links.js";
import {
  committer,
  mergeInto,
  planCommits,
  requireObjects,
  takeUncommitted,
  type PlanOptions,
} from "./merge.js";
import type { RecordedAttributes, RecordedFile } from "./metadata.js";
import { requireMovable } from "./git-locks.js";
import { pathOf } from "./paths.js";
import type { RootPlan } from "./plan.js";
import { readSite, type Site } from "./site.js";

// formats/root.md, Rolling back

export interface RollbackOptions extends Omit<
  PlanOptions,
  "summary" | "patch" | "objects" | "metadata" | "replaceUntracked"
> {
  /** The plan of the install that is rolled back. */
  readonly installed: RootPlan;
}

/**
 * Decides everything that taking an install back changes in a site's `/`, and changes nothing there: what the site did since
 * stays, merged as by an install. New objects are only in the scratch repository.
 * @throws ZferryError `worktree-dirty`, `merge-conflict`, `base-mismatch`, `no-space`, `git-failed`, `io-failed`
 */
export async function planRootRollback(options: RollbackOptions): Promise<RootPlan> {
  const { git, installed, release } = options;
  const found = await readSite(git);
  await requireMovable(git, found.branch);
  requireRelease(git, found, installed);
  const scratch = createBorrower(join(options.scratchDir, "root.git"), git);
  const uncommitted = await takeUncommitted(scratch, found, options);
  const [base, theirs] = await treesOf(git, installed.mergeCommit);
  const untracked = await untrackedBefore(scratch, { base, theirs, installed });
  const returning = await keptOf(git, installed, untracked, options.warn);
  const difference = {
    base,
    theirs,
    changes: installed.changes.map(({ path, before, after }): Change => {
      const isLost = returning.lost.has(pathOf(path));
      return { path: pathOf(path), before: recordedFile(after), after: isLost ? null : recordedFile(before) };
    }),
    directories: installed.directories.map(({ path, before, after }) => ({
      path,
      before: after && recorded(after),
      after: before && recorded(before),
    })),
    isWhole: true,
    isOfRelease: false,
    back: { untracked: returning.untracked },
  };
  const { merged, disk } = await mergeInto(
    scratch,
    uncommitted?.tree ?? found.tree,
    difference,
    options,
  ).catch((error: unknown) => {
    throw asOfRollback(error);
  });
  await requireObjects(scratch, found, disk, uncommitted, options);
  return {
    ...(await planCommits(found, uncommitted, committer(scratch, options.date), {
      tree: merged,
      message: `Roll back ${release}`,
      own: `Changes of this site before rolling back ${release}`,
      releaseCommit: installed.previousRelease,
    })),
    ...returningOf(installed, disk.plan.changes, returning.lost, options.warn),
    ...disk.plan,
  };
}

/** The release that is to be taken back must be the one that `/` has. */
function requireRelease({ gitDir }: Git, { previousRelease }: Site, { releaseCommit }: RootPlan): void {
  if (previousRelease === releaseCommit) return;
  const update = `git --git-dir=${gitDir} update-ref`;
  throw new ZferryError(
    "base-mismatch",
    `refs/zferry/release is ${previousRelease ?? "not there"}, the install left ${releaseCommit ?? "none"}`,
    {
      details: { found: previousRelease ?? "", expected: releaseCommit ?? "" },
      hint:
        releaseCommit === null
          ? `${update} -d refs/zferry/release brings it back to that`
          : `${update} refs/zferry/release ${releaseCommit} brings it back to that`,
    },
  );
}

/** The trees of the install's commit and of the one before it. */
async function treesOf(git: Git, commit: string): Promise<[base: string, theirs: string]> {
  const found = await git.ask(["rev-parse", "--verify", "--quiet", `${commit}^{tree}`]);
  const before = await git.ask(["rev-parse", "--verify", "--quiet", `${commit}^1^{tree}`]);
  if (found.status === 0 && before.status === 0)
    return [found.stdout.toString("latin1").trim(), before.stdout.toString("latin1").trim()];
  throw new ZferryError("base-mismatch", `the repository of / does not have the install's commit ${commit}`, {
    details: { expected: commit },
    hint: "bring its history back from a copy",
  });
}

/** The files of the install's commit that git did not track before it, though they were there. */
async function untrackedBefore(
  scratch: Git,
  { base, theirs, installed }: { base: string; theirs: string; installed: RootPlan },
): Promise<Set<RawPath>> {
  const files = await listTree(scratch, base);
  const earlier: ReadonlyMap<RawPath, TreeFile> = await listTree(scratch, theirs);
  const made = new Set(
    installed.changes.flatMap(({ path, before }) => (before === null ? [pathOf(path)] : [])),
  );
  return new Set([...files.keys()].filter((path) => !earlier.has(path) && !made.has(path)));
}

/** Of files that were untracked, those whose contents somebody removed from git meanwhile are lost. */
async function keptOf(
  git: Git,
  { changes }: RootPlan,
  untracked: ReadonlySet<RawPath>,
  warn: RollbackOptions["warn"],
): Promise<{ readonly untracked: ReadonlySet<RawPath>; readonly lost: ReadonlySet<RawPath> }> {
  const blobs = changes.flatMap(({ path, before }): [RawPath, string][] =>
    before !== null && untracked.has(pathOf(path)) ? [[pathOf(path), before.blob]] : [],
  );
  if (blobs.length === 0) return { untracked, lost: new Set() };
  const checked = await git.run(["cat-file", "--batch-check=%(objecttype)"], {
    input: blobs.map(([, id]) => `${id}\n`).join(""),
  });
  const types = checked.toString("latin1").split("\n");
  const lost = new Set(blobs.flatMap(([path], index) => (types[index] === "blob" ? [] : [path])));
  if (lost.size > 0) {
    const shown = [...lost].map(showPath).join(", ");
    warn?.(
      `files that the install replaced do not come back, since git does not have them any more: ${shown}`,
    );
  }
  return { untracked: new Set([...untracked].filter((path) => !lost.has(path))), lost };
}

/**
 * What kept untracked files for an install is done with once all of them are back; where one is not, since the site did something else
 * with its place, it stays, and is named.
 */
function returningOf(
  { replaced, changes: installed }: RootPlan,
  changes: RootPlan["changes"],
  lost: ReadonlySet<RawPath>,
  warn: RollbackOptions["warn"],
): Pick<RootPlan, "returning"> {
  if (replaced === undefined) return {};
  const before = new Map(installed.map(({ path, before }) => [pathOf(path), before?.blob]));
  const back = new Set(
    changes.flatMap(({ path, after }) =>
      after !== null && after.blob === before.get(pathOf(path)) ? [pathOf(path)] : [],
    ),
  );
  const kept = replaced.paths.map(pathOf).filter((path) => !back.has(path) && !lost.has(path));
  if (kept.length === 0) return { returning: replaced };
  warn?.(
    `${kept.map(showPath).join(", ")}: what was there before the install stays in git, in ${replaced.ref}`,
  );
  return {};
}

const recorded = ({ uid, gid, permissions, xattrs }: FileAttributes): RecordedAttributes => ({
  owner: { name: null, id: uid },
  group: { name: null, id: gid },
  permissions: permissions.toString(8).padStart(4, "0"),
  xattrs: { ...xattrs },
});

const recordedFile = (state: PlannedState | null): RecordedFile | null =>
  state && {
    mode: state.mode,
    blob: state.blob,
    ...recorded(state.attributes),
    ...(state.link === undefined ? {} : { link: state.link }),
  };

/** A conflict, in words of a rollback. */
function asOfRollback(error: unknown): unknown {
  if (!(error instanceof ZferryError) || error.code !== "merge-conflict") return error;
  const { reasons = [] } = error.details as { readonly reasons?: readonly string[] };
  return new ZferryError(
    "merge-conflict",
    `the site changed since the install what is to be taken back: ${listFirst(reasons)}`,
    {
      details: error.details,
      hint:
        "nothing was changed; bundle resolve --rollback puts these places into a folder to be settled there, or take the site's " +
        "own change of them back, commit that, and try again",
    },
  );
}
