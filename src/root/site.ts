import { existsSync, lstatSync } from "node:fs";
import { dirname, join } from "node:path";
import { ZferryError } from "../errors.js";
import { rawBytes, showPath, type RawPath } from "../raw-path.js";
import { listFirst } from "../report.js";
import {
  DAMAGED_HINT,
  findObjects,
  INDEX_ANEW,
  listTree,
  splitNul,
  trimmed,
  type Git,
  type TreeFile,
} from "../system/git.js";

/** What the site's repository says when the plan is made. */
export interface Site {
  readonly head: string;
  readonly tree: string;
  readonly branch: string | null;
  /** The commit that `refs/zferry/release` leads to. */
  readonly previousRelease: string | null;
  /** The object that it names, which may be a tag of that commit. */
  readonly releaseReference: string | null;
}

const RELEASE = "refs/zferry/release";

export async function readSite(git: Git): Promise<Site> {
  const symbolic = await git.ask(["symbolic-ref", "--quiet", "HEAD"]);
  const branch = symbolic.status === 0 ? trimmed(symbolic.stdout) : null;
  const names = ["HEAD^{commit}", "HEAD^{tree}", `${RELEASE}^{commit}`, RELEASE] as const;
  const [head, tree, previousRelease, releaseReference] = await findObjects(git, names);
  if (head === null) throw await noCommit(git, branch);
  if (tree === null) throw damaged(git, "HEAD", "leads to no tree");
  if (previousRelease === null) await requireNoRelease(git);
  return { head, tree, branch, previousRelease, releaseReference };
}

/** A reference that leads to no commit is none to begin from; where it does not exist at all, there was no release. */
async function requireNoRelease(git: Git): Promise<void> {
  const named = await git.ask(["rev-parse", "--verify", "--quiet", RELEASE]);
  if (named.status !== 0) return;
  throw new ZferryError("git-failed", `${RELEASE} of ${git.gitDir} leads to no commit`, {
    details: { ref: RELEASE, found: trimmed(named.stdout) },
    hint: `let it name the commit of the release that this site was made from: git --git-dir=${git.gitDir} update-ref ${RELEASE} COMMIT`,
  });
}

/** A branch that nothing was ever committed to is not there at all; one that is there leads to something that is lost. */
async function noCommit(git: Git, branch: string | null): Promise<ZferryError> {
  const listed = await git.ask(["for-each-ref", "--format=%(refname)", ...(branch === null ? [] : [branch])]);
  const isThere = branch === null || existsSync(join(dirname(git.objects), branch));
  if (!isThere && listed.stdout.length === 0 && listed.stderr === "") {
    return new ZferryError("not-configured", `the repository ${git.gitDir} has no commit`, {
      hint: "commit the site's / first",
    });
  }
  const said = listed.stderr.split("\n").at(-1) ?? "";
  return damaged(git, branch ?? "HEAD", `leads to no commit${said === "" ? "" : ` (${said})`}`);
}

const damaged = (git: Git, ref: string, what: string): ZferryError =>
  new ZferryError("git-failed", `the repository ${git.gitDir} is damaged: ${ref} ${what}`, {
    details: { ref },
    hint: `commit nothing: ${join(git.gitDir, "logs/HEAD")} tells which commits there were; ${DAMAGED_HINT}`,
  });

