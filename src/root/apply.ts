import { createHash } from "node:crypto";
import {
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  fchmodSync,
  fstatSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { dirname, join, relative } from "node:path";
import { ZferryError } from "../errors.js";
import { ancestors, rawBytes, rawPath, showPath, type RawPath } from "../raw-path.js";
import { listFirst, throwIfInterrupted, type ProgressReport } from "../report.js";
import { guarded, mapSystemError, syncPath } from "../system/files.js";
import { holdersOf } from "../system/in-use.js";
import {
  addName,
  BATCH,
  closeTree,
  folderOf,
  inPlace,
  holdFolder,
  holdFolderThere,
  inspect,
  kindAt,
  listFolder,
  makeFolder,
  makeLink,
  openFolderAt,
  openTree,
  removeIfEmpty,
  removePrepared,
  renameBeside,
  resolveWithin,
  setAttributes,
  syncFolder,
  type Attributed,
  type FileAttributes,
  type Tree,
} from "../system/tree.js";
import {
  blobSizes,
  createBorrower,
  indexInfo,
  listTree,
  quoteAlternate,
  readBlobs,
  withWorkTree,
  type Git,
} from "../system/git.js";
import { closedBetween, isBetween, opensMore } from "./access.js";
import {
  differingFields,
  hashOpenFile,
  linkedFile,
  readLive,
  sameState,
  type FileState,
  type Live,
} from "./live.js";
import type { PlannedState } from "./links.js";
import { awaitLock, lockedBy, lockFiles, movedRefs, requireRepositoryChangeable } from "./git-locks.js";
import { isCarriedXattr, isSymlink } from "./metadata.js";
import { groupedAlike, linkOf } from "./names.js";
import { requireChangeable } from "./obstacles.js";
import { pathOf } from "./paths.js";
import type { RootPlan } from "./plan.js";
import { preparedFolders, recordPrepared } from "./prepared.js";

export interface ApplyOptions {
  /** The site's repository. */
  readonly git: Git;
  /** The site's `/`. */
  readonly rootDir: string;
  /** Told how far it is. */
  readonly progress?: ProgressReport;
}

/** Keeps the new objects from being collected until HEAD has them. */
const PENDING = "refs/zferry/pending";
const RELEASE = "refs/zferry/release";

/**
 * Brings the plan's new objects into the site's repository; its branches stay. To be done before `prepareRoot`, and
 * again after a crash: what is there already is not brought twice.
 * @param options.scratchDir as for `planRoot`, with what that left there
 * @throws ZferryError `git-failed`, `no-space`
 */
export async function importObjects(
  plan: RootPlan,
  { git, scratchDir }: { git: Git; scratchDir: string },
): Promise<void> {
  if ((await readRef(git, PENDING)) === plan.mergeCommit) return;
  const { mergeCommit, replaced, blobs = [] } = plan;
  const wanted = [mergeCommit, ...(replaced === undefined ? [] : [replaced.commit]), ...blobs];
  const known = [plan.head, plan.previousRelease, replaced?.previous].filter((id) => typeof id === "string");
  await git.run(["pack-objects", "--revs", "--quiet", join(git.objects, "pack/pack")], {
    input: [...wanted, ...known.map((commit) => `^${commit}`), ""].join("\n"),
    env: { GIT_ALTERNATE_OBJECT_DIRECTORIES: quoteAlternate(join(scratchDir, "root.git/objects")) },
  });
  syncPath(join(git.objects, "pack"));
  if (replaced !== undefined) {
    await moveRef(git, replaced.ref, replaced.previous, replaced.commit, `zferry: replaced ${mergeCommit}`);
    // On the disk before any of these files is replaced.
    syncReferences(git, [replaced.ref, RELEASE, "refs/heads"]);
  }
  await awaitLocks(git, PENDING);
  await git.run(["update-ref", PENDING, mergeCommit]);
  syncReferences(git, [PENDING]);
}

/** A place that takes effect by one rename: a file, or a new folder with everything in it. */
interface Unit {
  readonly path: RawPath;
  /** Beside `path`, so that it is on the same file system. */
  readonly temporary: RawPath;
  readonly folders: { readonly place: RawPath; readonly attributes: FileAttributes }[];
  readonly files: { readonly path: RawPath; readonly place: RawPath; readonly state: PlannedState }[];
  /** Whether it lies in a folder that lets somebody do less afterwards. */
  readonly isClosing: boolean;
}

interface Work {
  readonly changes: readonly { path: RawPath; before: PlannedState | null; after: PlannedState | null }[];
  readonly directories: readonly {
    path: RawPath;
    before: FileAttributes | null;
    after: FileAttributes | null;
  }[];
  readonly units: readonly Unit[];
}

/** @param there folders that the plan makes and that are there already: what it brings into them comes file by file */
function workOf(plan: RootPlan, there: ReadonlySet<RawPath> = new Set()): Work {
  const changes = plan.changes.map(({ path, ...states }) => ({ path: pathOf(path), ...states }));
  const directories = plan.directories.map(({ path, ...states }) => ({ path: pathOf(path), ...states }));
  const made = new Set(
    directories.flatMap(({ path, before }) => (before === null && !there.has(path) ? [path] : [])),
  );
  const closing = new Set(
    directories.flatMap(({ path, before, after }) =>
      before !== null && after !== null && opensMore(before, [after]) ? [path] : [],
    ),
  );
  const units = new Map<RawPath, Unit>();
  /** The unit that brings a path, and where the path is prepared. */
  const unitOf = (path: RawPath): { unit: Unit; place: RawPath } => {
    const top = ancestors(path).find((folder) => made.has(folder)) ?? path;
    const unit = units.get(top) ?? {
      ...{ path: top, temporary: temporaryPath(plan, top), folders: [], files: [] },
      isClosing: ancestors(top).some((folder) => closing.has(folder)),
    };
    units.set(top, unit);
    return { unit, place: `${unit.temporary}${path.slice(top.length)}` as RawPath };
  };
  for (const { path, before, after } of directories) {
    if (before !== null || after === null || there.has(path)) continue;
    const { unit, place } = unitOf(path);
    unit.folders.push({ place, attributes: after });
  }
  for (const { path, after } of changes) {
    if (after === null) continue;
    const { unit, place } = unitOf(path);
    unit.files.push({ path, place, state: after });
  }
  return { changes, directories, units: [...units.values()] };
}

const ROOTS_ALONE: FileAttributes = { uid: 0, gid: 0, permissions: 0o600, xattrs: {} };

/**
 * Units as they are until the folders that they lie in have their new attributes: where such a folder lets somebody do less than before,
 * files that are prepared in it are root's alone, with all names that they have elsewhere.
 */
function closed(units: readonly Unit[]): Unit[] {
  const links = new Set(
    units.flatMap(({ isClosing, files }) => (isClosing ? files : []).map(({ state }) => linkOf(state))),
  );
  const close = (file: Unit["files"][number], isClosing: boolean): Unit["files"][number] => {
    const link = linkOf(file.state);
    if (isSymlink(file.state.mode) || !(isClosing || (link !== undefined && links.has(link)))) return file;
    return { ...file, state: { ...file.state, mode: "100644", attributes: ROOTS_ALONE } };
  };
  return units.map((unit) => ({ ...unit, files: unit.files.map((file) => close(file, unit.isClosing)) }));
}

/** The same at every run, so that a later one finds what an earlier one left. */
function temporaryPath({ mergeCommit }: RootPlan, path: RawPath): RawPath {
  const hash = createHash("sha256").update(mergeCommit).update(rawBytes(path)).digest("hex").slice(0, 16);
  const folder = folderOf(path);
  return `${folder}${folder === "" ? "" : "/"}.zferry-${hash}` as RawPath;
}

/**
 * Writes every changed file beside its place, complete and on disk, and leaves all places as they are. After a failure
 * nothing is left; after a crash it can be run again.
 * @param options.signal ends it between two files
 * @throws ZferryError `no-space`, `io-failed`, `git-failed`, `interrupted`
 */
export async function prepareRoot(
  plan: RootPlan,
  { git, rootDir, ...options }: ApplyOptions & { readonly signal?: AbortSignal },
): Promise<void> {
  const tree = openTree(rootDir);
  try {
    await prepareUnits(tree, git, closed(workOf(plan).units), options);
  } catch (error) {
    clearPrepared(tree, git, plan);
    throw error;
  } finally {
    closeTree(tree);
  }
}

/**
 * Takes back `importObjects` and `prepareRoot`, also half of them, also twice.
 * @returns what may be left: paths that were prepared in folders which are not there any more
 * @throws ZferryError `io-failed`, `git-failed`
 */
export async function discardRoot(plan: RootPlan, { git, rootDir }: ApplyOptions): Promise<RawPath[]> {
  const left = discardFiles(plan, { git, rootDir });
  await deleteRef(git, PENDING);
  syncReferences(git, [PENDING]);
  await restoreReference(plan.replaced, git);
  return left;
}

/** Where files that were replaced are where they were, their copy is of no use. */
async function restoreReference(replaced: RootPlan["replaced"], git: Git): Promise<void> {
  if (replaced === undefined || (await readRef(git, replaced.ref)) !== replaced.commit) return;
  const { ref, commit, previous } = replaced;
  await moveRef(git, ref, commit, previous, `zferry: take back ${commit}`);
  syncReferences(git, [ref]);
}

/**
 * Takes back `prepareRoot` alone. The repository stays as it is.
 * @returns as `discardRoot`
 * @throws ZferryError `io-failed`
 */
export function discardFiles(plan: RootPlan, { git, rootDir }: ApplyOptions): RawPath[] {
  const tree = openTree(rootDir);
  try {
    return clearPrepared(tree, git, plan);
  } finally {
    closeTree(tree);
  }
}

/** Removes what was prepared of a plan in any run, whichever of its folders were there. */
function clearPrepared(tree: Tree, git: Git, plan: RootPlan): RawPath[] {
  const made = preparedFolders(git);
  const left: RawPath[] = [];
  const isNew = new Set(
    plan.directories.flatMap(({ path, before }) => (before === null ? [pathOf(path)] : [])),
  );
  const prepared = new Map<RawPath | "", Set<RawPath>>();
  for (const { path, after } of [...plan.changes, ...plan.directories]) {
    if (after === null) continue;
    const temporary = temporaryPath(plan, pathOf(path));
    const folder = folderOf(temporary);
    const names = prepared.get(folder) ?? new Set();
    prepared.set(folder, names.add(temporary));
  }
  for (const [folder, temporaries] of prepared) {
    const place = movedTo(tree, folder);
    const listed = listFolder(tree, place);
    // What is in a new folder was prepared with that.
    if (
      listed === undefined &&
      folder !== "" &&
      ![...ancestors(folder), folder].some((each) => isNew.has(each))
    )
      left.push(...temporaries);
    for (const { name } of listed?.entries ?? []) {
      const beside = (above: string): RawPath => (above === "" ? name : `${above}/${name}`) as RawPath;
      if (temporaries.has(beside(folder))) removePrepared(tree, beside(place), made.get(name));
    }
  }
  for (const temporary of [...prepared.values()].flatMap((paths) => [...paths]))
    made.delete(nameOf(temporary));
  recordPrepared(git, made);
  return left;
}

/**
 * Where a folder is now that somebody moved, and left a link to in its place: a path without links, on which none is followed. The names
 * of what is prepared are nobody else's.
 */
function movedTo(tree: Tree, folder: RawPath | ""): RawPath | "" {
  if (folder === "" || kindAt(tree, folder) === "directory") return folder;
  const text = rawBytes(folder).toString("utf8");
  const place = resolveWithin(tree.path, text);
  return place === undefined ? folder : rawPath(Buffer.from(relative(tree.path, place)));
}

const nameOf = (path: RawPath): RawPath => path.slice(path.lastIndexOf("/") + 1) as RawPath;

interface PrepareOptions {
  readonly progress?: ProgressReport | undefined;
  readonly signal?: AbortSignal;
}

async function prepareUnits(
  tree: Tree,
  git: Git,
  units: readonly Unit[],
  options: PrepareOptions,
): Promise<void> {
  const made = preparedFolders(git);
  for (const { temporary, folders } of units) {
    removePrepared(tree, temporary, made.get(nameOf(temporary)));
    if (folders.length > 0) made.set(nameOf(temporary), makeFolder(tree, temporary));
  }
  // On the disk before anything is in one of them.
  recordPrepared(git, made);
  for (const { temporary, folders } of units) {
    for (const { place } of folders) {
      if (place !== temporary) inPlace(tree, place, (at) => mkdirSync(at, { mode: 0o700 }));
    }
  }
  await writeFiles(
    tree,
    git,
    units.flatMap(({ files }) => files),
    options,
  );
  // Those within first: as long as a folder is root's alone, nobody else reaches what is below it.
  const folders = units.flatMap((unit) => unit.folders).toReversed();
  for (let start = 0; start < folders.length; start += BATCH) {
    const opened: Attributed[] = [];
    try {
      for (const { place, attributes } of folders.slice(start, start + BATCH)) {
        opened.push({ fd: openFolderAt(tree, place), attributes });
      }
      await setAttributes(opened, isCarriedXattr);
    } finally {
      for (const { fd } of opened) closeSync(fd);
    }
  }
  for (const folder of new Set(units.map(({ temporary }) => folderOf(temporary)))) syncFolder(tree, folder);
}

/** Of a file with several names all are among `all`: it is written under the first, and gets the others. */
async function writeFiles(
  tree: Tree,
  git: Git,
  all: Unit["files"],
  { progress, signal }: PrepareOptions,
): Promise<void> {
  const files: Unit["files"] = [];
  const names = new Map<RawPath, RawPath[]>();
  for (const file of all) {
    const link = linkOf(file.state);
    const others = link && names.get(link);
    if (others !== undefined) others.push(file.place);
    else files.push(file);
    if (link !== undefined && others === undefined) names.set(link, []);
  }
  const open: Attributed[] = [];
  const closeAll = (): void => {
    for (const { fd } of open.splice(0)) closeSync(fd);
  };
  const ids = files.map(({ state }) => state.blob);
  const sizes = await blobSizes(git, new Set(ids));
  const total = ids.reduce((sum, id) => sum + (sizes.get(id) ?? 0), 0);
  let done = 0;
  let filesDone = 0;
  const tell = (): void => {
    if (signal !== undefined) throwIfInterrupted(signal);
    progress?.update("preparing /", done, total, { files: { done: filesDone, total: all.length } });
  };
  const blobs = readBlobs(git, ids, sizes);
  try {
    for (const { place, state } of files) {
      tell();
      filesDone++;
      const next = await blobs.next();
      if (next.done) break;
      const { pieces } = next.value;
      if (isSymlink(state.mode)) {
        const target: Uint8Array[] = [];
        for await (const piece of pieces) target.push(piece);
        makeLink(tree, place, Buffer.concat(target), state.attributes);
        continue;
      }
      // Readable by nobody else until it has its owner.
      const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
      const fd = inPlace(tree, place, (at) => openSync(at, flags, 0o600));
      open.push({ fd, attributes: state.attributes });
      const link = linkOf(state);
      for (const name of (link && names.get(link)) ?? []) {
        addName(tree, fd, place, name);
        filesDone++;
      }
      for await (const piece of pieces) {
        writeAll(fd, piece, place);
        done += piece.length;
        tell();
      }
      if (open.length < BATCH) continue;
      await setAttributes(open, isCarriedXattr);
      closeAll();
    }
    await setAttributes(open, isCarriedXattr);
    progress?.end();
  } finally {
    closeAll();
    await blobs.return(undefined);
  }
}

function writeAll(fd: number, bytes: Uint8Array, place: RawPath): void {
  try {
    for (let written = 0; written < bytes.length;) written += writeSync(fd, bytes, written);
  } catch (error) {
    throw mapSystemError(error, showPath(place));
  }
}

/**
 * Puts what `prepareRoot` made into place, removes what the release removed, and then moves HEAD, `refs/zferry/release`
 * and the index. Run again after a crash at any point, it ends the same; what is missing is prepared again.
 * @throws ZferryError `worktree-dirty`, before anything is touched, when a path is as neither before nor after or HEAD
 * moved; `site-busy` when git runs there; `io-failed`, `no-space`, `git-failed`
 */
export async function commitRoot(
  plan: RootPlan,
  options: ApplyOptions & { scratchDir: string },
): Promise<void> {
  await carryOut(plan, options, undefined);
  await restoreReference(plan.returning, options.git);
}

/** @param staged what git's index is to have besides what HEAD has */
async function carryOut(
  plan: RootPlan,
  { git, rootDir, scratchDir, progress }: ApplyOptions & { scratchDir: string },
  staged: RootPlan["drift"],
): Promise<void> {
  await checkHead(plan, git);
  const tree = openTree(rootDir);
  try {
    await commitFiles(tree, git, plan, progress);
  } finally {
    closeTree(tree);
  }
  const message = `zferry: ${plan.mergeCommit}`;
  await moveRef(git, RELEASE, plan.previousRelease, plan.releaseCommit, message);
  await moveRef(git, plan.branch ?? "HEAD", plan.head, plan.mergeCommit, message);
  await replaceIndex(plan, git, rootDir, scratchDir, staged);
  await deleteRef(git, PENDING);
  syncReferences(git, [RELEASE, PENDING, plan.branch ?? "HEAD"]);
}

/** Git does not write to disk what a folder's names are: a power cut would bring an old reference back, or take a new one. */
function syncReferences(git: Git, refs: readonly string[]): void {
  const common = dirname(git.objects);
  const folders = [git.gitDir, common, ...refs.map((ref) => dirname(join(common, ref)))];
  for (const folder of new Set(folders)) if (existsSync(folder)) syncPath(folder);
}

/**
 * Whether `commitRoot`, or `revertRoot`, would find everything as it was planned, or as an earlier run of either left it.
 * @param isPlannedAnew whether a run of the same command plans again, so that what the site has by now can stay
 * @throws ZferryError `worktree-dirty`, `site-busy`
 */
export async function requireAsPlanned(
  plan: RootPlan,
  { git, rootDir }: ApplyOptions,
  isPlannedAnew = false,
): Promise<void> {
  const hint = isPlannedAnew
    ? "to keep what it is now, run the same command again: it plans / anew"
    : undefined;
  await checkHead(plan, git, hint);
  await requireRepositoryChangeable(git, movedRefs(plan.branch));
  await requireFilesAsPlanned(plan, rootDir, hint);
}

/**
 * The same of the files alone.
 * @throws ZferryError `worktree-dirty`
 */
export async function requireFilesAsPlanned(plan: RootPlan, rootDir: string, hint?: string): Promise<void> {
  const work = workOf(plan);
  const tree = openTree(rootDir);
  try {
    judge(
      work,
      await readLive(
        tree,
        work.changes.map(({ path }) => path),
      ),
      hint,
    );
    await requireChangeable(tree, work);
  } finally {
    closeTree(tree);
  }
}

/**
 * Takes back what `commitRoot` did, all of it or as far as it came: the site's files, HEAD, `refs/zferry/release` and what
 * `git status` says are as before it. Run again after a crash at any point, it ends the same.
 * @throws ZferryError as `commitRoot`
 */
export async function revertRoot(
  plan: RootPlan,
  options: ApplyOptions & { scratchDir: string },
): Promise<void> {
  discardFiles(plan, options);
  // The pending commit goes last: until then it keeps what the site had not committed itself.
  await carryOut(reversed(plan), options, plan.drift);
  await restoreReference(plan.replaced, options.git);
}

/**
 * Takes back what `prepareRoot` and `commitRoot` did to files, all of it or as far as it came. The repository stays as it is. Run again
 * after a crash at any point, it ends the same.
 * @throws ZferryError as `commitRoot`
 */
export async function revertFiles(plan: RootPlan, { git, rootDir, progress }: ApplyOptions): Promise<void> {
  discardFiles(plan, { git, rootDir });
  const tree = openTree(rootDir);
  try {
    await commitFiles(tree, git, reversed(plan), progress);
  } finally {
    closeTree(tree);
  }
}

/** The plan that leads back. The blobs that it needs are those of the site's own commits, and of what was replaced. */
function reversed(plan: RootPlan): RootPlan {
  const back = <State>({
    path,
    before,
    after,
  }: {
    path: RootPlan["changes"][number]["path"];
    before: State;
    after: State;
  }) => ({
    path,
    before: after,
    after: before,
  });
  return {
    ...plan,
    head: plan.mergeCommit,
    mergeCommit: plan.head,
    releaseCommit: plan.previousRelease,
    previousRelease: plan.releaseCommit,
    changes: plan.changes.map(back),
    directories: plan.directories.map(back),
  };
}

async function readRef(git: Git, ref: string): Promise<string | null> {
  const result = await git.ask(["rev-parse", "--verify", "--quiet", ref]);
  return result.status === 0 ? result.stdout.toString("utf8").trim() : null;
}

async function checkHead(
  plan: RootPlan,
  git: Git,
  hint = "take the commits since then back, and run the same command again",
): Promise<void> {
  const symbolic = await git.ask(["symbolic-ref", "--quiet", "HEAD"]);
  const branch = symbolic.status === 0 ? symbolic.stdout.toString("utf8").trim() : null;
  const head = await readRef(git, "HEAD");
  if (branch === plan.branch && (head === plan.head || head === plan.mergeCommit)) return requireNoGit(git);
  const planned = `${plan.branch ?? "no branch"} at ${plan.head}`;
  throw new ZferryError(
    "worktree-dirty",
    `the site's HEAD is ${branch ?? "no branch"} at ${head ?? "nothing"}, what is under way was planned for ${planned}`,
    {
      details: { found: head ?? "", expected: plan.head },
      hint,
    },
  );
}

function requireNoGit(git: Git): void {
  const lock = join(git.gitDir, "index.lock");
  if (!existsSync(lock)) return;
  throw new ZferryError("site-busy", `git is running in the site's /: there is ${lock}`, {
    details: { path: lock },
    hint: "let it end, or remove the file if no git runs, and run the same command again",
  });
}

type Progress = "before" | "after";

/** It is not to be interrupted: what is half done can only be gone on with. */
async function commitFiles(
  tree: Tree,
  git: Git,
  plan: RootPlan,
  progress: ProgressReport | undefined,
): Promise<void> {
  const work = workOf(plan);
  const { changes, directories } = work;
  const tell = (what: string, done: number, total: number): void =>
    progress?.update(what, done, total, { unit: "files" });
  const lives = await readLive(
    tree,
    changes.map(({ path }) => path),
    (done) => tell("comparing the files of /", done, changes.length),
  );
  const reached = judge(work, lives);
  const done = new Set(changes.filter((_, index) => reached[index] === "after").map(({ path }) => path));
  const { units } = workOf(plan, await madeFolders(tree, directories));
  const waiting = units.filter(
    ({ folders, files }) => folders.length > 0 || !files.every(({ path }) => done.has(path)),
  );
  const leaving = changes.filter(({ after }, index) => after === null && reached[index] === "before");
  if (waiting.length + leaving.length > 0) await commitAttributes(tree, git, directories, closedBetween);
  const made = preparedFolders(git);
  const isHeld = ({ folders, temporary }: Unit): boolean =>
    folders.length === 0 || holdFolder(tree, temporary, made.get(nameOf(temporary)) ?? "");
  const unprepared = await findUnprepared(tree, waiting, isHeld, (done, total) =>
    tell("checking what is prepared of /", done, total),
  );
  await prepareUnits(tree, git, unprepared, { progress });
  await openPrepared(tree, waiting);

  // New files first, so that nothing is missing in between that has only another name; but a file that becomes a
  // folder, or the reverse, must leave first.
  const late: Unit[] = [];
  for (const [index, unit] of waiting.entries()) {
    if (!install(tree, unit)) late.push(unit);
    tell("writing the files of /", index + 1, waiting.length);
  }
  for (const { path } of leaving) inPlace(tree, path, (at) => unlinkSync(at));
  for (const { path, after } of directories.toReversed()) if (after === null) removeIfEmpty(tree, path);
  for (const unit of late) {
    if (!install(tree, unit)) {
      throw neither([
        `${showPath(unit.path)} (a folder or file that the release removes is not empty or still there)`,
      ]);
    }
  }

  await commitAttributes(tree, git, directories, (_, after) => after);
  forgetFolders(git, directories);
  clearPrepared(tree, git, plan);
  const folders = [...changes, ...directories].map(({ path }) => folderOf(path));
  for (const folder of new Set(folders)) syncFolder(tree, folder);
  progress?.end();
}

const neither = (
  paths: readonly string[],
  hint = "bring them back to what the site's last commit has, and run the same command again",
): ZferryError =>
  new ZferryError(
    "worktree-dirty",
    `files are neither as they were nor as the release has them: ${listFirst(paths, "; ")}`,
    {
      details: { paths },
      hint,
    },
  );

/** How far each change has come. */
function judge({ changes, directories }: Work, lives: readonly Live[], hint?: string): Progress[] {
  const made = new Set(directories.filter(({ before }) => before === null).map(({ path }) => path));
  const removed = new Set(directories.filter(({ after }) => after === null).map(({ path }) => path));
  const touched = new Set(changes.map(({ path }) => path));
  /** Whether this is what a change has on one side; `folders` are those that may be where it has no file. */
  const isLike = (
    live: Live,
    path: RawPath,
    state: FileState | null,
    folders: ReadonlySet<RawPath>,
  ): boolean => {
    if (live.kind === "file" || live.kind === "symlink")
      return state !== null && sameState(live.state, state);
    if (state !== null) return false;
    // Blocked by a file that takes a folder's place, or gives its own to one.
    if (live.kind === "blocked") return touched.has(live.at);
    return live.kind === "absent" || (live.kind === "directory" && folders.has(path));
  };
  // A name that is yet to be removed makes no difference to the others.
  const staying = changes.flatMap((change, index) =>
    change.after === null ? [] : [{ ...change, file: linkedFile(lives[index]) }],
  );
  const isLinkedAsAfter = groupedAlike(
    staying.map(({ path }) => path),
    staying.map(({ file }) => file),
    staying.map(({ after }) => linkOf(after)),
  );
  const strange: string[] = [];
  const progress = changes.map(({ path, before, after }, index): Progress => {
    const live = lives[index] ?? { kind: "absent" };
    const isAfter = isLike(live, path, after, made);
    if (isAfter && isLinkedAsAfter(path)) return "after";
    // How files are linked stands against nothing: each is written anew.
    if (!isAfter && !isLike(live, path, before, removed)) strange.push(showPath(path));
    return "before";
  });
  if (strange.length > 0) throw neither(strange, hint);
  return progress;
}

/**
 * The folders to be made that are there: an earlier run made them, or it did not remove what is now to be taken back,
 * because something else lies in it.
 */
async function madeFolders(tree: Tree, directories: Work["directories"]): Promise<Set<RawPath>> {
  const wanted = directories.flatMap(({ path, before, after }) =>
    before === null && after !== null ? [{ path, after }] : [],
  );
  const found = await inspect(
    tree,
    wanted.map(({ path }) => path),
    isCarriedXattr,
  );
  const there = new Set<RawPath>();
  const strange: string[] = [];
  for (const [index, { path, after }] of wanted.entries()) {
    const live = found[index];
    if (live?.kind !== "directory") continue;
    const fields = differingFields(live.attributes, after);
    if (fields.length > 0) strange.push(`${showPath(path)} (${fields.join(", ")})`);
    there.add(path);
  }
  if (strange.length > 0) throw neither(strange);
  return there;
}

/** The name by which `zferry-prepared` has a folder that stays, whatever the plan. */
const staying = (path: RawPath): RawPath =>
  `.zferry-${createHash("sha256").update("folder\0").update(rawBytes(path)).digest("hex").slice(0, 16)}` as RawPath;

/**
 * Gives the folders that stay attributes of the two that they have before and after, or between them. Each field may have been changed by an
 * earlier run already. One that such a run was stopped at may have less than both: that must be the same folder, since who owns the folder
 * above may put another one of root's in its place.
 * @param choose of those before and after; where these are not the ones after, a folder that lets nobody do more than both stays as it is
 */
async function commitAttributes(
  tree: Tree,
  git: Git,
  directories: Work["directories"],
  choose: (before: FileAttributes, after: FileAttributes) => FileAttributes,
): Promise<void> {
  const wanted = directories.flatMap(({ path, before, after }) =>
    before === null || after === null ? [] : [{ path, before, after, chosen: choose(before, after) }],
  );
  const found = await inspect(
    tree,
    wanted.map(({ path }) => path),
    isCarriedXattr,
  );
  const record = preparedFolders(git);
  const strange: string[] = [];
  const behind = wanted.flatMap(({ path, before, after, chosen }, index) => {
    const live = found[index];
    if (live?.kind !== "directory") {
      strange.push(showPath(path));
      return [];
    }
    const seen = live.attributes;
    const unlikeAfter = differingFields(seen, after);
    const unlikeBefore = new Set(differingFields(seen, before));
    const fields = unlikeAfter.filter((field) => unlikeBefore.has(field));
    const isStopped = (): boolean =>
      isBetween(seen, before, after) && holdFolder(tree, path, record.get(staying(path)) ?? "");
    if (fields.length > 0 && !isStopped()) strange.push(`${showPath(path)} (${fields.join(", ")})`);
    const isBehind = chosen === after ? unlikeAfter.length > 0 : opensMore(seen, [before, after]);
    return isBehind ? [{ path, chosen, seen }] : [];
  });
  if (strange.length > 0) throw neither(strange);
  if (behind.length === 0) return;
  for (const { path, seen } of behind) {
    // Another one may have come there since.
    const identity = holdFolderThere(
      tree,
      path,
      ({ uid, gid, mode }) => uid === seen.uid && gid === seen.gid && (mode & 0o7777) === seen.permissions,
    );
    if (identity === undefined) throw neither([showPath(path)]);
    record.set(staying(path), identity);
  }
  recordPrepared(git, record);
  for (const { path, chosen, seen } of behind) {
    const fd = openFolderAt(tree, path);
    try {
      // Else a new owner or group had for an instant what the old one had.
      const both = seen.permissions & chosen.permissions;
      if (both !== seen.permissions) fchmodSync(fd, both);
      await setAttributes([{ fd, attributes: chosen }], isCarriedXattr);
    } finally {
      closeSync(fd);
    }
  }
}

/** Takes the folders that stay off the record: all have their attributes. */
function forgetFolders(git: Git, directories: Work["directories"]): void {
  const record = preparedFolders(git);
  const known = directories.filter(({ path }) => record.delete(staying(path)));
  if (known.length > 0) recordPrepared(git, record);
}

/** Gives files that were prepared as root's alone the attributes that they are to have. */
async function openPrepared(tree: Tree, units: readonly Unit[]): Promise<void> {
  const before = closed(units);
  const files = units.flatMap(({ files }, index) =>
    files.filter((file, at) => file !== before[index]?.files[at]),
  );
  for (let start = 0; start < files.length; start += BATCH) {
    const opened: Attributed[] = [];
    try {
      for (const { place, state } of files.slice(start, start + BATCH)) {
        const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
        const fd = inPlace(tree, place, (at) => openSync(at, flags));
        opened.push({ fd, attributes: state.attributes });
        // Where a user owns the folder, it may be another file of root's by now.
        if (!isPrepared(fd, state)) throw neither([showPath(place)], "run the same command again");
      }
      await setAttributes(opened, isCarriedXattr);
    } finally {
      for (const { fd } of opened) closeSync(fd);
    }
  }
}

/** Whether an open file has the content of a state, and is root's alone or has the owner and permissions of that. */
function isPrepared(fd: number, { attributes, blob }: PlannedState): boolean {
  const { uid, gid, mode } = fstatSync(fd);
  const isLike = (wanted: FileAttributes): boolean =>
    uid === wanted.uid && gid === wanted.gid && (mode & 0o7777) === wanted.permissions;
  return (
    (mode & constants.S_IFMT) === constants.S_IFREG &&
    [ROOTS_ALONE, attributes].some(isLike) &&
    hashOpenFile(fd) === blob
  );
}

/**
 * Those that are not complete beside their places. A file's names are prepared all together, or it would become two.
 * @param isHeld whether what lies there is of zferry's making
 * @param told how many places are looked at, of how many
 */
async function findUnprepared(
  tree: Tree,
  units: readonly Unit[],
  isHeld: (unit: Unit) => boolean,
  told: (done: number, total: number) => void,
): Promise<Unit[]> {
  const held = new Set(units.filter(isHeld));
  const places = [...held].flatMap(({ folders, files }) => [...folders, ...files].map(({ place }) => place));
  const read = await readLive(tree, places, (done) => told(done, places.length));
  const lives = new Map(read.map((live, index) => [places[index] as RawPath, live]));
  const closedUnits = closed(units);
  const isComplete = (unit: Unit, index: number): boolean =>
    held.has(unit) && [unit, closedUnits[index] ?? unit].some(isAsPlanned);
  const isAsPlanned = ({ folders, files }: Unit): boolean =>
    folders.every(({ place, attributes }) => {
      const live = lives.get(place);
      return live?.kind === "directory" && differingFields(live.attributes, attributes).length === 0;
    }) &&
    files.every(({ place, state }) => {
      const live = lives.get(place);
      return (live?.kind === "file" || live?.kind === "symlink") && sameState(live.state, state);
    });
  const unprepared = new Set(units.filter((unit, index) => !isComplete(unit, index)));
  const linked = units.filter(({ files }) => files.some(({ state }) => state.link !== undefined));
  const files = linked.flatMap((unit) => unit.files);
  const linkedOf = (live: Live | undefined) =>
    live?.kind === "file" || live?.kind === "symlink" ? live.linked?.file : undefined;
  const isRight = groupedAlike(
    files.map(({ place }) => place),
    files.map(({ place }) => linkedOf(lives.get(place))),
    files.map(({ state }) => linkOf(state)),
  );
  if (!files.every(({ place }) => isRight(place)) || linked.some((unit) => unprepared.has(unit))) {
    for (const unit of linked) unprepared.add(unit);
  }
  return [...unprepared];
}

/** Renames a unit into place; false when something of the other kind is still there. */
function install(tree: Tree, { path, temporary, folders }: Unit): boolean {
  const kind = kindAt(tree, path);
  if (kind === "blocked" || kind === "directory") return false;
  if (kind !== "absent" && folders.length > 0) return false;
  renameBeside(tree, temporary, path);
  return true;
}

async function moveRef(
  git: Git,
  ref: string,
  from: string | null,
  to: string | null,
  message: string,
): Promise<void> {
  if ((await readRef(git, ref)) === to) return;
  if (to === null) return deleteRef(git, ref);
  await awaitLocks(git, ref);
  await git.run(["update-ref", "--no-deref", "-m", message, ref, to, from ?? "0".repeat(40)]);
}

async function deleteRef(git: Git, ref: string): Promise<void> {
  if ((await readRef(git, ref)) === null) return;
  await awaitLocks(git, ref);
  await git.run(["update-ref", "--no-deref", "-d", ref]);
}

/**
 * Waits for the locks of a reference. The plan found none, so one that stays and that no process can have was left by a git of
 * ours that was killed, or by a power cut, and is removed.
 * @throws ZferryError `site-busy` when a process may hold it
 */
async function awaitLocks(git: Git, ref: string): Promise<void> {
  for (const path of lockFiles(git, ref)) {
    if (await awaitLock(path)) continue;
    const holders = await holdersOf(path, dirname(git.objects));
    if (holders.length > 0) throw lockedBy(path, holders);
    guarded(path, () => rmSync(path, { force: true }));
  }
}

/**
 * Makes the index what HEAD is, so that `git status` has nothing to say, or only what was staged before. It is made beside
 * the old one: git's own lock would outlive us. The files are read by a repository without filters.
 */
async function replaceIndex(
  plan: RootPlan,
  git: Git,
  rootDir: string,
  scratchDir: string,
  staged: RootPlan["drift"],
): Promise<void> {
  requireNoGit(git);
  // What never came into the repository is in the index still.
  if (staged !== undefined && (await readRef(git, `${staged.commit}^{commit}`)) === null) return;
  const index = join(git.gitDir, "index");
  const temporary = `${index}.zferry`;
  guarded(temporary, () => {
    for (const path of [temporary, `${temporary}.lock`]) rmSync(path, { force: true });
    // What is known of unchanged files stays known.
    if (existsSync(index)) copyFileSync(index, temporary);
  });
  const env = { GIT_INDEX_FILE: temporary };
  // Not by the site's repository: when it writes an index, git may read files again, through the site's filters.
  const reader = withWorkTree(createBorrower(join(scratchDir, "root.git"), git), rootDir);
  await reader.run(["read-tree", "-m", "-i", plan.mergeCommit], { env });
  if (staged !== undefined && staged.staged.length > 0) {
    const files = await listTree(reader, staged.commit);
    const entries = staged.staged.map(pathOf).map((path) => [path, files.get(path) ?? null] as const);
    await reader.run(["update-index", "-z", "--index-info"], { env, input: indexInfo(entries) });
  }
  await reader.ask(["update-index", "-q", "--refresh", "--ignore-submodules"], { env });
  syncPath(temporary);
  guarded(index, () => renameSync(temporary, index));
  syncPath(git.gitDir);
}
