import * as fs from "node:fs";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { ZferryError } from "../errors.js";
import { ancestors, rawBytes, rawPath, showPath, type RawPath } from "../raw-path.js";
import { guarded, mapSystemError } from "./files.js";
import { run } from "./process.js";

const { O_DIRECTORY, O_NOFOLLOW, O_RDONLY } = fs.constants;
/** Not in node's constants; the same number on every architecture that node runs on. */
const O_PATH = 0o10000000;

/** Open files at a time: one process reads or writes the extended attributes of so many. */
export const BATCH = 256;

/** A folder that is open: what lies below it is reached by name, component by component, never through a link. */
export interface Tree {
  readonly fd: number;
  /** For messages. */
  readonly path: string;
  /** Folders by path, with what `identityOf` says: no way leads through another folder in the place of one. */
  readonly held: Map<RawPath, string>;
}

/**
 * Opens a folder by a path that is trusted. To be closed with `closeTree`.
 * @throws ZferryError `io-failed`
 */
export const openTree = (path: string): Tree => ({
  fd: guarded(path, () => fs.openSync(path, O_RDONLY | O_DIRECTORY)),
  path: resolve(path),
  held: new Map(),
});

export const closeTree = (tree: Tree): void => fs.closeSync(tree.fd);

const MAX_LINKS = 40;

/**
 * Where a path leads in another system, whose `/` is `folder`: links are followed as they would be there. For reading only,
 * of what nobody changes meanwhile.
 * @returns the path without links by which it is reached from here; undefined where it leads nowhere
 */
export function resolveWithin(folder: string, path: string): string | undefined {
  const ahead = path.split("/");
  const way: string[] = [];
  for (let links = 0; ahead.length > 0;) {
    const name = ahead.shift() ?? "";
    if (name === "" || name === ".") continue;
    if (name === "..") {
      way.pop();
      continue;
    }
    const place = join(folder, ...way, name);
    const stat = guarded(place, () => fs.lstatSync(place, { throwIfNoEntry: false }));
    if (stat === undefined) return undefined;
    if (stat.isSymbolicLink()) {
      links += 1;
      if (links > MAX_LINKS) return undefined;
      const target = guarded(place, () => fs.readlinkSync(place));
      if (target.startsWith("/")) way.length = 0;
      ahead.unshift(...target.split("/"));
      continue;
    }
    if (!stat.isDirectory() && ahead.some((each) => each !== "")) return undefined;
    way.push(name);
  }
  return join(folder, ...way);
}

export type FileKind = "file" | "symlink" | "directory" | SpecialKind;

/** What has no content of its own. */
export type SpecialKind = "named pipe" | "socket" | "device";

/** Owner, group and permission bits as numbers; of the extended attributes those asked for, as base64. */
export interface FileAttributes {
  readonly uid: number;
  readonly gid: number;
  readonly permissions: number;
  readonly xattrs: Readonly<Record<string, string>>;
}

/** A regular file that has more than one name. */
export interface Linked {
  /** The same for all its names, and of no other file. */
  readonly file: string;
  /** How many names it has, wherever they are. */
  readonly names: number;
}

/** What lies at a path. `blocked`: a component above, at `at`, is no directory. */
export type Found =
  | { readonly kind: "absent" }
  | { readonly kind: "blocked"; readonly at: RawPath; readonly by: FileKind }
  | {
      readonly kind: FileKind;
      readonly size: number;
      readonly attributes: FileAttributes;
      readonly linked?: Linked;
    };

export const isPresent = (found: Found): found is Extract<Found, { kind: FileKind }> =>
  found.kind !== "absent" && found.kind !== "blocked";

function kindOf(stat: fs.Stats): FileKind {
  if (stat.isFile()) return "file";
  if (stat.isDirectory()) return "directory";
  if (stat.isSymbolicLink()) return "symlink";
  return stat.isFIFO() ? "named pipe" : stat.isSocket() ? "socket" : "device";
}

/** Where a name in an open folder is, for calls that do not follow a link there. Needs /proc. */
const at = (folder: number, name: RawPath): Buffer =>
  Buffer.concat([Buffer.from(`/proc/self/fd/${folder}/`), rawBytes(name)]);

