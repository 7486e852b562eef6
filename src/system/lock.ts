import { spawnSync } from "node:child_process";
import { constants, ftruncateSync, readSync, writeSync } from "node:fs";
import { open } from "node:fs/promises";
import { ZferryError } from "../errors.js";
import { mapSystemError } from "./files.js";

const { O_APPEND, O_CREAT, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY } = constants;

/** What is said where another process has the lock, after so many seconds of waiting for it, or at once. */
interface Busy {
  readonly message: string;
  readonly hint: string;
  readonly waitSeconds?: number;
}

/**
 * Takes an exclusive lock on a file, which it makes where there is none. The kernel takes the lock back when this process
 * ends, however it ends.
 * @throws ZferryError `site-busy` with what `busy` says
 */
export async function acquireLock(path: string, busy: Busy): Promise<() => Promise<void>> {
  return (await lockFile(path, O_WRONLY, () => busy)).release;
}

/**
 * The same for a site's state, with who has it written into the file: formats/state.md, lock.
 * @throws ZferryError `site-busy`, which names the process that has it
 */
export async function acquireSiteLock(path: string): Promise<() => Promise<void>> {
  const { fd, release } = await lockFile(path, O_RDWR, (holder) => ({
    message: `${path} is locked by ${readHolder(holder) ?? "another command that changes this site"}`,
    hint: "wait for it to end; bundle status shows what is under way",
  }));
  try {
    ftruncateSync(fd);
    const verb = process.argv.slice(2).find((word) => /^[a-z]+$/.test(word)) ?? "";
    writeSync(fd, `${process.pid} bundle ${verb}\n`);
  } catch {
    // On a full disk the lock is one all the same.
  }
  return release;
}

/** @param busyOf given the open file before it is locked */
async function lockFile(path: string, access: number, busyOf: (fd: number) => Busy) {
  // Without O_NONBLOCK the opening of a FIFO would wait for ever.
  const flags = access | O_CREAT | O_APPEND | O_NOFOLLOW | O_NONBLOCK;
  const file = await open(path, flags, 0o600).catch((error: unknown) => {
    throw mapSystemError(error, path);
  });
  try {
    if (!(await file.stat()).isFile()) throw new ZferryError("io-failed", `${path} is no regular file`);
    lockDescriptor(file.fd, path, busyOf(file.fd));
  } catch (error) {
    await file.close();
    throw error;
  }
  return { fd: file.fd, release: () => file.close() };
}

/** Who has a site's lock, if that is written in it whole. */
function readHolder(fd: number): string | undefined {
  const bytes = Buffer.alloc(100);
  try {
    readSync(fd, bytes, 0, bytes.length, 0);
  } catch {
    return undefined;
  }
  const line = bytes.toString("latin1", 0, bytes.indexOf(0));
  const [, pid, command] = /^([1-9][0-9]{0,9}) (bundle [a-z]{1,32})\n$/.exec(line) ?? [];
  return pid === undefined ? undefined : `${command} (process ${pid})`;
}

/**
 * Takes an exclusive lock on a folder itself, so that there is no file for it.
 * @throws ZferryError `site-busy`, `io-failed` where there is no such folder
 */
export async function lockFolder(path: string): Promise<() => Promise<void>> {
  const folder = await open(path, O_RDONLY | O_DIRECTORY).catch((error: unknown) => {
    throw mapSystemError(error, path);
  });
  try {
    lockDescriptor(folder.fd, path, {
      message: `${path} is locked: another process is changing it`,
      hint: "wait for it to end, and run the same command again",
    });
  } catch (error) {
    await folder.close();
    throw error;
  }
  return () => folder.close();
}

/**
 * Takes an exclusive lock on an open file, until it is closed. Node has no flock; flock(1) of util-linux locks the open
 * file description that it inherits, and that stays with us.
 * @throws ZferryError `site-busy` with what `busy` says
 */
export function lockDescriptor(fd: number, path: string, busy: Busy): void {
  const wait = busy.waitSeconds === undefined ? ["--nonblock"] : ["--timeout", String(busy.waitSeconds)];
  const { status, error, stderr } = spawnSync("flock", ["--exclusive", ...wait, "3"], {
    stdio: ["ignore", "ignore", "pipe", fd],
    encoding: "utf8",
  });
  if (status === 0) return;
  if (status === 1 && stderr === "") {
    throw new ZferryError("site-busy", busy.message, { details: { file: path }, hint: busy.hint });
  }
  throw new ZferryError("not-configured", `cannot lock ${path}: ${error?.message ?? stderr}`, {
    hint: "install util-linux, which has flock",
  });
}
