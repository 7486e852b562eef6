import { accessSync, constants, existsSync, rmSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { systemCode, throwAll, ZferryError } from "../errors.js";
import { guarded, reasonOf } from "../system/files.js";
import type { Git } from "../system/git.js";
import { holdersOf } from "../system/in-use.js";
import { closeTree, lockedByFlags, openTree } from "../system/tree.js";
import { ancestors, rawPath } from "../raw-path.js";
import { dirty } from "./site.js";

const commonOf = (git: Git): string => dirname(git.objects);

/** The references that an install moves, and that keep its objects meanwhile. */
export const movedRefs = (branch: string | null): string[] => [
  branch ?? "HEAD",
  "refs/zferry/pending",
  "refs/zferry/release",
];

/** The files by which git locks a reference. */
export const lockFiles = (git: Git, ref: string): string[] => [
  join(commonOf(git), `${ref}.lock`),
  join(git.gitDir, "HEAD.lock"),
  join(commonOf(git), "packed-refs.lock"),
];

/** Rounds of 100 ms. */
const STALE_LOCK_ROUNDS = 50;

/**
 * Waits until a lock of git's is gone. Git holds one for milliseconds: where it stays the same for five seconds, whoever made it
 * hangs, or was killed.
 * @returns whether it is gone
 */
export async function awaitLock(path: string): Promise<boolean> {
  const identify = (): string | undefined => {
    const stat = guarded(path, () => statSync(path, { throwIfNoEntry: false }));
    return stat && `${stat.ino} ${stat.mtimeMs}`;
  };
  let rounds = 0;
  for (let lock = identify(); lock !== undefined;) {
    if (rounds === STALE_LOCK_ROUNDS) return false;
    await sleep(100);
    const next = identify();
    rounds = next === lock ? rounds + 1 : 0;
    lock = next;
  }
  return true;
}

/**
 * Whether an install can move the site's references. A lock that stays there before it began is not its own; one of a reference
 * that nobody but zferry moves was left by a run that was killed, unless a process has it.
 * @throws ZferryError `site-busy`, `worktree-dirty`
 */
export async function requireMovable(git: Git, branch: string | null): Promise<void> {
  const refs = movedRefs(branch);
  const locks = [...new Set(refs.flatMap((ref) => lockFiles(git, ref)))];
  const faults = await Promise.all(
    locks.map(async (path) => {
      if (await awaitLock(path)) return [];
      const holders = await holdersOf(path, commonOf(git));
      const isNobodys = holders.length === 0 && path.startsWith(join(commonOf(git), "refs/zferry/"));
      return isNobodys ? [] : [lockedBy(path, holders)];
    }),
  );
  throwAll([...faults.flat(), ...(await findUnchangeable(git, refs))]);
}

export const lockedBy = (lock: string, holders: readonly string[]): ZferryError =>
  new ZferryError(
    "site-busy",
    `git is running in the site's /: there is ${lock}${holders.length === 0 ? "" : `, and there runs ${holders.join(", ")}`}`,
    {
      details: { path: lock, holders },
      hint: `fuser -v ${lock} and pgrep -a git tell who has it; let that end, or remove the file if no git runs, and run the same command again`,
    },
  );

/**
 * Removes the locks by which a git that was copied in the midst of its work keeps others away: in the copy none runs.
 * @param git the repository of a clone, which nobody works in
 * @returns the locks that were there
 * @throws ZferryError `io-failed`
 */
export async function removeCopiedLocks(git: Git): Promise<string[]> {
  const head = await git.ask(["symbolic-ref", "--quiet", "HEAD"]);
  const branch = head.status === 0 ? head.stdout.toString("utf8").trim() : null;
  const locks = [...movedRefs(branch).flatMap((ref) => lockFiles(git, ref)), join(git.gitDir, "index.lock")];
  const there = [...new Set(locks)].filter((path) => existsSync(path));
  for (const path of there) guarded(path, () => rmSync(path));
  return there;
}

/**
 * What would keep git from moving references, and zferry from replacing the index: flags of chattr(1), a file system that is
 * read-only, and references whose names are folders of ours or the reverse.
 * @param refs that are to be made or moved
 * @throws ZferryError `worktree-dirty`
 */
export async function requireRepositoryChangeable(git: Git, refs: readonly string[]): Promise<void> {
  throwAll(await findUnchangeable(git, refs));
}

async function findUnchangeable(git: Git, refs: readonly string[]): Promise<ZferryError[]> {
  const named = (await git.run(["for-each-ref", "--format=%(refname)"])).toString("latin1").split("\n");
  const inTheWay = named.filter((name) =>
    refs.some((ref) => name.startsWith(`${ref}/`) || (name !== "" && ref.startsWith(`${name}/`))),
  );
  const faults: ZferryError[] = [];
  if (inTheWay.length > 0) {
    faults.push(
      dirty(
        `references stand in the way of ${refs.join(", ")}`,
        inTheWay,
        `give them other names, or remove them: git --git-dir=${git.gitDir} update-ref -d ${inTheWay[0] ?? ""}`,
      ),
    );
  }
  const moved = refs.filter((ref) => ref !== "HEAD");
  const shared = ["packed-refs", "objects/pack", ...moved, ...moved.map((ref) => `logs/${ref}`)];
  const own = ["HEAD", "index", "logs/HEAD"];
  // Apart only in a work tree that git worktree added.
  const written =
    commonOf(git) === git.gitDir
      ? [{ folder: git.gitDir, names: [...shared, ...own] }]
      : [
          { folder: commonOf(git), names: shared },
          { folder: git.gitDir, names: own },
        ];
  for (const { folder, names } of written) faults.push(...(await findLocked(folder, names)));
  return faults;
}

async function findLocked(folder: string, names: readonly string[]): Promise<ZferryError[]> {
  const paths = names.map((name) => rawPath(Buffer.from(name)));
  const all = [...new Set(["" as const, ...paths.flatMap((path) => [...ancestors(path), path])])].sort();
  const faults: ZferryError[] = [];
  const tree = openTree(folder);
  // A log is only ever appended to.
  const locked = (await lockedByFlags(tree, all).finally(() => closeTree(tree))).filter(
    ({ path, flag }) => flag === "i" || !isLog(path, names),
  );
  if (locked.length > 0) {
    const name = { i: "immutable", a: "append-only" };
    faults.push(
      dirty(
        "chattr locks what git has to write",
        locked.map(({ path, flag }) => `${join(folder, path)} (${name[flag]})`),
        `${locked.map(({ path, flag }) => `chattr -${flag} ${join(folder, path)}`).join("; ")}, and back when the install is done`,
      ),
    );
  }
  const readOnly = all.flatMap((name) => {
    const path = join(folder, name);
    if (!existsSync(path) || locked.some((flagged) => flagged.path === name)) return [];
    try {
      accessSync(path, constants.W_OK);
      return [];
    } catch (error) {
      return [`${path} (${reasonOf(systemCode(error) ?? "")})`];
    }
  });
  if (readOnly.length > 0)
    faults.push(dirty("git's folder cannot be written to", readOnly, "mount it for writing"));
  return faults;
}

const isLog = (path: string, names: readonly string[]): boolean =>
  path.startsWith("logs/") && names.includes(path);
