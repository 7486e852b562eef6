import { createInterface } from "node:readline";
import { Writable } from "node:stream";
import { ZferryError } from "../errors.js";
import { formatBytes, printable, type Environment, type ProgressReport } from "../report.js";

/** The environment of the running process: its streams, its clock, its terminal. */
export function processEnvironment(
  options: { readonly json: boolean; readonly quiet: boolean },
  signal: AbortSignal,
): Environment {
  return {
    write: writeOutput,
    note: (line) => {
      // With --json nothing but an error is on standard error, so that it can be parsed.
      if (!options.json) process.stderr.write(`${printable(line)}\n`);
    },
    stdin: process.stdin,
    json: options.json,
    quiet: options.quiet,
    terminal: process.stdout.isTTY === true,
    now: () => new Date(),
    signal,
    askPassphrase,
    progress: options.quiet || process.stderr.isTTY !== true ? SILENT : terminalProgress(),
  };
}

/** Resolves when the reader has taken the data. A reader that went away is an error: it did not get the whole. */
export function writeOutput(data: string | Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(data, (error) => {
      if (error == null) return resolve();
      const reason = (error as NodeJS.ErrnoException).code ?? error.message;
      reject(
        new ZferryError(
          reason === "ENOSPC" ? "no-space" : "io-failed",
          `cannot write to standard output: ${reason === "EPIPE" ? "its reader has ended" : reason}`,
          { details: { reason }, cause: error },
        ),
      );
    });
  });
}

// Without a listener a closed pipe would end the process before the error is told.
for (const stream of [process.stdout, process.stderr]) stream.on("error", () => undefined);

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
  const muted = new Writable({ write: (_chunk, _encoding, done) => done() });
  const lines = createInterface({ input: process.stdin, output: muted, terminal: true });
  // Not before: until then the terminal itself shows what is typed.
  process.stderr.write(`${prompt}: `);
  try {
    return await new Promise<string>((resolve, reject) => {
      lines.once("line", resolve);
      lines.once("close", () => reject(new ZferryError("interrupted", "no passphrase was given")));
      lines.once("SIGINT", () => reject(new ZferryError("interrupted", "interrupted")));
    });
  } finally {
    lines.close();
    process.stderr.write("\n");
  }
}

const SILENT: ProgressReport = { update: () => undefined, end: () => undefined };
const REDRAW_MS = 200;

function terminalProgress(): ProgressReport {
  let started = 0;
  let drawn = 0;
  let current = "";
  return {
    update(what, done, total) {
      const now = performance.now();
      if (what !== current) {
        current = what;
        started = now;
      }
      if (now - drawn < REDRAW_MS) return;
      drawn = now;
      const rate = done / Math.max(0.001, (now - started) / 1000);
      const amount =
        total === undefined
          ? formatBytes(done)
          : `${formatBytes(done)} of ${formatBytes(total)}, ${timeLeft((total - done) / Math.max(1, rate))} left`;
      process.stderr.write(`\r\u001b[K${what}: ${amount}, ${formatBytes(rate)}/s`);
    },
    end() {
      if (drawn !== 0) process.stderr.write("\r\u001b[K");
      drawn = 0;
      current = "";
    },
  };
}

const timeLeft = (seconds: number): string =>
  seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`;
