import { join } from "node:path";
import * as v from "valibot";
import { Obstacles, ZferryError } from "../errors.js";
import { ancestors, showPath, type RawPath } from "../raw-path.js";
import { listFirst, type ProgressReport } from "../report.js";
import { blobSizes, listTree, type Git, type TreeFile } from "../system/git.js";
import {
  closeTree,
  folderOf,
  freeSpace,
  listBelow,
  openTree,
  type FileAttributes,
  type Tree,
} from "../system/tree.js";
import { attributeMerger, type AttributeMerger } from "./attributes.js";
import {
  differingFields,
  gitFile,
  readLive,
  sameGit,
  sameState,
  stateOf,
  type FileState,
  type GitFile,
  type Live,
} from "./live.js";
import { planLinks, type FileChange } from "./links.js";
import { gitModeSchema, isSymlink, type GitMode, type RootMetadata } from "./metadata.js";
import { mountPointsIn, requireChangeable } from "./obstacles.js";
import { pathName, pathOf } from "./paths.js";
import type { RootPlan } from "./plan.js";
import type { PlacedChange } from "./renames.js";
import type { Replaced } from "./replaced.js";
import type { Settler } from "./settle.js";
import { dirty } from "./site.js";
import { withAgreeingList } from "./xattrs.js";

/** Room for the new files on one file system, in bytes. */
export interface RootSpace {
  readonly folder: string;
  readonly needed: number;
  readonly free: number;
}

export interface DiskOptions {
  readonly rootDir: string;
  readonly scratch: Git;
  readonly directories: RootMetadata["directories"];
  readonly changes: readonly PlacedChange[];
  /** Trees: the site's, and what it becomes. */
  readonly head: string;
  readonly merged: string;
  /** Of contents, why by path: they stand against the install, and what else does is told with them. */
  readonly conflicts: ReadonlyMap<RawPath, string>;
  /** Whether files that git does not track may be replaced; otherwise they are in the way. */
  readonly replaceUntracked: boolean;
  /**
   * Where an install is rolled back: the files that git did not track before it. Folders are then removed only if the
   * install made them.
   */
  readonly back: { readonly untracked: ReadonlySet<RawPath> } | undefined;
  /** Whether it comes from a build host, and not from this machine. */
  readonly isOfRelease: boolean;
  readonly settling: Settler;
  /** Told the paths that change; throws where some must not. */
  readonly permit: ((paths: readonly RawPath[]) => void) | undefined;
  readonly space: ((found: readonly RootSpace[]) => void) | undefined;
  readonly progress: ProgressReport | undefined;
  readonly warn: ((what: string) => void) | undefined;
}

export interface Disk {
  readonly plan: Pick<RootPlan, "changes" | "directories">;
  readonly replaced: readonly Replaced[];
}

/** Compares the merged tree and the metadata with the files that are there. */
export async function planDisk(options: DiskOptions): Promise<Disk> {
  const tree = openTree(options.rootDir);
  try {
    const head = await listTree(options.scratch, options.head);
    const merged = await listTree(options.scratch, options.merged);
    const attributes = await attributeMerger(
      tree,
      options.scratch,
      merged,
      options.settling,
      options.back !== undefined,
    );
    const { directories: recorded, warn } = options;
    if (warn !== undefined && options.isOfRelease) attributes.compareNumbers(recordedAfter(options), warn);
    const removed = recorded.filter(({ after }) => after === null);
    const gone = new Set(removed.map(({ path }) => pathOf(path)));
    const inTheWay = new Obstacles();
    const found = await inTheWay.unless(async () => {
      const files = await planFiles(tree, options, gone, head, merged, attributes);
      const folders = await planDirectories(tree, options, files.changes, merged, attributes);
      return { ...files, directories: folders };
    });
    const obstacles = new Obstacles();
    await obstacles.unless(async () => attributes.finish(options.conflicts));
    await obstacles.unless(async () => inTheWay.throwAny());
    obstacles.throwAny();
    if (found === undefined)
      throw new ZferryError("unexpected", "there is no plan of /, and nothing against it");
    const { changes, replaced, directories } = found;
    options.permit?.([...changes, ...directories].map(({ path }) => path));
    await requireChangeable(tree, { changes, directories });
    const space = await spaceFor(tree, options.scratch, changes, directories);
    options.space?.(space);
    requireSpace(space);
    const named = <T extends { path: RawPath }>(entry: T) => ({ ...entry, path: pathName(entry.path) });
    return { plan: { changes: changes.map(named), directories: directories.map(named) }, replaced };
  } finally {
    closeTree(tree);
  }
}

