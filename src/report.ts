import type { Readable } from "node:stream";
import { EXIT_STATUS, isFull, systemCode, ZferryError } from "./errors.js";

/** What a command has of the world outside; `cli.ts` makes the real one. */
export interface Environment {
  /** Standard output, for data. Binary data waits until there is room. */
  write(data: string | Uint8Array): Promise<void>;
  /** Standard error, a line for people. */
  note(line: string): void;
  /** Standard error, as another process of ours wrote it. */
  relay(bytes: Uint8Array): void;
  readonly stdin: Readable;
  readonly json: boolean;
  /** Of the running zferry. */
  readonly version: string;
  /** Neither progress nor steps are told; warnings are. */
  readonly quiet: boolean;
  /** Whether standard output is a terminal. */
  readonly terminal: boolean;
  /** Whether standard input and standard error are one, for a program that a person works with. */
  readonly interactive: boolean;
  readonly now: () => Date;
  /** Aborted by Ctrl-C and by SIGTERM. */
  readonly signal: AbortSignal;
  /** Whether we were started by ourselves, in private mounts and a session of our own. */
  readonly moved: boolean;
  /** Asks for a passphrase on the terminal; `otherwise` is the hint where there is none. */
  askPassphrase(prompt: string, otherwise?: string): Promise<string>;
  /** Asks on the terminal, and waits for Enter; false where there is no terminal. */
  askToGoOn(question: string): Promise<boolean>;
  /** Asks on the terminal; false where there is none, and for every answer but `yes`. */
  askToAgree(question: string): Promise<boolean>;
  readonly progress: ProgressReport;
}

export interface ProgressOptions {
  /** Of what is done and the total; bytes if it is left out. */
  readonly unit?: "files";
  readonly files?: { readonly done: number; readonly total: number };
}

/** One running piece of work after another. */
export interface ProgressReport {
  /**
   * Bytes of the true work, or files; `total` undefined where it is not known.
   * @param options.files told beside bytes: how many of all are done
   */
  update(what: string, done: number, total: number | undefined, options?: ProgressOptions): void;
  /** Clears the line. */
  end(): void;
}

/**
 * Text that came from a bundle, a key or another program, safe to show in a terminal: control characters, and those
 * that change the direction of writing, as `\u{…}`.
 */
export const printable = (text: string): string =>
  text.replace(
    /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu,
    (character) => `\\u{${character.codePointAt(0)?.toString(16)}}`,
  );

/** The same of JSON, which stays the same value: JSON itself escapes only those below U+0020. */
export const printableJson = (json: string): string =>
  json.replace(/[\x7f-\x9f\p{Cf}\p{Zl}\p{Zp}]/gu, (character) =>
    [...Array(character.length).keys()]
      .map((index) => `\\u${character.charCodeAt(index).toString(16).padStart(4, "0")}`)
      .join(""),
  );

/** The same of text in many lines, which may have tabs. */
export const printableLines = (bytes: Uint8Array): string =>
  Buffer.from(bytes)
    .toString("utf8")
    .split("\n")
    .map((line) => line.split("\t").map(printable).join("\t"))
    .join("\n");

/** Rows of one length as columns, for people. */
export function formatTable(rows: readonly (readonly string[])[]): string {
  const shown = rows.map((row) => row.map(printable));
  const widths = (shown[0] ?? []).map((_, column) =>
    Math.max(...shown.map((row) => (row[column] ?? "").length)),
  );
  const lines = shown.map((row) => row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("  "));
  return lines.map((line) => `${line.trimEnd()}\n`).join("");
}

/** The first of what may be many, for a message: "a, b and 3 more". */
export function listFirst(items: readonly string[], separator = ", ", most = 20): string {
  const shown = items.slice(0, most).join(separator);
  return items.length > most ? `${shown} and ${items.length - most} more` : shown;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** 1536 → "1.5 KiB". */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  // What would be shown as 1024.0 is 1.0 of the next unit.
  while (Math.round(value * 10) >= 10_240 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${UNITS[unit]}`;
}

/** 100 seconds → "2 min". */
export function formatDuration(seconds: number): string {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  return seconds < 90 * 60 ? `${Math.ceil(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** Seconds since 1970 → "2026-11-22 23:18:33 UTC". */
export const formatTime = (seconds: number): string =>
  `${new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ")} UTC`;

/** Turns whatever was thrown into the one error class. */
export function asZferryError(error: unknown): ZferryError {
  if (error instanceof ZferryError) return error;
  const message = error instanceof Error ? error.message : String(error);
  const code = systemCode(error);
  if (code !== undefined && /^E[A-Z0-9]+$/.test(code)) {
    return new ZferryError(isFull(code) ? "no-space" : "io-failed", message, {
      cause: error,
      details: { reason: code },
    });
  }
  return new ZferryError("unexpected", message, { cause: error });
}

/** The error as `--json` prints it; `asShown` makes the hints what they are shown as. */
export function errorAsJson(error: ZferryError, asShown = (hint: string): string => hint): unknown {
  const fieldsOf = ({ code, message, hint, details }: ZferryError) => ({
    code,
    status: EXIT_STATUS[code],
    message,
    ...(hint === undefined ? {} : { hint: asShown(hint) }),
    details,
  });
  const also = error.also.length === 0 ? {} : { also: error.also.map(fieldsOf) };
  return { error: { ...fieldsOf(error), ...also } };
}

/** Stops at a place where stopping leaves nothing behind. */
export function throwIfInterrupted(signal: AbortSignal): void {
  if (signal.aborted) throw new ZferryError("interrupted", "interrupted");
}

/** Leaves work to itself when it is interrupted: what waits for a reader may wait for ever. */
export async function untilInterrupted<Result>(work: Promise<Result>, signal: AbortSignal): Promise<Result> {
  throwIfInterrupted(signal);
  let stop = (): void => undefined;
  const interrupted = new Promise<never>((_resolve, reject) => {
    stop = () => reject(new ZferryError("interrupted", "interrupted"));
    signal.addEventListener("abort", stop);
  });
  try {
    return await Promise.race([work, interrupted]);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}
