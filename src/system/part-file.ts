import { constants } from "node:fs";
import { lstat, open, rename, rm, statfs, type FileHandle } from "node:fs/promises";
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

export const partOf = (path: string): string => join(dirname(path), `.${basename(path)}.part`);

/**
 * Opens the part of a file that will have `size` bytes.
 * @throws ZferryError `site-busy` while another process has it, `no-space`, `io-failed`
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
  const { O_CREAT, O_NOFOLLOW, O_NONBLOCK, O_RDWR } = constants;
  const flags = O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK;
  const file = await guarded(() => open(part, flags, 0o644), part);
  let isOurs = false;
  const close = async (): Promise<void> => {
    // While it is locked: nobody else has it.
    if (isOurs && (await file.stat()).size === 0) await rm(part, { force: true });
    await file.close();
  };
  try {
    const stat = await file.stat();
    if (!stat.isFile()) {
      throw new ZferryError("io-failed", `${part}: is not a regular file`, { details: { file: part } });
    }
    lockDescriptor(file.fd, part, {
      message: `${part} is locked: another process is downloading it`,
      hint: "wait for it to end",
    });
    isOurs = true;
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