const display = (tree: Tree, path: RawPath): string => join(tree.path, showPath(path));

/** A way that ended early, or what it led to. */
type Opened<T> = ({ readonly kind: "open"; readonly fd: number } & T) | Exclude<Found, { size: number }>;

/** Opens the folder at `path`, which may be empty for the tree's own. */
function openFolder(tree: Tree, path: string): Opened<unknown> {
  let fd = guarded(tree.path, () => fs.openSync(`/proc/self/fd/${tree.fd}`, O_RDONLY | O_DIRECTORY));
  let depth = 0;
  try {
    for (const name of path === "" ? [] : (path.split("/") as RawPath[])) {
      const inner = fs.openSync(at(fd, name), O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      fs.closeSync(fd);
      fd = inner;
      depth += 1;
      if (tree.held.size > 0) requireHeld(tree, path.split("/").slice(0, depth).join("/") as RawPath, fd);
    }
    return { kind: "open", fd };
  } catch (error) {
    const names = path.split("/") as RawPath[];
    const reached = names.slice(0, depth + 1).join("/") as RawPath;
    const { code } = error as NodeJS.ErrnoException;
    try {
      if (code === "ENOENT") return { kind: "absent" };
      if (code !== "ENOTDIR" && code !== "ELOOP") throw mapSystemError(error, display(tree, reached));
      const by = kindOf(fs.lstatSync(at(fd, names[depth] ?? ("" as RawPath))));
      return { kind: "blocked", at: reached, by };
    } finally {
      fs.closeSync(fd);
    }
  }
}

/**
 * What tells a folder from all others of its file system, also after a reboot: a number is used again, but the time of birth
 * is not. Where a file system keeps no such time it is the number alone.
 */
function identityOf(fd: number): string {
  const { ino, birthtimeNs } = fs.fstatSync(fd, { bigint: true });
  // FAT numbers its files anew with every mount.
  return `${isOnFat(fd) ? 0 : ino}:${birthtimeNs}`;
}

const isOnFat = (fd: number): boolean =>
  [MSDOS_SUPER_MAGIC, EXFAT_SUPER_MAGIC].includes(fs.statfsSync(`/proc/self/fd/${fd}`).type);
const MSDOS_SUPER_MAGIC = 0x4d44;
const EXFAT_SUPER_MAGIC = 0x2011bab0;

function requireHeld(tree: Tree, path: RawPath, fd: number): void {
  const held = tree.held.get(path);
  if (held !== undefined && held !== identityOf(fd)) throw replacedFolder(tree, path);
}

/** Somebody who may write to the folder above put something else there. */
const replacedFolder = (tree: Tree, path: RawPath): ZferryError =>
  new ZferryError("worktree-dirty", `${display(tree, path)} is not the folder that was made there`, {
    details: { path: display(tree, path) },
    hint: "see who put it there, move it to where it belongs, and run the same command again",
  });

const split = (path: RawPath): { folder: string; name: RawPath } => {
  const slash = path.lastIndexOf("/");
  return { folder: path.slice(0, Math.max(0, slash)), name: path.slice(slash + 1) as RawPath };
};

/**
 * Runs a call on the place where `path` is: a path whose every component above the last is an open folder's.
 * @throws ZferryError `io-failed`, `no-space`; `io-failed` too when a component above is no directory
 */
export function inPlace<T>(tree: Tree, path: RawPath, use: (place: Buffer, folder: number) => T): T {
  const { folder, name } = split(path);
  const opened = openFolder(tree, folder);
  if (opened.kind !== "open") {
    const what =
      opened.kind === "absent" ? "is not there" : `is behind ${showPath(opened.at)}, a ${opened.by}`;
    throw new ZferryError("io-failed", `${display(tree, path)} ${what}`, {
      details: { path: display(tree, path), reason: opened.kind === "absent" ? "ENOENT" : "ENOTDIR" },
    });
  }
  try {
    return guarded(display(tree, path), () => use(at(opened.fd, name), opened.fd));
  } finally {
    fs.closeSync(opened.fd);
  }
}

/**
 * Tells what lies at each path, in the same order, with the extended attributes that `isWanted` names.
 * Links have none: Linux allows them no `user.` attributes, and capabilities and ACLs mean nothing there.
 * @throws ZferryError `io-failed`; `not-configured` when getfattr is missing
 */
export async function inspect(
  tree: Tree,
  paths: readonly RawPath[],
  isWanted: (xattr: string) => boolean,
): Promise<Found[]> {
  const found: Found[] = [];
  for (let start = 0; start < paths.length; start += BATCH) {
    const opened = paths.slice(start, start + BATCH).map((path) => openLeaf(tree, path));
    try {
      const fds = opened.flatMap((leaf) =>
        leaf.kind === "open" && !leaf.stat.isSymbolicLink() ? [leaf.fd] : [],
      );
      const xattrs = await readXattrs(fds, isWanted);
      found.push(
        ...opened.map((leaf): Found => {
          if (leaf.kind !== "open") return leaf;
          const { stat } = leaf;
          const { uid, gid, mode, size } = stat;
          const attributes = { uid, gid, permissions: mode & 0o7777, xattrs: xattrs.get(leaf.fd) ?? {} };
          const linked = stat.isFile() && stat.nlink > 1 ? { linked: identify(leaf.fd) } : {};
          return { kind: kindOf(stat), size, attributes, ...linked };
        }),
      );
    } finally {
      for (const leaf of opened) if (leaf.kind === "open") fs.closeSync(leaf.fd);
    }
  }
  return found;
}

/** Numbers of files may be larger than a number of JavaScript holds exactly. */
function identify(fd: number): Linked {
  const { dev, ino, nlink } = fs.fstatSync(fd, { bigint: true });
  return { file: `${dev}:${ino}`, names: Number(nlink) };
}

function openLeaf(tree: Tree, path: RawPath): Opened<{ readonly stat: fs.Stats }> {
  const { folder, name } = split(path);
  const opened = openFolder(tree, folder);
  if (opened.kind !== "open") return opened;
  try {
    const fd = fs.openSync(at(opened.fd, name), O_PATH | O_NOFOLLOW);
    return { kind: "open", fd, stat: fs.fstatSync(fd) };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return { kind: "absent" };
    throw mapSystemError(error, display(tree, path));
  } finally {
    fs.closeSync(opened.fd);
  }
}

/**
 * What kind of thing lies at a path.
 * @throws ZferryError `io-failed`
 */
export function kindAt(tree: Tree, path: RawPath): Found["kind"] {
  const leaf = openLeaf(tree, path);
  if (leaf.kind !== "open") return leaf.kind;
  fs.closeSync(leaf.fd);
  return kindOf(leaf.stat);
}

// Another program must name the file as this process has it open: its own `self` is another one.
const descriptorPath = (fd: number): string => `/proc/${process.pid}/fd/${fd}`;

const unescapeOctal = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(parseInt(digits, 8)));

