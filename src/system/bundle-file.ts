import { spawn, type StdioOptions } from "node:child_process";
import { randomBytes } from "node:crypto";
import { constants, type Stats } from "node:fs";
import { lstat, open, rename, rm, type FileHandle } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { ByteSource } from "../bundle/members.js";
import { parseVolumeName, volumeName } from "../bundle/volumes.js";
import { ZferryError } from "../errors.js";
import { throwIfInterrupted } from "../report.js";
import { mapSystemError, syncPath } from "./files.js";
import { lockDescriptor } from "./lock.js";
import { filesIn, openToRead, sourceOf, type OpenFile, type VolumesToRead } from "./read-at.js";
import { readingThreads } from "./threads.js";
import { volumeSet, type VolumeSearch, type VolumeSet } from "./volumes.js";

/** A bundle's file, or its volumes, open for reading. */
export interface OpenedFile extends ByteSource {
  /** As it was opened; of volumes the first. */
  readonly stat: Stats;
  /** Whether it is the first of a bundle's volumes. */
  readonly inVolumes: boolean;
  /**
   * Keeps other processes from replacing the file, until it is closed.
   * @throws ZferryError `site-busy`
   */
  lock(): void;
  close(): Promise<void>;
}

/** A bundle that is not larger is read before threads have started. */
const THREADS_FROM_BYTES = 16 << 20;

/**
 * Opens a regular file or a block device, not following a link at the last component. The name of a first volume opens
 * the whole set, the others of which are found once the size of the bundle is known.
 * @param threads how many take part in reading it, if it is large
 * @throws ZferryError `io-failed`
 */
export async function openBundleFile(
  path: string,
  threads = 0,
  search: VolumeSearch = {},
): Promise<OpenedFile> {
  const file = await openToRead(path).catch(async (error: unknown) => {
    throw await hintAtVolumes(path, error);
  });
  const readingIn = (volumes: VolumesToRead): Reading | undefined => {
    const size = volumes.reduce((sum, volume) => sum + volume.size, 0);
    return threads > 0 && size > THREADS_FROM_BYTES ? readingThreads(threads, volumes) : undefined;
  };
  const lock = (): void =>
    lockDescriptor(file.fd, path, {
      message: `${path}: another process is replacing it`,
      hint: "run the same command again",
    });
  if (file.stat.isFile() && file.size > 0 && parseVolumeName(path)?.number === 1) {
    return openVolumes(file, volumeSet(file, search), readingIn, lock);
  }
  const toRead: VolumesToRead = [{ fd: file.fd, name: path, size: file.size }];
  const work = readingIn(toRead);
  return {
    ...sourceOf(toRead, (bytes) => Buffer.allocUnsafe(bytes)),
    stat: file.stat,
    inVolumes: false,
    lock,
    ...(work === undefined ? {} : { work }),
    async close() {
      // A thread that still read from a descriptor that is closed could read from another file.
      await work?.close();
      await file.handle.close();
    },
  };
}

type Reading = ReturnType<typeof readingThreads>;

function openVolumes(
  first: OpenFile,
  set: VolumeSet,
  readingIn: (volumes: VolumesToRead) => Reading | undefined,
  lock: () => void,
): OpenedFile {
  let work: Reading | undefined;
  let volumes: VolumesToRead = [first];
  return {
    name: first.name,
    get size() {
      return set.size;
    },
    stat: first.stat,
    inVolumes: true,
    lock,
    read: set.read,
    filesOf: (offset, length) => filesIn(volumes)(offset, length),
    async complete(size) {
      volumes = await set.complete(size);
      work ??= readingIn(volumes);
    },
    get work() {
      return work;
    },
    async close() {
      await work?.close();
      await set.close();
    },
  };
}

/** Whoever names a bundle that lies there in volumes is told so. */
async function hintAtVolumes(path: string, error: unknown): Promise<unknown> {
  if (!(error instanceof ZferryError) || error.details["reason"] !== "ENOENT") return error;
  const first = volumeName(path, 1);
  if ((await lstat(first).catch(() => undefined)) === undefined) return error;
  const { code, message, details } = error;
  return new ZferryError(code, message, {
    details,
    hint: `it is there in volumes: name ${first}`,
    cause: error,
  });
}

