import { join } from "node:path";
import { ZferryError } from "../errors.js";
import type { RawPath } from "../raw-path.js";
import {
  createBorrower,
  joinNul,
  listTree,
  openRepository,
  splitNul,
  withWorkTree,
  type Git,
} from "../system/git.js";
import { withScratch } from "../system/scratch.js";
import { closeTree, kindAt, openTree } from "../system/tree.js";
import { MAX_PATCH_BYTES } from "./diff.js";
import { indexTree, listStaged, readSite } from "./site.js";

/** `retyped`: a file that became a link, or the reverse. */
export type DriftKind = "added" | "modified" | "deleted" | "renamed" | "retyped";

/** One path that is not as it was. */
export interface DriftEntry {
  readonly kind: DriftKind;
  readonly path: RawPath;
  /** What a renamed file was called. */
  readonly from: RawPath | undefined;
}

/** How a site's `/` differs from the release that it was made from, in what git keeps: contents, and the executable bit. */
export interface Drift {
  /** Commits: the release as it was, and the site's HEAD. */
  readonly release: string;
  readonly head: string;
  /** From the release to HEAD. */
  readonly committed: readonly DriftEntry[];
  /**
   * From HEAD to the files that are there, of those in HEAD or in git's index; and where the index alone differs, to the index. What git
   * does not track is not looked at.
   */
  readonly uncommitted: readonly DriftEntry[];
}

/**
 * Compares a site with the release that it was made from, and changes nothing.
 * @param rootDir the site's work tree
 * @throws ZferryError `not-configured` when the release is not known; `git-failed`, `io-failed`
 */
export const readDrift = (rootDir: string): Promise<Drift> =>
  compared(rootDir, async (sides) => {
    const { scratch, release, head, tree } = sides;
    const committed = parseEntries(await scratch.run(["diff-tree", "-r", ...LIST, release, head]));
    const { env, staged } = await indexFiles(rootDir, sides);
    const found = parseEntries(await scratch.run(["diff-index", ...LIST, tree], { env }));
    const known = new Set(found.flatMap(({ path, from }) => [path, from]));
    const inHead = await listTree(scratch, tree);
    const inIndex = [...staged].flatMap(([path, file]): DriftEntry[] =>
      known.has(path)
        ? []
        : [
            {
              kind: file === null ? "deleted" : inHead.has(path) ? "modified" : "added",
              path,
              from: undefined,
            },
          ],
    );
    const uncommitted = [...found, ...inIndex].sort((a, b) => (a.path < b.path ? -1 : 1));
    return { release, head, committed, uncommitted };
  });

/**
 * The same difference, as one patch from the release to the files that are there, in bytes.
 * @throws ZferryError as `readDrift`
 */
export const readDriftPatch = (rootDir: string): Promise<Buffer> =>
  compared(rootDir, async (sides) => {
    const { scratch, release } = sides;
    const { env } = await indexFiles(rootDir, sides);
    return scratch.run(["diff-index", ...PATCH, release], {
      env,
      maxOutputBytes: MAX_PATCH_BYTES,
    });
  });

const SHOWN = ["--find-renames", "--ignore-submodules=all"];
const LIST = ["--name-status", "-z", ...SHOWN];
const PATCH = ["--patch", "--binary", "--full-index", "--no-ext-diff", "--no-textconv", ...SHOWN];

/** As `indexTree`, with the files that git's index of the site has and HEAD does not; and what it has staged. */
async function indexFiles(rootDir: string, { git, scratch, head, tree }: Sides) {
  const env = await indexTree(scratch, tree);
  const staged = await listStaged(git, head);
  const root = openTree(rootDir);
  try {
    const present = [...staged.keys()].filter((path) => ["file", "symlink"].includes(kindAt(root, path)));
    await scratch.run(["update-index", "--add", "-z", "--stdin"], { env, input: joinNul(present) });
  } finally {
    closeTree(root);
  }
  return { env, staged };
}

interface Sides {
  readonly git: Git;
  /** With the site's work tree. */
  readonly scratch: Git;
  readonly release: string;
  readonly head: string;
  readonly tree: string;
}

/** Runs `use` with a repository of our own, in which no setting, filter or attribute of the site's takes part. */
async function compared<Result>(rootDir: string, use: (sides: Sides) => Promise<Result>): Promise<Result> {
  const git = await openRepository(rootDir);
  const { head, tree, previousRelease: release } = await readSite(git);
  if (release === null) {
    throw new ZferryError(
      "not-configured",
      `the repository ${git.gitDir} has no refs/zferry/release: which release this site was made from is not known`,
      {
        details: { ref: "refs/zferry/release" },
        hint: `install a release first: that sets it, where the history of HEAD has the bundle's base; or a commit that has the release as it was can be named: git -C ${rootDir} update-ref refs/zferry/release COMMIT`,
      },
    );
  }
  return withScratch((folder) => {
    const scratch = withWorkTree(createBorrower(join(folder, "root.git"), git), rootDir);
    return use({ git, scratch, release, head, tree });
  });
}

const KINDS: Readonly<Record<string, DriftKind>> = {
  A: "added",
  M: "modified",
  D: "deleted",
  R: "renamed",
  T: "retyped",
};

/** Of `--name-status -z`: a letter, a path, and of a renamed file its new path; sorted by path. */
function parseEntries(output: Buffer): DriftEntry[] {
  const fields = splitNul(output);
  const entries: DriftEntry[] = [];
  while (fields.length > 0) {
    const [letter = "", path = "" as RawPath] = fields.splice(0, 2);
    const kind = KINDS[letter.charAt(0)];
    if (kind === undefined) throw new ZferryError("git-failed", `git diff has the status ${letter}`);
    const to = kind === "renamed" ? fields.shift() : undefined;
    entries.push({ kind, path: to ?? path, from: to && path });
  }
  return entries;
}