async function readXattrs(
  fds: readonly number[],
  isWanted: (name: string) => boolean,
): Promise<Map<number, Record<string, string>>> {
  const found = new Map<number, Record<string, string>>();
  if (fds.length === 0) return found;
  const args = [
    "--absolute-names",
    "--dump",
    "--match=-",
    "--encoding=base64",
    "--",
    ...fds.map(descriptorPath),
  ];
  const result = await run("getfattr", args, { maxOutputBytes: 1 << 30 });
  if (result.status !== 0) throw xattrFailure("read", result.stderr);
  for (const block of result.stdout.toString("latin1").split("\n\n")) {
    const [header = "", ...lines] = block.split("\n");
    const xattrs = lines.flatMap((line): [string, string][] => {
      const equals = line.indexOf("=");
      const name = Buffer.from(unescapeOctal(line.slice(0, equals)), "latin1").toString("utf8");
      return equals > 0 && isWanted(name) ? [[name, line.slice(equals + "=0s".length)]] : [];
    });
    found.set(Number(header.slice(header.lastIndexOf("/") + 1)), Object.fromEntries(xattrs));
  }
  return found;
}

const xattrFailure = (verb: string, stderr: string): ZferryError => {
  const said = stderr.split("\n").at(-1) ?? "";
  const code = /No space left|Disk quota/.test(stderr) ? "no-space" : "io-failed";
  return new ZferryError(code, `cannot ${verb} extended attributes: ${said.replace(/^[gs]etfattr: /, "")}`, {
    details: { stderr },
  });
};