const recordedAfter = ({ changes, directories }: Pick<DiskOptions, "changes" | "directories">) =>
  [...changes, ...directories].flatMap(({ after }) => (after === null ? [] : [after]));

interface DirectoryChange {
  readonly path: RawPath;
  readonly before: FileAttributes | null;
  readonly after: FileAttributes | null;
}

async function planFiles(
  tree: Tree,
  {
    changes,
    conflicts,
    replaceUntracked,
    back,
    isOfRelease,
    progress,
    warn,
  }: Pick<
    DiskOptions,
    "changes" | "conflicts" | "replaceUntracked" | "back" | "isOfRelease" | "progress" | "warn"
  >,
  removedFolders: ReadonlySet<RawPath>,
  head: ReadonlyMap<RawPath, TreeFile>,
  merged: ReadonlyMap<RawPath, TreeFile>,
  attributes: AttributeMerger,
): Promise<{ readonly changes: readonly FileChange[]; readonly replaced: readonly Replaced[] }> {
  const concerned = changes.filter(
    ({ path, from }) => (head.has(path) || merged.has(path)) && !conflicts.has(path) && !conflicts.has(from),
  );
  const lives = await liveFiles(tree, concerned, progress);
  const untracked = back?.untracked ?? new Set();
  const leaving = new Set([
    ...concerned.map(({ path }) => path).filter((path) => !merged.has(path) && !untracked.has(path)),
    ...removedFolders,
  ]);
  const planned: FileChange[] = [];
  const present = new Map<RawPath, FileState>();
  const replaced: Replaced[] = [];
  const inTheWay: string[] = [];
  /** Whether any of that is what git can keep. */
  let isSavable = false;
  for (const { path, from, before, after } of concerned) {
    const live = lives.get(path) ?? { kind: "absent" };
    const was = head.get(path);
    const inGit = gitFile(merged.get(path));
    // What was untracked before the install is so again.
    const becomes = inGit ?? (after !== null && untracked.has(path) ? gitPart(after) : null);
    const current = stateOf(live);
    /** What has the site's attributes of the file: the file itself, or the one that is renamed to it. */
    const origin = from === path ? current : stateOf(lives.get(from));
    if (was !== undefined && !isInGit(current, was)) {
      if (v.is(gitModeSchema, was.mode)) inTheWay.push(`${showPath(path)} changed in this moment`);
      continue;
    }
    if (becomes === null) {
      if (leaving.has(path) && current !== null) planned.push({ path, before: current, after: null });
      continue;
    }
    if (after === null) continue;
    const isNew = origin === null || (from === path && was === undefined && !sameGit(origin, becomes));
    // The site made a link of a file, or the reverse: what the release has belongs to another kind.
    const isOther = isSymlink(becomes.mode) !== isSymlink(after.mode);
    const merge = (): FileAttributes => {
      if (isNew) return attributes.resolve(after);
      return isOther ? origin.attributes : attributes.merge(path, origin.attributes, before, after);
    };
    const agreed = attributes.agree(path, becomes.mode, merge(), origin, before, after);
    const contained =
      isNew || isOther
        ? agreed
        : attributes.contain(path, becomes.mode, agreed, origin.attributes, before, after);
    const state = { ...becomes, attributes: possible(becomes.mode, contained) };
    if (current !== null && sameState(current, state)) {
      present.set(path, current);
      continue;
    }
    if (was === undefined && !(from === path && current !== null && sameGit(current, becomes))) {
      if (current !== null && replaceUntracked) {
        replaced.push({ path, state: current });
        planned.push({ path, before: current, after: state });
        continue;
      }
      const obstacle = describeObstacle(tree, path, live, leaving);
      if (obstacle === undefined) planned.push({ path, before: null, after: state });
      else {
        inTheWay.push(obstacle);
        isSavable ||= current !== null;
      }
      continue;
    }
    planned.push({ path, before: current, after: state });
  }
  if (inTheWay.length > 0) {
    throw dirty("something lies where the release puts a file", inTheWay, adviceFor(isSavable, isOfRelease));
  }
  const covered = new Set([...untracked, ...present.keys(), ...planned.map(({ path }) => path)]);
  if (conflicts.size === 0) requireAllPlanned(head, merged, covered);
  return { changes: planLinks(tree, { changes, lives, planned, present, warn }), replaced };
}

