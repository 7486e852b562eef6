import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { ZferryError } from "../errors.js";
import { guarded } from "./files.js";
import type { ScratchFile } from "./scratch.js";

/** What a started program left: its exit status (null when a signal ended it), output and the end of its errors. */
export interface ProcessResult {
  readonly status: number | null;
  readonly signal: string | null;
  readonly stdout: Buffer;
  readonly stderr: string;
}

/** How a program ended that failed, in words. */
export const describeEnd = ({ status, signal }: Pick<ProcessResult, "status" | "signal">): string =>
  status === null ? `ended by ${signal}` : `exit status ${status}`;

export interface ProcessOptions {
  /** Given to standard input, which is otherwise empty. */
  readonly input?: Uint8Array | string | ScratchFile;
  /** Added to the environment; `undefined` removes a variable. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly cwd?: string;
  /** The most that standard output may hold, in bytes; more is an error. Default 64 MiB. */
  readonly maxOutputBytes?: number;
}

const KILLED_MS = 10_000;
const DEFAULT_MAX_OUTPUT_BYTES = 64 << 20;
const MAX_ERROR_BYTES = 16 << 10;
const PIPE_CLOSED = new Set(["EPIPE", "ABORT_ERR", "ERR_STREAM_PREMATURE_CLOSE"]);

/** Messages are parsed and quoted: they must not depend on the user's language. */
const MESSAGES = { LC_ALL: "C", LANGUAGE: undefined };

const commonOptions = (options: ProcessOptions) => ({
  env: { ...MESSAGES, ...options.env },
  ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  reject: false as const,
  encoding: "buffer" as const,
  stripFinalNewline: false,
});

function startFailure(
  file: string,
  error: { code?: string | undefined; shortMessage?: string | undefined },
): ZferryError | undefined {
  if (error.code === "ENOENT") {
    return new ZferryError("not-configured", `cannot run ${file}: there is no such program`, {
      hint: `install the package that has ${file}, or put its folder into PATH`,
      details: { program: file },
    });
  }
  if (error.code !== undefined && !PIPE_CLOSED.has(error.code)) {
    return new ZferryError("io-failed", `cannot run ${file}: ${error.shortMessage ?? error.code}`, {
      details: { program: file, reason: error.code },
    });
  }
  return undefined;
}

/** What execa tells of a process that ended, or never started. */
interface Ended {
  readonly code?: string | undefined;
  readonly shortMessage?: string | undefined;
  readonly exitCode?: number | undefined;
  readonly signal?: string | undefined;
  readonly stdout?: Uint8Array | undefined;
  readonly stderr?: Uint8Array | undefined;
}

function resultOf(file: string, ended: Ended): ProcessResult {
  // A pipe that one side closed early is an error to execa too; only a program that never ran has no such end.
  const failure =
    ended.exitCode === undefined && ended.signal === undefined ? startFailure(file, ended) : undefined;
  if (failure !== undefined) throw failure;
  return {
    status: ended.exitCode ?? null,
    signal: ended.signal ?? null,
    stdout: Buffer.from(ended.stdout ?? []),
    stderr: tail(ended.stderr ?? new Uint8Array()),
  };
}

const tail = (bytes: Uint8Array): string =>
  Buffer.from(bytes.subarray(Math.max(0, bytes.length - MAX_ERROR_BYTES)))
    .toString("utf8")
    .trim();

/**
 * Runs a program to its end, without a shell. The exit status is the caller's to judge. Not by execa: an install runs a hundred programs,
 * and on a slow machine its part of each takes longer than git's.
 * @throws ZferryError `not-configured` when there is no such program, `io-failed` when it cannot be started or
 * prints more than `maxOutputBytes`.
 */