/** A file or folder that is open, and the attributes that it is to have. */
export interface Attributed {
  readonly fd: number;
  readonly attributes: FileAttributes;
}

/**
 * Gives open files exactly these attributes and writes them to disk with their content. At no instant may a file be
 * read by more than before and after: owner first; then ACLs, without one inherited from the folder; permissions last.
 * @param isWanted the extended attributes that are exact: others stay
 * @throws ZferryError `io-failed`, `no-space`; `not-configured` when setfattr is missing
 */
export async function setAttributes(
  files: readonly Attributed[],
  isWanted: (xattr: string) => boolean,
): Promise<void> {
  for (let start = 0; start < files.length; start += BATCH) {
    const batch = files.slice(start, start + BATCH);
    const naming = <T>(fd: number, use: () => T): T => guarded(pathOfDescriptor(fd), use);
    for (const { fd, attributes } of batch)
      naming(fd, () => fs.fchownSync(fd, attributes.uid, attributes.gid));
    // After chown, which takes capabilities away.
    await setXattrs(batch, isWanted);
    for (const { fd, attributes } of batch) {
      naming(fd, () => fs.fchmodSync(fd, attributes.permissions));
    }
    await syncAll(batch.map(({ fd }) => fd));
  }
}

const sync = promisify(fs.fsync);

/**
 * Writes open files to disk side by side: a file system's journal then takes several at a time. So each file's own error is
 * told, and nothing is waited for that others wrote, as with sync(1) for the whole file system, which was no faster.
 */
async function syncAll(fds: readonly number[]): Promise<void> {
  // All must have ended before one is closed.
  const results = await Promise.allSettled(fds.map((fd) => sync(fd)));
  for (const [index, result] of results.entries()) {
    if (result.status === "rejected")
      throw mapSystemError(result.reason, pathOfDescriptor(fds[index] as number));
  }
}

function pathOfDescriptor(fd: number): string {
  return showPath(rawPath(fs.readlinkSync(`/proc/self/fd/${fd}`, { encoding: "buffer" })));
}

async function setXattrs(files: readonly Attributed[], isWanted: (xattr: string) => boolean): Promise<void> {
  const current = await readXattrs(
    files.map(({ fd }) => fd),
    isWanted,
  );
  const removals = new Map<string, number[]>();
  let additions = "";
  for (const { fd, attributes } of files) {
    const present = current.get(fd) ?? {};
    for (const name of Object.keys(present)) {
      if (!(name in attributes.xattrs)) removals.set(name, [...(removals.get(name) ?? []), fd]);
    }
    const added = Object.entries(attributes.xattrs).filter(([name, value]) => present[name] !== value);
    if (added.length === 0) continue;
    // setfattr 2.5 may fail, silently, at base64 of nothing.
    const lines = added.map(
      ([name, value]) => `${escapeOctal(name)}=${value === "" ? '""' : `0s${value}`}\n`,
    );
    additions += `# file: ${descriptorPath(fd)}\n${lines.join("")}\n`;
  }
  for (const [name, fds] of removals) {
    const result = await run("setfattr", [`--remove=${name}`, "--", ...fds.map(descriptorPath)]);
    if (result.status !== 0) throw xattrFailure("remove", result.stderr);
  }
  if (additions === "") return;
  const result = await run("setfattr", ["--restore=-"], { input: additions });
  if (result.status !== 0) throw xattrFailure("write", result.stderr);
}

const escapeOctal = (name: string): string =>
  name.replace(/[=\\\n\r]/g, (char) => `\\${char.charCodeAt(0).toString(8).padStart(3, "0")}`);

/**
 * Gives an open file one more name, which nothing may have.
 * @param from a name that it has
 * @throws ZferryError `io-failed`, also when that name is another file's by now
 */
export function addName(tree: Tree, fd: number, from: RawPath, to: RawPath): void {
  inPlace(tree, from, (place) => inPlace(tree, to, (beside) => fs.linkSync(place, beside)));
  const leaf = openLeaf(tree, to);
  if (leaf.kind === "open") {
    try {
      if (identify(leaf.fd).file === identify(fd).file) return;
    } finally {
      fs.closeSync(leaf.fd);
    }
  }
  throw replacedNow(tree, from);
}

