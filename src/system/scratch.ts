import { closeSync, createReadStream, openSync, rmSync, writeSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { mapSystemError } from "./files.js";

/** A file in a scratch folder, which nobody else writes: for what would take too much memory. */
export interface ScratchFile {
  readonly path: string;
  /** How many it has. */
  readonly bytes: number;
}

const PIECE_BYTES = 256 << 10;

/** Runs `use` with a folder that only its owner may look into, in `TMPDIR`, and removes it with everything in it; no folder can be made there: `io-failed`, `no-space`. */
export async function withScratch<Result>(use: (folder: string) => Promise<Result>): Promise<Result> {
  const folder = await mkdtemp(join(tmpdir(), "zferry-")).catch((error: unknown) => {
    throw mapSystemError(error, `${tmpdir()} (TMPDIR)`);
  });
  try {
    return await use(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/**
 * Writes a new file; none is left after a failure. A file that an earlier run left there is replaced.
 * @throws ZferryError `no-space`, `io-failed`; whatever `pieces` throws
 */
export async function writeScratchFile(
  path: string,
  pieces: AsyncIterable<Uint8Array>,
): Promise<ScratchFile> {
  let bytes = 0;
  let fd: number | undefined;
  try {
    rmSync(path, { force: true });
    fd = openSync(path, "wx", 0o600);
    for await (const piece of pieces) {
      for (let done = 0; done < piece.length;) done += writeSync(fd, piece, done);
      bytes += piece.length;
    }
    return { path, bytes };
  } catch (error) {
    rmSync(path, { force: true });
    throw mapSystemError(error, path);
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

/** What a file has, from its beginning; each piece but the last has the same length. */
export const readScratchFile = ({ path }: ScratchFile): AsyncIterable<Uint8Array> =>
  createReadStream(path, { highWaterMark: PIECE_BYTES });

/** Keeps what it is given in a file, which is gone once it was read again. */
export const keepAt =
  (path: string) =>
  async (pieces: AsyncIterable<Uint8Array>): Promise<AsyncIterable<Uint8Array>> =>
    readOnce(await writeScratchFile(path, pieces));

async function* readOnce(file: ScratchFile): AsyncGenerator<Uint8Array> {
  try {
    yield* readScratchFile(file);
  } finally {
    rmSync(file.path, { force: true });
  }
}
