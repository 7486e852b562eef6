import { constants } from "node:fs";
import { lstat, open, readdir, rm, stat, type FileHandle } from "node:fs/promises";
import { dirname, join } from "node:path";
import { systemCode, ZferryError, type ErrorCode } from "../errors.js";
import { rawBytes, rawPath, showPath } from "../raw-path.js";
import {
  parsePublicKey,
  parseSecretKey,
  PUBLIC_KEY_FILE_MAX,
  SECRET_KEY_FILE_MAX,
  SIGNATURE_FILE_MAX,
  type PublicKey,
  type SecretKey,
} from "../trust/minisign.js";
import { mapSystemError, syncPath } from "./files.js";

const MAX_PASSPHRASE_FILE_BYTES = 64 << 10;

/**
 * Reads a small file whole.
 * @param what it is, for messages
 * @param limit in bytes
 * @param tooLong the code of a longer one
 * @throws ZferryError `io-failed` for one that is missing or no regular file, `not-permitted`
 */
export async function readSmallFile(
  path: string | Buffer,
  what: string,
  limit: number,
  tooLong: ErrorCode = "io-failed",
): Promise<Buffer> {
  const shown = typeof path === "string" ? path : showPath(rawPath(path));
  try {
    const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const stat = await file.stat();
      if (!stat.isFile()) throw new Error("is not a regular file");
      if (stat.size > limit) {
        throw new ZferryError(tooLong, `${what} ${shown}: has ${stat.size} bytes, the limit is ${limit}`, {
          details: { file: shown },
        });
      }
      return await file.readFile();
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof ZferryError) throw error;
    const { code, message } = error as NodeJS.ErrnoException;
    const known: Record<string, string> = { ENOENT: "there is no such file", EACCES: "permission denied" };
    throw new ZferryError(
      code === "EACCES" ? "not-permitted" : "io-failed",
      `${what} ${shown}: ${known[code ?? ""] ?? message}`,
      { details: { file: shown }, cause: error },
    );
  }
}

/** Whether reading a small file failed because there is none. */
export const isMissing = (error: unknown): boolean =>
  error instanceof ZferryError && systemCode(error.cause) === "ENOENT";

/** A passphrase is the first line of its file. */
export async function readPassphraseFile(path: string): Promise<string> {
  const text = (await readSmallFile(path, "password file", MAX_PASSPHRASE_FILE_BYTES)).toString("utf8");
  return text.split(/\r?\n/, 1)[0] ?? "";
}

export async function readSecretKey(
  path: string,
  passwordFile: string | undefined,
  ask: (prompt: string) => Promise<string>,
): Promise<SecretKey> {
  const bytes = await readSmallFile(path, "secret key", SECRET_KEY_FILE_MAX, "key-malformed");
  const passphrase = (): Promise<string> =>
    passwordFile === undefined ? ask(`passphrase for ${path}`) : readPassphraseFile(passwordFile);
  return parseSecretKey(bytes, path, passphrase);
}

export const readPublicKey = async (path: string): Promise<PublicKey> => readPublicKeyAt(path, path);

const readPublicKeyAt = async (path: string | Buffer, shown: string): Promise<PublicKey> =>
  parsePublicKey(await readSmallFile(path, "public key", PUBLIC_KEY_FILE_MAX, "key-malformed"), shown);

/** A file that minisign wrote beside what it signed. */
export const readSignatureFile = (path: string): Promise<Buffer> =>
  readSmallFile(path, "signature", SIGNATURE_FILE_MAX, "signature-malformed");

/** All `*.pub` files of a folder, as a site trusts them; none where there is no folder. */
export async function readKeyFolder(path: string): Promise<PublicKey[]> {
  const names = await readdir(path, "buffer").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw mapSystemError(error, path);
  });
  const keys = names.map(rawPath).filter((name) => name.endsWith(".pub") && !name.startsWith("."));
  return Promise.all(
    keys.sort().map((name) => {
      // A name need not be UTF-8.
      const file = Buffer.concat([Buffer.from(join(path, "/")), rawBytes(name)]);
      return readPublicKeyAt(file, showPath(rawPath(file)));
    }),
  );
}

/**
 * Refuses files that `writeNewFiles` would refuse, before the work of making what goes into them.
 * @throws ZferryError `output-exists`, `io-failed` for a folder that is not there
 */
export async function requireNewFiles(paths: readonly string[]): Promise<void> {
  for (const path of paths) {
    const folder = await stat(dirname(path)).catch(() => undefined);
    if (folder?.isDirectory() !== true) {
      throw new ZferryError("io-failed", `cannot write ${path}: there is no folder ${dirname(path)}`, {
        details: { path },
      });
    }
    if ((await lstat(path).catch(() => undefined)) !== undefined) throw existing(path);
  }
}

const existing = (path: string): ZferryError =>
  new ZferryError("output-exists", `${path}: there is such a file already, and keys are never overwritten`, {
    details: { file: path },
  });

/** Writes files that must not exist yet, all or none of them, and flushes them to the disk. */
export async function writeNewFiles(
  files: readonly { readonly path: string; readonly bytes: Uint8Array; readonly mode: number }[],
): Promise<void> {
  const written: string[] = [];
  try {
    for (const { path, bytes, mode } of files) written.push(await writeNewFile(path, bytes, mode));
    for (const folder of new Set(files.map(({ path }) => dirname(path)))) syncPath(folder);
  } catch (error) {
    await Promise.all(written.map((path) => rm(path, { force: true })));
    throw error;
  }
}

async function writeNewFile(path: string, bytes: Uint8Array, mode: number): Promise<string> {
  let file: FileHandle;
  try {
    file = await open(path, "wx", mode);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw mapSystemError(error, path);
    throw existing(path);
  }
  try {
    await file.writeFile(bytes);
    await file.sync();
    return path;
  } catch (error) {
    await rm(path, { force: true });
    throw mapSystemError(error, path);
  } finally {
    await file.close();
  }
}