const replacedNow = (tree: Tree, path: RawPath): ZferryError =>
  new ZferryError("io-failed", `${display(tree, path)} was replaced in this moment`, {
    details: { path: display(tree, path) },
  });

/**
 * Reads a whole file that is small; undefined when there is none.
 * @throws ZferryError `io-failed`, also for a link
 */
export function readFileIn(tree: Tree, path: RawPath): Buffer | undefined {
  const leaf = openLeaf(tree, path);
  if (leaf.kind === "absent") return undefined;
  if (leaf.kind !== "open" || !leaf.stat.isFile()) {
    if (leaf.kind === "open") fs.closeSync(leaf.fd);
    throw new ZferryError("io-failed", `${display(tree, path)} is no file`, {
      details: { path: display(tree, path) },
    });
  }
  try {
    return guarded(display(tree, path), () => fs.readFileSync(`/proc/self/fd/${leaf.fd}`));
  } finally {
    fs.closeSync(leaf.fd);
  }
}

/**
 * Removes what is at `path`, with everything below it; nothing when nothing is there.
 * @throws ZferryError `io-failed`
 */
export function removeTree(tree: Tree, path: RawPath): void {
  const { folder, name } = split(path);
  const opened = openFolder(tree, folder);
  if (opened.kind !== "open") return;
  try {
    guarded(display(tree, path), () => removeAt(at(opened.fd, name)));
  } finally {
    fs.closeSync(opened.fd);
  }
}

/**
 * Makes a folder that its owner alone may enter, and holds it: whoever may rename it cannot have another one filled instead.
 * @returns what `holdFolder` and `removePrepared` know it by
 * @throws ZferryError `worktree-dirty` when another folder is in its place at once; `io-failed`, `no-space`
 */
