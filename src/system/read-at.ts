import { constants, readSync, type Stats } from "node:fs";
import { open, type FileHandle } from "node:fs/promises";
import type { ByteSource } from "../bundle/members.js";
import { ZferryError } from "../errors.js";
import { reasonOf } from "./files.js";

/** A file that is open for reading, as a thread gets it too. */
export interface FileToRead {
  /** Descriptor, the same in each thread. */
  readonly fd: number;
  /** Shown in messages. */
  readonly name: string;
  /** Bytes, when it was opened. */
  readonly size: number;
}

/** The same, for who closes it. */
export interface OpenFile extends FileToRead {
  readonly handle: FileHandle;
  readonly stat: Stats;
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
export async function openToRead(path: string): Promise<OpenFile> {
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
      ...(stat.isDirectory() ? { hint: "name the bundles in it" } : {}),
    });
  }
  return { fd: handle.fd, name: path, size, handle, stat };
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
    // What fails there is there; behind the end nothing fails.
    const { bytesRead } = await handle
      .read(one, 0, 1, middle)
      .catch(({ code }: NodeJS.ErrnoException) => ({ bytesRead: code === "EIO" ? 1 : 0 }));
    if (bytesRead === 1) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * Fills `target` with the bytes from `offset` on.
 * @throws ZferryError `io-failed` for a medium that fails, `bundle-truncated` for a file that became shorter
 */
export function readAt({ fd, name, size }: FileToRead, target: Uint8Array, offset: number): void {
  for (let done = 0; done < target.length;) {
    const position = offset + done;
    let count: number;
    try {
      count = readSync(fd, target, done, target.length - done, position);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code ?? "unknown";
      throw new ZferryError(
        "io-failed",
        `${name}: cannot read bytes ${position} to ${offset + target.length}: ${reasonOf(code)}`,
        {
          details: { file: name, offset: position, end: offset + target.length, reason: code },
          hint: "run the same command again, if need be with the medium in another port; or name another copy",
          cause: error,
        },
      );
    }
    if (count === 0) {
      throw new ZferryError("bundle-truncated", `${name}: ends at byte ${position}, it had ${size}`, {
        details: { file: name, size: position, needed: offset + target.length },
      });
    }
    done += count;
  }
}

/** The volumes of a bundle, in order; all but the last have the size of the first. A single file is one volume. */
export type VolumesToRead = readonly [FileToRead, ...FileToRead[]];

/** Which parts of which volumes hold a range of the bundle: number of the volume from 0, offset in it, bytes. */
export function* partsOf(
  volumeBytes: number,
  offset: number,
  length: number,
): Generator<{ index: number; at: number; bytes: number }, void, void> {
  for (let done = 0; done < length;) {
    const index = Math.floor((offset + done) / volumeBytes);
    const at = offset + done - index * volumeBytes;
    const bytes = Math.min(length - done, volumeBytes - at);
    yield { index, at, bytes };
    done += bytes;
  }
}

/**
 * A bundle's bytes from files that are open.
 * @param memory gives what a read fills and hands out
 */
export function sourceOf(volumes: VolumesToRead, memory: (bytes: number) => Uint8Array): ByteSource {
  const [{ name, size: volumeBytes }] = volumes;
  const size = volumes.reduce((sum, volume) => sum + volume.size, 0);
  return {
    name,
    size,
    async read(offset, length) {
      const bytes = memory(length);
      let done = 0;
      for (const part of partsOf(volumeBytes, offset, length)) {
        readAt(volumes[part.index] as FileToRead, bytes.subarray(done, (done += part.bytes)), part.at);
      }
      return bytes;
    },
    ...(volumes.length > 1 ? { filesOf: filesIn(volumes) } : {}),
  };
}

/** {@link ByteSource.filesOf} */
export const filesIn =
  (volumes: VolumesToRead) =>
  (offset: number, length: number): readonly string[] =>
    [...partsOf(volumes[0].size, offset, Math.max(length, 1))].map(
      ({ index }) => (volumes[index] ?? (volumes.at(-1) as FileToRead)).name,
    );