export async function run(
  file: string,
  args: readonly string[],
  options: ProcessOptions = {},
): Promise<ProcessResult> {
  const { input = "", cwd, maxOutputBytes = DEFAULT_MAX_OUTPUT_BYTES } = options;
  const isInMemory = typeof input === "string" || input instanceof Uint8Array;
  const fd = isInMemory ? undefined : guarded(input.path, () => openSync(input.path, "r"));
  const stdin = fd ?? (isInMemory && input.length === 0 ? "ignore" : "pipe");
  let child: ChildProcess;
  try {
    const env = { ...process.env, ...MESSAGES, ...options.env };
    child = spawn(file, args, { env, stdio: [stdin, "pipe", "pipe"], ...(cwd === undefined ? {} : { cwd }) });
  } catch (error) {
    throw startFailure(file, error as NodeJS.ErrnoException) ?? error;
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
  const pieces: Buffer[] = [];
  let bytes = 0;
  let stderr: Uint8Array = Buffer.of();
  child.stdout?.on("data", (piece: Buffer) => {
    bytes += piece.length;
    if (bytes <= maxOutputBytes) return pieces.push(piece);
    child.kill("SIGKILL");
    // What it started has the pipe, too.
    return child.stdout?.destroy();
  });
  child.stderr?.on("data", (piece: Buffer) => {
    stderr = Buffer.concat([stderr, piece]).subarray(-MAX_ERROR_BYTES);
  });
  // A program need not read what it is given: its status tells.
  child.stdin?.on("error", () => undefined);
  if (isInMemory) child.stdin?.end(input);
  return new Promise((resolve, reject) => {
    child.once("error", (error: NodeJS.ErrnoException) => reject(startFailure(file, error) ?? error));
    child.once("close", (status, signal) => {
      if (bytes > maxOutputBytes) reject(tooMuch(file, maxOutputBytes));
      else resolve({ status, signal, stdout: Buffer.concat(pieces), stderr: tail(stderr) });
    });
  });
}

/**
 * Runs a program of the site's until it ends or its time is over, when it is ended with all that it started. What it leaves running is not
 * waited for, also if that has its output. That output is not read, but the end of its errors is.
 * @throws ZferryError as `run`
 */
export async function runFor(ms: number, file: string, args: readonly string[]): Promise<ProcessResult> {
  // A process group of its own, which can be ended as a whole.
  const child = spawn(file, args, {
    detached: true,
    env: { ...process.env, ...MESSAGES },
    stdio: ["ignore", "ignore", "pipe"],
  });
  let stderr: Uint8Array = Buffer.of();
  child.stderr.on("data", (piece: Buffer) => {
    stderr = Buffer.concat([stderr, piece]).subarray(-MAX_ERROR_BYTES);
  });
  const endAll = (signal: "SIGTERM" | "SIGKILL"): void => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, signal);
    } catch {
      // All of them have ended.
    }
  };
  let isOver = false;
  const timers = [
    setTimeout(() => {
      isOver = true;
      endAll("SIGTERM");
    }, ms),
    setTimeout(() => endAll("SIGKILL"), ms + TERMINATION_MS),
  ];
  try {
    const closed = once(child.stderr, "close");
    const [status, signal] = (await once(child, "exit")) as [number | null, string | null];
    if (isOver) endAll("SIGKILL");
    await Promise.race([closed, sleep(LAST_WORDS_MS, undefined, { ref: false })]);
    return { status, signal, stdout: Buffer.of(), stderr: tail(stderr) };
  } catch (error) {
    throw startFailure(file, error as NodeJS.ErrnoException) ?? error;
  } finally {
    timers.forEach(clearTimeout);
    child.stderr.destroy();
  }
}

/** Between asking a program to end, and ending it. */
const TERMINATION_MS = 5_000;
/** What a program that has ended wrote last may still be in the pipe. */
const LAST_WORDS_MS = 1_000;

/**
 * Runs a program to its end at the terminal, in the user's language, for the user to work with. What it prints goes to standard
 * error, so that standard output stays ours. A signal is not passed on: Ctrl-C reaches it by itself.
 * @throws ZferryError as `run`
 */
export async function runAtTerminal(
  file: string,
  args: readonly string[],
  { cwd, env }: { readonly cwd: string; readonly env: Readonly<Record<string, string | undefined>> },
): Promise<Pick<ProcessResult, "status" | "signal">> {
  const result = await execa(file, args, { cwd, env, reject: false, stdin: "inherit", stdout: 2, stderr: 2 });
  return resultOf(file, result);
}

/**
 * Runs a program to its end, which has our output and no input. It is asked to end when the signal is aborted.
 * @throws ZferryError as `run`
 */
