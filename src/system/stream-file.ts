import { createReadStream, statSync } from "node:fs";
import { open, type FileHandle } from "node:fs/promises";
import { addAbortSignal, type Readable } from "node:stream";
import { mapSystemError } from "./files.js";

const PIECE_BYTES = 1 << 20;

/** Length of a recorded stream in bytes; undefined for what is no regular file. */
export function streamFileBytes(path: string): number | undefined {
  const stat = statSync(path, { throwIfNoEntry: false });
  return stat?.isFile() === true ? stat.size : undefined;
}

/**
 * The pieces of a recorded stream, each valid until the next one is asked for. The file is opened when the first one is
 * asked for.
 * @throws ZferryError `io-failed`; AbortError once `signal` is aborted
 */
export async function* readStreamFile(path: string, signal: AbortSignal): AsyncGenerator<Uint8Array, void> {
  try {
    // What is no regular file may let us wait for ever.
    yield* streamFileBytes(path) === undefined
      ? createReadStream(path, { signal, highWaterMark: PIECE_BYTES })
      : readRegularFile(path, signal);
  } catch (error) {
    throw mapSystemError(error, path);
  }
}

/** Reads a piece while the one before is used, in memory that is used again and again. */
async function* readRegularFile(path: string, signal: AbortSignal): AsyncGenerator<Uint8Array, void> {
  const file = await open(path);
  let [next, current] = [Buffer.allocUnsafeSlow(PIECE_BYTES), Buffer.allocUnsafeSlow(PIECE_BYTES)];
  let reading: ReturnType<FileHandle["read"]> | undefined;
  try {
    reading = file.read(next, 0, PIECE_BYTES);
    for (;;) {
      const { bytesRead } = await reading;
      if (bytesRead === 0) return;
      signal.throwIfAborted();
      [next, current] = [current, next];
      reading = file.read(next, 0, PIECE_BYTES);
      reading.catch(() => undefined);
      yield current.subarray(0, bytesRead);
    }
  } finally {
    await reading?.catch(() => undefined);
    await file.close();
  }
}

/**
 * What comes from elsewhere at its own pace: an abort does not wait for the next piece.
 * @throws AbortError once `signal` is aborted
 */
export async function* untilAborted(input: Readable, signal: AbortSignal): AsyncGenerator<Uint8Array, void> {
  yield* addAbortSignal(signal, input);
}
