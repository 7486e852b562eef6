import { readSync } from "node:fs";
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