/** A bundle's file in the making. Nothing has its final name before it is whole and on the disk. */
export interface NewBundleFile {
  /** How many bytes the head will have, as far as that is known before the first `append`. */
  reserve(headBytes: number): void;
  /** Adds to what comes after the head. */
  append(bytes: Uint8Array): Promise<void>;
  /**
   * Writes the head, and gives the file its name. What was appended is copied only if the head has not the length that
   * was reserved, or the file system has no files without a name.
   */
  finish(head: Uint8Array): Promise<{ bytes: number }>;
  /** Leaves no file. Does nothing after `finish`. */
  discard(): Promise<void>;
}

const PIECE_BYTES = 4 << 20;
const SYNC_EVERY_BYTES = 32 << 20;

/**
 * The head holds the hashes of what follows it, so that is written first, to a file without a name, which no failure
 * can leave behind.
 * @throws ZferryError `output-exists`, `io-failed`, `no-space`, `interrupted`
 */
export async function createBundleFile(path: string, signal: AbortSignal): Promise<NewBundleFile> {
  await refuseExisting(path);
  const { file, canHaveName } = await writing(path, () => openNameless(path));
  const earlySync = syncingEarly(file);
  let reserved = 0;
  let end = 0;
  let closed = false;
  const close = async (): Promise<void> => {
    if (closed) return;
    closed = true;
    await earlySync.ended().catch(() => undefined);
    await file.close();
  };
  const copyAfter = async (head: Uint8Array): Promise<void> => {
    const bytes = head.length + end - reserved;
    await writeWhole(path, signal, {}, async (part) => {
      // Without positions: the copy goes on where these end.
      await writing(path, () => part.writeFile(head));
      for (let at = 0; at < reserved;) at += (await file.read(Buffer.alloc(reserved - at), 0)).bytesRead;
      if ((await copyInKernel(file.fd, part.fd)) && (await part.stat()).size === bytes) return;
      const piece = Buffer.allocUnsafe(PIECE_BYTES);
      for (let at = reserved; at < end;) {
        throwIfInterrupted(signal);
        const { bytesRead } = await file.read(piece, 0, Math.min(piece.length, end - at), at);
        if (bytesRead === 0)
          throw new ZferryError("io-failed", `${path}: ${end - at} bytes of its temporary file are gone`);
        await writing(path, () => writeAll(part, piece.subarray(0, bytesRead), head.length + at - reserved));
        at += bytesRead;
      }
    });
  };
  return {
    reserve(headBytes) {
      if (end !== reserved) throw new RangeError("room for the head is reserved too late");
      if (canHaveName) reserved = end = headBytes;
    },
    append: (bytes) =>
      writing(path, async () => {
        await writeAll(file, bytes, end);
        end += bytes.length;
        if (reserved > 0) await earlySync.wrote(bytes.length);
      }),
    async finish(head) {
      if (head.length === reserved) {
        await writing(path, async () => {
          await writeAll(file, head, 0);
          await earlySync.ended();
          await file.sync();
        });
        throwIfInterrupted(signal);
        await refuseExisting(path);
        if (await giveName(file, path)) {
          syncPath(dirname(path));
          await close();
          return { bytes: end };
        }
      }
      await copyAfter(head);
      await close();
      return { bytes: head.length + end - reserved };
    },
    discard: close,
  };
}

// Missing in node; the same on all of its platforms that have Linux. open(2)
const O_TMPFILE = 0o20000000 | constants.O_DIRECTORY;
// A vfat or 9p has EOPNOTSUPP, which Node calls ENOTSUP.
const NO_O_TMPFILE = new Set(["ENOTSUP", "EISDIR", "EINVAL"]);

/** A new file beside `path`, without a name, and whether it can get one. */
async function openNameless(path: string): Promise<{ file: FileHandle; canHaveName: boolean }> {
  try {
    return { file: await open(dirname(path), O_TMPFILE | constants.O_RDWR, 0o644), canHaveName: true };
  } catch (error) {
    if (!NO_O_TMPFILE.has((error as NodeJS.ErrnoException).code ?? "")) throw error;
  }
  const temporary = temporaryBeside(path);
  const file = await open(temporary, "wx+", 0o600);
  await rm(temporary);
  return { file, canHaveName: false };
}

/**
 * Names a file that was opened without a name; node has no linkat(2), and GNU ln does it so.
 * @returns whether it succeeded; otherwise there is no new name
 */
async function giveName(file: FileHandle, path: string): Promise<boolean> {
  await ended("ln", ["-L", "-T", "--", "/proc/self/fd/3", path], ["ignore", "ignore", "ignore", file.fd]);
  const [named, { ino, dev }] = [await lstat(path).catch(() => undefined), await file.stat()];
  return named?.ino === ino && named.dev === dev;
}

