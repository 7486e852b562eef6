import { randomBytes } from "node:crypto";
import * as fs from "node:fs";
import { basename, dirname, join } from "node:path";
import { isFull, systemCode, ZferryError } from "../errors.js";

const { O_NOFOLLOW, O_RDONLY, O_WRONLY, O_CREAT, O_EXCL } = fs.constants;

/**
 * A system call's failure as one of zferry's: `no-space` for a full disk or quota, else `io-failed`. Any other error
 * comes back as it is.
 * @param what the object, for people: mostly a path
 */
export function mapSystemError(error: unknown, what: string): unknown {
  const code = systemCode(error);
  if (code === undefined || !(error instanceof Error) || !("syscall" in error)) return error;
  return new ZferryError(
    isFull(code) ? "no-space" : "io-failed",
    `cannot ${String(error.syscall)} ${what}: ${reasonOf(code)}`,
    {
      details: { path: what, reason: code },
      hint: HINTS[code]?.replace("FOLDER", folderOf(what)),
      cause: error,
    },
  );
}

const REASONS: Record<string, string> = {
  ENOENT: "there is no such file or folder",
  ENOTDIR: "a folder in its path is no folder",
  EEXIST: "there is something already",
  EISDIR: "it is a folder",
  ELOOP: "it is a symbolic link",
  EACCES: "permission denied",
  EPERM: "not permitted",
  EROFS: "the file system is read-only",
  ENAMETOOLONG: "the name is too long",
  ENOSPC: "no space left",
  EDQUOT: "no space left",
  EIO: "the medium fails (EIO)",
  EFBIG: "the file would be larger than it may be (EFBIG)",
  EMFILE: "too many files are open (EMFILE)",
  ENOTSUP: "the file system cannot do that (ENOTSUP)",
};

/** Why a system call failed, in words. */
export const reasonOf = (code: string): string => REASONS[code] ?? code;

/** The nearest folder that is there; `what` may also be no path. */
function folderOf(what: string): string {
  let folder = what.startsWith("/") ? dirname(what) : "FOLDER";
  while (folder.startsWith("/") && !fs.existsSync(folder)) folder = dirname(folder);
  return folder;
}

const HINTS: Record<string, string> = {
  EROFS: "mount it for writing, such as: mount -o remount,rw $(findmnt -no TARGET -T FOLDER)",
  ENOSPC: "free space there",
  EDQUOT: "free space there, or raise the quota",
  EFBIG:
    "the file system, or ulimit -f, allows none so large; a bundle can be written elsewhere, and bundle copy makes volumes of it",
};

/**
 * Refuses what no file can be called before the work of making it.
 * @throws ZferryError `usage`
 */
export function requireFileName(path: string, option: string): void {
  const name = path.slice(path.lastIndexOf("/") + 1);
  if (["", ".", ".."].includes(name)) {
    throw new ZferryError("usage", `${option} ${JSON.stringify(path)}: is not a file's name`);
  }
}

/**
 * Refuses a folder that is not there before the work of making what goes into it.
 * @throws ZferryError `io-failed`
 */
export function requireFolder(path: string): void {
  if (fs.statSync(path, { throwIfNoEntry: false })?.isDirectory() === true) return;
  throw new ZferryError("io-failed", `${path}: there is no such folder`, {
    details: { path },
    hint: "make it first, or name another one",
  });
}

/** Runs `use`; its system calls fail as {@link mapSystemError} has it. */
export function guarded<T>(what: string, use: () => T): T {
  try {
    return use();
  } catch (error) {
    throw mapSystemError(error, what);
  }
}

/**
 * Writes a file so that after a crash there is the old one or the new one, and after a failure nothing new.
 * @param what the file for people, where `path` is not what they know it by
 * @throws ZferryError `no-space`, `io-failed`
 */
export function writeFileDurably(path: string, data: Uint8Array | string, mode: number, what = path): void {
  const temporary = join(dirname(path), `.${basename(path)}.${randomBytes(6).toString("hex")}`);
  guarded(what, () => {
    try {
      const fd = fs.openSync(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
      try {
        fs.writeFileSync(fd, data);
        fs.fchmodSync(fd, mode);
        fs.fsyncSync(fd);
      } finally {
        fs.closeSync(fd);
      }
      fs.renameSync(temporary, path);
    } catch (error) {
      fs.rmSync(temporary, { force: true });
      throw error;
    }
  });
  syncPath(dirname(path));
}

/**
 * Writes a file, or the names in a folder, to disk.
 * @throws ZferryError `no-space`, `io-failed`
 */
export function syncPath(path: string): void {
  guarded(path, () => {
    const fd = fs.openSync(path, O_RDONLY);
    try {
      fs.fsyncSync(fd);
    } finally {
      fs.closeSync(fd);
    }
  });
}