export const dirty = (message: string, paths: readonly string[], hint: string): ZferryError =>
  new ZferryError("worktree-dirty", `${message}: ${listFirst(paths, "; ")}`, {
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
  sequencer: "a series of cherry-picks or reverts is not concluded",
  // Its end would bring back what was checked out at its beginning.
  BISECT_LOG: "a bisection is not concluded",
};

// Who removed the file by hand would leave the index, and the files, half-way.
const CONCLUDE = "in its work tree, git status tells how to conclude it, or to abort it";

/** @throws ZferryError `worktree-dirty` when an operation of git is half done */
export function requireConcluded(git: Git): void {
  for (const [name, what] of Object.entries(IN_PROGRESS)) {
    const path = join(git.gitDir, name);
    if (!existsSync(path)) continue;
    const hint = name === "index.lock" ? "let it end, or remove the file if no git runs" : CONCLUDE;
    throw dirty(what, [path], hint);
  }
}

/**
 * Where git's index differs from a tree: what it has, null where it has nothing; sorted by path. Submodules are left out. The lists are
 * compared here: what git compares, it compares by the repository's settings.
 * @throws ZferryError `worktree-dirty` while a merge is not concluded, or where there is no index
 */
export async function listStaged(git: Git, tree: string): Promise<Map<RawPath, TreeFile | null>> {
  const committed = await listTree(git, tree);
  const staged = new Map<RawPath, TreeFile | null>();
  const isSubmodule = (file: TreeFile | undefined): boolean => file?.mode === "160000";
  const lines = splitNul(await git.run(["ls-files", "--stage", "-z", "--full-name"]));
  // What is committed then would remove every file of /.
  if (lines.length === 0 && committed.size > 0)
    throw dirty(
      "git's index has nothing, as after it was removed",
      [join(git.gitDir, "index")],
      `commit nothing: ${INDEX_ANEW}`,
    );
  for (const line of lines) {
    const [, mode = "", id = "", stage, name = ""] =
      /^(\d{6}) ([0-9a-f]{40}) ([0-3])\t(.*)$/s.exec(line) ?? [];
    const path = name as RawPath;
    if (stage !== "0")
      throw dirty("a merge is not concluded", [showPath(path)], "conclude it: git add, and commit");
    const was = committed.get(path);
    committed.delete(path);
    const isSame = was?.mode === mode && was.id === id;
    const isIgnored = mode === "160000" && (was === undefined || isSubmodule(was));
    if (!isSame && !isIgnored) staged.set(path, { mode, id });
  }
  for (const [path, file] of committed) if (!isSubmodule(file)) staged.set(path, null);
  return new Map([...staged].sort(([a], [b]) => (a < b ? -1 : 1)));
}

const COMPARED = ["--no-renames", "--name-only", "-z", "--ignore-submodules=all"];

/** The environment in which git has an index of its own. */
type IndexEnvironment = Readonly<Record<string, string>>;

/**
 * Makes an index of our own that has a tree, and knows which files of a work tree are as in it. They are compared byte by byte: no
 * filter runs, and no flag hides a file.
 * @param scratch a borrowing repository with that work tree
 */
export async function indexTree(scratch: Git, tree: string): Promise<IndexEnvironment> {
  const env = { GIT_INDEX_FILE: join(scratch.gitDir, "index.head") };
  await scratch.run(["read-tree", tree], { env });
  await scratch.ask(["update-index", "-q", "--refresh", "--ignore-submodules"], { env });
  return env;
}

/**
 * Compares a tree with the files of a work tree.
 * @returns what `indexTree` gives, and the paths of the tree that the work tree has otherwise, or not
 */
export async function compareFiles(
  scratch: Git,
  tree: string,
): Promise<{ readonly env: IndexEnvironment; readonly changed: readonly RawPath[] }> {
  const env = await indexTree(scratch, tree);
  return { env, changed: splitNul(await scratch.run(["diff-files", ...COMPARED], { env })) };
}

/**
 * @param changed paths that the work tree has otherwise than HEAD, or not
 * @throws ZferryError `worktree-dirty` where a sparse checkout left some of them out: nobody removed those
 */
export async function requireCheckedOut(
  git: Git,
  rootDir: string,
  changed: readonly RawPath[],
): Promise<void> {
  if (changed.length === 0) return;
  const flagged = new Set(
    splitNul(await git.run(["ls-files", "-t", "-z", "--full-name"]))
      .filter((line) => line.startsWith("S "))
      .map((line) => line.slice(2) as RawPath),
  );
  const isThere = (path: RawPath): boolean =>
    lstatSync(Buffer.concat([Buffer.from(`${rootDir}/`), rawBytes(path)]), { throwIfNoEntry: false }) !==
    undefined;
  const left = changed.filter((path) => flagged.has(path) && !isThere(path));
  if (left.length === 0) return;
  throw dirty(
    "a sparse checkout leaves out tracked files",
    left.map(showPath),
    `bring them back: git -C ${rootDir} sparse-checkout disable`,
  );
}

/** Files that git was told not to look at. */
const assumedUnchanged = async (git: Git): Promise<Set<RawPath>> =>
  new Set(
    splitNul(await git.run(["ls-files", "-v", "-z", "--full-name"]))
      .filter((line) => /^[a-z] /.test(line))
      .map((line) => line.slice(2) as RawPath),
  );

export async function requireClean(git: Git, scratch: Git, rootDir: string, site: Site): Promise<void> {
  requireConcluded(git);
  const hint = `commit the site's own changes (git -C ${rootDir} commit -a, or --commit-drift), or take them back`;
  const staged = [...(await listStaged(git, site.head)).keys()];
  if (staged.length > 0)
    throw dirty("git's index has changes that are not committed", staged.map(showPath), hint);
  const { changed } = await compareFiles(scratch, site.tree);
  await requireCheckedOut(git, rootDir, changed);
  if (changed.length === 0) return;
  const flagged = await assumedUnchanged(git);
  const hidden = changed.filter((path) => flagged.has(path)).map(showPath);
  throw dirty(
    "files differ from the site's last commit",
    changed.map(showPath),
    hidden.length === 0
      ? hint
      : `git was told not to look at ${hidden.join(", ")}: git -C ${rootDir} update-index --no-assume-unchanged ${hidden.join(" ")}; then ${hint}`,
  );
}
