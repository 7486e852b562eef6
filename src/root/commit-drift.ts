import { showPath, type RawPath } from "../raw-path.js";
import { joinNul, trimmed, type Git } from "../system/git.js";
import { closeTree, openTree } from "../system/tree.js";
import { gitFile, readLive, sameGit, stateOf, type GitFile, type Live } from "./live.js";
import { compareFiles, dirty, listStaged, requireCheckedOut, requireConcluded, type Site } from "./site.js";

/** What the site changed and did not commit, as a tree in the scratch repository. */
export interface UncommittedDrift {
  readonly tree: string;
  /** Sorted. */
  readonly paths: readonly RawPath[];
  /** Those of them that git's index has as the files are; it has the others as in HEAD. */
  readonly staged: readonly RawPath[];
}

/**
 * Writes the files that git tracks, in HEAD or in its index, as a tree: as they are, byte by byte. The site stays as it is, and
 * what is untracked is left out.
 * @param git the site's repository
 * @param scratch a borrowing repository with the site's work tree
 * @returns null when nothing differs from HEAD
 * @throws ZferryError `worktree-dirty` when an operation of git is half done, a sparse checkout left files out, a tracked file became something that git does not
 * keep, or the index has what is neither in HEAD nor in the files; `git-failed`, `io-failed`
 */
export async function writeUncommitted(
  git: Git,
  scratch: Git,
  rootDir: string,
  site: Site,
): Promise<UncommittedDrift | null> {
  requireConcluded(git);
  const staged = await listStaged(git, site.head);
  const { env, changed } = await compareFiles(scratch, site.tree);
  await requireCheckedOut(git, rootDir, changed);
  const paths = [...new Set([...changed, ...staged.keys()])].sort();
  if (paths.length === 0) return null;

  const lives = await readAt(rootDir, paths);
  requireKept(paths, lives);
  const differing = paths.filter((path, index) => {
    const entry = staged.get(path);
    return entry !== undefined && !isSame(entry && gitFile(entry), stateOf(lives[index]));
  });
  if (differing.length > 0) {
    throw dirty(
      "git's index has changes that are neither in the last commit nor in the files",
      differing.map(showPath),
      `commit them (git -C ${rootDir} commit), or take them out of the index (git -C ${rootDir} reset)`,
    );
  }
  await scratch.run(["update-index", "--add", "--remove", "-z", "--stdin"], {
    env,
    input: joinNul(paths),
  });
  const tree = trimmed(await scratch.run(["write-tree"], { env }));
  return { tree, paths, staged: [...staged.keys()] };
}

async function readAt(rootDir: string, paths: readonly RawPath[]): Promise<Live[]> {
  const tree = openTree(rootDir);
  try {
    return await readLive(tree, paths);
  } finally {
    closeTree(tree);
  }
}

/** A file that is gone is a change; one that became a folder, a device or the like is for the administrator to judge. */
function requireKept(paths: readonly RawPath[], lives: readonly Live[]): void {
  const strange = paths.flatMap((path, index) => {
    const live = lives[index] ?? { kind: "absent" };
    const shown = showPath(path);
    if (live.kind === "blocked") return [`${shown} (${showPath(live.at)} is now a ${live.by})`];
    if (live.kind === "absent" || live.kind === "file" || live.kind === "symlink") return [];
    return [`${shown} (now a ${live.kind})`];
  });
  if (strange.length === 0) return;
  throw dirty("tracked files are no files any more", strange, "commit what is meant, or bring them back");
}

const isSame = (a: GitFile | null, b: GitFile | null): boolean =>
  a === null || b === null ? a === b : sameGit(a, b);
