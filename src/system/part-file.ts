import { constants, type Stats } from "node:fs";
import { lstat, open, readdir, rename, rm, statfs, type FileHandle } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { ByteSource } from "../bundle/members.js";
import { ZferryError } from "../errors.js";
import { formatBytes } from "../report.js";
import { mapSystemError, syncPath } from "./files.js";
import { lockDescriptor } from "./lock.js";

/**
 * A file that comes in pieces, in any order, and that another run goes on with. What was not written yet is zeros. It
 * has its name only once it is whole.
 */
export interface PartFile extends ByteSource {
  write(offset: number, bytes: Uint8Array): Promise<void>;
  /** Where what was written between two offsets ends, as far as it does not end with zeros. */
  dataEnd(from: number, to: number): Promise<number>;
  /** Brings all of it to the disk, and gives it its name. */
  finish(): Promise<void>;
  /** Leaves the part where it is, if it was not finished and has something. */
  close(): Promise<void>;
}

const PIECE_BYTES = 256 << 10;
const LOCK_TRIES = 10;

export const partOf = (path: string): string => join(dirname(path), `.${basename(path)}.part`);

/**
 * Opens a file in the making, or begins it, and locks it until it is closed.
 * @returns also its state under the lock
 * @throws ZferryError `site-busy` with what `busy` says, `io-failed` for what is no regular file; else the system's own error
 */
export async function openLocked(
  path: string,
  busy: { readonly message: string; readonly hint: string },
): Promise<{ file: FileHandle; stat: Stats }> {
  const { O_CREAT, O_NOFOLLOW, O_NONBLOCK, O_RDWR } = constants;
  for (let tries = 0; tries < LOCK_TRIES; tries += 1) {
    const file = await open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0o644);
    try {
      if (!(await file.stat()).isFile()) {
        throw new ZferryError("io-failed", `${path}: is not a regular file`, { details: { file: path } });
      }
      lockDescriptor(file.fd, path, busy);
      const stat = await file.stat();
      const named = await lstat(path).catch(() => undefined);
      if (named?.ino === stat.ino && named.dev === stat.dev) return { file, stat };
    } catch (error) {
      await file.close();
      throw error;
    }
    // Who had the lock gave the file its final name, or removed it: what is there by now is another one.
    await file.close();
  }
  throw new ZferryError("site-busy", busy.message, { details: { file: path }, hint: busy.hint });
}

const PART = /^\.(.+)\.part$/;

/** The names of the files of which a part lies in a folder. */
export const listParts = async (folder: string): Promise<string[]> =>
  (await readdir(folder).catch(() => [])).flatMap((name) => PART.exec(name)?.[1] ?? []);

/**
 * Removes the part of a file, if `isStale` says so of what lies there, nobody has it, and it can be removed.
 * @returns whether it was
 */
export async function removeStalePart(
  path: string,
  isStale: (part: ByteSource) => Promise<boolean>,
): Promise<boolean> {
  const part = partOf(path);
  if ((await lstat(part).catch(() => undefined))?.isFile() !== true) return false;
  const opened = await openLocked(part, { message: "", hint: "" }).catch(() => undefined);
  if (opened === undefined) return false;
  const { file, stat } = opened;
  try {
    const read = async (offset: number, length: number): Promise<Buffer> => {
      const bytes = Buffer.alloc(length);
      await file.read(bytes, 0, length, offset);
      return bytes;
    };
    // How long the whole would be, only its head says.
    const complete = async (size: number): Promise<void> => void (source.size = size);
    const source = { name: part, size: stat.size, read, complete };
    if (!(await isStale(source))) return false;
    // While it is locked.
    return await rm(part).then(
      () => true,
      () => false,
    );
  } finally {
    await file.close();
  }
}

/**
 * Refuses to make a file that has its name already: who had the lock until now made it. Nothing is left of what was just begun.
 * @throws ZferryError `output-exists`
 */
export async function refuseMade(path: string, making: string, { size }: Stats): Promise<void> {
  if ((await lstat(path).catch(() => undefined)) === undefined) return;
  if (size === 0) await rm(making, { force: true });
  throw new ZferryError("output-exists", `${path}: came to be in the meantime`, {
    details: { file: path },
    hint: "run the same command again: what is there is looked at then",
  });
}

/**
 * Opens the part of a file that will have `size` bytes.
 * @throws ZferryError `site-busy` while another process has it, `output-exists`, `no-space`, `io-failed`
 */
export async function openPartFile(path: string, size: number): Promise<PartFile> {
  const part = partOf(path);
  const guarded = async <Value>(work: () => Promise<Value>, what = path): Promise<Value> => {
    try {
      return await work();
    } catch (error) {
      throw mapSystemError(error, what);
    }
  };
  const { file, stat } = await guarded(
    () =>
      openLocked(part, {
        message: `${part} is locked: another process is downloading it`,
        hint: "wait for it to end",
      }),
    part,
  );
  const close = async (): Promise<void> => {
    // While it is locked: nobody else has it.
    if ((await file.stat()).size === 0) await rm(part, { force: true });
    await file.close();
  };
  try {
    await refuseMade(path, part, stat);
    if (stat.size > size) await guarded(() => file.truncate(size));
    await requireSpace(part, size - Math.min(size, stat.blocks * 512));
  } catch (error) {
    await close();
    throw error;
  }
  const read = async (offset: number, length: number): Promise<Buffer> => {
    const bytes = Buffer.alloc(length);
    for (let done = 0; done < length;) {
      const { bytesRead } = await guarded(() => file.read(bytes, done, length - done, offset + done));
      if (bytesRead === 0) break;
      done += bytesRead;
    }
    return bytes;
  };
  return {
    name: path,
    size,
    read,
    write: (offset, bytes) => guarded(() => writeAt(file, bytes, offset)),
    async dataEnd(from, to) {
      const { size: present } = await file.stat();
      let end = Math.min(to, present);
      while (end > from) {
        const start = Math.max(from, end - PIECE_BYTES);
        const piece = await read(start, end - start);
        const last = piece.findLastIndex((byte) => byte !== 0);
        if (last !== -1) return start + last + 1;
        end = start;
      }
      return from;
    },
    async finish() {
      await guarded(() => file.sync());
      const exists = await lstat(path).catch(() => undefined);
      if (exists !== undefined) {
        throw new ZferryError("output-exists", `${path}: there is such a file already`, {
          details: { file: path },
        });
      }
      await guarded(() => rename(part, path));
      syncPath(dirname(path));
    },
    close,
  };
}

async function writeAt(file: FileHandle, bytes: Uint8Array, offset: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    done += (await file.write(bytes, done, bytes.length - done, offset + done)).bytesWritten;
  }
}

async function requireSpace(path: string, needed: number): Promise<void> {
  const { bavail, bsize } = await statfs(path);
  const free = bavail * bsize;
  if (free >= needed) return;
  throw new ZferryError(
    "no-space",
    `${dirname(path)}: ${formatBytes(needed)} are missing of the file, ${formatBytes(free)} are free`,
    { details: { needed, free }, hint: "free space there, or name another folder with -o" },
  );
}
