import { lstatSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import { requireRoot, type SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { rawBytes, type RawPath } from "../raw-path.js";
import { guarded, syncPath } from "../system/files.js";
import { initRepository, joinNul, splitNul, trimmed, type Git } from "../system/git.js";
import { ownMounts } from "../system/mounts.js";
import { withScratch } from "../system/scratch.js";
import { resolved } from "./apart.js";
import { pending } from "./pending.js";
import { readUnderWay } from "./under-way.js";

// formats/root.md, A site's repository

/** Never a part of `/`: the stream's, or of a running system alone. */
const NEVER = ["/usr", "/proc", "/sys", "/dev", "/run", "/tmp"];
/** What changes all the time, or belongs to people; where the product's own .gitignore is there, that says it. */
const USUAL = [
  "/home",
  "/root",
  "/mnt",
  "/media",
  "/lost+found",
  "/opt/zferry*",
  "/var/cache",
  "/var/log",
  "/var/spool",
  "/var/tmp",
];

/** A repository that a site is to have, or has from now on. */
export interface SiteRepository {
  /** Its `.git`. */
  readonly gitDir: string;
  /** The lines of `.git/info/exclude`, as bytes. */
  readonly ignored: readonly string[];
  /** Of the first commit. */
  readonly files: number;
  readonly bytes: number;
  /** Repositories within, which are left out; relative to the work tree. */
  readonly inner: readonly RawPath[];
}

interface RepositoryOptions {
  readonly site: SiteConfig;
  /** The folder of the system that the paths of the configuration are in. */
  readonly systemDir: string;
  /** Further patterns to ignore, as in `.gitignore`. */
  readonly ignore: readonly string[];
}

/**
 * What {@link makeRepository} would make. Nothing is changed.
 * @throws ZferryError `not-configured` without `[root]`; `output-exists` when there is a repository; `install-pending`;
 * `io-failed`, `git-failed`
 */
export async function planRepository(options: RepositoryOptions): Promise<SiteRepository> {
  const place = await placeOf(options);
  return withScratch(async (folder) => {
    const git = await initRepository(join(folder, "git"), { ...place, exclude: excludeOf(place) });
    const { found, paths } = await listFiles(git, place);
    return { ...found, bytes: sizeOf(place, paths) };
  });
}

/**
 * Makes a repository of a site's `/`, with a first commit of every file that is not ignored, byte by byte. It appears whole, or not
 * at all.
 * @returns what was made, with the commit
 * @throws ZferryError as {@link planRepository}; `no-space`
 */
export async function makeRepository(
  options: RepositoryOptions,
  now: Date,
): Promise<SiteRepository & { readonly commit: string }> {
  const place = await placeOf(options);
  const { workTree, gitDir } = place;
  const making = join(workTree, MAKING);
  rmSync(making, { recursive: true, force: true });
  try {
    const git = await initRepository(making, { workTree, exclude: excludeOf(place) });
    const { found, paths } = await listFiles(git, place);
    await git.run(["update-index", "--add", "--remove", "-z", "--stdin"], {
      input: joinNul(paths),
    });
    const tree = trimmed(await git.run(["write-tree"]));
    const when = `@${Math.floor(now.getTime() / 1000)} +0000`;
    const commit = trimmed(
      await git.run(["commit-tree", tree], {
        input: "This site as it was found\n",
        env: { GIT_AUTHOR_DATE: when, GIT_COMMITTER_DATE: when },
      }),
    );
    await git.durable.run(["update-ref", "refs/heads/main", commit]);
    await git.durable.run(["repack", "-a", "-d", "--quiet", "--window=0"]);
    rmSync(join(making, "info/attributes"));
    syncBelow(making);
    guarded(gitDir, () => renameSync(making, gitDir));
    syncPath(workTree);
    return { ...found, bytes: sizeOf(place, paths), commit };
  } finally {
    rmSync(making, { recursive: true, force: true });
  }
}

/** Where a repository is made: on the same file system as its place. */
const MAKING = ".git.zferry";

interface Place {
  readonly workTree: string;
  readonly gitDir: string;
  readonly ignored: readonly string[];
}

async function placeOf({ site, systemDir, ignore }: RepositoryOptions): Promise<Place> {
  const { path } = requireRoot(site);
  const broken = ignore.find((pattern) => /[\n\r]|^$/.test(pattern));
  if (broken !== undefined) {
    throw new ZferryError("usage", `--ignore ${JSON.stringify(broken)}: is not one line`);
  }
  const workTree = resolve(join(systemDir, path));
  const gitDir = join(workTree, ".git");
  if (guarded(gitDir, () => lstatSync(gitDir, { throwIfNoEntry: false })) !== undefined) {
    throw new ZferryError("output-exists", `${workTree} has a git repository already: there is ${gitDir}`, {
      details: { path: gitDir },
      hint: "a site uses the one that it has",
    });
  }
  const state = join(systemDir, site.state);
  const journal = await readUnderWay({ ...site, state });
  // What it prepared lies beside the files, and would be committed with them.
  if (journal !== undefined)
    throw await pending(journal, `with the repository that was there: bring ${gitDir} back`);
  const hasOwn = lstatSync(join(workTree, ".gitignore"), { throwIfNoEntry: false }) !== undefined;
  const own = [relative(workTree, resolve(state)), relative(resolved(workTree), resolved(state))];
  const fixed = [...NEVER, ...(hasOwn ? [] : USUAL)];
  const ignored = new Set([
    ...fixed,
    ...own.filter((path) => path !== "" && !path.startsWith("..")).map((path) => literal(latin1(path))),
    ...mountsBelow(resolved(workTree), fixed),
    ...ignore.map(latin1),
  ]);
  return { workTree, gitDir, ignored: [...ignored] };
}

/** What is mounted below a folder is not of its file system, so it is in no release. */
function mountsBelow(folder: string, covered: readonly string[]): string[] {
  const prefix = folder === "/" ? "" : latin1(folder);
  const found = [...ownMounts().keys()]
    .filter((path) => path.startsWith(`${prefix}/`) && path.length > prefix.length + 1)
    .map((path) => path.slice(prefix.length))
    .sort();
  const kept: string[] = [];
  for (const path of found) {
    if ([...covered, ...kept].some((outer) => path === outer || path.startsWith(`${outer}/`))) continue;
    kept.push(path);
  }
  return kept.map((path) => literal(path.slice(1)));
}

const latin1 = (text: string): string => Buffer.from(text).toString("latin1");

/** A path as a pattern that is that path alone. */
const literal = (path: string): string => `/${path.replace(/[\\*?[ ]/g, "\\$&")}`;

const excludeOf = ({ ignored }: Place): Buffer =>
  Buffer.from(ignored.map((line) => `${line}\n`).join(""), "latin1");

async function listFiles(
  git: Git,
  { gitDir, ignored }: Place,
): Promise<{ readonly found: Omit<SiteRepository, "bytes">; readonly paths: readonly RawPath[] }> {
  const args = ["ls-files", "--others", "--exclude-standard", `--exclude=/${MAKING}`, "-z"];
  const listed = splitNul(await git.run(args));
  // A repository within is listed as a folder, whatever is in it.
  const inner = listed.filter((path) => path.endsWith("/"));
  const paths = listed.filter((path) => !path.endsWith("/"));
  return { found: { gitDir, ignored, files: paths.length, inner }, paths };
}

const sizeOf = ({ workTree }: Place, paths: readonly RawPath[]): number =>
  paths.reduce((sum, path) => {
    const place = Buffer.concat([Buffer.from(`${workTree}/`), rawBytes(path)]);
    return sum + (lstatSync(place, { throwIfNoEntry: false })?.size ?? 0);
  }, 0);

function syncBelow(folder: string): void {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) syncBelow(path);
    else syncPath(path);
  }
  syncPath(folder);
}
