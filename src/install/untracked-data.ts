import { lstatSync, readdirSync } from "node:fs";
import type { SiteConfig } from "../config.js";
import { ZferryError, systemCode } from "../errors.js";
import { ancestors, rawBytes, rawPath, showPath, type RawPath } from "../raw-path.js";
import { formatBytes, formatTime, listFirst } from "../report.js";
import { findPattern, parsePattern, type PathPattern } from "../root/path-pattern.js";
import { mapSystemError } from "../system/files.js";
import { trackedPaths, withRootToPlan } from "./site-root.js";
import { asidePattern } from "./state-dataset.js";
import type { NewEnvironment } from "./state.js";

// formats/environments.md, What must not turn back

/**
 * What may turn back with `/`, on every site: what is made anew, belongs to the machine, or to the programs of the same
 * environment.
 */
export const ACCEPTED: readonly string[] = [
  ...["/.git/", "/tmp/", "/run/", "/dev/", "/proc/", "/sys/", "/mnt/", "/media/", "lost+found/", ".zfs/"],
  ...["/etc/", "/boot/", "/efi/", "/usr/", "/bin/", "/sbin/", "/lib*/"],
  ...["/var/tmp/", "/var/cache/", "/var/run/", "/var/lock/", "/var/db/pkg/", "/var/db/repos/"],
  ...["/var/lib/apt/", "/var/lib/dpkg/", "/var/lib/pacman/", "/var/lib/portage/", "/var/lib/rpm/"],
  ...["/var/lib/dbus/", "/var/lib/misc/", "/var/lib/systemd/", "/var/lib/urandom/"],
];

/** Files that git does not track, in a folder in which it tracks none, or (`isLoose`) beside some that it does. */
export interface UntrackedData {
  readonly folder: RawPath | "";
  readonly isLoose: boolean;
  readonly files: number;
  readonly bytes: number;
  /** Seconds since 1970: when the content of one of them was changed last. */
  readonly newest: number;
  /** Whether there is more that was not counted. */
  readonly isPart: boolean;
}

type Sum = Pick<UntrackedData, "files" | "bytes" | "newest" | "isPart">;
const NONE: Sum = { files: 0, bytes: 0, newest: 0, isPart: false };

const add = (one: Sum, other: Sum): Sum => ({
  files: one.files + other.files,
  bytes: one.bytes + other.bytes,
  newest: Math.max(one.newest, other.newest),
  isPart: one.isPart || other.isPart,
});

/** What a folder has. */
interface Seen {
  readonly sum: Sum;
  /** The folder itself, unless something below it is tracked or accepted. */
  readonly parts: readonly UntrackedData[];
  readonly isWhole: boolean;
}

/** More files and folders are not looked at one by one. */
const MAX_ENTRIES = 500_000;

/**
 * Regular files of a file system that git does not track, grouped to the highest folders that have nothing else. Their content is
 * not read; what changes meanwhile may be counted or not.
 * @param tracked the paths that git tracks
 * @param accepted patterns of what does not count
 * @throws ZferryError `io-failed`
 */
export function findUntrackedData(
  rootDir: string,
  tracked: readonly RawPath[],
  accepted: readonly PathPattern[],
  limit = MAX_ENTRIES,
): readonly UntrackedData[] {
  const folders = new Set<RawPath | "">([""]);
  for (const path of tracked) for (const folder of ancestors(path)) folders.add(folder);
  const root = Buffer.from(`${rootDir}/`);
  const { dev: device } = lstatSync(root);
  return lookInto("", { root, device, files: new Set(tracked), folders, accepted, left: limit }).parts;
}

interface Walk {
  readonly root: Buffer;
  readonly device: number;
  /** That git tracks, and the folders that they lie in. */
  readonly files: ReadonlySet<RawPath>;
  readonly folders: ReadonlySet<RawPath | "">;
  readonly accepted: readonly PathPattern[];
  /** How many entries may still be looked at. */
  left: number;
}

