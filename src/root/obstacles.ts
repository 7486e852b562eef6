import { realpathSync } from "node:fs";
import { throwAll, ZferryError } from "../errors.js";
import { ancestors, showPath, type RawPath } from "../raw-path.js";
import { listFirst } from "../report.js";
import { ownMounts, type Mount } from "../system/mounts.js";
import { deviceOf, folderOf, lockedByFlags, type FileAttributes, type Tree } from "../system/tree.js";
import type { PlannedState } from "./links.js";
import { isSymlink } from "./metadata.js";
import { dirty } from "./site.js";

/** What is to change: `before` and `after` are null where there is nothing. */
export interface Changing {
  readonly changes: readonly Entry<PlannedState>[];
  readonly directories: readonly Entry<FileAttributes>[];
}

interface Entry<State> {
  readonly path: RawPath;
  readonly before: State | null;
  readonly after: State | null;
}

/**
 * What keeps even root from writing, replacing or removing files and folders: mounts, file systems that cannot keep what they are to
 * be, and the flags of chattr(1).
 * @throws ZferryError `worktree-dirty`, with everything that was found
 */
export async function requireChangeable(tree: Tree, changing: Changing): Promise<void> {
  const placeOf = placesIn(tree);
  const mounts = ownMounts();
  const folders = [...touchedFolders(changing)];
  throwAll(
    [
      refuseMountPoints(changing, (path) => mounts.has(placeOf(path))),
      refuseReadOnly(folders.map(placeOf), mounts),
      refuseUnkept(changing, (path) => mountOf(placeOf(path), mounts)),
      await refuseFlags(tree, changing, folders, placeOf),
    ].filter((error) => error !== undefined),
  );
}

/** Whether something is mounted on a path. */
export function mountPointsIn(tree: Tree): (path: RawPath) => boolean {
  const placeOf = placesIn(tree);
  const mounts = ownMounts();
  return (path) => mounts.has(placeOf(path));
}

/**
 * Tells what a path lies on, or will lie on: a mount, and the file system, of which a mount may have several. Only files
 * that lie on the same can be one file.
 */
export function groundsIn(tree: Tree): (path: RawPath) => string {
  const placeOf = placesIn(tree);
  const mounts = ownMounts();
  return (path) => {
    const above = ["" as const, ...ancestors(path)].reverse();
    const mount = above.find((folder) => mounts.has(placeOf(folder))) ?? "";
    const device = above.map((folder) => deviceOf(tree, folder)).find((found) => found !== undefined);
    return `${device ?? ""} ${mount}`;
  };
}

/** Paths as the kernel names mount points: absolute, without links. */
function placesIn(tree: Tree): (path: RawPath | "") => string {
  const root = realpathSync(tree.path, { encoding: "buffer" }).toString("latin1");
  return (path) => (path === "" ? root : `${root === "/" ? "" : root}/${path}`);
}

/** Folders that are there, and get other attributes or have something made, replaced or removed in them. */
function touchedFolders({ changes, directories }: Changing): Set<RawPath | ""> {
  const made = new Set(directories.flatMap(({ path, before }) => (before === null ? [path] : [])));
  const folders = new Set<RawPath | "">();
  for (const { path, before, after } of directories) {
    if (before !== null && after !== null) folders.add(path);
    else folders.add(folderOf(path));
  }
  for (const { path } of changes) folders.add(folderOf(path));
  return new Set(
    [...folders].map((folder) => {
      let there = folder;
      while (there !== "" && made.has(there)) there = folderOf(there);
      return there;
    }),
  );
}

/** A file takes its place by a rename, which cannot replace what something is mounted on. */
function refuseMountPoints(
  { changes }: Changing,
  isMountPoint: (path: RawPath) => boolean,
): ZferryError | undefined {
  const found = changes.filter(({ path }) => isMountPoint(path));
  if (found.length === 0) return undefined;
  return dirty(
    "a mount point cannot be replaced",
    found.map(({ path }) => showPath(path)),
    "unmount it first",
  );
}