const gitPart = ({ mode, blob }: GitFile): GitFile => ({ mode, blob });

/** @param isSavable whether something in the way is what git can keep */
function adviceFor(isSavable: boolean, isOfRelease: boolean): string {
  if (!isSavable) return "move it away, or remove it";
  if (!isOfRelease) return "move it away, or commit it";
  return "move it away, or commit it; --replace-untracked saves files and links in git, and replaces them";
}

/** What a file system can keep of merged attributes: a link has no extended ones. */
const possible = (mode: GitMode, attributes: FileAttributes): FileAttributes =>
  isSymlink(mode) ? { ...attributes, xattrs: {} } : withAgreeingList(attributes);

/** What lies at both paths of each change. */
async function liveFiles(
  tree: Tree,
  changes: readonly PlacedChange[],
  progress: ProgressReport | undefined,
): Promise<Map<RawPath, Live>> {
  const paths = [...new Set(changes.flatMap(({ path, from }) => [path, from]))];
  const lives = await readLive(tree, paths, (done) =>
    progress?.update("comparing the files of /", done, paths.length, { unit: "files" }),
  );
  progress?.end();
  return new Map(lives.map((live, index) => [paths[index] as RawPath, live]));
}

const isInGit = (state: FileState | null, { mode, id }: TreeFile): boolean =>
  state?.mode === mode && state.blob === id;

/** The new commit must be what is on disk afterwards. */
function requireAllPlanned(
  head: ReadonlyMap<RawPath, TreeFile>,
  merged: ReadonlyMap<RawPath, TreeFile>,
  covered: ReadonlySet<RawPath>,
): void {
  const forgotten = [...new Set([...head.keys(), ...merged.keys()])].filter((path) => {
    const [was, becomes] = [head.get(path), merged.get(path)];
    return (was?.mode !== becomes?.mode || was?.id !== becomes?.id) && !covered.has(path);
  });
  if (forgotten.length === 0) return;
  throw new ZferryError(
    "unexpected",
    `the merge changes ${listFirst(forgotten.map(showPath))}, and the plan of / does not`,
    { details: { paths: forgotten.map(showPath) } },
  );
}

/** What keeps a new file from its place; undefined when nothing does, or only what the release removes itself. */
function describeObstacle(
  tree: Tree,
  path: RawPath,
  live: Live,
  leaving: ReadonlySet<RawPath>,
): string | undefined {
  if (live.kind === "absent") return undefined;
  if (live.kind === "blocked") {
    return leaving.has(live.at) ? undefined : describeBlocked(path, live.at, live.by);
  }
  if (live.kind !== "directory")
    return `${showPath(path)} (an untracked ${live.kind === "symlink" ? "symbolic link" : live.kind})`;
  const below = listBelow(tree, path);
  const filled = new Set(below.flatMap(ancestors));
  const staying = below.find((entry) => !leaving.has(entry) && !filled.has(entry));
  if (staying === undefined && (below.length > 0 || leaving.has(path))) return undefined;
  return `${showPath(path)} (a directory${staying === undefined ? "" : ` with ${showPath(staying)}`})`;
}

/** A path that something at `at`, itself or on the way to it, keeps from being a folder or from lying in one. */
const describeBlocked = (path: RawPath, at: RawPath, kind: Live["kind"]): string =>
  `${showPath(path)} (${showPath(at)} is ${kind === "symlink" ? "a symbolic link" : "no directory"})`;

