import { randomBytes } from "node:crypto";
import { constants, type Stats } from "node:fs";
import { lstat, open, rename, rm, type FileHandle } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { ByteSource } from "../bundle/reader.js";
import { ZferryError } from "../errors.js";
import { throwIfInterrupted } from "../report.js";
import { mapSystemError, syncPath } from "./files.js";
import { lockDescriptor } from "./lock.js";

/** A bundle's file, open for reading. */
export interface OpenedFile extends ByteSource {
  /** As it was opened. */
  readonly stat: Stats;
  /**
   * Keeps other processes from replacing the file, until it is closed.
   * @throws ZferryError `site-busy`
   */
  lock(): void;
  close(): Promise<void>;
}

const OPEN_FAILURES: Record<string, string> = {
  ENOENT: "there is no such file",
  ELOOP: "is a symbolic link",
  EACCES: "permission denied",
};

/**
 * Opens a regular file or a block device, not following a link at the last component.
 * @throws ZferryError `io-failed`
 */
export async function openBundleFile(path: string): Promise<OpenedFile> {
  let handle: FileHandle;
  try {
    // Without O_NONBLOCK the opening of a FIFO would wait for a writer for ever.
    handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    const { code = "unknown", message } = error as NodeJS.ErrnoException;
    throw new ZferryError("io-failed", `${path}: ${OPEN_FAILURES[code] ?? message}`, {
      details: { file: path, reason: code },
      ...(code === "ELOOP" ? { hint: "give the path of the file that it leads to" } : {}),
    });
  }
  const stat = await handle.stat();
  const size = await readableSize(handle, stat);
  if (size === undefined) {
    await handle.close();
    throw new ZferryError("io-failed", `${path}: is not a regular file or block device`, {
      details: { file: path },
    });
  }
  return {
    name: path,
    size,
    stat,
    lock: () =>
      lockDescriptor(handle.fd, path, {
        message: `${path}: another process is replacing it`,
        hint: "run the same command again",
      }),
    async read(offset, length) {
      const bytes = Buffer.allocUnsafe(length);
      for (let done = 0; done < length;) {
        const { bytesRead } = await readAt(handle, path, bytes, done, offset + done);
        if (bytesRead === 0) {
          throw new ZferryError(
            "bundle-truncated",
            `${path}: ends at byte ${offset + done}, it had ${size}`,
            {
              details: { file: path, size: offset + done, needed: offset + length },
            },
          );
        }
        done += bytesRead;
      }
      return bytes;
    },
    close: () => handle.close(),
  };
}

async function readAt(handle: FileHandle, path: string, bytes: Buffer, at: number, position: number) {
  try {
    return await handle.read(bytes, at, bytes.length - at, position);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "unknown";
    throw new ZferryError(
      "io-failed",
      `${path}: cannot read bytes ${position} to ${position + bytes.length - at}: ${code}`,
      {
        details: { file: path, offset: position, reason: code },
        hint: "the medium may be failing; try another copy",
        cause: error,
      },
    );
  }
}

async function readableSize(handle: FileHandle, stat: Stats): Promise<number | undefined> {
  if (stat.isFile()) return stat.size;
  if (!stat.isBlockDevice()) return undefined;
  // A device has no size to stat: look for the last byte that can be read.
  let low = 0;
  let high = 2 ** 50;
  const one = Buffer.alloc(1);
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    const { bytesRead } = await handle.read(one, 0, 1, middle).catch(() => ({ bytesRead: 0 }));
    if (bytesRead === 1) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** A bundle's file in the making. Nothing has its final name before it is whole and on the disk. */
export interface NewBundleFile {
  /** Adds to what comes after the head. */
  append(bytes: Uint8Array): Promise<void>;
  /** Writes the head, what was appended after it, and gives the file its name. */
  finish(head: Uint8Array): Promise<{ bytes: number }>;
  /** Leaves no file. Does nothing after `finish`. */
  discard(): Promise<void>;
}

const PIECE_BYTES = 4 << 20;

/**
 * The head holds the hashes of what follows it, so that is kept in a file without a name until the head is known.
 * @throws ZferryError `output-exists`, `io-failed`, `no-space`, `interrupted`
 */
export async function createBundleFile(path: string, signal: AbortSignal): Promise<NewBundleFile> {
  await refuseExisting(path);
  const temporary = temporaryBeside(path);
  const spool = await writing(path, async () => {
    const file = await open(temporary, "wx+", 0o600);
    await rm(temporary);
    return file;
  });
  let spooled = 0;
  let closed = false;
  const close = async (): Promise<void> => {
    if (!closed) await spool.close();
    closed = true;
  };
  async function* spooledPieces(): AsyncGenerator<Uint8Array, void> {
    const piece = Buffer.allocUnsafe(PIECE_BYTES);
    for (let at = 0; at < spooled;) {
      const { bytesRead } = await spool.read(piece, 0, Math.min(piece.length, spooled - at), at);
      if (bytesRead === 0)
        throw new ZferryError("io-failed", `${path}: ${spooled - at} bytes of its temporary file are gone`);
      yield piece.subarray(0, bytesRead);
      at += bytesRead;
    }
  }
  return {
    append: (bytes) =>
      writing(path, async () => {
        await writeAll(spool, bytes, spooled);
        spooled += bytes.length;
      }),
    async finish(head) {
      async function* parts(): AsyncGenerator<Uint8Array, void> {
        yield head;
        yield* spooledPieces();
      }
      const bytes = await writeBundleFile(path, parts(), signal);
      await close();
      return { bytes };
    },
    discard: close,
  };
}

/**
 * Writes a bundle's file, so that there is the whole of it or nothing: under a temporary name, which it loses at the end.
 * @param options.replace the file that is to be replaced, as it was opened; the new one gets its owner and mode
 * @returns the number of bytes
 * @throws ZferryError `output-exists`, `io-failed`, `no-space`, `interrupted`
 */
export async function writeBundleFile(
  path: string,
  parts: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
  { replace }: { readonly replace?: Stats } = {},
): Promise<number> {
  const temporary = temporaryBeside(path);
  let bytes = 0;
  try {
    const part = await writing(path, () => open(temporary, "wx", 0o644));
    try {
      for await (const piece of parts) {
        throwIfInterrupted(signal);
        await writing(path, () => writeAll(part, piece, bytes));
        bytes += piece.length;
      }
      if (replace !== undefined) {
        await writing(path, () => part.chown(replace.uid, replace.gid));
        await writing(path, () => part.chmod(replace.mode & 0o7777));
      }
      await writing(path, () => part.sync());
    } finally {
      await part.close();
    }
    await (replace === undefined ? refuseExisting(path) : requireSame(path, replace));
    await writing(path, () => rename(temporary, path));
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  syncPath(dirname(path));
  return bytes;
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

async function writeAll(handle: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    done += (await handle.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
  }
}