function refuseReadOnly(
  folders: readonly string[],
  mounts: ReadonlyMap<string, Mount>,
): ZferryError | undefined {
  const found = new Map<string, Mount>();
  for (const folder of folders) {
    const mount = mountOf(folder, mounts);
    if (mount?.readOnly === true) found.set(mount.point, mount);
  }
  if (found.size === 0) return undefined;
  const show = (point: string): string => showPath(point as RawPath);
  return dirty(
    "the release changes what is mounted read-only",
    [...found.keys()].map(show),
    [...found.values()]
      .map(({ type, source, point }) =>
        type === "zfs" ? `zfs set readonly=off ${source}` : `mount -o remount,rw ${show(point)}`,
      )
      .join("; "),
  );
}

/** What a place lies on. */
function mountOf(place: string, mounts: ReadonlyMap<string, Mount>): Mount | undefined {
  for (let point = place; ; point = point.slice(0, point.lastIndexOf("/"))) {
    const mount = mounts.get(point === "" ? "/" : point);
    if (mount !== undefined || point === "" || point === "/") return mount;
  }
}

const FAT = ["vfat", "msdos", "exfat"];

/** FAT has no owners, permissions, attributes or links: each file has what the mount gives to all. */
function refuseUnkept(
  { changes, directories }: Changing,
  groundOf: (path: RawPath | "") => Mount | undefined,
): ZferryError | undefined {
  const found: string[] = [];
  const look = (path: RawPath, attributes: FileAttributes, mask: "fmask" | "dmask", what?: string): void => {
    const mount = groundOf(path);
    if (mount === undefined || !FAT.includes(mount.type)) return;
    const fault = what ?? describeUnkept(attributes, mount, mask);
    if (fault !== undefined) found.push(`${showPath(path)} (${fault})`);
  };
  for (const { path, after } of changes) {
    if (after === null) continue;
    const link = isSymlink(after.mode) ? "a symbolic link" : after.link && "a hard link";
    look(path, after.attributes, "fmask", link);
  }
  for (const { path, after } of directories) if (after !== null) look(path, after, "dmask");
  if (found.length === 0) return undefined;
  return dirty(
    "a FAT file system has owners and permissions of its mount alone, and no links",
    found,
    "mount it as the build host mounts its own (uid, gid, fmask, dmask), or let git not track these files",
  );
}

/**
 * What a mount of FAT does not give to its files; undefined for nothing.
 * @param mask of the permissions: of files or of folders
 */
export function describeUnkept(
  { uid, gid, permissions, xattrs }: FileAttributes,
  { options }: Pick<Mount, "options">,
  mask: "fmask" | "dmask",
): string | undefined {
  const option = (name: string, radix: number): number =>
    parseInt(options.find((each) => each.startsWith(`${name}=`))?.slice(name.length + 1) ?? "0", radix);
  const given = 0o777 & ~option(mask, 8);
  const [owner, group] = [option("uid", 10), option("gid", 10)];
  if (uid !== owner || gid !== group) return `owner ${uid}:${gid}, there ${owner}:${group}`;
  // Without all that allow to write it is read-only.
  if (permissions !== given && permissions !== (given & ~0o222))
    return `permissions ${permissions.toString(8)}, there ${given.toString(8)}`;
  const [xattr] = Object.keys(xattrs);
  return xattr;
}

async function refuseFlags(
  tree: Tree,
  { changes, directories }: Changing,
  folders: readonly (RawPath | "")[],
  placeOf: (path: RawPath | "") => string,
): Promise<ZferryError | undefined> {
  const replaced = changes.flatMap(({ path, before }) => (before === null ? [] : [path]));
  const removed = directories.flatMap(({ path, after }) => (after === null ? [path] : []));
  const found = await lockedByFlags(tree, [...new Set([...folders, ...replaced, ...removed])].sort());
  if (found.length === 0) return undefined;
  const name = { i: "immutable", a: "append-only" };
  const commands = found.map(({ path, flag }) => `chattr -${flag} ${showPath(placeOf(path) as RawPath)}`);
  return dirty(
    "the release changes what chattr locks",
    found.map(({ path, flag }) => `${path === "" ? tree.path : showPath(path)} (${name[flag]})`),
    `${listFirst(commands, "; ")}, and back when the install is done`,
  );
}
