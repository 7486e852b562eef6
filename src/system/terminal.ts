import { write } from "node:fs";
import { createInterface } from "node:readline";
import { Writable } from "node:stream";
import { isatty } from "node:tty";
import { promisify } from "node:util";
import { isFull, systemCode, ZferryError } from "../errors.js";
import { printable, printableJson, type Environment, type ProgressReport } from "../report.js";
import { progressOn } from "./progress.js";

/** The environment of the running process: its streams, its clock, its terminal. */
export function processEnvironment(
  options: Pick<Environment, "json" | "quiet" | "version">,
  signal: AbortSignal,
): Environment {
  return {
    write: (data) => writeOutput(options.json && typeof data === "string" ? printableJson(data) : data),
    note: (line) => {
      // With --json nothing but an error is on standard error, so that it can be parsed.
      if (!options.json) process.stderr.write(`${printable(line)}\n`);
    },
    relay: (bytes) => void process.stderr.write(bytes),
    stdin: process.stdin,
    json: options.json,
    version: options.version,
    quiet: options.quiet,
    terminal: isatty(1),
    interactive: isatty(0) && isatty(2),
    now: () => new Date(),
    signal,
    moved: isMoved(),
    askPassphrase,
    askToGoOn,
    askToAgree,
    // With --json a line would be in the way of who parses the error.
    progress: options.quiet || (options.json && !isatty(2)) ? SILENT : standardError(),
  };
}

/** In the environment of a process that was started by ourselves in private mounts: the folder that it is to go to. */
export const MOVED = "ZFERRY_MOVED";

export const isMoved = (): boolean => process.env[MOVED] !== undefined;

/** Goes to the folder of who started us, and lives on when they hang up. */
export function settleMoved(): void {
  process.on("SIGHUP", () => undefined);
  process.chdir(process.env[MOVED] ?? "/");
}

/**
 * Resolves when the reader has taken the data. A reader that went away is an error: it did not get the whole.
 * @throws ZferryError `io-failed`, `no-space`
 */
export async function writeOutput(data: string | Uint8Array): Promise<void> {
  try {
    const rest = typeof data === "string" ? data : await writeBinary(data);
    if (rest.length > 0) await writeStream(rest);
  } catch (error) {
    const reason = systemCode(error) ?? String(error);
    throw new ZferryError(
      isFull(reason) ? "no-space" : "io-failed",
      `cannot write to standard output: ${reason === "EPIPE" ? "its reader has ended" : reason}`,
      { details: { reason }, cause: error },
    );
  }
}

const writeAsync = promisify(write);
let writing = false;

/** Whether a write to standard output waits for a reader. */
export const isOutputStuck = (): boolean => writing;

/**
 * Past node's stream, which is half as fast as this where a pipe is read slowly.
 * @returns what is left where another program has made standard output non-blocking
 */
async function writeBinary(data: Uint8Array): Promise<Uint8Array> {
  let rest = data;
  writing = true;
  try {
    while (rest.length > 0) rest = rest.subarray((await writeAsync(1, rest)).bytesWritten);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
  } finally {
    writing = false;
  }
  return rest;
}

const writeStream = (data: string | Uint8Array): Promise<void> =>
  new Promise((resolve, reject) => {
    // Not before: node makes a pipe non-blocking as soon as its stream is looked at.
    if (process.stdout.listenerCount("error") === 0) process.stdout.on("error", () => undefined);
    process.stdout.write(data, (error) => (error == null ? resolve() : reject(error)));
  });

// Without a listener a closed pipe would end the process before the error is told.
process.stderr.on("error", () => undefined);

/** Reads a line from the terminal without showing it. */
async function askPassphrase(
  prompt: string,
  otherwise = "give the passphrase with --password-file",
): Promise<string> {
  if (process.stdin.isTTY !== true) {
    throw new ZferryError("password-wrong", `${prompt}: there is no terminal to ask on`, {
      hint: otherwise,
    });
  }
  return readLine(`${prompt}: `, { shown: false });
}

async function askToGoOn(question: string): Promise<boolean> {
  if (process.stdin.isTTY !== true) return false;
  await readLine(`${printable(question)} `, { shown: true });
  return true;
}

async function askToAgree(question: string): Promise<boolean> {
  if (process.stdin.isTTY !== true) return false;
  return (await readLine(`${printable(question)} `, { shown: true })).trim() === "yes";
}

async function readLine(prompt: string, { shown }: { readonly shown: boolean }): Promise<string> {
  const muted = new Writable({ write: (_chunk, _encoding, done) => done() });
  const output = shown ? process.stderr : muted;
  const lines = createInterface({ input: process.stdin, output, terminal: true });
  // Not before: until then the terminal itself shows what is typed.
  process.stderr.write(prompt);
  try {
    return await new Promise<string>((resolve, reject) => {
      lines.once("line", resolve);
      lines.once("close", () => reject(new ZferryError("interrupted", "nothing was answered")));
      lines.once("SIGINT", () => reject(new ZferryError("interrupted", "interrupted")));
    });
  } finally {
    lines.close();
    if (!shown) process.stderr.write("\n");
  }
}

const SILENT: ProgressReport = { update: () => undefined, end: () => undefined };

const standardError = (): ProgressReport =>
  progressOn({
    terminal: isatty(2),
    // A serial console may say 0.
    columns: () => process.stderr.columns || 80,
    write: (text) => void process.stderr.write(text),
    now: () => performance.now(),
  });
