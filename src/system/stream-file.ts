import { createReadStream } from "node:fs";
import { addAbortSignal, type Readable } from "node:stream";
import { mapSystemError } from "./files.js";

/**
 * The pieces of a recorded stream. The file is opened when the first one is asked for.
 * @throws ZferryError `io-failed`; AbortError once `signal` is aborted
 */
export async function* readStreamFile(path: string, signal: AbortSignal): AsyncGenerator<Uint8Array, void> {
  try {
    yield* createReadStream(path, { signal, highWaterMark: 1 << 20 });
  } catch (error) {
    throw mapSystemError(error, path);
  }
}

/**
 * What comes from elsewhere at its own pace: an abort does not wait for the next piece.
 * @throws AbortError once `signal` is aborted
 */
export async function* untilAborted(input: Readable, signal: AbortSignal): AsyncGenerator<Uint8Array, void> {
  yield* addAbortSignal(signal, input);
}