export async function runVisibly(
  [file = "", ...args]: readonly string[],
  signal: AbortSignal,
): Promise<Pick<ProcessResult, "status" | "signal">> {
  const subprocess = execa(file, args, {
    ...{ reject: false, stdin: "ignore", stdout: "inherit", stderr: "inherit" },
    forceKillAfterDelay: false,
  });
  const end = (): void => void subprocess.kill("SIGTERM");
  signal.addEventListener("abort", end, { once: true });
  try {
    return resultOf(file, await subprocess);
  } finally {
    signal.removeEventListener("abort", end);
  }
}

const tooMuch = (file: string, limit: number): ZferryError =>
  new ZferryError("io-failed", `${file} printed more than ${limit} bytes`, {
    details: { program: file, limit },
  });

/** A running program whose output is read as it comes. */
export interface ProcessOutput {
  readonly stdout: AsyncIterable<Uint8Array>;
  /** Waits for the end; to be called after `stdout` was read to its end, or after `kill`. */
  finish(): Promise<ProcessResult>;
  kill(): void;
}

/** A running program that is fed by `write`, each call resolving when the program has room for more. */
export interface ProcessInput {
  /** Resolves to false once the program no longer reads: then `finish` tells why. */
  write(bytes: Uint8Array): Promise<boolean>;
  /** Closes the program's input and waits for its end. */
  finish(): Promise<ProcessResult>;
  /** Ends the program without the end of input, so that it cannot take what it has for the whole. */
  kill(): Promise<ProcessResult>;
}

/**
 * Starts a program to read its output. The output ends with an error, `io-failed`, when it is more than `maxOutputBytes`,
 * for which there is no default.
 */
export function startReading(
  file: string,
  args: readonly string[],
  options: ProcessOptions & { readonly input?: Uint8Array | string } = {},
): ProcessOutput {
  const subprocess = execa(file, args, {
    ...commonOptions(options),
    ...(options.input === undefined ? { stdin: "ignore" } : { input: options.input }),
    buffer: { stdout: false },
    maxBuffer: { stderr: 1 << 20 },
  });
  const { maxOutputBytes = Infinity } = options;
  return {
    stdout: atMost(maxOutputBytes, subprocess.stdout, () => tooMuch(file, maxOutputBytes)),
    finish: () => subprocess.then((result) => resultOf(file, result)),
    kill: () => subprocess.kill("SIGTERM"),
  };
}

async function* atMost(
  limit: number,
  pieces: AsyncIterable<Uint8Array>,
  failure: () => ZferryError,
): AsyncGenerator<Uint8Array> {
  let bytes = 0;
  for await (const piece of pieces) {
    bytes += piece.length;
    if (bytes > limit) throw failure();
    yield piece;
  }
}

/** Starts a program to write to its input. */
export function startWriting(
  file: string,
  args: readonly string[],
  options: ProcessOptions = {},
): ProcessInput {
  const subprocess = execa(file, args, {
    ...commonOptions(options),
    stdin: "pipe",
    stdout: "ignore",
    maxBuffer: { stderr: 1 << 20 },
  });
  const { stdin } = subprocess;
  let broken = false;
  stdin.on("error", () => (broken = true));
  return {
    write: (bytes) =>
      new Promise((resolve) => {
        if (broken || stdin.destroyed) return resolve(false);
        stdin.write(bytes, (error) => resolve(error == null));
      }),
    finish: () => {
      stdin.end();
      return subprocess.then((result) => resultOf(file, result));
    },
    kill: () => {
      // The signal must come before the pipe closes: a receive that sees the end of input may call it complete.
      subprocess.kill("SIGKILL");
      // What waits for a disk that does not answer cannot be killed.
      const stuck = sleep(KILLED_MS, undefined, { ref: false }).then(() => {
        for (const stream of [stdin, subprocess.stderr]) stream.destroy();
        subprocess.unref();
        return {
          status: null,
          signal: null,
          stdout: Buffer.of(),
          stderr: "it waits for the kernel and does not end",
        };
      });
      return Promise.race([subprocess.then((result) => resultOf(file, result)), stuck]);
    },
  };
}
