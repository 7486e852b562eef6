import { accessSync, constants, existsSync, realpathSync, statfsSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { showPath } from "../raw-path.js";
import { formatBytes } from "../report.js";
import { pathOf, type PathName } from "../root/paths.js";
import type { RootPlan } from "../root/plan.js";
import { guarded } from "../system/files.js";
import type { Git } from "../system/git.js";
import { datasetAt } from "../system/zfs.js";

// What a site remembers and believes must not be turned back or replaced by what it installs. formats/state.md

/** A path without links; of what does not exist yet, below the folder that does. */
export function resolved(path: string): string {
  return existsSync(path) ? realpathSync(path) : join(resolved(dirname(path)), relative(dirname(path), path));
}

/** The nearest folder of a path that does exist. */
export const existing = (path: string): string => (existsSync(path) ? path : existing(dirname(path)));

const isWithin = (folder: string, path: string): boolean => path === folder || path.startsWith(`${folder}/`);

/**
 * @throws ZferryError `dataset-unsuitable` when the state folder lies on a dataset that a stream is received into
 */
export async function requireStateOffStreams({ state, streams }: SiteConfig): Promise<void> {
  const path = resolved(state);
  const dataset = await datasetAt(existing(path));
  if (dataset === undefined || !Object.values(streams).some((stream) => isWithin(stream, dataset))) return;
  throw new ZferryError(
    "dataset-unsuitable",
    `the state folder ${path} lies on ${dataset}, which a stream replaces`,
    {
      details: { path, dataset },
      hint: "name another folder as state in the site's configuration",
    },
  );
}

/**
 * @param origin the root dataset that is cloned
 * @throws ZferryError `dataset-unsuitable` when the state folder would be cloned with it, and each environment had its own
 */
export async function requireStateOutside({ state }: SiteConfig, origin: string): Promise<void> {
  const path = resolved(state);
  const dataset = await datasetAt(existing(path));
  if (dataset === undefined || !isWithin(origin, dataset)) return;
  throw new ZferryError(
    "dataset-unsuitable",
    `the state folder ${path} lies on ${dataset}, and each boot environment would have its own`,
    {
      details: { path, dataset },
      hint: `have a dataset for it that all environments mount: bundle setup makes one`,
    },
  );
}

/** What journal, plan and state take, and the old ones beside the new ones. */
const STATE_BYTES = 1 << 20;

/** @throws ZferryError `io-failed`, `no-space` when an install could not keep its journal */
export function requireStateWritable({ state }: SiteConfig): void {
  const free = guarded(state, () => {
    const folder = existing(state);
    accessSync(folder, constants.W_OK);
    const { bavail, bsize } = statfsSync(folder);
    return bavail * bsize;
  });
  if (free >= STATE_BYTES) return;
  throw new ZferryError(
    "no-space",
    `the state folder ${state} has ${formatBytes(free)} left, an install needs ${formatBytes(STATE_BYTES)}`,
    { details: { path: state, needed: STATE_BYTES, free }, hint: "free space there" },
  );
}

/** @throws ZferryError `not-configured` when the repository of `/` tracks the state folder */
export async function requireStateUntracked({ state }: SiteConfig, rootDir: string, git: Git): Promise<void> {
  const path = relative(resolved(rootDir), resolved(state));
  if (path === "" || path.startsWith("..")) return;
  const tracked = await git.run(["ls-files", "-z", "--", `:(top,literal)${path}`]);
  if (tracked.length === 0) return;
  throw new ZferryError(
    "not-configured",
    `the repository of ${rootDir} tracks files of the state folder ${state}, which a rollback would turn back`,
    { details: { path: state }, hint: `git -C ${rootDir} rm -r --cached ${path}, and add it to .gitignore` },
  );
}

/** Which paths of `/` are the site's own state or keys, or lead to them, where they are files. */
export function ownPaths(site: SiteConfig, rootDir: string): (path: string) => boolean {
  const own = ownFolders(site, rootDir);
  return (path) => own.some((folder) => isWithin(folder, path) || isWithin(path, folder));
}

/** From the root on. */
function ownFolders({ state, trust }: SiteConfig, rootDir: string): string[] {
  const root = resolved(rootDir);
  return [resolved(state), resolved(trust.keys)].map((path) => relative(root, path));
}

/** @throws ZferryError `not-permitted` when a release changes the site's own state, keys or what leads to them */
export function requireOwnUntouched(
  site: SiteConfig,
  rootDir: string,
  { changes, directories }: RootPlan,
): void {
  const own = ownFolders(site, rootDir);
  const shown = (entries: readonly { path: PathName }[]): string[] =>
    entries.map(({ path }) => showPath(pathOf(path)));
  const files = new Set(shown(changes));
  for (const path of [...files, ...shown(directories)]) {
    const touched = own.find(
      (folder) => isWithin(folder, path) || (files.has(path) && isWithin(path, folder)),
    );
    if (touched !== undefined) {
      throw new ZferryError(
        "not-permitted",
        `the release changes ${path}, where this site keeps what is its own`,
        {
          details: { path, own: touched },
        },
      );
    }
  }
}