/**
 * Copies from one descriptor's place in its file to its end. Node has no copy_file_range(2), and GNU cat does it so:
 * file systems that can share blocks do, the others copy in the kernel.
 * @returns whether it succeeded
 */
const copyInKernel = (from: number, to: number): Promise<boolean> => ended("cat", [], [from, to, "ignore"]);

/** Runs a program that does something faster than node can, but that is not needed. */
const ended = (program: string, args: readonly string[], stdio: StdioOptions): Promise<boolean> =>
  new Promise((resolve) => {
    const child = spawn(program, args, { stdio });
    child.once("error", () => resolve(false));
    child.once("exit", (status) => resolve(status === 0));
  });

/** Has the disk work while there is more to come, so that little is left for the sync at the end. */
export function syncingEarly(file: FileHandle): {
  wrote(bytes: number): Promise<void>;
  ended(): Promise<void>;
} {
  let unsynced = 0;
  let syncing: Promise<void> = Promise.resolve();
  return {
    async wrote(bytes) {
      unsynced += bytes;
      if (unsynced < SYNC_EVERY_BYTES) return;
      unsynced = 0;
      // A disk that is slower than the compression slows it down here, and its error is told.
      await syncing;
      syncing = file.datasync();
      syncing.catch(() => undefined);
    },
    ended: () => syncing,
  };
}

/** How a file gets its name. */
interface Naming {
  /** The file that is to be replaced, as it was opened; the new one gets its owner and mode. */
  readonly replace?: Stats;
  /** Whether the new file takes the place of whatever is there. */
  readonly over?: boolean;
  /** Whatever the umask is. */
  readonly mode?: number;
}

/**
 * Writes a bundle's file, so that there is the whole of it or nothing.
 * @returns the number of bytes
 * @throws ZferryError `output-exists`, `io-failed`, `no-space`, `interrupted`
 */
export async function writeBundleFile(
  path: string,
  pieces: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
  naming: Naming = {},
): Promise<number> {
  let bytes = 0;
  await writeWhole(path, signal, naming, async (part) => {
    for await (const piece of pieces) {
      throwIfInterrupted(signal);
      await writing(path, () => writeAll(part, piece, bytes));
      bytes += piece.length;
    }
  });
  return bytes;
}

/** Has `write` write a file under a temporary name, which it loses at the end, when it is on the disk. */
async function writeWhole(
  path: string,
  signal: AbortSignal,
  { replace, over = false, mode }: Naming,
  write: (part: FileHandle) => Promise<void>,
): Promise<void> {
  const temporary = temporaryBeside(path);
  try {
    const part = await writing(path, () => open(temporary, "wx", 0o644));
    try {
      await write(part);
      throwIfInterrupted(signal);
      if (replace !== undefined) {
        await writing(path, () => part.chown(replace.uid, replace.gid));
        await writing(path, () => part.chmod(replace.mode & 0o7777));
      }
      if (mode !== undefined) await writing(path, () => part.chmod(mode));
      await writing(path, () => part.sync());
    } finally {
      await part.close();
    }
    if (replace !== undefined) await requireSame(path, replace);
    else if (!over) await refuseExisting(path);
    await writing(path, () => rename(temporary, path));
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  syncPath(dirname(path));
}

const temporaryBeside = (path: string): string =>
  join(dirname(path), `.${basename(path)}.${randomBytes(6).toString("hex")}`);

/** What fails is told of the file that is wanted, not of the temporary one. */
async function writing<Value>(path: string, work: () => Promise<Value>): Promise<Value> {
  try {
    return await work();
  } catch (error) {
    throw mapSystemError(error, path);
  }
}

/** Two who sign one file at a time must not lose a signature. Each has a lock on the file that it opened. */
async function requireSame(path: string, before: Stats): Promise<void> {
  const now = await lstat(path).catch(() => undefined);
  if (now?.ino === before.ino && now.dev === before.dev && now.mtimeMs === before.mtimeMs) return;
  throw new ZferryError("io-failed", `${path}: was changed or replaced in the meantime`, {
    details: { file: path },
    hint: "run the same command again",
  });
}

async function refuseExisting(path: string): Promise<void> {
  const exists = await lstat(path).then(
    () => true,
    () => false,
  );
  if (exists) {
    throw new ZferryError("output-exists", `${path}: there is such a file already`, {
      details: { file: path },
      hint: "remove it, or write to another name with -o",
    });
  }
}

/** Writes all of `bytes`. */
export async function writeAll(handle: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    done += (await handle.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
  }
}
