import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { VerifiedBundle, type Trust } from "../bundle/reader.js";
import { parseVolumeName } from "../bundle/volumes.js";
import { ZferryError } from "../errors.js";
import { throwIfInterrupted, type Environment } from "../report.js";
import { openBundleFile } from "../system/bundle-file.js";
import { mapSystemError } from "../system/files.js";
import { linkOf, type Link } from "./chain.js";

/** A bundle that lies in a folder. Enough trusted keys signed it; its contents were not read yet. */
export interface FileLink extends Link {
  readonly file: string;
  /** Seconds since 1970, as its manifest has them. */
  readonly created: number;
  readonly expires: number | undefined;
  /** Of its streams. */
  readonly rawBytes: number;
  /** Of the change of the site's keys that it brings; 0 for none. */
  readonly keysCounter: number;
}

/** A file that looks like a bundle and counts for nothing, and why, in words. */
export interface LeftFile {
  readonly file: string;
  readonly reason: string;
}

export interface BundleFolder {
  /** Sorted by the names of the files. */
  readonly links: readonly FileLink[];
  readonly left: readonly LeftFile[];
}

const MAX_FILES = 10_000;

/** Whether a file of a folder is a bundle, or the first volume of one. */
function isBundleName(name: string): boolean {
  const volume = parseVolumeName(name);
  const bundle = volume?.number === 1 ? volume.bundle : name;
  return bundle.endsWith(".bundle") && !name.startsWith(".");
}

/**
 * Reads the heads of the bundles that lie in a folder, itself and not those below it.
 * @param trust decides what counts; the rest is told in `left`
 * @param search folders where other volumes may be
 * @throws ZferryError `io-failed` for a folder that cannot be read, `usage` for one with too many bundles, `interrupted`
 */
export async function readBundleFolder(
  path: string,
  trust: Trust,
  search: readonly string[],
  { signal, progress }: Pick<Environment, "signal" | "progress">,
): Promise<BundleFolder> {
  const names = await readdir(path).catch((error: unknown) => {
    throw mapSystemError(error, path);
  });
  const bundles = names.filter(isBundleName).sort();
  if (bundles.length > MAX_FILES) {
    throw new ZferryError("usage", `${path}: has ${bundles.length} bundles, the limit is ${MAX_FILES}`, {
      hint: "put those that are meant into a folder of their own",
    });
  }
  const links: FileLink[] = [];
  const left: LeftFile[] = [];
  try {
    for (const [index, name] of bundles.entries()) {
      throwIfInterrupted(signal);
      progress.update(`looking at the bundles in ${path}`, index, bundles.length, { unit: "files" });
      const file = join(path, name);
      try {
        links.push(await readLink(file, trust, search));
      } catch (error) {
        // What lies beside is somebody else's, or damaged, and no reason to leave the site as it is.
        if (!(error instanceof ZferryError) || error.code === "interrupted") throw error;
        left.push({ file, reason: error.message });
      }
    }
  } finally {
    progress.end();
  }
  return { links, left };
}

async function readLink(path: string, trust: Trust, search: readonly string[]): Promise<FileLink> {
  const file = await openBundleFile(path, 0, { folders: search });
  try {
    const { manifest, identity, size } = await VerifiedBundle.verify(file, trust);
    const rawBytes = manifest.streams.reduce((sum, stream) => sum + stream.rawBytes, 0);
    const { created, expires, keys } = manifest;
    const keysCounter = keys?.counter ?? 0;
    return { ...linkOf(manifest, identity, size), file: path, created, expires, rawBytes, keysCounter };
  } finally {
    await file.close();
  }
}
