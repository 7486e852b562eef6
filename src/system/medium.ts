import { constants, type Stats } from "node:fs";
import { access, chmod, lstat, open, rename, rm, stat, statfs, type FileHandle } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { systemCode, ZferryError } from "../errors.js";
import { syncingEarly, writeAll } from "./bundle-file.js";
import { mapSystemError, syncPath } from "./files.js";
import { openLocked, refuseMade } from "./part-file.js";
import { run } from "./process.js";

/** A folder on what is carried, and what is known of its file system. */
export interface Medium {
  readonly folder: string;
  /** Bytes that may be written by this user. */
  readonly free: number;
  /** In which files take space. */
  readonly blockBytes: number;
  /** Whether no file of 4 GiB fits: FAT32, and its predecessors. */
  readonly fat: boolean;
  readonly stat: Stats;
}

// A global of node that TypeScript only knows in browsers.
declare const WebAssembly: {
  readonly Memory: new (size: { initial: number }) => { readonly buffer: ArrayBuffer };
};

// statfs(2), f_type
const MSDOS = 0x4d44;
const CACHED: Readonly<Record<number, ReadBack>> = {
  0x01021994: "memory", // tmpfs
  0x858458f6: "memory", // ramfs
  0x2fc12fc1: "zfs", // takes O_DIRECT, and reads from its own cache all the same
  0x65735546: "fuse",
};

/**
 * How bytes were read back: past the kernel's cache; after the kernel was asked to forget them; through a driver that may
 * have a cache of its own; or from memory, for there is no medium.
 */
export type ReadBack = "direct" | "asked" | "fuse" | "zfs" | "memory";

/** @throws ZferryError `io-failed` when it is no folder */
export async function openMedium(folder: string): Promise<Medium> {
  const found = await stat(folder).catch((error: unknown) => {
    if (systemCode(error) === "ENOENT") return undefined;
    throw mapSystemError(error, folder);
  });
  if (found?.isDirectory() !== true) {
    throw new ZferryError(
      "io-failed",
      `${folder}: ${found === undefined ? "there is no such folder" : "is no folder"}`,
      {
        details: { path: folder },
        hint: "name a folder on the medium, which must be mounted",
      },
    );
  }
  const { type, bavail, bsize } = await statfs(folder);
  return { folder, free: bavail * bsize, blockBytes: bsize, fat: type === MSDOS, stat: found };
}

/**
 * Refuses what cannot be written to before the work of reading what would go there.
 * @throws ZferryError `io-failed`
 */
export async function requireWritable({ folder }: Medium): Promise<void> {
  try {
    await access(folder, constants.W_OK | constants.X_OK);
  } catch (error) {
    throw mapSystemError(error, folder);
  }
}

/**
 * Refuses to go on when another file system is there than at first: the medium was taken out.
 * @throws ZferryError `io-failed`
 */
export async function requireThere({ folder, stat: before }: Medium): Promise<void> {
  const now = await stat(folder).catch(() => undefined);
  if (now?.dev === before.dev && now.ino === before.ino) return;
  throw new ZferryError("io-failed", `${folder}: is not what it was; the medium was taken out or unmounted`, {
    details: { path: folder },
    hint: "mount it again and run the same command again: it goes on where it stopped",
  });
}

/** Aligned as direct reads need it, which a Buffer is not. */
export function alignedMemory(bytes: number): Uint8Array {
  return new Uint8Array(new WebAssembly.Memory({ initial: Math.ceil(bytes / 65_536) }).buffer, 0, bytes);
}

/** A file that is read from the medium itself, as far as the system lets us. */
export interface MediumFile {
  readonly how: ReadBack;
  readonly size: number;
  /**
   * Reads what is there: less than `length` at the end.
   * @param memory from {@link alignedMemory}
   * @param offset a multiple of 4,096, as is the size of `memory`
   * @throws the system's own error
   */
  read(memory: Uint8Array, offset: number): Promise<number>;
  close(): Promise<void>;
}

/** Opens a file, of which everything was written to the medium, to see what arrived. */
export async function openOnMedium(path: string): Promise<MediumFile> {
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  const { type } = await statfs(dirname(path));
  let how = CACHED[type] ?? "direct";
  let handle: FileHandle | undefined;
  if (how === "direct") {
    handle = await open(path, flags | constants.O_DIRECT).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "EINVAL") return undefined;
      throw mapSystemError(error, path);
    });
    if (handle === undefined) how = "asked";
  }
  handle ??= await open(path, flags).catch((error: unknown) => {
    throw mapSystemError(error, path);
  });
  // Node has no posix_fadvise(2); GNU dd does it so for a whole file.
  if (how === "asked" || how === "fuse") {
    await succeed(path, "dd", [`if=${path}`, "iflag=nocache", "count=0", "status=none"]);
  }
  const { size } = await handle.stat();
  const file = handle;
  return {
    how,
    size,
    async read(memory, offset) {
      let done = 0;
      while (done < memory.length) {
        const { bytesRead } = await file.read(memory, done, memory.length - done, offset + done);
        done += bytesRead;
        // Only at the end of a file a direct read gives what is no multiple of a block.
        if (bytesRead === 0 || done % 512 !== 0) break;
      }
      return done;
    },
    close: () => file.close(),
  };
}

