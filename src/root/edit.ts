import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ZferryError } from "../errors.js";
import { rawBytes, showPath, type RawPath } from "../raw-path.js";
import { createBorrower, listTree, openBorrower, trimmed, type Git } from "../system/git.js";
import { closeTree, openTree } from "../system/tree.js";
import { writeTree } from "./content.js";
import { readLive } from "./live.js";
import { committer } from "./merge.js";
import { requireChangeable } from "./obstacles.js";
import { pathName, pathOf } from "./paths.js";
import type { RootPlan } from "./plan.js";
import { readSite, requireConcluded } from "./site.js";

interface EditOptions {
  readonly git: Git;
  readonly rootDir: string;
  /** As for `planRoot`, with what that left there. */
  readonly scratchDir: string;
  /** The release's name, for the message of a commit. */
  readonly release: string;
  /** The date of the commit, in seconds since 1970. */
  readonly date: number;
}

const NEW_FILE = { uid: 0, gid: 0, permissions: 0o644, xattrs: {} };

/**
 * Has a plan leave other contents in one file than it would. Where git tracks the file, they are a part of the plan's commit.
 * @param plan undefined: nothing else changes
 * @param edit given the contents that the plan would leave, empty without the file
 * @returns undefined where nothing changes at all
 * @throws ZferryError `dataset-unsuitable` where something else has the file's place; `worktree-dirty`, also while an operation of git is
 * half done; `git-failed`, `io-failed`
 */
export async function planEdit(
  plan: RootPlan | undefined,
  path: RawPath,
  edit: (contents: Buffer) => Buffer,
  { git, rootDir, scratchDir, release, date }: EditOptions,
): Promise<RootPlan | undefined> {
  const borrower = join(scratchDir, "root.git");
  const scratch = plan === undefined ? createBorrower(borrower, git) : openBorrower(borrower);
  const planned = plan?.changes.find((change) => pathOf(change.path) === path);
  const before = planned === undefined ? await stateNow(rootDir, path) : planned.before;
  const state = planned === undefined ? before : planned.after;
  const contents =
    planned === undefined
      ? before && readFileSync(Buffer.concat([Buffer.from(`${rootDir}/`), rawBytes(path)]))
      : planned.after && (await scratch.run(["cat-file", "blob", planned.after.blob]));
  const edited = edit(contents ?? Buffer.of());
  if (contents?.equals(edited) ?? edited.length === 0) return plan;
  // Otherwise the plan has looked.
  if (plan === undefined) requireConcluded(git);

  const blob = trimmed(await scratch.run(["hash-object", "-w", "--stdin"], { input: edited }));
  const { mode, attributes } = state ?? { mode: "100644" as const, attributes: NEW_FILE };
  const change = { path, before, after: { mode, blob, attributes } };
  const tree = openTree(rootDir);
  try {
    await requireChangeable(tree, { changes: [change], directories: [] });
  } finally {
    closeTree(tree);
  }
  const others = (plan?.changes ?? []).filter((each) => each !== planned);
  const changes = [...others, { ...change, path: pathName(path) }].sort((a, b) =>
    pathOf(a.path) < pathOf(b.path) ? -1 : 1,
  );
  const from = plan ?? (await nothing(git));
  if (!(await listTree(scratch, from.mergeCommit)).has(path)) return { ...from, changes, blobs: [blob] };
  const parents =
    plan === undefined
      ? [from.head]
      : trimmed(await scratch.run(["rev-parse", `${plan.mergeCommit}^@`])).split("\n");
  const merged = await writeTree(scratch, [[path, { mode, id: blob }]], `${from.mergeCommit}^{tree}`);
  const mergeCommit = await committer(scratch, date)(merged, parents, `Install ${release}`);
  return { ...from, changes, mergeCommit };
}

async function stateNow(rootDir: string, path: RawPath) {
  const tree = openTree(rootDir);
  try {
    const [live] = await readLive(tree, [path]);
    if (live === undefined || live.kind === "absent") return null;
    if (live.kind === "file") return live.state;
    throw new ZferryError("dataset-unsuitable", `${showPath(path)} of / is no regular file: ${live.kind}`, {
      details: { path: showPath(path) },
    });
  } finally {
    closeTree(tree);
  }
}

/** The plan that changes nothing. */
async function nothing(git: Git): Promise<RootPlan> {
  const { head, branch, releaseReference } = await readSite(git);
  return {
    format: 1,
    head,
    branch,
    mergeCommit: head,
    releaseCommit: releaseReference,
    previousRelease: releaseReference,
    changes: [],
    directories: [],
  };
}