function lookInto(folder: RawPath | "", walk: Walk): Seen {
  const isTracked = walk.folders.has(folder);
  let isWhole = !isTracked;
  let [loose, below] = [NONE, NONE];
  const parts: UntrackedData[] = [];
  for (const { path, isDirectory } of list(folder, walk)) {
    if (walk.left <= 0 && !walk.folders.has(path)) {
      loose = add(loose, { ...NONE, files: 1, isPart: true });
      if (!isTracked) break;
      continue;
    }
    walk.left -= 1;
    if (isAccepted(path, isDirectory, walk)) {
      isWhole &&= !isDirectory;
      continue;
    }
    const stat = whileThere(path, walk, (place) => lstatSync(place));
    if (stat === undefined || stat.dev !== walk.device) continue;
    if (!isDirectory) {
      const newest = Math.floor(stat.mtimeMs / 1000);
      loose = add(loose, { files: 1, bytes: stat.size, newest, isPart: false });
      continue;
    }
    const seen = lookInto(path, walk);
    isWhole &&= seen.isWhole;
    below = add(below, seen.sum);
    parts.push(...seen.parts);
  }
  const sum = add(below, loose);
  const own = isWhole ? sum : loose;
  const self = own.files === 0 ? [] : [{ folder, isLoose: !isWhole, ...own }];
  return { sum, isWhole, parts: isWhole ? self : [...self, ...parts] };
}

/** The folders, and the files that git does not track, in a folder. */
function list(folder: RawPath | "", walk: Walk): { path: RawPath; isDirectory: boolean }[] {
  const entries = whileThere(folder, walk, (place) =>
    readdirSync(place, { withFileTypes: true, encoding: "buffer" }),
  );
  return (entries ?? []).flatMap((entry) => {
    const name = rawPath(entry.name);
    const path = (folder === "" ? name : `${folder}/${name}`) as RawPath;
    const isDirectory = entry.isDirectory();
    return isDirectory || (entry.isFile() && !walk.files.has(path)) ? [{ path, isDirectory }] : [];
  });
}

/** A pattern for folders means what is in one. */
const isAccepted = (path: RawPath, isDirectory: boolean, { accepted }: Walk): boolean =>
  findPattern(accepted, isDirectory ? (`${path}/.` as RawPath) : path) !== undefined;

/** Undefined for what is gone meanwhile. */
function whileThere<T>(path: RawPath | "", { root }: Walk, look: (place: Buffer) => T): T | undefined {
  try {
    return look(Buffer.concat([root, rawBytes(path as RawPath)]));
  } catch (error) {
    if (["ENOENT", "ENOTDIR"].includes(systemCode(error) ?? "")) return undefined;
    throw mapSystemError(error, `/${showPath(path as RawPath)}`);
  }
}

/**
 * Refuses to clone what must not turn back: when another environment boots, its files are as they were when it was made.
 * @throws ZferryError `root-has-data`, with all that is found
 */
export async function requireDataApart(environment: NewEnvironment, site: SiteConfig): Promise<void> {
  const patterns = [...ACCEPTED, asidePattern(site), ...site["boot-environment"].accept].map(parsePattern);
  const found = await withRootToPlan(environment, site, async ({ git, rootDir }) =>
    findUntrackedData(rootDir, await trackedPaths(git), patterns),
  );
  if (found.length === 0) return;
  const paths = found.map(({ folder }) => `/${showPath(folder as RawPath)}`);
  throw new ZferryError(
    "root-has-data",
    `files that git does not track lie on ${environment.origin}, and would turn back with it: ${listFirst(found.map(describe), "; ")}`,
    {
      details: { dataset: environment.origin, paths, found: found.map(describe) },
      hint: `give each a dataset of its own, outside ${environment.origin}, that all environments mount; what may turn back is named in accept under [boot-environment]`,
    },
  );
}

function describe({ folder, isLoose, files, bytes, newest, isPart }: UntrackedData): string {
  const path = `/${showPath(folder as RawPath)}`;
  const count = `${isPart ? "at least " : ""}${files} ${files === 1 ? "file" : "files"}`;
  const when = newest === 0 ? "" : `, the newest of ${formatTime(newest)}`;
  return `${path} (${count}${isLoose ? " beside tracked ones" : ""}, ${formatBytes(bytes)}${when})`;
}
