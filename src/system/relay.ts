import type { ChildProcess } from "node:child_process";
import { closeSync, constants, fchmodSync, openSync, readSync, rmSync } from "node:fs";
import { randomBytes } from "node:crypto";
import { dirname, join } from "node:path";
import { guarded } from "./files.js";

const { O_APPEND, O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDWR, O_TRUNC } = constants;
const READ_EVERY_MS = 200;

/** Where a process writes that must not wait for, nor end with, who reads what it says. */
export interface Outputs {
  /** A file without a name. */
  readonly output: number;
  /** The log. */
  readonly errors: number;
  close(): void;
}

/**
 * Opens a log, which begins anew, and beside it a file without a name.
 * @throws ZferryError `io-failed`, `no-space`
 */
export function openOutputs(log: string): Outputs {
  return guarded(log, () => {
    // Without O_NONBLOCK the opening of a FIFO would wait for ever.
    const errors = openSync(log, O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_NOFOLLOW | O_NONBLOCK, 0o600);
    fchmodSync(errors, 0o600);
    const temporary = join(dirname(log), `.output.${randomBytes(6).toString("hex")}`);
    const output = openSync(temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_APPEND, 0o600);
    rmSync(temporary);
    return {
      output,
      errors,
      close: () => [output, errors].forEach((file) => closeSync(file)),
    };
  });
}

/** Begins a line of the log that is for who reads it later: who follows is told the same by the output. */
export const RESULT = "result: ";

/** How a process that was followed ended; undefined if we were hung up on before. */
export type Ended = { readonly status: number } | { readonly signal: string } | undefined;

/**
 * Hands on what a process writes to its log, line by line, and to it the signals that are meant for it, until it ends, or until our
 * terminal hangs up. What it wrote to its output comes last.
 */
export async function followProcess(
  child: ChildProcess,
  { output, errors }: Outputs,
  to: { errors(bytes: Uint8Array): void; output(bytes: Uint8Array): Promise<void> },
): Promise<Ended> {
  let read = 0;
  let begun = Buffer.of();
  const tell = (lines: Buffer): void => {
    const text = lines.toString("latin1");
    const told = text.split(/(?<=\n)/).filter((line) => !line.startsWith(RESULT));
    if (told.join("") !== "") to.errors(Buffer.from(told.join(""), "latin1"));
  };
  const relay = (): void => {
    for (const bytes of piecesOf(errors, read)) {
      read += bytes.length;
      const all = Buffer.concat([begun, bytes]);
      const end = all.lastIndexOf("\n") + 1;
      tell(all.subarray(0, end));
      begun = all.subarray(end);
    }
  };
  const pass = (signal: NodeJS.Signals): void => void child.kill(signal);
  let hangUp = (): void => undefined;
  const timer = setInterval(relay, READ_EVERY_MS);
  process.on("SIGINT", pass);
  process.on("SIGTERM", pass);
  try {
    const ended = await new Promise<Ended>((resolve, reject) => {
      hangUp = () => resolve(undefined);
      process.once("SIGHUP", hangUp);
      child.once("error", reject);
      child.once("exit", (status, signal) => resolve(signal === null ? { status: status ?? 0 } : { signal }));
    });
    relay();
    tell(begun);
    if (ended !== undefined) for (const bytes of piecesOf(output, 0)) await to.output(bytes);
    return ended;
  } finally {
    clearInterval(timer);
    process.off("SIGINT", pass);
    process.off("SIGTERM", pass);
    process.off("SIGHUP", hangUp);
  }
}

/** What a file has from a position on. */
function* piecesOf(file: number, from: number): Generator<Uint8Array> {
  for (let at = from; ;) {
    const buffer = Buffer.alloc(1 << 16);
    const count = readSync(file, buffer, 0, buffer.length, at);
    if (count === 0) return;
    at += count;
    yield buffer.subarray(0, count);
  }
}