export function makeFolder(tree: Tree, path: RawPath): string {
  return inPlace(tree, path, (place) => {
    fs.mkdirSync(place, { mode: 0o700 });
    const fd = fs.openSync(place, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    try {
      const { uid, mode } = fs.fstatSync(fd);
      // On FAT both are those of the mount.
      const isNew = isOnFat(fd) || (uid === process.geteuid?.() && (mode & 0o777) === 0o700);
      if (!isNew || fs.readdirSync(`/proc/self/fd/${fd}`).length > 0) throw replacedFolder(tree, path);
      const identity = identityOf(fd);
      tree.held.set(path, identity);
      return identity;
    } finally {
      fs.closeSync(fd);
    }
  });
}

/** Holds the folder at `path` if it is the one that `makeFolder` made; false when it is not. */
export function holdFolder(tree: Tree, path: RawPath, identity: string): boolean {
  const opened = openFolder(tree, path);
  if (opened.kind !== "open") return false;
  try {
    if (identityOf(opened.fd) !== identity) return false;
    tree.held.set(path, identity);
    return true;
  } finally {
    fs.closeSync(opened.fd);
  }
}

/**
 * Holds the folder that lies at a path by now.
 * @param isMeant whether it is the one that is meant
 * @returns what it is known by; undefined where it is not that one
 */
export function holdFolderThere(
  tree: Tree,
  path: RawPath,
  isMeant: (stat: fs.Stats) => boolean,
): string | undefined {
  const opened = openFolder(tree, path);
  if (opened.kind !== "open") return undefined;
  try {
    if (!isMeant(fs.fstatSync(opened.fd))) return undefined;
    const identity = identityOf(opened.fd);
    tree.held.set(path, identity);
    return identity;
  } finally {
    fs.closeSync(opened.fd);
  }
}

/**
 * Opens the folder at `path`, which the caller closes.
 * @throws ZferryError `io-failed`; `worktree-dirty` when it is not the one that is held
 */
export function openFolderAt(tree: Tree, path: RawPath): number {
  return inPlace(tree, path, (place) => {
    const fd = fs.openSync(place, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    try {
      requireHeld(tree, path, fd);
      return fd;
    } catch (error) {
      fs.closeSync(fd);
      throw error;
    }
  });
}

/**
 * Renames what is at `from` to `to`, in the same folder.
 * @throws ZferryError `io-failed`; `worktree-dirty` when it was not the folder that is held at `from`: its name is all that changed
 */
export function renameBeside(tree: Tree, from: RawPath, to: RawPath): void {
  const held = tree.held.get(from);
  if (held !== undefined) fs.closeSync(openFolderAt(tree, from));
  inPlace(tree, from, (place, folder) => fs.renameSync(place, at(folder, split(to).name)));
  if (held === undefined) return;
  tree.held.delete(from);
  if (!holdFolder(tree, to, held)) throw replacedFolder(tree, to);
}

/**
 * Makes a symbolic link with an owner. Whoever may rename it cannot have another file given away.
 * @throws ZferryError `io-failed`, `no-space`
 */
export function makeLink(
  tree: Tree,
  path: RawPath,
  target: Uint8Array,
  { uid, gid }: Pick<FileAttributes, "uid" | "gid">,
): void {
  inPlace(tree, path, (place) => fs.symlinkSync(Buffer.from(target), place));
  const leaf = openLeaf(tree, path);
  if (leaf.kind !== "open") throw replacedNow(tree, path);
  try {
    if (!leaf.stat.isSymbolicLink()) throw replacedNow(tree, path);
    guarded(display(tree, path), () => fs.chownSync(`/proc/self/fd/${leaf.fd}`, uid, gid));
  } finally {
    fs.closeSync(leaf.fd);
  }
}

/**
 * Removes what was prepared at `path`: a file or link, and a folder with everything below it if it is the one that `makeFolder`
 * made. Nothing when nothing is there.
 * @param identity undefined where no folder is known to have been made; one that is empty goes all the same
 * @throws ZferryError `worktree-dirty` when another folder is there, which stays; `io-failed`
 */
export function removePrepared(tree: Tree, path: RawPath, identity: string | undefined): void {
  tree.held.delete(path);
  const { folder, name } = split(path);
  const opened = openFolder(tree, folder);
  if (opened.kind !== "open") return;
  try {
    guarded(display(tree, path), () => {
      const place = at(opened.fd, name);
      const stat = fs.lstatSync(place, { throwIfNoEntry: false });
      if (stat === undefined) return;
      if (!stat.isDirectory()) return fs.unlinkSync(place);
      const fd = fs.openSync(place, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      try {
        if (identityOf(fd) === identity) removeBelow(fd);
        else if (fs.readdirSync(`/proc/self/fd/${fd}`).length > 0) throw replacedFolder(tree, path);
      } finally {
        fs.closeSync(fd);
      }
      fs.rmdirSync(place);
    });
  } finally {
    fs.closeSync(opened.fd);
  }
}

/**
 * Removes the folder at `path` if there is one, nothing is in it and nothing is mounted on it.
 * @throws ZferryError `io-failed`
 */
export function removeIfEmpty(tree: Tree, path: RawPath): void {
  const { folder, name } = split(path);
  const opened = openFolder(tree, folder);
  if (opened.kind !== "open") return;
  try {
    fs.rmdirSync(at(opened.fd, name));
  } catch (error) {
    const { code = "" } = error as NodeJS.ErrnoException;
    const isExpected = ["ENOENT", "ENOTDIR", "ENOTEMPTY", "EEXIST", "EBUSY"].includes(code);
    if (!isExpected) throw mapSystemError(error, display(tree, path));
  } finally {
    fs.closeSync(opened.fd);
  }
}

function removeAt(place: Buffer): void {
  const stat = fs.lstatSync(place, { throwIfNoEntry: false });
  if (stat === undefined) return;
  if (!stat.isDirectory()) return fs.unlinkSync(place);
  const fd = fs.openSync(place, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  try {
    removeBelow(fd);
  } finally {
    fs.closeSync(fd);
  }
  fs.rmdirSync(place);
}

function removeBelow(fd: number): void {
  for (const name of fs.readdirSync(`/proc/self/fd/${fd}`, { encoding: "buffer" })) {
    removeAt(at(fd, rawPath(name)));
  }
}

/** The paths of everything below a folder, folders before what is in them. */
export function listBelow(tree: Tree, path: RawPath): RawPath[] {
  const names = inPlace(tree, path, (place) =>
    fs.readdirSync(place, { withFileTypes: true, encoding: "buffer" }),
  );
  return names.flatMap((entry) => {
    const below = `${path}/${rawPath(entry.name)}` as RawPath;
    return entry.isDirectory() ? [below, ...listBelow(tree, below)] : [below];
  });
}

/**
 * What lies in a folder (the empty path: the tree's own), and the number of the file system that it is on; undefined when
 * there is no such folder.
 * @throws ZferryError `io-failed`
 */
export function listFolder(
  tree: Tree,
  path: RawPath | "",
): { device: number; entries: { name: RawPath; isDirectory: boolean }[] } | undefined {
  const opened = openFolder(tree, path);
  if (opened.kind !== "open") return undefined;
  try {
    const place = `/proc/self/fd/${opened.fd}`;
    return guarded(display(tree, path as RawPath), () => ({
      device: fs.fstatSync(opened.fd).dev,
      entries: fs
        .readdirSync(place, { withFileTypes: true, encoding: "buffer" })
        .map((entry) => ({ name: rawPath(entry.name), isDirectory: entry.isDirectory() })),
    }));
  } finally {
    fs.closeSync(opened.fd);
  }
}

/** Writes the names in a folder (the empty path: the tree's own) to disk; nothing when it is not there. */
export function syncFolder(tree: Tree, path: RawPath | ""): void {
  const opened = openFolder(tree, path);
  if (opened.kind !== "open") return;
  try {
    guarded(join(tree.path, showPath(path as RawPath)), () => fs.fsyncSync(opened.fd));
  } finally {
    fs.closeSync(opened.fd);
  }
}

/** The folder that a path lies in; empty for the tree's own. */
export const folderOf = (path: RawPath): RawPath | "" => ancestors(path).at(-1) ?? "";

/**
 * The file system that a folder (the empty path: the tree's own) lies on, and the bytes that are free there; undefined
 * when there is no such folder.
 */
export function freeSpace(tree: Tree, path: RawPath | ""): { device: number; bytes: number } | undefined {
  const opened = openFolder(tree, path);
  if (opened.kind !== "open") return undefined;
  try {
    const { bavail, bsize } = fs.statfsSync(`/proc/self/fd/${opened.fd}`);
    return { device: fs.fstatSync(opened.fd).dev, bytes: bavail * bsize };
  } finally {
    fs.closeSync(opened.fd);
  }
}

/** The number of the file system that a folder (the empty path: the tree's own) lies on; undefined when there is none. */
export function deviceOf(tree: Tree, path: RawPath | ""): string | undefined {
  const opened = openFolder(tree, path);
  if (opened.kind !== "open") return undefined;
  try {
    return String(fs.fstatSync(opened.fd, { bigint: true }).dev);
  } finally {
    fs.closeSync(opened.fd);
  }
}

/**
 * Those of the paths that may not be changed, replaced or removed: the `i` and `a` of chattr(1). Where a file system
 * does not have these, or e2fsprogs is not installed, there are none.
 * @param paths none leads through a link
 */
export async function lockedByFlags(
  tree: Tree,
  paths: readonly (RawPath | "")[],
): Promise<{ path: RawPath | ""; flag: "i" | "a" }[]> {
  const places = paths.map((path) => `./${path}`);
  // By xargs, because a process that node starts cannot have arguments that are not UTF-8.
  const result = await run("xargs", ["-0", "-r", "lsattr", "-d", "--"], {
    cwd: tree.path,
    input: Buffer.from(places.map((place) => `${place}\0`).join(""), "latin1"),
    maxOutputBytes: 1 << 30,
  }).catch((error: unknown) => {
    if (error instanceof ZferryError && error.code === "not-configured") return undefined;
    throw error;
  });
  const output = result?.stdout.toString("latin1") ?? "";
  const found: { path: RawPath | ""; flag: "i" | "a" }[] = [];
  // In the order asked, without those that it cannot tell. A name may have newlines.
  let at = 0;
  for (const [index, path] of paths.entries()) {
    const space = output.indexOf(" ", at);
    const line = `${output.slice(at, space)} ${places[index] ?? ""}\n`;
    if (space === -1 || !output.startsWith(line, at)) continue;
    const flags = output.slice(at, space);
    at += line.length;
    if (flags.includes("i")) found.push({ path, flag: "i" });
    else if (flags.includes("a")) found.push({ path, flag: "a" });
  }
  return found;
}