/** A file in the making that an interrupted copy leaves, so that the next one goes on with it. */
export interface PartialFile {
  readonly path: string;
  /** Bytes that were there before. */
  readonly size: number;
  truncate(size: number): Promise<void>;
  write(bytes: Uint8Array, offset: number): Promise<void>;
  /** Has everything on the medium. */
  sync(): Promise<void>;
  close(): Promise<void>;
}

/** "/media/stick/R2.bundle" → "/media/stick/.R2.bundle.partial" */
export const partialOf = (path: string): string => join(dirname(path), `.${basename(path)}.partial`);

/**
 * Opens what an earlier copy left of a file, or begins it. Nobody else can, until it is closed.
 * @throws ZferryError `site-busy`, `output-exists`, `io-failed`, `no-space`
 */
export async function openPartial(path: string): Promise<PartialFile> {
  const partial = partialOf(path);
  const told = async <Value>(work: () => Promise<Value>): Promise<Value> => {
    try {
      return await work();
    } catch (error) {
      // Nothing can go on with it, and it takes the room of the volumes.
      if (systemCode(error) === "EFBIG") await removePartial(path);
      throw goingOn(mapSystemError(error, path));
    }
  };
  const { file: handle, stat } = await openLocked(partial, {
    message: `${path}: another process is copying to it`,
    hint: "wait for it to end",
  }).catch((error: unknown) => {
    if (error instanceof ZferryError) throw error;
    throw isInTheWay(error) ? mapSystemError(error, partial) : goingOn(mapSystemError(error, path));
  });
  await refuseMade(path, partial, stat).catch(async (error: unknown) => {
    await handle.close();
    throw error;
  });
  const early = syncingEarly(handle);
  return {
    path: partial,
    size: stat.size,
    truncate: (size) => told(() => handle.truncate(size)),
    write: (bytes, offset) =>
      told(async () => {
        await writeAll(handle, bytes, offset);
        await early.wrote(bytes.length);
      }),
    sync: () =>
      told(async () => {
        await early.ended();
        await handle.sync();
      }),
    async close() {
      await early.ended().catch(() => undefined);
      await handle.close();
    },
  };
}

/** No copy left it: it has to be removed. */
const isInTheWay = (error: unknown): boolean => ["ELOOP", "EISDIR"].includes(systemCode(error) ?? "");

function goingOn(error: unknown): unknown {
  if (!(error instanceof ZferryError)) return error;
  const { code, message, details, hint } = error;
  if (details["reason"] === "EFBIG") {
    // Such as FAT through a driver outside the kernel, which does not say that it is FAT.
    const volumes = "it takes no file of this size: --volume-size 4095M writes volumes";
    return new ZferryError(code, message, { details, hint: volumes, cause: error });
  }
  // Another time it would be the same.
  if (["EACCES", "EPERM", "EROFS"].includes(String(details["reason"]))) return error;
  const again = "run the same command again: it goes on where it stopped";
  return new ZferryError(code, message, {
    details,
    hint: hint === undefined ? again : `${hint}; then ${again}`,
    cause: error,
  });
}

/**
 * Gives a partial file its name.
 * @throws ZferryError `output-exists`
 */
export async function nameFile(path: string): Promise<void> {
  if ((await lstat(path).catch(() => undefined)) !== undefined) {
    throw new ZferryError("output-exists", `${path}: came to be while it was copied`, {
      details: { file: path },
    });
  }
  try {
    // Whatever the umask was of who began it. FAT has no permissions, and may refuse.
    await chmod(partialOf(path), 0o644).catch(() => undefined);
    await rename(partialOf(path), path);
  } catch (error) {
    throw mapSystemError(error, path);
  }
}

/** Lets go of what turned out not to be what was written. */
export const removePartial = (path: string): Promise<void> => rm(partialOf(path), { force: true });

/** Removes what an earlier copy left of a file, unless another process writes it. What cannot be removed is in nobody's way. */
export async function dropPartial(path: string): Promise<void> {
  const partial = partialOf(path);
  if ((await lstat(partial).catch(() => undefined))?.isFile() !== true) return;
  try {
    const { file } = await openLocked(partial, { message: `${partial} is locked`, hint: "wait" });
    await rm(partial, { force: true }).finally(() => file.close());
  } catch (error) {
    if (!(error instanceof ZferryError) && systemCode(error) === undefined) throw error;
  }
}

/** Returns when everything that was written to this file system is on the medium: syncfs(2), which node has not. */
export async function syncMedium(folder: string): Promise<void> {
  syncPath(folder);
  await succeed(folder, "sync", ["-f", "--", folder]);
}

async function succeed(path: string, program: string, args: readonly string[]): Promise<void> {
  const { status, stderr } = await run(program, args);
  if (status === 0) return;
  throw new ZferryError("io-failed", `${path}: ${program} failed: ${stderr}`, { details: { path, program } });
}
