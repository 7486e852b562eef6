import { showPath, type RawPath } from "../raw-path.js";
import { joinNul, listTree, newIndex, trimmed, type Git } from "../system/git.js";
import type { FileState } from "./live.js";
import { pathName } from "./paths.js";
import type { RootPlan } from "./plan.js";
import { dirty } from "./site.js";

/** A file or link that git does not track, and that a release puts its own in place of. */
export interface Replaced {
  readonly path: RawPath;
  readonly state: FileState;
}

interface BackUpOptions {
  /** The site's repository. */
  readonly git: Git;
  /** A borrowing repository with the site's work tree. */
  readonly scratch: Git;
  readonly release: string;
  /** Of this install's commits, in seconds since 1970. */
  readonly date: number;
  readonly commit: (tree: string, parents: readonly string[], message: string) => Promise<string>;
}

/**
 * Commits files that a release replaces, as they are, byte by byte, in the scratch repository; the message tells their owners and
 * permissions. What an earlier install of the same release replaced is the commit's parent, so that one reference keeps both.
 * @throws ZferryError `worktree-dirty` when one is not as it was read; `git-failed`
 */
export async function backUp(
  replaced: readonly Replaced[],
  { git, scratch, release, date, commit }: BackUpOptions,
): Promise<NonNullable<RootPlan["replaced"]>> {
  const env = newIndex(scratch, "replaced");
  await scratch.run(["update-index", "--add", "-z", "--stdin"], {
    env,
    input: joinNul(replaced.map(({ path }) => path)),
  });
  const tree = trimmed(await scratch.run(["write-tree"], { env }));
  const files = await listTree(scratch, tree);
  const moving = replaced.filter(({ path, state }) => {
    const file = files.get(path);
    return file?.mode !== state.mode || file.id !== state.blob;
  });
  if (moving.length > 0) {
    throw dirty(
      "files changed in this moment",
      moving.map(({ path }) => showPath(path)),
      "run the same command again",
    );
  }
  const ref = `refs/zferry/replaced/${release}`;
  const previous = await readEarlier(git, ref, date);
  const message = [`Replaced by ${release}`, "", ...replaced.map(describe)].join("\n");
  return {
    ref,
    commit: await commit(tree, previous === null ? [] : [previous], message),
    previous,
    paths: replaced.map(({ path }) => pathName(path)),
  };
}

/** What a reference was before this install, which may have set it already: its commits have its date. */
async function readEarlier(git: Git, ref: string, date: number): Promise<string | null> {
  const found = await git.ask(["rev-list", "--first-parent", "--timestamp", ref, "--"]);
  const commits = found.status === 0 ? trimmed(found.stdout).split("\n") : [];
  const earlier = commits.map((line) => line.split(" ")).find(([when]) => when !== String(date));
  return earlier?.[1] ?? null;
}

/** "0640 0:80 etc/motd" */
const describe = ({ path, state: { attributes } }: Replaced): string => {
  const { uid, gid, permissions } = attributes;
  return `${permissions.toString(8).padStart(4, "0")} ${uid}:${gid} ${showPath(path)}`;
};