async function planDirectories(
  tree: Tree,
  { directories: recorded, back }: Pick<DiskOptions, "directories" | "back">,
  changes: readonly FileChange[],
  merged: ReadonlyMap<RawPath, TreeFile>,
  attributes: AttributeMerger,
): Promise<DirectoryChange[]> {
  const byPath = new Map(recorded.map(({ path, ...states }) => [pathOf(path), states]));
  const made = recorded.flatMap(({ path, before }) => (before === null ? [pathOf(path)] : []));
  const needed = new Set([
    ...changes.flatMap(({ path, after }) => (after === null ? [] : ancestors(path))),
    ...made.flatMap((path) => [...ancestors(path), path]),
  ]);
  const kept = new Set([...merged.keys()].flatMap(ancestors));
  const emptied = changes
    .flatMap(({ path, after }) => (after === null && back === undefined ? ancestors(path) : []))
    .filter((path) => !kept.has(path) && !byPath.has(path));
  const paths = [...new Set([...byPath.keys(), ...emptied])].sort();
  const lives = await readLive(tree, paths);
  const unknown = [...needed].filter((path) => !byPath.has(path)).sort();
  const leaving = new Set(changes.flatMap(({ path, after }) => (after === null ? [path] : [])));
  const isMountPoint = mountPointsIn(tree);
  const planned: DirectoryChange[] = [];
  const inTheWay: string[] = [];
  for (const [index, path] of paths.entries()) {
    const live = lives[index] ?? { kind: "absent" };
    const directory = byPath.get(path);
    const before = live.kind === "directory" ? live.attributes : null;
    if (directory === undefined || directory.after === null) {
      if (before !== null && !kept.has(path)) planned.push({ path, before, after: null });
    } else if (before !== null) {
      // What the release adds as an empty directory, the site has for something that it mounts there.
      if (directory.before === null && isMountPoint(path)) continue;
      const found = attributes.merge(path, before, directory.before, directory.after);
      const after = withAgreeingList(
        attributes.contain(path, null, found, before, directory.before, directory.after),
      );
      if (differingFields(before, after).length > 0) planned.push({ path, before, after });
    } else if (needed.has(path)) {
      const at = live.kind === "blocked" ? live.at : path;
      if (live.kind === "absent" || leaving.has(at)) {
        planned.push({ path, before, after: attributes.resolve(directory.after) });
      } else {
        inTheWay.push(describeBlocked(path, at, live.kind === "blocked" ? live.by : live.kind));
      }
    }
  }
  if (inTheWay.length > 0) {
    throw dirty("something lies where the release puts a folder", inTheWay, "move it away, or commit it");
  }
  await requireFolders(tree, unknown);
  return planned;
}

/** What comes back to a folder that the site removed since: whose it was, and who could look into it, nobody knows any more. */
async function requireFolders(tree: Tree, folders: readonly RawPath[]): Promise<void> {
  const lives = await readLive(tree, folders);
  const gone = folders.filter((_, index) => lives[index]?.kind !== "directory");
  if (gone.length === 0) return;
  throw dirty(
    "there are no such folders, which files come back to",
    gone.map(showPath),
    "make them, with the owner and permissions that they are to have",
  );
}

const BLOCK_BYTES = 4096;

/** Every changed file is written beside its place first, so the new ones need room in addition to the old ones. */
async function spaceFor(
  tree: Tree,
  scratch: Git,
  changes: readonly FileChange[],
  directories: readonly DirectoryChange[],
): Promise<RootSpace[]> {
  const made = new Set(directories.filter(({ before }) => before === null).map(({ path }) => path));
  const sizes = await blobSizes(
    scratch,
    new Set(changes.flatMap(({ after }) => (after === null ? [] : [after.blob]))),
  );
  const spaces = new Map<string, ReturnType<typeof freeSpace>>();
  const needs = new Map<number, RootSpace>();
  for (const { path, after } of changes) {
    if (after === null) continue;
    let folder = folderOf(path);
    while (folder !== "" && made.has(folder)) folder = folderOf(folder);
    if (!spaces.has(folder)) spaces.set(folder, freeSpace(tree, folder));
    const space = spaces.get(folder);
    if (space === undefined) continue;
    const known = needs.get(space.device);
    // All names of a file have its content once.
    const isName = after.link !== undefined && pathOf(after.link) !== path;
    const bytes = isName ? 0 : Math.ceil((sizes.get(after.blob) ?? 0) / BLOCK_BYTES + 1) * BLOCK_BYTES;
    needs.set(space.device, {
      folder: known?.folder ?? join(tree.path, folder),
      needed: (known?.needed ?? 0) + bytes,
      free: space.bytes,
    });
  }
  return [...needs.values()];
}

function requireSpace(spaces: readonly RootSpace[]): void {
  for (const { folder, needed, free } of spaces) {
    if (needed <= free) continue;
    throw new ZferryError(
      "no-space",
      `the release needs ${needed} bytes for files in ${folder}, ${free} are free`,
      {
        details: { path: folder, needed, free },
        hint: `free space on the file system of ${folder}`,
      },
    );
  }
}
